"""The products that events are about: one each, or those of an order."""

import polars as pl

VIEW, ADD_TO_CART, PURCHASE = "view", "add_to_cart", "purchase"
"""Actions of events by which a product was looked at, put in a cart, bought."""
QUANTITY, PRICE, CURRENCY, PAID = "quantity", "price", "currency", "paid"
MONEY = pl.Decimal(38, 6)
"""Sums of it do not depend on the order of the rows, as those of floats do."""


def each_item(events: pl.LazyFrame) -> pl.LazyFrame:
    """Events once for each different product that they are about; those about none are left out.

    Args:
        events: with event_id, item_id and items.

    Returns:
        The other columns, item_id, and of what `items` says of it: quantity (a product that is named without one counts
        as one; of one that is named twice the sum), price of one, currency, and what was paid for all of them; null
        where an event has item_id alone.
    """
    has_several = pl.col("items").list.len().fill_null(0) > 0
    schema = events.collect_schema()
    alone = events.filter(~has_several & pl.col("item_id").is_not_null()).with_columns(
        quantity=pl.lit(None, pl.Float64), price=pl.lit(None, pl.Float64), currency=pl.lit(None, pl.String),
        paid=pl.lit(None, pl.Float64),
    )  # fmt: skip
    one = pl.col("items").struct
    others = [name for name in schema.names() if name not in ("item_id", "items")]
    named = (
        events.filter(has_several)
        .explode("items")
        .select(
            *others, item_id=one.field("id"), quantity=one.field(QUANTITY).fill_null(1.0), price=one.field(PRICE),
            currency=one.field(CURRENCY), paid=one.field(QUANTITY).fill_null(1.0) * one.field(PRICE),
        )
        .group_by("tenant_id", "event_id", "item_id", maintain_order=True)
        .agg(
            *(pl.col(name).first() for name in others if name not in ("tenant_id", "event_id")),
            pl.col(QUANTITY).sum(), pl.col(PRICE).drop_nulls().first(), pl.col(CURRENCY).drop_nulls().first(),
            pl.when(pl.col(PAID).is_not_null().any()).then(pl.col(PAID).sum()).alias(PAID),
        )
    )  # fmt: skip
    columns = [*others, "item_id", QUANTITY, PRICE, CURRENCY, PAID]
    return pl.concat([alone.select(columns), named.select(columns)])


def revenue() -> pl.Expr:
    """Of rows of `each_item`, what was paid together; null where no price is known, or in more than one currency."""
    paid = pl.col(PAID).round(6).cast(MONEY, strict=False)
    is_known = paid.is_not_null().any() & (pl.col(CURRENCY).drop_nulls().n_unique() <= 1)
    return pl.when(is_known).then(paid.sum().cast(pl.Float64))


def quantity() -> pl.Expr:
    """Of rows of `each_item`, how many pieces; null where no event said so."""
    known = pl.col(QUANTITY).round(6).cast(MONEY, strict=False)
    return pl.when(known.is_not_null().any()).then(known.sum().cast(pl.Float64))
