"""Runs started from the command line: in this process, on the same Dagster instance as the UI."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import dagster as dg
from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRunStatus, EventLogEntry, RunsFilter
from dagster_shared.error import SerializableErrorInfo

from c360_pipeline.assets.partitions import SILO_TABLES, keep_partitions
from c360_pipeline.assets.specs import SUMMARY, WHY
from c360_pipeline.automation import MAINTENANCE
from c360_pipeline.connections import open_control
from c360_pipeline.definitions import defs
from c360_pipeline.errors import C360Error, ConfigError, of_library
from c360_pipeline.resources.local_run_launcher import is_abandoned, tags_of_this_process
from c360_pipeline.settings import load_settings, project_path

EVERYTHING = "*"
LIMITED = {"landing": ("landed_events", "dead_letters", "landing_files"),
           **{name: (name,) for name in ("silo_tables", "silo_nodes", "mapped_relationships")}}  # fmt: skip
"""Steps that refuse to remove much from archive or graph unless asked, and the assets of each."""
UNFINISHED = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


ENDS = {
    DagsterEventType.STEP_SUCCESS: "done",
    DagsterEventType.STEP_SKIPPED: "skipped",
    DagsterEventType.STEP_FAILURE: "failed",
}


@dataclass(frozen=True)
class Step:
    """Something that happened in a run.

    Attributes:
        name: of the step, such as `landing`.
        state: `started`, `done`, `failed` or `skipped`.
        number: steps that have ended.
        total: steps of the run.
    """

    name: str
    state: str
    number: int
    total: int


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run_id: its id in Dagster.
        succeeded: whether every step and every blocking check did.
        rows: row count by materialised asset, None where an asset does not count.
        failed_checks: asset and name of each check that did not pass.
        warned_checks: the same of checks that only warn.
        reasons: what failed checks say was left as it is, why and what to do.
        summary: in a line each, what assets say that they did; what a selection left out; that nothing was done.
        error: message of the first step that failed.
        exit_code: of a command that did nothing else.
    """

    run_id: str
    succeeded: bool
    rows: dict[str, int | None]
    failed_checks: list[str]
    warned_checks: list[str]
    reasons: list[str]
    summary: list[str]
    error: str | None
    exit_code: int


@contextmanager
def instance(home: Path) -> Iterator[DagsterInstance]:
    """The Dagster instance: `DAGSTER_HOME`, or one in the state folder with the project's dagster.yaml.

    Its runs and events are in Postgres, the same that `dagster dev` from the repository shows.
    """
    with DagsterInstance.from_config(str(dagster_home(home))) as opened:
        yield opened


def dagster_home(home: Path) -> Path:
    """The folder with dagster.yaml, which is the project's unless `DAGSTER_HOME` names another."""
    if configured := os.environ.get("DAGSTER_HOME"):
        return Path(configured)
    folder = home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(project_path("dagster.yaml"), folder / "dagster.yaml")
    return folder


def materialise(
    home: Path, select: str, partition: str | None, observe: Callable[[Step], None], *, force_removal: bool = False
) -> Outcome:
    """Materialise assets and run their checks.

    Args:
        home: state folder.
        select: assets in Dagster's selection syntax, `*` for all.
        partition: landing date, `YYYY-MM-DD`, when only its files are to be landed.
        observe: called with each step as it starts and ends.
        force_removal: whether silos may take more from archive and graph than the removal limit lets pass.

    Raises:
        ConfigError: nothing is selected, or the partition is no date.
        KeyboardInterrupt: the run was stopped by a signal; Dagster shows it as failed.
    """
    keys = _selected(select)
    ops: dict[str, Any] = {"landing": {"config": {"landing_date": _as_date(partition)}}} if partition else {}
    if force_removal:
        limited = [step for step, assets in LIMITED.items() if any(dg.AssetKey(name) in keys for name in assets)]
        for name in limited:
            ops.setdefault(name, {"config": {}})["config"]["force_removal"] = True
    run_id = str(uuid4())
    control = open_control(load_settings(home))
    with control.locks.command_run(), instance(home) as dagster:
        close_abandoned_runs(dagster)
        keep_partitions(dagster, SILO_TABLES, control.read().table_names)
        observer = _Observer(observe, lambda run_id: _count_steps(dagster, run_id))
        dagster.add_event_listener(run_id, observer)
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=dagster,
            asset_selection=keys,
            run_id=run_id,
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, "ops": ops},
            tags=tags_of_this_process(),
        )
    if observer.was_interrupted:
        raise KeyboardInterrupt
    return observer.outcome(run_id, _left_out(keys), succeeded=result.success)


def _left_out(keys: Sequence[dg.AssetKey]) -> list[str]:
    """What is to be said of assets that a selection does not bring up to date before its own."""
    graph = defs.resolve_asset_graph()
    chosen = set(keys)
    above = {key for key in dg.AssetSelection.assets(*keys).upstream().resolve(graph) if key not in chosen}
    missing = sorted(key.to_user_string() for key in above)
    return [f"not run, though what was selected is made of them: {', '.join(missing)}"] if missing else []


def _count_steps(dagster: DagsterInstance, run_id: str) -> int:
    run = dagster.get_run_by_id(run_id)
    if run is None or run.execution_plan_snapshot_id is None:
        return 0
    return len(dagster.get_execution_plan_snapshot(run.execution_plan_snapshot_id).step_keys_to_execute)


def _selected(select: str) -> list[dg.AssetKey]:
    if re.fullmatch(r"\w+(\s*,\s*\w+)+,?", select.strip()):
        names = [name.strip() for name in select.split(",") if name.strip()]
        known = {key.to_user_string() for key in defs.resolve_all_asset_keys()}
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"--select {select!r}: there is no asset {', '.join(unknown)}. There are: {_known()}.")
        select = " or ".join(f"key:{name}" for name in names)
    if select == EVERYTHING:
        return sorted((dg.AssetSelection.all() - MAINTENANCE).resolve(defs.resolve_asset_graph()))
    try:
        # Assets that one step makes come together.
        selection = dg.AssetSelection.from_string(select).required_multi_asset_neighbors()
        chosen = selection.resolve(defs.resolve_asset_graph())
    except dg.DagsterError as error:
        raise ConfigError(f"--select {select!r} is no asset selection: {error}") from None
    if not chosen:
        raise ConfigError(f"--select {select!r} names no asset. There are: {_known()}.")
    return sorted(chosen)


def _known() -> str:
    return ", ".join(sorted(key.to_user_string() for key in defs.resolve_all_asset_keys()))


def _as_date(partition: str) -> str:
    try:
        return date.fromisoformat(partition).isoformat()
    except ValueError:
        raise ConfigError(f"--partition {partition!r}: a landing date such as 2025-11-03 is right.") from None


def close_abandoned_runs(dagster: DagsterInstance) -> int:
    """Mark runs of processes of this machine that are gone as failed, so that the queue does not wait for them."""
    unfinished = dagster.get_runs(RunsFilter(statuses=UNFINISHED))
    abandoned = [run for run in unfinished if is_abandoned(dagster, run)]
    for run in abandoned:
        dagster.report_run_failed(run, message="The process of this run ended without a word: it was killed.")
    return len(abandoned)


class _Observer:
    """Follows the events of one run."""

    def __init__(self, observe: Callable[[Step], None], count_steps: Callable[[str], int]) -> None:
        self._observe = observe
        self._count_steps = count_steps
        self._ended = 0
        self._total = 0
        self._rows: dict[str, Any] = {}
        self._failed_checks: list[str] = []
        self._warned_checks: list[str] = []
        self._reasons: list[str] = []
        self._summary: list[str] = []
        self._error: SerializableErrorInfo | None = None

    def __call__(self, entry: EventLogEntry) -> None:
        """Take an event of the run."""
        event = entry.dagster_event
        if event is None:
            return
        if event.event_type is DagsterEventType.RUN_START:
            self._total = self._count_steps(entry.run_id)
        elif event.event_type is DagsterEventType.STEP_START:
            self._observe(Step(event.step_key or "", "started", self._ended, self._total))
        elif event.event_type in ENDS:
            self._end(event)
        elif event.event_type is DagsterEventType.ASSET_MATERIALIZATION:
            materialization = event.step_materialization_data.materialization
            count = materialization.metadata.get("dagster/row_count")
            self._rows[materialization.asset_key.to_user_string()] = count.value if count else None
            summary = materialization.metadata.get(SUMMARY)
            self._summary += [str(summary.value)] if summary else []
        elif event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if not check.passed:
                is_warning = check.severity is dg.AssetCheckSeverity.WARN
                named = f"{check.asset_key.to_user_string()}: {check.check_name}"
                (self._warned_checks if is_warning else self._failed_checks).append(named)
                why = check.metadata.get(WHY)
                said = why.data if isinstance(why, dg.JsonMetadataValue) and isinstance(why.data, dict) else {}
                self._reasons += [f"{name}: {text}" for name, text in said.items()]

    def _end(self, event: DagsterEvent) -> None:
        self._ended += 1
        self._observe(Step(event.step_key or "", ENDS[event.event_type], self._ended, self._total))
        if event.event_type is DagsterEventType.STEP_FAILURE:
            self._error = self._error or event.step_failure_data.error

    @property
    def was_interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM ended the run."""
        cause = _root_cause(self._error)
        return cause is not None and cause.cls_name == dg.DagsterExecutionInterruptedError.__name__

    def outcome(self, run_id: str, left_out: list[str], *, succeeded: bool) -> Outcome:
        """What was seen, and what is to be said of assets that the selection leaves out."""
        error = _told(self._error)
        return Outcome(
            run_id=run_id,
            succeeded=succeeded,
            rows=self._rows,
            failed_checks=self._failed_checks,
            warned_checks=self._warned_checks,
            reasons=self._reasons,
            summary=[*self._summary, *left_out],
            error=error and error.message,
            exit_code=0 if succeeded and not self._failed_checks else error.exit_code if error else 1,
        )


def _root_cause(error: SerializableErrorInfo | None) -> SerializableErrorInfo | None:
    while error and error.cause:
        error = error.cause
    return error


class _Told(NamedTuple):
    """What a command says of a step that failed, and its exit code."""

    message: str
    exit_code: int


def _told(error: SerializableErrorInfo | None) -> _Told | None:
    """The first error of the chain that says what to do, else the one at its root with its class."""
    ours = {kind.__name__: kind for kind in C360Error.__subclasses__()}
    link = error
    while link is not None:
        name = link.cls_name or ""
        message = re.sub(r"^[\w.]+: ", "", link.message.strip(), count=1)  # the class comes before what it says
        if name in ours:
            return _Told(message, ours[name].exit_code)
        if found := of_library([name], message):
            return _Told(str(found), found.exit_code)
        link = link.cause
    root = _root_cause(error)
    if root is None:
        return None
    return _Told(f"{root.message.strip()} Nobody foresaw this one: the run's page in the UI has all of it.", 1)
