"""Journeys as the graph holds them: the events of one, what links two events, whose they are."""

from typing import Any

from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.stores.neo4j.driver_values import Read, plain
from c360_pipeline.stores.neo4j.graph import Graph

READS = 10
"""Times that a journey is read which merges meanwhile; where it still does, the last reading is what there is."""

READ_TENANTS_WITH_EVENT = Statement(
    "MATCH (e:Event {id: $event_id}) RETURN e.tenant_id AS tenant_id ORDER BY tenant_id"
)
PRODUCTS_OF_EVENT = """COLLECT {
        MATCH (e)-[:ON_PRODUCT]->(p:Product {tenant_id: $tenant_id})
        RETURN {id: p.id, name: coalesce(p.name, p.id)} AS product ORDER BY p.id
    }"""
"""Within a statement, the products that event `e` is about, by id."""
READ_JOURNEY_OF_EVENT = Statement(
    """
    MATCH (:Event {tenant_id: $tenant_id, id: $event_id})-[:HAS_KEY|IN_JOURNEY|PART_OF*1..2]
        ->(j:Journey {tenant_id: $tenant_id})
    WITH DISTINCT j
    MATCH (j)<-[:HAS_KEY|IN_JOURNEY|PART_OF*1..2]-(e:Event {tenant_id: $tenant_id})
    WITH DISTINCT j, e
    OPTIONAL MATCH (s:Session {tenant_id: $tenant_id})-[:HAS_ACTION]->(e)
    WITH j, e, s, """
    + PRODUCTS_OF_EVENT
    + """ AS products
    RETURN j.id AS journey_id, e.id AS event_id, e.ts AS ts, e.type AS action, e.user_id AS user_id, s.id AS session_id,
           products[0].id AS product_id,
           CASE WHEN size(products) > 0 THEN reduce(t = '', p IN products | t + CASE t WHEN '' THEN '' ELSE ', ' END
               + p.name) END AS product_name,
           COLLECT {
               MATCH (e)-[:HAS_KEY]->(c:Correlation {tenant_id: $tenant_id}) RETURN DISTINCT c.key_type
           } AS key_types
    ORDER BY ts, event_id
"""
)
READ_STATE_OF_JOURNEY = Statement("""
    MATCH (:Event {tenant_id: $tenant_id, id: $event_id})-[:HAS_KEY|IN_JOURNEY|PART_OF*1..2]
        ->(j:Journey {tenant_id: $tenant_id})
    RETURN DISTINCT j.id AS journey_id, j.event_count AS event_count, j.key_count AS key_count ORDER BY journey_id
""")
READ_EXPLANATION = Statement("""
    MATCH (a:Event {tenant_id: $tenant_id, id: $first}), (b:Event {tenant_id: $tenant_id, id: $second})
    CALL (a, b) {
        WITH a, b WHERE a <> b MATCH path = shortestPath((a)-[:HAS_KEY*]-(b)) RETURN nodes(path) AS chain
        UNION WITH a, b WHERE a = b RETURN [a] AS chain
    }
    RETURN [n IN chain | CASE WHEN n:Event THEN {event_id: n.id, ts: n.ts, action: n.type, user_id: n.user_id,
        customer_id: coalesce(n.customer_id, n.user_id)}
        ELSE {key: n.id, key_type: n.key_type} END] AS chain
""")
READ_FIRST_EVENT = Statement("""
    MATCH (:User {tenant_id: $tenant_id, id: $user_id})-[:HAS_SESSION]->(:Session {tenant_id: $tenant_id})
        -[:HAS_ACTION]->(e:Event {tenant_id: $tenant_id})
    WHERE coalesce(e.customer_id, e.user_id) = $user_id
    RETURN e.id AS event_id ORDER BY e.ts, e.id LIMIT 1
""")
READ_ACCOUNT = Statement("""
    MATCH (u:User {tenant_id: $tenant_id, id: $user_id})
    OPTIONAL MATCH (u)-[:IS_ACCOUNT]->(a:Account {tenant_id: $tenant_id})
    OPTIONAL MATCH (a)-[:HAS_SUBSCRIPTION]->(:Subscription {tenant_id: $tenant_id})
        -[:SUBSCRIBED_TO]->(p:Plan {tenant_id: $tenant_id})
    OPTIONAL MATCH (a)-[:SUBMITTED]->(t:Ticket {tenant_id: $tenant_id})
    RETURN u.id AS user_id, u.community AS community, a.full_name AS full_name, a.email AS email,
           collect(DISTINCT p.plan_name) AS plans, count(DISTINCT t) AS tickets
""")


def tenants_with_event(graph: Graph, event_id: str) -> list[str]:
    """Tenants that have an event of this id."""
    return [r["tenant_id"] for r in graph.run(READ_TENANTS_WITH_EVENT, event_id=event_id)]


def journey_of_event(graph: Graph, tenant_id: str, event_id: str) -> list[dict[str, Any]]:
    """The events of the journey that an event belongs to, by time.

    Neo4j reads what is committed while a statement runs, so that a merge in the middle of it shows both journeys, or a
    part of one. What was read counts only if the journey was the same before and after, up to `READS` times.
    """
    of = {"tenant_id": tenant_id, "event_id": event_id}

    def read(run: Read) -> tuple[bool, list[dict[str, Any]]]:
        before = run(READ_STATE_OF_JOURNEY, **of)
        events = run(READ_JOURNEY_OF_EVENT, **of)
        after = run(READ_STATE_OF_JOURNEY, **of)
        is_one = len({event["journey_id"] for event in events}) <= 1
        return is_one and before == after, events

    for _ in range(READS):
        is_whole, events = graph.read_together(read)
        if is_whole:
            break
    return events


def explanation(graph: Graph, tenant_id: str, first: str, second: str) -> list[dict[str, Any]] | None:
    """The shortest chain of events and keys between two events, both ends included; None when there is none."""
    found = graph.read_only(READ_EXPLANATION, tenant_id=tenant_id, first=first, second=second)
    return [plain(node) for node in found[0]["chain"]] if found else None


def first_event_of_user(graph: Graph, tenant_id: str, user_id: str) -> str | None:
    """The id of a user's first event; None when there is no such user."""
    rows = graph.run(READ_FIRST_EVENT, tenant_id=tenant_id, user_id=user_id)
    return rows[0]["event_id"] if rows else None


def account_of_user(graph: Graph, tenant_id: str, user_id: str) -> dict[str, Any] | None:
    """What the silos know of the person behind a user; None when there is no such user."""
    rows = graph.run(READ_ACCOUNT, tenant_id=tenant_id, user_id=user_id)
    return rows[0] if rows else None
