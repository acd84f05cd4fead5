"""Audiences tried while somebody writes them: the events stay on disk as long as they are the newest."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

from c360_pipeline.core.audiences.definition import Audience
from c360_pipeline.core.privacy.purposes import Purpose
from c360_pipeline.stages.audiences.facts import FactsOfTenants
from c360_pipeline.stages.audiences.refresh import Members, Tried, all_events
from c360_pipeline.stages.visitors.counted import EventsAt
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.local.scratch import scratch_folder
from c360_pipeline.stores.neo4j.driver_values import Read

KEPT_TENANTS = 8
FRESH_SECONDS = 30.0
"""For so long nobody looks whether there are newer events: a run may land some every few seconds."""
IDLE_SECONDS = 600.0
"""After so long without a question, the events of a tenant leave the disk."""
NAMES = 100
"""Of actions and traits that are offered, the most frequent."""


@dataclass(frozen=True)
class Offered:
    """What a condition may name.

    Attributes:
        actions: the most frequent ones.
        traits: names of the most frequent ones.
        purposes: of consents.
    """

    actions: list[str]
    traits: list[str]
    purposes: list[str]


@dataclass
class _Kept:
    at: EventsAt
    looked_at: float
    used_at: float
    events: pl.LazyFrame
    path: Path
    folder: ExitStack
    offered: Offered | None = None


class Trials:
    """Tries audiences, several of a tenant one after the other.

    Args:
        lake: holds events.
        read: runs a statement in the graph.
    """

    def __init__(self, lake: Lake, read: Read) -> None:
        self._lake = lake
        self._members = Members(lake, FactsOfTenants(lake, read))
        self._kept: dict[str, _Kept] = {}
        # One for each tenant, so that nobody waits for another one's events; and one for what is kept of whom.
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def tried(self, audiences: Sequence[Audience], purposes: Sequence[Purpose], now: datetime) -> Tried:
        """As `Members.tried`, by events that are half a minute old at most."""
        tenant = audiences[0].tenant
        with self._of(tenant):
            return self._members.tried_on(self._events(tenant).events, audiences, purposes, now)

    def offered(self, tenant: str) -> Offered:
        """What conditions may name, as far as events have it."""
        with self._of(tenant):
            kept = self._events(tenant)
            if kept.offered is None:
                actions = kept.events.group_by("action").len().sort("len", "action", descending=[True, False])
                kept.offered = Offered(
                    actions.head(NAMES).collect(engine="streaming")["action"].drop_nulls().to_list(),
                    _names(kept.events, "traits"), _names(kept.events, "consent"),
                )  # fmt: skip
            return kept.offered

    def close(self) -> None:
        """Remove what is on disk."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            for kept in self._kept.values():
                kept.folder.close()
            self._kept.clear()

    @contextmanager
    def _of(self, tenant: str) -> Iterator[None]:
        """The events of a tenant for oneself."""
        with self._lock:
            lock = self._locks[tenant]
        with lock:
            yield

    def _events(self, tenant: str) -> _Kept:
        kept, now = self._kept.get(tenant), time.monotonic()
        # An erasure clears the cache that this is in.
        is_there = kept is not None and kept.path.is_dir()
        if kept is not None and is_there and now - kept.looked_at <= FRESH_SECONDS:
            kept.used_at = now
            return kept
        at = EventsAt.now(self._lake)
        if kept is None or not is_there or kept.at != at:
            self._make_room(besides=tenant)
            with ExitStack() as opened:
                folder = opened.enter_context(scratch_folder(self._lake.cache))
                made = _Kept(at, now, now, all_events(at, tenant, folder), folder, opened.pop_all())
            with self._lock:
                self._kept[tenant] = made
            if kept is not None:
                kept.folder.close()
            kept = made
            self._look_after(IDLE_SECONDS)
        kept.looked_at = kept.used_at = now
        return kept

    def _look_after(self, seconds: float) -> None:
        """Look for events that nobody asks for any more, after a while."""
        with self._lock:
            if self._timer is None or not self._timer.is_alive():
                self._timer = threading.Timer(seconds, self._forget_idle)
                self._timer.daemon = True
                self._timer.start()

    def _forget_idle(self) -> None:
        with self._lock:
            self._timer = None
            now = time.monotonic()
            self._forget(name for name, kept in self._kept.items() if now - kept.used_at >= IDLE_SECONDS)
            has_more = bool(self._kept)
        if has_more:
            self._look_after(IDLE_SECONDS)

    def _forget(self, names: Iterable[str]) -> None:
        """Forget tenants for whom nobody is counting now."""
        for name in list(names):
            if self._locks[name].acquire(blocking=False):
                self._kept.pop(name).folder.close()
                self._locks[name].release()

    def _make_room(self, besides: str) -> None:
        """Forget the tenants who asked longest ago, and for whom nobody is counting now."""
        with self._lock:
            oldest = sorted((name for name in self._kept if name != besides), key=lambda n: self._kept[n].used_at)
            self._forget(oldest[: max(0, len(self._kept) - KEPT_TENANTS + 1)])


def _names(events: pl.LazyFrame, column: str) -> list[str]:
    names = events.select(name=pl.col(column).map.keys()).drop_nulls().explode("name").drop_nulls()
    counted = names.group_by("name").len().sort("len", "name", descending=[True, False]).head(NAMES)
    return counted.collect(engine="streaming")["name"].to_list()
