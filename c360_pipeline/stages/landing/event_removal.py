"""Events leave the archive; the accounting counts their lines as suppressed."""

import polars as pl

from c360_pipeline.core.catalog.tables import EVENTS, LANDING_FILES
from c360_pipeline.core.landing.accounting import OUTCOMES
from c360_pipeline.stores.delta.lake import Lake

IN_ITS_PARTITION = ["tenant_id", "event_date", "event_id"]

STAYS = tuple(name for name in (*OUTCOMES, "replaced") if name not in ("landed", "suppressed"))
"""Outcomes of lines that a removal of events leaves as they are."""


def remove_events(lake: Lake, events: pl.DataFrame) -> int:
    """Remove events; returns how many.

    The accounting is written first, from what the archive holds now: done again after a crash in between, they say the
    same.

    Args:
        lake: holds archive and accounts.
        events: rows of `EVENTS` that are there.
    """
    if events.is_empty():
        return 0
    going = events.group_by("source_uri", etag="source_etag").agg(going=pl.len().cast(pl.Int64))
    held = lake.count_by(EVENTS, "source_uri", "source_etag").rename({"source_etag": "etag", "len": "held"})
    left = going.join(held, on=["source_uri", "etag"], how="left").select(
        "source_uri", "etag", left=pl.col("held") - pl.col("going")
    )
    accounts = lake.read(LANDING_FILES).join(left, on=["source_uri", "etag"], how="inner")
    moved = accounts.with_columns(
        landed=pl.col("left"),
        suppressed=pl.col("lines") - pl.col("left") - pl.sum_horizontal(pl.col(name).fill_null(0) for name in STAYS),
    )
    lake.commits.merge(LANDING_FILES, moved.select(list(LANDING_FILES.columns)))
    return lake.commits.merge(EVENTS, EVENTS.empty(), events.select(IN_ITS_PARTITION), on=IN_ITS_PARTITION)
