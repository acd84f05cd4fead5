"""What customers did on each day: what value and the chance to leave are counted from."""

import polars as pl

from c360_pipeline.core.features.paths import SUPPORT
from c360_pipeline.core.projection.items import ADD_TO_CART, CURRENCY, MONEY, PAID, PURCHASE, QUANTITY, each_item

NEEDED = ("tenant_id", "event_id", "user_id", "session_id", "item_id", "items", "ts", "action")
"""Columns of events that days are counted from; `user_id` is the customer."""
DAYS = {
    "user_id": pl.String, "day": pl.Date, "events": pl.Int64, "sessions": pl.Int64, "carts": pl.Int64,
    "support": pl.Int64, "orders": pl.Int64, "paid": pl.Float64,
}  # fmt: skip


def customer_days(events: pl.LazyFrame, catalog: pl.LazyFrame, currency: str | None) -> pl.DataFrame:
    """`DAYS` rows: one for each customer and UTC day with events.

    Args:
        events: `NEEDED` of one tenant.
        catalog: id, price of its products: what a purchase is worth whose event says no price.
        currency: prices of events in another one are left out; prices without a currency count.

    Returns:
        Sorted by user_id and day. `paid` is null where no price is known.
    """
    known = events.drop_nulls("user_id").with_columns(day=pl.col("ts").dt.date())
    by = ["user_id", "day"]
    counted = known.group_by(by).agg(
        events=pl.len().cast(pl.Int64),
        sessions=pl.col("session_id").n_unique().cast(pl.Int64),
        **{
            name: (pl.col("action") == action).sum().cast(pl.Int64)
            for name, action in (("carts", ADD_TO_CART), ("support", SUPPORT), ("orders", PURCHASE))
        },
    )
    bought = known.filter(pl.col("action") == PURCHASE).select("tenant_id", "event_id", *by, "item_id", "items")
    items = each_item(bought).join(
        catalog.select(pl.col("id").alias("item_id"), catalog_price="price"), on="item_id", how="left"
    )
    is_other = (pl.col(CURRENCY) != currency).fill_null(value=False) if currency else pl.lit(value=False)
    worth = pl.col(PAID).fill_null(pl.col(QUANTITY).fill_null(1.0) * pl.col("catalog_price"))
    paid = pl.when(~is_other).then(worth).round(6).cast(MONEY, strict=False)
    sums = items.with_columns(paid=paid).group_by(by).agg(
        paid=pl.when(pl.col("paid").is_not_null().any()).then(pl.col("paid").sum().cast(pl.Float64))
    )  # fmt: skip
    joined = counted.join(sums, on=by, how="left").select(list(DAYS))
    return joined.collect(engine="streaming").sort(by)


def main_currency(events: pl.LazyFrame) -> str | None:
    """The currency that most purchases are in, the first by name of several; None where no event names one.

    Args:
        events: event_id, action, items of one tenant.
    """
    bought = events.filter(pl.col("action") == PURCHASE).select("event_id", "items").drop_nulls().explode("items")
    named = bought.select("event_id", pl.col("items").struct.field(CURRENCY)).drop_nulls()
    counts = named.group_by(CURRENCY).agg(purchases=pl.col("event_id").n_unique()).collect(engine="streaming")
    first = counts.sort("purchases", CURRENCY, descending=[True, False])[CURRENCY]
    return None if first.is_empty() else str(first[0])
