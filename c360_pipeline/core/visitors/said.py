"""What events say of a customer from then on: traits, and consents to purposes."""

import json
from collections.abc import Sequence

import polars as pl

from c360_pipeline.core.catalog.tables import USER_CONSENTS, USER_TRAITS
from c360_pipeline.core.contract.frames import ENTRIES
from c360_pipeline.core.sources.mapping import DENIED, GRANTED

CUSTOMER = ["tenant_id", "customer_id"]
PERSONAL = (
    "email", "e-mail", "mail", "phone", "mobile", "name", "firstname", "lastname", "fullname", "displayname",
    "username", "login", "address", "street", "city", "zip", "postalcode", "birthday", "birthdate", "dateofbirth",
    "age", "gender", "avatar", "title", "ssn", "passport", "iban", "ip",
)  # fmt: skip
"""Last parts of the names of traits that describe a person, without what is neither letter nor digit."""

_BY_TIME = ("ts", "event_id", "name")


def user_traits(events: pl.DataFrame) -> pl.DataFrame:
    """Rows of `USER_TRAITS`: each change of a trait of a customer.

    Args:
        events: all of each customer, as `counting.counted` gives them.
    """
    word = pl.col("name").str.split(".").list.last().str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}-]", "")
    rows = _changes(events, "traits", pl.col("value"))
    named = rows.with_columns(is_personal=word.is_in([*PERSONAL]))
    return named.select(list(USER_TRAITS.columns))


def user_consents(events: pl.DataFrame) -> pl.DataFrame:
    """Rows of `USER_CONSENTS`: each change of what a customer agreed to. What is not granted is denied."""
    rows = _changes(events, "consent", _state(pl.col("value")))
    return rows.rename({"name": "purpose", "value": "state"}).select(list(USER_CONSENTS.columns))


def newest(events: pl.DataFrame, column: str) -> pl.DataFrame:
    """tenant_id, customer_id, and the newest value of each name that a column of maps has for the customer.

    Args:
        events: all of each customer, as `counting.counted` gives them.
        column: `traits`, or `consent`, whose values are states then.

    Returns:
        tenant_id, customer_id, said (map of texts); customers of whom nothing is said are left out.
    """
    return newest_as_maps(_said(events.lazy(), column, _value_of(column)), CUSTOMER)


def newest_values(events: pl.LazyFrame, column: str) -> pl.LazyFrame:
    """The same as rows: tenant_id, customer_id, name, value."""
    return _last(_said(events, column, _value_of(column)), CUSTOMER)


def refusing(events: pl.LazyFrame, purposes: pl.DataFrame) -> pl.LazyFrame:
    """tenant_id, customer_id of customers whose newest word on a purpose is no.

    Args:
        events: all of each customer, as `counting.counted` gives them.
        purposes: tenant_id, purpose; those that are asked for.
    """
    asked = purposes.lazy().rename({"purpose": "name"})
    said = _said(events, "consent", _state(pl.col("value"))).join(asked, on=["tenant_id", "name"], how="semi")
    return _last(said, CUSTOMER).filter(pl.col("value") == DENIED).select("tenant_id", "customer_id").unique()


def broken_histories(changes: pl.LazyFrame, of: Sequence[str]) -> pl.LazyFrame:
    """What has not one value at a time: ends that are not where the next value begins, or no value of today.

    Args:
        changes: rows of `USER_TRAITS` or `USER_CONSENTS`.
        of: the columns that name what has a history.

    Returns:
        the columns of `of`, wrong_ends (rows); none where all is right.
    """
    following = pl.col("set_at").shift(-1).over(of)
    ends = changes.sort(*of, "set_at", "event_id").with_columns(is_wrong=pl.col("until").ne_missing(following))
    return ends.group_by(of).agg(wrong_ends=pl.col("is_wrong").sum()).filter(pl.col("wrong_ends") > 0)


def state_of(word: str) -> str:
    """The state of one word."""
    return GRANTED if word.lower() == GRANTED else DENIED


def refusal(purpose: str) -> str:
    """What the property `consents` of users who refused a purpose holds."""
    return f'{json.dumps(purpose, ensure_ascii=False)}: "{DENIED}"'


def each_entry(rows: pl.LazyFrame, column: str, of: Sequence[str]) -> pl.LazyFrame:
    """The entries of maps: the columns of `of`, ts, event_id, name, value; one row each.

    Args:
        rows: with ts and event_id.
        column: the maps.
        of: whose they are.
    """
    entries = pl.col(column).cast(ENTRIES)
    held = rows.filter(entries.list.len() > 0).select(*of, "ts", "event_id", entry=entries)
    each = held.explode("entry").with_columns(
        name=pl.col("entry").struct.field("key"), value=pl.col("entry").struct.field("value")
    )
    return each.drop("entry")


def newest_as_maps(said: pl.LazyFrame, of: Sequence[str]) -> pl.DataFrame:
    """The columns of `of`, and the newest value of each name as `said` (map of texts).

    Args:
        said: rows of `each_entry`, in any order.
        of: whose they are.
    """
    entry = pl.struct(pl.col("name").alias("key"), "value")
    found = _last(said, of).group_by(of, maintain_order=True).agg(said=entry).collect()
    return found.with_columns(pl.col("said").cast(pl.Map(pl.String, pl.String)))


def _last(said: pl.LazyFrame, of: Sequence[str]) -> pl.LazyFrame:
    """The columns of `of`, name, value: the newest of each name."""
    # Sorted here: the planner drops a sort that a join comes after.
    return said.sort(*_BY_TIME).group_by(*of, "name", maintain_order=True).agg(pl.col("value").last())


def _value_of(column: str) -> pl.Expr:
    """What an entry of a column of maps says: of consents the state."""
    return _state(pl.col("value")) if column == "consent" else pl.col("value")


def _state(value: pl.Expr) -> pl.Expr:
    return pl.when(value.str.to_lowercase() == GRANTED).then(pl.lit(GRANTED)).otherwise(pl.lit(DENIED))


def _said(events: pl.LazyFrame, column: str, value: pl.Expr) -> pl.LazyFrame:
    """tenant_id, customer_id, ts, event_id, name, value: one row per event and name."""
    return each_entry(events.drop_nulls("customer_id"), column, CUSTOMER).with_columns(value.alias("value"))


def _changes(events: pl.DataFrame, column: str, value: pl.Expr) -> pl.DataFrame:
    of = ["tenant_id", "customer_id", "name"]
    said = _said(events.lazy(), column, value).sort(*_BY_TIME).collect()
    kept = said.filter(pl.col("value").ne_missing(pl.col("value").shift(1).over(of)))
    return kept.with_columns(set_at="ts", until=pl.col("ts").shift(-1).over(of)).rename({"customer_id": "user_id"})
