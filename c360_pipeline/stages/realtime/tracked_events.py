"""Events that the API takes: in S3 before anybody is told that they are, in the graph as soon as it can be.

Requests that come at the same time share one object, so that a busy minute makes dozens of files and not thousands.
Landing takes these files up like any other (docs/adr/0035).
"""

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg
import structlog
from neo4j.exceptions import DriverError, Neo4jError

from c360_pipeline.core.contract.events import Event
from c360_pipeline.core.contract.frames import event_frame
from c360_pipeline.errors import C360Error, UnavailableError
from c360_pipeline.stages.realtime.suppression import Suppression, who
from c360_pipeline.stages.realtime.unlanded_events import write_unlanded
from c360_pipeline.stores.neo4j.client import is_of_a_row
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.privacy_lists import PrivacyLists
from c360_pipeline.stores.postgres.sessions import StandingSession
from c360_pipeline.stores.s3.landing import Landing

GATHER_SECONDS = 0.02
"""For how long more requests are waited for before an object is put."""
MOST_LINES = 2_000
"""Of one object."""


class Stored(NamedTuple):
    """What became of the events of one request.

    Attributes:
        uri: address of the object that they are in; None where none of them was stored.
        suppressed: of each event whether it is of somebody who asked to be forgotten, and so is nowhere.
    """

    uri: str | None
    suppressed: tuple[bool, ...]


@dataclass(frozen=True)
class Tracked:
    """Events of one request.

    Attributes:
        lines: as they are to land, one JSON object each, without the end of the line.
        events: the same as landing will read them.
        stored: where they are, once they are in S3.
        shown: whether the graph has them, once that is known.
    """

    lines: Sequence[bytes]
    events: Sequence[Event]
    stored: "Future[Stored]" = field(default_factory=Future)
    shown: "Future[bool]" = field(default_factory=Future)


class TrackedEvents:
    """Two writers for all requests of a process: one puts objects, the other follows it and writes to the graph.

    Args:
        landing: where objects go.
        graph: what shows them at once.
        control: says who is not to be shown.
        note: is given the events that the graph shows.
    """

    def __init__(
        self, landing: Landing, graph: Graph, control: ControlDb, note: Callable[[Sequence[Event]], None]
    ) -> None:
        self._landing = landing
        self._graph, self._note = graph, note
        # Of one thread each; the writer asks with every object.
        self._suppression = Suppression(control.privacy)
        self._standing = StandingSession(control.login)
        self._never_stored = Suppression(PrivacyLists(self._standing, control.identifiers))
        self._waiting: queue.SimpleQueue[Tracked | None] = queue.SimpleQueue()
        self._stored: queue.SimpleQueue[Tracked | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._store_all, name="tracked-events-to-s3"),
            threading.Thread(target=self._show_all, name="tracked-events-to-graph"),
        ]
        self._log = structlog.get_logger("c360.track")
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether both writers work."""
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, tracked: Tracked) -> None:
        """Take the events of a request; its futures tell what became of them."""
        self._waiting.put(tracked)

    def close(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._standing.close()

    def _store_all(self) -> None:
        for together in _gathered(self._waiting, GATHER_SECONDS):
            try:
                self._store(together)
            except Exception as error:
                # Whoever waits is told; the next requests are not to wait for a thread that is gone.
                self._log.exception("not_stored", requests=len(together))
                for tracked in together:
                    _tell(tracked.stored, error)
                    _tell(tracked.shown, error)
        self._stored.put(None)

    def _show_all(self) -> None:
        for together in _gathered(self._stored, 0):
            try:
                self._show(together)
            except Exception as error:
                self._log.exception("not_shown", requests=len(together), error=type(error).__name__)
                for tracked in together:
                    if not tracked.shown.done():
                        tracked.shown.set_result(False)

    def _store(self, together: Sequence[Tracked]) -> None:
        now = datetime.now(UTC)
        try:
            hidden = self._never_stored.hidden([event for tracked in together for event in tracked.events])
            left_out = [tuple(who(e) in hidden for e in tracked.events) for tracked in together]
            content = b"".join(
                line + b"\n"
                for tracked, out in zip(together, left_out, strict=True)
                for line, is_out in zip(tracked.lines, out, strict=True)
                if not is_out
            )
            name = f"track-{now:%H%M%S%f}-{uuid.uuid4().hex[:12]}.jsonl"
            uri = self._landing.put_events(content, name, now.date()) if content else ""
        except UnavailableError as error:
            for tracked in together:
                tracked.stored.set_exception(error)
                tracked.shown.set_result(False)
            return
        for tracked, out in zip(together, left_out, strict=True):
            tracked.stored.set_result(Stored(None if all(out) else uri, out))
            self._stored.put(tracked)

    def _show(self, together: Sequence[Tracked]) -> None:
        """Write the events of some requests to the graph; one by one where a row of them is refused.

        People who are not to be shown are left out; what fails, landing makes good.
        """
        try:
            kept, hidden = self._suppression.split([event for tracked in together for event in tracked.events])
            write_unlanded(self._graph, event_frame(kept))
            self._note(kept)
        except (C360Error, DriverError, Neo4jError, psycopg.Error) as error:
            if len(together) > 1 and isinstance(error, Neo4jError) and is_of_a_row(error):
                for tracked in together:
                    self._show([tracked])
                return
            self._log.warning("graph_not_updated", error=type(error).__name__, requests=len(together))
            for tracked in together:
                tracked.shown.set_result(False)
            return
        left_out = {who(event) for event in hidden}
        for tracked in together:
            stored = [e for e, out in zip(tracked.events, tracked.stored.result().suppressed, strict=True) if not out]
            tracked.shown.set_result(all(who(event) not in left_out for event in stored))


def _tell(future: "Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _gathered(waiting: "queue.SimpleQueue[Tracked | None]", seconds: float) -> Iterator[list[Tracked]]:
    """Requests that come within a moment after the first, until the end, which is None."""
    is_open = True
    while is_open and (first := waiting.get()) is not None:
        together, lines, until = [first], len(first.lines), time.monotonic() + seconds
        while lines < MOST_LINES:
            try:
                following = waiting.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                break
            if following is None:
                is_open = False
                break
            together.append(following)
            lines += len(following.lines)
        yield together
