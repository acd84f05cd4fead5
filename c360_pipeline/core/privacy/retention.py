"""How long events are kept: which of them are older than their rule says."""

from datetime import datetime, timedelta

import polars as pl

EVERY = "*"
ACTION, DEAD_LETTER = "Action", "DeadLetter"
RULE_COLUMNS = {"tenant_id": pl.String, "label": pl.String, "action": pl.String, "days": pl.Int64}


def expired(
    rows: pl.LazyFrame, rules: pl.DataFrame, label: str, now: datetime, kind: str, instant: str
) -> pl.LazyFrame:
    """Rows that are older than the rule says that is theirs.

    Of several rules that fit, the one counts that names the tenant, then the one that names the kind.

    Args:
        rows: with tenant_id, a column of kinds and one of instants.
        rules: `RULE_COLUMNS`.
        label: whose rules.
        now: UTC.
        kind: the column that a rule's `action` names a value of.
        instant: the column that says how old a row is.
    """
    of_label = rules.filter(pl.col("label") == label).lazy()
    limits: list[str] = []
    for names_tenant, names_kind in ((True, True), (True, False), (False, True), (False, False)):
        fitting = of_label.filter(
            (pl.col("tenant_id") != EVERY) == names_tenant, (pl.col("action") != EVERY) == names_kind
        )
        on = (["tenant_id"] if names_tenant else []) + ([kind] if names_kind else [])
        name = f"(days {len(limits)})"
        limit = fitting.select("tenant_id", pl.col("action").alias(kind), pl.col("days").alias(name)).select(*on, name)
        rows = rows.join(limit, on=on, how="left") if on else rows.join(limit, how="left", on=pl.lit(value=True))
        limits.append(name)
    oldest = pl.lit(now) - pl.duration(days=pl.coalesce(limits))
    return rows.filter(pl.col(instant) < oldest).drop(limits)


def oldest_kept(rules: pl.DataFrame, label: str, now: datetime) -> datetime | None:
    """No row that is younger can be expired; None when no rule is there."""
    days = rules.filter(pl.col("label") == label)["days"].min()
    return now - timedelta(days=int(days)) if isinstance(days, int) else None
