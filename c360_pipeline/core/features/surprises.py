"""How unlike the past a session is, while it goes on.

The nightly anomalies (`core.features.paths`) ask what a user and the community usually do; here all of a tenant's
customers are one crowd, so that a session is scored by its own events and a small table.

Source: "Real-time Customer-Journey Graph with Flink + Neo4j" (sudden path changes).
"""

import polars as pl

from c360_pipeline.core.catalog.feature_tables import USUAL_STEPS
from c360_pipeline.core.features.paths import DEVIATIONS, RECENT, scored_sessions, steps, usual_surprises

MOST_STEPS = 10_000
"""Different steps of a tenant that are kept, the most frequent; others count as never taken."""

_SESSION = ["tenant_id", "session_id"]
_STEP = ["tenant_id", "from_action", "to_action"]


def usual_steps(events: pl.DataFrame) -> pl.DataFrame:
    """`USUAL_STEPS` rows: of sessions that began more than seven days before the tenant's newest event.

    Tenants whose past has too few sessions of three steps to differ have none.

    Args:
        events: tenant_id, user_id, session_id, event_id, ts, action.
    """
    newest = events.group_by("tenant_id").agg(as_of=pl.col("ts").max())
    begun = events.group_by(_SESSION).agg(started_at=pl.col("ts").min()).join(newest, on="tenant_id")
    past = begun.filter(pl.col("as_of") - pl.col("started_at") >= RECENT).select(_SESSION)
    taken = steps(events.join(past, on=_SESSION, how="semi"))
    counts = taken.group_by(_STEP).agg(steps=pl.len().cast(pl.Int64))
    known = counts.with_columns(
        starts=pl.col("steps").sum().over("tenant_id", "from_action"),
        actions=pl.col("to_action").n_unique().over("tenant_id").cast(pl.Int64),
    )
    # Each is scored against the others: it is taken out of the counts, else all would be usual.
    scored = taken.join(known, on=_STEP).with_columns(_probability(pl.col("steps") - 1, pl.col("starts") - 1))
    usual = usual_surprises(scored_sessions(_in_bits(scored), _SESSION))
    frequent = pl.col("steps").rank("ordinal", descending=True).over("tenant_id") <= MOST_STEPS
    return known.sort(_STEP).filter(frequent).join(usual, on="tenant_id").select(list(USUAL_STEPS.columns))


def surprises(events: pl.DataFrame, usual: pl.DataFrame) -> pl.DataFrame:
    """Sessions by how far they lie from what is usual.

    The probability of a step is (how often it was taken + 1) / (steps from there + actions). The surprise of a session
    is the mean of -log2 of its steps', and told in standard deviations above that of the past's sessions.

    Args:
        events: all of each session: tenant_id, session_id, event_id, ts, action.
        usual: `USUAL_STEPS` rows.

    Returns:
        tenant_id, session_id, steps, surprise (bits), deviations, from_action, to_action (of its oddest step). Sessions
        of fewer than three steps, and of tenants without a past, are left out.
    """
    tenants = usual.unique("tenant_id").select("tenant_id", "actions", "usual_surprise", "spread")
    starts = usual.unique(["tenant_id", "from_action"]).select("tenant_id", "from_action", "starts")
    taken = steps(events.with_columns(user_id=pl.lit("")))
    counted = (
        taken.join(tenants, on="tenant_id")
        .join(starts, on=["tenant_id", "from_action"], how="left")
        .join(usual.select(*_STEP, "steps"), on=_STEP, how="left")
        .with_columns(_probability(pl.col("steps").fill_null(0), pl.col("starts").fill_null(0)))
    )
    found = scored_sessions(_in_bits(counted), [*_SESSION, "usual_surprise", "spread"])
    told = found.with_columns(DEVIATIONS).unnest("oddest")
    return told.select(*_SESSION, "steps", "surprise", "deviations", "from_action", "to_action")


def _probability(taken: pl.Expr, starts: pl.Expr) -> pl.Expr:
    return ((taken + 1) / (starts + pl.col("actions"))).alias("probability")


def _in_bits(scored: pl.DataFrame) -> pl.DataFrame:
    return scored.with_columns(surprise=-pl.col("probability").log(2))
