"""One database: its driver, transactions that are retried, and reads that end in time."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import neo4j
import neo4j.time
from neo4j.exceptions import AuthError, DriverError, IncompleteCommit, Neo4jError, ServiceUnavailable

from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.errors import UnavailableError
from c360_pipeline.stores.neo4j.driver_values import Read, plain
from c360_pipeline.stores.neo4j.graph_statistics import GraphStatistics
from c360_pipeline.stores.neo4j.refusals import Refusals

BATCH_ROWS = 5_000
POOL_SIZE = 10
"""Connections of one process."""
FIRST_RETRY_SECONDS, RETRY_MULTIPLIER = 0.1, 1.7
"""A statement that met a deadlock waits 0.1, 0.17, 0.29, 0.49 … seconds before it is tried again, a minute in all."""
READ_TIMEOUT_SECONDS = 10.0
"""After which the server ends a statement that somebody waits for."""
COMMITS_WITHOUT_REPLY = 3
"""How often a statement whose commit got no reply is run again; each has the same result however often it is run."""
OF_A_ROW = ("Neo.ClientError.Schema.", "Neo.ClientError.Statement.", "Neo.DatabaseError.Statement.ExecutionFailed")
"""Codes of errors that a row can be the cause of: a constraint, a value that an index or a property can't hold."""
OF_THE_STATEMENT = ("Neo.ClientError.Statement.SyntaxError", "Neo.ClientError.Statement.AccessMode")
T = TypeVar("T")


class Client:
    """Runs statements. Use it as a context manager: it holds a driver with its pool of connections.

    Attributes:
        statistics: of the statements that were run.
        refusals: rows that the database did not take.

    Args:
        uri: bolt:// or neo4j:// address.
        user: login.
        password: its secret.
        database: name of the database.
    """

    def __init__(self, uri: str, user: str, password: str, database: str) -> None:
        self._uri = uri
        self._database = database
        self.statistics = GraphStatistics(POOL_SIZE)
        self.refusals = Refusals()
        self._driver = neo4j.GraphDatabase.driver(
            uri, auth=(user, password), notifications_min_severity="OFF", max_connection_pool_size=POOL_SIZE,
            connection_timeout=10, max_transaction_retry_time=60, initial_retry_delay=FIRST_RETRY_SECONDS,
            retry_delay_multiplier=RETRY_MULTIPLIER, retry_delay_jitter_factor=0.2,
        )  # fmt: skip

    def __enter__(self) -> Self:
        try:
            self._driver.verify_connectivity()
        except AuthError as error:
            self._driver.close()
            raise UnavailableError(f"Neo4j at {self._uri} refuses the login: {error.message}") from None
        except (ServiceUnavailable, DriverError, Neo4jError) as error:
            self._driver.close()
            raise UnavailableError(
                f"Neo4j at {self._uri} can't be reached: {error}. Start the embedded one with `c360 up`."
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._driver.close()

    def session(self, **options: Any) -> neo4j.Session:
        """A session of the driver with its options, for what reads a stream of records."""
        return self._driver.session(database=self._database, **options)

    def run(self, statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
        """Run one statement in a transaction that is retried on transient errors; returns its records.

        It is run again, too, where the connection broke before the reply to its commit: nobody knows then whether it
        was carried out, so a statement must have the same result when it is carried out twice.
        """
        attempts = 0

        def work(transaction: neo4j.ManagedTransaction) -> list[dict[str, Any]]:
            nonlocal attempts
            attempts += 1
            return transaction.run(statement, parameters).data()

        with self.statistics.measured(statement, lambda: attempts):
            return self._writing(work)

    def write_together(self, work: Callable[[Read], T]) -> T:
        """Run several statements that read and write in one transaction.

        Args:
            work: given what runs a statement; begun again on a transient error, and where a commit got no reply, so
                that it must have the same result when it is carried out twice.
        """

        def transact(transaction: neo4j.ManagedTransaction) -> T:
            def run(statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
                with self.statistics.measured(statement, lambda: 1):
                    return transaction.run(statement, parameters).data()

            return work(run)

        return self._writing(transact)

    def _writing(self, work: Callable[[neo4j.ManagedTransaction], T]) -> T:
        with self._driver.session(database=self._database) as session:
            for attempt in range(COMMITS_WITHOUT_REPLY):
                try:
                    return session.execute_write(work)
                except IncompleteCommit:
                    if attempt == COMMITS_WITHOUT_REPLY - 1:
                        raise
            raise AssertionError("the last attempt returns or raises")

    def query(self, statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
        """Run one reading statement; returns its records as plain values, times and dates as ISO 8601 text."""
        return [plain(record) for record in self._rows_of(statement, parameters, None)]

    def read_only(self, statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
        """Run one reading statement that somebody waits for; returns its records with the driver's values.

        Raises:
            Neo4jError: it takes more than 10 seconds, or fails.
        """
        return self._rows_of(statement, parameters, READ_TIMEOUT_SECONDS)

    def read_together(self, work: Callable[[Read], T]) -> T:
        """Run several reading statements that somebody waits for in one transaction, which saves each its own.

        Args:
            work: given what `read_only` is; begun again on a transient error.

        Raises:
            Neo4jError: they take more than 10 seconds, or one fails.
        """
        return self._reading(work, READ_TIMEOUT_SECONDS)

    def _rows_of(self, statement: Statement, parameters: dict[str, Any], timeout: float | None) -> list[dict[str, Any]]:
        return self._reading(lambda read: read(statement, **parameters), timeout)

    def _reading(self, work: Callable[[Read], T], timeout: float | None) -> T:
        @neo4j.unit_of_work(timeout=timeout)
        def transact(transaction: neo4j.ManagedTransaction) -> T:
            def read(statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
                with self.statistics.measured(statement, lambda: 1):
                    return transaction.run(statement, parameters).data()

            return work(read)

        with self._driver.session(database=self._database, default_access_mode=neo4j.READ_ACCESS) as session:
            return session.execute_read(transact)

    def run_in_batches(self, statement: Statement) -> None:
        """Run a statement that commits `$batch_rows` rows at a time."""
        with self._driver.session(database=self._database) as session:
            session.run(statement, batch_rows=BATCH_ROWS).consume()


def is_of_a_row(error: Exception) -> bool:
    """Whether one of the rows that a statement was given can be what the database did not take."""
    if not isinstance(error, Neo4jError) or error.is_retryable():
        return False
    code = str(error.code)
    return code.startswith(OF_A_ROW) and not code.startswith(OF_THE_STATEMENT)
