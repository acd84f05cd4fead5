"""The tables of journeys, brought up to the log of stitching: each by the commits that it has not taken up yet.

Every commit of a table carries, for each tenant, how far it is. A worker that comes second with older news fails and
looks again, so that a table never goes back. What the commits say is compared with what the table holds, and only what
differs is written.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import polars as pl
from deltalake import DeltaTable

from c360_pipeline.core.catalog.changes import Changes, difference
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import (
    EVENT_JOURNEY,
    EVENT_KEYS,
    JOURNEY_ALIASES,
    JOURNEY_CONFLICTS,
    JOURNEY_KEYS,
    JOURNEY_LOG,
    JOURNEY_MERGES,
    JOURNEY_SPLITS,
    JOURNEYS,
    QUARANTINED_KEYS,
)
from c360_pipeline.core.stitching import log as log
from c360_pipeline.errors import ConflictError
from c360_pipeline.stores.delta.lake import Lake

PUBLISHED = (
    EVENT_KEYS, JOURNEY_MERGES, JOURNEY_SPLITS, JOURNEY_ALIASES, JOURNEYS, EVENT_JOURNEY, JOURNEY_KEYS,
    JOURNEY_CONFLICTS, QUARANTINED_KEYS,
)  # fmt: skip
"""In the order of writing: what tells where an id went comes before the tables that do not name it any more."""


LOOKS = 20
"""How often tables that others publish meanwhile are looked at, until all stand at one commit."""


def published_number(tenant_id: str) -> str:
    """The name of the number that says how far a table is for a tenant."""
    return f"published:{tenant_id}"


@dataclass(frozen=True)
class LogRows:
    """Rows of the log after some commit of each tenant.

    Attributes:
        rows: columns of `JOURNEY_LOG`.
        seqs: the last of these commits of each tenant that has any.
    """

    rows: pl.LazyFrame
    seqs: Mapping[str, int]


@dataclass(frozen=True)
class News:
    """What rows of the log say about ids: what every table needs to know.

    Attributes:
        rows: columns of `JOURNEY_LOG`.
        aliases: as `journey_log.aliases` makes them.
        ended: tenant_id, journey_id of journeys that are none any more.
        removed: as `journey_log.removed_events` makes them.
    """

    rows: pl.LazyFrame
    aliases: pl.DataFrame
    ended: pl.DataFrame
    removed: pl.DataFrame

    @classmethod
    def of(cls, rows: pl.LazyFrame) -> "News":
        """Read what the rows say."""
        aliases = log.aliases(rows)
        return cls(rows, aliases, log.ended_journeys(rows, aliases), log.removed_events(rows))

    @property
    def absorbed(self) -> pl.DataFrame:
        """tenant_id, journey_id of merged journeys, merged_into."""
        return self.aliases.drop_nulls("merged_into")


@dataclass(frozen=True)
class AtOneCommit:
    """The tables as they are side by side, while others may publish.

    Attributes:
        lake: holds them.
        versions: of each table the version in which it stands where the others do.
    """

    lake: Lake
    versions: Mapping[Table, int]

    def scan(self, table: Table) -> pl.LazyFrame:
        """The rows of a table."""
        return self.lake.scan(table, self.versions[table])


class JourneyTables:
    """The tables that people and other assets read.

    Args:
        lake: holds the log and the tables.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._read: dict[frozenset[tuple[str, int]], News] = {}

    def target(self, instant: datetime | None = None) -> dict[str, int]:
        """The last commit of each tenant, up to an instant: what all tables are brought up to together."""
        log_rows = self._log() if instant is None else self._log().filter(pl.col("committed_at") <= instant)
        rows = log_rows.group_by("tenant_id").agg(pl.col("seq").max())
        return dict(rows.collect(engine="streaming").iter_rows())

    def published(self) -> dict[str, int]:
        """The last commit of each tenant that every table has taken up."""
        tenants = self.target()
        tables = [_published(self._lake.commits.snapshot(table), tenants) for table in PUBLISHED]
        return {tenant: min(known[tenant] for known in tables) for tenant in tenants}

    def steps(self, after: Mapping[str, int], upto: Mapping[str, int], rows: int) -> Iterator[dict[str, int]]:
        """Commits of each tenant to go up to, one after the other, with some so many rows of the log between them."""
        found = self.between(after, upto)
        if not found.seqs:
            return
        counts = found.rows.group_by("tenant_id", "seq").len().sort("seq", "tenant_id").collect(engine="streaming")
        steps = counts.with_columns(step=(pl.col("len").cum_sum() - 1) // rows)
        for step in steps.partition_by("step", maintain_order=True):
            yield dict(step.group_by("tenant_id").agg(pl.col("seq").max()).iter_rows())

    def between(self, after: Mapping[str, int], upto: Mapping[str, int]) -> LogRows:
        """Rows of the log after some commit of each tenant, up to another."""
        seqs = {tenant: seq for tenant, seq in upto.items() if seq > after.get(tenant, 0)}
        wanted = pl.any_horizontal(
            pl.lit(value=False),
            *(
                (pl.col("tenant_id") == tenant) & pl.col("seq").is_between(after.get(tenant, 0) + 1, seq)
                for tenant, seq in sorted(seqs.items())
            ),
        )
        return LogRows(self._log().filter(wanted), seqs)

    def publish(self, table: Table, target: Mapping[str, int]) -> Changes:
        """Bring a table up to commits of the log; returns what changed.

        Raises:
            ConflictError: other workers were faster 20 times in a row.
        """

        def attempt() -> Changes:
            snapshot = self._lake.commits.snapshot(table)
            known = _published(snapshot, target)
            found = self.between(known, target)
            if not found.seqs:
                return Changes(table.empty(), table.empty(), table.empty().select(table.key))
            changes = _CHANGES[table](self._news(known, found), self._lake.scan(table), table)
            numbers = {published_number(tenant): seq for tenant, seq in found.seqs.items()}
            self._lake.commits.apply(table, snapshot, changes, numbers)
            return changes

        return self._lake.commits.retried(table.name, attempt)

    def publish_all(self) -> None:
        """Bring all tables up to the log as it is now."""
        target = self.target()
        for table in PUBLISHED:
            self.publish(table, target)

    def at_one_commit(self) -> AtOneCommit:
        """The tables at the same commit of each tenant: what is compared between them is of one moment.

        Where another worker is between two tables, those that are behind are brought up to those that are ahead.

        Raises:
            ConflictError: other workers were faster 20 times in a row.
        """
        for _ in range(LOOKS):
            snapshots = {table: self._lake.commits.snapshot(table) for table in PUBLISHED}
            tenants = self.target()
            numbers = [_published(snapshot, tenants) for snapshot in snapshots.values()]
            first = {tenant: max(known[tenant] for known in numbers) for tenant in tenants}
            if all(known == first for known in numbers):
                return AtOneCommit(self._lake, {table: one.version() for table, one in snapshots.items()})
            for table in PUBLISHED:
                self.publish(table, first)
        raise ConflictError(f"Other runs published journeys {LOOKS} times in a row meanwhile. Run it again.")

    def _log(self) -> pl.LazyFrame:
        snapshot = self._lake.commits.snapshot(JOURNEY_LOG)
        return self._lake.scan_files(JOURNEY_LOG, set(snapshot.file_uris()))

    def _news(self, known: Mapping[str, int], found: LogRows) -> News:
        """What the rows say; kept for the other tables, which are as far most of the time."""
        which = frozenset({*known.items(), *((f"to {tenant}", seq) for tenant, seq in found.seqs.items())})
        if which not in self._read:
            self._read = {which: News.of(found.rows)}
        return self._read[which]


def _published(snapshot: DeltaTable, tenants: Iterable[str]) -> dict[str, int]:
    return {tenant: snapshot.transaction_version(published_number(tenant)) or 0 for tenant in tenants}


def _against(held: pl.LazyFrame, now: pl.LazyFrame, gone: pl.LazyFrame, table: Table) -> Changes:
    """What differs between rows as they should be and those that the table holds."""
    key, columns = list(table.key), list(table.columns)
    wanted = now.select(columns).collect(engine="streaming")
    names = pl.concat([wanted.lazy().select(key), gone.select(key)]).unique()
    before = held.select(columns).join(names, on=key, how="semi").collect(engine="streaming")
    return difference(before, wanted, key)


def _journeys(news: News, held: pl.LazyFrame, table: Table) -> Changes:
    return _against(held, log.living_journeys(news.rows, news.ended), news.ended.lazy(), table)


def _event_journey(news: News, held: pl.LazyFrame, table: Table) -> Changes:
    said, gone = log.events_now(news.rows, news.aliases), _gone_events(news)
    # An event may be taken out by the commit in which its journey goes into another.
    stays = held.join(gone, on=["tenant_id", "event_id"], how="anti")
    return _against(held, _with_absorbed(said, stays, news, table), gone, table)


def _with_absorbed(said: pl.LazyFrame, held: pl.LazyFrame, news: News, table: Table) -> pl.LazyFrame:
    """What the rows say, and what the table has under journeys that went into others."""
    if news.absorbed.is_empty():
        return said
    losers = news.absorbed.lazy()
    moved = held.join(losers.select("tenant_id", "journey_id"), on=["tenant_id", "journey_id"], how="semi").join(
        said, on=list(table.key), how="anti"
    )
    columns = list(table.columns)
    return pl.concat([said.select(columns), log.resolved(moved, news.aliases).select(columns)])


def _gone_events(news: News) -> pl.LazyFrame:
    return news.removed.lazy().filter(~pl.col("is_back")).select("tenant_id", "event_id")


def _event_keys(news: News, held: pl.LazyFrame, table: Table) -> Changes:
    touched = log.reread_events(news.rows).lazy()
    gone = held.join(touched, on=["tenant_id", "event_id"], how="semi")
    return _against(held, log.event_keys_now(news.rows), gone, table)


def _journey_keys(news: News, held: pl.LazyFrame, table: Table) -> Changes:
    said = log.keys_now(news.rows, news.aliases).collect(engine="streaming").lazy()
    freed = said.filter(pl.col("journey_id").is_null()).select(list(table.key))
    now = _with_absorbed(said, held, news, table).filter(pl.col("journey_id").is_not_null())
    return _against(held, now, freed, table)


def _aliases(news: News, held: pl.LazyFrame, table: Table) -> Changes:
    freed = news.aliases.filter(pl.col("merged_into").is_null()).lazy()
    older = held.join(news.aliases.lazy(), on=list(table.key), how="anti")
    repointed = log.resolved(older, news.aliases, "merged_into")
    now = pl.concat([news.absorbed.lazy().select(list(table.columns)), repointed.select(list(table.columns))])
    return _against(held, now, freed, table)


def _logged(read: Callable[[pl.LazyFrame], pl.LazyFrame]) -> Callable[[News, pl.LazyFrame, Table], Changes]:
    """A table of what happened: rows only come."""

    def changes(news: News, held: pl.LazyFrame, table: Table) -> Changes:
        return _against(held, read(news.rows), table.empty().lazy(), table)

    return changes


def _conflicts(news: News, held: pl.LazyFrame, table: Table) -> Changes:
    said = log.conflicts_now(news.rows, news.aliases).collect().lazy()
    seen = news.rows.filter(pl.col("kind").is_in([log.EVENT, log.REMOVED])).select("tenant_id", "event_id").unique()
    stays = held.join(seen, on=["tenant_id", "event_id"], how="anti")
    renamed = log.resolved(log.resolved(stays, news.aliases), news.aliases, "refused_journey_id")
    now = pl.concat([said.select(list(table.columns)), renamed.select(list(table.columns))])
    gone = held.join(seen, on=["tenant_id", "event_id"], how="semi")
    return _against(held, now, gone, table)


def _quarantined(news: News, held: pl.LazyFrame, table: Table) -> Changes:
    now, out = log.quarantines_now(news.rows)
    return _against(held, now.lazy(), out.lazy(), table)


_CHANGES: dict[Table, Callable[[News, pl.LazyFrame, Table], Changes]] = {
    EVENT_KEYS: _event_keys,
    JOURNEY_MERGES: _logged(log.merges_in),
    JOURNEY_SPLITS: _logged(log.splits_in),
    JOURNEY_ALIASES: _aliases,
    JOURNEYS: _journeys,
    EVENT_JOURNEY: _event_journey,
    JOURNEY_KEYS: _journey_keys,
    JOURNEY_CONFLICTS: _conflicts,
    QUARANTINED_KEYS: _quarantined,
}
