"""Recommendation: what a customer may want next, in which order, and why.

First comes what the customer's own newest products lead to (`core.features.leads`). Where that is too little, others
follow, each below all of the former: what customers with the same purchases bought besides, what was viewed in the same
sessions as the customer's products, what the customer's community buys, what is bought in the categories that the
customer likes, what is trending (docs/adr/0034, docs/adr/0062).

Source: "Neo4j Integration Guide", for similar users: others who bought a product that the user bought, too. Its score
of a product that the user has not bought is 10 for each similar user who did, and the strength of their interactions:
how often each bought it, once for each product that they share with the user.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import polars as pl
from scipy import sparse

from c360_pipeline.core.catalog.feature_tables import PRODUCT_CANDIDATES
from c360_pipeline.core.features.ranks import best_of_each
from c360_pipeline.core.projection.items import PURCHASE

SIMILAR_USER_WEIGHT = 10
SHOWN_USERS = 5
KEPT_CANDIDATES = 20
USERS_AT_ONCE = 2_000
"""Users whose candidates are computed in one product of matrices: what it holds at once is bounded by it."""


class Source(Enum):
    """Where a candidate comes from, with the score that its candidates lie above, best source first."""

    OWN_PRODUCTS = 10.0
    SIMILAR_USERS = 8.0
    VIEWED_TOGETHER = 6.0
    COMMUNITY = 4.0
    CATEGORY = 2.0
    TRENDING = 0.0


OF_ONE_WEIGHT = 100.0
"""What is added to the floor of `OWN_PRODUCTS` for weights that add up to one."""
FALLBACK_SPAN = 2.0
"""Scores of the other sources lie between their floor and so much more."""
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
        evidence: similar users, sessions, buyers of the community or the category, or people that it is trending with;
            of the customer's own products, how many lead to it.
        strength: of similar users' interactions; 0 for other sources.
        weight: sum of what the customer's own products add; 0 for other sources.
        share: of `weight`, what the product adds that is named as the reason, 0 to 1.
        action: what the customer did with it last that says most.
        similar_users: the first five, those first who share most products with the user.
        because_of: name or id of the user's product that most of the evidence goes back to; of a category its name.
        because_of_id: id of that product.
        other_products: further products of the user that it goes back to.
        in_community: whether one of the similar users is in the user's community.
    """

    product_id: str
    product_name: str | None
    category: str | None
    source: Source
    evidence: int
    strength: int = 0
    weight: float = 0.0
    share: float = 0.0
    action: str = PURCHASE
    similar_users: tuple[str, ...] = ()
    because_of: str | None = None
    because_of_id: str | None = None
    other_products: int = 0
    in_community: bool = False

    @property
    def score(self) -> float:
        """Of what own products lead to, by their weights; of other sources, within their span."""
        floor = float(self.source.value)
        if self.source is Source.OWN_PRODUCTS:
            return floor + OF_ONE_WEIGHT * self.weight
        worth = self.evidence
        if self.source is Source.SIMILAR_USERS:
            worth = SIMILAR_USER_WEIGHT * self.evidence + self.strength
        return floor + FALLBACK_SPAN * worth / (worth + HALF_OF_SPAN)

    @property
    def reason(self) -> str:
        """The path, in words."""
        match self.source:
            case Source.OWN_PRODUCTS:
                did = f"because you {DONE[self.action].format(f'“{self.because_of}”')}"
                return did if self.share > ALL_OF_IT else f"{did} ({self.share:.0%} of the score)"
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
            case Source.CATEGORY:
                who = _counted(self.evidence, "customer", "customers")
                return f"{who} bought this in “{self.because_of}”, which you like"
            case Source.TRENDING:
                return f"trending: {_counted(self.evidence, 'person', 'people')} viewed or bought this in 30 days"


DONE = {"purchase": "bought {}", "add_to_cart": "put {} in your cart", "view": "viewed {}"}
ALL_OF_IT = 0.995


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


@dataclass(frozen=True)
class Recommendation:
    """A product for a user.

    Attributes:
        product_id: of the product.
        product_name: the catalogue's.
        category: the catalogue's.
        score: higher is better; 10 and more where the user's own products lead to it, by 100 for each 1 of weight.
        reason: in words.
        similar_users: up to five users who bought it and what it is recommended for; of a product with more than a
            thousand buyers some of them.
        because_of: id of the user's product that most of the score comes from; null where it comes from elsewhere.
        share: of the score, what that product adds, 0 to 1; null as well.
        source: step of the ladder that it comes from: own_products, similar_users, viewed_together, community, category
            or trending.
    """

    product_id: str
    product_name: str | None
    category: str | None
    score: float
    reason: str
    similar_users: list[str]
    because_of: str | None = None
    share: float | None = None
    source: str = ""


def rank(candidates: Sequence[Candidate], top_k: int, most_of_category: int | None = None) -> list[Recommendation]:
    """The best candidates, each product once, from the best of its sources.

    Args:
        candidates: of all sources.
        top_k: how many to return at most.
        most_of_category: how many of one category at most; those without a category are not limited.

    Returns:
        Best first; links by product id, so that the order is always the same.
    """
    best: dict[str, Candidate] = {}
    for candidate in candidates:
        known = best.get(candidate.product_id)
        if known is None or candidate.score > known.score:
            best[candidate.product_id] = candidate
    ordered = sorted(best.values(), key=lambda c: (-c.score, c.product_id))
    of_category = Counter[str]()
    chosen = []
    for candidate in ordered:
        if candidate.category is not None and most_of_category is not None:
            of_category[candidate.category] += 1
            if of_category[candidate.category] > most_of_category:
                continue
        chosen.append(candidate)
    return [
        Recommendation(
            c.product_id, c.product_name, c.category, round(c.score, 4), c.reason, list(c.similar_users),
            c.because_of_id, round(c.share, 4) if c.because_of_id else None, c.source.name.lower(),
        )
        for c in chosen[:top_k]
    ]  # fmt: skip


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
        best = best_of_each(found.with_columns(score=score), ["user"], {"score": True, "product": False}, kept)
        yield best.select(
            pl.lit(tenant_id).alias("tenant_id"), users.gather(best["user"] + start).alias("user_id"),
            products.gather(best["product"]).alias("product_id"), "rank", "score", "similar_users", "strength",
        ).select(list(PRODUCT_CANDIDATES.columns))  # fmt: skip


def _entries(matrix: sparse.coo_array, name: str) -> pl.DataFrame:
    columns = {"user": matrix.row, "product": matrix.col, name: matrix.data}
    return pl.DataFrame({column: values.astype(np.int64) for column, values in columns.items()})
