"""Where the stream's micro-batches go: the graph, and Cassandra. Both can be written twice with one result."""

import time
from contextlib import ExitStack
from typing import Any

import polars as pl
import psycopg
import structlog
from neo4j.exceptions import DriverError, Neo4jError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from c360_pipeline.connections import open_control, open_graph
from c360_pipeline.core.landing import split_suppressed
from c360_pipeline.errors import ConflictError, UnavailableError
from c360_pipeline.settings import Settings
from c360_pipeline.stores import user_events
from c360_pipeline.stores.fresh_events import write_fresh
from c360_pipeline.stores.graph import is_of_a_row
from c360_pipeline.stores.tracked_events import EVENT_SCHEMA
from c360_pipeline.streaming.clients import open_user_events
from c360_pipeline.streaming.operators import FreshEvent, bisected, rows_of

SUPPRESSION_SECONDS = 5.0
"""How old the list of people may be who are not to be written."""
PATIENCE_SECONDS = 600.0
"""How long a store may be away before the job fails, and begins again from its last checkpoint."""

Refused = list[tuple[FreshEvent, Exception]]


class Suppression:
    """Who is not to be written, read anew every few seconds.

    Args:
        settings: of the control database.
    """

    def __init__(self, settings: Settings) -> None:
        self._control = open_control(settings)
        self._read_at, self._users = float("-inf"), pl.DataFrame()

    def kept(self, events: list[FreshEvent]) -> list[FreshEvent]:
        """The events of people who may be written.

        Raises:
            ConflictError: somebody is being erased now.
            UnavailableError: the control database can't be reached.
        """
        self._control.require_no_erasure()
        if time.monotonic() - self._read_at > SUPPRESSION_SECONDS:
            self._users, self._read_at = self._control.suppressed_users(), time.monotonic()
        people = pl.DataFrame([(e.tenant_id, e.user_id) for e in events], schema=["tenant_id", "user_id"], orient="row")
        _, hidden = split_suppressed(people, self._users)
        left_out = set(hidden.iter_rows())
        return [event for event in events if (event.tenant_id, event.user_id) not in left_out]


class GraphSink:
    """Writes to Neo4j.

    Args:
        settings: of the graph and the control database.
    """

    name = "neo4j"

    def __init__(self, settings: Settings) -> None:
        self._opened = ExitStack()
        self._graph = self._opened.enter_context(open_graph(settings))
        self._suppression = Suppression(settings)

    def write(self, events: list[FreshEvent]) -> Refused:
        """Write what may be written; returns the events that the graph refuses."""
        kept = self._suppression.kept(events)
        return bisected(kept, self._write, _is_graph_row) if kept else []

    def _write(self, events: list[FreshEvent]) -> None:
        write_fresh(self._graph, pl.DataFrame(rows_of(events), schema=EVENT_SCHEMA, orient="row"))

    def close(self) -> None:
        """Close the connections."""
        self._opened.close()


class CassandraSink:
    """Writes to Cassandra.

    Args:
        settings: of the cluster and the control database.
    """

    name = "cassandra"

    def __init__(self, settings: Settings) -> None:
        self._opened = ExitStack()
        self._table = self._opened.enter_context(open_user_events(settings))
        self._suppression = Suppression(settings)

    def write(self, events: list[FreshEvent]) -> Refused:
        """Write what may be written; returns the events that no table takes."""
        kept = self._suppression.kept(events)
        return bisected(kept, self._write, user_events.is_of_a_row) if kept else []

    def _write(self, events: list[FreshEvent]) -> None:
        self._table.write(user_events.user_event(*event) for event in events)

    def close(self) -> None:
        """Close the connections."""
        self._opened.close()


SINKS: dict[str, type[GraphSink] | type[CassandraSink]] = {sink.name: sink for sink in (GraphSink, CassandraSink)}


class PatientSink:
    """A sink that waits for its store.

    Args:
        name: of the sink.
        settings: of its store; it is opened when it is first written to.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name
        self._settings = settings
        self._sink: GraphSink | CassandraSink | None = None
        self._log = structlog.get_logger("c360.stream")
        self.retries = 0

    def write(self, events: list[FreshEvent]) -> Refused:
        """Write, again and again while the store is away.

        Raises:
            UnavailableError: it was away for ten minutes.
        """
        trying = Retrying(
            retry=retry_if_exception(is_transient), stop=stop_after_delay(PATIENCE_SECONDS), reraise=True,
            wait=wait_exponential_jitter(0.1, 5.0), before_sleep=self._again,
        )  # fmt: skip
        return trying(self._attempt, events)

    def _attempt(self, events: list[FreshEvent]) -> Refused:
        if self._sink is None:
            self._sink = SINKS[self._name](self._settings)
        return self._sink.write(events)

    def _again(self, state: Any) -> None:
        self.retries += 1
        error = state.outcome.exception()
        self._log.warning("store_is_away", sink=self._name, error=type(error).__name__, attempt=state.attempt_number)

    def close(self) -> None:
        """Close what was opened."""
        if self._sink is not None:
            self._sink.close()


def is_transient(error: BaseException) -> bool:
    """Whether the same may go well later: a store is away, somebody is being erased, or writers met."""
    if isinstance(error, Neo4jError):
        return error.is_retryable()
    return isinstance(error, (UnavailableError, ConflictError, DriverError, psycopg.OperationalError))


def _is_graph_row(error: Exception) -> bool:
    return isinstance(error, Neo4jError) and is_of_a_row(error)


def refusal(event: FreshEvent, error: Exception) -> tuple[str, str]:
    """The event that a store refuses, and why, without what it holds."""
    said = getattr(error, "code", None) or type(error).__name__
    return event.event_id, str(said)
