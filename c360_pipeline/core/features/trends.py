"""Trending products: what most people viewed and bought in a window of time, against the window before it.

Source: "Neo4j Integration Guide" (trending products by category and window).
"""

from datetime import timedelta

import polars as pl

from c360_pipeline.core.catalog.feature_tables import TRENDING_PRODUCTS
from c360_pipeline.core.projection.items import each_item

WINDOWS = (timedelta(days=1), timedelta(days=7), timedelta(days=30))
FEATURED = ("view", "purchase")
"""Actions that views, purchases and most features are made of."""
BUYER_WEIGHT = 5
"""A buyer counts as so many viewers."""
SCORE_IN_CYPHER = "viewers + $buyer_weight * buyers"
"""As `score` has it, for the same window looked at in the graph; `$buyer_weight` is `BUYER_WEIGHT`."""
KEPT, KEPT_OF_CATEGORY = 50, 20


def score(viewers: pl.Expr, buyers: pl.Expr) -> pl.Expr:
    """The one definition of how much a product trends, of users who viewed and who bought it within a window."""
    return viewers + BUYER_WEIGHT * buyers


def trending(events: pl.LazyFrame, products: pl.DataFrame) -> pl.DataFrame:
    """`TRENDING_PRODUCTS` rows of every tenant.

    A window ends with the tenant's newest event, and does not hold its beginning. The score of a product is the number
    of users who viewed it and five times the number who bought it; growth is that score by the score of the window
    before, where one person is the least.

    Args:
        events: tenant_id, event_id, user_id, ts, action, item_id, items.
        products: tenant_id, id, category.
    """
    newest = events.group_by("tenant_id").agg(as_of=pl.col("ts").max())
    acting = events.filter(pl.col("action").is_in(FEATURED) & pl.col("user_id").is_not_null())
    touching = each_item(acting)
    longest = 2 * max(WINDOWS)
    recent = touching.join(newest, on="tenant_id").filter(pl.col("as_of") - pl.col("ts") < longest).collect()
    categories = products.select("tenant_id", "category", product_id="id")
    return pl.concat([_of_window(recent, categories, window) for window in WINDOWS])


def _of_window(recent: pl.DataFrame, categories: pl.DataFrame, window: timedelta) -> pl.DataFrame:
    age = pl.col("as_of") - pl.col("ts")
    now = _people(recent.filter(age < window))
    before = _people(recent.filter((age >= window) & (age < 2 * window)))
    trend = score(pl.col("viewers"), pl.col("buyers"))
    scored = (
        now.with_columns(score=trend)
        .join(before.with_columns(previous_score=trend).drop("viewers", "buyers", "as_of"),
              on=["tenant_id", "product_id"], how="left")
        .join(categories, on=["tenant_id", "product_id"], how="left")
        .with_columns(pl.col("previous_score").fill_null(0))
        .with_columns(
            window_hours=pl.lit(int(window.total_seconds()) // 3600, pl.Int64),
            growth=pl.col("score") / pl.max_horizontal("previous_score", 1),
        )
        .sort("tenant_id", "score", "product_id", descending=[False, True, False])
        .with_columns(
            rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("tenant_id"),
            rank_in_category=pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("tenant_id", "category"),
        )
    )  # fmt: skip
    kept = scored.filter((pl.col("rank") <= KEPT) | (pl.col("rank_in_category") <= KEPT_OF_CATEGORY))
    return kept.select(list(TRENDING_PRODUCTS.columns))


def _people(events: pl.DataFrame) -> pl.DataFrame:
    def users(action: str) -> pl.Expr:
        return pl.col("user_id").filter(pl.col("action") == action).n_unique().cast(pl.Int64)

    return events.group_by("tenant_id", product_id="item_id").agg(
        as_of=pl.col("as_of").first(), viewers=users("view"), buyers=users("purchase")
    )
