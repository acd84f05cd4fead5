"""Events by day: how many of each source and action, in which hour, and what purchases come to."""

import polars as pl

from c360_pipeline.core.catalog.tables import DAILY_EVENTS
from c360_pipeline.core.projection.items import MONEY, PURCHASE

NEEDED = ("tenant_id", "event_date", "ts", "source", "action", "items")
"""Columns of events that their days are counted from."""


def daily_events(events: pl.LazyFrame) -> pl.DataFrame:
    """Rows of `DAILY_EVENTS`.

    Args:
        events: `NEEDED`; all of each tenant and day.
    """
    item = pl.element().struct
    paid = item.field("quantity").fill_null(1.0) * item.field("price")
    is_purchase = pl.col("action") == PURCHASE
    amounts = pl.col("items").list.eval(paid).list.drop_nulls()
    currencies = pl.col("items").list.eval(item.field("currency")).list.drop_nulls()
    has_price = (is_purchase & (amounts.list.len() > 0)).fill_null(value=False)
    named = events.select(
        "tenant_id", pl.col("source", "action").fill_null(""), day="event_date", hour=pl.col("ts").dt.hour(),
        currency=pl.when(has_price).then(currencies.list.first()).fill_null(""),
        paid=pl.when(has_price).then(amounts.list.sum()).round(6).cast(MONEY, strict=False),
    )  # fmt: skip
    hours = {f"hour_{hour}": (pl.col("hour") == hour).sum().cast(pl.Int64) for hour in range(24)}
    revenue = pl.when(pl.col("paid").is_not_null().any()).then(pl.col("paid").sum().cast(pl.Float64))
    counted = named.group_by(DAILY_EVENTS.key).agg(events=pl.len().cast(pl.Int64), revenue=revenue, **hours)
    listed = counted.with_columns(hours=pl.concat_list(*hours))
    return listed.select(list(DAILY_EVENTS.columns)).collect(engine="streaming")
