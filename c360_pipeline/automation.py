"""When things run: jobs, schedules, sensors. What they do is in `assets`."""

import hashlib

import dagster as dg

from c360_pipeline.assets.partitions import SILO_TABLES, keep_silo_partitions, range_tags
from c360_pipeline.resources import ControlResource, LakeResource, LandingResource
from c360_pipeline.stores.ingest import waiting_files

OF_SILOS = [
    dg.AssetKey(name)
    for name in (
        "silo_tables", "silo_nodes", "mapped_relationships", "cypher_script", "reconciliations",
        "reconciliation_findings",
    )
]  # fmt: skip
"""What a new silo table needs."""
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


@dg.schedule(
    job=everything,
    cron_schedule="0 2 * * *",
    execution_timezone="UTC",
    description="Every night at 02:00 UTC: extract the silos, land what lies there, project, stitch, reconcile.",
)
def nightly(context: dg.ScheduleEvaluationContext, control: ControlResource) -> dg.RunRequest:
    """One run over everything, all silo tables among it."""
    return dg.RunRequest(tags=range_tags(keep_silo_partitions(context.instance, control.open().read().table_names)))


@dg.sensor(
    job=everything,
    minimum_interval_seconds=30,
    description="Keeps the partitions of silo_tables in step with source_tables, and asks for a run over new ones.",
)
def control_rows(context: dg.SensorEvaluationContext, control: ControlResource) -> dg.SensorResult | dg.SkipReason:
    """A row that is added to the control database is a partition, and in the graph, without code or restart."""
    wanted = control.open().read().table_names
    known = context.instance.get_dynamic_partitions(str(SILO_TABLES.name))
    new, gone = [n for n in wanted if n not in known], [n for n in known if n not in wanted]
    if not new and not gone:
        return dg.SkipReason("The partitions are those of the control database.")
    requests = [SILO_TABLES.build_add_request(new)] if new else []
    return dg.SensorResult(
        run_requests=[dg.RunRequest(tags=range_tags(new), asset_selection=OF_SILOS)] if new else [],
        dynamic_partitions_requests=[*requests, *([SILO_TABLES.build_delete_request(gone)] if gone else [])],
    )


@dg.sensor(
    job=everything,
    minimum_interval_seconds=30,
    description="Asks for a run when the landing area holds a file that is not in the books.",
)
def new_landing_files(
    context: dg.SensorEvaluationContext, landing: LandingResource, lake: LakeResource, control: ControlResource
) -> dg.RunRequest | dg.SkipReason:
    """One run for all files that wait; the same files never ask twice."""
    area = landing.open()
    new, interrupted = waiting_files(lake.open(), area.event_files())
    waiting = [*new, *interrupted]
    if not waiting:
        return dg.SkipReason("Every file of the landing area is in the books.")
    identity = hashlib.sha256("\n".join(f"{f.uri} {f.etag}" for f in waiting).encode()).hexdigest()
    names = keep_silo_partitions(context.instance, control.open().read().table_names)
    return dg.RunRequest(run_key=identity, tags={"c360/waiting_files": str(len(waiting)), **range_tags(names)})
