"""The daemon as in production: files that are dropped into S3 reach the graph by themselves, whatever is killed."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster_processes import dagster_dev, kill_all, wait_until

from c360_pipeline.connections import open_control
from c360_pipeline.core.lake import EVENTS, LANDING_FILES
from c360_pipeline.devstack.services import free_port
from c360_pipeline.runs import instance
from c360_pipeline.settings import Settings, c360_home
from c360_pipeline.stores.archive import Archive
from c360_pipeline.stores.graph import Graph
from c360_pipeline.stores.lake import Lake
from c360_pipeline.stores.landing import EVENTS_PREFIX, Landing
from c360_pipeline.stores.reconcile import drift, reconcile

TODAY = datetime.now(UTC)


@pytest.fixture
def drop(landing: Landing, tmp_path: Path) -> Callable[[int, int], None]:
    """Drops a file with events of some numbers."""

    def drop_file(first: int, count: int) -> None:
        file = tmp_path / f"{first}.jsonl"
        file.write_text("".join(event(number) for number in range(first, first + count)))
        landing.put_file(file, f"{EVENTS_PREFIX}date={TODAY:%Y-%m-%d}/")

    return drop_file


def event(number: int) -> str:
    return json.dumps({
        "tenantId": "acme", "userId": f"u{number % 50}", "sessionId": f"s{number % 80}", "ts": TODAY.isoformat(),
        "action": "view", "itemId": f"p{number % 20}", "eventId": f"e{number}",
    }) + "\n"  # fmt: skip


def test_files_reach_the_graph_although_everything_is_killed_in_the_middle(
    settings: Settings, drop: Callable[[int, int], None], graph: Graph, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("C360_DAGSTER_DB", f"dagster_{settings.bucket.removeprefix('test-')}")

    def in_graph() -> int:
        return graph.label_counts().get("Action", 0)

    port = free_port(0)
    with instance(c360_home()) as dagster:

        def runs(*statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
            return list(dagster.get_runs(dg.RunsFilter(job_name="landed_files", statuses=list(statuses))))

        with dagster_dev(port) as process:
            drop(0, 100)
            wait_until(lambda: in_graph() == 100, seconds=180)
            wait_until(lambda: runs(dg.DagsterRunStatus.SUCCESS), seconds=120)
            drop(100, 400)
            wait_until(lambda: runs(dg.DagsterRunStatus.STARTED), seconds=120)
            kill_all(process)
        (killed,) = runs(dg.DagsterRunStatus.STARTED)
        drop(500, 50)
        drop(550, 50)
        with dagster_dev(port):
            wait_until(lambda: in_graph() == 600, seconds=240)
            wait_until(lambda: not runs(dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.QUEUED), seconds=120)
        failed = dagster.get_run_by_id(killed.run_id)
        assert failed is not None
        assert failed.status is dg.DagsterRunStatus.FAILURE
        assert [run.parent_run_id for run in runs(dg.DagsterRunStatus.SUCCESS) if run.parent_run_id] == [killed.run_id]
    books = lake.read(LANDING_FILES)
    assert (books.height, books["landed"].sum(), books["duplicates"].sum()) == (4, 600, 0)
    assert lake.count(EVENTS) == 600
    assert drift(reconcile(Archive(lake, open_control(settings).read()), graph)) == []
