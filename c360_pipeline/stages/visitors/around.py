"""What a change of the archive, or a decision, may alter: the events around it, as they were and as they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from c360_pipeline.core.catalog.changes import Changes, difference
from c360_pipeline.core.catalog.tables import EVENTS, VISITOR_DECISIONS
from c360_pipeline.core.visitors.counting import SESSION_GAP, SPLIT, of_somebody
from c360_pipeline.core.visitors.groups import GROUP, says_group, with_groups
from c360_pipeline.stages.visitors.counted import PROJECTED, EventsAt


@dataclass(frozen=True)
class Around:
    """Events around a change, as `core.visitors.counting.counted` gives them.

    Attributes:
        touched: those that changed, and those that count for others or are in other sessions because of it; as they
            were and as they are.
        before: all that rows of the graph are made of which the touched ones may alter, as they were.
        now: the same as they are.
        visitors: tenant_id, anonymous_id of those whose events changed.
        users: tenant_id, user_id of users that these were named with, and of further ones; all events that count for
            them, before and now, are among these.
        sides: the events as they were and as they are, to read further ones.
    """

    touched: pl.DataFrame
    before: pl.DataFrame
    now: pl.DataFrame
    visitors: pl.DataFrame
    users: pl.DataFrame
    sides: tuple[EventsAt, EventsAt]

    @cached_property
    def of_groups(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """All events of groups of which the touched ones say something, before and now: what rows of groups need."""
        groups = self.touched.select(GROUP).drop_nulls().unique()
        before, now = (_of_groups(side, groups) for side in self.sides)
        return before, now


def nobody_else(visitors: pl.DataFrame) -> pl.DataFrame:
    """No further users."""
    return visitors.select("tenant_id", user_id="anonymous_id").clear()


def events_around(
    changed: Changes,
    decided: Changes,
    before: EventsAt,
    now: EventsAt,
    further: Callable[[pl.DataFrame], pl.DataFrame] = nobody_else,
) -> Around:
    """The events of everybody whose rows in the graph may differ.

    These are the users and sessions of what changed, all users whom its visitors were named with, and all visitors that
    these users were named with: so that each visitor and each user who counts is whole.

    Args:
        changed: rows of events, as `difference` gives them: what came, what is another, what went.
        decided: rows of `VISITOR_DECISIONS`.
        before: the events as they were.
        now: the events as they are.
        further: of visitors (tenant_id, anonymous_id) further users (tenant_id, user_id) whose events are around.
    """
    sides, key = (before, now), list(EVENTS.key)
    keys = pl.concat([changed.upserted.select(key), changed.deleted])
    decisions = pl.concat([decided.upserted.select(VISITOR_DECISIONS.key), decided.deleted])
    read = _BothSides(before, now, keys, changed)
    raw = pl.concat([read.as_they_were, changed.upserted, *(_decided(side, decisions) for side in sides)])
    names = {name: _names(raw, name) for name in ("user_id", "session_id", "anonymous_id")}
    # Words that name nobody are in events of strangers: an event is around by itself.
    names["event_id"] = keys
    visitors = names["anonymous_id"] = _of_somebody(names["anonymous_id"])
    users = names["user_id"].clear()
    if visitors.height:
        met = read.of({"anonymous_id": visitors})
        users = pl.concat([*(_names(rows, "user_id") for rows in met), further(visitors)]).unique()
        names["user_id"] = pl.concat([names["user_id"], users]).unique()
    found = read.of(names)
    people = _of_somebody(names["user_id"])
    theirs = [rows.join(people, on=["tenant_id", "user_id"], how="semi") for rows in found]
    more = _of_somebody(_names(pl.concat(theirs), "anonymous_id"))
    more = more.join(visitors, on=["tenant_id", "anonymous_id"], how="anti")
    if more.height:
        others = read.of({"anonymous_id": more})
        found = [pl.concat([rows, new]).unique(key) for rows, new in zip(found, others, strict=True)]
    was, is_now = (side.counted(rows.lazy()).collect() for side, rows in zip(sides, found, strict=True))
    said = [*key, "session_id", "customer_id", "visitor_user"]
    otherwise = difference(was.select(said), is_now.select(said), key, is_all=False).updated.select(key)
    touched = pl.concat([keys, raw.select(key), otherwise]).unique()
    of_touched = pl.concat([rows.join(touched, on=key, how="semi") for rows in (was, is_now)])
    return Around(of_touched, was, is_now, visitors, users, sides)


@dataclass(frozen=True)
class _BothSides:
    """Events before and after a change: the archive is read once, for all that did not change is the same."""

    before: EventsAt
    now: EventsAt
    keys: pl.DataFrame
    changed: Changes

    @cached_property
    def as_they_were(self) -> pl.DataFrame:
        """The events that are others now, or gone; nothing is read where events only came."""
        again = pl.concat([self.changed.updated.select(EVENTS.key), self.changed.deleted.select(EVENTS.key)])
        rows = self.before.scan(PROJECTED)
        found = rows.join(again.lazy(), on=EVENTS.key, how="semi") if again.height else rows.head(0)
        return found.collect(engine="streaming")

    def of(self, names: Mapping[str, pl.DataFrame]) -> list[pl.DataFrame]:
        """Events that have one of the names, before and now."""
        is_now = _of(self.now.scan(PROJECTED), names)
        unchanged = is_now.join(self.keys, on=EVENTS.key, how="anti")
        return [pl.concat([unchanged, _of(self.as_they_were.lazy(), names)]), is_now]


def _of_somebody(names: pl.DataFrame) -> pl.DataFrame:
    return of_somebody(names.lazy(), names.columns[1]).collect()


def _names(rows: pl.DataFrame, column: str) -> pl.DataFrame:
    return rows.select("tenant_id", column).drop_nulls().unique()


def _of(events: pl.LazyFrame, names: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Events that have one of the names."""
    for name, frame in names.items():
        mark = frame.lazy().with_columns(pl.lit(value=True).alias(f"of_{name}"))
        events = events.join(mark, on=["tenant_id", name], how="left")
    is_around = pl.any_horizontal(f"of_{name}" for name in names)
    return events.filter(is_around).select(PROJECTED).collect(engine="streaming")


OF_GROUPS = ("tenant_id", "event_id", "ts", "attrs")


def _of_groups(events: EventsAt, groups: pl.DataFrame) -> pl.DataFrame:
    """All events that say something of some groups: nothing is read where there are none."""
    if groups.is_empty():
        return with_groups(events.scan(OF_GROUPS).head(0)).collect()
    said = with_groups(events.scan(OF_GROUPS).filter(says_group()))
    return said.join(groups.lazy(), on=GROUP, how="semi").collect(engine="streaming")


def _decided(side: EventsAt, decisions: pl.DataFrame) -> pl.DataFrame:
    """The events that decisions are about, as they are on one side."""
    if decisions.is_empty():
        return side.scan(PROJECTED).head(0).collect()
    events = side.scan(PROJECTED)
    split = decisions.filter(pl.col("kind") == SPLIT).select("tenant_id", "anonymous_id")
    gaps = decisions.filter(pl.col("kind") == SESSION_GAP).select("tenant_id").unique()
    in_no_session = events.filter(pl.col("session_id").is_null()).join(gaps.lazy(), on="tenant_id", how="semi")
    of_split = events.join(split.lazy(), on=["tenant_id", "anonymous_id"], how="semi")
    return pl.concat([of_split, in_no_session]).collect(engine="streaming")
