"""What came of recommendations: whether a customer viewed or bought within a day what was recommended.

A product that is given to a customer again on the same day counts once, from the first time on.
"""

from datetime import datetime, timedelta

import polars as pl

from c360_pipeline.core.catalog.recommendation_tables import RECOMMENDATION_HITS
from c360_pipeline.core.projection.items import PURCHASE, VIEW

COUNTS_FOR = timedelta(days=1)
ALL_SOURCES = "all"
ACTED = {"who": pl.String, "product_id": pl.String, "ts": pl.Datetime("us", "UTC"), "action": pl.String}
"""Of one tenant: what `who` gives, and what they viewed or bought."""


def who(user: str, visitor: str) -> pl.Expr:
    """One name for a customer: the user, or the visitor where there is none; users and visitors are never one."""
    return pl.coalesce(pl.format("user {}", user), pl.format("visitor {}", visitor))


def recommendation_hits(given: pl.DataFrame, acted: pl.LazyFrame, newest: datetime) -> pl.DataFrame:
    """`RECOMMENDATION_HITS` rows less the tenant, sorted.

    Args:
        given: given_id, given_at, who (as `who` gives it), version, products, sources of one tenant.
        acted: `ACTED`.
        newest: when the tenant's newest event was.
    """
    by = ["day", "version", "who", "product_id"]
    each = (
        given.lazy().unique("given_id").explode("products", "sources")
        .select("given_at", "version", "who", product_id="products", source="sources", day=pl.col("given_at").dt.date())
        .drop_nulls(["who", "product_id"]).sort("given_at", "source")
        .group_by(by, maintain_order=True).agg(pl.col("given_at", "source").first())
    )  # fmt: skip
    after = pl.col("ts") - pl.col("given_at")
    did = (
        each.join(acted.filter(pl.col("action").is_in([VIEW, PURCHASE])), on=["who", "product_id"])
        .filter((after > timedelta(0)) & (after <= COUNTS_FOR))
        .group_by(by).agg(clicked=(pl.col("action") == VIEW).any(), bought=(pl.col("action") == PURCHASE).any())
    )  # fmt: skip
    told = each.join(did, on=by, how="left").with_columns(pl.col("clicked", "bought").fill_null(value=False))
    both = pl.concat([told, told.with_columns(source=pl.lit(ALL_SOURCES))])
    is_hit = pl.col("clicked") | pl.col("bought")
    counted = both.group_by("day", "version", "source").agg(
        customers=pl.col("who").n_unique().cast(pl.Int64), products=pl.len().cast(pl.Int64),
        clicked=pl.col("clicked").sum().cast(pl.Int64), bought=pl.col("bought").sum().cast(pl.Int64),
        customers_with_hit=pl.col("who").filter(is_hit).n_unique().cast(pl.Int64),
        is_complete=pl.col("given_at").max() + COUNTS_FOR <= newest,
    )  # fmt: skip
    rated = counted.with_columns(hit_rate=pl.col("customers_with_hit") / pl.col("customers"))
    columns = [name for name in RECOMMENDATION_HITS.columns if name != "tenant_id"]
    return rated.select(columns).collect(engine="streaming").sort("day", "version", "source")
