"""Connected components of a graph whose edges are too many for one machine, in PySpark DataFrames only.

The algorithm is large-star/small-star (Kiveris et al., "Connected Components in MapReduce and Beyond", SoCC 2014),
with two additions that take most rounds away:

* Before each round every partition replaces its edges by stars, found with a union-find of its own. Any set of
  edges may be replaced by others that connect the same nodes, so the result does not depend on the partitions.
* A node that is the centre of no star is settled: it belongs where its smallest centre belongs. Only centres take
  part in the next round, so rounds shrink, and what fits one task is finished there.

Stars are rows (node, centre) with centre <= node in byte order; every centre has the row (centre, centre). Identities
are compared as they are: a hash of them could collide, and dense numbers instead of 16 bytes cost four joins and a
global sort, more than they save in the two or three rounds that are left.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as sf
from pyspark.sql.types import BinaryType, StringType, StructField, StructType

from c360_pipeline.core.stitching.components import connected_components as numbered_components
from c360_pipeline.errors import ConfigError

EDGES_PER_TASK: Final = 1 << 22
"""Edges that a task contracts at once: a Python worker takes up to 1.3 GiB for as many of 16-byte identities."""
ROWS_PER_BATCH: Final = 1 << 16
"""Rows of an Arrow batch on its way from a Python worker to the JVM: a few megabytes."""

Identities = Any
"""An Arrow array of binary or string: its stubs have no type for either of two."""
Ranks = np.ndarray[Any, np.dtype[np.int32]]


def connected_components(edges: DataFrame, *, partitions: int | None = None) -> DataFrame:
    """Label every node with the smallest node of its component.

    Args:
        edges: columns `a` and `b`, both binary or both string, never null: the ends of undirected edges, in any order,
            any number of times. A lone node is an edge to itself.
        partitions: into how many partitions edges are shuffled before each contraction. By default they are contracted
            where they are, which is best where edges of one journey stand together, as in files of one day. Either
            way, what fits one task is finished in one.

    Returns:
        Columns `node` and `component` of the type of the input, one row per distinct node, in no order. It is
        checkpointed, so it is computed once. The same edges give the same rows, however they are split.

    Raises:
        ConfigError: the columns are others.
        pyspark.errors.PythonException: an end is null.
    """
    schema = _star_schema(edges)
    with ExitStack() as held:
        rounds: list[DataFrame] = []
        stars = _hold(held, _contract(_shuffle(edges.select("a", "b"), partitions, "a"), schema))
        # Rounds end: the largest node of a component is a centre only in the first, and only if it has a self-loop.
        while stars.count() > EDGES_PER_TASK:
            rounds.append(_hold(held, _settle(_shuffle(stars, partitions, "node"))))
            stars = _hold(held, _contract(_shuffle(_large_star(rounds[-1]), partitions, "centre"), schema))
        labels = _contract(stars.coalesce(1), schema)
        for settled in reversed(rounds):
            labels = _follow(settled, labels)
        return _materialise(labels.toDF("node", "component"))


def _star_schema(edges: DataFrame) -> StructType:
    kinds = {edges.schema[name].dataType for name in ("a", "b") if name in edges.columns}
    # A string with a collation is another type: its order is not that of its bytes.
    if not {"a", "b"} <= set(edges.columns) or kinds not in ({BinaryType()}, {StringType()}):
        raise ConfigError(f"Edges are columns a and b, both binary or both string; these are {edges.dtypes}.")
    kind = kinds.pop()
    return StructType([StructField("node", kind), StructField("centre", kind)])


def _shuffle(edges: DataFrame, partitions: int | None, column: str) -> DataFrame:
    return edges.repartition(partitions, column) if partitions else edges


def _contract(edges: DataFrame, schema: StructType) -> DataFrame:
    """Replace the edges of each partition by stars around the smallest node of each of its components."""
    return edges.mapInArrow(_contract_batches, schema)


def _contract_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same for the batches of one partition, `EDGES_PER_TASK` edges at a time, so that memory is bounded."""
    kept: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if rows + batch.num_rows > EDGES_PER_TASK:
            yield from _stars(kept)
            kept, rows = [], 0
        kept.append(batch)
        rows += batch.num_rows
    yield from _stars(kept)


def _stars(edges: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Stars that connect what the edges connect: one row (node, smallest node of its component) per node."""
    if not any(batch.num_rows for batch in edges):
        return
    ends = pa.concat_arrays([batch.column(end) for end in (0, 1) for batch in edges])
    if ends.null_count:
        raise ValueError("An edge has a null end. A lone node is an edge to itself.")
    nodes, codes = _rank(ends)
    left, right = np.split(codes, 2)
    smallest = numbered_components(left, right, len(nodes), "scipy")  # needs no compiler on a worker
    stars = pa.table({"node": nodes, "centre": nodes.take(pa.array(smallest))})
    yield from stars.to_batches(max_chunksize=ROWS_PER_BATCH)


def _rank(values: Identities) -> tuple[Identities, Ranks]:
    """The distinct values in byte order, and the place of each value among them."""
    lengths: Any = pc.binary_length(values)
    if pa.types.is_binary(values.type) and pc.all(pc.equal(lengths, pa.scalar(16))).as_py():
        return _rank_16_bytes(values)
    encoded = values.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return encoded.dictionary.take(pa.array(order)), rank[encoded.indices.to_numpy()]


def _rank_16_bytes(values: Identities) -> tuple[Identities, Ranks]:
    """The same in a fifth of the time, for identities of 16 bytes as two big-endian words."""
    fixed = values.cast(pa.binary(16))
    words = np.frombuffer(fixed.buffers()[1], ">u8", 2 * len(fixed), 16 * fixed.offset).astype(np.uint64)
    high, low = words[::2], words[1::2]
    order = np.argsort(high)
    new_high, new_low = _changes(high[order]), _changes(low[order])
    if (new_low & ~new_high).any():
        # Identities that share their first half, which random ones never do: those need both words to be in order.
        order = np.lexsort((low, high))
        new_high, new_low = _changes(high[order]), _changes(low[order])
    new = new_high | new_low
    rank = np.empty(len(order), np.int32)
    rank[order] = np.cumsum(new, dtype=np.int32) - 1
    return values.take(pa.array(order[new])), rank


def _changes(words: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where a word differs from the one before it; true for the first."""
    return np.concatenate([[True], words[1:] != words[:-1]])


def _settle(stars: DataFrame) -> DataFrame:
    """Small-star: connect the centres of each node to the smallest of them.

    Returns:
        Columns node, centre, smallest (of the node's centres) and last: one row per node where last is true, and one
        per edge (centre, smallest) that is left to connect. Of a centre's rows, the last has itself as the centre,
        for it is its own largest.
    """
    centres = Window.partitionBy("node").orderBy("centre")
    return stars.select(
        "node",
        "centre",
        sf.min("centre").over(centres.rowsBetween(Window.unboundedPreceding, Window.currentRow)).alias("smallest"),
        sf.lead("centre").over(centres).isNull().alias("last"),
    ).filter("last or centre <> smallest")


def _large_star(settled: DataFrame) -> DataFrame:
    """The edges that are left, each one step nearer to the smallest node: halves the length of chains."""
    left = settled.filter("centre <> smallest").select(sf.col("centre").alias("node"), sf.col("smallest").alias("via"))
    steps = settled.filter("last and node = centre and centre <> smallest")
    steps = steps.select(sf.col("node").alias("via"), "smallest")
    return left.join(steps, "via", "left").select("node", sf.coalesce("smallest", "via").alias("centre"))


def _follow(settled: DataFrame, labels: DataFrame) -> DataFrame:
    """Give the nodes of a round the labels that the next round found for their centres."""
    nodes = settled.filter("last").selectExpr("node", "if(centre = node, node, smallest) as via")
    labels = labels.toDF("via", "label")
    return nodes.join(labels, "via", "left").select("node", sf.coalesce("label", "via").alias("centre"))


def _hold(held: ExitStack, frame: DataFrame) -> DataFrame:
    frame = _materialise(frame)
    held.callback(_release, frame)
    return frame


def _materialise(frame: DataFrame) -> DataFrame:
    """Compute once and forget the lineage; survives the loss of a worker where the session has a checkpoint folder."""
    if frame.sparkSession.sparkContext.getCheckpointDir():
        return frame.checkpoint()
    return frame.localCheckpoint()


def _release(frame: DataFrame) -> None:
    """Drop a checkpoint at once; Spark itself waits for a garbage collection of the driver."""
    context: Any = frame.sparkSession.sparkContext
    rdd = cast("Any", frame)._jdf.logicalPlan().rdd()
    rdd.unpersist(False)
    if (folder := rdd.getCheckpointFile()).isDefined():
        path = context._jvm.org.apache.hadoop.fs.Path(folder.get())
        path.getFileSystem(context._jsc.hadoopConfiguration()).delete(path, True)
