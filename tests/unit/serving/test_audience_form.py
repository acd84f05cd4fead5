"""What the form of an audience can say, and what only a document can."""

from typing import Any

import pytest

from c360_pipeline.core.audiences.definition import read_audience
from c360_pipeline.core.audiences.form import Row, condition_of, rows_of
from c360_pipeline.core.audiences.told import told
from c360_pipeline.errors import ConfigError

SAID_BY_ROWS = [
    ({"did": "purchase"}, "did purchase"),
    ({"did": "view", "at_least": 3, "within_days": 30}, "did view at least 3 times in the last 30 days"),
    ({"did": "purchase", "at_most": 0}, "never did purchase"),
    ({"not": {"did": "*", "within_days": 1}}, "did not do anything today"),
    ({"spent": {"at_least": 100.5}, "within_days": 365}, "spent at least 100.5 in the last 365 days"),
    ({"trait": "plan", "is": "gold"}, "trait plan is gold"),
    ({"trait": "plan", "is_set": True}, "trait plan is set"),
    ({"consent": "ads", "is": "unknown"}, "said nothing of ads"),
    ({"group": "company"}, "belongs to a company"),
    ({"group": "company", "id": "acme"}, "belongs to company acme"),
    ({"community": [3]}, "in community 3"),
    ({"risk": ["high"]}, "has an account at high risk"),
    ({"leaving": ["high"]}, "may leave: high"),
    ({"value_in_a_year": {"at_least": 500}}, "may be expected to pay at least 500 in a year"),
    ({"label": "Account", "is_set": True}, "has an Account"),
    ({"label": "Account", "property": "plan", "is": "gold"}, "has an Account whose plan is gold"),
]
SAID_BY_DOCUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"did": ["view", "cart"], "item": ["p"]}, "did view or cart of p"),
    ({"did": "view", "at_least": 1, "at_most": 2}, "did view 1 to 2 times"),
    ({"did": "view", "first_within_days": 7}, "did view, the first in the last 7 days"),
    ({"did": "view", "last_before_days": 30}, "did view, the last more than 30 days ago"),
    (
        {"sequence": [{"did": "view"}, {"did": "cart"}], "each_within_hours": 2},
        "did view, then cart, each within 2 hours",
    ),
    ({"spent": {"at_least": 1, "at_most": 9}, "currency": "EUR"}, "spent 1 to 9 EUR"),
    ({"trait": "age", "at_least": 18}, "trait age is at least 18"),
    ({"community": [1, 2]}, "in community 1 or 2"),
    ({"monthly_value": {"at_most": 10}}, "has an account of at most 10 a month"),
    ({"any": [{"did": "a"}, {"not": {"not": {"did": "b"}}}]}, "did a or not: did not do b"),
]


@pytest.mark.parametrize(("part", "words"), [*SAID_BY_ROWS, *SAID_BY_DOCUMENTS])
def test_each_condition_is_one_and_is_told_in_words(part: dict[str, Any], words: str) -> None:
    who = read_audience({"audience": "a", "tenant": "t", "who": part}).who
    assert told(who) == words


@pytest.mark.parametrize("join", ["all", "any"])
def test_a_form_says_what_the_document_says(join: str) -> None:
    who = {join: [part for part, _ in SAID_BY_ROWS]}
    found = rows_of(who)
    assert found is not None
    assert condition_of(*found) == who
    assert len(found[1]) == len(SAID_BY_ROWS)


@pytest.mark.parametrize("part", [part for part, _ in SAID_BY_DOCUMENTS])
def test_what_a_form_can_not_say_it_does_not_show(part: dict[str, Any]) -> None:
    assert rows_of({"all": [{"did": "view"}, part]}) is None


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (Row(name=" "), "Condition 2: say an action."),
        (Row(name="view", count="x"), "Condition 2: 'x' is no number."),
        (Row(name="view", days="1.5"), "Condition 2: '1.5' is no number."),
        (Row("spent"), "Condition 2: say an amount."),
        (Row("odd"), "Condition 2: there is no kind 'odd'."),
    ],
)
def test_a_row_that_misses_something_is_named(row: Row, why: str) -> None:
    with pytest.raises(ConfigError, match="Condition 2") as found:
        condition_of("all", [Row(name="view"), row])
    assert str(found.value) == why
