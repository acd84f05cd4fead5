"""What an account is worth and how likely it is to leave, by rules that a support agent can follow.

There are no labels of past churn to learn from, so the risk is a weighted sum of three signals, each from 0 to 1:
use that fell, recent tickets, a short tenure. Source: "Customer 360 Graph Pipeline" (customer value, churn risk).
"""

import polars as pl

from c360_pipeline.core.catalog.feature_tables import ACCOUNT_VALUES

FALLEN_USE, RECENT_TICKETS, SHORT_TENURE = 0.6, 0.25, 0.15
"""Weights of the signals; together 1."""
MANY_TICKETS = 3
"""Tickets in 30 days from which on that signal is 1."""
LONG_TENURE_MONTHS = 24
HIGH, MEDIUM = 0.6, 0.3
LEAST_MONTHLY_CHURN, MOST_MONTHLY_CHURN = 0.01, 0.30
"""The chance to leave within a month at a risk of 0 and of 1."""
MONTHS_AHEAD = 12
LEFT = "left"
"""Level of accounts that have left."""


def account_values(accounts: pl.DataFrame) -> pl.DataFrame:
    """`ACCOUNT_VALUES` rows.

    The monthly value is the fee of active subscriptions and a third of what was bought in 90 days; the value to date is
    the fee times the months since the account was made and all purchases. The value in a year is the monthly value
    times the chance to be still there, summed over twelve months.

    Args:
        accounts: tenant_id, account_id, email, plan, months, monthly_fee (0 without an active subscription), is_active,
            recent_plays (30 days), earlier_plays (the 90 days before), recent_tickets (30 days), recent_purchases
            (their worth in 90 days), purchases (their worth).
    """
    usual = pl.col("earlier_plays") / 3
    fallen = (
        pl.when(pl.col("recent_plays") == 0).then(1.0)
        .when(usual > 0).then((1 - pl.col("recent_plays") / usual).clip(0, 1))
        .otherwise(0.0)
    )  # fmt: skip
    tickets = (pl.col("recent_tickets") / MANY_TICKETS).clip(0, 1)
    tenure = 1 - (pl.col("months") / LONG_TENURE_MONTHS).clip(0, 1)
    risk = pl.when("is_active").then(FALLEN_USE * fallen + RECENT_TICKETS * tickets + SHORT_TENURE * tenure)
    level = (
        pl.when(~pl.col("is_active")).then(pl.lit(LEFT))
        .when(pl.col("churn_risk") >= HIGH).then(pl.lit("high"))
        .when(pl.col("churn_risk") >= MEDIUM).then(pl.lit("medium"))
        .otherwise(pl.lit("low"))
    )  # fmt: skip
    stays = 1 - (LEAST_MONTHLY_CHURN + (MOST_MONTHLY_CHURN - LEAST_MONTHLY_CHURN) * pl.col("churn_risk"))
    a_year = pl.sum_horizontal(stays**month for month in range(1, MONTHS_AHEAD + 1))
    return (
        accounts.with_columns(churn_risk=risk.otherwise(1.0), why=_why(fallen))
        .with_columns(
            risk_level=level,
            monthly_value=pl.col("monthly_fee") + pl.col("recent_purchases") / 3,
            value_to_date=pl.col("monthly_fee") * pl.col("months") + pl.col("purchases"),
        )
        .with_columns(value_in_a_year=(pl.col("monthly_value") * a_year).round(2))
        .with_columns(pl.col("monthly_value", "value_to_date").round(2), pl.col("churn_risk").round(4))
        .select(list(ACCOUNT_VALUES.columns))
        .sort("tenant_id", "account_id")
    )


def _why(fallen: pl.Expr) -> pl.Expr:
    used = pl.concat_str(
        pl.col("recent_plays"), pl.lit(" plays in 30 days, "), (pl.col("earlier_plays") / 3).round(1),
        pl.lit(" usual"),
    )  # fmt: skip
    return pl.concat_str(
        pl.when(~pl.col("is_active")).then(pl.lit("no active subscription")),
        pl.when((fallen > 0) & pl.col("is_active")).then(used),
        pl.when(pl.col("recent_tickets") > 0).then(pl.concat_str("recent_tickets", pl.lit(" tickets in 30 days"))),
        pl.when(pl.col("months") < LONG_TENURE_MONTHS).then(pl.concat_str("months", pl.lit(" months a customer"))),
        separator="; ", ignore_nulls=True,
    )  # fmt: skip
