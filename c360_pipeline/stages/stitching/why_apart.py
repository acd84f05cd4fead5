"""Why two events are in two journeys though they have something in common."""

import polars as pl

from c360_pipeline.core.catalog.tables import EVENT_JOURNEY, EVENT_KEYS, JOURNEY_CONFLICTS
from c360_pipeline.core.stitching.statuses import BLOCKED, QUARANTINED, REFUSED_SIZE, REFUSED_UNIQUE
from c360_pipeline.stages.visitors.counted import EventsAt
from c360_pipeline.stores.delta.lake import Lake

REASONS = {
    REFUSED_UNIQUE: "the two journeys are of two people (is_unique in correlation_key_rules)",
    REFUSED_SIZE: "together they would have more keys than journey_limits allows",
}
STATUSES = {
    QUARANTINED: "it met more keys than max_partners allows, and links nothing",
    BLOCKED: "it is on the list of blocked keys, and links nothing",
}


def why_apart(lake: Lake, tenant_id: str, first: str, second: str) -> list[str]:
    """Sentences that say which ties between two events, or between their journeys, do not count.

    Args:
        lake: holds the tables of journeys and the archive.
        tenant_id: whose events.
        first: id of an event.
        second: id of another.
    """
    ends = [first, second]
    return [
        *_refused_ties(lake, tenant_id, ends),
        *_keys_that_link_nothing(lake, tenant_id, ends),
        *_visitors(lake, tenant_id, ends),
    ]


def _refused_ties(lake: Lake, tenant_id: str, ends: list[str]) -> list[str]:
    of_tenant = pl.col("tenant_id") == tenant_id
    found = lake.scan(EVENT_JOURNEY).filter(of_tenant & pl.col("event_id").is_in(ends))
    journeys = found.select("journey_id").unique().collect(engine="streaming")["journey_id"].implode()
    one, other = pl.col("journey_id"), pl.col("refused_journey_id")
    between = one.is_in(journeys) & other.is_in(journeys) & (one != other)
    rows = lake.scan(JOURNEY_CONFLICTS).filter(of_tenant & between)
    return [
        f"{key_type}:{key_hash} of event {event_id} does not link them: {REASONS.get(reason, reason)}."
        for event_id, key_type, key_hash, reason in rows.select("event_id", "key_type", "key_hash", "reason")
        .sort("event_id", "key_type").collect(engine="streaming").iter_rows()
    ]  # fmt: skip


def _keys_that_link_nothing(lake: Lake, tenant_id: str, ends: list[str]) -> list[str]:
    idle = pl.col("event_id").is_in(ends) & pl.col("status").is_in(list(STATUSES))
    rows = lake.scan(EVENT_KEYS).filter((pl.col("tenant_id") == tenant_id) & idle)
    shared = rows.group_by("key_type", "key_hash", "status").agg(pl.col("event_id").n_unique())
    both = shared.filter(pl.col("event_id") == len(ends)).sort("key_type", "key_hash").collect(engine="streaming")
    return [
        f"Both have {key_type}:{key_hash}: {STATUSES[status]}."
        for key_type, key_hash, status in both.select("key_type", "key_hash", "status").iter_rows()
    ]


def _visitors(lake: Lake, tenant_id: str, ends: list[str]) -> list[str]:
    at = EventsAt.now(lake)
    events = at.scan(["tenant_id", "event_id", "anonymous_id"]).filter(pl.col("tenant_id") == tenant_id)
    seen = events.filter(pl.col("event_id").is_in(ends)).drop_nulls().collect(engine="streaming")
    if seen.height < len(ends) or seen["anonymous_id"].n_unique() > 1:
        return []
    if at.apart(seen.select("tenant_id", "anonymous_id").unique()).is_empty():
        return []
    visitor = seen["anonymous_id"][0]
    return [
        f"Both are of the visitor {visitor}, which links nothing: it was seen with several users, or is split. What it "
        f"did counts for who logged in next in the same session: `c360 visitor show {visitor}`."
    ]
