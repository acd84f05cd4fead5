"""The table of events by day, brought up to the archive by the days that changed."""

import polars as pl

from c360_pipeline.core.catalog.changes import Changes, difference
from c360_pipeline.core.catalog.tables import DAILY_EVENTS, EVENTS
from c360_pipeline.core.landing.daily import NEEDED, daily_events
from c360_pipeline.stages.visitors.tables import number_of, taken_up
from c360_pipeline.stores.delta.lake import Lake


def publish_daily_events(lake: Lake) -> Changes:
    """Count the days of tenants whose files in the archive are others than when they were counted last.

    Raises:
        ConflictError: other workers were faster 20 times in a row.
    """

    def attempt() -> Changes:
        snapshot = lake.commits.snapshot(DAILY_EVENTS)
        newest = lake.versions.version(EVENTS.name)
        nothing = Changes(DAILY_EVENTS.empty(), DAILY_EVENTS.empty(), DAILY_EVENTS.empty().select(DAILY_EVENTS.key))
        if newest is None:
            return nothing
        done = taken_up(snapshot, {EVENTS.name: newest}).get(EVENTS.name)
        touched, files, version = lake.versions.changed_partitions(EVENTS, done)
        if version is None or version == done:
            return nothing
        days = touched.rename({"event_date": "day"})
        is_known = done is not None and lake.versions.still_there(EVENTS, done) is not None
        held = lake.scan(DAILY_EVENTS)
        theirs = held.join(days.lazy(), on=["tenant_id", "day"], how="semi") if is_known else held
        changes = difference(theirs.collect(engine="streaming"), _counted(lake, files), DAILY_EVENTS.key)
        numbers = {number_of(EVENTS.name, version): version.number + 1}
        lake.commits.apply(DAILY_EVENTS, snapshot, changes, numbers)
        return changes

    return lake.commits.retried(DAILY_EVENTS.name, attempt)


def counted_events(lake: Lake) -> tuple[int, int]:
    """How many events days hold, and how many the archive held when they were counted last."""
    snapshot, newest = lake.commits.snapshot(DAILY_EVENTS), lake.versions.version(EVENTS.name)
    done = taken_up(snapshot, {EVENTS.name: newest}).get(EVENTS.name) if newest else None
    held = lake.scan(DAILY_EVENTS, snapshot.version()).select(pl.col("events").sum()).collect().item()
    return held, lake.count(EVENTS, done.number) if done else 0


def _counted(lake: Lake, files: set[str]) -> pl.DataFrame:
    return daily_events(lake.scan_files(EVENTS, files).select(NEEDED))
