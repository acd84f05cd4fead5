"""Dagster's own launcher, which can also tell that the process of a run is gone; named in dagster.yaml.

The default launcher knows nothing of runs that a killed daemon or a restarted machine leaves behind: they would stay
`STARTED`, and the queue would wait for them. With this one, run monitoring marks them as failed and a retry follows.
"""

import socket
from collections.abc import Mapping
from typing import Any

import psutil
from dagster import DagsterEventType, DagsterInstance, DagsterRun
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.launcher.base import LaunchRunContext

HOST_TAG, PROCESS_TAG, STARTED_TAG = (f".dagster/c360_{of}" for of in ("host", "process", "process_started"))
CLOCK_SECONDS = 2.0
"""How far the times that the kernel and Python give may be apart."""


class LocalRunLauncher(DefaultRunLauncher):
    """Runs as processes of this machine."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Say on which machine, then launch."""
        self._instance.add_run_tags(context.dagster_run.run_id, {HOST_TAG: socket.gethostname()})
        super().launch_run(context)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """It does."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Look for the process of a run; one of which this machine knows nothing is taken to be alive."""
        if is_abandoned(self._instance, run):
            return CheckRunHealthResult(
                WorkerStatus.FAILED, "Its process ended without a word: it was killed, or the machine was restarted."
            )
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def tags_of_this_process() -> dict[str, str]:
    """Tags of a run that this process executes."""
    process = psutil.Process()
    return {
        HOST_TAG: socket.gethostname(),
        PROCESS_TAG: str(process.pid),
        STARTED_TAG: str(process.create_time()),
    }


def is_abandoned(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Whether a run was begun by a process of this machine that is gone."""
    if run.tags.get(HOST_TAG) != socket.gethostname():
        return False
    said = processes_of(instance, run)
    return bool(said) and not any(_is_alive(pid, at) for pid, at in said)


def processes_of(instance: DagsterInstance, run: DagsterRun) -> list[tuple[int, float]]:
    """The processes that were said to execute a run: of each its number, and when that was said, seconds since 1970."""
    if PROCESS_TAG in run.tags:
        return [(int(run.tags[PROCESS_TAG]), float(run.tags[STARTED_TAG]))]
    events = instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
    return [(pid, entry.timestamp) for entry in events if (pid := _pid(entry.get_dagster_event().engine_event_data))]


def _pid(event: Any) -> int | None:
    metadata: Mapping[str, Any] = event.metadata
    return int(metadata["pid"].value) if "pid" in metadata else None


def _is_alive(pid: int, said_at: float) -> bool:
    """Whether a process lives that had started when something was said of it, in seconds since 1970."""
    try:
        process = psutil.Process(pid)
        # A process that started later has the number of one that is gone.
        return process.create_time() <= said_at + CLOCK_SECONDS and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
