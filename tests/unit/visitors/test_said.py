"""What customers said of themselves, over time."""

from datetime import UTC, datetime, timedelta
from itertools import permutations

import polars as pl
import pytest

from c360_pipeline.core.catalog.tables import USER_TRAITS
from c360_pipeline.core.visitors.said import broken_histories, refusing

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
OF = USER_TRAITS.key[:3]


def history(*spans: tuple[int, int | None]) -> pl.LazyFrame:
    """Rows of one trait, from and until so many minutes after noon."""
    rows = [
        {
            "tenant_id": "t", "user_id": "ana", "name": "plan", "value": str(number), "event_id": str(number),
            "set_at": NOON + timedelta(minutes=since),
            "until": None if until is None else NOON + timedelta(minutes=until),
        }
        for number, (since, until) in enumerate(spans)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=USER_TRAITS.empty().schema).lazy()


def test_a_history_without_gaps_is_not_broken() -> None:
    assert broken_histories(history((0, 5), (5, 9), (9, None)), OF).collect().is_empty()


def test_two_values_of_today_a_gap_and_no_value_of_today_are_broken() -> None:
    for spans in ([(0, None), (5, None)], [(0, 4), (5, None)], [(0, 5), (5, 9)]):
        assert broken_histories(history(*spans), OF).collect()["wrong_ends"].to_list() == [1], spans


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_newest_word_on_a_purpose_counts_in_whatever_order_events_lie(order: tuple[int, ...]) -> None:
    said = [("ana", 1, "granted"), ("ana", 2, "denied"), ("bo", 3, "granted")]
    rows = [
        {"tenant_id": "t", "customer_id": who, "event_id": f"e{day}", "ts": NOON + timedelta(days=day),
         "consent": {"ads": state}}
        for who, day, state in (said[place] for place in order)
    ]  # fmt: skip
    schema = {"tenant_id": pl.String, "customer_id": pl.String, "event_id": pl.String,
              "ts": pl.Datetime("us", "UTC"), "consent": pl.Map(pl.String, pl.String)}  # fmt: skip
    events = pl.DataFrame(rows, schema=schema).lazy()
    purposes = pl.DataFrame({"tenant_id": ["t"], "purpose": ["ads"]})
    assert refusing(events, purposes).collect()["customer_id"].to_list() == ["ana"]
