"""Constraints and indexes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

from c360_pipeline.core.projection.graph import NodeKind
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.stores.neo4j import cypher
from c360_pipeline.stores.neo4j.client import Client
from c360_pipeline.stores.neo4j.writer import WRITERS

AWAIT_INDEXES = Statement("CALL db.awaitIndexes(300)")
SHOW_CONSTRAINTS = Statement("SHOW CONSTRAINTS YIELD name RETURN count(name) AS number")
SHOW_KEY_CONSTRAINTS = Statement("""
    SHOW CONSTRAINTS YIELD name, properties WHERE name IN $names RETURN name, properties
""")
SHOW_INDEXES_NOT_ONLINE = Statement("""
    SHOW INDEXES YIELD name, state WHERE state <> 'ONLINE' RETURN name, state ORDER BY name
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
        self._client.run(AWAIT_INDEXES)

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
