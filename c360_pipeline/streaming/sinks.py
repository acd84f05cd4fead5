"""Where the stream's micro-batches go: the graph, and Cassandra. Both can be written twice with one result."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import structlog
from neo4j.exceptions import DriverError, Neo4jError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from c360_pipeline.connections import open_control, open_graph, open_lake
from c360_pipeline.core.arrays.bisection import bisected
from c360_pipeline.core.contract.events import Event
from c360_pipeline.core.contract.frames import event_frame
from c360_pipeline.errors import ConflictError, UnavailableError
from c360_pipeline.settings import Settings
from c360_pipeline.stages.realtime.suppression import Suppression
from c360_pipeline.stages.realtime.surprises import SessionSurprises
from c360_pipeline.stages.realtime.unlanded_events import write_unlanded
from c360_pipeline.stores.cassandra import user_events
from c360_pipeline.stores.neo4j.client import is_of_a_row
from c360_pipeline.stores.postgres.privacy_lists import PrivacyLists
from c360_pipeline.stores.postgres.sessions import StandingSession
from c360_pipeline.streaming.clients import open_user_events

PATIENCE_SECONDS = 600.0
"""How long a store may be away before the job fails, and begins again from its last checkpoint."""

Refused = list[tuple[Event, Exception]]
Write = Callable[[list[Event]], None]
"""Writes events, all or none."""


@contextmanager
def _graph_writer(settings: Settings) -> Iterator[Write]:
    with open_graph(settings) as graph:
        scored = SessionSurprises(graph, open_lake(settings), open_control(settings))

        def write(events: list[Event]) -> None:
            write_unlanded(graph, event_frame(events))
            scored.note(events)

        try:
            yield write
        finally:
            scored.close()


@contextmanager
def _user_events_writer(settings: Settings) -> Iterator[Write]:
    with open_user_events(settings) as table:
        yield lambda events: table.write(user_events.user_event(event._asdict()) for event in events if event.user_id)


@dataclass(frozen=True)
class Store:
    """Where events go.

    Attributes:
        batch_events: of a tenant and shard that are written together.
        open_writer: opens it, to be entered.
        is_of_a_row: whether an error of writing is the fault of one of the events.
    """

    batch_events: int
    open_writer: Callable[[Settings], AbstractContextManager[Write]]
    is_of_a_row: Callable[[Exception], bool]


STORES = {
    "neo4j": Store(200, _graph_writer, is_of_a_row),
    # Its log is on the disk sooner the more is written at once.
    "cassandra": Store(1_000, _user_events_writer, user_events.is_of_a_row),
}


class RetryingSink:
    """Writes to a store, and waits for it while it is away.

    Args:
        name: of the store.
        settings: of the store and of the control database; they are opened when something is first written.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name
        self._store = STORES[name]
        self._settings = settings
        self._opened = ExitStack()
        self._suppression: Suppression | None = None
        self._write: Write | None = None
        self._log = structlog.get_logger("c360.stream")
        self.retries = 0

    def write(self, events: list[Event]) -> Refused:
        """Write what may be written, again and again while the store is away; returns the events that it refuses.

        Raises:
            UnavailableError: it was away for ten minutes.
        """
        trying = Retrying(
            retry=retry_if_exception(is_transient), stop=stop_after_delay(PATIENCE_SECONDS), reraise=True,
            wait=wait_exponential_jitter(0.1, 5.0), before_sleep=self._again,
        )  # fmt: skip
        return trying(self._attempt, events)

    def _attempt(self, events: list[Event]) -> Refused:
        if self._suppression is None:
            control = open_control(self._settings)
            session = StandingSession(control.login)
            self._opened.callback(session.close)
            self._suppression = Suppression(PrivacyLists(session, control.identifiers))
        if self._write is None:
            self._write = self._opened.enter_context(self._store.open_writer(self._settings))
        kept, _ = self._suppression.split(events)
        if not kept:
            return []
        return [(rows[0], error) for rows, error in bisected(kept, self._write, self._store.is_of_a_row)]

    def _again(self, state: Any) -> None:
        self.retries += 1
        error = state.outcome.exception()
        if isinstance(error, ConflictError):
            # Who is being erased leaves the list and the store: what is remembered of both is of before.
            self.close()
        self._log.warning("store_is_away", sink=self._name, error=type(error).__name__, attempt=state.attempt_number)

    def close(self) -> None:
        """Close what was opened; the next write opens it again."""
        self._opened.close()
        self._suppression = self._write = None


def is_transient(error: BaseException) -> bool:
    """Whether the same may go well later: a store is away, somebody is being erased, or writers met."""
    if isinstance(error, Neo4jError):
        return error.is_retryable()
    return isinstance(error, (UnavailableError, ConflictError, DriverError, psycopg.OperationalError))


def refusal(event: Event, error: Exception) -> tuple[str, str]:
    """The event that a store refuses, and why, without what it holds."""
    said = getattr(error, "code", None) or type(error).__name__
    return event.event_id, str(said)
