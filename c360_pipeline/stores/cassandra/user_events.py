"""Events in Cassandra: by user and day, newest first."""

from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from importlib import resources
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import polars as pl
from cassandra import InvalidRequest, OperationTimedOut, ReadTimeout, Unavailable, WriteTimeout
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.concurrent import execute_concurrent, execute_concurrent_with_args
from cassandra.io.asyncioreactor import AsyncioConnection
from cassandra.policies import DCAwareRoundRobinPolicy, TokenAwarePolicy
from cassandra.query import BatchStatement, BatchType, ConsistencyLevel

from c360_pipeline.core.contract.events import EPOCH, epoch_micros
from c360_pipeline.core.contract.layout import STREAM_COLUMNS
from c360_pipeline.errors import UnavailableError

CONCURRENCY = 200
"""Requests on their way at once."""
REQUEST_ROWS, REQUEST_BYTES = 10, 4 * 1024
"""Of one request. Servers warn of batches of more partitions, or of 5 KiB, and refuse them from 50 KiB."""
RENAMED = {"action": "event_type", "attrs": "metadata"}
"""Columns that the table calls otherwise. Source: "Real-Time User Event Streaming System"."""
KEY = ("tenant_id", "user_id", "bucket_date", "event_time", "event_type", "event_id")
REST = tuple(
    RENAMED.get(column, column)
    for column in STREAM_COLUMNS
    if column != "ts" and RENAMED.get(column, column) not in KEY
)
COLUMNS = (*KEY, "event_micros", *REST)
TRANSIENT = (NoHostAvailable, OperationTimedOut, ReadTimeout, Unavailable, WriteTimeout)
INSERT = f"INSERT INTO user_events ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
READ_DAY = f"SELECT {', '.join(COLUMNS)} FROM user_events WHERE tenant_id = ? AND user_id = ? AND bucket_date = ?"
READ_ALL = f"SELECT {', '.join(COLUMNS)} FROM user_events"
INSERT_DAY = "INSERT INTO user_days (tenant_id, user_id, bucket_date) VALUES (?, ?, ?)"
READ_DAYS = "SELECT bucket_date FROM user_days WHERE tenant_id = ? AND user_id = ?"
DELETE_DAYS = "DELETE FROM user_days WHERE tenant_id = ? AND user_id = ?"
DAYS_AT_ONCE = 5_000
"""Days of users whose events are in memory together."""
KNOWN_DAYS = 200_000
"""Days of users that a writer remembers to have noted."""
DELETE = """
    DELETE FROM user_events
    WHERE tenant_id = ? AND user_id = ? AND bucket_date = ? AND event_time = ? AND event_type = ? AND event_id = ?
"""
DELETE_DAY = "DELETE FROM user_events WHERE tenant_id = ? AND user_id = ? AND bucket_date = ?"


if TYPE_CHECKING:

    class UserEvent(NamedTuple):
        """A row; `event_time` is `event_micros` cut to the milliseconds that Cassandra has."""

        tenant_id: str
        user_id: str
        bucket_date: date
        event_time: datetime
        event_type: str
        event_id: str
        event_micros: int
        session_id: str
        item_id: str | None
        metadata: dict[str, str]
else:
    # Of the declared fields of an event; a test holds the class above to these.
    UserEvent = namedtuple("UserEvent", COLUMNS)


def user_event(event: Mapping[str, Any]) -> UserEvent:
    """The row of an event; the bucket is its day in UTC.

    Args:
        event: values by column of an event; of those that are not there the row has none.
    """
    micros = epoch_micros(event["ts"])
    values: dict[str, Any] = {
        RENAMED.get(column, column): event.get(column) for column in STREAM_COLUMNS if column != "ts"
    }
    cut = EPOCH + timedelta(milliseconds=micros // 1000)
    day = event["ts"].astimezone(UTC).date()
    return UserEvent(**values, bucket_date=day, event_time=cut, event_micros=micros)


class UserEvents:
    """The table in a keyspace.

    Args:
        hosts: to ask first.
        port: of all of them.
        user: whose login it is.
        password: of that login.
        keyspace: where the table is; made where it is missing, with one copy, for a cluster of one node.
    """

    def __init__(self, hosts: Sequence[str], port: int, user: str | None, password: str | None, keyspace: str) -> None:
        login = PlainTextAuthProvider(user, password) if user else None
        profile = ExecutionProfile(
            load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy()),
            consistency_level=ConsistencyLevel.LOCAL_QUORUM, request_timeout=10.0,
        )  # fmt: skip
        self._cluster = Cluster(
            list(hosts), port=port, auth_provider=login, execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            connect_timeout=10, protocol_version=5, connection_class=AsyncioConnection,
        )  # fmt: skip
        self._keyspace = keyspace
        self._session: Any = None
        self._prepared: dict[str, Any] = {}
        self._noted: set[tuple[str, str, date]] = set()

    def __enter__(self) -> Self:
        try:
            self._session = self._cluster.connect()
            self._apply_schema()
        except TRANSIENT as error:
            self._cluster.shutdown()
            raise UnavailableError(f"Cassandra can't be reached: {type(error).__name__}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.shutdown()

    def _apply_schema(self) -> None:
        self._session.execute(
            f"CREATE KEYSPACE IF NOT EXISTS {self._keyspace} "
            "WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}"
        )
        self._session.set_keyspace(self._keyspace)
        script = resources.files("c360_pipeline.ddl").joinpath("user_events.cql").read_text(encoding="utf-8")
        for statement in "\n".join(line for line in script.splitlines() if not line.startswith("--")).split(";"):
            self._session.execute(statement)
        self._add_columns()
        statements = (INSERT, DELETE, READ_DAY, DELETE_DAY, INSERT_DAY, READ_DAYS, DELETE_DAYS)
        self._prepared = {statement: self._session.prepare(statement) for statement in statements}

    def _add_columns(self) -> None:
        """Columns of fields that came after the table was made."""
        held = self._cluster.metadata.keyspaces[self._keyspace].tables["user_events"].columns
        for name in (column for column in COLUMNS if column not in held):
            self._session.execute(f"ALTER TABLE user_events ADD IF NOT EXISTS {name} text")

    def write(self, events: Iterable[UserEvent]) -> None:
        """Write rows; writing one again changes nothing.

        Raises:
            UnavailableError: the cluster does not take them now; some may be written.
            InvalidRequest: a row is one that no table takes.
        """
        rows = list(events)
        days = {(row.tenant_id, row.user_id, row.bucket_date) for row in rows} - self._noted
        # The day first: no event is there whose day nobody would find.
        self._write_all(INSERT_DAY, days)
        self._write_all(INSERT, rows)
        self._noted = (self._noted if len(self._noted) < KNOWN_DAYS else set()) | days

    def _write_all(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Run a statement with each of some values; the first error is raised, the others may have gone well."""
        try:
            requests = [(request, None) for request in self._requests(self._prepared[statement], rows)]
            execute_concurrent(self._session, requests, concurrency=CONCURRENCY)
        except TRANSIENT as error:
            raise UnavailableError(f"Cassandra does not take the events: {type(error).__name__}") from error

    def _requests(self, prepared: Any, rows: Iterable[tuple[Any, ...]]) -> Iterator[BatchStatement]:
        """Rows of the same nodes together: a request costs several times what a row in it does."""
        waiting: dict[tuple[Any, ...], _Request] = {}
        for row in rows:
            bound = prepared.bind(row)
            nodes = tuple(self._cluster.metadata.get_replicas(self._keyspace, bound.routing_key))
            request = waiting.setdefault(nodes, _Request())
            size = sum(len(value) for value in bound.values if value)
            if request.rows and (request.rows >= REQUEST_ROWS or request.bytes + size > REQUEST_BYTES):
                yield request.batch
                request = waiting[nodes] = _Request()
            request.add(bound, size)
        yield from (request.batch for request in waiting.values())

    def delete(self, events: pl.DataFrame) -> None:
        """Delete events; deleting one again changes nothing.

        Args:
            events: tenant_id, user_id, ts, action, event_id.
        """
        rows = map(user_event, events.select("event_id", "tenant_id", "user_id", "ts", "action").iter_rows(named=True))
        self._write_all(DELETE, (tuple(getattr(row, name) for name in KEY) for row in rows))

    def of_days(self, days: Iterable[tuple[str, str, date]]) -> Iterator[UserEvent]:
        """What users did on days: of each the newest first.

        Args:
            days: tenant, user and day in UTC.

        Raises:
            UnavailableError: the cluster does not answer.
        """
        places = iter(days)
        while some := list(islice(places, DAYS_AT_ONCE)):
            try:
                found = execute_concurrent_with_args(
                    self._session, self._prepared[READ_DAY], some, concurrency=CONCURRENCY
                )
                for _, rows in found:
                    yield from map(_row, rows)
            except TRANSIENT as error:
                raise UnavailableError(f"Cassandra does not answer: {type(error).__name__}") from error

    def scan(self) -> Iterator[UserEvent]:
        """All rows, in the order of the ring; page by page."""
        return map(_row, self._session.execute(READ_ALL))

    def delete_days(self, tenant_id: str, user_id: str, days: Iterable[date]) -> None:
        """Delete what a user did on some days."""
        self._write_all(DELETE_DAY, [(tenant_id, user_id, day) for day in days])

    def days(self, tenant_id: str, user_id: str) -> list[date]:
        """The days on which a user did something, in UTC, the newest first."""
        found = self._session.execute(self._prepared[READ_DAYS], (tenant_id, user_id))
        return [row.bucket_date.date() for row in found]

    def delete_user(self, tenant_id: str, user_id: str) -> None:
        """Delete all that a user did, whatever its day."""
        self.delete_days(tenant_id, user_id, self.days(tenant_id, user_id))
        self._write_all(DELETE_DAYS, [(tenant_id, user_id)])


class _Request:
    """Rows that go to the server together."""

    def __init__(self) -> None:
        self.batch = BatchStatement(BatchType.UNLOGGED)
        self.rows = self.bytes = 0

    def add(self, bound: Any, size: int) -> None:
        """Take a row of so many bytes."""
        self.batch.add(bound)
        self.rows, self.bytes = self.rows + 1, self.bytes + size


def is_of_a_row(error: Exception) -> bool:
    """Whether one of the rows that were written is what the table does not take."""
    return isinstance(error, InvalidRequest)


def _row(row: Any) -> UserEvent:
    values = row._asdict()
    at = values["event_time"].replace(tzinfo=UTC)
    return UserEvent(**{**values, "event_time": at, "bucket_date": values["bucket_date"].date(),
                        "metadata": dict(values["metadata"] or {})})  # fmt: skip
