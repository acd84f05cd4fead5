"""A day in fast motion: everything that writes does so at once, workers are killed, and at the end all is proved.

`C360_DAY_SECONDS` says how long it takes. The real-time path has a test of its own with faults (test_streaming).
"""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import psutil
import psycopg
import pytest
from dagster_processes import ask, dagster_dev, wait_until
from fastapi.testclient import TestClient
from repetition import Trials
from typer.testing import CliRunner

from c360_pipeline import cli
from c360_pipeline.connections import open_control
from c360_pipeline.core.catalog.tables import EVENTS, LANDING_FILES, RECONCILIATION_FINDINGS
from c360_pipeline.devstack import silo_samples
from c360_pipeline.devstack.service import free_port
from c360_pipeline.resources.local_run_launcher import PROCESS_TAG
from c360_pipeline.runs import instance
from c360_pipeline.serving.app import create_app
from c360_pipeline.serving.backend import Backend
from c360_pipeline.settings import Settings, c360_home, postgres_login
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import drift, graph_digest, reconcile
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.s3.landing import EVENTS_PREFIX, Landing

SECONDS = float(os.environ.get("C360_DAY_SECONDS", "1200"))
TODAY = datetime.now(UTC)
RUNNING = {dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.QUEUED,
           dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.CANCELING}  # fmt: skip
NIGHTLY = """mutation { launchRun(executionParams: {selector: {jobName: "nightly_rebuild",
  repositoryName: "__repository__", repositoryLocationName: "c360_pipeline"}, runConfigData: {}}) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
BACKFILL = """mutation { launchPartitionBackfill(backfillParams: {
  assetSelection: [{path: ["landed_events"]}, {path: ["dead_letters"]}, {path: ["landing_files"]}]
  partitionNames: DAYS}) { __typename ... on PythonError { message } } }"""


def event(event_id: str, user: str, at: datetime) -> dict[str, str]:
    return {"tenantId": "acme", "userId": user, "sessionId": f"s-{user}", "ts": at.isoformat(), "action": "view",
            "itemId": f"p{hash(event_id) % 20}", "eventId": event_id}  # fmt: skip


class Day:
    """What happens, and what of it has to be there at the end."""

    def __init__(self, settings: Settings, landing: Landing, folder: Path, seed: int) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        self.settings, self.landing, self.folder = settings, landing, folder
        self.ids: set[str] = set()
        self.erased = "user-erased"
        self.stop = threading.Event()
        self.failures: list[BaseException] = []

    @contextmanager
    def meanwhile(self, every: float, what: Callable[[int], None]) -> Iterator[None]:
        """Do something every so many seconds, until the day is over."""

        def run() -> None:
            number = 0
            try:
                while not self.stop.wait(every):
                    what(number)
                    number += 1
            except BaseException as error:
                self.failures.append(error)
                raise

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join(120)

    def a_file_comes(self, number: int) -> None:
        day = TODAY - timedelta(days=number % 5)
        lines = [event(f"f{number}-{n}", f"user{self.rng.randrange(60)}", day) for n in range(50)]
        path = self.folder / f"{number}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.landing.put_file(path, f"{EVENTS_PREFIX}date={day:%Y-%m-%d}/")
        self.ids |= {line["eventId"] for line in lines}

    def somebody_tracks(self, client: TestClient, key: str) -> Callable[[int], None]:
        def track(number: int) -> None:
            body = {
                "user_id": f"user{self.rng.randrange(60)}",
                "product_id": f"p{number % 20}",
                "interaction_type": "VIEWED",
                "event_id": f"t{number}",
                "ts": datetime.now(UTC).isoformat(),
            }
            answer = client.post("/graph/track", json=body, headers={"x-api-key": key})
            assert answer.status_code == 200, answer.text
            self.ids.add(body["event_id"])

        return track

    def silo_rows_change(self, number: int) -> None:
        with psycopg.connect(**postgres_login(self.settings, "profiles_db")) as silo:
            silo.execute("UPDATE accounts SET full_name = full_name || '.' WHERE account_id = %s", (number % 240 + 1,))


@pytest.fixture
def day(
    settings: Settings,
    landing: Landing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Day:
    monkeypatch.setenv("C360_DAGSTER_DB", f"dagster_{settings.bucket.removeprefix('test-')}")
    silo_samples.seed(postgres_login(settings, settings.etl_db_name), open_control(settings), "sample", lambda _: None)
    return Day(settings, landing, tmp_path, seed=request.param)


@pytest.mark.soak
@pytest.mark.timeout(SECONDS * 2 + 1_200)
@pytest.mark.parametrize("day", [1, 2, 3], indirect=True)
def test_a_day_in_fast_motion(
    day: Day, settings: Settings, landing: Landing, lake: Lake, graph: Graph, trials: Trials
) -> None:
    control = open_control(settings)
    backend = Backend(graph, lake, landing, control)
    key, _ = backend.keys.add("acme", "ingest")
    port = free_port(0)
    days = [f"{TODAY - timedelta(days=n):%Y-%m-%d}" for n in range(5)]
    with (
        instance(c360_home()) as dagster,
        dagster_dev(port),
        TestClient(create_app(backend, rate="100000/second"), raise_server_exceptions=False) as client,
    ):

        def running() -> list[dg.DagsterRun]:
            return [run for run in dagster.get_runs() if run.status in RUNNING]

        killed: set[str] = set()

        def a_worker_dies(number: int) -> None:
            started = [
                run for run in running() if run.status is dg.DagsterRunStatus.STARTED and PROCESS_TAG in run.tags
            ]
            if number % 3 == 1 and started:
                victim = day.rng.choice(started)
                process = psutil.Process(int(victim.tags[PROCESS_TAG]))
                killed.add(victim.run_id)
                process.send_signal(signal.SIGKILL)

        day.a_file_comes(0)
        with (
            day.meanwhile(0.05, day.somebody_tracks(client, key)),
            day.meanwhile(max(SECONDS / 40, 5), lambda n: day.a_file_comes(n + 1)),
            day.meanwhile(2, day.silo_rows_change),
            day.meanwhile(SECONDS / 6, a_worker_dies),
            day.meanwhile(SECONDS / 3, lambda _: asked(port, NIGHTLY)),
            day.meanwhile(SECONDS / 2.5, lambda _: asked(port, BACKFILL.replace("DAYS", json.dumps(days)))),
            day.meanwhile(SECONDS / 1.5, lambda _: erase(day.erased)),
        ):
            day.stop.wait(SECONDS)
        assert day.failures == []
        wait_until(lambda: not running() and lake.count(EVENTS) >= len(day.ids), seconds=600)
        wait_until(lambda: not running(), seconds=600)
        failed = {run.run_id for run in dagster.get_runs() if run.status is dg.DagsterRunStatus.FAILURE}
        ended = len(dagster.get_runs())
    trials(ended, day.seed)
    found = lake.read(RECONCILIATION_FINDINGS).filter(pl.col("run_id").is_in(list(failed - killed)))
    assert failed <= killed, [*(failed - killed), *found.head(20).rows()]
    events = lake.read(EVENTS)
    assert events.height == events.n_unique(EVENTS.key)
    assert set(events["event_id"]) == day.ids
    accounts = lake.read(LANDING_FILES)
    assert (accounts["landed"].sum(), accounts["dead"].sum()) == (events.height, 0)
    project_rest()
    archive = Archive(lake, control.read())
    results = reconcile(archive, graph)
    assert drift(results) == []
    rebuilt = CliRunner().invoke(cli.app, ["rebuild", "--online", "--json"])
    assert rebuilt.exit_code == 0, rebuilt.output
    assert json.loads(rebuilt.stdout)["digest"] == graph_digest(results)


def asked(port: int, query: str) -> None:
    """Ask the webserver for something that it grants."""
    answer = ask(port, query)
    assert "Success" in json.dumps(answer), answer


def erase(user: str) -> None:
    """By the command that a person gives; runs wait meanwhile."""
    done = CliRunner().invoke(cli.app, ["erase", "--tenant", "acme", "--user", user, "--certificate", os.devnull])
    assert done.exit_code == 0, done.output


def project_rest() -> None:
    """What a last run does."""
    done = CliRunner().invoke(cli.app, ["run", "--json"])
    assert json.loads(done.stdout)["failed_checks"] == [], done.stdout
