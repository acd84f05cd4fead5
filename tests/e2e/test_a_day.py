"""A day in fast motion: everything that writes does so at once, workers are killed, and at the end all is proved.

`C360_DAY_SECONDS` says how long it takes. Faults of the real-time path's own servers: test_streaming.
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
from c360_pipeline.cli.stream import SINK_NAMES, start_job
from c360_pipeline.connections import open_control, open_graph, open_lake, open_landing
from c360_pipeline.core.catalog.tables import EVENTS, LANDING_FILES, RECONCILIATION_FINDINGS
from c360_pipeline.devstack import silo_samples, stack
from c360_pipeline.devstack.service import free_port
from c360_pipeline.devstack.services import PREFERRED_PORTS, STREAMING_PORTS
from c360_pipeline.resources.local_run_launcher import processes_of
from c360_pipeline.runs import instance
from c360_pipeline.serving.app import create_app
from c360_pipeline.serving.backend import Backend
from c360_pipeline.settings import Settings, load_settings, postgres_login
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import drift, graph_digest
from c360_pipeline.stores.s3.landing import EVENTS_PREFIX, Landing
from c360_pipeline.streaming.producer import EventProducer
from c360_pipeline.streaming.verify import compared

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


PER_SECOND = {"api": 20, "kafka": 50}
ERASED = "user-erased"
NO_WAIT = timedelta(0)
BECAME = ("landed", "duplicates", "dead", "suppressed")


def event(event_id: str, user: str, item: int, at: datetime) -> dict[str, str]:
    return {"tenantId": "acme", "userId": user, "sessionId": f"s-{user}", "ts": at.isoformat(), "action": "view",
            "itemId": f"p{item % 20}", "eventId": event_id}  # fmt: skip


class Day:
    """What happens, and what of it has to be there at the end."""

    def __init__(self, settings: Settings, landing: Landing, folder: Path, seed: int) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        self.settings, self.landing, self.folder = settings, landing, folder
        self.ids: set[str] = set()
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
        lines = [event(f"f{number}-{n}", f"user{self.rng.randrange(60)}", n, day) for n in range(50)]
        # Later files would bring the person back into the landing area, which an erasure says, rightly.
        forgotten = [event(f"e{number}-{n}", ERASED, n, day) for n in range(10 if number < 5 else 0)]
        path = self.folder / f"{number}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines + forgotten))
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

    def the_stream_brings(self, producer: EventProducer) -> Callable[[int], None]:
        def bring(number: int) -> None:
            for n in range(PER_SECOND["kafka"]):
                sent = event(f"k{number}-{n}", f"user{self.rng.randrange(60)}", n, datetime.now(UTC))
                producer.send(sent)
                self.ids.add(sent["eventId"])
            producer.flush()

        return bring

    def silo_rows_change(self, number: int) -> None:
        with psycopg.connect(**postgres_login(self.settings, "profiles_db")) as silo:
            silo.execute("UPDATE accounts SET full_name = full_name || '.' WHERE account_id = %s", (number % 240 + 1,))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder with every service, none of them shared with other tests."""
    folder = tmp_path / "home"
    monkeypatch.setenv("C360_HOME", str(folder))
    with stack.attached(folder, lambda _: None, ports=dict.fromkeys([*PREFERRED_PORTS, *STREAMING_PORTS], 0)):
        yield folder


@pytest.mark.soak
@pytest.mark.timeout(SECONDS * 3 + 2_400)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_day_in_fast_motion(home: Path, tmp_path: Path, trials: Trials, seed: int) -> None:
    settings = load_settings(home)
    landing, control = open_landing(settings), open_control(settings)
    lake = open_lake(settings)
    silo_samples.seed(postgres_login(settings, settings.etl_db_name), control, "sample", lambda _: None)
    day = Day(settings, landing, tmp_path, seed)
    port = free_port(0)
    days = [f"{TODAY - timedelta(days=n):%Y-%m-%d}" for n in range(5)]
    start_job(home, settings, SINK_NAMES, lambda _: None)
    with (
        open_graph(settings) as graph,
        instance(home) as dagster,
        dagster_dev(port),
        EventProducer(settings) as producer,
        TestClient(
            create_app(backend := Backend(graph, lake, landing, control), rate="100000/second"),
            raise_server_exceptions=False,
        ) as client,
    ):
        key, _ = backend.keys.add("acme", "ingest")

        def running() -> list[dg.DagsterRun]:
            return [run for run in dagster.get_runs() if run.status in RUNNING]

        killed: set[str] = set()

        def workers() -> list[tuple[str, int]]:
            """Runs that a process executes, with its number."""
            return [
                (run.run_id, pid)
                for run in running()
                if run.status is dg.DagsterRunStatus.STARTED
                for pid, _ in processes_of(dagster, run)
                if psutil.pid_exists(pid)
            ]

        def a_worker_dies(number: int) -> None:
            if number % 3 == 1:
                wait_until(lambda: bool(workers()) or day.stop.is_set(), seconds=SECONDS)
                for run_id, pid in workers()[:1]:
                    killed.add(run_id)
                    psutil.Process(pid).send_signal(signal.SIGKILL)

        day.a_file_comes(0)
        with (
            day.meanwhile(1 / PER_SECOND["api"], day.somebody_tracks(client, key)),
            day.meanwhile(1, day.the_stream_brings(producer)),
            day.meanwhile(max(SECONDS / 40, 10), lambda n: day.a_file_comes(n + 1)),
            day.meanwhile(2, day.silo_rows_change),
            day.meanwhile(SECONDS / 6, a_worker_dies),
            day.meanwhile(SECONDS / 3, lambda _: asked(port, NIGHTLY)),
            day.meanwhile(SECONDS / 2.5, lambda _: asked(port, BACKFILL.replace("DAYS", json.dumps(days)))),
            day.meanwhile(SECONDS / 1.5, lambda _: erase(ERASED)),
        ):
            day.stop.wait(SECONDS)
        assert day.failures == []
        assert killed
        # A busy machine gets longer: runs that wait are as many as the day asked for.
        wait_until(lambda: not running() and lake.count(EVENTS) >= len(day.ids), seconds=max(600, 1.5 * SECONDS))
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
    assert (accounts["lines"] == accounts.select(pl.sum_horizontal(*BECAME))["landed"]).all()
    assert accounts["dead"].sum() == 0
    project_rest()
    with open_graph(settings) as graph:
        archive = Archive(lake, control.read())
        results = reconcile(archive, graph)
        assert drift(results) == []
    agreed = compared(settings, None, NO_WAIT)
    assert agreed.is_equal, agreed.as_dict()
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
