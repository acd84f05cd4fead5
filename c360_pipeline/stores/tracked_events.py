"""Events that the API takes: in S3 before anybody is told that they are, in the graph as soon as it can be.

Requests that come at the same time share one object, so that a busy minute makes dozens of files and not thousands.
Landing takes these files up like any other (docs/adr/0035).
"""

import queue
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime

import polars as pl
import psycopg
import structlog
from neo4j.exceptions import DriverError, Neo4jError

from c360_pipeline.core.events import Event
from c360_pipeline.core.landing import split_suppressed
from c360_pipeline.errors import C360Error, UnavailableError
from c360_pipeline.stores.control import ControlDb
from c360_pipeline.stores.fresh_events import write_fresh
from c360_pipeline.stores.graph import Graph
from c360_pipeline.stores.landing import Landing

GATHER_SECONDS = 0.02
"""For how long more requests are waited for before an object is put."""
MOST_LINES = 2_000
"""Of one object."""
SUPPRESSION_SECONDS = 5.0
"""How old the list of people may be who are not to be shown."""
EVENT_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "event_id": pl.String, "tenant_id": pl.String, "user_id": pl.String, "session_id": pl.String,
    "ts": pl.Datetime("us", "UTC"), "action": pl.String, "item_id": pl.String,
    "attrs": pl.List(pl.Struct({"key": pl.String, "value": pl.String})),
}  # fmt: skip


@dataclass(frozen=True)
class Tracked:
    """Events of one request.

    Attributes:
        lines: as they are to land, one JSON object each, without the end of the line.
        events: the same as landing will read them.
        stored: the object's address, once it is in S3.
        shown: whether the graph has them, once that is known.
    """

    lines: Sequence[bytes]
    events: Sequence[Event]
    stored: "Future[str]" = field(default_factory=Future)
    shown: "Future[bool]" = field(default_factory=Future)


class TrackedEvents:
    """One writer for all requests of a process.

    Args:
        landing: where objects go.
        graph: what shows them at once.
        control: says who is not to be shown.
    """

    def __init__(self, landing: Landing, graph: Graph, control: ControlDb) -> None:
        self._landing = landing
        self._graph = graph
        self._control = control
        self._waiting: queue.SimpleQueue[Tracked | None] = queue.SimpleQueue()
        self._suppressed = (float("-inf"), pl.DataFrame())
        self._thread = threading.Thread(target=self._work, name="tracked-events")
        self._log = structlog.get_logger("c360.track")
        self._thread.start()

    def submit(self, tracked: Tracked) -> None:
        """Take the events of a request; its futures tell what became of them."""
        self._waiting.put(tracked)

    def close(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_open = True
        while is_open:
            first = self._waiting.get()
            if first is None:
                return
            together, is_open = self._gather(first)
            self._store(together)

    def _gather(self, first: Tracked) -> tuple[list[Tracked], bool]:
        """Requests that come within a moment, and whether more may come."""
        together, until = [first], time.monotonic() + GATHER_SECONDS
        lines = len(first.lines)
        while lines < MOST_LINES and (left := until - time.monotonic()) > 0:
            try:
                following = self._waiting.get(timeout=left)
            except queue.Empty:
                break
            if following is None:
                return together, False
            together.append(following)
            lines += len(following.lines)
        return together, True

    def _store(self, together: Sequence[Tracked]) -> None:
        now = datetime.now(UTC)
        content = b"".join(line + b"\n" for tracked in together for line in tracked.lines)
        name = f"track-{now:%H%M%S%f}-{uuid.uuid4().hex[:12]}.jsonl"
        try:
            uri = self._landing.put_events(content, name, now.date())
        except UnavailableError as error:
            for tracked in together:
                tracked.stored.set_exception(error)
                tracked.shown.set_result(False)
            return
        for tracked in together:
            tracked.stored.set_result(uri)
        for tracked in together:
            tracked.shown.set_result(self._show(tracked.events))

    def _show(self, events: Sequence[Event]) -> bool:
        """Write events to the graph, unless their people are not to be shown; what fails, landing makes good."""
        try:
            self._control.require_no_erasure()
            kept, hidden = split_suppressed(_frame(events), self._suppressed_users())
            write_fresh(self._graph, kept)
        except (C360Error, DriverError, Neo4jError, psycopg.Error) as error:
            self._log.warning("graph_not_updated", error=type(error).__name__, events=len(events))
            return False
        return hidden.is_empty()

    def _suppressed_users(self) -> pl.DataFrame:
        read_at, users = self._suppressed
        if time.monotonic() - read_at > SUPPRESSION_SECONDS:
            users = self._control.suppressed_users()
            self._suppressed = (time.monotonic(), users)
        return users


def _frame(events: Sequence[Event]) -> pl.DataFrame:
    rows = [(*event[:7], [{"key": k, "value": v} for k, v in event.attrs.items()]) for event in events]
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")
