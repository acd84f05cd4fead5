"""The graph in Neo4j: statements run here; what writes, reads back, counts and keeps checkpoints is in its parts."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.stores.neo4j.audit import Audit
from c360_pipeline.stores.neo4j.checkpoints import Checkpoints
from c360_pipeline.stores.neo4j.client import Client, T
from c360_pipeline.stores.neo4j.counts import Counts
from c360_pipeline.stores.neo4j.driver_values import Read
from c360_pipeline.stores.neo4j.schema import GraphSchema
from c360_pipeline.stores.neo4j.writer import Writer


class Graph:
    """A Neo4j database. Use it as a context manager: it holds a driver with its pool of connections.

    Attributes:
        statistics: of the statements that were run.
        refusals: rows that the database did not take.
        writer: writes rows of kinds.
        audit: reads them back, and finds what belongs nowhere.
        counts: of labels and types; tenants.
        checkpoints: how far each projection is.
        schema: constraints and indexes.

    Args:
        uri: bolt:// or neo4j:// address.
        user: login.
        password: its secret.
        database: name of the database.
    """

    def __init__(self, uri: str, user: str, password: str, database: str) -> None:
        self._client = Client(uri, user, password, database)
        self.statistics, self.refusals = self._client.statistics, self._client.refusals
        self.counts = Counts(self._client)
        self.writer = Writer(self._client, self.counts)
        self.audit = Audit(self._client, self.counts)
        self.checkpoints = Checkpoints(self._client)
        self.schema = GraphSchema(self._client)

    def __enter__(self) -> Self:
        self._client.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.__exit__(kind, error, trace)

    def run(self, statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
        """Run one statement in a transaction that is retried on transient errors; returns its records.

        A statement must have the same result when it is carried out twice: see `Client.run`.
        """
        return self._client.run(statement, **parameters)

    def write_together(self, work: Callable[[Read], T]) -> T:
        """Run several statements that read and write in one transaction: see `Client.write_together`."""
        return self._client.write_together(work)

    def query(self, statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
        """Run one reading statement; returns its records as plain values, times and dates as ISO 8601 text."""
        return self._client.query(statement, **parameters)

    def read_only(self, statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
        """Run one reading statement that somebody waits for; returns its records with the driver's values.

        Raises:
            Neo4jError: it takes more than 10 seconds, or fails.
        """
        return self._client.read_only(statement, **parameters)

    def read_together(self, work: Callable[[Read], T]) -> T:
        """Run several reading statements that somebody waits for in one transaction, which saves each its own.

        Args:
            work: given what `read_only` is; begun again on a transient error.

        Raises:
            Neo4jError: they take more than 10 seconds, or one fails.
        """
        return self._client.read_together(work)
