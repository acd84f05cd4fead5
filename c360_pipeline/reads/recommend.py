"""Candidates for recommendations, similar and trending products, as the graph holds them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from c360_pipeline.core.features.recommend import (
    SHOWN_USERS,
    SIMILAR_USER_WEIGHT,
    Candidate,
    Recommendation,
    Source,
    rank,
)
from c360_pipeline.core.features.trends import BUYER_WEIGHT, SCORE_IN_CYPHER
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.visitors.said import refusal
from c360_pipeline.stores.neo4j.driver_values import Read, instant
from c360_pipeline.stores.neo4j.graph import Graph

TREND_OF_CANDIDATES = timedelta(days=30)

READ_SIMILAR_USERS = Statement("""
    MATCH (u:User {tenant_id: $tenant_id, id: $user_id})-[:PURCHASED]->(own:Product {tenant_id: $tenant_id})
    WITH u, collect(own) AS owned
    UNWIND owned AS shared
    MATCH (shared)<-[:PURCHASED]-(similar:User {tenant_id: $tenant_id})
    WHERE similar <> u
    WITH u, owned, similar, count(shared) AS shared_products
    MATCH (similar)-[bought:PURCHASED]->(product:Product {tenant_id: $tenant_id})
    WHERE NOT product IN owned AND NOT product.id IN $exclude AND ($category IS NULL OR product.category = $category)
    WITH u, owned, product, count(similar) AS similar_users, sum(bought.count * shared_products) AS strength
    ORDER BY $similar_user_weight * similar_users + strength DESC, product.id
    LIMIT $top_k
    CALL (u, owned, product) {
        MATCH (product)<-[:PURCHASED]-(similar:User {tenant_id: $tenant_id})
            -[:PURCHASED]->(shared:Product {tenant_id: $tenant_id})
        WHERE similar <> u AND shared IN owned
        WITH u, similar, count(shared) AS shared_products
        ORDER BY shared_products DESC, similar.id
        RETURN collect(similar.id)[..$shown_users] AS first_users, max(similar.community = u.community) AS in_community
    }
    CALL (u, owned, product) {
        MATCH (product)<-[:PURCHASED]-(similar:User {tenant_id: $tenant_id})
            -[:PURCHASED]->(shared:Product {tenant_id: $tenant_id})
        WHERE similar <> u AND shared IN owned
        WITH shared, count(similar) AS users
        ORDER BY users DESC, shared.id
        RETURN collect(coalesce(shared.name, shared.id)) AS because
    }
    RETURN product.id AS product_id, product.name AS product_name, product.category AS category,
           similar_users AS evidence, strength, first_users, coalesce(in_community, false) AS in_community, because
""")
READ_VIEWED_TOGETHER = Statement("""
    MATCH (u:User {tenant_id: $tenant_id, id: $user_id})-[:VIEWED|PURCHASED]->(own:Product {tenant_id: $tenant_id})
    WITH DISTINCT u, own
    MATCH (own)-[together:ALSO_VIEWED]->(product:Product {tenant_id: $tenant_id})
    WHERE NOT EXISTS { (u)-[:PURCHASED]->(product) }
      AND NOT product.id IN $exclude AND ($category IS NULL OR product.category = $category)
    WITH product, together.shared AS sessions, coalesce(own.name, own.id) AS name, own.id AS own_id
    ORDER BY sessions DESC, own_id
    WITH product, collect({sessions: sessions, name: name}) AS pairs
    RETURN product.id AS product_id, product.name AS product_name, product.category AS category,
           pairs[0].sessions AS evidence, [pairs[0].name] AS because
    ORDER BY evidence DESC, product_id
    LIMIT $top_k
""")
READ_COMMUNITY = Statement("""
    MATCH (u:User {tenant_id: $tenant_id, id: $user_id}) WHERE u.community IS NOT NULL
    MATCH (other:User {tenant_id: $tenant_id, community: u.community})
        -[:PURCHASED]->(product:Product {tenant_id: $tenant_id})
    WHERE other <> u AND NOT EXISTS { (u)-[:PURCHASED]->(product) }
      AND NOT product.id IN $exclude AND ($category IS NULL OR product.category = $category)
    RETURN product.id AS product_id, product.name AS product_name, product.category AS category,
           count(other) AS evidence
    ORDER BY evidence DESC, product_id
    LIMIT $top_k
""")
READ_REFUSED = Statement("""
    MATCH (u:User {tenant_id: $tenant_id, id: $user_id})
    WHERE ANY(refusal IN $refusals WHERE u.consents CONTAINS refusal) RETURN u.id AS user_id
""")
READ_OWNED = Statement("""
    MATCH (:User {tenant_id: $tenant_id, id: $user_id})-[:PURCHASED]->(p:Product {tenant_id: $tenant_id})
    RETURN p.id AS product_id
""")
READ_NEWEST_EVENT = Statement("""
    MATCH (u:User {tenant_id: $tenant_id}) WHERE u.last_seen IS NOT NULL
    RETURN u.last_seen AS newest ORDER BY u.tenant_id DESC, u.last_seen DESC LIMIT 1
""")
READ_TRENDING = Statement(f"""
    CALL () {{
        MATCH (v:User {{tenant_id: $tenant_id}})-[r:VIEWED]->(p:Product {{tenant_id: $tenant_id}})
        WHERE r.last_interaction > $since AND ($category IS NULL OR p.category = $category)
        RETURN v, p, 1 AS viewed, 0 AS bought
        UNION ALL
        MATCH (v:User {{tenant_id: $tenant_id}})-[r:PURCHASED]->(p:Product {{tenant_id: $tenant_id}})
        WHERE r.last_interaction > $since AND ($category IS NULL OR p.category = $category)
        RETURN v, p, 0 AS viewed, 1 AS bought
    }}
    WITH p, sum(viewed) AS viewers, sum(bought) AS buyers, count(DISTINCT v) AS people
    WITH p, viewers, buyers, people, {SCORE_IN_CYPHER} AS score
    ORDER BY score DESC, p.id
    LIMIT $top_k
    RETURN p.id AS product_id, p.name AS product_name, p.category AS category, viewers, buyers, people, score
""")
READ_SIMILAR_PRODUCTS = Statement("""
    MATCH (:Product {tenant_id: $tenant_id, id: $product_id})
        -[similar:SIMILAR_TO|ALSO_VIEWED]->(p:Product {tenant_id: $tenant_id})
    RETURN p.id AS product_id, p.name AS product_name, p.category AS category,
           CASE type(similar) WHEN 'SIMILAR_TO' THEN 'same_customers' ELSE 'viewed_together' END AS kind,
           similar.similarity AS similarity, similar.shared AS shared, similar.rank AS rank
    ORDER BY kind, rank
""")
READ_PRODUCT = Statement("MATCH (p:Product {tenant_id: $tenant_id, id: $product_id}) RETURN p.id AS product_id")


def _of_those_who_agreed(statement: Statement, condition: str, *variables: str) -> str:
    """A statement that uses nothing of users who refused a purpose; planning it takes longer than the plain one.

    Args:
        statement: the plain one.
        condition: that each of its parts has which reads what others did.
        variables: of these others, one for each part.
    """
    parts = statement.split(condition)
    agreed = [f" NONE(refusal IN $refusals WHERE coalesce({v}.consents, '') CONTAINS refusal) AND" for v in variables]
    if len(parts) != len(agreed) + 1:
        raise ValueError(f"{len(parts) - 1} parts of the statement have {condition!r}, not {len(agreed)}")
    made = parts[0]
    for with_consent, part in zip(agreed, parts[1:], strict=True):
        made += f"WHERE{with_consent}{condition.removeprefix('WHERE')}{part}"
    return made


READ_SIMILAR_USERS_WHO_AGREED = Statement(
    _of_those_who_agreed(READ_SIMILAR_USERS, "WHERE similar <> u", "similar", "similar", "similar")
)
READ_COMMUNITY_THAT_AGREED = Statement(_of_those_who_agreed(READ_COMMUNITY, "WHERE other <> u", "other"))
READ_TRENDING_OF_THOSE_WHO_AGREED = Statement(
    _of_those_who_agreed(READ_TRENDING, "WHERE r.last_interaction > $since", "v", "v")
)


@dataclass(frozen=True)
class RecommendationRequest:
    """What is asked for.

    Attributes:
        user_id: for whom.
        top_k: how many at most.
        category: of this category only.
        exclude: products that are not wanted, such as those on the page already.
    """

    user_id: str
    top_k: int
    category: str | None = None
    exclude: tuple[str, ...] = ()


class Recommender:
    """Recommendations of a tenant, from its part of the graph.

    Args:
        graph: where from.
        tenant_id: whose.
        purposes: says what nobody may have refused whose doings are used. Who refused one gets what is popular.
    """

    def __init__(self, graph: Graph, tenant_id: str, purposes: Callable[[], Iterable[str]] = tuple) -> None:
        self._graph = graph
        self._tenant_id = tenant_id
        self._purposes = purposes

    @cached_property
    def _refusals(self) -> list[str]:
        return [refusal(purpose) for purpose in self._purposes()]

    @property
    def needs_consent(self) -> bool:
        """Whether there is a purpose that people may refuse."""
        return bool(self._refusals)

    def recommend(self, wanted: RecommendationRequest) -> list[Recommendation]:
        """The best products for a user; further sources are asked only where similar users are too few."""
        refusals = self._refusals  # asked for before a transaction of the graph is begun
        return rank(self._graph.read_together(lambda read: self._found(read, wanted, refusals)), wanted.top_k)

    def _found(self, read: Read, wanted: RecommendationRequest, refusals: list[str]) -> list[Candidate]:
        who = {"tenant_id": self._tenant_id, "user_id": wanted.user_id}
        if refusals and read(READ_REFUSED, **who, refusals=refusals):
            return self._popular(read, wanted)
        similar = READ_SIMILAR_USERS_WHO_AGREED if refusals else READ_SIMILAR_USERS
        found = self._candidates(read, similar, Source.SIMILAR_USERS, wanted)
        for source in (Source.VIEWED_TOGETHER, Source.COMMUNITY, Source.TRENDING):
            if len(found) >= wanted.top_k:
                break
            found += self._more(read, source, wanted, found)
        return found

    def _more(
        self, read: Read, source: Source, wanted: RecommendationRequest, found: Sequence[Candidate]
    ) -> list[Candidate]:
        known = (*wanted.exclude, *(candidate.product_id for candidate in found))
        narrowed = RecommendationRequest(wanted.user_id, wanted.top_k, wanted.category, known)
        match source:
            case Source.VIEWED_TOGETHER:
                return self._candidates(read, READ_VIEWED_TOGETHER, source, narrowed)
            case Source.COMMUNITY:
                statement = READ_COMMUNITY_THAT_AGREED if self._refusals else READ_COMMUNITY
                return self._candidates(read, statement, source, narrowed)
            case _:
                return self._trending_candidates(read, narrowed)

    def _popular(self, read: Read, wanted: RecommendationRequest) -> list[Candidate]:
        """What is trending, for somebody whose doings are not to be looked at."""
        _, rows = self._trending(read, TREND_OF_CANDIDATES, wanted.category, wanted.top_k + len(wanted.exclude))
        found = [_candidate(Source.TRENDING, {**row, "evidence": row["people"]}) for row in rows]
        return [candidate for candidate in found if candidate.product_id not in wanted.exclude][: wanted.top_k]

    def _candidates(
        self, read: Read, statement: Statement, source: Source, wanted: RecommendationRequest
    ) -> list[Candidate]:
        rows = read(
            statement, tenant_id=self._tenant_id, user_id=wanted.user_id, top_k=wanted.top_k, category=wanted.category,
            exclude=list(wanted.exclude), similar_user_weight=SIMILAR_USER_WEIGHT, shown_users=SHOWN_USERS,
            refusals=self._refusals,
        )  # fmt: skip
        return [_candidate(source, row) for row in rows]

    def _trending_candidates(self, read: Read, wanted: RecommendationRequest) -> list[Candidate]:
        owned = {row["product_id"] for row in read(READ_OWNED, tenant_id=self._tenant_id, user_id=wanted.user_id)}
        left_out = owned | set(wanted.exclude)
        _, rows = self._trending(read, TREND_OF_CANDIDATES, wanted.category, wanted.top_k + len(left_out))
        return [
            _candidate(Source.TRENDING, {**row, "evidence": row["people"]})
            for row in rows if row["product_id"] not in left_out
        ][: wanted.top_k]  # fmt: skip

    def trending(
        self, window: timedelta, category: str | None, limit: int
    ) -> tuple[datetime | None, list[dict[str, Any]]]:
        """Products by the people who viewed them, and five times those who bought them, within a window.

        Returns:
            When the window ends, which is with the tenant's newest event; and the products, best first. The window
            does not hold its beginning.
        """
        return self._graph.read_together(lambda read: self._trending(read, window, category, limit))

    def _trending(
        self, read: Read, window: timedelta, category: str | None, limit: int
    ) -> tuple[datetime | None, list[dict[str, Any]]]:
        rows = read(READ_NEWEST_EVENT, tenant_id=self._tenant_id)
        if not rows:
            return None, []
        newest = instant(rows[0]["newest"])
        statement = READ_TRENDING_OF_THOSE_WHO_AGREED if self._refusals else READ_TRENDING
        products = read(
            statement, tenant_id=self._tenant_id, since=newest - window, category=category, top_k=limit,
            buyer_weight=BUYER_WEIGHT, refusals=self._refusals,
        )  # fmt: skip
        return newest, products

    def similar_products(self, product_id: str) -> list[dict[str, Any]] | None:
        """Products like one, by customers and by sessions; None when there is no such product."""
        rows = self._read(READ_SIMILAR_PRODUCTS, product_id=product_id)
        return rows if rows or self._read(READ_PRODUCT, product_id=product_id) else None

    def _read(self, statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
        return self._graph.read_only(statement, tenant_id=self._tenant_id, **parameters)


def _candidate(source: Source, row: dict[str, Any]) -> Candidate:
    because = row.get("because") or []
    return Candidate(
        product_id=row["product_id"], product_name=row["product_name"], category=row["category"], source=source,
        evidence=row["evidence"], strength=row.get("strength", 0), similar_users=tuple(row.get("first_users", ())),
        because_of=because[0] if because else None, other_products=max(len(because) - 1, 0),
        in_community=row.get("in_community", False),
    )  # fmt: skip
