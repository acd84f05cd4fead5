"""Recommendation: rank what similar customers touched, and say why.

Source: "Neo4j Integration Guide": score = 10 x similar users + strength of their interactions.
"""

from dataclasses import dataclass

import polars as pl

SIMILAR_USER_WEIGHT = 10


@dataclass(frozen=True)
class Recommendation:
    """A product for a user, with the reason and up to five of the users it is drawn from."""

    product_id: str
    product_name: str | None
    category: str | None
    score: float
    reason: str
    similar_users: list[str]


def rank(candidates: pl.DataFrame, top_k: int) -> list[Recommendation]:
    """Order candidate products.

    Args:
        candidates: product_id, product_name, category, similar_user, shared_products, strength: one row per product
            and similar user; `strength` is the number of that user's interactions with the product.
        top_k: how many to return at most.

    Returns:
        Best first; ties by product id, so that the order is always the same.
    """
    scored = (
        candidates.sort("shared_products", "similar_user", descending=[True, False])
        .group_by("product_id", "product_name", "category", maintain_order=True)
        .agg(
            similar_users=pl.col("similar_user"),
            score=pl.len() * float(SIMILAR_USER_WEIGHT) + pl.col("strength").sum(),
            most_shared=pl.col("shared_products").max(),
        )
        .sort("score", "product_id", descending=[True, False])
        .head(top_k)
    )
    return [
        Recommendation(
            product_id=row["product_id"],
            product_name=row["product_name"],
            category=row["category"],
            score=row["score"],
            reason=_reason(len(row["similar_users"]), row["most_shared"]),
            similar_users=row["similar_users"][:5],
        )
        for row in scored.iter_rows(named=True)
    ]


def _reason(similar: int, most_shared: int) -> str:
    who = "1 customer" if similar == 1 else f"{similar} customers"
    shared = "1 product" if most_shared == 1 else f"up to {most_shared} products"
    return f"{who} who bought {shared} that this customer bought or viewed also bought it"
