"""The daemon as in production: files that are dropped into S3 reach the graph by themselves, whatever is killed."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster_processes import ask, dagster_dev, kill_all, wait_until

from c360_pipeline.connections import open_control
from c360_pipeline.core.catalog.tables import EVENTS, LANDING_FILES
from c360_pipeline.devstack.pause import paused
from c360_pipeline.devstack.service import free_port
from c360_pipeline.runs import instance
from c360_pipeline.settings import Settings, c360_home
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import drift
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.s3.landing import EVENTS_PREFIX, Landing

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


@pytest.mark.soak
def test_files_reach_the_graph_although_everything_is_killed_in_the_middle(
    settings: Settings, drop: Callable[[int, int], None], graph: Graph, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("C360_DAGSTER_DB", f"dagster_{settings.bucket.removeprefix('test-')}")

    def in_graph() -> int:
        return graph.counts.label_counts().get("Action", 0)

    port = free_port(0)
    with instance(c360_home()) as dagster:

        def runs(*statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
            return list(dagster.get_runs(dg.RunsFilter(job_name="landed_files", statuses=list(statuses))))

        def retries() -> list[str | None]:
            """The runs that were tried again, and then succeeded."""
            return [run.parent_run_id for run in runs(dg.DagsterRunStatus.SUCCESS) if run.parent_run_id]

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
            # The files may reach the graph by another run before the one that was killed is tried again.
            wait_until(lambda: retries() == [killed.run_id], seconds=240)
            wait_until(lambda: not runs(dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.QUEUED), seconds=120)
        failed = dagster.get_run_by_id(killed.run_id)
        assert failed is not None
        assert failed.status is dg.DagsterRunStatus.FAILURE
        assert retries() == [killed.run_id]
    accounts = lake.read(LANDING_FILES)
    assert (accounts.height, accounts["landed"].sum(), accounts["duplicates"].sum()) == (4, 600, 0)
    assert lake.count(EVENTS) == 600
    assert drift(reconcile(Archive(lake, open_control(settings).read()), graph)) == []


@pytest.mark.soak
def test_a_backfill_of_five_days_lands_once_although_postgres_restarts_in_the_middle(
    settings: Settings, landing: Landing, lake: Lake, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("C360_DAGSTER_DB", f"dagster_{settings.bucket.removeprefix('test-')}")
    # Without sensors: only what the backfill asks for runs.
    monkeypatch.setenv("C360_AUTOMATION", "off")
    days = [f"2025-11-0{day}" for day in range(1, 6)]
    for number, day in enumerate(days):
        file = tmp_path / f"{day}.jsonl"
        file.write_text("".join(event(n) for n in range(number * 2_000, (number + 1) * 2_000)))
        landing.put_file(file, f"{EVENTS_PREFIX}date={day}/")
    port = free_port(0)
    with instance(c360_home()) as dagster, dagster_dev(port):

        def states() -> set[dg.DagsterRunStatus]:
            return {run.status for run in dagster.get_runs()}

        # Two workers on the same days: each reads them again, and what both decide is the same.
        for _ in range(2):
            asked = ask(port, BACKFILL.replace("DAYS", json.dumps(days)))
            assert "backfillId" in asked["launchPartitionBackfill"], asked
        wait_until(lambda: dg.DagsterRunStatus.STARTED in states(), seconds=120)
        with paused(home, "postgres"):
            pass
        wait_until(lambda: len(dagster.get_runs()) >= 2 and states() <= ENDED, seconds=300)
        if dg.DagsterRunStatus.SUCCESS not in states():
            # Both were in the middle of a write to Postgres: a person reruns what failed.
            ask(port, BACKFILL.replace("DAYS", json.dumps(days)))
            wait_until(lambda: dg.DagsterRunStatus.SUCCESS in states(), seconds=200)
    accounts = lake.read(LANDING_FILES)
    assert (accounts.height, accounts["landed"].sum(), accounts["duplicates"].sum()) == (5, 10_000, 0)
    events = lake.read(EVENTS)
    assert events.height == events.n_unique(EVENTS.key) == 10_000


ENDED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
BACKFILL = """mutation { launchPartitionBackfill(backfillParams: {
  assetSelection: [{path: ["landed_events"]}, {path: ["dead_letters"]}, {path: ["landing_files"]}]
  partitionNames: DAYS
}) { __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
