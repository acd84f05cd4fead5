"""Products with the same customers, and products viewed in the same sessions."""

import polars as pl

from c360_pipeline.core.catalog.feature_tables import PRODUCT_SIMILARITIES
from c360_pipeline.core.features.communities import LONGEST_BROWSING, SIMILAR_PRODUCTS, number_members
from c360_pipeline.core.features.ranks import best_of_each

MOST_TOUCHED = 1_000
"""Products of one customer; those who touched more are machines, and are like everything."""
SAME_CUSTOMERS, VIEWED_TOGETHER = "same_customers", "viewed_together"


def customers_of_products(weights: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Number products and users of one tenant so that products lead to their customers, as node similarity wants it.

    Args:
        weights: as `interaction_weights` returns them.

    Returns:
        Members and edges (source: a product, target: a user), as `number_members`.
    """
    of_people = weights.filter(pl.len().over("tenant_id", "user_id") <= MOST_TOUCHED)
    members, edges = number_members(of_people)
    return members, edges.select(source="target", target="source")


def shared_customers(pairs: pl.DataFrame, edges: pl.DataFrame) -> pl.DataFrame:
    """Say of similar products how many customers they share.

    Jaccard is shared / (a + b - shared), so that the shared ones follow from it and the two degrees.

    Args:
        pairs: source, target, similarity.
        edges: source, target; each once.
    """
    degrees = edges.group_by(node="source").agg(degree=pl.len().cast(pl.Int64))
    both = pairs.join(degrees, left_on="source", right_on="node").join(
        degrees, left_on="target", right_on="node", suffix="_of_target"
    )
    degree_sum = pl.col("degree") + pl.col("degree_of_target")
    shared = (pl.col("similarity") * degree_sum / (1 + pl.col("similarity"))).round().cast(pl.Int64)
    return both.select("source", "target", "similarity", shared=shared)


def similar_by_customers(tenant_id: str, members: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """`PRODUCT_SIMILARITIES` rows of the products that share customers.

    Args:
        tenant_id: whose products they are.
        members: as `customers_of_products` returns them.
        pairs: source, target, similarity (Jaccard of their customers), shared (customers).
    """
    name = members.select("node_id", "member")
    named = pairs.join(name, left_on="source", right_on="node_id").join(
        name, left_on="target", right_on="node_id", suffix="_of_target"
    )
    return _best_of_each(
        named.select(
            pl.lit(tenant_id).alias("tenant_id"), pl.lit(SAME_CUSTOMERS).alias("kind"), "similarity", "shared",
            product_id="member", similar_product_id="member_of_target",
        )
    )  # fmt: skip


def similar_by_sessions(views: pl.LazyFrame) -> pl.DataFrame:
    """`PRODUCT_SIMILARITIES` rows of products that were viewed in the same sessions, two sessions at least.

    Args:
        views: tenant_id, session_id, item_id of events; similarity is the Jaccard of the products' sessions.
    """
    of_session = ["tenant_id", "session_id"]
    seen = views.drop_nulls("item_id").unique([*of_session, "item_id"])
    seen = seen.filter(pl.len().over(of_session) <= LONGEST_BROWSING)
    sessions = seen.group_by("tenant_id", "item_id").agg(sessions=pl.len())
    pairs = seen.join(seen, on=of_session, suffix="_2").filter(pl.col("item_id") != pl.col("item_id_2"))
    counted = pairs.group_by("tenant_id", "item_id", "item_id_2").agg(shared=pl.len()).filter(pl.col("shared") > 1)
    both = counted.join(sessions, on=["tenant_id", "item_id"]).join(
        sessions, left_on=["tenant_id", "item_id_2"], right_on=["tenant_id", "item_id"], suffix="_2"
    )
    either = pl.col("sessions") + pl.col("sessions_2") - pl.col("shared")
    rows = both.select(
        "tenant_id", pl.lit(VIEWED_TOGETHER).alias("kind"), (pl.col("shared") / either).alias("similarity"),
        pl.col("shared").cast(pl.Int64), product_id="item_id", similar_product_id="item_id_2",
    )  # fmt: skip
    return _best_of_each(rows.collect())


def _best_of_each(pairs: pl.DataFrame) -> pl.DataFrame:
    """The most similar of each product, links by id."""
    of_product = ["tenant_id", "kind", "product_id"]
    best = best_of_each(pairs, of_product, {"similarity": True, "similar_product_id": False}, SIMILAR_PRODUCTS)
    return best.select(list(PRODUCT_SIMILARITIES.columns))
