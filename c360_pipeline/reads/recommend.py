"""Candidates for recommendations, similar and trending products, as the graph holds them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

from c360_pipeline.core.features.leads import INTEREST, RECENT, Settings
from c360_pipeline.core.features.recommend import (
    SHOWN_USERS,
    SIMILAR_USER_WEIGHT,
    Candidate,
    Recommendation,
    Source,
    rank,
)
from c360_pipeline.core.features.trends import BUYER_WEIGHT, SCORE_IN_CYPHER
from c360_pipeline.core.projection.items import PURCHASE
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.visitors.said import refusal
from c360_pipeline.stores.neo4j.driver_values import Read, instant
from c360_pipeline.stores.neo4j.graph import Graph

TREND_OF_CANDIDATES = timedelta(days=30)
NEWEST_SESSIONS, NEWEST_EVENTS = 20, 500
"""Sessions of a user of which carts count, and events of a visitor."""
CHOSEN_FROM = 5
"""As many candidates are asked for of each that is recommended, where some are left out because of their category."""
MOST_BUYERS = 200
"""Of the product of a pair that fewer have bought, any so many of whom are looked at for five that bought both."""

IS_WANTED = """NOT product.id IN $exclude AND ($category IS NULL OR product.category = $category)
      AND ($with_bare OR product.name IS NOT NULL OR product.category IS NOT NULL)"""
"""Products that the catalogue does not know are recommended only where there is none."""
MAY_TREND = IS_WANTED.replace("NOT product.id IN $exclude AND ", "").replace("product.", "p.")
PRODUCTS_OF_USER = """
    MATCH (u:User {tenant_id: $tenant_id, id: $user_id})
    CALL (u) {
        MATCH (u)-[r:PURCHASED]->(own:Product {tenant_id: $tenant_id})
        RETURN own, 'purchase' AS action, r.last_interaction AS at
        UNION ALL
        MATCH (u)-[r:VIEWED]->(own:Product {tenant_id: $tenant_id})
        RETURN own, 'view' AS action, r.last_interaction AS at
        UNION ALL
        MATCH (u)-[:HAS_SESSION]->(s:Session {tenant_id: $tenant_id})
        WITH u, s ORDER BY s.last_seen DESC, s.id LIMIT $newest_sessions
        MATCH (s)-[:HAS_ACTION]->(e:Action {tenant_id: $tenant_id})-[:ON_PRODUCT]->(own:Product {tenant_id: $tenant_id})
        WHERE e.type = 'add_to_cart' AND coalesce(e.customer_id, e.user_id) = u.id
        RETURN own, e.type AS action, max(e.ts) AS at
    }"""
PRODUCTS_OF_VISITOR = """
    MATCH (e:Action {tenant_id: $tenant_id, anonymous_id: $anonymous_id})
    WHERE $interest[e.type] IS NOT NULL AND coalesce(e.customer_id, e.user_id) IS NULL
    WITH e ORDER BY e.ts DESC, e.id LIMIT $newest_events
    MATCH (e)-[:ON_PRODUCT]->(own:Product {tenant_id: $tenant_id})
    WITH own, e.type AS action, max(e.ts) AS at"""
BEST_OF_THEM = f"""
    WITH own, action, at ORDER BY $interest[action] DESC, at DESC
    WITH own, collect(action)[0] AS action, max(at) AS at
    WITH own, action, at, $interest[action] AS strength ORDER BY at DESC, strength DESC, own.id
    WITH collect({{product: own, action: action, strength: strength}}) AS met
    WITH met[..$recent] AS newest, [m IN met WHERE m.action = 'purchase' | m.product] AS bought
    CALL (newest) {{
        UNWIND range(0, size(newest) - 1) AS place
        WITH newest[place] AS had, place
        WITH had.product AS own, had.action AS action, had.strength * 0.5 ^ (place / $half_life) AS counts, place
        MATCH (own)-[leads:LEADS_TO]->(product:Product {{tenant_id: $tenant_id}})
        WHERE {IS_WANTED}
        WITH product, own, action, counts * leads.weight AS adds, place
        ORDER BY adds DESC, place
        RETURN product, round(sum(adds), 6) AS weight, max(adds) / sum(adds) AS share, count(own) AS evidence,
               collect(own)[0] AS own, collect(action)[0] AS action
    }}
    WITH product, weight, share, evidence, own, action, bought
    WHERE weight > 0 AND NOT product IN bought
    WITH product, weight, share, evidence, own, action
    ORDER BY weight DESC, product.id
    LIMIT $top_k
    RETURN product.id AS product_id, product.name AS product_name, product.category AS category, evidence, weight,
           share, action, [coalesce(own.name, own.id)] AS because, own.id AS because_of_id
"""
READ_NEXT_OF_USER = Statement(PRODUCTS_OF_USER + BEST_OF_THEM)
READ_NEXT_OF_VISITOR = Statement(PRODUCTS_OF_VISITOR + BEST_OF_THEM)
READ_USER_OF_VISITOR = Statement("""
    MATCH (:Visitor {tenant_id: $tenant_id, id: $anonymous_id})-[:IS_USER]->(u:User {tenant_id: $tenant_id})
    RETURN u.id AS user_id
""")
READ_HAS_CATALOGUE = Statement("""
    MATCH (c:Category {tenant_id: $tenant_id}) WHERE c.name IS NOT NULL
    RETURN c.name AS name LIMIT 1
""")
READ_BUYERS_OF_BOTH = Statement("""
    UNWIND $pairs AS pair
    MATCH (own:Product {tenant_id: $tenant_id, id: pair.because_of})
    MATCH (product:Product {tenant_id: $tenant_id, id: pair.product_id})
    WITH product,
         CASE WHEN COUNT { (own)<-[:PURCHASED]-() } < COUNT { (product)<-[:PURCHASED]-() } THEN [own, product]
              ELSE [product, own] END AS pair
    WITH product, pair[0] AS rarer, pair[1] AS common
    CALL (rarer, common) {
        MATCH (rarer)<-[:PURCHASED]-(other:User {tenant_id: $tenant_id})
        WITH other, common LIMIT $most_buyers
        WHERE ($user_id IS NULL OR other.id <> $user_id)
          AND NONE(refusal IN $refusals WHERE coalesce(other.consents, '') CONTAINS refusal)
          AND EXISTS { (other)-[:PURCHASED]->(common) }
        WITH other LIMIT $shown_users
        WITH other.id AS id ORDER BY id
        RETURN collect(id) AS users
    }
    RETURN product.id AS product_id, users
""")

READ_SIMILAR_USERS = Statement(f"""
    MATCH (u:User {{tenant_id: $tenant_id, id: $user_id}})-[:PURCHASED]->(own:Product {{tenant_id: $tenant_id}})
    WITH u, collect(own) AS owned
    UNWIND owned AS shared
    MATCH (shared)<-[:PURCHASED]-(similar:User {{tenant_id: $tenant_id}})
    WHERE similar <> u
    WITH u, owned, similar, count(shared) AS shared_products
    MATCH (similar)-[bought:PURCHASED]->(product:Product {{tenant_id: $tenant_id}})
    WHERE NOT product IN owned AND {IS_WANTED}
    WITH u, owned, product, count(similar) AS similar_users, sum(bought.count * shared_products) AS strength
    ORDER BY $similar_user_weight * similar_users + strength DESC, product.id
    LIMIT $top_k
    CALL (u, owned, product) {{
        MATCH (product)<-[:PURCHASED]-(similar:User {{tenant_id: $tenant_id}})
            -[:PURCHASED]->(shared:Product {{tenant_id: $tenant_id}})
        WHERE similar <> u AND shared IN owned
        WITH u, similar, count(shared) AS shared_products
        ORDER BY shared_products DESC, similar.id
        RETURN collect(similar.id)[..$shown_users] AS first_users, max(similar.community = u.community) AS in_community
    }}
    CALL (u, owned, product) {{
        MATCH (product)<-[:PURCHASED]-(similar:User {{tenant_id: $tenant_id}})
            -[:PURCHASED]->(shared:Product {{tenant_id: $tenant_id}})
        WHERE similar <> u AND shared IN owned
        WITH shared, count(similar) AS users
        ORDER BY users DESC, shared.id
        RETURN collect(coalesce(shared.name, shared.id)) AS because
    }}
    RETURN product.id AS product_id, product.name AS product_name, product.category AS category,
           similar_users AS evidence, strength, first_users, coalesce(in_community, false) AS in_community, because
""")
READ_VIEWED_TOGETHER = Statement(f"""
    MATCH (u:User {{tenant_id: $tenant_id, id: $user_id}})-[:VIEWED|PURCHASED]->(own:Product {{tenant_id: $tenant_id}})
    WITH DISTINCT u, own
    MATCH (own)-[together:ALSO_VIEWED]->(product:Product {{tenant_id: $tenant_id}})
    WHERE NOT EXISTS {{ (u)-[:PURCHASED]->(product) }}
      AND {IS_WANTED}
    WITH product, together.shared AS sessions, coalesce(own.name, own.id) AS name, own.id AS own_id
    ORDER BY sessions DESC, own_id
    WITH product, collect({{sessions: sessions, name: name}}) AS pairs
    RETURN product.id AS product_id, product.name AS product_name, product.category AS category,
           pairs[0].sessions AS evidence, [pairs[0].name] AS because
    ORDER BY evidence DESC, product_id
    LIMIT $top_k
""")
READ_COMMUNITY = Statement(f"""
    MATCH (u:User {{tenant_id: $tenant_id, id: $user_id}}) WHERE u.community IS NOT NULL
    MATCH (other:User {{tenant_id: $tenant_id, community: u.community}})
        -[:PURCHASED]->(product:Product {{tenant_id: $tenant_id}})
    WHERE other <> u AND NOT EXISTS {{ (u)-[:PURCHASED]->(product) }}
      AND {IS_WANTED}
    RETURN product.id AS product_id, product.name AS product_name, product.category AS category,
           count(other) AS evidence
    ORDER BY evidence DESC, product_id
    LIMIT $top_k
""")
LIKED_CATEGORIES = f"""
    WITH own, max($interest[action]) AS strength, max(CASE action WHEN 'purchase' THEN 1 ELSE 0 END) AS is_bought
    WITH collect({{product: own, strength: strength, is_bought: is_bought}}) AS met
    WITH met, [m IN met WHERE m.is_bought = 1 | m.product] AS bought
    UNWIND met AS had
    WITH had.product.category AS liked, sum(had.strength) AS liking, bought
    WHERE liked IS NOT NULL
    ORDER BY liking DESC, liked
    LIMIT $shown_categories
    MATCH (:Category {{tenant_id: $tenant_id, name: liked}})<-[:IN_CATEGORY]-(product:Product {{tenant_id: $tenant_id}})
    WHERE NOT product IN bought AND {IS_WANTED}
    WITH product, liked, COUNT {{ (product)<-[:PURCHASED]-() }} AS evidence
    WHERE evidence > 0
    RETURN product.id AS product_id, product.name AS product_name, product.category AS category, evidence,
           [liked] AS because
    ORDER BY evidence DESC, product_id
    LIMIT $top_k
"""
READ_CATEGORIES_OF_USER = Statement(PRODUCTS_OF_USER + LIKED_CATEGORIES)
READ_CATEGORIES_OF_VISITOR = Statement(PRODUCTS_OF_VISITOR + LIKED_CATEGORIES)
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
        WHERE r.last_interaction > $since AND {MAY_TREND}
        RETURN v, p, 1 AS viewed, 0 AS bought
        UNION ALL
        MATCH (v:User {{tenant_id: $tenant_id}})-[r:PURCHASED]->(p:Product {{tenant_id: $tenant_id}})
        WHERE r.last_interaction > $since AND {MAY_TREND}
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
        user_id: for whom; None for a visitor.
        top_k: how many at most.
        category: of this category only.
        exclude: products that are not wanted, such as those on the page already.
        anonymous_id: for which visitor, where no user is named; one who logged in is that user.
        most_of_category: how many of one category at most; None for any number.
    """

    user_id: str | None
    top_k: int
    category: str | None = None
    exclude: tuple[str, ...] = ()
    anonymous_id: str | None = None
    most_of_category: int | None = None

    @property
    def asked(self) -> int:
        """How many candidates to ask for: more where some may be left out."""
        return self.top_k if self.most_of_category is None else self.top_k * CHOSEN_FROM


class Recommended(NamedTuple):
    """An answer.

    Attributes:
        products: best first.
        user_id: for whom; None for a visitor whom nobody knows.
        is_user_by_now: whether it was asked for by a visitor, who has logged in.
        is_refused: whether nothing that they did was looked at, for they refused it, or may have.
    """

    products: list[Recommendation]
    user_id: str | None
    is_user_by_now: bool
    is_refused: bool


class Recommender:
    """Recommendations of a tenant, from its part of the graph.

    Args:
        graph: where from.
        tenant_id: whose.
        purposes: says what nobody may have refused whose doings are used. Who refused one gets what is popular.
        half_life: says after how many products of a customer a further one counts half.
    """

    def __init__(
        self,
        graph: Graph,
        tenant_id: str,
        purposes: Callable[[], Iterable[str]] = tuple,
        half_life: Callable[[], float] = lambda: Settings().half_life,
    ) -> None:
        self._graph = graph
        self._tenant_id = tenant_id
        self._purposes = purposes
        self._half_life = half_life

    @cached_property
    def _refusals(self) -> list[str]:
        return [refusal(purpose) for purpose in self._purposes()]

    @property
    def needs_consent(self) -> bool:
        """Whether there is a purpose that people may refuse."""
        return bool(self._refusals)

    def recommend(self, wanted: RecommendationRequest) -> list[Recommendation]:
        """The best products for a user or a visitor; further sources are asked only where the former gave too few."""
        return self.recommended(wanted).products

    def recommended(self, wanted: RecommendationRequest) -> Recommended:
        """The same, with whom it is for."""
        # Asked for before a transaction of the graph is begun.
        known = {"refusals": self._refusals, "half_life": self._half_life()}
        return self._graph.read_together(lambda read: self._found(read, wanted, known))

    def _found(self, read: Read, wanted: RecommendationRequest, known: dict[str, Any]) -> Recommended:
        who = self._user(read, wanted)
        has_catalogue = bool(read(READ_HAS_CATALOGUE, tenant_id=self._tenant_id))
        asked = _Asked(read, known | {
            "tenant_id": self._tenant_id, "user_id": who.user_id, "anonymous_id": who.anonymous_id,
            "category": who.category, "with_bare": not has_catalogue, "interest": INTEREST, "recent": RECENT,
            "newest_sessions": NEWEST_SESSIONS, "newest_events": NEWEST_EVENTS,
            "similar_user_weight": SIMILAR_USER_WEIGHT, "shown_users": SHOWN_USERS,
            "shown_categories": SHOWN_CATEGORIES,
        })  # fmt: skip
        # Of a visitor nobody knows what was agreed to.
        refused = bool(self._refusals) and (who.user_id is None or bool(asked(READ_REFUSED)))
        found: list[Candidate] = []
        best: list[Recommendation] = []
        for source in (Source.TRENDING,) if refused else LADDER:
            left_out = (*who.exclude, *(candidate.product_id for candidate in found))
            found += self._candidates(asked, source, replace(who, exclude=left_out), refused=refused)
            best = rank(found, who.top_k, who.most_of_category)
            if len(best) >= who.top_k:
                break
        return Recommended(self._with_similar_users(asked, best), who.user_id, who is not wanted, refused)

    def _with_similar_users(self, asked: "_Asked", best: list[Recommendation]) -> list[Recommendation]:
        """The recommendations; those that own products lead to, with some who bought both."""
        pairs = [{"because_of": one.because_of, "product_id": one.product_id} for one in best if one.because_of]
        if not pairs:
            return best
        rows = asked(READ_BUYERS_OF_BOTH, pairs=pairs, most_buyers=MOST_BUYERS)
        users = {row["product_id"]: row["users"] for row in rows}
        return [replace(one, similar_users=users.get(one.product_id, one.similar_users)) for one in best]

    def _user(self, read: Read, wanted: RecommendationRequest) -> RecommendationRequest:
        """The request, of a visitor who logged in for the user."""
        if wanted.user_id is not None or wanted.anonymous_id is None:
            return wanted
        rows = read(READ_USER_OF_VISITOR, tenant_id=self._tenant_id, anonymous_id=wanted.anonymous_id)
        return replace(wanted, user_id=rows[0]["user_id"], anonymous_id=None) if rows else wanted

    def _candidates(
        self, asked: "_Asked", source: Source, wanted: RecommendationRequest, *, refused: bool
    ) -> list[Candidate]:
        statement = self._statement(source, wanted)
        if source is Source.TRENDING:
            return self._trending_candidates(asked, wanted, refused=refused)
        if statement is None:
            return []
        rows = asked(statement, top_k=wanted.asked, exclude=list(wanted.exclude))
        return [_candidate(source, row) for row in rows]

    def _statement(self, source: Source, wanted: RecommendationRequest) -> Statement | None:
        """What finds candidates of a source; None where there is nothing of it for such a request."""
        is_user, agreed = wanted.user_id is not None, bool(self._refusals)
        match source:
            case Source.OWN_PRODUCTS:
                return READ_NEXT_OF_USER if is_user else READ_NEXT_OF_VISITOR
            case Source.CATEGORY if not agreed:
                return READ_CATEGORIES_OF_USER if is_user else READ_CATEGORIES_OF_VISITOR
            case Source.SIMILAR_USERS if is_user:
                return READ_SIMILAR_USERS_WHO_AGREED if agreed else READ_SIMILAR_USERS
            # Sessions of those who refused may be among what it is made of, as buyers of a category may.
            case Source.VIEWED_TOGETHER if is_user and not agreed:
                return READ_VIEWED_TOGETHER
            case Source.COMMUNITY if is_user:
                return READ_COMMUNITY_THAT_AGREED if agreed else READ_COMMUNITY
            case _:
                return None

    def _trending_candidates(self, asked: "_Asked", wanted: RecommendationRequest, *, refused: bool) -> list[Candidate]:
        """What is trending: for those too of whom nothing is known, or whose doings are not to be looked at."""
        may_look = wanted.user_id is not None and not refused
        owned = {row["product_id"] for row in asked(READ_OWNED)} if may_look else set()
        left_out = owned | set(wanted.exclude)
        with_bare = bool(asked.known["with_bare"])
        window, most = TREND_OF_CANDIDATES, wanted.asked + len(left_out)
        _, rows = self._trending(asked.read, window, wanted.category, most, with_bare=with_bare)
        return [
            _candidate(Source.TRENDING, {**row, "evidence": row["people"]})
            for row in rows if row["product_id"] not in left_out
        ][: wanted.asked]  # fmt: skip

    def trending(
        self, window: timedelta, category: str | None, limit: int
    ) -> tuple[datetime | None, list[dict[str, Any]]]:
        """Products by the people who viewed them, and five times those who bought them, within a window.

        Returns:
            When the window ends, which is with the tenant's newest event; and the products, best first. The window
            does not hold its beginning.
        """
        return self._graph.read_together(lambda read: self._trending(read, window, category, limit, with_bare=True))

    def _trending(
        self, read: Read, window: timedelta, category: str | None, limit: int, *, with_bare: bool
    ) -> tuple[datetime | None, list[dict[str, Any]]]:
        rows = read(READ_NEWEST_EVENT, tenant_id=self._tenant_id)
        if not rows:
            return None, []
        newest = instant(rows[0]["newest"])
        statement = READ_TRENDING_OF_THOSE_WHO_AGREED if self._refusals else READ_TRENDING
        products = read(
            statement, tenant_id=self._tenant_id, since=newest - window, category=category, top_k=limit,
            buyer_weight=BUYER_WEIGHT, refusals=self._refusals, with_bare=with_bare,
        )  # fmt: skip
        return newest, products

    def similar_products(self, product_id: str) -> list[dict[str, Any]] | None:
        """Products like one, by customers and by sessions; None when there is no such product."""
        rows = self._read(READ_SIMILAR_PRODUCTS, product_id=product_id)
        return rows if rows or self._read(READ_PRODUCT, product_id=product_id) else None

    def _read(self, statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
        return self._graph.read_only(statement, tenant_id=self._tenant_id, **parameters)


@dataclass(frozen=True)
class _Asked:
    """Asks the graph about one request.

    Attributes:
        read: in its transaction.
        known: parameters that all statements get; each uses those that it names.
    """

    read: Read
    known: dict[str, Any]

    def __call__(self, statement: Statement, **further: Any) -> list[dict[str, Any]]:
        return self.read(statement, **self.known, **further)


LADDER = tuple(Source)
"""Sources, the best first."""
SHOWN_CATEGORIES = 3
"""That a customer likes best, in which popular products are looked for."""


def _candidate(source: Source, row: dict[str, Any]) -> Candidate:
    because = row.get("because") or []
    return Candidate(
        product_id=row["product_id"], product_name=row["product_name"], category=row["category"], source=source,
        evidence=row["evidence"], strength=row.get("strength", 0), similar_users=tuple(row.get("first_users", ())),
        weight=row.get("weight", 0.0), share=row.get("share", 0.0), action=row.get("action", PURCHASE),
        because_of=because[0] if because else None, because_of_id=row.get("because_of_id"),
        other_products=max(len(because) - 1, 0), in_community=row.get("in_community", False),
    )  # fmt: skip
