"""Features: numbers that the graph's algorithms give to users and products, in a form that two runs share."""

import polars as pl

from c360_pipeline.core.catalog.feature_tables import USER_COMMUNITIES


def interaction_weights(views: pl.DataFrame, purchases: pl.DataFrame, purchase_weight: float = 5.0) -> pl.DataFrame:
    """How strongly users and products are linked: views count one each, purchases `purchase_weight`.

    Returns:
        tenant_id, user_id, product_id, weight, sorted: the same input gives the same rows in the same order.
    """
    linked = pl.concat(
        [
            views.select("tenant_id", "from_id", "to_id", weight=pl.col("count").cast(pl.Float64)),
            purchases.select("tenant_id", "from_id", "to_id", weight=pl.col("count") * purchase_weight),
        ]
    )
    return (
        linked.group_by("tenant_id", user_id=pl.col("from_id"), product_id=pl.col("to_id"))
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


SIMILAR_PRODUCTS = 10
"""Kept of each product and kind."""
LONGEST_BROWSING = 50
"""Products that one session views; those who view more are machines, and pair everything with everything."""
