"""Members sent to where a document says: each change once, what is refused set aside, all of it accounted.

What a destination has is kept, member by member, and noted batch by batch, before it is sent and after it was answered:
a delivery that was broken off goes on where it was, and sends the last batch again at most, under the same ids.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import polars as pl

from c360_pipeline.core.audiences.changes import (
    ENTERED,
    ENTERING,
    HAS,
    IN_DOUBT,
    LEFT,
    Due,
    dead_letters,
    due,
)
from c360_pipeline.core.audiences.definition import Audience, read_audience
from c360_pipeline.core.catalog.audience_tables import (
    AUDIENCE_DEAD_LETTERS,
    AUDIENCE_DELIVERED,
    AUDIENCE_DELIVERIES,
    AUDIENCE_MEMBERS,
    IS_MEMBER,
)
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import USER_CONSENTS
from c360_pipeline.core.projection.graph import INSTANT
from c360_pipeline.core.sources.mapping import DENIED
from c360_pipeline.errors import C360Error, ConfigError
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.audiences import AudienceVersion

Alone = AbstractContextManager[None]
BATCH = 500
"""Changes of a batch."""


@dataclass(frozen=True)
class Sent:
    """What became of a batch.

    Attributes:
        refused: by user, why the destination will not have the change.
    """

    refused: Mapping[str, str] = field(default_factory=dict)


class Sink(Protocol):
    """Where members go."""

    def prepare(self, members: pl.DataFrame) -> None:
        """Called before changes are sent.

        Args:
            members: user_id, entered_at of all whom the destination has when it has taken every change.
        """

    def send(self, changes: pl.DataFrame) -> Sent:
        """Take changes (`core.audiences.changes.CHANGES`), or some of them; those that it took before change nothing.

        Raises:
            C360Error: the destination does not answer, or answers nobody: nothing of the batch counts as taken.
        """


class Sinks(Protocol):
    """Opens destinations."""

    def __call__(self, audience: Audience, destination: str) -> AbstractContextManager[Sink]:
        """A destination of an audience, to be entered.

        Raises:
            C360Error: it can't be had.
        """


@dataclass(frozen=True)
class Delivery:
    """What a delivery did.

    Attributes:
        tenant_id: whose customers.
        audience: its name.
        destination: its name in the audience's document.
        entered: members that the destination took.
        left: members that it took off.
        refused: changes that it refused.
        waiting: changes that were not sent.
        withheld: members who refused its purpose.
        dead: changes that it refused before.
        members: that it has now.
        error: why changes wait; empty where none do.
    """

    tenant_id: str
    audience: str
    destination: str
    entered: int
    left: int
    refused: int
    waiting: int
    withheld: int
    dead: int
    members: int
    error: str

    @property
    def name(self) -> str:
        """The destination, with its audience and tenant."""
        return f"{self.tenant_id}/{self.audience}/{self.destination}"

    @property
    def told(self) -> str:
        """What it did, in a line."""
        said = f"{self.entered:,} entered, {self.left:,} left, {self.members:,} members now"
        more = [(self.withheld, "withheld"), (self.refused + self.dead, "refused"), (self.waiting, "waiting")]
        return ", ".join([said, *(f"{count:,} {name}" for count, name in more if count)])


class Deliveries:
    """Sends members.

    Args:
        lake: holds members and what was sent.
        sinks: opens destinations.
    """

    def __init__(self, lake: Lake, sinks: Sinks) -> None:
        self._lake = lake
        self._sinks = sinks

    def deliver(self, audience: Audience, destination: str, *, is_ended: bool = False) -> Delivery:
        """Bring one destination to who is a member now. Nobody else may deliver to it meanwhile.

        What goes wrong is in the result: changes that wait are sent by the next delivery.

        Args:
            audience: whose document has the destination.
            destination: its name there.
            is_ended: whether it is to have nobody any more.
        """
        started = datetime.now(UTC)
        names = {"tenant_id": audience.tenant, "audience": audience.audience, "destination": destination}
        asked = self._due(audience, destination, started, is_ended=is_ended)
        if asked.settled.height:
            self._remove(AUDIENCE_DEAD_LETTERS, asked.settled, names)
        counts, error, done = {ENTERED: 0, LEFT: 0, "refused": 0}, "", 0
        if asked.changes.height or self._is_unheard_of(names):
            try:
                with self._sinks(audience, destination) as sink:
                    sink.prepare(asked.members)
                    for batch in _batches(asked.changes):
                        self._doubt(batch, names)
                        sent = sink.send(batch.drop("told_at"))
                        self._note(batch, sent, names)
                        done += batch.height
                        taken = batch.filter(~pl.col("user_id").is_in([*sent.refused]))
                        for change in (ENTERED, LEFT):
                            counts[change] += taken.filter(pl.col("change") == change).height
                        counts["refused"] += batch.height - taken.height
            except C360Error as failed:
                error = str(failed)
        found = Delivery(
            **names, entered=counts[ENTERED], left=counts[LEFT], refused=counts["refused"],
            waiting=asked.changes.height - done, withheld=asked.withheld, dead=asked.dead,
            members=self._of(AUDIENCE_DELIVERED, names).filter(pl.col("state") != ENTERING).height, error=error,
        )  # fmt: skip
        self._account(found, started)
        return found

    def replay(self, tenant_id: str, audience: str, destination: str) -> int:
        """Let the next delivery send again what a destination refused; returns how many changes that are."""
        names = {"tenant_id": tenant_id, "audience": audience, "destination": destination}
        letters = self._of(AUDIENCE_DEAD_LETTERS, names)
        self._remove(AUDIENCE_DEAD_LETTERS, letters.select("user_id"), names)
        return letters.height

    def prepare(self, audience: Audience, destination: str) -> None:
        """Let a destination that holds all members at once hold who is one now; nothing else is sent."""
        asked = self._due(audience, destination, datetime.now(UTC), is_ended=False)
        with self._sinks(audience, destination) as sink:
            sink.prepare(asked.members)

    def _due(self, audience: Audience, destination: str, now: datetime, *, is_ended: bool) -> Due:
        names = {"tenant_id": audience.tenant, "audience": audience.audience, "destination": destination}
        return due(
            "\x1f".join(names.values()), self._members(audience, is_ended=is_ended),
            self._of(AUDIENCE_DELIVERED, names), self._of(AUDIENCE_DEAD_LETTERS, names),
            self._refusing(audience.tenant, audience.deliver[destination].purpose), now,
        )  # fmt: skip

    def all(
        self, active: Sequence[Audience], versions: Sequence[AudienceVersion], alone: Callable[[str], Alone],
        unread: Collection[str] = (),
    ) -> Iterator[Delivery]:  # fmt: skip
        """Bring every destination to who is a member now, one after the other.

        A destination that its document does not name any more, or whose audience was ended, is told that all left.

        Args:
            active: audiences with members.
            versions: of all documents that there ever were, the oldest first.
            alone: keeps others away from a destination, by its name.
            unread: audiences, by tenant/name, whose documents can't be read: their destinations are left alone.
        """
        named = {(one.tenant, one.audience, name): one for one in active for name in one.deliver}
        for key, audience in sorted(named.items(), key=lambda pair: pair[0]):
            with alone("/".join(key)):
                yield self.deliver(audience, key[2])
        for key in held_by_destinations(self._lake):
            if key not in named and f"{key[0]}/{key[1]}" not in unread:
                yield self._ended(versions, key, alone)

    def _ended(
        self, versions: Sequence[AudienceVersion], key: tuple[str, str, str], alone: Callable[[str], Alone]
    ) -> Delivery:
        """Tell a destination that all left, by the newest document that says how to reach it."""
        audience = newest_with(versions, key)
        if audience is None:
            return Delivery(*key, 0, 0, 0, 0, 0, 0, 0, "no document that this release can read says how to reach it")
        with alone("/".join(key)):
            return self.deliver(audience, key[2], is_ended=True)

    def _members(self, audience: Audience, *, is_ended: bool) -> pl.DataFrame:
        rows = self._lake.scan(AUDIENCE_MEMBERS).filter(
            (pl.col("tenant_id") == audience.tenant)
            & (pl.col("audience") == audience.audience)
            & IS_MEMBER
            & (not is_ended)
        )
        return rows.select("user_id", "entered_at").collect(engine="streaming")

    def _of(self, table: Table, names: Mapping[str, str]) -> pl.DataFrame:
        is_meant = pl.all_horizontal(pl.col(name) == value for name, value in names.items())
        return self._lake.scan(table).filter(is_meant).drop([*names]).collect(engine="streaming")

    def _refusing(self, tenant_id: str, purpose: str | None) -> pl.DataFrame:
        rows = self._lake.scan(USER_CONSENTS).filter(
            (pl.col("tenant_id") == tenant_id)
            & (pl.col("purpose") == pl.lit(purpose, pl.String))
            & pl.col("until").is_null()
            & (pl.col("state") == DENIED)
        )
        return rows.select("user_id").unique().collect(engine="streaming")

    def _is_unheard_of(self, names: Mapping[str, str]) -> bool:
        """Whether nothing was ever sent there: an audience that nobody is in should be seen to be empty, too."""
        return self._of(AUDIENCE_DELIVERIES, names).is_empty()

    def _doubt(self, batch: pl.DataFrame, names: Mapping[str, str]) -> None:
        """Note that changes are being sent: until they are answered, the destination may have taken them."""
        self._keep(batch.with_columns(state=pl.col("change").replace(IN_DOUBT)), names)

    def _note(self, batch: pl.DataFrame, sent: Sent, names: Mapping[str, str]) -> None:
        """Keep what became of a batch."""
        now = pl.lit(datetime.now(UTC), INSTANT)
        reasons = pl.DataFrame(
            [*sent.refused.items()], schema={"user_id": pl.String, "reason": pl.String}, orient="row"
        )
        refused = batch.join(reasons, on="user_id")
        self._lake.commits.merge(AUDIENCE_DEAD_LETTERS, dead_letters(refused, dict(names), now))
        is_taken = ~pl.col("user_id").is_in([*sent.refused])
        # Who was taken is there, and so is who was refused to go; the others are not.
        is_there = (pl.col("change") == ENTERED) == is_taken
        self._keep(batch.filter(is_there).with_columns(state=pl.lit(HAS)), names)
        self._remove(AUDIENCE_DELIVERED, batch.filter(~is_there).select("user_id"), names)

    def _keep(self, rows: pl.DataFrame, names: Mapping[str, str]) -> None:
        named = rows.with_columns(**{name: pl.lit(value) for name, value in names.items()})
        self._lake.commits.merge(AUDIENCE_DELIVERED, named.select(list(AUDIENCE_DELIVERED.columns)))

    def _remove(self, table: Table, users: pl.DataFrame, names: Mapping[str, str]) -> None:
        keys = users.with_columns(**{name: pl.lit(value) for name, value in names.items()}).select(table.key)
        self._lake.commits.merge(table, table.empty(), keys)

    def _account(self, found: Delivery, started: datetime) -> None:
        """Keep what a delivery did, where it did or met something."""
        names = {"tenant_id": found.tenant_id, "audience": found.audience, "destination": found.destination}
        before = self._of(AUDIENCE_DELIVERIES, names).sort("started_at").tail(1)
        row = {**vars(found), "started_at": started, "ended_at": datetime.now(UTC)}
        kept = ("withheld", "dead", "members", "waiting", "error")
        is_same = before.height and all(before[name][0] == row[name] for name in kept)
        if found.entered or found.left or found.refused or not is_same:
            self._lake.commits.insert_new(
                AUDIENCE_DELIVERIES, pl.DataFrame([row], schema=AUDIENCE_DELIVERIES.empty().schema)
            )


def _batches(changes: pl.DataFrame) -> Iterator[pl.DataFrame]:
    yield from changes.iter_slices(BATCH)


def held_by_destinations(lake: Lake, users: pl.DataFrame | None = None) -> list[tuple[str, str, str]]:
    """Tenant, audience and destination of those that have, may have or refused somebody.

    Args:
        lake: holds what was sent.
        users: tenant_id, user_id of those who are asked for; all where nothing is said.
    """
    tables = (AUDIENCE_DELIVERED, AUDIENCE_DEAD_LETTERS)
    held = pl.concat([lake.scan(table).select(*_DESTINATION, "user_id") for table in tables])
    if users is not None:
        held = held.join(users.lazy(), on=["tenant_id", "user_id"], how="semi")
    return held.select(_DESTINATION).unique().collect(engine="streaming").sort(pl.all()).rows()


def newest_with(versions: Sequence[AudienceVersion], name: tuple[str, str, str]) -> Audience | None:
    """The newest document of an audience that names a destination; None where none does that can be read."""
    for one in reversed(versions):
        if (one.tenant_id, one.name) == name[:2] and name[2] in one.document.get("deliver", {}):
            with suppress(ConfigError):
                return read_audience(one.document)
    return None


def tell(
    lake: Lake, sinks: Sinks | None, versions: Sequence[AudienceVersion], name: tuple[str, str, str],
    alone: Callable[[str], Alone],
) -> str:  # fmt: skip
    """Bring one destination to who is a member now; returns why it does not know that somebody left, empty if it does.

    Args:
        lake: holds members and what was sent.
        sinks: opens destinations; None where none is told.
        versions: of all documents, the oldest first.
        name: tenant, audience and destination.
        alone: keeps others away from a destination, by its name.
    """
    audience = newest_with(versions, name)
    if sinks is None or audience is None:
        return "no document says how to reach it."
    active = {(one.tenant_id, one.name): one for one in versions if one.version == one.active_version}
    in_force = active.get(name[:2])
    is_ended = in_force is None or name[2] not in in_force.document.get("deliver", {})
    try:
        with alone("/".join(name)):
            done = Deliveries(lake, sinks).deliver(audience, name[2], is_ended=is_ended)
    except C360Error as error:
        return str(error)
    return done.error or (f"it refused {done.refused + done.dead} changes." if done.refused + done.dead else "")


_DESTINATION = ("tenant_id", "audience", "destination")
