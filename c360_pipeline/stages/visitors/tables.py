"""The tables of visitors and sessions, brought up to the archive by difference.

Each commit of a table carries the versions of the events and the decisions that it was made of. A worker that comes
second fails and looks again, so that a table never goes back.
"""

from collections.abc import Callable, Mapping

import polars as pl
from deltalake import DeltaTable

from c360_pipeline.core.catalog.changes import Changes, Version, difference
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import (
    EVENTS,
    SESSIONS,
    USER_CONSENTS,
    USER_TRAITS,
    VISITOR_DECISIONS,
    VISITOR_USER,
)
from c360_pipeline.core.visitors import tables as rows_of
from c360_pipeline.core.visitors.said import user_consents, user_traits
from c360_pipeline.stages.visitors.around import Around, events_around
from c360_pipeline.stages.visitors.counted import PROJECTED, EventsAt
from c360_pipeline.stores.delta.lake import Lake

MADE_OF = (EVENTS, VISITOR_DECISIONS)
Builder = Callable[[pl.DataFrame], pl.DataFrame]
BUILDERS: dict[Table, tuple[str, Builder]] = {
    VISITOR_USER: ("visitor_id", rows_of.visitor_users),
    SESSIONS: ("session_id", rows_of.sessions),
    USER_TRAITS: ("customer_id", user_traits),
    USER_CONSENTS: ("customer_id", user_consents),
}
"""Of each table the column of counted events that decides a row, and what makes its rows."""


class VisitorTables:
    """The tables that people and other assets read.

    Args:
        lake: holds events, decisions and these tables.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._around: tuple[object, Around] | None = None

    def publish_all(self) -> dict[str, int]:
        """Bring the tables up to the archive as it is now; returns how many rows changed, by table.

        Raises:
            ConflictError: other workers were faster 20 times in a row.
        """
        return {table.name: self._publish(table).count for table in BUILDERS}

    def _publish(self, table: Table) -> Changes:
        def attempt() -> Changes:
            snapshot = self._lake.commits.snapshot(table)
            now = newest_versions(self._lake)
            done = taken_up(snapshot, now)
            if done == now:
                return Changes(table.empty(), table.empty(), table.empty().select(table.key))
            changes = self._changes(table, done, now)
            # Zero says that nothing was taken up yet.
            numbers = {number_of(name, version): version.number + 1 for name, version in now.items()}
            self._lake.commits.apply(table, snapshot, changes, numbers)
            return changes

        return self._lake.commits.retried(table.name, attempt)

    def _changes(self, table: Table, done: Mapping[str, Version], now: Mapping[str, Version]) -> Changes:
        lake, at = self._lake, events_at(self._lake, now)
        if not can_go_on(lake, done):
            _, build = BUILDERS[table]
            whole = build(at.counted(at.scan(PROJECTED)).collect(engine="streaming"))
            return difference(lake.read(table), whole, table.key)
        # Tables are as far as each other most of the time: what is around the change is read once for all.
        if self._around is None or self._around[0] != (done, now):
            changed, _ = lake.versions.changes(EVENTS, done[EVENTS.name], PROJECTED)
            decided, _ = lake.versions.changes(VISITOR_DECISIONS, done.get(VISITOR_DECISIONS.name))
            self._around = (done, now), events_around(changed, decided, events_at(lake, done), at)
        return self._differing(table, self._around[1], at)

    def _differing(self, table: Table, around: Around, at: EventsAt) -> Changes:
        """What differs in the rows that touched events lie in."""
        name, build = BUILDERS[table]
        scope = around.touched.select("tenant_id", name).drop_nulls().unique()
        events = _whole_sessions(around.now, scope, at) if table is SESSIONS else around.now
        made = build(events.join(scope, on=["tenant_id", name], how="semi"))
        keys = scope.select("tenant_id", pl.col(name).alias(table.key[1])).lazy()
        held = self._lake.scan(table).join(keys, on=list(table.key[:2]), how="semi").collect(engine="streaming")
        return difference(held, made, table.key)


def _whole_sessions(now: pl.DataFrame, sessions: pl.DataFrame, at: EventsAt) -> pl.DataFrame:
    """All events of some sessions, counted: those that producers named may hold events of further visitors."""
    events = at.scan(PROJECTED)
    beside = events.join(sessions.lazy(), on=["tenant_id", "session_id"], how="semi").collect(engine="streaming")
    visitors = beside.select("tenant_id", "anonymous_id").drop_nulls().unique()
    theirs = events.join(visitors.lazy(), on=["tenant_id", "anonymous_id"], how="semi").collect(engine="streaming")
    as_archived = now.with_columns(session_id=pl.when(~pl.col("is_by_gap")).then("session_id")).select(PROJECTED)
    whole = pl.concat([as_archived, beside, theirs]).unique(list(EVENTS.key))
    return at.counted(whole.lazy()).collect()


def made_of(lake: Lake, table: Table) -> tuple[int, EventsAt]:
    """The number of a table's version, and the events that it was made of."""
    snapshot = lake.commits.snapshot(table)
    return snapshot.version(), events_at(lake, taken_up(snapshot, newest_versions(lake)))


def newest_versions(lake: Lake) -> dict[str, Version]:
    """The newest versions of what tables are made of; of those that there are."""
    found = {table.name: lake.versions.version(table.name) for table in MADE_OF}
    return {name: version for name, version in found.items() if version is not None}


def can_go_on(lake: Lake, done: Mapping[str, Version]) -> bool:
    """Whether it can be told what changed since these versions, so that not everything is made anew."""
    known = {table.name: lake.versions.still_there(table, done.get(table.name)) for table in MADE_OF}
    return known[EVENTS.name] is not None and (
        known[VISITOR_DECISIONS.name] is not None or VISITOR_DECISIONS.name not in done
    )


def events_at(lake: Lake, versions: Mapping[str, Version]) -> EventsAt:
    """The events at versions of what tables are made of."""
    return EventsAt.of(lake, *(versions.get(table.name) for table in MADE_OF))


def number_of(name: str, version: Version) -> str:
    """Under which name a commit notes the version of a table that it is made of."""
    return f"made_of:{name}:{version.table_id}"


def taken_up(snapshot: DeltaTable, now: Mapping[str, Version]) -> dict[str, Version]:
    """The versions that a table was made of, of tables that are still the same."""
    numbers = {name: snapshot.transaction_version(number_of(name, version)) for name, version in now.items()}
    return {name: Version(now[name].table_id, number - 1) for name, number in numbers.items() if number}
