"""Peers of stitching, in the environment `.venv/bench`: reads pairs.parquet, prints seconds, memory and components.

Run by `bench_stitching.py`, one process per peer: `stitching_peers.py PEER FOLDER`.
"""

import json
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq


def duckdb_distinct(folder: Path) -> int:
    """Count the different keys, as text: what any way over the keys must do at least."""
    import duckdb

    ((found,),) = duckdb.sql(f"SELECT count(DISTINCT key) FROM '{folder}/pairs.parquet'").fetchall()
    return int(found)


def splink_clusters(folder: Path) -> int:
    """Splink's clustering of given edges on DuckDB, each event linked to the first of its key."""
    import duckdb
    from splink import DuckDBAPI
    from splink.clustering import cluster_pairwise_predictions_at_threshold

    connection = duckdb.connect()
    connection.sql(f"CREATE VIEW pairs AS SELECT * FROM '{folder}/pairs.parquet'")
    connection.sql("CREATE TABLE nodes AS SELECT DISTINCT event AS id FROM pairs")
    connection.sql("CREATE TABLE edges AS SELECT min(event) OVER (PARTITION BY key) AS id_l, event AS id_r FROM pairs")
    found = cluster_pairwise_predictions_at_threshold(
        nodes="nodes", edges="edges", db_api=DuckDBAPI(connection), node_id_column_name="id",
        edge_id_column_name_left="id_l", edge_id_column_name_right="id_r",
    )  # fmt: skip
    ((counted,),) = connection.sql(f"SELECT count(DISTINCT cluster_id) FROM {found.physical_name}").fetchall()
    return int(counted)


def _edges(folder: Path) -> tuple[list[int], list[int], int]:
    """Event and key of each pair, both numbered; keys after the events."""
    table = pq.read_table(folder / "pairs.parquet", columns=["event", "key"])
    numbered = table["key"].combine_chunks().dictionary_encode()
    events: list[int] = table["event"].to_pylist()
    size = max(events) + 1
    return events, [size + key for key in numbered.indices.to_pylist()], size + len(numbered.dictionary)


def igraph_components(folder: Path) -> int:
    """Components of the graph of events and keys."""
    import igraph

    left, right, size = _edges(folder)
    graph = igraph.Graph(size, list(zip(left, right, strict=True)))
    return len(graph.connected_components())


def networkx_components(folder: Path) -> int:
    """The same with networkx."""
    import networkx

    left, right, size = _edges(folder)
    graph = networkx.Graph()
    graph.add_nodes_from(range(size))
    graph.add_edges_from(zip(left, right, strict=True))
    return networkx.number_connected_components(graph)


PEERS = {
    "duckdb": duckdb_distinct,
    "splink": splink_clusters,
    "igraph": igraph_components,
    "networkx": networkx_components,
}

if __name__ == "__main__":
    peer, where = sys.argv[1], Path(sys.argv[2])
    PEERS[peer](where / "warm")  # programs load their parts on first use
    started = time.perf_counter()
    components = PEERS[peer](where)
    seconds = time.perf_counter() - started
    # VmHWM is this process's peak, not that of the one that started it, as getrusage has it.
    (said,) = (line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if "VmHWM" in line)
    peak = int(said.split()[1]) * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "components": components}))
