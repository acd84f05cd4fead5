"""An audience's condition as the rows of a form, and back: what a page can show without a document."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from c360_pipeline.errors import ConfigError

FIELDS = ("kind", "holds", "name", "value", "test", "count", "days")
JOINS = {"all": "all of these hold", "any": "one of these holds"}
KINDS = {
    "did": "did", "spent": "spent", "trait": "has the trait", "consent": "consent to", "group": "belongs to a",
    "community": "is in community", "leaving": "may leave",
    "value_in_a_year": "is worth in a year", "risk": "has an account at risk", "label": "has in a silo a",
}  # fmt: skip
"""Kinds of rows, as the form calls them."""
AMOUNTS = ("spent", "value_in_a_year")
"""Kinds that ask for bounds of a number."""


@dataclass(frozen=True)
class Row:
    """A row of the form; what its kind does not ask for is empty.

    Attributes:
        kind: one of `KINDS`.
        holds: `yes`, or `no` where the condition must not hold.
        name: of an action, trait, purpose, type of group, or label.
        value: of a trait, state of a consent, id of a group, number of a community, level of risk or of leaving, or
            `property is value` of a label.
        test: `least` or `most`.
        count: of events, or an amount.
        days: of which events count; empty for all.
    """

    kind: str = "did"
    holds: str = "yes"
    name: str = ""
    value: str = ""
    test: str = "least"
    count: str = ""
    days: str = ""


def condition_of(join: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The condition that a form's rows say.

    Raises:
        ConfigError: a row misses something, or a number is none.
    """
    parts = []
    for number, row in enumerate(rows, start=1):
        try:
            part = _part(row)
        except ValueError as error:
            raise ConfigError(f"Condition {number}: {error}.") from None
        parts.append({"not": part} if row.holds == "no" else part)
    if not parts:
        raise ConfigError("Say one condition at least.")
    return {join if join in JOINS else "all": parts}


def rows_of(who: Mapping[str, Any]) -> tuple[str, list[Row]] | None:
    """How a form joins and says a condition; None where it has no rows for it."""
    join = next((word for word in JOINS if [*who] == [word]), None)
    parts = who[join] if join else [who]
    found = []
    for part in parts:
        is_not = [*part] == ["not"]
        row = _row(part["not"] if is_not else part, "no" if is_not else "yes")
        if row is None:
            return None
        found.append(row)
    # The form must say what the document says, and no less.
    try:
        again = condition_of(join or "all", found)
    except ConfigError:
        return None
    return (join or "all", found) if again == (dict(who) if join else {"all": [dict(who)]}) else None


def _part(row: Row) -> dict[str, Any]:
    if row.kind not in _TO:
        raise ValueError(f"there is no kind {row.kind!r}")
    return _TO[row.kind](row)


def _did(row: Row) -> dict[str, Any]:
    count = _number(row.count or "1", whole=True)
    bounds = {"at_most": count} if row.test == "most" else {} if count == 1 else {"at_least": count}
    return {"did": _said(row.name, "an action"), **bounds, **_days(row)}


def _amount(row: Row) -> dict[str, Any]:
    return {"at_most" if row.test == "most" else "at_least": _number(_said(row.count, "an amount"))}


def _trait(row: Row) -> dict[str, Any]:
    value: dict[str, Any] = {"is": row.value.strip()} if row.value.strip() else {"is_set": True}
    return {"trait": _said(row.name, "the name of a trait"), **value}


def _consent(row: Row) -> dict[str, Any]:
    return {"consent": _said(row.name, "a purpose"), "is": row.value.strip() or "granted"}


def _group(row: Row) -> dict[str, Any]:
    named = {"id": row.value.strip()} if row.value.strip() else {}
    return {"group": _said(row.name, "a type of group"), **named}


def _label(row: Row) -> dict[str, Any]:
    name, is_, value = row.value.partition(" is ")
    asked: dict[str, Any] = {"property": name.strip(), "is": value.strip()} if is_ else {"is_set": True}
    return {"label": _said(row.name, "a label"), **asked}


_TO: dict[str, Callable[[Row], dict[str, Any]]] = {
    "did": _did, "spent": lambda row: {"spent": _amount(row), **_days(row)},
    "trait": _trait, "consent": _consent, "group": _group, "label": _label,
    "community": lambda row: {"community": [_number(_said(row.value, "a number"), whole=True)]},
    "risk": lambda row: {"risk": [_said(row.value, "a level: low, medium, high or left")]},
    "leaving": lambda row: {"leaving": [_said(row.value, "a level: low, medium or high")]},
    "value_in_a_year": lambda row: {"value_in_a_year": _amount(row)},
}  # fmt: skip


def _row(part: Mapping[str, Any], holds: str) -> Row | None:
    """A row that may say a condition; whether it says all of it is looked at afterwards."""
    kind = next((word for word in KINDS if word in part), None)
    said = part.get(kind or "")
    bounds = said if kind in AMOUNTS and isinstance(said, Mapping) else part
    has_most = "at_most" in bounds
    count = bounds.get("at_most" if has_most else "at_least", 1 if kind == "did" else "")
    value = part.get("is", part.get("id", ""))
    if kind in ("community", "risk", "leaving"):
        value = said[0] if isinstance(said, list) else ""
    elif kind == "label" and "property" in part:
        value = f"{part['property']} is {value}"
    is_named = kind in ("did", "trait", "consent", "group", "label") and isinstance(said, str)
    has_count = kind in ("did", *AMOUNTS)
    return None if kind is None else Row(
        kind, holds, str(said) if is_named else "", str(value), "most" if has_most else "least",
        str(count) if has_count else "", str(part.get("within_days", "")),
    )  # fmt: skip


def _said(text: str, what: str) -> str:
    if not text.strip():
        raise ValueError(f"say {what}")
    return text.strip()


def _number(text: str, *, whole: bool = False) -> float:
    try:
        return int(text) if whole or text.strip().lstrip("-").isdecimal() else float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


def _days(row: Row) -> dict[str, Any]:
    return {"within_days": _number(row.days, whole=True)} if row.days.strip() else {}
