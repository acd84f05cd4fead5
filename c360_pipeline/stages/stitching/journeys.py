"""The store of journeys: batches of events in, one atomic commit of the log each.

A commit is decided on a snapshot of the log and carries, for each tenant that it is of, the next number of that tenant:
whoever comes second fails, looks again and finds the work done. Events that are known are passed over, so that a batch
can be given again in any cut (docs/adr/0024).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from c360_pipeline.core.catalog.tables import JOURNEY_LOG, JOURNEY_MERGES, JOURNEYS
from c360_pipeline.core.stitching.journey_ids import id_words
from c360_pipeline.core.stitching.keys import KEY_COLUMNS, KeyPolicy, extract_keys
from c360_pipeline.core.stitching.log import (
    COMMIT,
    EVENT,
    KEY,
    Gone,
    aliases,
    ended_journeys,
    event_keys_now,
    events_now,
    last_event_rows,
    living_journeys,
    log_rows,
    remark_rows,
)
from c360_pipeline.core.stitching.stitch import (
    KNOWN_JOURNEY,
    Batch,
    Known,
    Stitched,
    prepare,
    quarantines,
    stitch,
)
from c360_pipeline.errors import ConfigError, ConflictError
from c360_pipeline.stages.stitching.index import JourneyIndex, TenantState, discard, event_fingerprints
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.delta.storage import MAX_ATTEMPTS

ABSORBED_ROWS = 2_000_000
"""Rows of the log that are taken into the index at once."""
EVENT_COLUMNS = ["tenant_id", "event_id", "ts"]


PURGED_AT_ONCE = 5_000
"""Events that one statement purges."""


def log_number(tenant_id: str) -> str:
    """The name of the number that commits of a tenant count up in the log."""
    return f"stitch:{tenant_id}"


@dataclass(frozen=True)
class BatchReport:
    """What a batch did.

    Attributes:
        events: that were stitched.
        known: that were stitched before and passed over.
        removed: that were taken out.
        reread: events of journeys that were found anew.
        keys: rows of event and key.
        founded: journeys that are new.
        merged: journeys that went into another.
        split: parts that left a journey.
        conflicts: ties that a guard refused.
        quarantined: keys that tie no longer.
        seconds: from the first lookup to the commit.
        longest_seconds: of a batch.
        retries: times that another worker was faster.
    """

    events: int = 0
    known: int = 0
    removed: int = 0
    reread: int = 0
    keys: int = 0
    founded: int = 0
    merged: int = 0
    split: int = 0
    conflicts: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    longest_seconds: float = 0.0
    retries: int = 0

    def __add__(self, other: "BatchReport") -> "BatchReport":
        sums = {name: getattr(self, name) + getattr(other, name) for name in vars(self)}
        return BatchReport(**{**sums, "longest_seconds": max(self.longest_seconds, other.longest_seconds)})

    @property
    def events_per_second(self) -> float:
        """Events stitched per second of work."""
        return self.events / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class _Change:
    """What is to be committed; with the batch, where all that it says of the batch's keys is committed."""

    stitched: Stitched
    gone: Gone
    report: BatchReport
    batch: Batch | None = None
    cause: str = ""


@dataclass(frozen=True)
class Rebase:
    """What other rules make of a tenant's journeys.

    Attributes:
        tenant_id: whose.
        seq: the tenant's last commit when this was found out.
        change: what would be committed; None when nothing would.
        journeys: that there are now.
        moved: tenant_id, event_id, journey_id, before: events that would change journeys.
        keys: tenant_id, key_type, status, before, len: keys of events that would tie otherwise, by type.
    """

    tenant_id: str
    seq: int
    change: _Change | None
    journeys: int
    moved: pl.DataFrame
    keys: pl.DataFrame

    @property
    def merges(self) -> pl.DataFrame:
        """As `Stitched.merges`."""
        return self.change.stitched.merges if self.change else pl.DataFrame()

    @property
    def splits(self) -> pl.DataFrame:
        """As `Stitched.splits`."""
        return self.change.stitched.splits if self.change else pl.DataFrame()

    def counting(self, stitched: Stitched, partners: np.ndarray[Any, Any]) -> "Rebase":
        """The same, with keys of which other partners are known than were counted."""
        is_other = pl.Series(stitched.key_journey["partners"].to_numpy() != partners)
        others = stitched.key_journey.filter(is_other)
        if self.change is None:
            return self  # counts alone tie nothing otherwise
        said = self.change.stitched.key_journey
        more = others.join(said, on=["key_type", "key_hash"], how="anti")
        counted = replace(self.change.stitched, key_journey=pl.concat([said, more]))
        return replace(self, change=replace(self.change, stitched=counted))

    @property
    def touched(self) -> int:
        """Journeys that would merge or split."""
        return self.merges.height + self.splits.height

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        ids = ["tenant_id", "survivor", "loser"]
        return {
            "tenant_id": self.tenant_id, "journeys": self.journeys,
            "merges": self.merges.select(ids).to_dicts() if self.merges.height else [],
            "splits": self.splits.to_dicts(), "moved": self.moved.height, "keys": self.keys.to_dicts(),
        }  # fmt: skip


class Journeys:
    """The journeys of all tenants.

    Args:
        lake: holds the log; the index is in its cache.
        clock: the time of commits, UTC.
    """

    def __init__(self, lake: Lake, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._lake = lake
        self._clock = clock
        self._index: tuple[str, JourneyIndex] | None = None

    def refresh(self) -> tuple[DeltaTable, JourneyIndex]:
        """The log as it is now, and the index brought up to it."""
        for _ in range(MAX_ATTEMPTS):
            snapshot = self._lake.commits.snapshot(JOURNEY_LOG)
            index, files = self._index_of(snapshot), set(snapshot.file_uris())
            if index.files != files or not index.is_newest():
                index.load()
            if any(number < index.tenant(tenant).seq for tenant, number in self._numbers(snapshot, index)):
                # The log was restored to an earlier version, or another process is further than this snapshot.
                snapshot = self._lake.commits.snapshot(JOURNEY_LOG)
                files = set(snapshot.file_uris())
                if any(number < index.tenant(tenant).seq for tenant, number in self._numbers(snapshot, index)):
                    index.forget()
            if index.files == files:
                return snapshot, index
            self._absorb(index, files)
        raise ConflictError(f"Other processes changed the index of journeys {MAX_ATTEMPTS} times in a row.")

    def _index_of(self, snapshot: DeltaTable) -> JourneyIndex:
        table_id = str(snapshot.metadata().id)
        if self._index is None or self._index[0] != table_id:
            self._index = (table_id, JourneyIndex(self._lake.cache / "journeys" / table_id))
        return self._index[1]

    def _numbers(self, snapshot: DeltaTable, index: JourneyIndex) -> Iterator[tuple[str, int]]:
        return ((tenant, snapshot.transaction_version(log_number(tenant)) or 0) for tenant in index.seqs)

    def _absorb(self, index: JourneyIndex, files: set[str]) -> None:
        known = pl.LazyFrame(list(index.seqs.items()), schema={"tenant_id": pl.String, "known": pl.Int64}, orient="row")
        rows = self._lake.scan_files(JOURNEY_LOG, files - index.files).join(known, on="tenant_id", how="left")
        rows = rows.filter(pl.col("seq") > pl.col("known").fill_null(0)).drop("known")
        counts = rows.group_by("seq").len().sort("seq").collect(engine="streaming")
        windows = counts.with_columns(window=(pl.col("len").cum_sum() - 1) // ABSORBED_ROWS)
        for (_,), window in windows.group_by("window", maintain_order=True):
            low, high = window["seq"].min(), window["seq"].max()
            if not index.absorb(rows.filter(pl.col("seq").is_between(low, high)).collect(), index.files):
                return  # what another process has taken up is looked at first
        index.absorb(JOURNEY_LOG.empty(), files)

    def state(self, tenant_id: str) -> TenantState:
        """How far a tenant is stitched."""
        return self.refresh()[1].tenant(tenant_id)

    def states(self) -> dict[str, TenantState]:
        """How far each tenant is stitched."""
        _, index = self.refresh()
        return {tenant: index.tenant(tenant) for tenant in index.seqs}

    def add(
        self,
        events: pl.DataFrame,
        policy: KeyPolicy,
        gone: pl.DataFrame | None = None,
    ) -> BatchReport:
        """Stitch events, in one commit.

        Args:
            events: rows of the archive, new, known or altered; unique by tenant and event id.
            policy: what keys may do.
            gone: tenant_id, event_id of events that the archive does not hold any more.

        Raises:
            ConflictError: other workers were faster 20 times in a row.
        """
        return self.add_keyed(events, extract_keys(events, policy.rules), policy, gone)

    def add_keyed(
        self,
        events: pl.DataFrame,
        keys: pl.DataFrame,
        policy: KeyPolicy,
        gone: pl.DataFrame | None = None,
    ) -> BatchReport:
        """The same with keys that are extracted already: `KEY_COLUMNS`, row being the place in `events`."""
        gone = events.select(EVENT_COLUMNS[:2]).clear() if gone is None else gone.select(EVENT_COLUMNS[:2])
        return self._committed(lambda index: self._added(index, events, keys, gone, policy), policy)

    def note(self, tenant_id: str, details: Mapping[str, Any]) -> None:
        """Commit a remark and nothing else; nothing when the last commit says the same."""

        def attempt() -> None:
            snapshot, index = self.refresh()
            state = index.tenant(tenant_id)
            if dict(state.detail) == dict(details):
                return
            seqs = {tenant_id: state.seq + 1}
            self._append(snapshot, index, remark_rows(seqs, {tenant_id: details}, self._clock()), seqs)

        self._lake.commits.retried(JOURNEY_LOG.name, attempt)

    def adopt_first(self, tenant_id: str, folder: str) -> int:
        """Commit rows of the log that another engine wrote as files below the log; returns how many.

        Args:
            tenant_id: whose; there is nothing of it yet.
            folder: below the log.

        Raises:
            ConflictError: the tenant has journeys already.
        """

        def attempt() -> int:
            snapshot, index = self.refresh()
            if index.tenant(tenant_id).seq:
                raise ConflictError(f"{tenant_id} was stitched meanwhile: what was found for it is out of date.")
            return self._lake.commits.commit_files(JOURNEY_LOG, snapshot, folder, {log_number(tenant_id): 1})

        return self._lake.commits.retried(JOURNEY_LOG.name, attempt)

    def events_there(self) -> pl.LazyFrame:
        """tenant_id, event_id of all events that have a journey, as the log says."""
        rows = self._lake.scan(JOURNEY_LOG).select(*EVENT_COLUMNS[:2], "seq", "kind")
        return last_event_rows(rows).select(EVENT_COLUMNS[:2]).unique()

    def count(self, tenant_id: str) -> int:
        """Journeys that a tenant has now."""
        rows = self._log([tenant_id])
        found = living_journeys(rows, ended_journeys(rows, aliases(rows))).select(pl.len()).collect()
        return int(found.item())

    def with_keys(self, tenant_id: str, names: list[str]) -> pl.DataFrame:
        """tenant_id, journey_id of the journeys that have an event with one of some keys.

        Args:
            tenant_id: whose.
            names: `type:hash`.
        """
        rows = self._log([tenant_id])
        said = rows.filter((pl.col("kind") == EVENT) & pl.concat_str("key_type", pl.lit(":"), "key_hash").is_in(names))
        ids = said.select("journey_id").unique().collect(engine="streaming")["journey_id"]
        _, index = self.refresh()
        return index.living(ids).select("tenant_id", "journey_id")

    def find_anew(self, journeys: pl.DataFrame, policy: KeyPolicy, tenant_id: str, cause: str) -> BatchReport:
        """Take journeys apart and stitch their events anew, in one commit.

        Args:
            journeys: tenant_id, journey_id, as they are now; the rules are noted even if there is none.
            policy: what keys may do now.
            tenant_id: whose journeys.
            cause: kept with what is split off.
        """

        def decide(index: JourneyIndex) -> _Change | None:
            nothing = pl.DataFrame(schema={"tenant_id": pl.String, "event_id": pl.String})
            living = index.living(journeys["journey_id"])
            if living.is_empty():
                return None
            events = JOURNEY_LOG.empty().select(EVENT_COLUMNS)
            return self._found_anew(
                index, events, pl.DataFrame(schema=KEY_COLUMNS), nothing, living, policy, cause
            )  # fmt: skip

        blocked = {"blocked": policy.blocked_of(tenant_id)}
        report = self._committed(decide, policy, blocked)
        self.note(tenant_id, {**self.state(tenant_id).detail, **blocked})
        return report

    def rebase(self, tenant_id: str, events: pl.DataFrame, policy: KeyPolicy) -> Rebase:
        """What rules make of all events of a tenant; nothing is changed.

        Args:
            tenant_id: whose.
            events: all rows of the archive of this tenant.
            policy: the rules.
        """
        _, index = self.refresh()
        rows = self._log([tenant_id])
        merged = aliases(rows)
        now = events_now(rows, merged).collect(engine="streaming")
        held_keys = event_keys_now(rows).collect(engine="streaming")
        out = now.select(EVENT_COLUMNS[:2]).join(events, on=EVENT_COLUMNS[:2], how="anti")
        was = now.select(*EVENT_COLUMNS[:2], was="journey_id")
        batch = prepare(
            events.select(EVENT_COLUMNS).join(was, on=EVENT_COLUMNS[:2], how="left", maintain_order="left"),
            extract_keys(events, policy.rules), policy,
        )  # fmt: skip
        living = living_journeys(rows, ended_journeys(rows, merged)).select("journey_id").collect()
        former = merged.drop_nulls("merged_into")
        known = _with_former(
            Known.nothing(batch), index.journeys(*id_words(living["journey_id"])),
            index.journeys(*id_words(former["journey_id"])), former,
        )  # fmt: skip
        known = replace(known, is_new_pair=np.ones(len(batch.pairs[0]), np.bool_))
        stitched = stitch(batch, known, policy, are_taken=index.are_taken)
        raw = last_event_rows(rows).select("tenant_id", "event_id", "journey_id").unique().collect(engine="streaming")
        found = _rebase(tenant_id, index.tenant(tenant_id).seq, stitched, known, now, held_keys, raw, out)
        return found.counting(stitched, index.known(batch).partners)

    def apply(self, rebase: Rebase, policy: KeyPolicy) -> BatchReport:
        """Carry out what `rebase` found, in one commit.

        Raises:
            ConflictError: the journeys changed since.
        """

        def decide(index: JourneyIndex) -> _Change | None:
            if index.tenant(rebase.tenant_id).seq != rebase.seq:
                raise ConflictError(
                    f"The journeys of {rebase.tenant_id} changed meanwhile: find out anew what changes."
                )
            return rebase.change

        rules = _rules(rebase.tenant_id, policy)
        report = self._committed(decide, policy, rules)
        # Rules that tie nothing otherwise are noted too, so that they are not looked at again.
        self.note(rebase.tenant_id, {**self.state(rebase.tenant_id).detail, **rules})
        return report

    def purge(self, events: pl.DataFrame) -> int:
        """Take events that are gone out of the log, with the keys that only they had; returns how many rows went.

        The tables of journeys must have taken the log up: what a row tells them is told once it is gone. Data files of
        earlier versions are removed by the table's care, once they are older than it keeps them.

        Args:
            events: tenant_id, event_id.

        Raises:
            ConfigError: one of them is still there.
        """
        _, index = self.refresh()
        if index.known_events(events)["fingerprint"].is_not_null().any():
            raise ConfigError("Events that are still there can't be purged: take them out of the archive and stitch.")
        gone = 0
        for (tenant,), of_tenant in events.partition_by("tenant_id", as_dict=True).items():
            for some in of_tenant.iter_slices(PURGED_AT_ONCE):
                gone += self._purge(str(tenant), some)
        return gone

    def _purge(self, tenant: str, events: pl.DataFrame) -> int:
        rows = self._log([tenant])
        theirs = rows.join(events.lazy(), on=EVENT_COLUMNS[:2], how="semi")
        keys = theirs.select("tenant_id", "key_hash").drop_nulls().unique()
        others = rows.filter(pl.col("kind") == EVENT).join(events.lazy(), on=EVENT_COLUMNS[:2], how="anti")
        lonely = keys.join(others.select("tenant_id", "key_hash"), on=["tenant_id", "key_hash"], how="anti").collect()
        ids = events["event_id"].to_list()
        # The tables take up what the log says anew, not what it forgets.
        self._lake.commits.delete_rows(JOURNEY_MERGES, [tenant], {"via_event_id": ids}, blank={})
        self._lake.commits.delete_rows(JOURNEYS, [tenant], {}, blank={"founding_event_id": ids})
        return self._lake.commits.delete_rows(
            JOURNEY_LOG, [tenant],
            {"event_id": ids, "key_hash": lonely["key_hash"].to_list()}, blank={"founding_event_id": ids},
        )  # fmt: skip

    def _committed(
        self,
        decide: Callable[[JourneyIndex], _Change | None],
        policy: KeyPolicy,
        details: Mapping[str, Any] | None = None,
    ) -> BatchReport:
        started = time.perf_counter()
        attempts = 0

        def attempt() -> BatchReport:
            nonlocal attempts
            attempts += 1
            snapshot, index = self.refresh()
            change = decide(index)
            if change is None:
                return BatchReport()
            self._commit(snapshot, index, change, policy, details or {})
            return change.report

        report = self._lake.commits.retried(JOURNEY_LOG.name, attempt)
        seconds = time.perf_counter() - started
        return replace(report, seconds=seconds, longest_seconds=seconds, retries=attempts - 1)

    def _commit(
        self,
        snapshot: DeltaTable,
        index: JourneyIndex,
        change: _Change,
        policy: KeyPolicy,
        details: Mapping[str, Any],
    ) -> None:
        frames = (change.stitched.events, change.stitched.journeys, change.gone.events, change.gone.journeys)
        tenants = sorted({tenant for frame in frames for tenant in frame["tenant_id"].unique()})
        seqs = {tenant: index.tenant(tenant).seq + 1 for tenant in tenants}
        # Rules that are not applied yet stay pending: a tenant's first commit notes them, then who applies them.
        noted = {tenant: {**_rules(tenant, policy), **index.tenant(tenant).detail} for tenant in tenants}
        said = {tenant: {**noted[tenant], **details, "events": change.report.events} for tenant in tenants}
        rows = log_rows(
            change.stitched, change.gone, seqs, said, self._clock(), change.cause, all_keys=change.batch is None
        )
        self._append(snapshot, index, rows, seqs, change)

    def _append(
        self,
        snapshot: DeltaTable,
        index: JourneyIndex,
        rows: pl.DataFrame,
        seqs: Mapping[str, int],
        change: _Change | None = None,
    ) -> None:
        numbers = {log_number(tenant): seq for tenant, seq in seqs.items()}
        for name, seq in numbers.items():
            if (snapshot.transaction_version(name) or 0) != seq - 1:
                index.forget()
                raise CommitFailedError(f"the index is not that of the log: {name} is not at {seq - 1}")
        version = snapshot.version()
        with ThreadPoolExecutor(1) as pool:
            commit = pool.submit(self._lake.commits.append_numbered, JOURNEY_LOG, snapshot, rows, numbers)
            staged = index.stage(change.batch, change.stitched, change.gone) if change and change.batch else None
            if commit.exception() and staged:
                discard(staged)
            commit.result()
        if snapshot.version() != version + 1:
            # Another worker's commit came in between, of another tenant: both are read from the log the next time.
            discard(staged or {})
        elif staged is None:
            index.absorb(rows, set(snapshot.file_uris()))
        else:
            commits = rows.filter(pl.col("kind") == COMMIT).select("tenant_id", "seq", "detail")
            index.adopt(staged, commits, set(snapshot.file_uris()))

    def _added(
        self, index: JourneyIndex, events: pl.DataFrame, keys: pl.DataFrame, gone: pl.DataFrame, policy: KeyPolicy
    ) -> _Change | None:
        marks = index.known_events(events)
        known = marks["fingerprint"]
        is_new = known.is_null()
        is_altered = (
            ~is_new & (known != pl.Series(event_fingerprints(events["ts"], keys))) if not is_new.all() else ~is_new
        )
        wanted = is_new | is_altered
        is_gone = index.known_events(gone)["fingerprint"].is_not_null()
        altered, gone = events.filter(is_altered).select(EVENT_COLUMNS[:2]), gone.filter(is_gone)
        passed_over = int((~wanted).sum())
        if not wanted.any() and gone.is_empty():
            return None
        rows = events.select(EVENT_COLUMNS).filter(wanted)
        kept_keys = _renumbered(keys, wanted) if passed_over else keys
        out = pl.concat([altered, gone])
        batch = prepare(rows, kept_keys, policy)
        found = index.known(batch)
        apart = [index.event_journeys(out)] if out.height else []
        quarantine = quarantines(batch, found, policy)
        _, is_quarantined = quarantine
        crossing = found.key_journey[is_quarantined & ~found.is_quarantined & (found.key_journey >= 0)]
        if len(crossing):
            apart.append(index.journeys(*id_words(found.journeys["journey_id"].gather(np.unique(crossing)))))
        if apart:
            torn = pl.concat(apart).unique("journey_id")
            cause = "events changed" if out.height else "quarantine"
            change = self._found_anew(index, rows, kept_keys, out, torn, policy, cause)
        else:
            stitched = stitch(batch, found, policy, quarantine, index.are_taken)
            change = _Change(stitched, Gone.nothing(), _report(stitched, found), batch)
        return replace(change, report=replace(change.report, known=passed_over))

    def _found_anew(
        self,
        index: JourneyIndex,
        rows: pl.DataFrame,
        keys: pl.DataFrame,
        out: pl.DataFrame,
        torn: pl.DataFrame,
        policy: KeyPolicy,
        cause: str,
    ) -> _Change:
        """Stitch events together with those of journeys that are taken apart.

        Args:
            index: as it is now.
            rows: new events.
            keys: theirs.
            out: tenant_id, event_id of events that are taken out, or come with other keys.
            torn: journeys that are taken apart.
            policy: what keys may do.
            cause: why.
        """
        facts, fact_keys, former = self._facts(torn, out)
        events = pl.concat([rows.with_columns(was=pl.lit(None, pl.String)), facts])
        moved = fact_keys.with_columns((pl.col("row") + rows.height).cast(pl.UInt32))
        all_keys = pl.concat([keys.select(moved.columns), moved])
        batch = prepare(events, all_keys, policy)
        known = _with_former(index.known(batch), torn, index.journeys(*id_words(former["journey_id"])), former)
        stitched = stitch(batch, known, policy, are_taken=index.are_taken)
        unsaid = self._keys_of(torn, former).join(
            stitched.key_journey, on=["tenant_id", "key_type", "key_hash"], how="anti"
        )
        gone_keys = unsaid.filter(index.are_held_by(unsaid, torn))
        gone = Gone(out, gone_keys, _emptied(torn, stitched))
        report = replace(
            _report(stitched, known), events=rows.height, reread=facts.height,
            removed=out.join(rows, on=EVENT_COLUMNS[:2], how="anti").height,
        )  # fmt: skip
        return _Change(stitched, gone, report, batch, cause)

    def _log(self, tenants: list[str]) -> pl.LazyFrame:
        snapshot = self._lake.commits.snapshot(JOURNEY_LOG)
        rows = self._lake.scan_files(JOURNEY_LOG, set(snapshot.file_uris()))
        return rows.filter(pl.col("tenant_id").is_in(tenants))

    def _members(self, torn: pl.DataFrame) -> tuple[pl.LazyFrame, pl.DataFrame]:
        """The log of the tenants of some journeys; and the ids that lead to these: tenant_id, journey_id, was."""
        rows = self._log(torn["tenant_id"].unique().to_list())
        merged = aliases(rows).drop_nulls("merged_into")
        own = torn.select("tenant_id", "journey_id", was="journey_id")
        former = merged.join(torn, left_on=["tenant_id", "merged_into"], right_on=["tenant_id", "journey_id"],
                             how="semi")  # fmt: skip
        return rows, pl.concat([own, former.select("tenant_id", "journey_id", was="merged_into")])

    def _facts(self, torn: pl.DataFrame, out: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """The events of journeys with their keys, less those that are taken out, and the ids that these absorbed.

        Returns:
            tenant_id, event_id, ts, was; row, key_type, key_hash; and tenant_id, journey_id, merged_into.
        """
        rows, members = self._members(torn)
        said = rows.filter(pl.col("kind") == EVENT)
        touched = said.join(members.lazy(), on=["tenant_id", "journey_id"], how="semi").select("tenant_id", "event_id")
        last = last_event_rows(rows.join(touched.unique(), on=["tenant_id", "event_id"], how="semi"))
        found = (
            last.join(members.lazy(), on=["tenant_id", "journey_id"])
            .join(out.lazy(), on=["tenant_id", "event_id"], how="anti")
            .select("tenant_id", "event_id", "ts", "was", "key_type", "key_hash")
            .collect(engine="streaming")
        )
        events = found.select("tenant_id", "event_id", "ts", "was").unique(["tenant_id", "event_id"])
        numbered = events.select("tenant_id", "event_id").with_row_index("row")
        keys = (
            found.drop_nulls("key_type")
            .join(numbered, on=["tenant_id", "event_id"])
            .select("row", "key_type", pl.col("key_hash").cast(pl.UInt128))
        )
        former = members.filter(pl.col("journey_id") != pl.col("was"))
        return events, keys, former.select("tenant_id", "journey_id", merged_into="was")

    def _keys_of(self, torn: pl.DataFrame, former: pl.DataFrame) -> pl.DataFrame:
        """tenant_id, key_type, key_hash of the keys that the log ever gave to some journeys."""
        ids = pl.concat([torn.select("tenant_id", "journey_id"), former.select("tenant_id", "journey_id")])
        rows = self._log(torn["tenant_id"].unique().to_list()).filter(
            pl.col("kind").is_in([EVENT, KEY]) & pl.col("key_type").is_not_null()
        )
        found = rows.join(ids.lazy(), on=["tenant_id", "journey_id"], how="semi")
        keys = found.select("tenant_id", "key_type", "key_hash").unique().collect(engine="streaming")
        return keys.with_columns(pl.col("key_hash").cast(pl.UInt128))


def _rules(tenant_id: str, policy: KeyPolicy) -> dict[str, Any]:
    """What a commit says of the rules that it was decided by."""
    return {"policy": policy.fingerprint(tenant_id), "blocked": policy.blocked_of(tenant_id)}


def _renumbered(keys: pl.DataFrame, wanted: pl.Series) -> pl.DataFrame:
    """Keys of the wanted events, with the places that these have once the others are left out."""
    place = pl.Series(np.cumsum(wanted.to_numpy()) - 1, dtype=pl.Int64)
    kept = keys.filter(wanted.gather(keys["row"]))
    return kept.with_columns(row=place.gather(kept["row"]).cast(pl.UInt32))


def _with_former(known: Known, torn: pl.DataFrame, former: pl.DataFrame, leads: pl.DataFrame) -> Known:
    """What is known, when some journeys are taken apart: they and all that they absorbed are to be found anew."""
    closed = pl.concat([torn, former.select(torn.columns)]).join(
        leads, on=["tenant_id", "journey_id"], how="left", maintain_order="left"
    )
    closed = closed.with_columns(is_open=pl.lit(value=False), was_active=pl.col("merged_into").is_null())
    open_ = known.journeys.join(torn, on="journey_id", how="anti", maintain_order="left")
    names = list(KNOWN_JOURNEY)
    journeys = pl.concat([open_.select(names), closed.select(pl.col(n).cast(t) for n, t in KNOWN_JOURNEY.items())])
    journeys = journeys.sort("created_at", "founding_event_id")
    place = dict(zip(journeys["journey_id"], range(journeys.height), strict=True))
    numbers = np.array([*(place[name] for name in known.journeys["journey_id"]), -1], np.int64)
    return replace(known, journeys=journeys, key_journey=numbers[known.key_journey])


def _rebase(
    tenant_id: str,
    seq: int,
    stitched: Stitched,
    known: Known,
    now: pl.DataFrame,
    held_keys: pl.DataFrame,
    raw: pl.DataFrame,
    out: pl.DataFrame,
) -> Rebase:
    """Of all that was decided anew, what differs from what is."""
    event, key = ["tenant_id", "event_id"], ["tenant_id", "event_id", "key_type", "key_hash"]
    before = held_keys.join(now, on=event).with_columns(pl.col("key_hash").cast(pl.UInt128))
    said = [*key, "status", "journey_id"]
    moved = stitched.events.join(now.rename({"journey_id": "before"}), on=event, how="left").filter(
        pl.col("journey_id").ne_missing(pl.col("before"))
    )
    altered = pl.concat(
        [
            stitched.event_keys.select(said).join(before.select(said), on=said, how="anti").select(event),
            before.select(said).join(stitched.event_keys.select(said), on=said, how="anti").select(event),
            moved.select(event),
            # Rows that speak of an id which leads elsewhere now would lead there too.
            raw.join(stitched.aliases, on="journey_id", how="semi").select(event),
        ]
    ).unique()
    journeys = _changed_states(stitched.journeys, known.journeys.filter("was_active"))
    event_keys = stitched.event_keys.join(altered, on=event, how="semi")
    touched_keys = pl.concat([event_keys.select(key[2:]), before.join(altered, on=event, how="semi").select(key[2:])])
    gone_keys = before.select("tenant_id", "key_type", "key_hash").unique().join(
        stitched.key_journey, on=["tenant_id", "key_type", "key_hash"], how="anti"
    )  # fmt: skip
    emptied = _emptied(known.journeys.filter("was_active"), stitched)
    kept = replace(
        stitched,
        events=stitched.events.join(altered, on=event, how="semi"),
        event_keys=event_keys,
        journeys=journeys,
        key_journey=stitched.key_journey.join(touched_keys.unique(), on=["key_type", "key_hash"], how="semi"),
        conflicts=stitched.conflicts.join(altered, on=event, how="semi"),
        quarantines=stitched.quarantines.join(touched_keys.unique(), on=["key_type", "key_hash"], how="semi"),
    )
    is_same = altered.is_empty() and journeys.is_empty() and kept.aliases.is_empty() and out.is_empty()
    report = replace(
        _report(kept, known), events=0, reread=kept.events.height, removed=out.height,
        founded=kept.journeys.join(known.journeys, on="journey_id", how="anti").height,
    )  # fmt: skip
    change = None if is_same else _Change(kept, Gone(out, gone_keys, emptied), report, cause="rules changed")
    otherwise = event_keys.join(before.select(*key, before="status"), on=key, how="left").filter(
        pl.col("status").ne_missing(pl.col("before"))
    )
    by_type = otherwise.group_by("tenant_id", "key_type", "status", "before").len().sort("key_type", "status")
    return Rebase(tenant_id, seq, change, int(known.journeys["was_active"].sum()), moved, by_type)


def _emptied(torn: pl.DataFrame, stitched: Stitched) -> pl.DataFrame:
    """tenant_id, journey_id of journeys that were taken apart and neither live on nor went into another."""
    ended = stitched.aliases.drop_nulls("merged_into")
    ids = torn.select("tenant_id", "journey_id")
    return ids.join(stitched.journeys, on="journey_id", how="anti").join(ended, on="journey_id", how="anti")


def _changed_states(now: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    unique = pl.col("unique_keys").list.sort().list.join(" ").fill_null("")
    states = ["journey_id", "event_count", "key_count", "first_event_ts", "last_event_ts", "unique"]
    held = before.with_columns(unique=unique).select(states)
    return now.with_columns(unique=unique).join(held, on=states, how="anti").drop("unique")


def _report(stitched: Stitched, known: Known) -> BatchReport:
    founded = stitched.journeys.join(known.journeys, on="journey_id", how="anti").height
    return BatchReport(
        events=stitched.events.height, keys=stitched.event_keys.height, founded=founded, merged=stitched.merges.height,
        split=stitched.splits.height, conflicts=stitched.conflicts.height, quarantined=stitched.quarantines.height,
    )  # fmt: skip
