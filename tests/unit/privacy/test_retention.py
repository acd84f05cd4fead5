"""Of several rules the closest one counts."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from c360_pipeline.core.privacy.retention import ACTION, RULE_COLUMNS, expired, oldest_kept

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def rules(*rows: tuple[str, str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=RULE_COLUMNS, orient="row")


RULES = rules(
    ("*", "Action", "view", 365), ("*", "Action", "*", 1000), ("acme", "Action", "*", 100),
    ("acme", "Action", "view", 30), ("*", "DeadLetter", "*", 1),
)  # fmt: skip


@pytest.mark.parametrize(
    ("tenant", "action", "days"),
    [("globex", "view", 365), ("globex", "purchase", 1000), ("acme", "purchase", 100), ("acme", "view", 30)],
)
def test_the_closest_rule_counts(tenant: str, action: str, days: int) -> None:
    ages = [days - 1, days, days + 1]
    rows = pl.LazyFrame(
        {
            "tenant_id": [tenant] * 3,
            "action": [action] * 3,
            "ts": [NOW - timedelta(days=age) for age in ages],
            "age": ages,
        }
    )
    found = expired(rows, RULES, ACTION, NOW, "action", "ts").collect()
    assert found["age"].to_list() == [days + 1]
    assert found.columns == ["tenant_id", "action", "ts", "age"]


def test_without_a_rule_nothing_expires() -> None:
    rows = pl.LazyFrame({"tenant_id": ["a"], "action": ["search"], "ts": [datetime(2000, 1, 1, tzinfo=UTC)]})
    assert expired(rows, rules(("*", "Action", "view", 1)), ACTION, NOW, "action", "ts").collect().is_empty()
    assert expired(rows, rules(), ACTION, NOW, "action", "ts").collect().is_empty()
    assert oldest_kept(rules(), ACTION, NOW) is None
    assert oldest_kept(RULES, ACTION, NOW) == NOW - timedelta(days=30)
