"""The graph in Neo4j: one write path, every write repeatable, every statement with its tenant."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date
from importlib import resources
from types import TracebackType
from typing import Any, Self, TypeVar

import neo4j
import neo4j.time
import polars as pl
from neo4j.exceptions import AuthError, DriverError, IncompleteCommit, Neo4jError, ServiceUnavailable

from c360_pipeline.core.catalog.changes import Changes, Version
from c360_pipeline.core.projection.graph import DAY, Kind, NodeKind, RelationshipKind
from c360_pipeline.core.projection.refused import stands_on
from c360_pipeline.core.reconciliation.compare import strange
from c360_pipeline.errors import InvariantError, UnavailableError
from c360_pipeline.stores.neo4j import cypher
from c360_pipeline.stores.neo4j.driver_values import Read, plain
from c360_pipeline.stores.neo4j.graph_statistics import GraphStatistics
from c360_pipeline.stores.neo4j.refusals import Refusals

BATCH_ROWS = 5_000
ABSORBED_AT_ONCE = 500
"""Journeys that one transaction puts into others, about."""
POOL_SIZE = 10
"""Connections of one process."""
FIRST_RETRY_SECONDS, RETRY_MULTIPLIER = 0.1, 1.7
"""A statement that met a deadlock waits 0.1, 0.17, 0.29, 0.49 … seconds before it is tried again, a minute in all."""
READ_TIMEOUT_SECONDS = 10.0
"""After which the server ends a statement that somebody waits for."""
WRITERS = 4
"""Transactions that write at once."""
PAGE_NODES = 20_000
"""Nodes, or nodes whose relationships, are read by one statement."""
LEAST: dict[type[pl.DataType], Any] = {pl.String: "", pl.Int64: -(2**63), pl.Date: date(1, 1, 1)}
"""Of each type by which pages are told apart, a value that none is less than."""
COMMITS_WITHOUT_REPLY = 3
"""How often a statement whose commit got no reply is run again; each has the same result however often it is run."""
OF_A_ROW = ("Neo.ClientError.Schema.", "Neo.ClientError.Statement.", "Neo.DatabaseError.Statement.ExecutionFailed")
"""Codes of errors that a row can be the cause of: a constraint, a value that an index or a property can't hold."""
OF_THE_STATEMENT = ("Neo.ClientError.Statement.SyntaxError", "Neo.ClientError.Statement.AccessMode")
CHECKPOINT = "ProjectionCheckpoint"

T = TypeVar("T")

COUNT_LABELS = """
    CALL db.labels() YIELD label
    CALL (label) { MATCH (n:$(label)) RETURN count(n) AS number }
    RETURN label AS name, number
"""
COUNT_TYPES = """
    CALL db.relationshipTypes() YIELD relationshipType AS type
    CALL (type) { MATCH ()-[r:$(type)]->() RETURN count(r) AS number }
    RETURN type AS name, number
"""
READ_CHECKPOINTS = """
    MATCH (c:ProjectionCheckpoint {projection: $projection}) RETURN c.source AS source, c.version AS version
"""
SAVE_CHECKPOINT = "MERGE (c:ProjectionCheckpoint {projection: $projection, source: $source}) SET c.version = $version"
READ_WAITING = "MATCH (e:Event {status: 'NEW'}) RETURN count(e) AS number"
READ_WITHOUT_COMMUNITY = """
    MATCH (u:User)-[:VIEWED|PURCHASED]->() WHERE u.community IS NULL RETURN count(DISTINCT u) AS number
"""
CARRY_CHECKPOINTS = """
    UNWIND $rows AS row MATCH (c:ProjectionCheckpoint) WHERE c.version = row.before SET c.version = row.after
"""
READ_PROJECTIONS = """
    MATCH (c:ProjectionCheckpoint) WHERE c.projection STARTS WITH $prefix RETURN DISTINCT c.projection AS projection
"""
FORGET_CHECKPOINT = """
    MATCH (c:ProjectionCheckpoint {projection: $projection}) WHERE $source IS NULL OR c.source = $source DELETE c
"""
FORGET_CHECKPOINTS = "MATCH (c:ProjectionCheckpoint) DELETE c"
COUNT_NODES = "MATCH (n) RETURN count(n) AS number"
CLEAR = "MATCH (n) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF $batch_rows ROWS"
SHOW_CONSTRAINTS = "SHOW CONSTRAINTS YIELD name RETURN count(name) AS number"
SHOW_KEY_CONSTRAINTS = """
    SHOW CONSTRAINTS YIELD name, properties WHERE name IN $names RETURN name, properties
"""
SHOW_INDEXES_NOT_ONLINE = """
    SHOW INDEXES YIELD name, state WHERE state <> 'ONLINE' RETURN name, state ORDER BY name
"""
READ_TENANTS = "MATCH (u:User) RETURN DISTINCT u.tenant_id AS tenant_id ORDER BY tenant_id"

REMOVE_NODES = "MATCH (n) WHERE elementId(n) IN $ids DETACH DELETE n"
REMOVE_RELATIONSHIPS = "MATCH ()-[r]->() WHERE elementId(r) IN $ids DELETE r"

READ_TENANTS_WITH_EVENT = "MATCH (e:Event {id: $event_id}) RETURN e.tenant_id AS tenant_id ORDER BY tenant_id"
READ_JOURNEY_OF_EVENT = """
    MATCH (:Event {tenant_id: $tenant_id, id: $event_id})-[:HAS_KEY|IN_JOURNEY|PART_OF*1..2]
        ->(j:Journey {tenant_id: $tenant_id})
    WITH DISTINCT j
    MATCH (j)<-[:HAS_KEY|IN_JOURNEY|PART_OF*1..2]-(e:Event {tenant_id: $tenant_id})
    WITH DISTINCT j, e
    OPTIONAL MATCH (s:Session {tenant_id: $tenant_id})-[:HAS_ACTION]->(e)
    OPTIONAL MATCH (e)-[:ON_PRODUCT]->(p:Product {tenant_id: $tenant_id})
    RETURN j.id AS journey_id, e.id AS event_id, e.ts AS ts, e.type AS action, e.user_id AS user_id, s.id AS session_id,
           p.id AS product_id, p.name AS product_name,
           COLLECT { MATCH (e)-[:HAS_KEY]->(c:Correlation) RETURN DISTINCT c.key_type } AS key_types
    ORDER BY ts, event_id
"""
READ_EXPLANATION = """
    MATCH (a:Event {tenant_id: $tenant_id, id: $first}), (b:Event {tenant_id: $tenant_id, id: $second})
    CALL (a, b) {
        WITH a, b WHERE a <> b MATCH path = shortestPath((a)-[:HAS_KEY*]-(b)) RETURN nodes(path) AS chain
        UNION WITH a, b WHERE a = b RETURN [a] AS chain
    }
    RETURN [n IN chain | CASE WHEN n:Event THEN {event_id: n.id, ts: n.ts, action: n.type, user_id: n.user_id}
        ELSE {key: n.id, key_type: n.key_type} END] AS chain
"""
ABSORB = """
    UNWIND $rows AS row
    MERGE (s:Journey {tenant_id: $tenant_id, id: row.id}) SET s += row.properties
    WITH s, row UNWIND row.losers AS loser_id
    MATCH (l:Journey {tenant_id: $tenant_id, id: loser_id})
    CALL (s, l) { MATCH (c:Correlation)-[old:PART_OF]->(l) DELETE old MERGE (c)-[:PART_OF]->(s) }
    CALL (s, l) { MATCH (e:Event)-[old:IN_JOURNEY]->(l) DELETE old MERGE (e)-[:IN_JOURNEY]->(s) }
    DETACH DELETE l
"""
UNTIE = """
    UNWIND $rows AS row MATCH (e:Event {tenant_id: $tenant_id, id: row.id})-[old:HAS_KEY|IN_JOURNEY]->() DELETE old
"""
READ_FIRST_EVENT = """
    MATCH (:User {tenant_id: $tenant_id, id: $user_id})-[:HAS_SESSION]->(:Session {tenant_id: $tenant_id})
        -[:HAS_ACTION]->(e:Event {tenant_id: $tenant_id, user_id: $user_id})
    RETURN e.id AS event_id ORDER BY e.ts, e.id LIMIT 1
"""
READ_ACCOUNT = """
    MATCH (u:User {tenant_id: $tenant_id, id: $user_id})
    OPTIONAL MATCH (u)-[:IS_ACCOUNT]->(a:Account)
    OPTIONAL MATCH (a)-[:HAS_SUBSCRIPTION]->(:Subscription)-[:SUBSCRIBED_TO]->(p:Plan)
    OPTIONAL MATCH (a)-[:SUBMITTED]->(t:Ticket)
    RETURN u.id AS user_id, u.community AS community, a.full_name AS full_name, a.email AS email,
           collect(DISTINCT p.plan_name) AS plans, count(DISTINCT t) AS tickets
"""


@dataclass(frozen=True)
class Stray:
    """A node or relationship that belongs nowhere.

    Attributes:
        element_id: as the database calls it.
        text: what it is.
    """

    element_id: str
    text: str


class Graph:
    """A Neo4j database.

    Use it as a context manager: it holds a driver with its pool of connections.

    Attributes:
        statistics: of the statements that were run.
        refusals: rows that the database did not take.

    Args:
        uri: bolt:// or neo4j:// address.
        user: login.
        password: its secret.
        database: name of the database.
    """

    def __init__(self, uri: str, user: str, password: str, database: str) -> None:
        self._uri = uri
        self._database = database
        self.statistics = GraphStatistics(POOL_SIZE)
        self.refusals = Refusals()
        self._driver = neo4j.GraphDatabase.driver(
            uri, auth=(user, password), notifications_min_severity="OFF", max_connection_pool_size=POOL_SIZE,
            connection_timeout=10, max_transaction_retry_time=60, initial_retry_delay=FIRST_RETRY_SECONDS,
            retry_delay_multiplier=RETRY_MULTIPLIER, retry_delay_jitter_factor=0.2,
        )  # fmt: skip

    def __enter__(self) -> Self:
        try:
            self._driver.verify_connectivity()
        except AuthError as error:
            self._driver.close()
            raise UnavailableError(f"Neo4j at {self._uri} refuses the login: {error.message}") from None
        except (ServiceUnavailable, DriverError, Neo4jError) as error:
            self._driver.close()
            raise UnavailableError(
                f"Neo4j at {self._uri} can't be reached: {error}. Start the embedded one with `c360 up`."
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._driver.close()

    def run(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        """Run one statement in a transaction that is retried on transient errors; returns its records.

        It is run again, too, where the connection broke before the reply to its commit: nobody knows then whether it
        was carried out, so a statement must have the same result when it is carried out twice.
        """
        attempts = 0

        def work(transaction: neo4j.ManagedTransaction) -> list[dict[str, Any]]:
            nonlocal attempts
            attempts += 1
            return transaction.run(statement, parameters).data()

        with (
            self.statistics.measured(statement, lambda: attempts),
            self._driver.session(database=self._database) as session,
        ):
            for attempt in range(COMMITS_WITHOUT_REPLY):
                try:
                    return session.execute_write(work)
                except IncompleteCommit:
                    if attempt == COMMITS_WITHOUT_REPLY - 1:
                        raise
            raise AssertionError("the last attempt returns or raises")

    def query(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        """Run one reading statement; returns its records as plain values, times and dates as ISO 8601 text."""
        return [plain(record) for record in self._rows_of(statement, parameters, None)]

    def read_only(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        """Run one reading statement that somebody waits for; returns its records with the driver's values.

        Raises:
            Neo4jError: it takes more than 10 seconds, or fails.
        """
        return self._rows_of(statement, parameters, READ_TIMEOUT_SECONDS)

    def read_together(self, work: Callable[[Read], T]) -> T:
        """Run several reading statements that somebody waits for in one transaction, which saves each its own.

        Args:
            work: given what `read_only` is; begun again on a transient error.

        Raises:
            Neo4jError: they take more than 10 seconds, or one fails.
        """
        return self._reading(work, READ_TIMEOUT_SECONDS)

    def _rows_of(self, statement: str, parameters: dict[str, Any], timeout: float | None) -> list[dict[str, Any]]:
        return self._reading(lambda read: read(statement, **parameters), timeout)

    def _reading(self, work: Callable[[Read], T], timeout: float | None) -> T:
        @neo4j.unit_of_work(timeout=timeout)
        def transact(transaction: neo4j.ManagedTransaction) -> T:
            def read(statement: str, **parameters: Any) -> list[dict[str, Any]]:
                with self.statistics.measured(statement, lambda: 1):
                    return transaction.run(statement, parameters).data()

            return work(read)

        with self._driver.session(database=self._database, default_access_mode=neo4j.READ_ACCESS) as session:
            return session.execute_read(transact)

    def tenants_with_data(self) -> list[str]:
        """Tenants that have users or accounts in the graph."""
        return sorted({*self.tenants(), *self.tenants_of("Account")})

    def apply_schema(self, kinds: Sequence[NodeKind] = ()) -> None:
        """Create constraints and indexes, those of the script and those of labels from control rows."""
        script = resources.files("c360_pipeline.ddl").joinpath("graph.cypher").read_text(encoding="utf-8")
        code = "\n".join(line for line in script.splitlines() if not line.startswith("//"))
        self._drop_constraints_of_other_keys(kinds)
        statements = [*code.split(";"), *(cypher.key_constraint(kind) for kind in kinds)]
        # At once: in a graph that is full, each waits until its index is.
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(self.run, filter(str.strip, statements)))
        self.run("CALL db.awaitIndexes(300)")

    def _drop_constraints_of_other_keys(self, kinds: Sequence[NodeKind]) -> None:
        """A control row may name another key than before: its constraint would keep the new one out."""
        wanted = {cypher.key_constraint_name(kind): kind.key_columns for kind in kinds}
        for found in self.run(SHOW_KEY_CONSTRAINTS, names=list(wanted)):
            if found["properties"] != wanted[found["name"]]:
                self.run(cypher.drop_constraint(found["name"]))

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
            self.run(ABSORB, tenant_id=tenant_id, rows=rows)

    def untie(self, events: pl.DataFrame) -> None:
        """Take all keys and the journey from events that are tied otherwise now: tenant_id, id."""
        for group in in_turn(events):
            for tenant_id, batch in group:
                self.run(UNTIE, tenant_id=tenant_id, rows=to_rows(batch))

    def explanation(self, tenant_id: str, first: str, second: str) -> list[dict[str, Any]] | None:
        """The shortest chain of events and keys between two events, both ends included; None when there is none."""
        found = self.read_only(READ_EXPLANATION, tenant_id=tenant_id, first=first, second=second)
        return [plain(node) for node in found[0]["chain"]] if found else None

    def remove_undeclared_properties(self, kind: NodeKind) -> list[str]:
        """Remove properties that the kind does not declare from all nodes of its label; returns their names."""
        found = {r["name"] for r in self.run(cypher.property_names_statement(kind))}
        stray = sorted(found - set(kind.schema))
        if stray:
            self.run(cypher.clear_statement(kind), nulls=dict.fromkeys(stray))
        return stray

    def delete(self, kind: Kind, keys: pl.DataFrame) -> None:
        """Remove rows of a kind by key; a node takes its relationships with it."""
        self._write(cypher.delete_statement(kind), kind, in_turn(keys), must_match=False)

    def _write(
        self, statement: str, kind: Kind, groups: Iterable[list[tuple[str, pl.DataFrame]]], *, must_match: bool
    ) -> None:
        def write(batch_of_tenant: tuple[str, pl.DataFrame]) -> None:
            tenant_id, batch = batch_of_tenant
            try:
                written = self.run(statement, tenant_id=tenant_id, rows=to_rows(batch))[0]["written"]
            except Neo4jError as error:
                if not is_of_a_row(error):
                    raise
                if batch.height == 1:
                    row = batch.select(pl.lit(tenant_id).alias("tenant_id"), pl.all())
                    self.refusals.add(kind, row, str(error.code), str(error.message), statement)
                    return
                half = batch.height // 2
                write((tenant_id, batch.head(half)))
                write((tenant_id, batch.tail(batch.height - half)))
                return
            if must_match and written != batch.height and isinstance(kind, RelationshipKind):
                self._explain_unwritten(kind, tenant_id, batch)

        for together in groups:
            with ThreadPoolExecutor(WRITERS) as pool:
                list(pool.map(write, together))

    def _explain_unwritten(self, kind: RelationshipKind, tenant_id: str, batch: pl.DataFrame) -> None:
        """Relationships stand on nodes; where the database refused such a node, they wait with it."""
        found = self.run(cypher.without_ends_statement(kind), tenant_id=tenant_id, rows=to_rows(batch))
        lost = batch[[r["number"] for r in found]].select(pl.lit(tenant_id).alias("tenant_id"), pl.all())
        self.refusals.wait(kind, lost)
        unexplained = lost.filter(~stands_on(kind, lost, self.refusals.keys))
        if unexplained.height:
            raise InvariantError(
                f"{kind.name}: {unexplained.height} of {batch.height} rows of tenant {tenant_id} found no "
                f"node to stand on, such as {unexplained.select(kind.key_columns).row(0, named=True)}. "
                "Materialise the assets upstream first."
            )

    def read(self, kind: Kind, tenant_id: str) -> pl.DataFrame:
        """All rows of a kind of a tenant; a value of another type than the kind's reads as null."""
        return self._read(kind, tenant_id, audited=False).select(list(kind.schema))

    def audit(self, kind: Kind, tenant_id: str) -> pl.DataFrame:
        """All rows of a kind of a tenant with `DAY`, and with what is strange about them.

        Returns:
            The columns of the kind, `DAY`, and for each column with values of another type than the kind's one more,
            `strange(name)`: such a value as text, null where there is none. Of a node without one of its extra labels
            this is said under the label's name.
        """
        return self._read(kind, tenant_id, audited=True)

    def _read(self, kind: Kind, tenant_id: str, *, audited: bool) -> pl.DataFrame:
        """Page by page, so that neither side holds more than some thousands of rows as single values."""

        def frame(rows: list[list[Any]]) -> pl.DataFrame:
            return pl.DataFrame(_read_columns(kind, rows, audited=audited))

        with self._driver.session(database=self._database, fetch_size=10) as session:

            def read(pages: cypher.Pages, **bounds: Any) -> list[pl.DataFrame]:
                statement = cypher.read_statement(kind, audited=audited, pages=pages)
                found = session.run(statement, tenant_id=tenant_id, batch_rows=BATCH_ROWS, **bounds)
                return [frame(rows) for (rows,) in found]

            if not cypher.is_paged(kind):
                frames = read(cypher.Pages.ALL)
            else:
                frames, dtype = [], cypher.paged_by(kind)[1]
                start, is_last = LEAST[type(dtype)], False
                while not is_last:
                    ends = session.run(
                        cypher.page_end_statement(kind),
                        {"tenant_id": tenant_id, "from": start, "page_nodes": PAGE_NODES},
                    ).values()
                    is_last = not ends
                    pages = cypher.Pages.FROM if is_last else cypher.Pages.BETWEEN
                    frames += read(pages, **{"from": start, **({} if is_last else {"to": ends[0][0]})})
                    start = None if is_last else ends[0][0]
                frames += read(cypher.Pages.OTHERS)
        return pl.concat([frame([]), *frames], how="diagonal").select(pl.lit(tenant_id).alias("tenant_id"), pl.all())

    def stray_nodes(self, kind: NodeKind, tenants: Sequence[str]) -> list["Stray"]:
        """Nodes of a label that have no tenant of these, or no key, or an extra label only."""
        return [Stray(**row) for row in self.query(cypher.stray_nodes_statement(kind), tenants=list(tenants))]

    def stray_relationships(self, kinds: Sequence[RelationshipKind], tenants: Sequence[str]) -> list["Stray"]:
        """Relationships of one type that lead between other labels than these kinds say, or from tenant to tenant."""
        statement = cypher.stray_relationships_statement(tuple(kinds))
        return [Stray(**row) for row in self.query(statement, tenants=list(tenants))]

    def remove(self, kind: Kind, element_ids: Sequence[str]) -> None:
        """Remove nodes with their relationships, or relationships, by element id."""
        statement = REMOVE_NODES if isinstance(kind, NodeKind) else REMOVE_RELATIONSHIPS
        for start in range(0, len(element_ids), BATCH_ROWS):
            self.run(statement, ids=list(element_ids[start : start + BATCH_ROWS]))

    def delete_mistyped(self, kind: NodeKind, tenant_id: str, name: str) -> None:
        """Remove the nodes of a tenant whose key column has a value of another type than the kind's."""
        self.run(cypher.delete_mistyped_statement(kind, name), tenant_id=tenant_id)

    def type_count(self, name: str) -> int:
        """Relationships of a type, of all tenants."""
        return int(self.run(cypher.type_count_statement(name))[0]["number"])

    def label_counts(self) -> dict[str, int]:
        """Nodes by label; the checkpoints of the projection itself are left out."""
        return {r["name"]: r["number"] for r in self.run(COUNT_LABELS) if r["number"] and r["name"] != CHECKPOINT}

    def type_counts(self) -> dict[str, int]:
        """Relationships by type."""
        return {r["name"]: r["number"] for r in self.run(COUNT_TYPES) if r["number"]}

    def counts(self) -> dict[str, int]:
        """Nodes by label and relationships by type."""
        return self.label_counts() | self.type_counts()

    def waiting_events(self) -> int:
        """Events of all tenants that stitching has not reached (status NEW)."""
        return int(self.run(READ_WAITING)[0]["number"])

    def active_users_without_community(self) -> int:
        """Users of all tenants with a view or purchase and no community."""
        return int(self.run(READ_WITHOUT_COMMUNITY)[0]["number"])

    def constraint_count(self) -> int:
        """Constraints that exist."""
        return int(self.run(SHOW_CONSTRAINTS)[0]["number"])

    def indexes_not_online(self) -> list[dict[str, str]]:
        """Name and state of every index that can't be used."""
        return self.run(SHOW_INDEXES_NOT_ONLINE)

    def tenants(self) -> list[str]:
        """Tenants that have users in the graph."""
        return [r["tenant_id"] for r in self.run(READ_TENANTS)]

    def checkpoint(self, projection: str) -> dict[str, Version]:
        """The versions of lake tables that a projection has brought into this graph.

        They live in the graph itself: an emptied or restored graph tells by itself what it lacks (docs/adr/0008).
        """
        rows = self.run(READ_CHECKPOINTS, projection=projection)
        return {r["source"]: Version.parse(r["version"]) for r in rows}

    def save_checkpoint(self, projection: str, source: str, version: Version | None) -> None:
        """Note that a projection has brought a table's version into this graph."""
        if version is not None:
            self.run(SAVE_CHECKPOINT, projection=projection, source=source, version=str(version))

    def carry_checkpoints(self, versions: Mapping[str, Version]) -> None:
        """Say of tables whose rows are the same under another version that this graph has these."""
        pairs = [{"before": before, "after": str(after)} for before, after in versions.items()]
        self.run(CARRY_CHECKPOINTS, rows=pairs)

    def checkpoints(self, prefix: str) -> list[str]:
        """Names of the projections with a checkpoint that begin so."""
        return sorted(r["projection"] for r in self.run(READ_PROJECTIONS, prefix=prefix))

    def forget_checkpoint(self, projection: str, source: str | None = None) -> None:
        """Forget what a projection has brought into this graph, of one source or all."""
        self.run(FORGET_CHECKPOINT, projection=projection, source=source)

    def forget_all_checkpoints(self) -> None:
        """Forget what every projection has brought into this graph."""
        self.run(FORGET_CHECKPOINTS)

    def label_count(self, label: str) -> int:
        """Nodes of a label, of all tenants."""
        return int(self.run(cypher.label_count_statement(label))[0]["number"])

    def relationship_count(self, kind: RelationshipKind) -> int:
        """Relationships of a kind, of all tenants: the lesser of what its source and its target label have."""
        return min(int(self.run(s)[0]["number"]) for s in cypher.relationship_count_statements(kind))

    def tenants_of(self, label: str) -> list[str]:
        """Tenants that have nodes of a label."""
        return [r["tenant_id"] for r in self.run(cypher.tenants_statement(label))]

    def clear(self) -> int:
        """Remove every node and relationship, of all tenants; constraints stay. Returns how many nodes there were."""
        count = int(self.run(COUNT_NODES)[0]["number"])
        self._run_in_batches(CLEAR)
        return count

    def clear_label(self, label: str) -> int:
        """Remove all nodes of a label and their relationships, of all tenants; returns how many nodes."""
        count = self.label_count(label)
        self._run_in_batches(cypher.clear_label_statement(label))
        return count

    def clear_relationships(self, kind: RelationshipKind) -> None:
        """Remove all relationships of a kind, of all tenants."""
        self._run_in_batches(cypher.clear_relationships_statement(kind))

    def _run_in_batches(self, statement: str) -> None:
        with self._driver.session(database=self._database) as session:
            session.run(statement, batch_rows=BATCH_ROWS).consume()

    def all_texts(self) -> Iterator[tuple[str, list[str]]]:
        """By label or type, the properties of some nodes or relationships as texts, of all tenants."""
        with self._driver.session(database=self._database, default_access_mode=neo4j.READ_ACCESS) as session:
            for label in self.label_counts():
                for (texts,) in session.run(cypher.node_texts_statement(label)):
                    yield label, texts
            for name in self.type_counts():
                for (texts,) in session.run(cypher.relationship_texts_statement(name)):
                    yield name, texts

    def tenants_with_event(self, event_id: str) -> list[str]:
        """Tenants that have an event of this id."""
        return [r["tenant_id"] for r in self.run(READ_TENANTS_WITH_EVENT, event_id=event_id)]

    def journey_of_event(self, tenant_id: str, event_id: str) -> list[dict[str, Any]]:
        """The events of the journey that an event belongs to, by time."""
        return self.read_only(READ_JOURNEY_OF_EVENT, tenant_id=tenant_id, event_id=event_id)

    def first_event_of_user(self, tenant_id: str, user_id: str) -> str | None:
        """The id of a user's first event; None when there is no such user."""
        rows = self.run(READ_FIRST_EVENT, tenant_id=tenant_id, user_id=user_id)
        return rows[0]["event_id"] if rows else None

    def account_of_user(self, tenant_id: str, user_id: str) -> dict[str, Any] | None:
        """What the silos know of the person behind a user; None when there is no such user."""
        rows = self.run(READ_ACCOUNT, tenant_id=tenant_id, user_id=user_id)
        return rows[0] if rows else None


def is_of_a_row(error: Neo4jError) -> bool:
    """Whether one of the rows that a statement was given can be what the database did not take."""
    code = str(error.code)
    return not error.is_retryable() and code.startswith(OF_A_ROW) and not code.startswith(OF_THE_STATEMENT)


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


def _read_columns(kind: Kind, rows: list[list[Any]], *, audited: bool) -> Iterator[pl.Series]:
    """The columns of a kind but tenant_id, and where values of another type are, these as text.

    For an audit, `DAY` and what lacks of labels too.
    """
    names = [name for name in kind.schema if name != "tenant_id"]
    labels = cypher.extra_labels(kind)
    columns = list(zip(*rows, strict=True)) or [()] * (len(names) + 1 + len(labels))
    for name, values in zip(names, columns, strict=False):
        yield from _read_series(name, values, kind)
    if audited:
        yield pl.Series(DAY, columns[len(names)], dtype=pl.Int32).cast(pl.Date)
        for label, has in zip(labels, columns[len(names) + 1 :], strict=True):
            if not all(has):
                yield pl.Series(strange(f":{label}"), [None if it else "not there" for it in has], dtype=pl.String)


def _read_series(name: str, values: Sequence[Any], kind: Kind) -> Iterator[pl.Series]:
    """A column as its kind has it, and where values of another type were written behind our back, what they are."""
    dtype = kind.schema[name]
    expected, wire_type = _wire_types(dtype)
    if set(map(type, values)) - {type(None), expected}:
        is_right = [v is None or type(v) is expected for v in values]
        yield pl.Series(
            strange(name), [None if ok else _typed_text(v, dtype) for v, ok in zip(values, is_right, strict=True)],
            dtype=pl.String,
        )  # fmt: skip
        values = [v if ok else None for v, ok in zip(values, is_right, strict=True)]
    if expected in (neo4j.time.Date, neo4j.time.DateTime):
        values = [None if v is None else v.to_native() for v in values]
    yield pl.Series(name, values, dtype=wire_type).cast(dtype)


def _typed_text(value: Any, dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone and isinstance(value, list):
        (value,) = value  # `cypher.read_statement` wraps what should be an instant and is not
    return f"{plain(value)!r} ({type(value).__name__})"


def _wire_types(dtype: pl.DataType) -> tuple[type, pl.DataType]:
    """The Python type in which the driver delivers values of a column, and the polars type to take them up as."""
    match dtype:
        case pl.Datetime(time_zone=str()):
            return int, pl.Int64()  # `cypher.read_statement` asks for microseconds
        case pl.Datetime():
            return neo4j.time.DateTime, dtype
        case pl.Date():
            return neo4j.time.Date, dtype
        case pl.Boolean():
            return bool, dtype
        case pl.Binary():
            return bytes, dtype
        case pl.Float64():
            return float, dtype
        case pl.Int64():
            return int, dtype
        case _:
            return str, dtype
