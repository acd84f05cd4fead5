"""What people decide about visitors; graph and tables follow by difference."""

from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from c360_pipeline.core.catalog.tables import EVENTS, VISITOR_DECISIONS, VISITOR_USER
from c360_pipeline.core.visitors.counting import SESSION_GAP, SPLIT
from c360_pipeline.errors import ConfigError
from c360_pipeline.stores.delta.lake import Lake

LONGEST_GAP_MINUTES = 24 * 60


@dataclass(frozen=True)
class Visitor:
    """What is known of a visitor.

    Attributes:
        tenant_id: whose.
        anonymous_id: as producers know it.
        users: that it was named with, by how many events: user_id, events.
        events: of it, of which so many without a user.
        anonymous_events: these.
        user_id: the user whom it counts for; None where there is none, or several.
        is_split: whether a person decided that it counts for nobody.
    """

    tenant_id: str
    anonymous_id: str
    users: dict[str, int]
    events: int
    anonymous_events: int
    user_id: str | None
    is_split: bool


class Decisions:
    """Decisions of a lake.

    Args:
        lake: holds them.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def visitor(self, anonymous_id: str, tenant: str | None) -> Visitor:
        """What is known of a visitor.

        Raises:
            ConfigError: there is no such visitor, or several tenants have it.
        """
        lake, is_asked = self._lake, pl.col("anonymous_id") == anonymous_id
        events = lake.scan(EVENTS).filter(is_asked).select("tenant_id", "user_id").collect(engine="streaming")
        tenants = sorted(name for name in events["tenant_id"].unique() if tenant in (None, name))
        if not tenants:
            raise ConfigError(f"No event{f' of {tenant}' if tenant else ''} has the anonymous id {anonymous_id!r}.")
        if len(tenants) > 1:
            raise ConfigError(f"{', '.join(tenants)} have that visitor: choose one with --tenant.")
        (owner,) = tenants
        mine = events.filter(tenant_id=owner)
        users = dict(mine.drop_nulls().group_by("user_id").len().sort("user_id").iter_rows())
        of_visitor = is_asked & (pl.col("tenant_id") == owner)
        known = lake.scan(VISITOR_USER).filter(of_visitor).collect()["user_id"].to_list()
        split = lake.scan(VISITOR_DECISIONS).filter(of_visitor & (pl.col("kind") == SPLIT)).collect()
        return Visitor(
            owner, anonymous_id, users, mine.height, mine["user_id"].null_count(), known[0] if known else None,
            bool(split.height),
        )  # fmt: skip

    def split(self, visitor: Visitor, reason: str, *, undo: bool) -> None:
        """Let what a visitor did before logins count for nobody, or again for whom the rule says."""
        key = {"tenant_id": visitor.tenant_id, "kind": SPLIT, "anonymous_id": visitor.anonymous_id}
        self._note(key, None, reason, undo=undo)

    def set_gap(self, tenant: str, minutes: int | None, reason: str) -> None:
        """Set the minutes without an event that end a session which no producer named; None for those of all.

        Raises:
            ConfigError: they are no minutes of a day.
        """
        if minutes is not None and not 1 <= minutes <= LONGEST_GAP_MINUTES:
            raise ConfigError(f"A gap has 1 to {LONGEST_GAP_MINUTES} minutes, not {minutes}.")
        key = {"tenant_id": tenant, "kind": SESSION_GAP, "anonymous_id": ""}
        self._note(key, minutes, reason, undo=minutes is None)

    def _note(self, key: dict[str, str], minutes: int | None, reason: str, *, undo: bool) -> None:
        row = {**key, "minutes": minutes, "reason": reason, "decided_at": datetime.now(UTC)}
        rows = pl.DataFrame([row], schema=VISITOR_DECISIONS.empty().schema)
        nothing = VISITOR_DECISIONS.empty()
        if undo:
            self._lake.commits.merge(VISITOR_DECISIONS, nothing, rows.select(VISITOR_DECISIONS.key))
        else:
            self._lake.commits.merge(VISITOR_DECISIONS, rows)
