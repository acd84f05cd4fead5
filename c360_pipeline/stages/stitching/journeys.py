"""The store of journeys: batches of events in, one atomic commit of the log each.

Events that are known are passed over, so that a batch can be given again in any cut (docs/adr/0024).
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl

from c360_pipeline.core.catalog.tables import JOURNEY_LOG
from c360_pipeline.core.stitching.batch import (
    JOURNEY_STATE,
    Batch,
    Flags,
    Known,
    blocked_keys,
    prepare,
    quarantines,
)
from c360_pipeline.core.stitching.journey_ids import id_words
from c360_pipeline.core.stitching.keys import KEY_COLUMNS, KeyPolicy, extract_keys
from c360_pipeline.core.stitching.log import (
    EVENT,
    Gone,
    aliases,
    ended_journeys,
    last_event_rows,
    living_journeys,
)
from c360_pipeline.core.stitching.statuses import REFUSED_UNIQUE
from c360_pipeline.core.stitching.stitch import stitch
from c360_pipeline.core.stitching.unique import contested, key_name
from c360_pipeline.errors import ConflictError
from c360_pipeline.stages.stitching import purge as purging
from c360_pipeline.stages.stitching import rebase as rebasing
from c360_pipeline.stages.stitching.commit import JourneyLog, rules_of
from c360_pipeline.stages.stitching.index import JourneyIndex
from c360_pipeline.stages.stitching.index_rows import event_fingerprints
from c360_pipeline.stages.stitching.report import BatchReport, Change, Rebase, report_of
from c360_pipeline.stages.stitching.restitching import Restitching
from c360_pipeline.stores.delta.lake import Lake

EVENT_COLUMNS = ["tenant_id", "event_id", "ts"]


class Journeys:
    """The journeys of all tenants.

    Args:
        lake: holds the log; the index is in its cache.
        clock: the time of commits, UTC.
    """

    def __init__(self, lake: Lake, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._lake = lake
        self._log = JourneyLog(lake, clock)
        self._restitching = Restitching(self._log)

    @property
    def log(self) -> JourneyLog:
        """The log of stitching, with its index."""
        return self._log

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
        keys = extract_keys(events, policy.rules, policy.nobody, policy.identifiers)
        return self.add_keyed(events, keys, policy, gone)

    def add_keyed(
        self,
        events: pl.DataFrame,
        keys: pl.DataFrame,
        policy: KeyPolicy,
        gone: pl.DataFrame | None = None,
    ) -> BatchReport:
        """The same with keys that are extracted already: `KEY_COLUMNS`, row being the place in `events`."""
        gone = events.select(EVENT_COLUMNS[:2]).clear() if gone is None else gone.select(EVENT_COLUMNS[:2])
        return self._log.committed(lambda index: self._added(index, events, keys, gone, policy), policy)

    def events_there(self) -> pl.LazyFrame:
        """tenant_id, event_id of all events that have a journey, as the log says."""
        rows = self._lake.scan(JOURNEY_LOG).select(*EVENT_COLUMNS[:2], "seq", "kind")
        return last_event_rows(rows).select(EVENT_COLUMNS[:2]).unique()

    def count(self, tenant_id: str) -> int:
        """Journeys that a tenant has now."""
        rows = self._log.rows([tenant_id])
        found = living_journeys(rows, ended_journeys(rows, aliases(rows))).select(pl.len()).collect()
        return int(found.item())

    def with_keys(self, tenant_id: str, names: list[str]) -> pl.DataFrame:
        """tenant_id, journey_id of the journeys that have an event with one of some keys.

        Args:
            tenant_id: whose.
            names: `type:hash`.
        """
        rows = self._log.rows([tenant_id])
        said = rows.filter((pl.col("kind") == EVENT) & key_name().is_in(names))
        ids = said.select("journey_id").unique().collect(engine="streaming")["journey_id"]
        _, index = self._log.refresh()
        return index.living(ids).select("tenant_id", "journey_id")

    def restitch(self, journeys: pl.DataFrame, policy: KeyPolicy, tenant_id: str, cause: str) -> BatchReport:
        """Take journeys apart and restitch their events, in one commit.

        Args:
            journeys: tenant_id, journey_id, as they are now; the rules are noted even if there is none.
            policy: what keys may do now.
            tenant_id: whose journeys.
            cause: kept with what is split off.
        """

        def decide(index: JourneyIndex) -> Change | None:
            nothing = pl.DataFrame(schema={"tenant_id": pl.String, "event_id": pl.String})
            living = index.around(index.living(journeys["journey_id"]))
            if living.is_empty():
                return None
            events = JOURNEY_LOG.empty().select(EVENT_COLUMNS)
            return self._restitching.restitched(
                index, events, pl.DataFrame(schema=KEY_COLUMNS), nothing, living, policy, cause
            )  # fmt: skip

        blocked = {"blocked": policy.blocked_of(tenant_id)}
        report = self._log.committed(decide, policy, blocked)
        self._log.note(tenant_id, {**self._log.state(tenant_id).detail, **blocked})
        return report

    def rebase(self, tenant_id: str, events: pl.DataFrame, policy: KeyPolicy) -> Rebase:
        """What rules make of all events of a tenant; nothing is changed. See `rebase.rebase`."""
        return rebasing.rebase(self._log, tenant_id, events, policy)

    def apply(self, rebase: Rebase, policy: KeyPolicy) -> BatchReport:
        """Carry out what `rebase` found, in one commit.

        Raises:
            ConflictError: the journeys changed since.
        """

        def decide(index: JourneyIndex) -> Change | None:
            if index.tenant(rebase.tenant_id).seq != rebase.seq:
                raise ConflictError(
                    f"The journeys of {rebase.tenant_id} changed meanwhile: find out again what changes."
                )
            return rebase.change

        rules = rules_of(rebase.tenant_id, policy)
        report = self._log.committed(decide, policy, rules)
        # Rules that link nothing otherwise are noted too, so that they are not looked at again.
        self._log.note(rebase.tenant_id, {**self._log.state(rebase.tenant_id).detail, **rules})
        return report

    def purge(self, events: pl.DataFrame) -> int:
        """Take events out of the log for good. See `purge.purge`."""
        return purging.purge(self._lake, self._log, events)

    def _added(
        self, index: JourneyIndex, events: pl.DataFrame, keys: pl.DataFrame, gone: pl.DataFrame, policy: KeyPolicy
    ) -> Change | None:
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
        anyway = pl.concat([JOURNEY_LOG.empty().select(list(JOURNEY_STATE)), *apart]).unique("journey_id")
        stitched = None if anyway.height else stitch(batch, found, policy, quarantine, index.are_taken)
        conflicts = stitched.conflicts.filter(pl.col("reason") == REFUSED_UNIQUE) if stitched else None
        is_out = is_quarantined | blocked_keys(batch, policy)
        split_up = _taken_apart(index, batch, found, anyway, is_out, policy, conflicts)
        if stitched is None or split_up.height:
            cause = "events changed" if out.height else "quarantine" if anyway.height else "unique key"
            change = self._restitching.restitched(index, rows, kept_keys, out, split_up, policy, cause)
        else:
            change = Change(stitched, Gone.nothing(), report_of(stitched, found), batch)
        return replace(change, report=replace(change.report, known=passed_over))


def _taken_apart(
    index: JourneyIndex,
    batch: Batch,
    found: Known,
    anyway: pl.DataFrame,
    is_out: Flags,
    policy: KeyPolicy,
    conflicts: pl.DataFrame | None,
) -> pl.DataFrame:
    """Journeys that are taken apart anyway, and those that `contested` says."""
    is_apart = bool((found.journeys["apart_from"].list.len() > 0).any())
    if not policy.unique_types or (conflicts is not None and conflicts.is_empty() and not is_apart):
        return anyway
    states = list(JOURNEY_STATE)
    others = anyway.select(states).join(found.journeys, on="journey_id", how="anti")
    around = index.around(pl.concat([found.journeys.select(states), others]))
    if around.is_empty():
        return anyway
    around = around.with_columns(is_open=~pl.col("journey_id").is_in(anyway["journey_id"].implode()))
    ids = contested(batch, found, around, is_out, policy, conflicts)
    more = around.filter("is_open", pl.col("journey_id").is_in(ids.implode()))
    return pl.concat([anyway.select(states), more.select(states)])


def _renumbered(keys: pl.DataFrame, wanted: pl.Series) -> pl.DataFrame:
    """Keys of the wanted events, with the places that these have once the others are left out."""
    place = pl.Series(np.cumsum(wanted.to_numpy()) - 1, dtype=pl.Int64)
    kept = keys.filter(wanted.gather(keys["row"]))
    return kept.with_columns(row=place.gather(kept["row"]).cast(pl.UInt32))
