"""Traits that are properties of users: which, under what names, of what types."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import polars as pl

from c360_pipeline.core.projection.graph import CUSTOMER_ID, INSTANT, REAL, TEXT, WHOLE, NodeKind
from c360_pipeline.core.visitors.said import newest

TYPES: dict[str, pl.DataType] = {
    "text": TEXT, "integer": WHOLE, "number": REAL, "boolean": pl.Boolean(), "instant": INSTANT
}  # fmt: skip
EVERY_TENANT = "*"
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")
WHOLE_BELOW = 2.0**53
"""Numbers from there on are not whole for certain."""


@dataclass(frozen=True, order=True)
class UserProperty:
    """A control row of `user_properties`.

    Attributes:
        tenant_id: whose; `*` speaks for every tenant that has no row of its own for the property.
        property: of users in the graph.
        trait: whose newest value it has.
        type: one of `TYPES`; of one property the same for all tenants, which the control database sees to.
    """

    tenant_id: str
    property: str
    trait: str
    type: str


def property_kinds(properties: Iterable[UserProperty]) -> tuple[NodeKind, ...]:
    """Users with one property each, by name."""
    types = {one.property: TYPES[one.type] for one in properties}
    return tuple(
        NodeKind("User", ("id",), {"id": TEXT, name: dtype}, is_owned=True) for name, dtype in sorted(types.items())
    )


def values(events: pl.DataFrame, properties: Sequence[UserProperty]) -> pl.DataFrame:
    """The properties of the customers that some events count for.

    Args:
        events: all of each customer, as `EventsAt.counted` gives them.
        properties: which.

    Returns:
        tenant_id, id, and a column for each property: null where nothing was said, or no value of the type.
    """
    customers = events.select("tenant_id", CUSTOMER_ID).drop_nulls().unique()
    said = newest(events, "traits")
    rows = customers.join(said, on=["tenant_id", CUSTOMER_ID], how="left")
    names = [kind.owned_property for kind in property_kinds(properties)]
    columns = {name: _value(name, properties) for name in names}
    return rows.select("tenant_id", id=CUSTOMER_ID, **columns)


def _value(name: str, properties: Sequence[UserProperty]) -> pl.Expr:
    rows = [one for one in properties if one.property == name]
    own = {one.tenant_id: pl.col("said").map.get(one.trait) for one in rows}
    text = own.pop(EVERY_TENANT, pl.lit(None, pl.String))
    for tenant, value in own.items():
        text = pl.when(pl.col("tenant_id") == tenant).then(value).otherwise(text)
    return typed(text, rows[0].type)


def typed(text: pl.Expr, kind: str) -> pl.Expr:
    """Texts as values of a type; null where a text is none."""
    if kind == "text":
        return text
    bare = text.str.strip_chars()
    if kind == "boolean":
        small = bare.str.to_lowercase()
        return pl.when(small.is_in(TRUE)).then(True).when(small.is_in(FALSE)).then(False)
    if kind == "instant":
        day = bare.str.to_datetime("%Y-%m-%d", strict=False, time_unit="us", time_zone="UTC")
        at = pl.coalesce(bare.str.to_datetime("%+", strict=False, time_unit="us", time_zone="UTC"), day)
        return pl.when(at.dt.year().is_between(1, 9999)).then(at)
    number = bare.cast(pl.Float64, strict=False)
    number = pl.when(number.is_finite()).then(number)
    if kind == "number":
        return number
    whole = bare.cast(pl.Int64, strict=False)
    is_whole = (number == number.round()) & (number.abs() < WHOLE_BELOW)
    return pl.coalesce(whole, pl.when(is_whole).then(number).cast(pl.Int64, strict=False))


def as_text(properties: Iterable[UserProperty]) -> str:
    """For the checkpoint of a graph that has them."""
    return json.dumps([asdict(one) for one in sorted(properties)])


def from_text(text: str) -> tuple[UserProperty, ...]:
    """The inverse of `as_text`."""
    return tuple(UserProperty(**one) for one in json.loads(text))
