"""What the nightly features found of a tenant, for API, pages and `c360 insights`: one declaration of each kind."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl
from neo4j.exceptions import DriverError, Neo4jError

from c360_pipeline.core.catalog.feature_tables import (
    ACCOUNT_VALUES,
    CUSTOMER_CHURN,
    CUSTOMER_MODELS,
    CUSTOMER_VALUES,
    DROP_OFFS,
    PATH_ANOMALIES,
    SUPPORT_INSIGHTS,
    USUAL_STEPS,
)
from c360_pipeline.core.catalog.recommendation_tables import RECOMMENDATION_HITS
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.features.account_values import LEFT
from c360_pipeline.core.features.paths import LEAST_DEVIATIONS
from c360_pipeline.core.privacy.purposes import Purpose
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.errors import UnavailableError
from c360_pipeline.stages.realtime.surprises import IS_AGREED, refusals_of
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.driver_values import Read, instant


@dataclass(frozen=True)
class Kind:
    """A kind of insight.

    Attributes:
        name: in commands and routes.
        title: for people.
        table: that has it.
        order: columns that rows are sorted by, and whether the highest come first.
        columns: that people are shown, with what they are called.
        none: what it means that there are none.
        only: rows that are told; all where it is None.
    """

    name: str
    title: str
    table: Table
    order: Mapping[str, bool]
    columns: Mapping[str, str]
    none: str
    only: pl.Expr | None = field(default=None, compare=False)


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "anomalies", "Sessions unlike the past", PATH_ANOMALIES, {"deviations": True, "session_id": False},
            {"user_id": "Customer", "started_at": "Began (UTC)", "path": "Path", "from_action": "Oddest step from",
             "to_action": "to", "probability": "Its probability", "deviations": "Deviations above the usual"},
            "No session of the last seven days is three standard deviations above the usual surprise.",
        ),
        Kind(
            "drop-offs", "Where sessions leave the funnel", DROP_OFFS, {"funnel": False, "step": False},
            {"funnel": "Funnel", "action": "Step", "next_action": "Next step", "sessions": "Sessions",
             "continued": "Went on", "drop_off_rate": "Left", "previous_rate": "Left before", "change": "Change",
             "deviations": "In standard errors"},
            "No session of the last seven days began the funnel.",
        ),
        Kind(
            "before-tickets", "What comes before a ticket", SUPPORT_INSIGHTS, {"lift_at_least": True, "path": False},
            {"path": "Path", "tickets_with_path": "Tickets after it", "tickets": "Tickets",
             "share_before_tickets": "Share before tickets", "share_elsewhere": "Share elsewhere",
             "lift": "Times as often", "lift_at_least": "At least"},
            "No path precedes three tickets and is more frequent before them than elsewhere, beyond chance.",
        ),
        Kind(
            "churn", "Accounts at risk", ACCOUNT_VALUES, {"churn_risk": True, "account_id": False},
            {"email": "Account", "plan": "Plan", "churn_risk": "Risk", "risk_level": "Level", "why": "Why",
             "monthly_value": "A month", "value_in_a_year": "In a year"},
            "The tenant has no accounts that have not left: accounts come from silos.",
            pl.col("risk_level") != LEFT,
        ),
        Kind(
            "leaving", "Customers who may not come back", CUSTOMER_CHURN, {"chance_to_leave": True, "user_id": False},
            {"user_id": "Customer", "last_seen": "Last seen (UTC)", "chance_to_leave": "Chance to leave",
             "level": "Level", "made_by": "By", "why": "Why"},
            "No customer was seen in the 84 days before the tenant's newest event.",
        ),
        Kind(
            "values", "Customers who bring most", CUSTOMER_VALUES,
            {"value_in_a_year": True, "revenue": True, "user_id": False},
            {"user_id": "Customer", "last_bought": "Last bought (UTC)", "purchases": "Days bought", "revenue": "Paid",
             "currency": "Currency", "chance_active": "Still buys", "purchases_in_a_year": "Days in a year",
             "value_in_a_year": "Worth in a year"},
            "Nobody bought anything: events with the action `purchase` do.",
        ),
        Kind(
            "recommended", "What came of recommendations", RECOMMENDATION_HITS,
            {"day": True, "version": False, "source": False},
            {"day": "Day (UTC)", "version": "Version", "source": "From", "customers": "Customers",
             "products": "Products", "clicked": "Viewed", "bought": "Bought", "hit_rate": "Customers with a hit",
             "is_complete": "Day is over"},
            "The API recommended nothing in the last 30 days: POST /recommend/products is what is measured.",
        ),
        Kind(
            "models", "How well customers are foreseen", CUSTOMER_MODELS, {"model": False, "measure": False},
            {"model": "Model", "measure": "Measure", "value": "Of the model", "baseline": "Of the rule",
             "cases": "Customers", "is_used": "Used"},
            "There is too little history for a model: 56 days and 50 who returned, or 84 and 50 who left.",
        ),
    )
}  # fmt: skip


NOW = Kind(
    "now", "Sessions unlike the past, as they happen", USUAL_STEPS, {},
    {"user_id": "Customer", "started_at": "Began (UTC)", "last_seen": "Last event (UTC)", "oddest_step": "Oddest step",
     "deviations": "Deviations above the usual"},
    "No session that was tracked or streamed in the last seven days is three standard deviations above the usual "
    "surprise, or the tenant has no past of a week to tell by.",
)  # fmt: skip
"""What the real-time path says of sessions, by what the table has of the past."""
READ_SURPRISING = Statement(f"""
    MATCH (s:Session {{tenant_id: $tenant_id}}) WHERE s.deviations >= $least AND {IS_AGREED}
    WITH collect(s) AS found
    UNWIND found AS s
    WITH s, size(found) AS total ORDER BY s.last_seen DESC, s.id LIMIT $limit
    OPTIONAL MATCH (u:User {{tenant_id: $tenant_id}})-[:HAS_SESSION]->(s)
    WITH s, total, min(u.id) AS user_id
    RETURN s.id AS session_id, user_id, s.first_seen AS started_at, s.last_seen AS last_seen, s.surprise AS surprise,
           s.deviations AS deviations, s.oddest_step AS oddest_step, total
    ORDER BY last_seen DESC, session_id
""")


@dataclass(frozen=True)
class Found:
    """Insights of a kind.

    Attributes:
        kind: which.
        changed_at: when the table changed last; None where it was never made.
        rows: the first of them, all columns but the tenant.
        total: how many there are.
        fault: why they are not known; empty where they are.
    """

    kind: Kind
    changed_at: datetime | None
    rows: list[dict[str, Any]]
    total: int
    fault: str = ""

    @property
    def why_none(self) -> str:
        """What it means that there are none, and what to do."""
        if self.fault:
            return self.fault
        if self.changed_at is None:
            return f"Not made yet: the nightly features write `{self.kind.table.name}`."
        return self.kind.none


def insights(lake: Lake, tenant_id: str, name: str, limit: int) -> Found:
    """What was found of a tenant, the most telling first.

    Args:
        lake: with the tables of features.
        tenant_id: whose.
        name: of `KINDS`.
        limit: rows at most.
    """
    kind = KINDS[name]
    changed_at = lake.versions.changed_at(kind.table)
    if changed_at is None:
        return Found(kind, None, [], 0)
    rows = lake.scan(kind.table).filter(pl.col("tenant_id") == tenant_id).drop("tenant_id")
    told = rows if kind.only is None else rows.filter(kind.only)
    # Those that are equal are in the order of their keys, so that the order is always the same.
    order = {**kind.order, **{name: False for name in kind.table.key[1:] if name not in kind.order}}
    ordered = told.sort([*order], descending=[*order.values()], nulls_last=True).head(limit)
    total = int(told.select(pl.len()).collect().item())
    return Found(kind, changed_at, ordered.collect().to_dicts(), total)


def all_insights(read: Callable[[str], Found]) -> list[Found]:
    """Insights of every kind, those of now first; while the graph is away, the lake has all the others.

    Args:
        read: those of one kind, by name.
    """
    try:
        now = read(NOW.name)
    except (UnavailableError, DriverError, Neo4jError):
        now = Found(NOW, None, [], 0, "The graph does not answer: look again in a moment.")
    return [now, *map(read, KINDS)]


def surprising_now(lake: Lake, read: Read, tenant_id: str, limit: int, purposes: Collection[Purpose]) -> Found:
    """Sessions that the real-time path found to be unlike the past, the newest first.

    Args:
        lake: with what is usual.
        read: asks the graph.
        tenant_id: whose.
        limit: sessions at most.
        purposes: that people may have refused; who did is left out at once.
    """
    rows = read(
        READ_SURPRISING, tenant_id=tenant_id, least=LEAST_DEVIATIONS, limit=limit,
        refusals=refusals_of(purposes, tenant_id),
    )  # fmt: skip
    total = rows[0]["total"] if rows else 0
    times = ("started_at", "last_seen")
    told = [{name: instant(v) if name in times else v for name, v in row.items() if name != "total"} for row in rows]
    return Found(NOW, lake.versions.changed_at(USUAL_STEPS), told, total)
