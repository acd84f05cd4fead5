"""What stitching said at some instant, from its log."""

from datetime import datetime
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.tables import EVENTS, JOURNEY_LOG
from c360_pipeline.core.stitching import log as log
from c360_pipeline.core.stitching.statuses import LINKED
from c360_pipeline.stores.delta.lake import Lake


class JourneyHistory:
    """The past of journeys.

    Args:
        lake: holds the log and the archive.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def tenants_of(self, event_id: str) -> list[str]:
        """Tenants that ever had an event of this id."""
        rows = self._lake.scan(JOURNEY_LOG).filter((pl.col("kind") == log.EVENT) & (pl.col("event_id") == event_id))
        return sorted(rows.select("tenant_id").unique().collect(engine="streaming")["tenant_id"])

    def journey_at(self, tenant_id: str, event_id: str, at: datetime) -> list[dict[str, Any]]:
        """The events of the journey that an event was in at an instant, by time.

        Args:
            tenant_id: whose.
            event_id: of any event of the journey.
            at: UTC; what was committed up to then counts.

        Returns:
            As `Graph.journey_of_event`; what the archive has lost since is null. Empty when the event was not stitched.
        """
        rows = self._lake.scan(JOURNEY_LOG).filter((pl.col("tenant_id") == tenant_id) & (pl.col("committed_at") <= at))
        merged = log.aliases(rows)
        assigned = log.events_now(rows, merged).collect(engine="streaming")
        journey = assigned.filter(pl.col("event_id") == event_id)["journey_id"]
        members = assigned.filter(pl.col("journey_id").is_in(journey.implode()))
        pairs = log.event_keys_now(rows).filter(pl.col("status") == LINKED)
        key_types = pairs.group_by("event_id").agg(key_types=pl.col("key_type").unique().sort())
        events = self._lake.scan(EVENTS).filter(pl.col("tenant_id") == tenant_id)
        found = (
            members.lazy()
            .join(key_types, on="event_id", how="left")
            .join(events, on=["tenant_id", "event_id"], how="left")
            .select(
                "journey_id", "event_id", "ts", "action", "user_id", "session_id", product_id="item_id",
                product_name=pl.lit(None, pl.String), key_types=pl.col("key_types").fill_null([]),
            )
            .sort("ts", "event_id")
        )  # fmt: skip
        return found.collect(engine="streaming").to_dicts()

    def ids(self, tenant_id: str) -> pl.DataFrame:
        """Every id that a tenant's journeys had, and where it led from when to when.

        Returns:
            journey_id, leads_to, effective_at, superseded_at (null: until today), is_current.
        """
        rows = self._lake.scan(JOURNEY_LOG).filter(pl.col("tenant_id") == tenant_id)
        founded = rows.filter(pl.col("kind") == log.JOURNEY).group_by("journey_id").agg(
            effective_at=pl.col("committed_at").min()
        ).with_columns(leads_to="journey_id")  # fmt: skip
        moved = rows.filter(pl.col("kind") == log.ALIAS).select(
            "journey_id", effective_at="committed_at", leads_to=pl.coalesce("other_journey_id", "journey_id")
        )
        living = log.living_journeys(rows, log.ended_journeys(rows, log.aliases(rows))).select("journey_id")
        spans = pl.concat([founded.select("journey_id", "leads_to", "effective_at"), moved.select(
            "journey_id", "leads_to", "effective_at")]).unique()  # fmt: skip
        later = pl.col("effective_at").shift(-1).over("journey_id", order_by="effective_at")
        dated = spans.with_columns(superseded_at=later)
        leads = dated.join(living.with_columns(lives=pl.lit(value=True)), left_on="leads_to", right_on="journey_id",
                           how="left")  # fmt: skip
        is_current = pl.col("superseded_at").is_null() & pl.col("lives").fill_null(value=False)
        return leads.with_columns(is_current=is_current).drop("lives").sort("journey_id", "effective_at").collect()
