"""Members of audiences, brought up to the archive by difference.

Within a UTC day, and under one document, only customers whom a change of the archive touches can come in or go: these
are looked at in each run. With a new day, another document or other facts, an audience is worked out anew. Each commit
of the table carries what it was made of, so that a worker that comes second looks again, and a table never goes back.
"""

import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from c360_pipeline.core.audiences.definition import Audience
from c360_pipeline.core.audiences.members import MEMBERS, NEEDED, Facts, members
from c360_pipeline.core.audiences.membership import CUSTOMER, moved
from c360_pipeline.core.catalog.audience_tables import AUDIENCE_MEMBERS, IS_MEMBER
from c360_pipeline.core.catalog.changes import Changes, Version
from c360_pipeline.core.catalog.tables import EVENTS, VISITOR_DECISIONS
from c360_pipeline.core.contract.layout import COLUMNS
from c360_pipeline.core.privacy.purposes import Purpose, purposes_of
from c360_pipeline.core.visitors.counting import NEEDED as COUNTED_BY
from c360_pipeline.core.visitors.said import refusing
from c360_pipeline.stages.audiences.facts import FactsOfTenants, digest_of
from c360_pipeline.stages.visitors.around import events_around
from c360_pipeline.stages.visitors.counted import PROJECTED, EventsAt
from c360_pipeline.stages.visitors.tables import can_go_on, events_at, number_of, taken_up
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.delta.versions import BEFORE_ALL
from c360_pipeline.stores.local.scratch import scratch_folder

AUDIENCES_FEATURE = "audiences"
"""The name under which `feature_purposes` speaks of audiences."""
ASKED = tuple(dict.fromkeys([*COUNTED_BY, *(name for name in NEEDED if name in COLUMNS)]))
"""Columns of events that an audience is worked out of."""
NUMBERS = 2**62
RUN = "audiences_run"
"""Under which name commits are numbered."""


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did.

    Attributes:
        entered: members that are new, by tenant and audience.
        left: members that are none any more, by tenant and audience.
        gone: rows of customers whom the archive does not know any more, which were removed.
        worked_out: audiences that were worked out anew, rather than by what changed.
    """

    entered: dict[tuple[str, str], int]
    left: dict[tuple[str, str], int]
    gone: int
    worked_out: list[tuple[str, str]]

    @property
    def moved(self) -> dict[str, tuple[int, int]]:
        """How many entered and left, by tenant/name of audiences that somebody did."""
        named = sorted({*self.entered, *self.left})
        return {"/".join(name): (self.entered.get(name, 0), self.left.get(name, 0)) for name in named}


@dataclass(frozen=True)
class Tried:
    """Who would be in audiences.

    Attributes:
        customers: of the tenant.
        members: `MEMBERS` that there would be.
        inside: `MEMBERS` that there are, of all audiences of the tenant.
    """

    customers: int
    members: pl.DataFrame
    inside: pl.DataFrame

    def sizes(self, name: str) -> dict[str, int]:
        """Of an audience how many members it would have, how many would enter and how many would leave."""
        wanted, held = (rows.filter(pl.col("audience") == name) for rows in (self.members, self.inside))
        return {
            "members": wanted.height,
            "enter": wanted.join(held, on=list(MEMBERS), how="anti").height,
            "leave": held.join(wanted, on=list(MEMBERS), how="anti").height,
        }


class Members:
    """The table of members.

    Args:
        lake: holds events, decisions and members.
        facts: reads what conditions ask for beside events.
    """

    def __init__(self, lake: Lake, facts: FactsOfTenants) -> None:
        self._lake = lake
        self._facts = facts

    def refresh(
        self,
        audiences: Sequence[Audience],
        purposes: Sequence[Purpose],
        now: datetime,
        at: EventsAt | None = None,
        unread: Collection[tuple[str, str]] = (),
    ) -> Refreshed:
        """Let the table hold who is in audiences at a moment; members of audiences that are not among these leave.

        Args:
            audiences: all that there are, of all tenants.
            purposes: rows of `feature_purposes`; who refused one is in no audience.
            now: the moment; its UTC day is the last whose events count.
            at: the events; the newest where nothing is said.
            unread: tenant and name of audiences whose documents can't be read: their members stay.

        Raises:
            ConflictError: other workers were faster 20 times in a row.
        """
        began = time.monotonic()

        def attempt() -> Refreshed:
            # A worker that lost to one of the next day is not to bring yesterday back.
            moment = now + timedelta(seconds=time.monotonic() - began)
            return self._refresh(audiences, purposes, moment, at or EventsAt.now(self._lake), unread)

        return self._lake.commits.retried(AUDIENCE_MEMBERS.name, attempt)

    def tried(self, audiences: Sequence[Audience], purposes: Sequence[Purpose], now: datetime) -> Tried:
        """Who would be in audiences of one tenant; nothing is kept.

        Args:
            audiences: one at least.
            purposes: rows of `feature_purposes`.
            now: the moment.
        """
        with scratch_folder(self._lake.cache) as folder:
            events = all_events(EventsAt.now(self._lake), audiences[0].tenant, folder)
            return self.tried_on(events, audiences, purposes, now)

    def tried_on(
        self, events: pl.LazyFrame, audiences: Sequence[Audience], purposes: Sequence[Purpose], now: datetime
    ) -> Tried:
        """The same by events of the tenant that are at hand, as `all_events` gives them."""
        tenant = audiences[0].tenant
        found, customers = _Asked.of(self._facts, audiences, purposes, now).found(events, tenant, audiences)
        held = self._lake.scan(AUDIENCE_MEMBERS).filter((pl.col("tenant_id") == tenant) & IS_MEMBER)
        inside = held.select(list(MEMBERS)).collect(engine="streaming")
        return Tried(customers.height, found, inside)

    def _refresh(
        self, audiences: Sequence[Audience], purposes: Sequence[Purpose], now: datetime, at: EventsAt,
        unread: Collection[tuple[str, str]],
    ) -> Refreshed:  # fmt: skip
        lake, snapshot = self._lake, self._lake.commits.snapshot(AUDIENCE_MEMBERS)
        versions = self._versions(at)
        done = taken_up(snapshot, versions)
        if any(done[name].number > version.number for name, version in versions.items() if name in done):
            return Refreshed({}, {}, 0, [])  # another worker knows more
        asked = _Asked.of(self._facts, audiences, purposes, now)
        is_continued, run = can_go_on(lake, done), snapshot.transaction_version(RUN) or 0

        def goes_on(one: Audience) -> bool:
            """Whether the last commit worked it out too, by the same document and facts, and for the same day."""
            is_same = snapshot.transaction_version(mark_of(one)) == asked.marks[mark_of(one)]
            return is_continued and is_same and snapshot.transaction_version(seen_of(one)) == run

        anew = [one for one in audiences if not goes_on(one)]
        parts = [self._ended([*((one.tenant, one.audience) for one in audiences), *unread], now)]
        tenants = {one.tenant for one in anew} | (set() if is_continued else self._tenants())
        parts += [self._worked_out(tenant, anew, asked, at, is_all=not is_continued) for tenant in sorted(tenants)]
        if is_continued and done != versions:
            others = [one for one in audiences if one not in anew]
            parts += self._by_change(others, asked, done, versions, at)
        changes = _together(parts)
        numbers = {number_of(name, version): version.number + 1 for name, version in versions.items()}
        if changes.count or anew or done != versions:
            seen = {RUN: run + 1} | {seen_of(one): run + 1 for one in audiences}
            lake.commits.apply(AUDIENCE_MEMBERS, snapshot, changes, {**numbers, **asked.marks, **seen})
        return Refreshed(
            _by_audience(changes.inserted), _by_audience(changes.updated), changes.deleted.height,
            [(one.tenant, one.audience) for one in anew],
        )  # fmt: skip

    def _tenants(self) -> set[str]:
        """Whose customers are or were members."""
        return {*self._lake.scan(AUDIENCE_MEMBERS).select("tenant_id").unique().collect()["tenant_id"]}

    def _versions(self, at: EventsAt) -> dict[str, Version]:
        found = {}
        for table, number in ((EVENTS, at.events), (VISITOR_DECISIONS, at.decisions)):
            newest = self._lake.versions.version(table.name)
            if newest is not None and number is not None and number != BEFORE_ALL:
                found[table.name] = Version(newest.table_id, number)
        return found

    def _worked_out(
        self, tenant: str, audiences: Sequence[Audience], asked: "_Asked", at: EventsAt, *, is_all: bool
    ) -> Changes:
        """Those of some audiences that are of a tenant, by all its events.

        Args:
            tenant: whose.
            audiences: of any tenants.
            asked: what these ask for.
            at: the events.
            is_all: whether nobody looks at customers who are gone from the archive otherwise.
        """
        theirs = [one for one in audiences if one.tenant == tenant]
        with scratch_folder(self._lake.cache) as folder:
            found, customers = asked.found(all_events(at, tenant, folder), tenant, theirs)
        held = self._lake.scan(AUDIENCE_MEMBERS).filter(pl.col("tenant_id") == tenant).collect(engine="streaming")
        of_these = held.filter(pl.col("audience").is_in([one.audience for one in theirs]))
        changes = moved(of_these, found, customers, asked.now)
        gone = held.join(customers, on=CUSTOMER, how="anti") if is_all else held.clear()
        return _together([changes, _removed(gone)])

    def _by_change(
        self,
        audiences: Sequence[Audience],
        asked: "_Asked",
        done: Mapping[str, Version],
        versions: Mapping[str, Version],
        at: EventsAt,
    ) -> list[Changes]:
        """Audiences by the customers whom a change of the archive touches; of those who are gone, nothing stays."""
        lake = self._lake
        before = events_at(lake, done)
        changed, decided = (
            lake.versions.changes(table, done.get(table.name), columns, versions.get(table.name))[0]
            for table, columns in ((EVENTS, PROJECTED), (VISITOR_DECISIONS, None))
        )
        around = events_around(changed, decided, before, at)
        touched = around.touched.select("tenant_id", "customer_id").drop_nulls().unique()
        who = touched.rename({"customer_id": "user_id"})
        held = lake.scan(AUDIENCE_MEMBERS).join(who.lazy(), on=CUSTOMER, how="semi").collect(engine="streaming")
        now = around.now.join(touched, on=touched.columns, how="semi")
        known = now.select("tenant_id", user_id="customer_id").unique()
        parts = [_removed(held.join(known, on=CUSTOMER, how="anti"))]
        for tenant in sorted({one.tenant for one in audiences} & {*touched["tenant_id"]}):
            theirs = [one for one in audiences if one.tenant == tenant]
            events = now.lazy().filter(pl.col("tenant_id") == tenant)
            found, customers = asked.found(events, tenant, theirs)
            is_theirs = pl.col("audience").is_in([one.audience for one in theirs]) & (pl.col("tenant_id") == tenant)
            parts.append(moved(held.filter(is_theirs), found, customers, asked.now))
        return parts

    def _ended(self, names: Sequence[tuple[str, str]], now: datetime) -> Changes:
        """Members of audiences that are none of these leave them."""
        known = pl.DataFrame(names, schema={"tenant_id": pl.String, "audience": pl.String}, orient="row")
        inside = self._lake.scan(AUDIENCE_MEMBERS).filter(IS_MEMBER)
        ended = inside.join(known.lazy(), on=["tenant_id", "audience"], how="anti").collect(engine="streaming")
        return moved(ended, pl.DataFrame(schema=MEMBERS), ended.select(CUSTOMER).unique(), now)


@dataclass(frozen=True)
class _Asked:
    """What a refresh asks for, beside events.

    Attributes:
        facts: by tenant.
        purposes: that members must not have refused: tenant_id, purpose.
        marks: by audience, what it is worked out by and for which day.
        now: the moment.
    """

    facts: Mapping[str, Facts]
    purposes: pl.DataFrame
    marks: Mapping[str, int]
    now: datetime

    @classmethod
    def of(
        cls, facts: FactsOfTenants, audiences: Sequence[Audience], purposes: Sequence[Purpose], now: datetime
    ) -> "_Asked":
        tenants = sorted({one.tenant for one in audiences})
        known = {tenant: facts.of(tenant, [one for one in audiences if one.tenant == tenant]) for tenant in tenants}
        asked = purposes_of(purposes, AUDIENCES_FEATURE, tenants)
        marks = {}
        for one in audiences:
            named = asked.filter(pl.col("tenant_id") == one.tenant)["purpose"]
            marks[mark_of(one)] = _mark(digest_of(one, known[one.tenant], named), now)
        return cls(known, asked, marks, now)

    def found(
        self, events: pl.LazyFrame, tenant: str, audiences: Sequence[Audience]
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """`MEMBERS` of audiences of a tenant, and tenant_id, user_id of all customers whom events count for."""
        found = members(events, audiences, self.facts.get(tenant, Facts()), self.now.date())
        refused = refusing(events, self.purposes.filter(pl.col("tenant_id") == tenant))
        held = refused.select("tenant_id", user_id="customer_id").collect(engine="streaming")
        customers = events.select("tenant_id", user_id="customer_id").drop_nulls().unique()
        return found.join(held, on=CUSTOMER, how="anti"), customers.collect(engine="streaming")


def all_events(at: EventsAt, tenant: str, folder: Path) -> pl.LazyFrame:
    """All events of a tenant, counted, on disk in a folder of their own: `core.audiences.members.NEEDED`."""
    file = folder / "events.parquet"
    events = at.scan(ASKED).filter(pl.col("tenant_id") == tenant)
    at.counted(events).select(NEEDED).sink_parquet(file, compression="lz4")
    return pl.scan_parquet(file)


def mark_of(audience: Audience) -> str:
    """Under which name a commit notes what an audience was worked out by."""
    return f"audience:{audience.tenant}/{audience.audience}"


def seen_of(audience: Audience) -> str:
    """Under which name a commit notes that it worked an audience out."""
    return f"{mark_of(audience)}:seen"


def _mark(digest: str, now: datetime) -> int:
    said = f"{digest} {now.date().isoformat()}"
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big") % NUMBERS


def _removed(rows: pl.DataFrame) -> Changes:
    return Changes(rows.clear(), rows.clear(), rows.select(AUDIENCE_MEMBERS.key))


def _together(parts: Sequence[Changes]) -> Changes:
    """Changes of different audiences as one; what is removed is not altered, too."""
    key, nothing = list(AUDIENCE_MEMBERS.key), AUDIENCE_MEMBERS.empty()
    removed = pl.concat([nothing.select(key), *(one.deleted for one in parts)]).unique()
    updated = pl.concat([nothing, *(one.updated for one in parts)]).join(removed, on=key, how="anti")
    return Changes(pl.concat([nothing, *(one.inserted for one in parts)]), updated, removed)


def _by_audience(rows: pl.DataFrame) -> dict[tuple[str, str], int]:
    counts = rows.group_by("tenant_id", "audience").len().sort("tenant_id", "audience")
    return {(tenant, name): count for tenant, name, count in counts.iter_rows()}
