"""Whom an audience holds on a day: one query over events, of all audiences of a tenant together.

A customer is in an audience by what the archive has of the days up to and with a UTC day, so that within a day only
who did something can come in or go. Equal events, facts and day give equal members, in whatever order events came.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import polars as pl

from c360_pipeline.core.audiences.definition import (
    ANY_ACTION,
    AccountValue,
    All,
    AnyOf,
    Audience,
    Community,
    Condition,
    Consent,
    Did,
    Events,
    Group,
    Label,
    Leaf,
    Leaving,
    Not,
    Risk,
    Sequence,
    Spent,
    Trait,
    Value,
    YearlyValue,
    leaves_of,
    text_of,
)
from c360_pipeline.core.projection.items import CURRENCY, PURCHASE, each_item, revenue
from c360_pipeline.core.visitors.said import newest_values

NEEDED = ("tenant_id", "event_id", "customer_id", "ts", "action", "item_id", "items", "attrs", "traits", "consent",
          "group_id", "group_type")  # fmt: skip
"""Columns of events as `core.visitors.groups.with_groups` gives them that conditions ask for."""
CUSTOMER = "customer_id"
MEMBERS = {"tenant_id": pl.String, "audience": pl.String, "user_id": pl.String}


@dataclass(frozen=True)
class Facts:
    """What is known of one tenant beside its events.

    Attributes:
        categories: id, category of products.
        communities: user_id, community.
        accounts: user_id, risk_level, monthly_value of the accounts of users.
        customers: user_id, level (how likely they leave), value_in_a_year; null where that is not known.
        labels: by `label_key`, user_id and value of the linked nodes; value is null where no property is asked for.
    """

    categories: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(schema={"id": pl.String, "category": pl.String})
    )
    communities: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(schema={"user_id": pl.String, "community": pl.Int64})
    )
    accounts: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(
            schema={"user_id": pl.String, "risk_level": pl.String, "monthly_value": pl.Float64}
        )
    )
    customers: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(
            schema={"user_id": pl.String, "level": pl.String, "value_in_a_year": pl.Float64}
        )
    )
    labels: Mapping[tuple[str, str | None], pl.DataFrame] = field(default_factory=dict)


def label_key(label: Label) -> tuple[str, str | None]:
    """By what `Facts.labels` knows the nodes that a condition asks for."""
    return label.label, label.property


def members(events: pl.LazyFrame, audiences: Iterable[Audience], facts: Facts, day: date) -> pl.DataFrame:
    """Who is in audiences of one tenant on a day.

    Args:
        events: `NEEDED` of that tenant; all of each customer who may be a member. They are read once for each condition
            that is no count, so let them lie on disk or in memory.
        audiences: of that tenant.
        facts: of that tenant.
        day: the last day, in UTC, whose events count.

    Returns:
        `MEMBERS`, sorted.
    """
    chosen = list(audiences)
    end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    past = events.filter(pl.col(CUSTOMER).is_not_null() & (pl.col("ts") < end))
    names: dict[str, str] = {}
    leaves: dict[str, Leaf] = {}
    for leaf in (leaf for one in chosen for leaf in leaves_of(one.who)):
        leaves.setdefault(names.setdefault(text_of(leaf), f"condition_{len(names)}"), leaf)
    of_events = [
        expression.alias(name)
        for name, leaf in leaves.items()
        if (expression := _counted(leaf, facts, end)) is not None
    ]
    held = past.group_by("tenant_id", CUSTOMER).agg(*of_events)
    for name, leaf in leaves.items():
        if isinstance(leaf, Did):
            continue
        found = _FRAMES[type(leaf)](leaf, past, facts, end).select(CUSTOMER).unique()
        held = held.join(found.with_columns(pl.lit(value=True).alias(name)), on=CUSTOMER, how="left")
    states = held.with_columns(pl.col(list(leaves)).fill_null(value=False)).collect(engine="streaming")
    parts = [
        states.filter(_holds(one.who, names)).select("tenant_id", audience=pl.lit(one.audience), user_id=CUSTOMER)
        for one in chosen
    ]
    return pl.concat([pl.DataFrame(schema=MEMBERS), *parts]).sort(list(MEMBERS))


def _holds(condition: Condition, names: Mapping[str, str]) -> pl.Expr:
    match condition:
        case All():
            return pl.all_horizontal(_holds(part, names) for part in condition.all)
        case AnyOf():
            return pl.any_horizontal(_holds(part, names) for part in condition.any)
        case Not():
            return ~_holds(condition.not_, names)
        case _:
            return pl.col(names[text_of(condition)])


def _is_meant(events: Events, facts: Facts) -> pl.Expr:
    """Whether an event is one of those that are meant."""
    actions = [events.did] if isinstance(events.did, str) else events.did
    found = pl.lit(value=True) if ANY_ACTION in actions else pl.col("action").is_in(actions)
    for ids in (events.item, _ids_in(events.category, facts)):
        if ids is not None:
            of_order = pl.col("items").list.eval(pl.element().struct.field("id").is_in(ids)).list.any()
            # An event that lists products is about these, as everywhere.
            has_several = pl.col("items").list.len().fill_null(0) > 0
            found &= pl.when(has_several).then(of_order).otherwise(pl.col("item_id").is_in(ids)).fill_null(value=False)
    for name, value in (events.where or {}).items():
        found &= pl.col("attrs").map.get(name) == value
    return found.fill_null(value=False)


def _ids_in(categories: list[str] | None, facts: Facts) -> list[str] | None:
    if categories is None:
        return None
    return facts.categories.filter(pl.col("category").is_in(categories))["id"].to_list()


def _since(end: datetime, days: int | None) -> pl.Expr:
    """Whether an event is of the last days before an end; all are where none are named."""
    return pl.lit(value=True) if days is None else pl.col("ts") >= end - timedelta(days=days)


def _counted(leaf: Leaf, facts: Facts, end: datetime) -> pl.Expr | None:
    """A condition that counts events, for the events of a customer together; None for other conditions."""
    if not isinstance(leaf, Did):
        return None
    is_meant = _is_meant(leaf, facts)
    count = (is_meant & _since(end, leaf.within_days)).sum()
    found = count >= leaf.least
    if leaf.at_most is not None:
        found &= count <= leaf.at_most
    if leaf.first_within_days is not None:
        found &= (pl.col("ts").filter(is_meant).min() >= end - timedelta(days=leaf.first_within_days)).fill_null(False)
    if leaf.last_before_days is not None:
        found &= (pl.col("ts").filter(is_meant).max() < end - timedelta(days=leaf.last_before_days)).fill_null(False)
    return found


def _sequence(leaf: Sequence, past: pl.LazyFrame, facts: Facts, end: datetime) -> pl.LazyFrame:
    recent = past.filter(_since(end, leaf.within_days))
    longest = None if leaf.each_within_hours is None else timedelta(hours=leaf.each_within_hours)
    reached: pl.LazyFrame | None = None
    for step in leaf.sequence:
        found = recent.filter(_is_meant(step, facts)).select(CUSTOMER, "ts").unique().sort("ts")
        if reached is not None:
            # The latest earlier one is the nearest: where that is too long ago, each is.
            found = found.join_asof(
                reached.with_columns(before="ts"), on="ts", by=CUSTOMER, strategy="backward", tolerance=longest,
                allow_exact_matches=False, check_sortedness=False,
            ).filter(pl.col("before").is_not_null()).select(CUSTOMER, "ts")  # fmt: skip
        reached = found
    return recent.select(CUSTOMER).head(0) if reached is None else reached


def _spent(leaf: Spent, past: pl.LazyFrame, facts: Facts, end: datetime) -> pl.LazyFrame:
    bought = past.filter(_since(end, leaf.within_days) & (pl.col("action") == PURCHASE))
    items = each_item(bought.select("tenant_id", "event_id", CUSTOMER, "item_id", "items"))
    if leaf.currency is not None:
        items = items.filter(pl.col(CURRENCY) == leaf.currency)
    paid = items.group_by(CUSTOMER).agg(paid=revenue())
    return paid.filter(_bounded(pl.col("paid"), leaf.spent.at_least, leaf.spent.at_most))


def _trait(leaf: Trait, past: pl.LazyFrame, facts: Facts, end: datetime) -> pl.LazyFrame:
    said = newest_values(past, "traits").filter(pl.col("name") == leaf.trait)
    return said.filter(_fits(pl.col("value"), leaf))


def _consent(leaf: Consent, past: pl.LazyFrame, facts: Facts, end: datetime) -> pl.LazyFrame:
    said = newest_values(past, "consent").filter(pl.col("name") == leaf.consent)
    if leaf.is_ == "unknown":
        return past.select(CUSTOMER).join(said, on=CUSTOMER, how="anti")
    return said.filter(pl.col("value") == leaf.is_)


def _group(leaf: Group, past: pl.LazyFrame, facts: Facts, end: datetime) -> pl.LazyFrame:
    named = past.filter(pl.col("group_id").is_not_null() & (pl.col("group_type") == leaf.group))
    return named if leaf.id is None else named.filter(pl.col("group_id") == leaf.id)


def _community(leaf: Community, past: pl.LazyFrame, facts: Facts, end: datetime) -> pl.LazyFrame:
    return _of_users(facts.communities.filter(pl.col("community").is_in(leaf.community)))


def _risk(leaf: Risk, past: pl.LazyFrame, facts: Facts, end: datetime) -> pl.LazyFrame:
    return _of_users(facts.accounts.filter(pl.col("risk_level").is_in(leaf.risk)))


def _value(leaf: AccountValue, past: pl.LazyFrame, facts: Facts, end: datetime) -> pl.LazyFrame:
    bounds = leaf.monthly_value
    return _of_users(facts.accounts.filter(_bounded(pl.col("monthly_value"), bounds.at_least, bounds.at_most)))


def _leaving(leaf: Leaving, past: pl.LazyFrame, facts: Facts, end: datetime) -> pl.LazyFrame:
    return _of_users(facts.customers.filter(pl.col("level").is_in(leaf.leaving)))


def _yearly_value(leaf: YearlyValue, past: pl.LazyFrame, facts: Facts, end: datetime) -> pl.LazyFrame:
    bounds = leaf.value_in_a_year
    return _of_users(facts.customers.filter(_bounded(pl.col("value_in_a_year"), bounds.at_least, bounds.at_most)))


def _label(leaf: Label, past: pl.LazyFrame, facts: Facts, end: datetime) -> pl.LazyFrame:
    linked = facts.labels[label_key(leaf)]
    is_asked = leaf.property is not None
    return _of_users(linked.filter(_fits(pl.col("value"), leaf)) if is_asked else linked)


_FRAMES: dict[type, Callable[..., pl.LazyFrame]] = {
    Sequence: _sequence, Spent: _spent, Trait: _trait, Consent: _consent, Group: _group, Community: _community,
    Risk: _risk, AccountValue: _value, Leaving: _leaving, YearlyValue: _yearly_value, Label: _label,
}  # fmt: skip


def _of_users(rows: pl.DataFrame) -> pl.LazyFrame:
    return rows.lazy().select(pl.col("user_id").alias(CUSTOMER))


def _fits(value: pl.Expr, wanted: Value) -> pl.Expr:
    """Whether a text is what is wanted; what is no number is in no bounds."""
    if wanted.is_ is not None:
        return value == wanted.is_
    if wanted.one_of is not None:
        return value.is_in(wanted.one_of)
    if wanted.is_set is not None:
        return value.is_not_null()
    return _bounded(value.cast(pl.Float64, strict=False), wanted.at_least, wanted.at_most)


def _bounded(number: pl.Expr, least: float | None, most: float | None) -> pl.Expr:
    found = number.is_not_null() & number.is_not_nan()
    if least is not None:
        found &= number >= least
    return found if most is None else found & (number <= most)
