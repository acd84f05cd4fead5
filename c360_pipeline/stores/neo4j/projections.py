"""Graphs of a tenant in the server's memory, for algorithms of Graph Data Science that people run by hand.

Source: "Neo4j Integration Guide" (its statements name a projection `user-product-graph`).
"""

from dataclasses import dataclass
from typing import Any

from neo4j.exceptions import Neo4jError

from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.errors import ConfigError
from c360_pipeline.stores.neo4j.graph import Graph

PURCHASE_WEIGHT = 5
"""What a purchase counts beside a view, as in the communities."""
PROJECT_USERS_AND_PRODUCTS = Statement("""
    MATCH (u:User {tenant_id: $tenant_id})-[r:VIEWED|PURCHASED]->(p:Product {tenant_id: $tenant_id})
    RETURN gds.graph.project($name, u, p, {
        sourceNodeLabels: ['User'], targetNodeLabels: ['Product'], relationshipType: type(r),
        relationshipProperties: {weight: r.count * CASE type(r) WHEN 'PURCHASED' THEN $purchase_weight ELSE 1 END}
    }, {undirectedRelationshipTypes: ['VIEWED', 'PURCHASED']}) AS made
""")
DROP_PROJECTION = Statement("CALL gds.graph.drop($name, false) YIELD graphName RETURN graphName AS name")
LIST_PROJECTIONS = Statement("""
    CALL gds.graph.list() YIELD graphName, nodeCount, relationshipCount, sizeInBytes, creationTime
    RETURN graphName AS name, nodeCount AS nodes, relationshipCount AS relationships, sizeInBytes AS bytes,
        toString(creationTime) AS made_at
    ORDER BY name
""")


MISSING = ("Neo.ClientError.Procedure.ProcedureNotFound", "Neo.ClientError.Statement.SyntaxError")
"""Codes of an unknown procedure, and of an unknown function."""


@dataclass(frozen=True)
class Made:
    """A graph that was made.

    Attributes:
        name: what algorithms call it by.
        nodes: users and products that are in it.
        relationships: views and purchases, each in both directions.
    """

    name: str
    nodes: int
    relationships: int


def project(graph: Graph, tenant_id: str, name: str) -> Made:
    """Make the graph of a tenant's users and products, in place of one of that name.

    Raises:
        ConfigError: the server has no library for it, or the tenant has no user who viewed or bought anything.
    """
    drop(graph, name)
    (found,) = _asked(
        graph, PROJECT_USERS_AND_PRODUCTS, tenant_id=tenant_id, name=name, purchase_weight=PURCHASE_WEIGHT
    ) or [{"made": None}]
    made = found["made"]
    if not made or not made["nodeCount"]:
        drop(graph, name)
        raise ConfigError(f"{tenant_id} has no user who viewed or bought a product: `c360 status` shows the tenants.")
    return Made(name, made["nodeCount"], made["relationshipCount"])


def drop(graph: Graph, name: str) -> bool:
    """Take a graph out of the server's memory; False where there was none."""
    return bool(_asked(graph, DROP_PROJECTION, name=name))


def listed(graph: Graph) -> list[dict[str, str | int]]:
    """The graphs in the server's memory: name, nodes, relationships, bytes, made_at."""
    return _asked(graph, LIST_PROJECTIONS)


def _asked(graph: Graph, statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
    """What the library answers.

    Raises:
        ConfigError: the server has none.
    """
    try:
        return graph.run(statement, **parameters)
    except Neo4jError as error:
        if error.code not in MISSING or "gds." not in str(error):
            raise
        raise ConfigError(
            "This Neo4j has no Graph Data Science library, which statements over graphs in memory need. Features of "
            "this pipeline do without: `c360 query`, and tables `features/…` in the lake."
        ) from error
