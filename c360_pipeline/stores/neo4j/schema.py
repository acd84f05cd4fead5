"""Constraints and indexes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import resources

from neo4j.exceptions import Neo4jError

from c360_pipeline.core.projection.graph import NodeKind
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.silos.control_rows import IndexRow
from c360_pipeline.stores.neo4j import cypher
from c360_pipeline.stores.neo4j.client import Client
from c360_pipeline.stores.neo4j.writer import WRITERS

AWAIT_INDEX = Statement("CALL db.awaitIndex($name, 300)")
SHOW_CONSTRAINTS = Statement("SHOW CONSTRAINTS YIELD name RETURN count(name) AS number")
SHOW_KEY_CONSTRAINTS = Statement("""
    SHOW CONSTRAINTS YIELD name, properties WHERE name IN $names RETURN name, properties
""")
SHOW_INDEXES_NOT_ONLINE = Statement("""
    SHOW INDEXES YIELD name, state WHERE state <> 'ONLINE' RETURN name, state ORDER BY name
""")
SHOW_INDEXES_OF_CONTROL_ROWS = Statement("""
    SHOW INDEXES YIELD name, owningConstraint, state WHERE name ENDS WITH $ending AND owningConstraint IS NULL
    RETURN name, state
""")


class GraphSchema:
    """Constraints and indexes: those of the script, and those of labels from control rows.

    Args:
        client: of the database.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def apply(self, kinds: Sequence[NodeKind] = ()) -> None:
        """Create constraints and indexes, those of the script and those of labels from control rows."""
        script = resources.files("c360_pipeline.ddl").joinpath("graph.cypher").read_text(encoding="utf-8")
        code = "\n".join(line for line in script.splitlines() if not line.startswith("//"))
        self._drop_constraints_of_other_keys(kinds)
        statements = [*code.split(";"), *(cypher.key_constraint(kind) for kind in kinds)]
        # At once: in a graph that is full, each waits until its index is.
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(self._client.run, map(Statement, filter(str.strip, statements))))
        for found in self.indexes_not_online():
            if not cypher.is_of_control_rows(found["name"]):
                self._client.run(AWAIT_INDEX, name=found["name"])

    def apply_indexes(self, indexes: Sequence[IndexRow]) -> int:
        """Create the indexes that control rows name, and drop those whose row is gone; the number of those changed.

        One that failed is made again. One that fails leaves the others alone: `unusable_indexes` tells.
        """
        wanted = {cypher.index_name(row.label, row.properties): row for row in indexes}
        held = {
            found["name"]: found["state"]
            for found in self._client.run(SHOW_INDEXES_OF_CONTROL_ROWS, ending=cypher.INDEX_OF_CONTROL_ROWS)
        }
        dropped = [name for name, state in held.items() if name not in wanted or state == "FAILED"]
        for name in dropped:
            self._client.run(cypher.drop_index(name))
        missing = [name for name in wanted if name not in held or name in dropped]
        for name in missing:
            with suppress(Neo4jError):  # one that can't be, or fails: `unusable_indexes` says so as long as it stays so
                self._client.run(cypher.index(wanted[name].label, wanted[name].properties))
                self._client.run(AWAIT_INDEX, name=name)
        return len({*dropped, *missing})

    def unusable_indexes(self, indexes: Sequence[IndexRow]) -> dict[str, str]:
        """Indexes of control rows that are not online: the state of each by its name, `MISSING` where there is none."""
        states = {
            found["name"]: found["state"]
            for found in self._client.run(SHOW_INDEXES_OF_CONTROL_ROWS, ending=cypher.INDEX_OF_CONTROL_ROWS)
        }
        names = (cypher.index_name(row.label, row.properties) for row in indexes)
        return {name: state for name in names if (state := states.get(name, "MISSING")) != "ONLINE"}

    def _drop_constraints_of_other_keys(self, kinds: Sequence[NodeKind]) -> None:
        """A control row may name another key than before: its constraint would keep the new one out."""
        wanted = {cypher.key_constraint_name(kind): kind.key_columns for kind in kinds}
        for found in self._client.run(SHOW_KEY_CONSTRAINTS, names=list(wanted)):
            if found["properties"] != wanted[found["name"]]:
                self._client.run(cypher.drop_constraint(found["name"]))

    def constraint_count(self) -> int:
        """Constraints that exist."""
        return int(self._client.run(SHOW_CONSTRAINTS)[0]["number"])

    def indexes_not_online(self) -> list[dict[str, str]]:
        """Name and state of every index that can't be used."""
        return self._client.run(SHOW_INDEXES_NOT_ONLINE)
