"""The first stitching on Spark gives the rows that this machine gives: ids, guards, counts."""

import gc
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pyspark.sql import SparkSession

from c360_pipeline.core.catalog.tables import EVENT_JOURNEY, EVENTS, JOURNEY_CONFLICTS, QUARANTINED_KEYS
from c360_pipeline.core.stitching.keys import JourneyLimit, KeyPolicy, KeyRule
from c360_pipeline.errors import ConflictError
from c360_pipeline.spark.session import SparkOptions, end_session, spark_session
from c360_pipeline.spark.stitching import FirstStitching, stitch_first
from c360_pipeline.stages.stitching.catch_up import Stitching
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stages.stitching.tables import PUBLISHED, JourneyTables
from c360_pipeline.stores.delta.lake import Lake

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
START = datetime(2025, 10, 1, tzinfo=UTC)
NOW = datetime(2025, 11, 3, tzinfo=UTC)
LINKING = KeyPolicy((KeyRule("*", "user", "userId"), KeyRule("*", "session", "sessionId")))


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    session = spark_session(SparkOptions(driver_memory_gib=2))
    yield session
    end_session(session)
    gc.collect()  # sockets that pyspark leaves to it, before a module where their warning is an error


def lake(folder: Path, events: pl.DataFrame) -> Lake:
    (folder / "lake").mkdir(parents=True)
    made = Lake(str(folder / "lake"), {}, folder / "cache")
    rest = {name: pl.lit(None, kind).alias(name) for name, kind in EVENTS.empty().schema.items()}
    made.commits.append(EVENTS, events.with_columns(e for n, e in rest.items() if n not in events.columns).with_columns(
        event_date=pl.col("ts").dt.date()).select(list(EVENTS.columns)))  # fmt: skip
    return made


def tables(lake: Lake) -> dict[str, pl.DataFrame]:
    """The tables of journeys without the times of commits."""
    JourneyTables(lake).publish_all()
    found = {}
    for table in PUBLISHED:
        rows = lake.read(table)
        times = ("merged_at", "split_at", "found_at", "quarantined_at")
        found[table.name] = rows.drop(name for name in times if name in rows.columns).sort(pl.all())
    return found


def guarded_events() -> tuple[pl.DataFrame, KeyPolicy]:
    """Events whose keys meet all guards at once."""
    rng = np.random.default_rng(1)
    kinds = ("user", "device", "cookie", "ip")
    rows = [
        [{"key": k, "value": f"v{rng.integers(0, 40 if k == 'ip' else 700)}"} for k in kinds if rng.random() < 0.5]
        for _ in range(1500)
    ]
    entries = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
    events = pl.DataFrame({"attrs": rows}, schema={"attrs": entries}).with_row_index("n").select(
        tenant_id=pl.when(pl.col("n") % 3 == 0).then(pl.lit("globex")).otherwise(pl.lit("acme")),
        event_id=pl.format("e{}", pl.col("n")), ts=pl.lit(START) + pl.duration(minutes=pl.col("n")),
        attrs=pl.col("attrs").cast(pl.Map(pl.String, pl.String)),
    )  # fmt: skip
    return events, KeyPolicy(
        (
            KeyRule("*", "user", "attrs.user", is_unique=True, max_partners=None),
            KeyRule("*", "device", "attrs.device", max_partners=5),
            KeyRule("*", "cookie", "attrs.cookie", window_seconds=86_400),
            KeyRule("*", "ip", "attrs.ip", "weak"),
        ),
        (JourneyLimit("*", 2, 3),),
    )


@pytest.mark.soak
def test_all_guards_give_the_same_tables(spark: SparkSession, tmp_path: Path) -> None:
    events, policy = guarded_events()
    here, there = lake(tmp_path / "here", events), lake(tmp_path / "there", events)
    Stitching(here, Journeys(here), policy).catch_up()
    journeys, version = Journeys(there), there.versions.version(EVENTS.name)
    assert version is not None
    for tenant in ("acme", "globex"):
        assert stitch_first(spark, there, journeys, FirstStitching(tenant, policy, NOW, 5), version) > 0
    ours, sparks = tables(here), tables(there)
    assert ours[QUARANTINED_KEYS.name].height > 0
    assert set(ours[JOURNEY_CONFLICTS.name]["reason"]) == {"refused_unique", "refused_size"}
    for name, rows in ours.items():
        assert rows.equals(sparks[name]), name
    # What comes later is stitched on this machine, on top of it.
    later = events.head(40).with_columns(event_id=pl.format("late-{}", pl.col("event_id")))
    for made in (here, there):
        made.commits.append(EVENTS, pl.concat([made.read(EVENTS).clear(), later.with_columns(
            event_date=pl.col("ts").dt.date())], how="diagonal").select(list(EVENTS.columns)))  # fmt: skip
        Stitching(made, Journeys(made), policy).catch_up()
    assert tables(here)[EVENT_JOURNEY.name].equals(tables(there)[EVENT_JOURNEY.name])
    with pytest.raises(ConflictError, match="stitched meanwhile"):
        stitch_first(spark, there, journeys, FirstStitching("acme", policy, NOW, 5), version)


@pytest.mark.soak
def test_a_million_pairs_give_the_same_ids(spark: SparkSession, tmp_path: Path) -> None:
    count = 500_000
    rng = np.random.default_rng(2)
    journey = rng.integers(0, count // 5, count)
    events = pl.DataFrame(
        {
            "tenant_id": pl.repeat("acme", count, eager=True),
            "event_id": pl.Series(rng.permutation(count)).cast(pl.String).str.zfill(9),
            "ts": pl.Series(rng.integers(0, 30 * 86_400, count)).cast(pl.Duration("us")) * 1_000_000 + START,
            "user_id": pl.Series(journey).cast(pl.String) + "-" + pl.Series(rng.integers(0, 2, count)).cast(pl.String),
            "session_id": pl.Series(journey).cast(pl.String)
            + "s"
            + pl.Series(rng.integers(0, 3, count)).cast(pl.String),
        }
    )
    here, there = lake(tmp_path / "here", events), lake(tmp_path / "there", events)
    Journeys(here).add(here.read(EVENTS), LINKING)
    journeys, version = Journeys(there), there.versions.version(EVENTS.name)
    assert version is not None
    began = datetime.now(UTC)
    stitch_first(spark, there, journeys, FirstStitching("acme", LINKING, NOW, 4), version)
    seconds = (datetime.now(UTC) - began) / timedelta(seconds=1)
    sys.stdout.write(f"\n1,000,000 pairs of event and key on Spark: {seconds:.1f} s\n")
    assert tables(here)[EVENT_JOURNEY.name].equals(tables(there)[EVENT_JOURNEY.name])
