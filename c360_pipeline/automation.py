"""When things run: jobs, schedules, sensors. What they do is in `assets`."""

import hashlib

import dagster as dg

from c360_pipeline.resources import LakeResource, LandingResource
from c360_pipeline.stores.ingest import waiting_files

MAINTENANCE = dg.AssetSelection.groups("maintenance")

everything = dg.define_asset_job(
    "everything",
    selection=dg.AssetSelection.all() - MAINTENANCE,
    description="From landing files and silos to recommendations, whatever is new.",
)

table_care = dg.define_asset_job(
    "table_care",
    selection=MAINTENANCE,
    description="Compact, vacuum and complete every Delta table.",
)

nightly_care = dg.ScheduleDefinition(
    name="nightly_care",
    job=table_care,
    cron_schedule="0 5 * * *",
    execution_timezone="UTC",
    description="Every night at 05:00 UTC, when the nightly run is over: care for the Delta tables.",
)

nightly = dg.ScheduleDefinition(
    name="nightly",
    job=everything,
    cron_schedule="0 2 * * *",
    execution_timezone="UTC",
    description="Every night at 02:00 UTC: extract the silos, land what lies there, project, stitch, reconcile.",
)


@dg.sensor(
    job=everything,
    minimum_interval_seconds=30,
    description="Asks for a run when the landing area holds a file that is not in the books.",
)
def new_landing_files(landing: LandingResource, lake: LakeResource) -> dg.RunRequest | dg.SkipReason:
    """One run for all files that wait; the same files never ask twice."""
    area = landing.open()
    new, interrupted = waiting_files(lake.open(), area.event_files())
    waiting = [*new, *interrupted]
    if not waiting:
        return dg.SkipReason("Every file of the landing area is in the books.")
    identity = hashlib.sha256("\n".join(f"{f.uri} {f.etag}" for f in waiting).encode()).hexdigest()
    return dg.RunRequest(run_key=identity, tags={"c360/waiting_files": str(len(waiting))})
