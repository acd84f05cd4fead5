"""Recommendation: what customers with the same purchases bought besides, in which order, and why.

Source: "Neo4j Integration Guide". A similar user is another one who bought a product that the user bought, too. The
score of a product that the user has not bought is 10 for each similar user who did, and the strength of their
interactions: how often each bought it, once for each product that they share with the user. Where these are too few,
others follow, each below all of the former: what was viewed in the same sessions as the user's products, what the
user's community buys, what is trending (docs/adr/0034).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import polars as pl
from scipy import sparse

from c360_pipeline.core.catalog.feature_tables import PRODUCT_CANDIDATES

SIMILAR_USER_WEIGHT = 10
SHOWN_USERS = 5
KEPT_CANDIDATES = 20
USERS_AT_ONCE = 2_000
"""Users whose candidates are computed in one product of matrices: what it holds at once is bounded by it."""


class Source(Enum):
    """Where a candidate comes from, with the score that its candidates lie above, best source first."""

    SIMILAR_USERS = 10.0
    VIEWED_TOGETHER = 6.0
    COMMUNITY = 3.0
    TRENDING = 0.0


FALLBACK_SPAN = 3.0
"""Scores of a source other than similar users lie between its floor and so much more."""
HALF_OF_SPAN = 10
"""Evidence (sessions, buyers, people) that is worth half of the span."""


@dataclass(frozen=True)
class Candidate:
    """A product that could be recommended.

    Attributes:
        product_id: of the product.
        product_name: the catalogue's.
        category: the catalogue's.
        source: where it comes from.
        evidence: similar users, sessions, buyers of the community, or people that it is trending with.
        strength: of similar users' interactions; 0 for other sources.
        similar_users: the first five, those first who share most products with the user.
        because_of: name or id of the product of the user that most of the evidence goes back to.
        other_products: further products of the user that it goes back to.
        in_community: whether one of the similar users is in the user's community.
    """

    product_id: str
    product_name: str | None
    category: str | None
    source: Source
    evidence: int
    strength: int = 0
    similar_users: tuple[str, ...] = ()
    because_of: str | None = None
    other_products: int = 0
    in_community: bool = False

    @property
    def score(self) -> float:
        """Ten for each similar user and the strength; of other sources, within their span."""
        if self.source is Source.SIMILAR_USERS:
            return float(SIMILAR_USER_WEIGHT * self.evidence + self.strength)
        share: float = self.evidence / (self.evidence + HALF_OF_SPAN)
        return round(float(self.source.value) + FALLBACK_SPAN * share, 4)

    @property
    def reason(self) -> str:
        """The path, in words."""
        match self.source:
            case Source.SIMILAR_USERS:
                others = _counted(self.other_products, "other product of yours", "other products of yours")
                bought = f"“{self.because_of}”" + (f" or {others}" if self.other_products else "")
                community = "; in your community" if self.in_community else ""
                who = _counted(self.evidence, "customer", "customers")
                return f"{who} who bought {bought} also bought this{community}"
            case Source.VIEWED_TOGETHER:
                return f"viewed together with “{self.because_of}” in {_counted(self.evidence, 'session', 'sessions')}"
            case Source.COMMUNITY:
                return f"{_counted(self.evidence, 'customer', 'customers')} of your community bought this"
            case Source.TRENDING:
                return f"trending: {_counted(self.evidence, 'person', 'people')} viewed or bought this in 30 days"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


@dataclass(frozen=True)
class Recommendation:
    """A product for a user, with the reason and up to five of the users it is drawn from."""

    product_id: str
    product_name: str | None
    category: str | None
    score: float
    reason: str
    similar_users: list[str]


def rank(candidates: Sequence[Candidate], top_k: int) -> list[Recommendation]:
    """The best candidates, each product once, from the best of its sources.

    Args:
        candidates: of all sources.
        top_k: how many to return at most.

    Returns:
        Best first; links by product id, so that the order is always the same.
    """
    best: dict[str, Candidate] = {}
    for candidate in candidates:
        known = best.get(candidate.product_id)
        if known is None or candidate.score > known.score:
            best[candidate.product_id] = candidate
    ordered = sorted(best.values(), key=lambda c: (-c.score, c.product_id))
    return [
        Recommendation(c.product_id, c.product_name, c.category, c.score, c.reason, list(c.similar_users))
        for c in ordered[:top_k]
    ]


def candidates(tenant_id: str, purchases: pl.DataFrame, kept: int = KEPT_CANDIDATES) -> Iterator[pl.DataFrame]:
    """`PRODUCT_CANDIDATES` rows of all users of a tenant, some users at a time.

    Args:
        tenant_id: whose users they are.
        purchases: user_id, product_id, count; each pair once.
        kept: candidates of each user, best first, links by product id.
    """
    if purchases.is_empty():
        return
    users, products = (purchases[name].unique().sort() for name in ("user_id", "product_id"))
    row = purchases["user_id"].cast(pl.Enum(users)).to_physical().to_numpy()
    column = purchases["product_id"].cast(pl.Enum(products)).to_physical().to_numpy()
    shape = (len(users), len(products))
    counts = sparse.csr_array((purchases["count"].to_numpy().astype(np.int64), (row, column)), shape=shape)
    bought = counts.copy()
    bought.data[:] = 1
    by_product = bought.T.tocsr()
    for start in range(0, len(users), USERS_AT_ONCE):
        mine = bought[start : start + USERS_AT_ONCE]
        shared = (mine @ by_product).tocoo()
        # Nobody is similar to himself.
        others = shared.col != shared.row + start
        ends = (shared.row[others], shared.col[others])
        weights = sparse.csr_array((shared.data[others], ends), shape=shared.shape)
        similar = sparse.csr_array((np.ones_like(weights.data), weights.indices, weights.indptr), shape=weights.shape)
        people, strength = (similar @ bought).tocoo(), (weights @ counts).tocoo()
        found = _entries(people, "similar_users").join(_entries(strength, "strength"), on=["user", "product"])
        found = found.join(_entries(mine.tocoo(), "owned"), on=["user", "product"], how="anti")
        score = SIMILAR_USER_WEIGHT * pl.col("similar_users") + pl.col("strength")
        # Numbers of products follow their ids, so that links are by id.
        best = (
            found.with_columns(score=score)
            .sort("user", "score", "product", descending=[False, True, False])
            .with_columns(rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("user"))
            .filter(pl.col("rank") <= kept)
        )
        yield best.select(
            pl.lit(tenant_id).alias("tenant_id"), users.gather(best["user"] + start).alias("user_id"),
            products.gather(best["product"]).alias("product_id"), "rank", "score", "similar_users", "strength",
        ).select(list(PRODUCT_CANDIDATES.columns))  # fmt: skip


def _entries(matrix: sparse.coo_array, name: str) -> pl.DataFrame:
    columns = {"user": matrix.row, "product": matrix.col, name: matrix.data}
    return pl.DataFrame({column: values.astype(np.int64) for column, values in columns.items()})
