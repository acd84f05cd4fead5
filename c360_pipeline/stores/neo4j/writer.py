"""Writes rows of kinds: every write repeatable, every statement with its tenant."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from typing import Any

import polars as pl

from c360_pipeline.core.arrays.bisection import bisected
from c360_pipeline.core.catalog.changes import Changes
from c360_pipeline.core.projection.graph import Kind, NodeKind, RelationshipKind
from c360_pipeline.core.projection.refused import stands_on
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.errors import InvariantError
from c360_pipeline.stores.neo4j import cypher
from c360_pipeline.stores.neo4j.client import BATCH_ROWS, Client, is_of_a_row
from c360_pipeline.stores.neo4j.counts import COUNT_NODES, Counts

ABSORBED_AT_ONCE = 500
"""Journeys that one transaction puts into others, about."""
WRITERS = 4
"""Transactions that write at once."""
CLEAR = Statement("MATCH (n) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF $batch_rows ROWS")
REMOVE_NODES = Statement("MATCH (n) WHERE elementId(n) IN $ids DETACH DELETE n")
REMOVE_RELATIONSHIPS = Statement("MATCH ()-[r]->() WHERE elementId(r) IN $ids DELETE r")
ABSORB = Statement("""
    UNWIND $rows AS row
    MERGE (s:Journey {tenant_id: $tenant_id, id: row.id}) SET s += row.properties
    WITH s, row UNWIND row.losers AS loser_id
    MATCH (l:Journey {tenant_id: $tenant_id, id: loser_id})
    CALL (s, l) {
        MATCH (c:Correlation {tenant_id: $tenant_id})-[old:PART_OF]->(l) DELETE old MERGE (c)-[:PART_OF]->(s)
    }
    CALL (s, l) {
        MATCH (e:Event {tenant_id: $tenant_id})-[old:IN_JOURNEY]->(l) DELETE old MERGE (e)-[:IN_JOURNEY]->(s)
    }
    DETACH DELETE l
""")
UNTIE = Statement("""
    UNWIND $rows AS row MATCH (e:Event {tenant_id: $tenant_id, id: row.id})-[old:HAS_KEY|IN_JOURNEY]->() DELETE old
""")


class Writer:
    """The one write path.

    Args:
        client: of the database.
        counts: of its labels.
    """

    def __init__(self, client: Client, counts: Counts) -> None:
        self._client = client
        self._counts = counts

    def apply(self, kind: Kind, changes: Changes) -> None:
        """Bring a kind from one version to the next: delete what is gone, write what is new or altered.

        Raises:
            InvariantError: a relationship has no node at one of its ends.
        """
        self.delete(kind, changes.deleted)
        self.merge(kind, changes.upserted)

    def merge(self, kind: Kind, rows: pl.DataFrame) -> None:
        """Write rows of a kind; rows that are there already stay one.

        Raises:
            InvariantError: a relationship has no node at one of its ends.
        """
        self._write(cypher.merge_statement(kind), kind, apart(kind, rows.sort(kind.key_columns)), must_match=True)

    def update(self, kind: NodeKind, rows: pl.DataFrame) -> None:
        """Set properties on nodes that another projection makes."""
        self._write(cypher.update_statement(kind), kind, apart(kind, rows.sort(kind.key_columns)), must_match=False)

    def move(self, kind: RelationshipKind, rows: pl.DataFrame) -> None:
        """Make these the only relationships of their sources; a reader sees the old or the new, never both or none.

        Raises:
            InvariantError: a relationship has no node at one of its ends.
        """
        self._write(cypher.move_statement(kind), kind, in_turn(rows.sort(kind.key_columns)), must_match=True)

    def absorb(self, journeys: pl.DataFrame, absorbed: pl.DataFrame) -> None:
        """Put merged journeys into the ones that go on; a reader sees all of a journey before or after, never a part.

        Args:
            journeys: `JOURNEY` rows of those that go on.
            absorbed: tenant_id, journey_id, merged_into.
        """
        losers = absorbed.group_by("tenant_id", id="merged_into").agg(losers="journey_id")
        names = [name for name in journeys.columns if name not in ("tenant_id", "id")]
        together = losers.join(journeys, on=["tenant_id", "id"]).select(
            "tenant_id", "id", "losers", *names, group=pl.col("losers").list.len().cum_sum() // ABSORBED_AT_ONCE
        )
        for (tenant_id, _), part in together.group_by("tenant_id", "group", maintain_order=True):
            rows = [
                {"id": row["id"], "losers": row["losers"], "properties": {name: row[name] for name in names}}
                for row in to_rows(part)
            ]
            self._client.run(ABSORB, tenant_id=tenant_id, rows=rows)

    def unlink(self, events: pl.DataFrame) -> None:
        """Take all keys and the journey from events that are linked otherwise now: tenant_id, id."""
        for group in in_turn(events):
            for tenant_id, batch in group:
                self._client.run(UNTIE, tenant_id=tenant_id, rows=to_rows(batch))

    def remove_undeclared_properties(self, kind: NodeKind) -> list[str]:
        """Remove properties that the kind does not declare from all nodes of its label; returns their names."""
        found = {r["name"] for r in self._client.run(cypher.property_names_statement(kind))}
        orphan = sorted(found - set(kind.schema))
        if orphan:
            self._client.run(cypher.clear_statement(kind), nulls=dict.fromkeys(orphan))
        return orphan

    def clear_property(self, kind: NodeKind) -> None:
        """Take a property that a kind owns away from all nodes of its label, of any tenant."""
        self._client.run_in_batches(cypher.clear_property_statement(kind))

    def delete(self, kind: Kind, keys: pl.DataFrame) -> None:
        """Remove rows of a kind by key; a node takes its relationships with it."""
        self._write(cypher.delete_statement(kind), kind, in_turn(keys), must_match=False)

    def _write(
        self, statement: Statement, kind: Kind, groups: Iterable[list[tuple[str, pl.DataFrame]]], *, must_match: bool
    ) -> None:
        def write(batch_of_tenant: tuple[str, pl.DataFrame]) -> None:
            tenant_id, batch = batch_of_tenant

            def send(rows: pl.DataFrame) -> None:
                written = self._client.run(statement, tenant_id=tenant_id, rows=to_rows(rows))[0]["written"]
                if must_match and written != rows.height and isinstance(kind, RelationshipKind):
                    self._explain_unwritten(kind, tenant_id, rows)

            for refused, error in bisected(batch, send, is_of_a_row):
                row = refused.select(pl.lit(tenant_id).alias("tenant_id"), pl.all())
                code, message = (str(getattr(error, name, "")) for name in ("code", "message"))
                self._client.refusals.add(kind, row, code, message, statement)

        for together in groups:
            with ThreadPoolExecutor(WRITERS) as pool:
                list(pool.map(write, together))

    def _explain_unwritten(self, kind: RelationshipKind, tenant_id: str, batch: pl.DataFrame) -> None:
        """Relationships stand on nodes; where the database refused such a node, they wait with it."""
        found = self._client.run(cypher.without_ends_statement(kind), tenant_id=tenant_id, rows=to_rows(batch))
        lost = batch[[r["number"] for r in found]].select(pl.lit(tenant_id).alias("tenant_id"), pl.all())
        self._client.refusals.wait(kind, lost)
        unexplained = lost.filter(~stands_on(kind, lost, self._client.refusals.keys))
        if unexplained.height:
            raise InvariantError(
                f"{kind.name}: {unexplained.height} of {batch.height} rows of tenant {tenant_id} found no "
                f"node to stand on, such as {unexplained.select(kind.key_columns).row(0, named=True)}. "
                "Materialise the assets upstream first."
            )

    def remove(self, kind: Kind, element_ids: Sequence[str]) -> None:
        """Remove nodes with their relationships, or relationships, by element id."""
        statement = REMOVE_NODES if isinstance(kind, NodeKind) else REMOVE_RELATIONSHIPS
        for start in range(0, len(element_ids), BATCH_ROWS):
            self._client.run(statement, ids=list(element_ids[start : start + BATCH_ROWS]))

    def delete_mistyped(self, kind: NodeKind, tenant_id: str, name: str) -> None:
        """Remove the nodes of a tenant whose key column has a value of another type than the kind's."""
        self._client.run(cypher.delete_mistyped_statement(kind, name), tenant_id=tenant_id)

    def clear(self) -> int:
        """Remove every node and relationship, of all tenants; constraints stay. Returns how many nodes there were."""
        count = int(self._client.run(COUNT_NODES)[0]["number"])
        self._client.run_in_batches(CLEAR)
        return count

    def clear_label(self, label: str) -> int:
        """Remove all nodes of a label and their relationships, of all tenants; returns how many nodes."""
        count = self._counts.label_count(label)
        self._client.run_in_batches(cypher.clear_label_statement(label))
        return count

    def clear_relationships(self, kind: RelationshipKind) -> None:
        """Remove all relationships of a kind, of all tenants."""
        self._client.run_in_batches(cypher.clear_relationships_statement(kind))


def apart(kind: Kind, rows: pl.DataFrame) -> Iterator[list[tuple[str, pl.DataFrame]]]:
    """Batches in groups whose batches can be written at once without a deadlock.

    Nodes of different keys share nothing. Relationships are written in turn: a new one locks the first of each of its
    ends' others, whose far ends are anybody's, so that even batches without a node in common wait for each other.
    """
    if isinstance(kind, NodeKind):
        yield list(batches(rows))
    else:
        yield from in_turn(rows)


def in_turn(rows: pl.DataFrame) -> Iterator[list[tuple[str, pl.DataFrame]]]:
    """Batches one after the other: for statements that touch more than their rows name."""
    return ([batch] for batch in batches(rows))


def batches(rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """The rows of each tenant in slices of at most `BATCH_ROWS`, without their tenant_id."""
    for (tenant_id,), part in rows.partition_by("tenant_id", as_dict=True, maintain_order=True).items():
        for batch in part.drop("tenant_id").iter_slices(BATCH_ROWS):
            yield str(tenant_id), batch


def to_rows(batch: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as the driver takes them; instants with the offset +00:00, so that Neo4j keeps no zone name."""
    zoned = [n for n, t in batch.schema.items() if isinstance(t, pl.Datetime) and t.time_zone]
    rows = batch.to_dicts()
    for row in rows:
        for name in zoned:
            if row[name] is not None:
                row[name] = row[name].replace(tzinfo=UTC)
    return rows
