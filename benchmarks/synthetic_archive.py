"""What benchmarks of the graph share: embedded services of their own, an archive that is stitched, a stopwatch."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

TENANT = "bench"
START = datetime(2025, 1, 1, tzinfo=UTC)
DAYS = 60


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextmanager
def services(*, streaming: bool = False) -> Iterator[Path]:
    """Postgres, S3 and Neo4j, and those of the real-time path, in a folder of their own, which `C360_HOME` names."""
    from c360_pipeline.devstack import stack
    from c360_pipeline.devstack.services import PREFERRED_PORTS, STREAMING_PORTS

    with tempfile.TemporaryDirectory() as where:
        os.environ["C360_HOME"] = where
        names = [*PREFERRED_PORTS, *(STREAMING_PORTS if streaming else ())]
        with stack.attached(Path(where), lambda _: None, ports=dict.fromkeys(names, 0)):
            yield Path(where)


def archive_rows(drawn: pl.DataFrame) -> pl.DataFrame:
    """Rows of the archive: n, user, session, second, item, is_purchase in; all columns of `events` out."""
    from c360_pipeline.core.catalog.tables import EVENTS

    schema = EVENTS.empty().schema
    entries = pl.lit([], pl.List(pl.Struct({"key": pl.String, "value": pl.String})))
    made = drawn.select(
        event_id=pl.format("e{}", "n"), tenant_id=pl.lit(TENANT), user_id=pl.format("u{}", "user"),
        session_id=pl.format("u{}-s{}", "user", "session"),
        ts=(pl.lit(START) + pl.duration(seconds="second")).cast(schema["ts"]),
        action=pl.when("is_purchase").then(pl.lit("purchase")).otherwise(pl.lit("view")),
        item_id=pl.format("p{}", "item"),
    ).with_columns(
        event_date=pl.col("ts").dt.date(), attrs=entries.cast(schema["attrs"]), landed_at="ts",
    )  # fmt: skip
    return made.select(
        pl.col(name).cast(dtype) if name in made.columns else pl.lit(None, dtype).alias(name)
        for name, dtype in schema.items()
    )


def fill(lake: Any, landed: pl.DataFrame, products: int, policy: Any = None) -> None:
    """Put events, stitched by a policy or one of the user and the session, and so many products into a lake."""
    from c360_pipeline.core.catalog.tables import CATALOG, EVENTS
    from c360_pipeline.core.stitching.keys import KeyPolicy, KeyRule
    from c360_pipeline.stages.stitching.journeys import Journeys
    from c360_pipeline.stages.stitching.tables import JourneyTables

    lake.commits.insert_new(EVENTS, landed)
    n = pl.int_range(products)
    lake.commits.insert_new(CATALOG, pl.select(
        tenant_id=pl.lit(TENANT), id=pl.format("p{}", n), name=pl.format("Product {}", n),
        category=pl.format("c{}", n % 20), price=n + 0.5, source_uri=pl.lit("bench"),
    ))  # fmt: skip
    policy = policy or KeyPolicy((KeyRule("*", "user", "userId"), KeyRule("*", "session", "sessionId")))
    journeys = Journeys(lake)
    for batch in landed.iter_slices(100_000):
        journeys.add(batch, policy)
    JourneyTables(lake).publish_all()


def archive_of(lake: Any) -> Any:
    """The archive of such a lake, which has no silos."""
    from c360_pipeline.core.silos.control_rows import ControlRows
    from c360_pipeline.stages.reconciliation.expected import Archive

    return Archive(lake, ControlRows((), (), {}, {}, ()))


def rebuild(archive: Any, say: Callable[[str], object]) -> None:
    """The graph again by import, without its proof, which is the reconciliation."""
    from c360_pipeline.connections import open_graph
    from c360_pipeline.devstack.graph_store import StagedStore
    from c360_pipeline.settings import c360_home, load_settings
    from c360_pipeline.stages.reconciliation.pinned import PinnedVersions
    from c360_pipeline.stages.recovery.rebuild import note_made

    pinned = archive.at(PinnedVersions.now(archive.lake, archive.control))
    staged = StagedStore(c360_home())
    plan = staged.swap_in(staged.make(pinned, pinned.snapshot_id, say))
    with open_graph(load_settings()) as graph:
        note_made(pinned, graph)
    staged.accept(plan)
