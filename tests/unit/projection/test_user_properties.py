"""Traits that are properties of users."""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.projection.user_properties import (
    UserProperty,
    as_text,
    from_text,
    property_kinds,
    typed,
    values,
)

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
PLAN = UserProperty("*", "plan", "plan", "text")
AGE = UserProperty("*", "age", "person.age", "integer")
OF_GLOBEX = UserProperty("globex", "age", "years", "integer")


@pytest.mark.parametrize(
    ("kind", "texts", "expected"),
    [
        ("text", [" pro ", None], [" pro ", None]),
        ("integer", ["30", " 31 ", "32.0", "1e3", "9007199254740993"], [30, 31, 32, 1000, 9007199254740993]),
        ("integer", ["3.5", "many", "", "inf", "nan", "1e30", None], [None] * 7),
        ("number", ["3.5", " -1e3 ", "7"], [3.5, -1000.0, 7.0]),
        ("number", ["inf", "nan", "EUR 3", None], [None] * 4),
        ("boolean", ["true", "False", " YES ", "0", "1", "no"], [True, False, True, False, True, False]),
        ("boolean", ["perhaps", "", "2", None], [None] * 4),
        ("instant", ["2026-03-02T13:00:00+01:00", "2026-03-02T12:00:00Z"], [NOON, NOON]),
        ("instant", ["2026-03-02"], [NOON.replace(hour=0)]),
        ("instant", ["02.03.2026", "now", "0000-01-01", "-2026-01-01", "+10000-01-01T00:00:00Z", None], [None] * 6),
    ],
)  # fmt: skip
def test_a_text_that_is_no_value_of_the_type_is_left_out(kind: str, texts: list[str], expected: list[Any]) -> None:
    assert (
        pl.DataFrame({"x": texts}, schema={"x": pl.String}).select(typed(pl.col("x"), kind)).to_series().to_list()
        == expected
    )


def said(*rows: tuple[str, str, dict[str, str] | None]) -> pl.DataFrame:
    """Events of tenant, customer and traits, a minute apart."""
    made = [
        {
            "tenant_id": tenant,
            "customer_id": user,
            "event_id": f"{n}",
            "traits": traits,
            "ts": NOON + timedelta(minutes=n),
        }
        for n, (tenant, user, traits) in enumerate(rows)
    ]  # fmt: skip
    types = EVENTS.empty().schema
    schema = {name: types.get(name, pl.String()) for name in ("tenant_id", "customer_id", "event_id", "traits", "ts")}
    return pl.DataFrame(made, schema=schema)


def test_the_newest_value_of_each_is_what_a_user_has_and_a_tenants_own_row_wins() -> None:
    events = said(
        ("acme", "ana", {"plan": "free", "person.age": "30"}), ("acme", "ana", {"plan": "pro"}), ("acme", "bo", None),
        ("globex", "ana", {"person.age": "99", "years": "41"}),
    )  # fmt: skip
    found = values(events, (AGE, OF_GLOBEX, PLAN)).sort("tenant_id", "id")
    assert found.rows() == [("acme", "ana", 30, "pro"), ("acme", "bo", None, None), ("globex", "ana", 41, None)]
    assert found.columns == ["tenant_id", "id", "age", "plan"]
    assert [kind.properties for kind in property_kinds((AGE, OF_GLOBEX, PLAN))] == [
        {"id": pl.String(), "age": pl.Int64()}, {"id": pl.String(), "plan": pl.String()}
    ]  # fmt: skip


def test_a_graph_says_which_it_has() -> None:
    assert from_text(as_text([PLAN, OF_GLOBEX])) == (PLAN, OF_GLOBEX)
    assert from_text(as_text([])) == ()
