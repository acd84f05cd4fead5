"""Counts of labels and types, and which tenants there are."""

import polars as pl

from c360_pipeline.core.projection.graph import RelationshipKind
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.stores.neo4j import cypher
from c360_pipeline.stores.neo4j.client import Client

CHECKPOINT = "ProjectionCheckpoint"
READ_LABELS = Statement("CALL db.labels() YIELD label RETURN label AS name ORDER BY name")
READ_TYPES = Statement("CALL db.relationshipTypes() YIELD relationshipType AS name RETURN name ORDER BY name")
COUNT_NODES = Statement("MATCH (n) RETURN count(n) AS number")
COUNT_RELATIONSHIPS = Statement("MATCH ()-[r]->() RETURN count(r) AS number")
READ_WAITING = Statement("""
    MATCH (e:Event {status: 'NEW'}) USING INDEX e:Event(status) WHERE NOT e:Unlanded
    RETURN e.tenant_id AS tenant_id, e.id AS id
""")
READ_WITHOUT_COMMUNITY = Statement("""
    MATCH (u:User {tenant_id: $tenant_id})-[:VIEWED|PURCHASED]->() WHERE u.community IS NULL
    RETURN DISTINCT u.tenant_id AS tenant_id, u.id AS user_id
""")
READ_TENANTS = Statement("MATCH (u:User) RETURN DISTINCT u.tenant_id AS tenant_id ORDER BY tenant_id")


class Counts:
    """What the database counts by itself, and tenants.

    Args:
        client: of the database.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def label_counts(self) -> dict[str, int]:
        """Nodes by label; the checkpoints of the projection itself are left out."""
        return self._counts(self._names(READ_LABELS), ())

    def type_counts(self) -> dict[str, int]:
        """Relationships by type."""
        return self._counts((), self._names(READ_TYPES))

    def _names(self, statement: Statement) -> tuple[str, ...]:
        return tuple(r["name"] for r in self._client.run(statement) if r["name"] != CHECKPOINT)

    def _counts(self, labels: tuple[str, ...], types: tuple[str, ...]) -> dict[str, int]:
        # Whoever writes there may use any name; one with a backslash can't be said in a statement.
        labels, types = (tuple(name for name in some if "\\" not in name) for some in (labels, types))
        names = (*labels, *types)
        rows = self._client.run(cypher.counts_statement(labels, types)) if names else []
        return {names[r["place"]]: r["number"] for r in rows if r["number"]}

    def all(self) -> dict[str, int]:
        """Nodes by label and relationships by type."""
        return self.label_counts() | self.type_counts()

    def total(self) -> int:
        """Nodes and relationships, of whatever label and type."""
        return sum(int(self._client.run(statement)[0]["number"]) for statement in (COUNT_NODES, COUNT_RELATIONSHIPS))

    def type_count(self, name: str) -> int:
        """Relationships of a type, of all tenants."""
        return int(self._client.run(cypher.type_count_statement(name))[0]["number"])

    def label_count(self, label: str) -> int:
        """Nodes of a label, of all tenants."""
        return int(self._client.run(cypher.label_count_statement(label))[0]["number"])

    def relationship_count(self, kind: RelationshipKind) -> int:
        """Relationships of a kind, of all tenants: the lesser of what its source and its target label have."""
        return min(int(self._client.run(s)[0]["number"]) for s in cypher.relationship_count_statements(kind))

    def waiting_events(self) -> pl.DataFrame:
        """tenant_id, id of the landed events of all tenants that stitching has not reached (status NEW)."""
        schema = {"tenant_id": pl.String, "id": pl.String}
        return pl.DataFrame(self._client.run(READ_WAITING), schema=schema)

    def active_users_without_community(self, tenant_id: str) -> pl.DataFrame:
        """tenant_id, user_id of the users of a tenant with a view or purchase and no community."""
        schema = {"tenant_id": pl.String, "user_id": pl.String}
        return pl.DataFrame(self._client.run(READ_WITHOUT_COMMUNITY, tenant_id=tenant_id), schema=schema)

    def tenants(self) -> list[str]:
        """Tenants that have users in the graph."""
        return [r["tenant_id"] for r in self._client.run(READ_TENANTS)]

    def tenants_of(self, label: str) -> list[str]:
        """Tenants that have nodes of a label."""
        return [r["tenant_id"] for r in self._client.run(cypher.tenants_statement(label))]

    def tenants_with_data(self) -> list[str]:
        """Tenants that have users or accounts in the graph."""
        return sorted({*self.tenants(), *self.tenants_of("Account")})
