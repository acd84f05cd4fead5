"""A tenant's first stitching on Spark, for archives that are too large for one machine: the same rows of the log.

Spark finds which events hang together; every group of them then goes through the same `core.stitching.stitch` as on one
machine, so that ids, guards and counts are the same. The rows are written as Parquet files beside the log's, and the
driver commits them with deltalake as one commit of the tenant: Spark itself commits nothing, for its log store for S3
does not see other writers (see `session`).

Source: the hand-off to Spark in docs/adr/0026.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import uuid4

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as sf

from c360_pipeline.core.arrays.row_hashes import words
from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.tables import EVENTS, JOURNEY_LOG
from c360_pipeline.core.stitching.batch import MAX_KEYS_PER_EVENT, Known, prepare
from c360_pipeline.core.stitching.keys import WEAK, KeyPolicy, extract_keys
from c360_pipeline.core.stitching.log import COMMIT, QUARANTINE, Gone, log_rows, remark_rows
from c360_pipeline.core.stitching.stitch import stitch
from c360_pipeline.core.visitors.counting import APART, keyed
from c360_pipeline.spark.components import connected_components
from c360_pipeline.stages.stitching.commit import rules_of
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stores.delta.lake import Lake

FACTS = "event_id string, ts timestamp, key_type string, key binary, links boolean, is_weak boolean"
LOG = (
    "tenant_id string, seq bigint, kind string, event_id string, ts timestamp, key_type string, key_hash string, "
    "status string, journey_id string, other_journey_id string, created_at timestamp, founding_event_id string, "
    "first_event_ts timestamp, last_event_ts timestamp, event_count bigint, key_count bigint, "
    "unique_keys array<string>, apart_from array<string>, partners bigint, detail string, committed_at timestamp"
)
FIRST = 1
"""The number of a tenant's first commit."""


@dataclass(frozen=True)
class FirstStitching:
    """The first stitching of a tenant.

    Attributes:
        tenant_id: whose events.
        policy: what keys may do.
        now: the time of the commit, UTC.
        partitions: into how many groups of whole journeys the events are cut; each must fit into a task's memory.
        apart: the tenant's events of visitors that are no tie, as `core.visitors.counting.apart` gives them.
    """

    tenant_id: str
    policy: KeyPolicy
    now: datetime
    partitions: int
    apart: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=APART))

    def rows(self, events: DataFrame) -> DataFrame:
        """The rows of the log.

        Args:
            events: rows of the archive of this tenant: event_id, ts, the source columns of the rules, attrs.
        """
        facts = events.mapInArrow(self._extract, FACTS).persist()
        crowded = self._crowded(facts)
        linking = facts.filter("links").join(sf.broadcast(crowded.filter("is_over")), "key", "left_anti")
        by_event = Window.partitionBy("event_id")
        edges = linking.select("event_id", "key", sf.min("key").over(by_event).alias("anchor"))
        labels = connected_components(edges.selectExpr("anchor as a", "key as b"))
        anchors = edges.select("event_id", "anchor").distinct()
        component = anchors.join(labels, anchors["anchor"] == labels["node"]).select("event_id", "component")
        labelled = (
            facts.join(component, "event_id", "left")
            .withColumn("component", sf.coalesce("component", sf.col("event_id").cast("binary")))
            .join(sf.broadcast(crowded), "key", "left")
            .select("event_id", "ts", "key_type", "key", "met", "component")
        )
        stitched = labelled.repartition(self.partitions, "component").mapInArrow(self._stitch, LOG)
        over = crowded.filter("is_over").join(facts.select("key", "key_type").distinct(), "key").toArrow()
        closing = pl.concat([self._quarantined(pl.DataFrame(over)), self._commit()], how="diagonal_relaxed")
        shaped = closing.select(
            pl.col(name).cast(kind) if name in closing.columns else pl.lit(None, kind).alias(name)
            for name, kind in JOURNEY_LOG.empty().schema.items()
        )
        table = shaped.to_arrow().cast(JOURNEY_LOG.schema)
        return stitched.unionByName(events.sparkSession.createDataFrame(table))

    def _quarantined(self, over: pl.DataFrame) -> pl.DataFrame:
        """A row per key in quarantine, which many groups of events know of."""
        return over.select(
            tenant_id=pl.lit(self.tenant_id), seq=pl.lit(FIRST, pl.Int64), kind=pl.lit(QUARANTINE),
            key_type=pl.col("key_type").cast(pl.String), key_hash=_hash().cast(pl.String), partners="met",
            committed_at=pl.lit(self.now),
        )  # fmt: skip

    def _commit(self) -> pl.DataFrame:
        """What the commit says, as `stages.stitching.journeys` words it."""
        said = rules_of(self.tenant_id, self.policy)
        return remark_rows({self.tenant_id: FIRST}, {self.tenant_id: said}, self.now)

    def _crowded(self, facts: DataFrame) -> DataFrame:
        """Keys that may have met more others than they may, with how many: key, met, is_over."""
        limits = {
            r.key_type: r.max_partners for r in self.policy.rules_of(self.tenant_id) if r.max_partners is not None
        }
        strong = facts.filter("links and not is_weak")
        if not limits:
            return strong.limit(0).selectExpr("key", "0L as met", "true as is_over")
        limit = sf.create_map(*(sf.lit(part) for pair in limits.items() for part in pair))[sf.col("key_type")]
        others = sf.count("key").over(Window.partitionBy("event_id")) - 1
        mentions = strong.select("event_id", "key", limit.alias("limit"), others.alias("others"))
        suspects = mentions.groupBy("key").agg(sf.sum("others").alias("most"), sf.first("limit").alias("limit"))
        suspects = suspects.filter("most > limit").select("key", "limit")
        beside = strong.join(sf.broadcast(suspects), "key").select("event_id", "key", "limit")
        pairs = beside.join(strong.selectExpr("event_id", "key as other"), "event_id").filter("key <> other")
        met = pairs.groupBy("key", "limit").agg(sf.countDistinct("other").alias("met"))
        return met.selectExpr("key", "met", "met > limit as is_over").localCheckpoint()

    def _extract(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Events to their keys, one row each; an event without keys has a row without one."""
        weak = {rule.key_type for rule in self.policy.rules_of(self.tenant_id) if rule.mode == WEAK}
        blocked = {(kind, int(key)) for tenant, kind, key in self.policy.blocked if tenant == self.tenant_id}
        for batch in batches:
            events = pl.DataFrame(pa.Table.from_batches([batch])).with_columns(tenant_id=pl.lit(self.tenant_id))
            keys = extract_keys(
                keyed(events, self.apart), self.policy.rules, self.policy.nobody, self.policy.identifiers
            )
            rows = events.select("event_id", "ts").with_row_index("row").join(keys, on="row", how="left")
            held = pl.len().over("row") <= MAX_KEYS_PER_EVENT
            is_blocked = pl.Series([pair in blocked for pair in rows.select("key_type", "key_hash").iter_rows()])
            yield from _facts(rows, held, ~is_blocked if blocked else None, weak)

    def _stitch(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Whole groups of events through the fold."""
        held = [batch for batch in batches if batch.num_rows]
        if not held:
            return
        facts = pl.DataFrame(pa.Table.from_batches(held))
        events = facts.select(pl.lit(self.tenant_id).alias("tenant_id"), "event_id", "ts").unique("event_id")
        numbered = events.with_row_index("row").select("row", "event_id")
        keys = facts.drop_nulls("key").join(numbered, on="event_id").select("row", "key_type", _hash(), "met")
        batch = prepare(events, keys.drop("met"), self.policy)
        met = keys.drop_nulls("met").select("key_hash", "met").unique()
        counted = batch.keys.join(met, on="key_hash", how="left", maintain_order="left")["met"].fill_null(0).to_numpy()
        known = Known.nothing(batch)
        # All pairs are counted: none is new here, where only some events of a crowded key are.
        known = replace(known, partners=counted.astype(np.int64), is_new_pair=np.zeros(len(batch.pairs[0]), np.bool_))
        decided = log_rows(
            stitch(batch, known, self.policy), Gone.nothing(), {self.tenant_id: FIRST}, {}, self.now, ""
        )  # fmt: skip
        kept = decided.filter(~pl.col("kind").is_in([COMMIT, QUARANTINE]))
        yield from kept.to_arrow().cast(JOURNEY_LOG.schema).to_batches(max_chunksize=1 << 16)


def stitch_first(
    spark: SparkSession,
    lake: Lake,
    journeys: Journeys,
    first: FirstStitching,
    version: Version,
) -> int:
    """Stitch a tenant that has no journeys yet, and commit it; returns the rows of the log.

    Args:
        spark: reads and writes where the lake is.
        lake: holds the archive and the log.
        journeys: whose log is written.
        first: which tenant, how.
        version: of the archive.

    Raises:
        ConflictError: the tenant was stitched meanwhile; the files that were written are left for the table's care.
    """
    # Files of earlier releases lack columns that came since.
    reader = spark.read.option("basePath", lake.uri(EVENTS.name)).option("mergeSchema", "true")
    archive = reader.parquet(*lake.versions.file_uris(EVENTS, version))
    columns = ["event_id", "ts", "user_id", "session_id", "anonymous_id", "item_id", "action", "attrs"]
    events = archive.filter(sf.col("tenant_id") == first.tenant_id).select(columns)
    folder = f"spark-{uuid4().hex}"
    first.rows(events).write.mode("error").parquet(f"{lake.uri(JOURNEY_LOG.name)}/{folder}")
    return journeys.log.adopt_first(first.tenant_id, folder)


def _hash() -> pl.Expr:
    """The 128 bits of keys from their 16 bytes."""
    word = pl.lit(1 << 64, dtype=pl.UInt128)
    high, low = (
        pl.col("key").bin.slice(start, 8).bin.reinterpret(dtype=pl.UInt64, endianness="big").cast(pl.UInt128)
        for start in (0, 8)
    )
    return (high * word + low).alias("key_hash")


def _facts(
    rows: pl.DataFrame, held: pl.Expr, not_blocked: pl.Series | None, weak: set[str]
) -> Iterator[pa.RecordBatch]:
    found = rows.with_columns(
        links=pl.col("key_hash").is_not_null() & held, is_weak=pl.col("key_type").is_in(weak).fill_null(value=False)
    )
    if not_blocked is not None:
        found = found.with_columns(links=pl.col("links") & not_blocked)
    high, low = words(found["key_hash"].fill_null(0))
    keys = np.column_stack([high, low]).astype(">u8").tobytes()
    binary = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), found.height, [None, pa.py_buffer(keys)])
    is_null = pa.array(found["key_hash"].is_null().to_numpy())
    keys_or_null = pc.if_else(is_null, pa.scalar(None, pa.binary()), binary.cast(pa.binary()))
    columns = found.select("event_id", "ts", "key_type", "links", "is_weak").to_arrow().cast(pa.schema(_WITHOUT_KEY))
    yield from columns.add_column(3, "key", keys_or_null).to_batches(max_chunksize=1 << 16)


_WITHOUT_KEY: list[tuple[str, pa.DataType]] = [
    ("event_id", pa.string()), ("ts", pa.timestamp("us", "UTC")), ("key_type", pa.string()), ("links", pa.bool_()),
    ("is_weak", pa.bool_()),
]  # fmt: skip
