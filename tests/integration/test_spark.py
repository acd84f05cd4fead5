"""Connected components on Spark against a union-find, and Delta tables that Spark and deltalake share."""

import gc
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import deltalake
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, SparkSession
from repetition import representatives
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as scipy_components

from c360_pipeline.connections import open_landing
from c360_pipeline.devstack.distributions import install_spark_jars
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import Settings
from c360_pipeline.spark import components
from c360_pipeline.spark.components import connected_components
from c360_pipeline.spark.session import S3Login, SparkOptions, end_session, log_in, spark_session

# pyspark leaves the sockets that it reads results from to the garbage collector.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]

Edges = list[tuple[bytes, bytes]]
Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    jars = install_spark_jars(lambda _: None)
    session = spark_session(SparkOptions(jars=jars, settings={"spark.sql.shuffle.partitions": "4"}))
    session.sparkContext.setLogLevel("ERROR")
    yield session
    end_session(session)
    # Before the next module, where a warning of a socket would be an error.
    gc.collect()


@pytest.fixture
def in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks so small that a graph takes rounds, as one of billions of edges does."""
    monkeypatch.setattr(components, "EDGES_PER_TASK", 20_000)


def frame(spark: SparkSession, edges: Edges) -> DataFrame:
    return spark.createDataFrame(edges, "a binary, b binary")


def labels(result: DataFrame) -> dict[bytes, bytes]:
    rows = [(bytes(row.node), bytes(row.component)) for row in result.collect()]
    assert len(rows) == len(dict(rows))
    return dict(rows)


def union_find(edges: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    parent: dict[bytes, bytes] = {}

    def find(node: bytes) -> bytes:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    for a, b in edges:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    return {node: find(node) for node in list(parent)}


def binary(identities: np.ndarray, chosen: Numbers) -> pa.Array:
    offsets = pa.py_buffer(np.arange(0, 16 * (len(chosen) + 1), 16, dtype=np.int32))
    data = pa.py_buffer(np.ascontiguousarray(identities[chosen]))
    return pa.Array.from_buffers(pa.binary(), len(chosen), [None, offsets, data])


class Graph:
    """Edges between numbered nodes, shuffled and written to eight files, and the labels that scipy finds."""

    def __init__(self, folder: Path, a: Numbers, b: Numbers) -> None:
        random_numbers = np.random.default_rng(7)
        _, numbers = np.unique(np.concatenate([a, b]), return_inverse=True)
        ends = random_numbers.permutation(numbers.reshape(2, -1).T)
        self.size = int(numbers.max()) + 1
        self.identities = np.frombuffer(random_numbers.bytes(16 * self.size), np.uint8).reshape(-1, 16)
        self.folder = folder / "edges"
        self.folder.mkdir()
        self.ends = ends
        for number, part in enumerate(np.array_split(ends, 8)):
            table = pa.table({name: binary(self.identities, part[:, end]) for end, name in enumerate("ab")})
            pq.write_table(table, self.folder / f"{number}.parquet")

    def labels(self) -> pl.DataFrame:
        graph = coo_array(
            (np.ones(len(self.ends), np.int8), (self.ends[:, 0], self.ends[:, 1])), (self.size, self.size)
        )
        _, component = scipy_components(graph, directed=False)
        nodes = pl.DataFrame(
            {"node": pl.Series(binary(self.identities, np.arange(self.size))), "component": pl.Series(component)}
        )
        return nodes.with_columns(pl.col("node").min().over("component").alias("component")).sort("node")

    def check(self, spark: SparkSession, partitions: int | None = None) -> float:
        """Compare with Spark's labels; returns the seconds that Spark took."""
        start = time.perf_counter()
        result = connected_components(spark.read.parquet(str(self.folder)), partitions=partitions)
        seconds = time.perf_counter() - start
        found = pl.DataFrame(result.toArrow()).sort("node")
        assert found.equals(self.labels())
        return seconds


@pytest.mark.parametrize(("nodes", "edges"), representatives([(40, 20), (2_000, 1_900), (500, 4_000)], (40, 20)))
def test_random_graphs_have_the_components_of_a_union_find(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, nodes: int, edges: int
) -> None:
    monkeypatch.setattr(components, "EDGES_PER_TASK", 50)
    chance = random.Random(nodes)
    identities = [chance.randbytes(16) for _ in range(nodes)]
    graph = [(chance.choice(identities), chance.choice(identities)) for _ in range(edges)]
    assert labels(connected_components(frame(spark, graph), partitions=3)) == union_find(graph)


@pytest.mark.soak
def test_the_split_of_the_edges_changes_nothing(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    graph = [(b"%016d" % chance.randrange(900), b"%016d" % chance.randrange(900)) for _ in range(800)]
    expected = union_find(graph)
    for partitions, limit in [(None, 1 << 22), (7, 300)]:
        monkeypatch.setattr(components, "EDGES_PER_TASK", limit)
        chance.shuffle(graph)
        assert labels(connected_components(frame(spark, graph), partitions=partitions)) == expected


def test_the_smallest_node_is_the_smallest_of_unsigned_bytes(spark: SparkSession) -> None:
    graph = [(b"\xff" * 16, b"\x7f" * 16), (b"\xff" * 16, b"\x80" * 16)]
    assert set(labels(connected_components(frame(spark, graph))).values()) == {b"\x7f" * 16}


def test_identities_that_share_a_half_stay_apart(spark: SparkSession) -> None:
    # As if the first, then the second 64 bits of two hashes had collided; trailing zeros count too.
    halves = [bytes(8), bytes(7) + b"\1", b"\1" + bytes(7), b"\xff" * 8]
    graph = [(high + low, high + low) for high in halves for low in halves]
    assert labels(connected_components(frame(spark, graph))) == dict(graph)


def test_duplicates_and_self_loops_leave_one_row_per_node(spark: SparkSession) -> None:
    one, two, three, lone = (bytes([n]) * 16 for n in range(4))
    graph = [(one, two), (two, one), (one, two), (three, three), (two, three), (lone, lone), (lone, lone)]
    assert labels(connected_components(frame(spark, graph))) == {one: one, two: one, three: one, lone: lone}


def test_no_edges_have_no_components(spark: SparkSession) -> None:
    result = connected_components(frame(spark, []))
    assert result.dtypes == [("node", "binary"), ("component", "binary")]
    assert labels(result) == {}


def test_identities_may_be_strings(spark: SparkSession, in_rounds: None) -> None:
    result = connected_components(spark.createDataFrame([("é", "z"), ("z", "a"), ("b", "b")], "b string, a string"))
    assert {row.node: row.component for row in result.collect()} == {"é": "a", "z": "a", "a": "a", "b": "b"}


def test_a_null_end_is_refused(spark: SparkSession) -> None:
    with pytest.raises(PythonException, match="null end"):
        connected_components(spark.createDataFrame([(b"1" * 16, None)], "a binary, b binary"))


@pytest.mark.parametrize("schema", ["a long, b long", "a binary, b string", "a binary, c binary"])
def test_other_columns_are_refused(spark: SparkSession, schema: str) -> None:
    with pytest.raises(ConfigError, match="both binary or both string"):
        connected_components(spark.createDataFrame([], schema))


@pytest.mark.soak
def test_chains_converge(spark: SparkSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(components, "EDGES_PER_TASK", 400_000)
    lengths = np.random.default_rng(3).integers(50, 301, 3_000)
    nodes = np.arange(lengths.sum())
    Graph(tmp_path, *np.delete(np.stack([nodes[:-1], nodes[1:]]), np.cumsum(lengths)[:-1] - 1, axis=1)).check(spark)


@pytest.mark.soak
def test_a_chain_of_100000_converges(spark: SparkSession, in_rounds: None, tmp_path: Path) -> None:
    Graph(tmp_path, np.arange(99_999), np.arange(1, 100_000)).check(spark, partitions=4)


@pytest.mark.soak
def test_a_star_of_a_million_neighbours_converges(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Tasks of 200,000 edges: the hub's neighbours are never together in one.
    monkeypatch.setattr(components, "EDGES_PER_TASK", 200_000)
    neighbours = np.arange(1, 1_000_001)
    Graph(tmp_path, np.zeros_like(neighbours), neighbours).check(spark)


@pytest.mark.soak
def test_a_million_pairs_have_the_labels_that_scipy_finds(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = np.random.default_rng(11)
    events = np.repeat(np.arange(450_000), 3)[:1_000_000]
    # Three keys in a window of a few hundred events: journeys of many sizes.
    keys = 450_000 + events // 4 * 4 + chance.geometric(0.3, len(events))
    seconds = Graph(tmp_path, events, keys).check(spark)
    with capsys.disabled():
        sys.stdout.write(f"\n1,000,000 pairs in {seconds:.1f} s\n")


def test_checkpoints_are_gone_when_the_labels_are_there(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(components, "EDGES_PER_TASK", 5)
    context = spark.sparkContext
    graph = [(b"%016d" % n, b"%016d" % (n + 1)) for n in range(100)]
    # Those of earlier tests may be collected meanwhile: what is new counts.
    before = set(context._jsc.getPersistentRDDs())
    result = connected_components(frame(spark, graph))
    assert len(set(context._jsc.getPersistentRDDs()) - before) == 1
    context.setCheckpointDir(str(tmp_path))
    try:
        reliable = connected_components(frame(spark, graph))
        assert len([*tmp_path.glob("*/rdd-*")]) == 1
        assert labels(reliable) == labels(result)
    finally:
        context._jsc.sc().setCheckpointDir(None)


@pytest.fixture
def storage_options(settings: Settings, spark: SparkSession) -> dict[str, str]:
    open_landing(settings)
    secret = settings.aws_secret_access_key
    log_in(spark, S3Login(settings.aws_access_key_id, secret, settings.aws_region, settings.aws_endpoint_url))
    return {
        "AWS_ACCESS_KEY_ID": settings.aws_access_key_id,
        "AWS_SECRET_ACCESS_KEY": secret.get_secret_value(),
        "AWS_REGION": settings.aws_region,
        "AWS_ENDPOINT_URL": str(settings.aws_endpoint_url),
        "AWS_ALLOW_HTTP": "true",
    }


def test_spark_and_deltalake_read_each_others_tables(
    spark: SparkSession, settings: Settings, storage_options: dict[str, str]
) -> None:
    address = f"s3://{settings.bucket}/spark/edges"
    written = pl.DataFrame({"a": [b"b" * 16, b"c" * 16], "b": [b"a" * 16, b"c" * 16]})
    deltalake.write_deltalake(address, written, storage_options=storage_options)
    found = connected_components(spark.read.format("delta").load(address))
    for _ in range(2):
        # A repeated transaction is left out by Spark, unlike by deltalake.
        found.write.format("delta").options(txnAppId="stitch:acme", txnVersion=7).mode("append").save(f"{address}/out")
    table = deltalake.DeltaTable(f"{address}/out", storage_options=storage_options)
    assert (table.version(), table.transaction_version("stitch:acme")) == (0, 7)
    read = pl.read_delta(table).sort("node").rows()
    assert read == [(b"a" * 16, b"a" * 16), (b"b" * 16, b"a" * 16), (b"c" * 16, b"c" * 16)]


def test_the_secret_is_on_no_command_line(settings: Settings, storage_options: dict[str, str]) -> None:
    shown = subprocess.run(["ps", "-eo", "args", "-ww"], check=True, capture_output=True, text=True).stdout
    assert "SparkSubmit" in shown
    assert storage_options["AWS_SECRET_ACCESS_KEY"] not in shown


def test_a_second_session_is_refused(spark: SparkSession) -> None:
    with pytest.raises(ConfigError, match="already running"):
        spark_session(SparkOptions())
