"""Audiences of a tenant, for API, pages and commands: who is in them, how they grew, and where they are sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl

from c360_pipeline.core.audiences.definition import Audience, leaves_of, read_audience
from c360_pipeline.core.audiences.told import told
from c360_pipeline.core.catalog.audience_tables import (
    AUDIENCE_DEAD_LETTERS,
    AUDIENCE_DELIVERIES,
    AUDIENCE_MEMBERS,
    IS_MEMBER,
)
from c360_pipeline.errors import ConfigError
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.audiences import AudienceRows, AudienceVersion

FLOW_DAYS = 30


@dataclass(frozen=True)
class AudienceSummary:
    """An audience in a list.

    Attributes:
        name: of the audience.
        title: for people; its name where there is none.
        who: its condition in words; why its document can't be read, where it can't.
        is_active: whether anybody can be in it.
        version: of its document.
        members: that it has.
        entered: members that entered within the last 7 days.
        left: members that left within the last 7 days.
        destinations: that its document names.
    """

    name: str
    title: str
    who: str
    is_active: bool
    version: int
    members: int
    entered: int
    left: int
    destinations: int


@dataclass(frozen=True)
class FlowDay:
    """A UTC day of an audience.

    Attributes:
        day: which.
        members: at its end.
        entered: on it.
        left: on it.
    """

    day: date
    members: int
    entered: int
    left: int


class Audiences:
    """The audiences of a tenant.

    Args:
        lake: with members and deliveries.
        rows: with documents.
        tenant_id: whose.
    """

    def __init__(self, lake: Lake, rows: AudienceRows, tenant_id: str) -> None:
        self._lake = lake
        self._rows = rows
        self._tenant_id = tenant_id

    def summaries(self, now: datetime) -> list[AudienceSummary]:
        """All of them, by name."""
        since = now - timedelta(days=7)
        counts = self._members().group_by("audience").agg(
            members=IS_MEMBER.sum(),
            entered=(pl.col("entered_at") >= since).sum(),
            left=(pl.col("left_at") >= since).sum(),
        )  # fmt: skip
        known = {row["audience"]: row for row in counts.collect(engine="streaming").to_dicts()}
        none = {"members": 0, "entered": 0, "left": 0}
        return [_summary(one, known.get(one.name, none)) for one in self._rows.newest(self._tenant_id)]

    def version(self, name: str) -> AudienceVersion | None:
        """The document of an audience; None where there is no such audience."""
        return next((one for one in self._rows.newest(self._tenant_id) if one.name == name), None)

    def versions(self, name: str) -> Sequence[AudienceVersion]:
        """All versions of an audience's document, the newest first."""
        return [one for one in self._rows.versions(self._tenant_id) if one.name == name][::-1]

    def flow(self, name: str, now: datetime, days: int = FLOW_DAYS) -> list[FlowDay]:
        """How an audience grew, day by day, up to today."""
        held = self._members(name).select("entered_at", "left_at").collect(engine="streaming")
        today = now.astimezone(UTC).date()
        found = []
        for day in (today - timedelta(days=back) for back in range(days - 1, -1, -1)):
            start = datetime(day.year, day.month, day.day, tzinfo=UTC)
            end = start + timedelta(days=1)
            entered, left = (
                held[column].is_between(start, end, closed="left").sum() for column in ("entered_at", "left_at")
            )
            inside = held.filter((pl.col("entered_at") < end) & (IS_MEMBER | (pl.col("left_at") >= end)))
            found.append(FlowDay(day, inside.height, int(entered), int(left)))
        return found

    def members(self, name: str, limit: int, after: str | None = None) -> tuple[int, list[dict[str, Any]]]:
        """How many members an audience has, and the first of them by user id: user_id, entered_at.

        Args:
            name: of the audience.
            limit: members at most.
            after: user id; only later ones are told.
        """
        inside = self._members(name).filter(IS_MEMBER).select("user_id", "entered_at")
        told_from = inside.filter(pl.col("user_id") > after) if after is not None else inside
        rows = told_from.sort("user_id").head(limit).collect(engine="streaming")
        return int(inside.select(pl.len()).collect(engine="streaming").item()), rows.to_dicts()

    def deliveries(self, name: str) -> list[dict[str, Any]]:
        """Of each destination that was ever sent to, the newest delivery, all columns but tenant and audience."""
        rows = self._lake.scan(AUDIENCE_DELIVERIES).filter(self._is_mine(name)).drop("tenant_id", "audience")
        newest = rows.sort("started_at").group_by("destination").last().sort("destination")
        return newest.collect().to_dicts()

    def refused(self, name: str, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many changes destinations refused, and the newest of them, all columns but tenant and audience."""
        rows = self._lake.scan(AUDIENCE_DEAD_LETTERS).filter(self._is_mine(name)).drop("tenant_id", "audience")
        held = rows.sort("refused_at", "user_id", descending=[True, False]).collect(engine="streaming")
        return held.height, held.head(limit).to_dicts()

    def _members(self, name: str | None = None) -> pl.LazyFrame:
        mine = self._lake.scan(AUDIENCE_MEMBERS).filter(pl.col("tenant_id") == self._tenant_id)
        return mine if name is None else mine.filter(pl.col("audience") == name)

    def _is_mine(self, name: str) -> pl.Expr:
        return (pl.col("tenant_id") == self._tenant_id) & (pl.col("audience") == name)


def read_or_none(version: AudienceVersion) -> tuple[Audience | None, str]:
    """The audience of a version, and its condition in words; None and why, where this release can't read it."""
    try:
        audience = read_audience(version.document)
    except ConfigError as error:
        return None, str(error)
    return audience, told(audience.who)


def _summary(one: AudienceVersion, counts: dict[str, Any]) -> AudienceSummary:
    audience, who = read_or_none(one)
    return AudienceSummary(
        one.name, (audience.title if audience else "") or one.name, who, one.active_version is not None, one.version,
        counts["members"], counts["entered"], counts["left"], len(audience.deliver) if audience else 0,
    )  # fmt: skip


def parts_of(audience: Audience) -> dict[str, Audience]:
    """Each condition of an audience that joins no others, as an audience of its own, by what it says."""
    leaves = {told(leaf): leaf for leaf in leaves_of(audience.who)}
    prefix = "piece" if audience.audience.startswith("part-") else "part"
    return {
        text: audience.model_copy(update={"audience": f"{prefix}-{number}", "who": leaf, "deliver": {}})
        for number, (text, leaf) in enumerate(leaves.items())
    }
