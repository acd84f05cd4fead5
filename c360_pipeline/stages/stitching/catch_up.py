"""Stitching from the archive: what came, changed or went since the last time, and what other rules make of it all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import polars as pl

from c360_pipeline.core.arrays.batches import gathered
from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.projection.removal_limit import REMOVAL_SHARE, is_beyond_removal_limit
from c360_pipeline.core.stitching.keys import EVERY_TENANT, KeyPolicy
from c360_pipeline.errors import RemovalLimitError
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stages.stitching.report import BatchReport, Rebase
from c360_pipeline.stores.delta.lake import Lake

BATCH_EVENTS = 500_000
"""Events of one commit."""
SOURCE_COLUMNS = ["tenant_id", "event_id", "ts", "user_id", "session_id", "item_id", "action", "attrs", "content_hash"]


@dataclass(frozen=True)
class Progress:
    """How far a run of stitching is.

    Attributes:
        done: events stitched or passed over.
        total: events to look at.
        report: of the last batch.
    """

    done: int
    total: int
    report: BatchReport


def _silent(_: Progress) -> None:
    return


class Stitching:
    """Keeps the journeys equal to the archive under the rules of the control database.

    Args:
        lake: holds the archive and the log.
        journeys: the store of journeys.
        policy: what keys may do.
    """

    def __init__(self, lake: Lake, journeys: Journeys, policy: KeyPolicy) -> None:
        self._lake = lake
        self._journeys = journeys
        self._policy = policy

    def catch_up(self, observe: Callable[[Progress], None] = _silent, *, force: bool = False) -> BatchReport:
        """Apply rules that changed, then stitch what came, changed or went in the archive.

        It can be stopped at any point and done again, by several workers at once.

        Args:
            observe: called after each batch.
            force: whether rules that changed may touch more journeys than the removal limit lets pass.

        Raises:
            RemovalLimitError: rules changed and would touch too many journeys; nothing was done.
            ConflictError: other workers were faster 20 times in a row.
        """
        report = self._apply_rules(force=force)
        source = self._source()
        now = self._lake.versions.version(EVENTS.name)
        if now is None or source == now:
            return report
        since = self._lake.versions.still_there(EVENTS, source)
        changed, gone, upto = self._lake.versions.changed_since(EVENTS, since, ["content_hash"])
        if since is None and source is not None:
            gone = self._gone_from_archive()
        done, total = 0, self._lake.count(EVENTS)
        for batch in gathered(changed, BATCH_EVENTS):
            part = self._journeys.add(batch.select(SOURCE_COLUMNS), self._policy)
            report, done = report + part, done + batch.height
            observe(Progress(done, total, part))
        if gone.height:
            part = self._journeys.add(self._no_events(), self._policy, gone)
            report = report + part
        self._journeys.log.note(EVERY_TENANT, {"source": str(upto)})
        return report

    def carry(self, versions: Mapping[str, Version]) -> None:
        """Say that an archive whose events are the same under another version is stitched up to that."""
        if (source := self._source()) and (now := versions.get(str(source))):
            self._journeys.log.note(EVERY_TENANT, {"source": str(now)})

    def _source(self) -> Version | None:
        return stitched_version(self._journeys)

    def _gone_from_archive(self) -> pl.DataFrame:
        key = list(EVENTS.key)
        archived = self._lake.scan(EVENTS).select(key)
        return self._journeys.events_there().join(archived, on=key, how="anti").collect(engine="streaming")

    def _no_events(self) -> pl.DataFrame:
        return EVENTS.empty().select(SOURCE_COLUMNS)

    def _apply_rules(self, *, force: bool) -> BatchReport:
        report = BatchReport()
        for tenant, state in self._journeys.log.states().items():
            if tenant == EVERY_TENANT:
                continue
            if state.detail["policy"] != self._policy.fingerprint(tenant):
                plan = self.plan(tenant)
                self._check_removal_limit(tenant, plan.touched, plan.journeys, force=force)
                report = report + self._journeys.apply(plan, self._policy)
            else:
                report = report + self._apply_blocked(tenant, set(state.detail["blocked"]), force=force)
        return report

    def _apply_blocked(self, tenant: str, before: set[str], *, force: bool) -> BatchReport:
        """Find the journeys of keys again that were put on the list of the blocked, or taken off."""
        changed = before.symmetric_difference(self._policy.blocked_of(tenant))
        if not changed:
            return BatchReport()
        touched = self._journeys.with_keys(tenant, sorted(changed))
        self._check_removal_limit(tenant, touched.height, self._journeys.count(tenant), force=force)
        cause = f"blocked keys: {', '.join(sorted(changed))}"
        return self._journeys.restitch(touched, self._policy, tenant, cause)

    def _check_removal_limit(self, tenant: str, touched: int, held: int, *, force: bool) -> None:
        if is_beyond_removal_limit(touched, held) and not force:
            raise RemovalLimitError(
                f"The rules of {tenant} changed, and {touched:,} of {held:,} journeys would with them, more than "
                f"{REMOVAL_SHARE:.0%}. Look at `c360 journey rebase --plan`, and apply it with `c360 journey rebase`."
            )

    def plan(self, tenant: str) -> Rebase:
        """What today's rules make of all events of a tenant, against what is: nothing is changed."""
        events = self._lake.scan(EVENTS).filter(pl.col("tenant_id") == tenant).select(SOURCE_COLUMNS)
        return self._journeys.rebase(tenant, events.collect(engine="streaming"), self._policy)


def unstitched_events(lake: Lake) -> pl.DataFrame:
    """tenant_id, id of the events of the archive that came or changed since it was last stitched to its end."""
    source = lake.versions.still_there(EVENTS, stitched_version(Journeys(lake)))
    changed, _ = lake.versions.changes(EVENTS, source, [*EVENTS.key, "content_hash"])
    return changed.upserted.select("tenant_id", id="event_id")


def changed_since(lake: Lake, version: Version | None) -> pl.DataFrame:
    """tenant_id, event_id of the events that came, changed or went since a version of the archive.

    None of them where that version is not known or not there any more: nothing is excused by it then.
    """
    source = lake.versions.still_there(EVENTS, version)
    if source is None:
        return EVENTS.empty().select(EVENTS.key)
    changed, _ = lake.versions.changes(EVENTS, source, [*EVENTS.key, "content_hash"])
    return pl.concat([changed.upserted.select(EVENTS.key), changed.deleted.select(EVENTS.key)])


def stitched_version(journeys: Journeys) -> Version | None:
    """The version of the archive that is stitched to its end."""
    said = journeys.log.state(EVERY_TENANT).detail.get("source")
    return Version.parse(said) if said else None
