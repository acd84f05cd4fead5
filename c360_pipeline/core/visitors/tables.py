"""Rows of the tables of visitors and sessions, made of counted events."""

import polars as pl

from c360_pipeline.core.catalog.tables import SESSIONS, VISITOR_USER


def visitor_users(events: pl.DataFrame) -> pl.DataFrame:
    """Rows of `VISITOR_USER`: of the visitors with one known user, from all events of each."""
    found = events.select("tenant_id", anonymous_id="visitor_id", user_id="visitor_user").drop_nulls().unique()
    return found.select(list(VISITOR_USER.columns))


def sessions(events: pl.DataFrame) -> pl.DataFrame:
    """Rows of `SESSIONS`, from all events of each session."""
    ordered = events.drop_nulls("session_id").sort("ts", "event_id")
    path, campaign = (pl.col("attrs").map.get(name) for name in ("path", "campaign"))
    rows = ordered.group_by("tenant_id", "session_id").agg(
        anonymous_id=_the_only("visitor_id"), user_id=_the_only("customer_id"),
        first_event_ts=pl.col("ts").first(), last_event_ts=pl.col("ts").last(),
        event_count=pl.len().cast(pl.Int64),
        seconds=(pl.col("ts").last() - pl.col("ts").first()).dt.total_microseconds() / 1_000_000,
        entry_action=pl.col("action").first(), entry_path=path.first(),
        exit_action=pl.col("action").last(), exit_path=path.last(),
        source=pl.col("source").first(), campaign=campaign.first(),
    )  # fmt: skip
    return rows.select(list(SESSIONS.columns))


def _the_only(column: str) -> pl.Expr:
    """The value of a group where it has one alone; null where it has several, or none."""
    values = pl.col(column).drop_nulls()
    return pl.when(values.n_unique() == 1).then(values.first())
