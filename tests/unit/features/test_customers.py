"""What is said of customers: what they bought, what may be expected of them, and whether they will be seen again."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from c360_pipeline.core.contract.frames import ITEMS
from c360_pipeline.core.features.churn import MODEL, RULE, churn_model, customer_churn, left_after, measured, seen_until
from c360_pipeline.core.features.customer_days import DAYS, customer_days, main_currency
from c360_pipeline.core.features.customer_values import customer_values
from c360_pipeline.core.features.paths import TICKETS, calls_for_support, drop_offs, path_anomalies, support_insights
from c360_pipeline.devstack.planted_samples import OTHER_STYLE, Planted, planted

NO_CATALOG = pl.LazyFrame(schema={"id": pl.String, "price": pl.Float64})
NO_COMMUNITIES = pl.DataFrame(schema={"tenant_id": pl.String, "user_id": pl.String, "community": pl.Int64})
NO_TICKETS = pl.DataFrame(schema=TICKETS)
TODAY = date(2026, 3, 1)


@pytest.fixture(scope="module")
def world() -> Planted:
    return planted("acme", 1_200, 7, broken_share=0.5)


@pytest.fixture(scope="module")
def days(world: Planted) -> pl.DataFrame:
    return customer_days(world.events.lazy(), NO_CATALOG, "EUR")


def purchase(
    user: str, day: int, *items: tuple[str, float | None, float | None, str | None], item: str | None = None
) -> dict[str, object]:
    listed = [dict(zip(("id", "quantity", "price", "currency"), one, strict=True)) for one in items] or None
    at = datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(days=day)
    return {"user_id": user, "ts": at, "item_id": item, "items": listed, "action": "purchase"}


def events(*rows: dict[str, object]) -> pl.LazyFrame:
    schema = {"tenant_id": pl.String, "event_id": pl.String, "user_id": pl.String, "session_id": pl.String,
              "item_id": pl.String, "items": ITEMS, "ts": pl.Datetime("us", "UTC"), "action": pl.String}  # fmt: skip
    told = [
        {"tenant_id": "acme", "event_id": f"e{number}", "session_id": "s", **row} for number, row in enumerate(rows)
    ]
    return pl.LazyFrame(told, schema=schema)


def active(user: str, *days: int, orders: int = 0) -> list[dict[str, object]]:
    return [
        {"user_id": user, "day": date(2026, 1, 1) + timedelta(days=day), "events": 3, "sessions": 1, "carts": 0,
         "support": 0, "orders": orders, "paid": 10.0 if orders else None}
        for day in days
    ]  # fmt: skip


def test_days_have_what_was_paid_by_the_event_else_by_the_catalogue() -> None:
    known = events(
        purchase("a", 0, ("p1", 2, 9.5, "EUR"), ("p2", None, None, None)),
        purchase("a", 0, item="p2"),
        purchase("b", 0, ("p1", 1, 50, "USD")),
        purchase("c", 1, ("none", 1, None, None)),
        {"user_id": "c", "ts": datetime(2026, 1, 2, tzinfo=UTC), "action": "support"},
        {"user_id": None, "ts": datetime(2026, 1, 2, tzinfo=UTC), "action": "view"},
    )
    assert main_currency(known) == "EUR"
    found = customer_days(known, pl.LazyFrame({"id": ["p2"], "price": [3.0]}), "EUR")
    assert found.select("user_id", "events", "orders", "support", "paid").rows() == [
        ("a", 2, 2, 0, 2 * 9.5 + 3.0 + 3.0), ("b", 1, 1, 0, None), ("c", 2, 1, 1, None),
    ]  # fmt: skip


def test_values_say_how_recently_how_often_and_how_much() -> None:
    rows = [*active("a", 0, 10, 59, orders=1), *active("b", 5, orders=2), *active("c", 58), *active("d", 30, orders=1)]
    found, expected = customer_values(pl.DataFrame(rows, schema=DAYS), TODAY, "EUR")
    assert expected is None, "three customers are no history"
    assert found.select("user_id", "purchases", "orders", "revenue", "mean_paid", "days_since_purchase").rows() == [
        ("a", 3, 3, 30.0, 10.0, 0), ("b", 1, 2, 10.0, 10.0, 54), ("d", 1, 1, 10.0, 10.0, 29),
    ]  # fmt: skip
    assert found.select("recency_class", "frequency_class", "monetary_class").rows() == [
        (4, 4, 4), (1, 1, 1), (2, 1, 1)
    ]  # fmt: skip
    assert found["value_in_a_year"].to_list() == [None] * 3


def test_days_that_cost_nothing_are_among_those_that_are_expected() -> None:
    rng = np.random.default_rng(2)
    rows = [
        {**one, "paid": float(rng.choice([0.0, 0.0, 0.0, 0.0, 20.0]))}
        for number in range(500)
        for one in active(f"u{number}", *np.flatnonzero(rng.random(200) < 0.04).tolist(), orders=1)
    ]  # fmt: skip
    found, expected = customer_values(pl.DataFrame(rows, schema=DAYS), date(2026, 1, 1) + timedelta(days=199), None)
    assert expected is not None
    shares = [row["value"] for row in expected.measures if row["measure"] == "all revenue, of what came"]
    assert shares == [pytest.approx(1.0, abs=0.25)]
    assert found.filter(pl.col("mean_paid").is_nan()).is_empty()


def test_expectations_are_nearer_to_the_year_after_than_each_ones_own_rate(world: Planted, days: pl.DataFrame) -> None:
    found, expected = customer_values(days, world.as_of.date(), "EUR")
    assert expected is not None
    assert expected.is_used
    came = customer_days(world.future.lazy(), NO_CATALOG, "EUR").filter(pl.col("orders") > 0)
    bought = came.group_by("user_id").agg(came=pl.len())
    joined = found.join(bought, on="user_id", how="left").fill_null(0)
    age = (pl.lit(world.as_of.date()) - pl.col("first_bought")).dt.total_days().clip(1)
    errors = joined.select(
        ours=(pl.col("purchases_in_a_year") - pl.col("came")).abs().mean(),
        own=(pl.col("purchases") / age * 365 - pl.col("came")).abs().mean(),
    )
    assert errors["ours"].item() < 0.5 * errors["own"].item()
    assert found["chance_active"].is_between(0, 1).all()


def test_chances_to_leave_hold_in_the_future_that_was_planted(world: Planted, days: pl.DataFrame) -> None:
    found, model = customer_churn(days, world.as_of.date())
    assert model is not None
    assert found["made_by"].unique().to_list() == [MODEL]
    future = customer_days(world.future.lazy(), NO_CATALOG, "EUR")
    seen = seen_until(days, world.as_of.date())
    left = left_after(pl.concat([days, future]), seen, world.as_of.date())
    chances, silent = found["chance_to_leave"].to_numpy(), found["days_silent"].to_numpy() / 84
    scores = measured(left, chances, silent)
    assert scores["order (AUC)"][0] > max(0.85, scores["order (AUC)"][1])
    assert scores["calibration error"][0] < 0.06
    told = {row["measure"]: row["value"] for row in model.measures}
    assert told["order (AUC)"] == pytest.approx(scores["order (AUC)"][0], abs=0.05)


def test_reasons_add_up_to_the_chance(world: Planted, days: pl.DataFrame) -> None:
    model, seen = churn_model(days, world.as_of.date()), seen_until(days, world.as_of.date())
    assert model is not None
    odds = np.log(model.chances(seen) / (1 - model.chances(seen)))
    moved = model.contributions(seen).sum_horizontal().to_numpy()
    assert odds - moved == pytest.approx(np.full(seen.height, model.fitted[-1].intercept_[0]))
    why = customer_churn(days, world.as_of.date())[0].sort("chance_to_leave")["why"]
    assert "raises the odds" in why[-1]
    assert "lowers the odds" in why[0]


def test_equal_events_in_another_order_say_the_same(world: Planted, days: pl.DataFrame) -> None:
    again = customer_days(world.events.sample(fraction=1.0, shuffle=True, seed=3).lazy(), NO_CATALOG, "EUR")
    assert again.equals(days)
    as_of = world.as_of.date()
    assert customer_churn(again, as_of)[0].equals(customer_churn(days, as_of)[0])
    assert customer_values(again, as_of, "EUR")[0].equals(customer_values(days, as_of, "EUR")[0])


def test_without_history_the_rule_tells() -> None:
    rows = [*active("fades", 0, 2, 4, 6, 8, 10, 30), *active("stays", *range(0, 60, 3)), *active("new", 58)]
    found, model = customer_churn(pl.DataFrame(rows, schema=DAYS), TODAY)
    assert model is None
    assert found.select("user_id", "made_by", "level").rows() == [
        ("fades", RULE, "high"), ("new", RULE, "low"), ("stays", RULE, "low"),
    ]  # fmt: skip
    assert (
        found["why"][0]
        == "not seen for 29 days, usually every 5.0 days; seen on 0 of 28 days, 6.1 usual; a customer for 59 days"
    )


def test_a_model_that_is_no_better_than_the_rule_is_not_used() -> None:
    rng = np.random.default_rng(5)
    # Whether somebody comes is a coin that knows nothing of the past.
    rows = [
        one for number in range(400) for one in active(f"u{number}", *np.flatnonzero(rng.random(250) < 0.02).tolist())
    ]
    found, model = customer_churn(pl.DataFrame(rows, schema=DAYS), date(2026, 1, 1) + timedelta(days=249))
    assert model is not None
    auc = next(row for row in model.measures if row["measure"] == "order (AUC)")
    assert auc["value"] == pytest.approx(0.5, abs=0.12)
    assert found["made_by"].unique().to_list() == [MODEL if model.is_used else RULE]


def test_customers_who_left_long_ago_are_not_asked_about() -> None:
    rows = [*active("gone", 0), *active("here", 100)]
    found, _ = customer_churn(pl.DataFrame(rows, schema=DAYS), date(2026, 1, 1) + timedelta(days=100))
    assert found["user_id"].to_list() == ["here"]


def test_what_was_planted_is_found(world: Planted) -> None:
    odd = path_anomalies(world.events, NO_COMMUNITIES)["session_id"]
    paths = world.odd_sessions.filter(pl.col("manner") != OTHER_STYLE)
    hits = paths["session_id"].is_in(odd.implode()).sum()
    assert hits >= 0.75 * paths.height
    assert hits >= 0.5 * odd.len(), "half of what is told was planted"
    broken = {row["action"]: row["deviations"] for row in drop_offs(world.events).to_dicts()}
    assert broken["add_to_cart"] > 3 > abs(broken["view"])
    before = support_insights(world.events, calls_for_support(world.events, NO_TICKETS))
    first = before["path"].head(5).to_list()
    assert " → ".join(world.ticket_path) in first
    assert all(world.ticket_path[0] in path for path in first)


def test_equal_seeds_plant_the_same() -> None:
    one, again, other = planted("acme", 60, 1), planted("acme", 60, 1), planted("globex", 60, 1)
    assert one.events.equals(again.events)
    assert one.labels() == again.labels()
    assert not one.events.drop("tenant_id").equals(other.events.drop("tenant_id"))
    assert one.events["event_id"].n_unique() == one.events.height
    assert one.events["ts"].max() <= one.as_of < one.future["ts"].min()
