"""When things run: jobs, schedules, sensors. What they do is in `assets`."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from c360_pipeline.assets.partitions import EVENT_SOURCES, SILO_TABLES, TENANTS, keep_partitions, range_tags
from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.silos.plan import plan_what_can_be
from c360_pipeline.resources import (
    ControlResource,
    LakeResource,
    LandingResource,
    NotifierResource,
    SilosResource,
)
from c360_pipeline.settings import is_automation_on, runbook_entry
from c360_pipeline.stages.landing.ingest import files_of, waiting_files
from c360_pipeline.stages.silos.run import look_at_sources
from c360_pipeline.stages.sources.active import active_sources
from c360_pipeline.stores.s3.landing import LandingFile

OF_SILOS = [
    dg.AssetKey(name)
    for name in (
        "silo_tables", "silo_nodes", "mapped_relationships", "cypher_script", "reconciliations",
        "reconciliation_findings", "graph_proofs",
    )
]  # fmt: skip
"""What a new silo table needs."""
MAINTENANCE = dg.AssetSelection.groups("maintenance")
FEATURES = dg.AssetSelection.groups("features")
SILO_EXTRACTS = dg.AssetSelection.assets("silo_tables")
LANDED = dg.AssetSelection.assets("landed_events", "dead_letters", "landing_files")
SOURCE_FILES = dg.AssetSelection.assets("event_sources")
WITHOUT_PARTITIONS = dg.AssetSelection.all() - MAINTENANCE - FEATURES - SILO_EXTRACTS - LANDED - SOURCE_FILES
NIGHTLY_CHECKS = dg.AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("reconciliations"), "stream_agrees"))
"""They read a day, whatever has just landed."""
OF_WHAT_COMES = [
    dg.AssetCheckKey(dg.AssetKey(asset), check)
    for asset, check in (
        ("landing_files", "every_source_is_fresh"), ("landing_files", "source_volumes_are_as_expected"),
        ("landed_events", "volumes_are_as_expected"),
    )
]  # fmt: skip
"""They look at what does not come, too; so they run in the night though nothing has landed."""
WAITING_TAG = "c360/waiting"
FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=1), timedelta(hours=1)
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_NUMBERS = re.compile(r"[0-9a-fA-F-]{8,}|\d+")
MISSED = timedelta(hours=20)
"""A nightly tick that comes so much later than planned is left to the next one."""
SENSORS = dg.DefaultSensorStatus.RUNNING if is_automation_on() else dg.DefaultSensorStatus.STOPPED
SCHEDULES = dg.DefaultScheduleStatus.RUNNING if is_automation_on() else dg.DefaultScheduleStatus.STOPPED
GRAPH_EQUALS_ARCHIVE = dg.AssetCheckKey(dg.AssetKey("reconciliations"), "graph_equals_archive")

_DAILY = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=36), warn_window=timedelta(hours=25))
FRESHNESS = {
    "landing": _DAILY,
    "stitching": _DAILY,
    "graph": _DAILY,
    "reconcile": _DAILY,
    "audiences": _DAILY,
    "silos": dg.FreshnessPolicy.cron("0 4 * * *", lower_bound_delta=timedelta(hours=2)),
    "features": dg.FreshnessPolicy.cron("0 6 * * *", lower_bound_delta=timedelta(hours=4)),
    "maintenance": dg.FreshnessPolicy.cron("0 7 * * *", lower_bound_delta=timedelta(hours=2)),
}
"""By group: until when its assets must have been materialised; times are UTC."""


def with_freshness(spec: dg.AssetSpec) -> dg.AssetSpec:
    """An asset that says when it is late; those of sources have a check that knows each."""
    return spec.replace_attributes(freshness_policy=FRESHNESS.get(str(spec.group_name)))


landed_files = dg.define_asset_job(
    "landed_files",
    selection=(LANDED | WITHOUT_PARTITIONS) - NIGHTLY_CHECKS,
    description="New files from the landing area to the graph: land, stitch, project, reconcile. "
    "Of a landing date that is chosen, the files are reread.",
)

nightly_rebuild = dg.define_asset_job(
    "nightly_rebuild",
    selection=SILO_EXTRACTS | WITHOUT_PARTITIONS | dg.AssetSelection.checks(*OF_WHAT_COMES),
    description="Extract the silos, stitch, project, reconcile; features follow when the graph equals its archive.",
)

table_maintenance = dg.define_asset_job(
    "table_maintenance",
    selection=MAINTENANCE,
    description="Compact, vacuum and complete every Delta table.",
)

nightly_maintenance = dg.ScheduleDefinition(
    name="nightly_maintenance",
    job=table_maintenance,
    cron_schedule="0 5 * * *",
    execution_timezone="UTC",
    default_status=SCHEDULES,
    description="Every night at 05:00 UTC, when the nightly run is over: compact and vacuum the Delta tables.",
)

follow_ups = dg.AutomationConditionSensorDefinition(
    "follow_ups",
    target=FEATURES,
    default_status=SENSORS,
    minimum_interval_seconds=30,
    description="Asks for features once a night, when the graph was compared with its archive and is equal.",
)


@dg.schedule(
    job=nightly_rebuild,
    cron_schedule="0 2 * * *",
    execution_timezone="UTC",
    default_status=SCHEDULES,
    description="Every night at 02:00 UTC: extract the silos, stitch, project, reconcile. After a downtime, the last "
    "night that was missed is made up for, not each of them.",
)
def nightly(context: dg.ScheduleEvaluationContext, control: ControlResource) -> dg.RunRequest | dg.SkipReason:
    """One run over everything, all silo tables among it."""
    planned = context.scheduled_execution_time
    if datetime.now(UTC) - planned > MISSED:
        return dg.SkipReason(f"The night of {planned:%Y-%m-%d} was missed; the next one does its work, too.")
    keep_partitions(context.instance, SILO_TABLES, control.open().read().table_names)
    return dg.RunRequest(run_key=f"nightly {planned:%Y-%m-%d}")


@dg.sensor(
    job=nightly_rebuild,
    minimum_interval_seconds=30,
    default_status=SENSORS,
    description="Keeps the partitions of silo_tables in step with source_tables, and asks for a run over new ones.",
)
def control_rows(
    context: dg.SensorEvaluationContext, control: ControlResource, silos: SilosResource
) -> dg.SensorResult | dg.SkipReason:
    """A row that is added to the control database is a partition, and in the graph, without code or restart.

    A table that can't be read yet (a grant that is to come, a server that is down) waits; once it can, its run comes.
    """
    database = control.open()
    rows = database.read()
    new, requests = _partition_requests(context, SILO_TABLES, rows.table_names)
    applied = database.runs.applied_plan() or {"tables": {}}
    unread = [name for name in rows.table_names if name not in {**applied["tables"], **applied.get("paused", {})}]
    if not unread:
        if requests:
            return dg.SensorResult(dynamic_partitions_requests=requests)
        return dg.SkipReason("The partitions are those of the control database, and every table was read.")
    found, unreachable = look_at_sources(rows, silos.open)
    plan = plan_what_can_be(rows, found, applied, unreachable)
    # In the order of Dagster, which is that of their coming.
    in_order = dict.fromkeys([*context.instance.get_dynamic_partitions(str(SILO_TABLES.name)), *new])
    ready = [name for name in in_order if name in unread and name not in plan.set_aside]
    waiting = [f"{name}: {plan.set_aside[name][0]}" for name in unread if name in plan.set_aside]
    asked, now = Asked.read(context.cursor), datetime.now(UTC)
    these = hashlib.sha256(json.dumps(ready).encode()).hexdigest()
    if asked is None or asked.waiting != these or new:
        asked = Asked(these, 1, now.isoformat())
    elif not ready or now < asked.again_at:
        ready = []
    else:
        asked = replace(asked, attempts=asked.attempts + 1, at=now.isoformat())
    if not ready and not requests:
        return dg.SkipReason("Tables that can't be read yet wait: " + "; ".join(waiting or ["their last run failed"]))
    return dg.SensorResult(
        run_requests=[dg.RunRequest(tags=range_tags(ready), asset_selection=OF_SILOS)] if ready else [],
        dynamic_partitions_requests=requests,
        cursor=json.dumps(asdict(asked)),
    )


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=SENSORS,
    description="Keeps the partitions of features in step with the tenants that have events.",
)
def tenants(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult | dg.SkipReason:
    """A tenant is there with its first event."""
    wanted = lake.open().count_by(EVENTS, "tenant_id")["tenant_id"].to_list()
    _, requests = _partition_requests(context, TENANTS, wanted)
    if not requests:
        return dg.SkipReason("The partitions are the tenants of the archive.")
    return dg.SensorResult(dynamic_partitions_requests=requests)


def _partition_requests(
    context: dg.SensorEvaluationContext, partitions: dg.DynamicPartitionsDefinition, wanted: Sequence[str]
) -> tuple[list[str], list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest]]:
    """What is new, and what makes the partitions those that are wanted."""
    known = context.instance.get_dynamic_partitions(str(partitions.name))
    new, gone = [n for n in wanted if n not in known], [n for n in known if n not in wanted]
    requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    if new:
        requests.append(partitions.build_add_request(new))
    if gone:
        requests.append(partitions.build_delete_request(gone))
    return new, requests


@dataclass(frozen=True)
class Asked:
    """The last run that was asked for, as the sensor's cursor keeps it.

    Attributes:
        waiting: hash of the files that waited.
        attempts: runs that were asked for because of these very files.
        at: when the last was, in ISO 8601.
    """

    waiting: str
    attempts: int
    at: str

    @classmethod
    def read(cls, cursor: str | None) -> "Asked | None":
        """From a cursor."""
        return cls(**json.loads(cursor)) if cursor else None

    @property
    def again_at(self) -> datetime:
        """From when on the same files may ask again: a minute later, then two, four, up to an hour."""
        doublings: int = min(self.attempts - 1, 10)
        return datetime.fromisoformat(self.at) + min(FIRST_WAIT * (1 << doublings), LONGEST_WAIT)


@dg.sensor(
    job=landed_files,
    minimum_interval_seconds=30,
    default_status=SENSORS,
    description="Asks for a run when the landing area holds a file that has not landed with its present content. "
    "The accounting decides, so that names, times and order of objects do not matter.",
)
def new_landing_files(
    context: dg.SensorEvaluationContext, landing: LandingResource, lake: LakeResource, control: ControlResource
) -> dg.SensorResult | dg.SkipReason:
    """One run for all files that wait; the same files ask again only when that run is over and they still wait."""
    rules = control.open()
    sources, faulty = active_sources(rules)
    found, unlisted = files_of(landing.open(), sources)
    new, interrupted = waiting_files(lake.open(), found.files)
    _, partitions = _partition_requests(context, EVENT_SOURCES, rules.sources.active_names())
    request, cursor, reason = _request_for(context, [*new, *interrupted], {**faulty, **unlisted})
    if request is None and not partitions and (cursor or "") == (context.cursor or ""):
        return dg.SkipReason(reason)
    return dg.SensorResult(
        run_requests=[request] if request else [], skip_reason=None if request else dg.SkipReason(reason),
        cursor=cursor, dynamic_partitions_requests=partitions,
    )  # fmt: skip


def _request_for(
    context: dg.SensorEvaluationContext, files: Sequence[LandingFile], faults: Mapping[str, str]
) -> tuple[dg.RunRequest | None, str | None, str]:
    """The run that waiting files and what is wrong with sources ask for.

    A run says what is wrong with a source, once; only files are tried again.

    Args:
        context: of the sensor.
        files: that wait.
        faults: by location, why files of a source can't be had.

    Returns:
        The request, None without one; the sensor's cursor after it; why there is none.
    """
    if not files and not faults:
        return None, "", "Every file of the landing area and of the sources is in the accounting."
    waiting, asked, now = identity(files, faults), Asked.read(context.cursor), datetime.now(UTC)
    if context.instance.get_runs_count(dg.RunsFilter(job_name=landed_files.name, statuses=UNFINISHED[:2])):
        return None, context.cursor, "A run that has not begun yet will take them."
    if asked is None or asked.waiting != waiting:
        asked = Asked(waiting, 1, now.isoformat())
    elif not files:
        return None, context.cursor, f"No file can be had of {', '.join(sorted(faults))}; a run has said why."
    elif context.instance.get_runs_count(dg.RunsFilter(tags={WAITING_TAG: waiting}, statuses=UNFINISHED)):
        return None, context.cursor, "A run is at work on them."
    elif now < asked.again_at:
        said = f"{asked.attempts} runs did not land them; the next is asked for at {asked.again_at}."
        return None, context.cursor, said
    else:
        asked = Asked(waiting, asked.attempts + 1, now.isoformat())
    tags = {WAITING_TAG: waiting, "c360/waiting_files": str(len(files))}
    return dg.RunRequest(run_key=f"{waiting} {asked.attempts} {asked.at}", tags=tags), json.dumps(asdict(asked)), ""


def identity(files: Sequence[LandingFile], faults: Mapping[str, str] | None = None) -> str:
    """A hash of names and contents, and of what is wrong."""
    # Numbers in a reason are of a request or a moment.
    reasons = [f"{place} {_NUMBERS.sub('', why)}" for place, why in (faults or {}).items()]
    said = [*sorted(f"{f.uri} {f.etag}" for f in files), *sorted(reasons)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:32]


@dg.run_failure_sensor(
    default_status=SENSORS,
    minimum_interval_seconds=15,
    description="Tells people of every run that failed and is not tried again by itself.",
)
def failed_runs(context: dg.RunFailureSensorContext, notifier: NotifierResource) -> dg.SkipReason | None:
    """The first step that failed, and why."""
    run = context.dagster_run
    if run.tags.get("dagster/will_retry") == "true":
        return dg.SkipReason(f"Run {run.run_id} is tried again.")
    failed = context.get_step_failure_events()
    said = [f"{event.step_key}: {_last_message(event)}" for event in failed[:5]] or [str(context.failure_event.message)]
    notifier.open().notify(
        f"{run.job_name} failed", "\n".join(said), link=f"runs/{run.run_id}", runbook=runbook_entry("a_run_failed")
    )
    return None


def _last_message(event: dg.DagsterEvent) -> str:
    """What the innermost error says, on one line."""
    error = event.step_failure_data.error
    while error and error.cause:
        error = error.cause
    return " ".join(error.message.split())[:500] if error else "no error was recorded"


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=SENSORS,
    description="Asks a person to approve a repair when the graph was found to differ from its archive.",
)
def found_drift(context: dg.SensorEvaluationContext, notifier: NotifierResource) -> dg.SkipReason:
    """Once for each comparison that found something; who launches `repair_graph` with its id approves."""
    records = context.instance.event_log_storage.get_latest_asset_check_execution_by_key([GRAPH_EQUALS_ARCHIVE])
    record = records.get(GRAPH_EQUALS_ARCHIVE)
    if record is None or record.status is not AssetCheckExecutionRecordStatus.FAILED or record.run_id == context.cursor:
        return dg.SkipReason("No new comparison has found a difference.")
    config = {"ops": {"repair_findings": {"config": {"approved_run": record.run_id}}}}
    notifier.open().notify(
        "The graph differs from its archive",
        f"Look at reconciliation_findings of run {record.run_id}. To approve the repair, launch repair_graph with "
        f"{json.dumps(config)}, or run `c360 reconcile --repair`.",
        link="jobs/repair_graph",
        runbook=runbook_entry("graph_equals_archive"),
    )
    context.update_cursor(record.run_id)
    return dg.SkipReason(f"A repair of what run {record.run_id} found waits for approval.")
