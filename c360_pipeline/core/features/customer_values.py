"""What each customer has brought, how recently and how often they buy, and what they may buy in a year.

A purchase is a day on which a customer bought: two orders of one evening are one decision. Whether the expectation may
be told is tried on the past: a model of what lay before a quarter of the time (90 days at most) has to foresee what
customers bought in it, and paid, better than their own rate so far and than the rate of all.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import NamedTuple

import numpy as np
import polars as pl

from c360_pipeline.core.catalog.feature_tables import CUSTOMER_MODELS, CUSTOMER_VALUES
from c360_pipeline.core.features.lifetime_value import (
    BuyingRate,
    Floats,
    Spending,
    fit_buying_rate,
    fit_spending,
)

YEAR = 365
FEWEST_RETURNING = 50
"""Customers who bought on two days, from which on a model is tried."""
LEAST_DAYS = 56
"""Between first and newest event, from which on a model is tried."""
LONGEST_TRIAL = 90
CLASSES = 5
PURCHASES_MODEL = "purchases"
"""Name in `CUSTOMER_MODELS`."""
DIGITS = 4


class _Histories(NamedTuple):
    """Of each customer who bought, in days: what the models ask for.

    Attributes:
        repeats: days bought after the first.
        recency: from the first to the last.
        age: from the first to the end of what is known.
        paid_days: days of which it is known what was paid, and more than nothing.
        mean_paid: on each of these.
        priced_days: days of which it is known what was paid, with those of nothing or less.
    """

    repeats: Floats
    recency: Floats
    age: Floats
    paid_days: Floats
    mean_paid: Floats
    priced_days: Floats


@dataclass(frozen=True)
class Expectation:
    """What may be expected of customers of a tenant.

    Attributes:
        rate: how often they buy.
        spending: how much they pay; None where too few have paid what is known.
        measures: rows of `CUSTOMER_MODELS` less the tenant.
        is_used: whether the model foresees purchases better than each customer's own rate and than everybody's.
        is_worth_used: the same of revenue.
    """

    rate: BuyingRate
    spending: Spending | None
    measures: list[dict[str, object]]
    is_used: bool
    is_worth_used: bool


def customer_values(days: pl.DataFrame, as_of: date, currency: str | None) -> tuple[pl.DataFrame, Expectation | None]:
    """`CUSTOMER_VALUES` rows less tenant and `as_of`, sorted by user_id, and what their expectation rests on.

    Args:
        days: `core.features.customer_days.DAYS` rows.
        as_of: day of the tenant's newest event.
        currency: of `paid`.
    """
    buyers = _buyers(days, as_of)
    expected = expectation(days, as_of)
    columns = dict.fromkeys(("chance_active", "purchases_in_a_year", "value_in_a_year"), pl.lit(None, pl.Float64))
    if expected is not None and expected.is_used:
        had = _histories(buyers)
        bought = expected.rate.expected(YEAR, had.repeats, had.recency, had.age)
        columns["chance_active"] = _series(expected.rate.chance_active(had.repeats, had.recency, had.age))
        columns["purchases_in_a_year"] = _series(bought)
        if expected.spending is not None and expected.is_worth_used:
            worth = _series(bought * _paid_on_a_day(expected.spending, had), 2)
            # Of who paid in other currencies, or nothing that is known, nothing is told.
            columns["value_in_a_year"] = pl.when(pl.col("priced_days") > 0).then(worth)
    rows = buyers.with_columns(
        days_since_purchase=pl.lit(as_of) - pl.col("last_bought"),
        revenue=pl.col("revenue").round(2),
        mean_paid=pl.when(pl.col("paid_days") > 0).then((pl.col("known_paid") / pl.col("paid_days")).round(2)),
        currency=pl.lit(currency, pl.String),
        recency_class=_class(pl.col("last_bought")),
        frequency_class=_class(pl.col("purchases")),
        monetary_class=_class(pl.col("revenue")),
        **columns,
    ).with_columns(pl.col("days_since_purchase").dt.total_days())
    return rows.select([name for name in CUSTOMER_VALUES.columns if name not in ("tenant_id", "as_of")]), expected


def _series(values: Floats, digits: int = DIGITS) -> pl.Expr:
    return pl.lit(pl.Series(np.round(values, digits)))


def _class(column: pl.Expr) -> pl.Expr:
    """The fifth of all customers in which a value lies, 5 the highest; equal values are in one."""
    below = column.rank("min") - 1
    return (1 + below * CLASSES // column.count()).cast(pl.Int64)


def _buyers(days: pl.DataFrame, as_of: date) -> pl.DataFrame:
    bought = days.filter(pl.col("orders") > 0)
    is_paid = pl.col("paid") > 0
    return bought.group_by("user_id").agg(
        first_bought=pl.col("day").min(), last_bought=pl.col("day").max(), purchases=pl.len().cast(pl.Int64),
        orders=pl.col("orders").sum(),
        revenue=pl.when(pl.col("paid").is_not_null().any()).then(pl.col("paid").sort().sum()),
        paid_days=is_paid.sum(), priced_days=pl.col("paid").is_not_null().sum(),
        known_paid=pl.col("paid").filter(is_paid).sort().sum(),
        age=(pl.lit(as_of) - pl.col("day").min()).dt.total_days(),
    ).sort("user_id")  # fmt: skip


def _histories(buyers: pl.DataFrame) -> _Histories:
    paid_days = buyers["paid_days"].cast(pl.Float64).to_numpy()
    return _Histories(
        (buyers["purchases"] - 1).cast(pl.Float64).to_numpy(),
        (buyers["last_bought"] - buyers["first_bought"]).dt.total_days().cast(pl.Float64).to_numpy(),
        buyers["age"].cast(pl.Float64).to_numpy(),
        paid_days,
        buyers["known_paid"].to_numpy() / np.maximum(paid_days, 1),
        buyers["priced_days"].cast(pl.Float64).to_numpy(),
    )


def _paid_on_a_day(spending: Spending, had: _Histories) -> Floats:
    """What each customer is expected to pay on a day with a purchase, those that cost nothing among them."""
    of_all = had.paid_days.sum() / max(had.priced_days.sum(), 1)
    share: Floats = (had.paid_days + of_all) / (had.priced_days + 1)
    return spending.expected(had.paid_days, had.mean_paid) * share


def expectation(days: pl.DataFrame, as_of: date) -> Expectation | None:
    """Fit models to all that is known, after they were tried on the past; None where there is too little of it."""
    begun = days["day"].min()
    if not isinstance(begun, date) or (as_of - begun).days < LEAST_DAYS:
        return None
    trial = min(LONGEST_TRIAL, (as_of - begun).days // 4)
    cut = as_of - timedelta(days=trial)
    before = _buyers(days.filter(pl.col("day") <= cut), cut)
    if before.filter(pl.col("purchases") > 1).height < FEWEST_RETURNING:
        return None
    tried = _tried(before, days.filter((pl.col("day") > cut) & (pl.col("orders") > 0)), trial)
    had = _histories(_buyers(days, as_of))
    return Expectation(fit_buying_rate(had.repeats, had.recency, had.age), _spending(had), *tried)


def _spending(had: _Histories) -> Spending | None:
    is_paid = had.paid_days > 0
    if (had.paid_days > 1).sum() < FEWEST_RETURNING:
        return None
    return fit_spending(had.paid_days[is_paid], had.mean_paid[is_paid])


def _tried(before: pl.DataFrame, later: pl.DataFrame, trial: int) -> tuple[list[dict[str, object]], bool, bool]:
    """How well models of the past foresee what was bought and paid later, beside each customer's own rate.

    Returns:
        Measures, and whether the model is better of purchases and of revenue: than each customer's own rate since the
        first purchase, and than the rate of all.
    """
    had = _histories(before)
    truth = before.select("user_id").join(
        later.group_by("user_id").agg(bought=pl.len(), paid=pl.col("paid").sort().sum()), on="user_id", how="left",
        maintain_order="left",
    ).fill_null(0)  # fmt: skip
    bought = truth["bought"].cast(pl.Float64).to_numpy()
    foreseen = fit_buying_rate(had.repeats, had.recency, had.age).expected(trial, had.repeats, had.recency, had.age)
    own, everybody = had.repeats / np.maximum(had.age, 1) * trial, had.repeats.sum() / max(had.age.sum(), 1) * trial
    is_used = _is_nearest(bought, foreseen, own, np.full(len(own), everybody))
    measures = _measures("purchases", "those that came", (bought, foreseen, own), is_used=is_used)
    spending = _spending(had)
    if spending is None:
        return measures, is_used, False
    paid, worth = truth["paid"].cast(pl.Float64).to_numpy(), foreseen * _paid_on_a_day(spending, had)
    mean = had.mean_paid * had.paid_days / np.maximum(had.priced_days, 1)
    is_worth_used = is_used and _is_nearest(paid, worth, own * mean, np.full(len(own), everybody * mean.mean()))
    of_revenue = _measures("revenue", "what came", (paid, worth, own * mean), is_used=is_worth_used)
    return [*measures, *of_revenue], is_used, is_worth_used


def _is_nearest(truth: Floats, found: Floats, *others: Floats) -> bool:
    """Whether what was found is finite, and nearer to the truth than others are."""
    error = np.abs(truth - found).mean()
    return bool(np.isfinite(error) and all(error < np.abs(truth - other).mean() for other in others))


def _measures(
    of: str, came: str, told: tuple[Floats, Floats, Floats], *, is_used: bool
) -> list[dict[str, object]]:  # fmt: skip
    """How far off, and what share of all: what was found, and what is plain, beside the truth, which comes first."""
    truth, found, plain = told
    errors = [float(round(np.abs(one - truth).mean(), DIGITS)) for one in (found, plain)]
    whole = truth.sum()
    shares = [float(round(one.sum() / whole, DIGITS)) if whole else None for one in (found, plain)]
    rows = ((f"mean absolute error of {of}", errors), (f"all {of}, of {came}", shares))
    return [
        {"model": PURCHASES_MODEL, "measure": name, "value": value, "baseline": baseline, "cases": len(truth),
         "is_used": is_used}
        for name, (value, baseline) in rows
    ]  # fmt: skip


def models_rows(tenant: str, measures: list[dict[str, object]]) -> pl.DataFrame:
    """`CUSTOMER_MODELS` rows of a tenant."""
    return pl.DataFrame([{"tenant_id": tenant, **one} for one in measures], schema=CUSTOMER_MODELS.empty().schema)
