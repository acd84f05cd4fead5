"""Algorithms over the users and products of a tenant, in the process: no server needs a plugin (docs/adr/0063).

Equal input gives equal output: nodes are numbered by id, and nothing is drawn by chance.
"""

import numpy as np
import polars as pl
from scipy import sparse

from c360_pipeline.core.features.ranks import best_of_each

AT_ONCE = 512
"""Sources that are compared with all others together."""


def louvain(members: pl.DataFrame, edges: pl.DataFrame) -> pl.DataFrame:
    """Communities by modularity over undirected weighted edges.

    Args:
        members: node_id, from 0.
        edges: source, target, weight; each once.

    Returns:
        node_id, label.
    """
    # A second that only the steps with communities have to pay.
    from sknetwork.clustering import Louvain

    size = members.height
    ends = tuple(edges[name].to_numpy() for name in ("source", "target"))
    one_way = sparse.coo_array((edges["weight"].to_numpy(), ends), shape=(size, size))
    both = sparse.csr_matrix(one_way + one_way.T)
    labels = Louvain(shuffle_nodes=False, random_state=1).fit_predict(both)
    return pl.DataFrame({"node_id": np.arange(size), "label": labels.astype(np.int64)})


def node_similarity(edges: pl.DataFrame, top_k: int) -> pl.DataFrame:
    """Pairs of sources by the Jaccard similarity of the sets of targets that they lead to.

    Args:
        edges: source, target; each once.
        top_k: pairs kept of each source, links by number.

    Returns:
        source, target, similarity (above 0); each pair in both directions where it is among the best of both.
    """
    sources = edges["source"].unique().sort()
    row = sources.search_sorted(edges["source"]).to_numpy()
    targets = edges["target"].to_numpy()
    shape = (len(sources), int(targets.max(initial=-1)) + 1)
    leads = sparse.csr_matrix((np.ones(edges.height, dtype=np.float32), (row, targets)), shape=shape)
    degree = np.diff(leads.indptr)
    found = [pl.DataFrame(schema={"source": pl.Int64, "target": pl.Int64, "similarity": pl.Float64})]
    back = leads.T.tocsr()
    for start in range(0, len(sources), AT_ONCE):
        both = (leads[start : start + AT_ONCE] @ back).tocoo()
        a, b = both.row + start, both.col
        shared = both.data.astype(np.float64)
        pairs = pl.DataFrame({"a": a, "b": b, "similarity": shared / (degree[a] + degree[b] - shared)})
        others = pairs.filter(pl.col("a") != pl.col("b"))
        best = best_of_each(others, ["a"], {"similarity": True, "b": False}, top_k)
        found.append(
            best.select(source=sources.gather(best["a"]), target=sources.gather(best["b"]), similarity="similarity")
        )
    return pl.concat(found)
