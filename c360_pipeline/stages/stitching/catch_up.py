"""Stitching from the archive: what came, changed or went since the last time, and what other rules make of it all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

import polars as pl

from c360_pipeline.core.arrays.batches import gathered
from c360_pipeline.core.catalog.changes import Version, difference
from c360_pipeline.core.catalog.tables import EVENTS, VISITOR_DECISIONS
from c360_pipeline.core.projection.removal_limit import REMOVAL_SHARE, is_beyond_removal_limit
from c360_pipeline.core.stitching.keys import EVERY_TENANT, KeyPolicy
from c360_pipeline.core.visitors.counting import NEEDED, SESSION_GAP, VISITOR, keyed, of_somebody
from c360_pipeline.errors import ConfigError, RemovalLimitError
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stages.stitching.report import BatchReport, Rebase
from c360_pipeline.stages.visitors.counted import EventsAt
from c360_pipeline.stores.delta.lake import Lake

COUNTED_BY = "1"
"""Version of the rules of visitors; a log that was stitched without them says nothing of it."""
BATCH_EVENTS = 500_000
"""Events of one commit."""
SOURCE_COLUMNS = [
    "tenant_id", "event_id", "ts", "user_id", "session_id", "anonymous_id", "item_id", "action", "attrs", "content_hash"
]  # fmt: skip


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
        source, decided = self._source(), self._decided()
        now, decisions = (self._lake.versions.version(table.name) for table in (EVENTS, VISITOR_DECISIONS))
        if now is None or (source == now and decided == decisions and self._is_counted()):
            return report
        since = self._lake.versions.still_there(EVENTS, source)
        changed, gone, upto = self._lake.versions.changed_since(EVENTS, since, ["content_hash"])
        if since is None and source is not None:
            gone = self._gone_from_archive()
        at = EventsAt.of(self._lake, upto, decisions)
        those_apart, otherwise = self._apart(since, decided, at)
        done, total = 0, self._lake.count(EVENTS)
        came = (rows.select(SOURCE_COLUMNS) for rows in changed)
        for batch in gathered(chain([otherwise], came), BATCH_EVENTS):
            rows = keyed(batch.unique(list(EVENTS.key), maintain_order=True), those_apart)
            part = self._journeys.add(rows, self._policy)
            report, done = report + part, done + batch.height
            observe(Progress(done, total, part))
        if gone.height:
            part = self._journeys.add(self._no_events(), self._policy, gone)
            report = report + part
        self._journeys.log.note(EVERY_TENANT, noted(upto, decisions))
        return report

    def _apart(self, since: Version | None, decided: Version | None, at: EventsAt) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Events of visitors that are no tie; and the events whose keys are others because of what changed.

        A login makes a shared visitor of one that had another user: then its events of the past are read again.
        """
        nothing = self._no_events()
        if since is None:
            return at.apart(), nothing
        lake, was = self._lake, self._lake.versions.still_there(VISITOR_DECISIONS, decided)
        if not self._is_counted() or (decided is not None and was is None):
            # Stitched by an earlier release, or by decisions that nobody knows any more: all of these are read again.
            now = at.apart()
            return now, self._events_of(at, now.select(EVENTS.key))
        before = EventsAt.of(lake, since, was)
        visitors = self._touched_visitors(since, was, before, at)
        if visitors.is_empty():
            return at.apart(visitors), nothing
        then, now = before.apart(visitors), at.apart(visitors)
        differing = difference(then, now, EVENTS.key)
        return now, self._events_of(at, pl.concat([differing.upserted.select(EVENTS.key), differing.deleted]))

    def _touched_visitors(self, since: Version, was: Version | None, before: EventsAt, at: EventsAt) -> pl.DataFrame:
        """tenant_id, anonymous_id of visitors whose events, or about whom decisions, changed."""
        versions = self._lake.versions
        changed, _ = versions.changes(EVENTS, since, [*EVENTS.key, "anonymous_id", "user_id", "session_id", "ts"])
        keys = pl.concat([changed.upserted.select(EVENTS.key), changed.deleted]).lazy()
        earlier = before.scan(NEEDED).join(keys, on=EVENTS.key, how="semi").collect(engine="streaming")
        decided, _ = versions.changes(VISITOR_DECISIONS, was)
        decisions = pl.concat([decided.upserted.select(VISITOR_DECISIONS.key), decided.deleted])
        # Another gap puts other logins into a session: of all visitors of the tenant.
        tenants = decisions.filter(pl.col("kind") == SESSION_GAP)["tenant_id"].unique().to_list()
        of_gaps = [side.visitors_of(tenant) for side in (before, at) for tenant in tenants]
        parts = [rows.select(VISITOR) for rows in (changed.upserted, earlier, decisions, *of_gaps)]
        return of_somebody(pl.concat(parts).drop_nulls().unique().lazy(), "anonymous_id").collect()

    def _events_of(self, at: EventsAt, keys: pl.DataFrame) -> pl.DataFrame:
        return at.scan(SOURCE_COLUMNS).join(keys.lazy(), on=EVENTS.key, how="semi").collect(engine="streaming")

    def _is_counted(self) -> bool:
        """Whether the log was stitched by the rules of visitors; one that holds nothing yet will be."""
        said = self._journeys.log.state(EVERY_TENANT).detail
        return not said or said.get("counted_by") == COUNTED_BY

    def carry(self, versions: Mapping[str, Version]) -> None:
        """Say that an archive whose events are the same under another version is stitched up to that."""
        said = dict(self._journeys.log.state(EVERY_TENANT).detail)
        carried = {name: str(versions.get(value, value)) for name, value in said.items()}
        if carried != said:
            self._journeys.log.note(EVERY_TENANT, carried)

    def _source(self) -> Version | None:
        return stitched_version(self._journeys)

    def _decided(self) -> Version | None:
        said = self._journeys.log.state(EVERY_TENANT).detail.get("decisions")
        return Version.parse(said) if said else None

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
            self._require_same_secret(tenant, state.identifiers)
            if state.detail["policy"] != self._policy.fingerprint(tenant):
                plan = self.plan(tenant)
                self._check_removal_limit(tenant, plan.touched, plan.journeys, force=force)
                report = report + self._journeys.apply(plan, self._policy)
            else:
                # Of two keys that are parted, a rotation of the secret may have changed which comes first.
                noted_names = {" ".join(sorted(names.split(" "))) for names in state.detail["blocked"]}
                report = report + self._apply_blocked(tenant, noted_names, force=force)
        return report

    def _require_same_secret(self, tenant: str, held: str) -> None:
        """Keys of two secrets would never meet: each customer would be two."""
        if held != (ours := self._policy.identifiers.name):
            raise ConfigError(
                f"The journeys of {tenant} are of version {held} of the secret that identifiers are hashed with, and "
                f"the control database names {ours} (version:fingerprint): it is of another installation, or was "
                "made anew. Restore it from its backup; its table identifier_keys says which secrets belong together "
                "(docs/security.md)."
            )

    def _apply_blocked(self, tenant: str, before: set[str], *, force: bool) -> BatchReport:
        """Find the journeys of keys again that were put on the list of the blocked, or taken off."""
        changed = before.symmetric_difference(self._policy.blocked_of(tenant))
        if not changed:
            return BatchReport()
        touched = self._journeys.with_keys(tenant, sorted({name for names in changed for name in names.split(" ")}))
        self._check_removal_limit(tenant, touched.height, self._journeys.count(tenant), force=force)
        cause = f"blocked or parted keys: {', '.join(sorted(changed))}"
        return self._journeys.restitch(touched, self._policy, tenant, cause)

    def _check_removal_limit(self, tenant: str, touched: int, held: int, *, force: bool) -> None:
        if is_beyond_removal_limit(touched, held) and not force:
            raise RemovalLimitError(
                f"The rules of {tenant} changed, and {touched:,} of {held:,} journeys would with them, more than "
                f"{REMOVAL_SHARE:.0%}. Look at `c360 journey rebase --plan`, and apply it with `c360 journey rebase`."
            )

    def plan(self, tenant: str) -> Rebase:
        """What today's rules make of all events of a tenant, against what is: nothing is changed.

        Raises:
            ConfigError: keys would be hashed with another secret than those that are there.
        """
        self._require_same_secret(tenant, self._journeys.log.state(tenant).identifiers)
        at = EventsAt.now(self._lake)
        rows = at.scan(SOURCE_COLUMNS).filter(pl.col("tenant_id") == tenant).collect(engine="streaming")
        visitors = rows.select(VISITOR).drop_nulls().unique()
        return self._journeys.rebase(tenant, keyed(rows, at.apart(visitors)), self._policy)


def noted(events: Version | None, decisions: Version | None) -> dict[str, str]:
    """What the log says of how far it is."""
    return {"source": str(events), "counted_by": COUNTED_BY} | ({"decisions": str(decisions)} if decisions else {})


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
