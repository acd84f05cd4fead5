"""Graph Data Science: algorithms that run inside Neo4j, through its Python client."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import polars as pl
from neo4j.exceptions import DriverError, Neo4jError

from c360_pipeline.errors import UnavailableError

if TYPE_CHECKING:
    from graphdatascience import GraphDataScience


class Gds:
    """The GDS library of a Neo4j server.

    Args:
        uri: bolt:// or neo4j:// address.
        user: login.
        password: its secret.
        database: name of the database.
    """

    def __init__(self, uri: str, user: str, password: str, database: str) -> None:
        self._login = (uri, (user, password), database)

    @contextmanager
    def _client(self) -> Iterator["GraphDataScience"]:
        # A second and 80 MiB that only the steps with algorithms have to pay.
        from graphdatascience import GraphDataScience

        uri, auth, database = self._login
        try:
            client = GraphDataScience(uri, auth=auth, database=database, arrow=False, show_progress=False)
        except (Neo4jError, DriverError, ValueError) as error:
            raise UnavailableError(f"Neo4j at {uri} has no usable GDS library: {error}") from error
        try:
            yield client
        finally:
            client.close()

    def louvain(self, name: str, members: pl.DataFrame, edges: pl.DataFrame) -> pl.DataFrame:
        """Communities by modularity over undirected weighted edges.

        One thread and node numbers of our own make two runs over equal input give equal communities.

        Args:
            name: of the projected graph; it is dropped at the end.
            members: node_id.
            edges: source, target, weight.

        Returns:
            node_id, label.
        """
        nodes = members.select(nodeId="node_id").to_pandas()
        relationships = edges.select(
            sourceNodeId="source", targetNodeId="target", weight="weight", relationshipType=pl.lit("TIED")
        ).to_pandas()
        with self._client() as gds:
            graph = gds.graph.construct(
                name, nodes, relationships, concurrency=1, undirected_relationship_types=["TIED"], overwrite=True
            )
            try:
                result = gds.louvain.stream(graph, relationship_weight_property="weight", concurrency=1)
            finally:
                graph.drop()
        return pl.DataFrame(
            {"node_id": result["nodeId"].to_list(), "label": result["communityId"].to_list()},
            schema={"node_id": pl.Int64, "label": pl.Int64},
        )

    def node_similarity(self, name: str, members: pl.DataFrame, edges: pl.DataFrame, top_k: int) -> pl.DataFrame:
        """Pairs of sources by the Jaccard similarity of the sets of targets that they lead to.

        Args:
            name: of the projected graph; it is dropped at the end.
            members: node_id.
            edges: source, target.
            top_k: pairs kept of each source.

        Returns:
            source, target, similarity; each pair in both directions where it is among the best of both.
        """
        nodes = members.select(nodeId="node_id").to_pandas()
        relationships = edges.select(
            sourceNodeId="source", targetNodeId="target", relationshipType=pl.lit("TOUCHED_BY")
        ).to_pandas()
        with self._client() as gds:
            graph = gds.graph.construct(name, nodes, relationships, concurrency=1, overwrite=True)
            try:
                result = gds.node_similarity.stream(graph, top_k=top_k, concurrency=1)
            finally:
                graph.drop()
        return pl.DataFrame(
            {
                "source": result["node1"].to_list(),
                "target": result["node2"].to_list(),
                "similarity": result["similarity"].to_list(),
            },
            schema={"source": pl.Int64, "target": pl.Int64, "similarity": pl.Float64},
        )

    def projections(self, prefix: str) -> list[str]:
        """Names of the graphs in the server's memory that begin so."""
        with self._client() as gds:
            names = [graph.graph_name for graph in gds.graph.list()]
        return sorted(name for name in names if name.startswith(prefix))
