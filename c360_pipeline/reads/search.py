"""Customers by whatever a person has of them.

That is the beginning of an id, an address or a name; or an event, a visitor, an order or any other identifier, whole.
Every statement begins at an index, so that a search costs the same however many customers there are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from c360_pipeline.core.contract.identifier_keys import IdentifierKeys
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.stitching.keys import value_hash
from c360_pipeline.stores.neo4j.driver_values import Read

SHOWN = 25
BY_USER = Statement("""
    MATCH (u:User {tenant_id: $tenant_id}) WHERE u.id STARTS WITH $text
    RETURN u.id AS user_id, 'user id' AS by, u.id AS met ORDER BY user_id LIMIT $limit
""")
BY_ADDRESS = Statement("""
    MATCH (a:Account {tenant_id: $tenant_id}) WHERE a.email STARTS WITH $text
    WITH a ORDER BY a.email LIMIT $limit
    OPTIONAL MATCH (a)<-[:IS_ACCOUNT]-(u:User {tenant_id: $tenant_id})
    RETURN coalesce(u.id, a.email) AS user_id, 'e-mail' AS by, a.email AS met ORDER BY met, user_id
""")
BY_NAME = Statement("""
    UNWIND $names AS name
    MATCH (a:Account {tenant_id: $tenant_id}) WHERE a.full_name STARTS WITH name
    WITH DISTINCT a ORDER BY a.full_name, a.email LIMIT $limit
    OPTIONAL MATCH (a)<-[:IS_ACCOUNT]-(u:User {tenant_id: $tenant_id})
    RETURN coalesce(u.id, a.email) AS user_id, 'name' AS by, a.full_name AS met ORDER BY met, user_id
""")
BY_EVENT = Statement("""
    MATCH (e:Event {tenant_id: $tenant_id, id: $text})
    RETURN coalesce(e.customer_id, e.user_id) AS user_id, 'event' AS by, e.id AS met
""")
BY_VISITOR = Statement("""
    MATCH (:Visitor {tenant_id: $tenant_id, id: $text})-[:IS_USER]->(u:User {tenant_id: $tenant_id})
    RETURN u.id AS user_id, 'visitor' AS by, $text AS met
""")
BY_KEY = Statement("""
    UNWIND $keys AS key
    MATCH (c:Correlation {tenant_id: $tenant_id, id: key})
    CALL (c) {
        MATCH (c)<-[:HAS_KEY]-(e:Event {tenant_id: $tenant_id})
        WITH e LIMIT 200
        RETURN DISTINCT coalesce(e.customer_id, e.user_id) AS user_id
    }
    WITH c, user_id WHERE user_id IS NOT NULL
    RETURN user_id, c.key_type AS by, $text AS met ORDER BY by, user_id LIMIT $limit
""")
DESCRIBE = Statement("""
    UNWIND $user_ids AS user_id
    OPTIONAL MATCH (u:User {tenant_id: $tenant_id, id: user_id})
    OPTIONAL MATCH (u)-[:IS_ACCOUNT]->(a:Account {tenant_id: $tenant_id})
    WITH user_id, u, min(a.full_name) AS full_name
    RETURN user_id, u.last_seen AS last_seen, u.community AS community, full_name
""")
NEWEST = Statement("""
    MATCH (u:User {tenant_id: $tenant_id}) WHERE u.last_seen IS NOT NULL
    RETURN u.id AS user_id, 'last seen' AS by, u.id AS met ORDER BY u.last_seen DESC, u.id LIMIT $limit
""")


@dataclass(frozen=True)
class Hit:
    """A customer that was found.

    Attributes:
        user_id: of the customer; the address of an account that no user has.
        by: what was met: `user id`, `e-mail`, `name`, `event`, `visitor`, or the type of a key such as `order`.
        met: that, whole.
        full_name: of an account of theirs.
        last_seen: their newest event.
        community: theirs.
    """

    user_id: str
    by: str
    met: str
    full_name: str | None
    last_seen: Any
    community: int | None


class Search:
    """Finds customers of a tenant.

    Args:
        read: runs a statement in the graph.
        tenant_id: whose.
        key_types: types of keys that the tenant's rules make.
        identifiers: which secret keys are hashed with.
    """

    def __init__(
        self, read: Read, tenant_id: str, key_types: Callable[[], Iterable[str]], identifiers: IdentifierKeys
    ) -> None:
        self._read = read
        self._tenant_id = tenant_id
        self._key_types = key_types
        self._identifiers = identifiers

    def find(self, text: str, limit: int = SHOWN) -> list[Hit]:
        """Customers, each once by the first way that finds them; without a text those who were seen last.

        Args:
            text: what a person has of them.
            limit: customers at most.
        """
        wanted = text.strip()
        rows: list[dict[str, Any]] = []
        for statement, values in self._ways(wanted):
            rows += self._read(statement, tenant_id=self._tenant_id, limit=limit, **values)
        found: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["user_id"] is not None and len(found) < limit:
                found.setdefault(row["user_id"], row)
        described = self._read(DESCRIBE, tenant_id=self._tenant_id, user_ids=[*found]) if found else []
        about = {row.pop("user_id"): row for row in described}
        return [Hit(user, row["by"], row["met"], **about[user]) for user, row in found.items()]

    def _ways(self, text: str) -> list[tuple[Statement, dict[str, Any]]]:
        if not text:
            return [(NEWEST, {})]
        names = sorted({text, text.title()})
        hashes = {
            kind: value_hash(self._tenant_id, kind, text, self._identifiers) for kind in sorted(self._key_types())
        }
        keys = [f"{kind}:{found}" for kind, found in hashes.items() if found]
        return [
            (BY_USER, {"text": text}), (BY_ADDRESS, {"text": text}), (BY_NAME, {"names": names}),
            (BY_EVENT, {"text": text}), (BY_VISITOR, {"text": text}), (BY_KEY, {"keys": keys, "text": text}),
        ]  # fmt: skip
