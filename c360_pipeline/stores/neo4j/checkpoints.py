"""How far each projection has brought the lake into the graph; kept in the graph itself (docs/adr/0008)."""

from collections.abc import Mapping

from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.stores.neo4j.client import Client

READ_CHECKPOINTS = Statement("""
    MATCH (c:ProjectionCheckpoint {projection: $projection}) RETURN c.source AS source, c.version AS version
""")
SAVE_CHECKPOINT = Statement(
    "MERGE (c:ProjectionCheckpoint {projection: $projection, source: $source}) SET c.version = $version"
)
CARRY_CHECKPOINTS = Statement("""
    UNWIND $rows AS row MATCH (c:ProjectionCheckpoint) WHERE c.version = row.before SET c.version = row.after
""")
READ_CHECKPOINTS_UNDER = Statement("""
    MATCH (c:ProjectionCheckpoint) WHERE c.projection STARTS WITH $prefix
    RETURN c.projection AS projection, c.source AS source, c.version AS version
""")
FORGET_CHECKPOINT = Statement("""
    MATCH (c:ProjectionCheckpoint {projection: $projection}) WHERE $source IS NULL OR c.source = $source DELETE c
""")
FORGET_CHECKPOINTS = Statement("MATCH (c:ProjectionCheckpoint) DELETE c")


class Checkpoints:
    """Versions of lake tables by projection.

    Args:
        client: of the database.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def of(self, projection: str) -> dict[str, Version]:
        """The versions of lake tables that a projection has brought into this graph.

        They live in the graph itself: an emptied or restored graph tells by itself what it lacks (docs/adr/0008).
        """
        rows = self._client.run(READ_CHECKPOINTS, projection=projection)
        return {r["source"]: Version.parse(r["version"]) for r in rows}

    def save(self, projection: str, source: str, version: Version | None) -> None:
        """Note that a projection has brought a table's version into this graph."""
        if version is not None:
            self._client.run(SAVE_CHECKPOINT, projection=projection, source=source, version=str(version))

    def carry(self, versions: Mapping[str, Version]) -> None:
        """Say of tables whose rows are the same under another version that this graph has these."""
        pairs = [{"before": before, "after": str(after)} for before, after in versions.items()]
        self._client.run(CARRY_CHECKPOINTS, rows=pairs)

    def names(self, prefix: str) -> list[str]:
        """Names of the projections with a checkpoint that begin so."""
        return sorted(self.under(prefix))

    def under(self, prefix: str) -> dict[str, dict[str, Version]]:
        """By projection whose name begins so, the versions of lake tables that it has brought into this graph."""
        found: dict[str, dict[str, Version]] = {}
        for row in self._client.run(READ_CHECKPOINTS_UNDER, prefix=prefix):
            found.setdefault(row["projection"], {})[row["source"]] = Version.parse(row["version"])
        return found

    def forget(self, projection: str, source: str | None = None) -> None:
        """Forget what a projection has brought into this graph, of one source or all."""
        self._client.run(FORGET_CHECKPOINT, projection=projection, source=source)

    def forget_all(self) -> None:
        """Forget what every projection has brought into this graph."""
        self._client.run(FORGET_CHECKPOINTS)
