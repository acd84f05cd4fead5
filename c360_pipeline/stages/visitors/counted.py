"""The archived events with whom they count for, at a version of the archive and of what people decided."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.tables import EVENTS, VISITOR_DECISIONS
from c360_pipeline.core.contract.layout import COLUMNS
from c360_pipeline.core.visitors.counting import NEEDED, VISITOR, apart, counted
from c360_pipeline.core.visitors.groups import with_groups
from c360_pipeline.core.visitors.said import refusing
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.delta.versions import BEFORE_ALL

PROJECTED = COLUMNS
"""Columns of events that graph and tables are made of."""


@dataclass(frozen=True)
class EventsAt:
    """Events of a moment, as they counted then.

    Attributes:
        lake: holds them.
        events: number of the version of the events; None for the newest.
        decisions: number of the version of `VISITOR_DECISIONS`; None for the newest, `BEFORE_ALL` for none.
    """

    lake: Lake
    events: int | None = None
    decisions: int | None = None

    @classmethod
    def now(cls, lake: Lake) -> "EventsAt":
        """As they are now: what comes meanwhile is not in it."""
        return cls.of(lake, *(lake.versions.version(table.name) for table in (EVENTS, VISITOR_DECISIONS)))

    @classmethod
    def of(cls, lake: Lake, events: Version | None, decisions: Version | None) -> "EventsAt":
        """As they are at versions; None where there was no such table yet."""
        return cls(lake, *(version.number if version else BEFORE_ALL for version in (events, decisions)))

    def scan(self, columns: Sequence[str]) -> pl.LazyFrame:
        """Columns of the events as they are in the archive."""
        return self.lake.scan(EVENTS, self.events).select(columns)

    def counted(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Some of these events as `core.visitors.counting.counted` gives them; all of each visitor among them.

        Where attributes are among their columns, with the groups of `core.visitors.groups.with_groups`.
        """
        whose = counted(rows, self.lake.scan(VISITOR_DECISIONS, self.decisions))
        return with_groups(whose) if "attrs" in rows.collect_schema() else whose

    def of_tenants(self, tenants: Sequence[str], columns: Sequence[str], purposes: pl.DataFrame) -> pl.LazyFrame:
        """Columns of the events of tenants: `user_id` is whom an event counts for, `session_id` may be made by gaps.

        Args:
            tenants: whose events.
            columns: which.
            purposes: tenant_id, purpose. What customers did who refused one is left out.
        """
        needed = list(dict.fromkeys([*NEEDED, *columns, *(["consent"] if purposes.height else [])]))
        rows = self.counted(self.scan(needed).filter(pl.col("tenant_id").is_in(list(tenants))))
        if purposes.height:
            rows = rows.join(refusing(rows, purposes), on=["tenant_id", "customer_id"], how="anti")
        return rows.with_columns(user_id="customer_id").select(columns)

    def apart(self, visitors: pl.DataFrame | None = None) -> pl.DataFrame:
        """Events of visitors that are no tie, as `core.visitors.counting.apart` gives them.

        Args:
            visitors: tenant_id, anonymous_id of those that are asked for; all where nothing is said.
        """
        events = self.scan(NEEDED).filter(pl.col("anonymous_id").is_not_null())
        if visitors is not None:
            events = events.join(visitors.lazy(), on=VISITOR, how="semi")
        return apart(self.counted(events)).collect(engine="streaming")

    def visitors_of(self, tenant: str) -> pl.DataFrame:
        """tenant_id, anonymous_id of the visitors of a tenant."""
        events = self.scan(VISITOR).filter(pl.col("tenant_id") == tenant)
        return events.drop_nulls().unique().collect(engine="streaming")
