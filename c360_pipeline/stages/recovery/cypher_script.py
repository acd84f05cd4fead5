"""The silos' part of the graph as a script that rebuilds it in an empty database, one statement a line."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.cypher_literals import row_literals
from c360_pipeline.core.projection.graph import Kind, NodeKind, RelationshipKind
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stores.neo4j import cypher
from c360_pipeline.stores.neo4j.graph import Graph

FIND_CLAIM = Statement("""
    OPTIONAL MATCH (m:C360Script {sha256: $sha256})
    WITH count(m) AS marked RETURN marked, EXISTS { MATCH (n) } AS has_nodes
""")
CLAIM = Statement("MERGE (m:C360Script {sha256: $sha256})")
END_CLAIM = Statement("MATCH (m:C360Script {sha256: $sha256}) DELETE m")
ROWS_PER_STATEMENT = 500
SCRIPTS_PREFIX = "cypher/"
"""Where scripts are in the bucket."""


@dataclass(frozen=True)
class Script:
    """A script that was written.

    Attributes:
        sha256: of its bytes.
        statements: how many it has.
        rows: nodes and relationships that it makes.
    """

    sha256: str
    statements: int
    rows: int


def write_script(archive: Archive, path: Path) -> Script:
    """Write the script; the same archive gives the same bytes."""
    digest, statements, rows = hashlib.sha256(), 0, 0
    with path.open("wb") as file:
        for statement, made in script_statements(archive):
            line = f"{statement};\n".encode()
            digest.update(line)
            file.write(line)
            statements += 1
            rows += made
    return Script(digest.hexdigest(), statements, rows)


def script_statements(archive: Archive) -> Iterator[tuple[str, int]]:
    """Statements in the order of running, and how many rows each makes: constraints, nodes, relationships."""
    silos = archive.silo_nodes()
    relationships = list(archive.mapped_relationships(silos))
    users = _users(archive, relationships)
    kinds: list[NodeKind] = [*silos.kinds.values(), *([model.USER] if users.height else [])]
    for kind in sorted(kinds, key=lambda k: k.label):
        yield cypher.key_constraint(kind), 0
    for label in sorted(silos.kinds):
        yield from _rows(silos.kinds[label], silos.frames[label])
    yield from _rows(model.USER, users)
    for related, frame in relationships:
        yield from _rows(related, frame)


def _users(archive: Archive, relationships: Iterable[tuple[Kind, pl.DataFrame]]) -> pl.DataFrame:
    """The users that a relationship starts or ends at: they come from events, not from silos."""
    ends = [
        frame.select("tenant_id", id=f"{side}_id")
        for kind, frame in relationships
        if isinstance(kind, RelationshipKind)
        for side, end in (("from", kind.source), ("to", kind.target))
        if end is model.USER
    ]
    wanted = pl.concat([pl.DataFrame(schema={"tenant_id": pl.String, "id": pl.String}), *ends]).unique().lazy()
    events = (
        archive.counted_events().select("tenant_id", "event_id", model.CUSTOMER_ID, "ts", "traits", "consent").lazy()
    )
    of_wanted = events.join(wanted, left_on=["tenant_id", model.CUSTOMER_ID], right_on=["tenant_id", "id"], how="semi")
    return model.users(of_wanted.collect())


def _rows(kind: Kind, frame: pl.DataFrame) -> Iterator[tuple[str, int]]:
    ordered = frame.select(list(kind.schema)).sort(kind.key_columns)
    names = {name: cypher.quoted_property(name) for name in ordered.columns}
    statement = cypher.scripted_merge_statement(kind)
    literals = row_literals(ordered, names)
    for start in range(0, len(literals), ROWS_PER_STATEMENT):
        batch = literals.slice(start, ROWS_PER_STATEMENT)
        yield f"UNWIND [{', '.join(batch.to_list())}] AS row {statement}", len(batch)


def run_script(path: Path, sha256: str, graph: Graph, observe: Callable[[int], None]) -> int:
    """Run a script in an empty database; one in which the same script stopped half-way is completed.

    Args:
        path: the script.
        sha256: of it.
        graph: the database.
        observe: called with how many statements were run.

    Returns:
        How many statements were run.

    Raises:
        ConfigError: the database holds something else.
    """
    (found,) = graph.query(FIND_CLAIM, sha256=sha256)
    if found["has_nodes"] and not found["marked"]:
        raise ConfigError("The database is not empty: a script rebuilds an empty one. Name another.")
    graph.run(CLAIM, sha256=sha256)
    done = 0
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            graph.run(cypher.scripted(line))
            done += 1
            observe(done)
    graph.run(END_CLAIM, sha256=sha256)
    return done
