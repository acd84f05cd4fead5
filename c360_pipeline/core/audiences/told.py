"""Conditions as people say them."""

from collections.abc import Callable
from typing import Any

from c360_pipeline.core.audiences.definition import (
    ANY_ACTION,
    AccountValue,
    All,
    AnyOf,
    Community,
    Consent,
    Did,
    Events,
    Group,
    Label,
    Leaving,
    Not,
    Risk,
    Sequence,
    Spent,
    Trait,
    Value,
    YearlyValue,
)


def told(condition: Any) -> str:
    """A condition in a line."""
    return _TELL[type(condition)](condition)


def _sequence(leaf: Sequence) -> str:
    hours = leaf.each_within_hours
    steps = ", then ".join(map(_events, leaf.sequence))
    return f"did {steps}{f', each within {hours} hours' if hours else ''}{_days(leaf.within_days)}"


def _spent(leaf: Spent) -> str:
    currency = f" {leaf.currency}" if leaf.currency else ""
    return f"spent {_bounds(leaf.spent.at_least, leaf.spent.at_most)}{currency}{_days(leaf.within_days)}"


def _consent(leaf: Consent) -> str:
    words = {"granted": "agreed to", "denied": "refused", "unknown": "said nothing of"}
    return f"{words[leaf.is_]} {leaf.consent}"


def _group(leaf: Group) -> str:
    return f"belongs to {leaf.group} {leaf.id}" if leaf.id else f"belongs to a {leaf.group}"


def _label(leaf: Label) -> str:
    article = "an" if leaf.label[0] in "AEIOU" else "a"
    return f"has {article} {leaf.label}{f' whose {leaf.property} {_value(leaf)}' if leaf.property else ''}"


def _value_of_account(leaf: AccountValue) -> str:
    return f"has an account of {_bounds(leaf.monthly_value.at_least, leaf.monthly_value.at_most)} a month"


def _yearly_value(leaf: YearlyValue) -> str:
    return f"may be expected to pay {_bounds(leaf.value_in_a_year.at_least, leaf.value_in_a_year.at_most)} in a year"


def _joined(parts: list[Any], word: str) -> str:
    texts = [told(part) for part in parts]
    return texts[0] if len(texts) == 1 else word.join(f"({text})" if _is_joined(part) else text
                                                     for part, text in zip(parts, texts, strict=True))  # fmt: skip


def _is_joined(part: Any) -> bool:
    return isinstance(part, All | AnyOf) and len(part.all if isinstance(part, All) else part.any) > 1


def _did(leaf: Did) -> str:
    least, most = leaf.least, leaf.at_most
    if most == 0:
        verb, times = "never did", ""
    elif most is not None:
        verb, times = "did", f" {least:,} to {most:,} times" if least else f" at most {_times(most)}"
    else:
        verb, times = "did", "" if least == 1 else f" at least {_times(least)}"
    first = f", the first{_days(leaf.first_within_days)}" if leaf.first_within_days else ""
    last = f", the last more than {leaf.last_before_days:,} days ago" if leaf.last_before_days else ""
    return f"{verb} {_events(leaf)}{times}{_days(leaf.within_days)}{first}{last}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _not(condition: Any) -> str:
    is_any = isinstance(condition, Did) and condition.at_most is None and condition.least == 1
    asks_more = isinstance(condition, Did) and (condition.first_within_days or condition.last_before_days)
    if is_any and not asks_more:
        return f"did not do {_events(condition)}{_days(condition.within_days)}"
    return f"not: {told(condition)}"


def _events(events: Events) -> str:
    actions = [events.did] if isinstance(events.did, str) else events.did
    text = "anything" if ANY_ACTION in actions else " or ".join(actions)
    text += f" of {_some(events.item)}" if events.item else ""
    text += f" in {_some(events.category)}" if events.category else ""
    where = " and ".join(f"{name} is {value}" for name, value in (events.where or {}).items())
    return f"{text} where {where}" if where else text


def _some(values: list[str]) -> str:
    return " or ".join(values[:3]) + (f" or {len(values) - 3:,} others" if len(values) > 3 else "")


def _days(days: int | None) -> str:
    if days is None:
        return ""
    return " today" if days == 1 else f" in the last {days:,} days"


def _value(wanted: Value) -> str:
    if wanted.is_ is not None:
        return f"is {wanted.is_}"
    if wanted.one_of is not None:
        return f"is one of {', '.join(wanted.one_of[:5])}{', …' if len(wanted.one_of) > 5 else ''}"
    return "is set" if wanted.is_set else f"is {_bounds(wanted.at_least, wanted.at_most)}"


def _bounds(least: float | None, most: float | None) -> str:
    if least is None:
        return f"at most {most:,}"
    return f"at least {least:,}" if most is None else f"{least:,} to {most:,}"


_TELL: dict[type, Callable[[Any], str]] = {
    All: lambda one: _joined(one.all, " and "),
    AnyOf: lambda one: _joined(one.any, " or "),
    Not: lambda one: _not(one.not_),
    Did: _did,
    Sequence: _sequence,
    Spent: _spent,
    Trait: lambda one: f"trait {one.trait} {_value(one)}",
    Consent: _consent,
    Group: _group,
    Community: lambda one: f"in community {' or '.join(map(str, one.community))}",
    Leaving: lambda one: f"may leave: {' or '.join(one.leaving)}",
    YearlyValue: _yearly_value,
    Risk: lambda one: f"has an account at {' or '.join(one.risk)} risk",
    AccountValue: _value_of_account,
    Label: _label,
}
