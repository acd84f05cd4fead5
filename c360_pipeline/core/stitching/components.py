"""Connected components of a graph of numbered nodes, by one of two engines with one answer."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as scipy_components

from c360_pipeline.core.kernels.journeys import union_edges

Engine = Literal["numba", "scipy"]
Numbers = npt.NDArray[np.integer[Any]]


def connected_components(left: Numbers, right: Numbers, size: int, engine: Engine = "numba") -> Numbers:
    """The component of each node.

    Args:
        left: one end of each edge.
        right: the other end.
        size: number of nodes; those without an edge are components of their own.
        engine: `numba` runs a union-find that is compiled on first use, `scipy` a breadth-first search.

    Returns:
        Of each node the smallest node of its component.
    """
    if engine == "numba":
        return np.asarray(union_edges(left, right, size))
    edges = coo_array((np.ones(len(left), np.int8), (left, right)), (size, size))
    count, labels = scipy_components(edges, directed=False)
    smallest = np.full(count, size, np.int64)
    np.minimum.at(smallest, labels, np.arange(size))
    return smallest[labels]
