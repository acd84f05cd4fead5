"""What came of recommendations, against a plain count."""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from c360_pipeline.core.features.hits import ACTED, ALL_SOURCES, recommendation_hits

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
GIVEN = {
    "given_id": pl.String, "given_at": pl.Datetime("us", "UTC"), "who": pl.String, "version": pl.String,
    "products": pl.List(pl.String), "sources": pl.List(pl.String),
}  # fmt: skip


def answer(
    number: int, hours: float, who: str, products: str, version: str = "1", source: str = "own"
) -> dict[str, Any]:
    return {"given_id": str(number), "given_at": NOON + timedelta(hours=hours), "who": who, "version": version,
            "products": products.split(), "sources": [source] * len(products.split())}  # fmt: skip


def act(hours: float, who: str, product: str, action: str = "view") -> dict[str, Any]:
    return {"who": who, "product_id": product, "ts": NOON + timedelta(hours=hours), "action": action}


def counted(answers: list[dict[str, Any]], acts: list[dict[str, Any]], newest: float = 0) -> dict[tuple[str, str], Any]:
    rows = recommendation_hits(
        pl.DataFrame(answers, schema=GIVEN), pl.LazyFrame(acts, schema=ACTED), NOON + timedelta(hours=newest)
    ).to_dicts()  # fmt: skip
    return {(row["version"], row["source"]): row for row in rows}


def test_what_is_viewed_or_bought_within_a_day_is_a_hit() -> None:
    found = counted(
        [answer(1, 0, "user a", "p1 p2 p3"), answer(2, 0, "visitor b", "p1", source="trending")],
        [act(1, "user a", "p1"), act(2, "user a", "p2", "purchase"), act(25, "user a", "p3"),
         act(-1, "visitor b", "p1"), act(3, "user b", "p1"), act(3, "user a", "p2", "add_to_cart")],
    )  # fmt: skip
    told = found["1", ALL_SOURCES]
    assert (told["customers"], told["products"], told["clicked"], told["bought"]) == (2, 4, 1, 1)
    assert (told["customers_with_hit"], told["hit_rate"]) == (1, 0.5)
    assert found["1", "trending"]["hit_rate"] == 0
    assert found["1", "own"]["products"] == 3


def test_what_is_given_again_counts_once_and_from_the_first_time() -> None:
    answers = [answer(1, 0, "user a", "p1"), answer(1, 0, "user a", "p1"), answer(2, 5, "user a", "p1 p2")]
    told = counted(answers, [act(2, "user a", "p1"), act(4, "user a", "p2")])["1", ALL_SOURCES]
    assert (told["products"], told["clicked"]) == (2, 1)


@pytest.mark.parametrize(("newest", "is_complete"), [(23.9, False), (24, True)])
def test_a_day_is_over_a_day_after_its_last_answer(newest: float, *, is_complete: bool) -> None:
    assert counted([answer(1, 0, "user a", "p1")], [], newest)["1", "own"]["is_complete"] is is_complete


ACTIONS = st.sampled_from(["view", "purchase", "search"])
SOME = st.sampled_from(["user a", "user b", "visitor a"])
PRODUCTS = st.sampled_from(["p1", "p2", "p3"])


@examples(
    st.lists(st.tuples(st.integers(-30, 30), SOME, st.lists(PRODUCTS, min_size=1, max_size=3, unique=True),
                       st.sampled_from(["1", "2"])), max_size=8),
    st.lists(st.tuples(st.integers(-60, 60), SOME, PRODUCTS, ACTIONS), max_size=12),
)  # fmt: skip
def test_any_answers_and_acts_are_counted_as_one_by_one(given: list[Any], acts: list[Any]) -> None:
    answers = [answer(n, hours, who, " ".join(ids), version) for n, (hours, who, ids, version) in enumerate(given)]
    found = recommendation_hits(
        pl.DataFrame(answers, schema=GIVEN),
        pl.LazyFrame([act(hours + 0.5, who, product, action) for hours, who, product, action in acts], schema=ACTED),
        NOON,
    )
    first: dict[tuple[Any, ...], datetime] = {}
    for one in answers:
        for product in one["products"]:
            key = (one["given_at"].date(), one["version"], one["who"], product)
            first[key] = min(first.get(key, one["given_at"]), one["given_at"])
    plain: dict[tuple[Any, ...], list[int]] = {}
    for (day, version, who, product), at in first.items():
        did = {
            action for hours, actor, acted, action in acts
            if (actor, acted) == (who, product)
            and timedelta(0) < NOON + timedelta(hours=hours + 0.5) - at <= timedelta(days=1)
        }  # fmt: skip
        counts = plain.setdefault((day, version), [0, 0, 0])
        for place, is_so in enumerate((True, "view" in did, "purchase" in did)):
            counts[place] += is_so
    whole = found.filter(pl.col("source") == ALL_SOURCES)
    assert {row[:2]: list(row[2:]) for row in
            whole.select("day", "version", "products", "clicked", "bought").iter_rows()} == plain  # fmt: skip
