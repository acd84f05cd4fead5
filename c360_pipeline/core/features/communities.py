"""Features: numbers that the graph's algorithms give to users and products, in a form that two runs share."""

import polars as pl

from c360_pipeline.core.catalog.tables import PRODUCT_SIMILARITIES, USER_COMMUNITIES


def interaction_weights(views: pl.DataFrame, purchases: pl.DataFrame, purchase_weight: float = 5.0) -> pl.DataFrame:
    """How strongly users and products are tied: views count one each, purchases `purchase_weight`.

    Returns:
        tenant_id, user_id, product_id, weight, sorted: the same input gives the same rows in the same order.
    """
    tied = pl.concat(
        [
            views.select("tenant_id", "from_id", "to_id", weight=pl.col("count").cast(pl.Float64)),
            purchases.select("tenant_id", "from_id", "to_id", weight=pl.col("count") * purchase_weight),
        ]
    )
    return (
        tied.group_by("tenant_id", user_id=pl.col("from_id"), product_id=pl.col("to_id"))
        .agg(weight=pl.col("weight").sum())
        .sort("tenant_id", "user_id", "product_id")
    )


def number_members(weights: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Number users and products of one tenant for an algorithm, by id: independent of the graph's own node ids.

    Returns:
        Members (node_id, member, is_user) and edges (source, target, weight).
    """
    user_ids = weights["user_id"].unique().sort()
    product_ids = weights["product_id"].unique().sort()
    members = pl.concat(
        [
            pl.DataFrame({"member": user_ids, "is_user": True}),
            pl.DataFrame(
                {"member": product_ids, "is_user": False}, schema={"member": pl.String, "is_user": pl.Boolean}
            ),
        ]
    ).with_row_index("node_id")
    members = members.with_columns(pl.col("node_id").cast(pl.Int64))
    sources = members.filter("is_user").select(source="node_id", user_id="member")
    targets = members.filter(~pl.col("is_user")).select(target="node_id", product_id="member")
    edges = weights.join(sources, on="user_id", maintain_order="left").join(
        targets, on="product_id", maintain_order="left"
    )
    return members, edges.select("source", "target", "weight")


def canonical_communities(tenant_id: str, members: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """Number an algorithm's communities by their first user, so that equal partitions get equal numbers.

    Args:
        tenant_id: whose users they are.
        members: as `number_members` returns them.
        labels: node_id, label.

    Returns:
        Rows of `USER_COMMUNITIES`; `community_size` counts users.
    """
    of_users = members.filter("is_user").join(labels, on="node_id").select("label", user_id="member")
    first = of_users.group_by("label").agg(first=pl.col("user_id").min(), community_size=pl.len().cast(pl.Int64))
    numbered = first.sort("first").with_row_index("community").with_columns(pl.col("community").cast(pl.Int64))
    return (
        of_users.join(numbered, on="label")
        .select(pl.lit(tenant_id).alias("tenant_id"), "user_id", "community", "community_size")
        .select(list(USER_COMMUNITIES.columns))
        .sort("user_id")
    )


def modularity(edges: pl.DataFrame, labels: pl.DataFrame) -> float:
    """How much more weight lies within communities than chance would put there, from -0.5 to 1.

    Source: Newman, "Analysis of weighted networks": the share of weight within each community less the square of its
    share of all degrees.

    Args:
        edges: source, target, weight; undirected, each once.
        labels: node_id, label.
    """
    total = float(edges["weight"].sum())
    if not total:
        return 0.0
    label = labels.select("node_id", "label")
    ends = edges.join(label, left_on="source", right_on="node_id").join(
        label, left_on="target", right_on="node_id", suffix="_of_target"
    )
    within = float(ends.filter(pl.col("label") == pl.col("label_of_target"))["weight"].sum()) / total
    degrees = pl.concat([ends.select("label", "weight"), ends.select(label="label_of_target", weight="weight")])
    shares = degrees.group_by("label").agg(share=pl.col("weight").sum() / (2 * total))["share"]
    return within - float((shares**2).sum())


SAME_CUSTOMERS, VIEWED_TOGETHER = "same_customers", "viewed_together"
SIMILAR_PRODUCTS = 10
"""Kept of each product and kind."""
LONGEST_BROWSING = 50
"""Products that one session views; those who view more are machines, and pair everything with everything."""


def customers_of_products(weights: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Number products and users of one tenant so that products lead to their customers, as node similarity wants it.

    Args:
        weights: as `interaction_weights` returns them.

    Returns:
        Members and edges (source: a product, target: a user), as `number_members`.
    """
    members, edges = number_members(weights)
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
    """The most similar of each product, ties by id."""
    of_product = ["tenant_id", "kind", "product_id"]
    ordered = pairs.sort(*of_product, "similarity", "similar_product_id", descending=[False] * 3 + [True, False])
    ranked = ordered.with_columns(rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over(of_product))
    return ranked.filter(pl.col("rank") <= SIMILAR_PRODUCTS).select(list(PRODUCT_SIMILARITIES.columns))
