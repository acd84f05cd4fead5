"""When things run: schedules, sensors and what they ask for, against real stores and a real instance."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import dagster as dg
import psycopg
import pytest
import yaml
from dagster._core.definitions.automation_tick_evaluation_context import build_run_requests_with_backfill_policies
from dagster._core.definitions.events import AssetKeyPartitionKey
from psycopg import sql

from c360_pipeline import automation
from c360_pipeline.assets import projection as graph_assets
from c360_pipeline.assets import silos
from c360_pipeline.assets.partitions import EVENT_SOURCES, LANDING_DATES, keep_partitions, source_day_key
from c360_pipeline.assets.sources import late_sources
from c360_pipeline.automation import Asked
from c360_pipeline.connections import open_control
from c360_pipeline.core.catalog.feature_tables import FEATURES
from c360_pipeline.core.catalog.tables import EVENTS, RECONCILIATION_FINDINGS
from c360_pipeline.definitions import defs
from c360_pipeline.devstack import silo_samples
from c360_pipeline.resources import (
    ControlResource,
    GraphResource,
    LakeResource,
    LandingResource,
    NotifierResource,
    SilosResource,
)
from c360_pipeline.resources.local_run_launcher import HOST_TAG, PROCESS_TAG, STARTED_TAG, tags_of_this_process
from c360_pipeline.runs import instance, materialise
from c360_pipeline.settings import Settings, c360_home, postgres_login
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.event_sources import SourceRow
from c360_pipeline.stores.s3.landing import EVENTS_PREFIX, Landing

GOLDEN = Path(__file__).parents[1] / "golden" / "definitions.json"
SENSORS = ("new_landing_files", "control_rows", "tenants", "follow_ups", "failed_runs", "found_drift")
LANDED = ("landed_events", "dead_letters", "landing_files")
SEGMENT: dict[str, Any] = {"extends": "segment@1", "tenant": {"const": "acme"}}
DAY = f"{EVENTS_PREFIX}date=2025-11-02/"


def event(number: int, tenant: str = "acme") -> str:
    return json.dumps({
        "tenantId": tenant, "userId": "ann", "sessionId": "s", "ts": f"2025-11-02T10:{number % 60:02}:00Z",
        "action": "view", "itemId": "lamp", "eventId": f"e{number}",
    }) + "\n"  # fmt: skip


@pytest.fixture
def dagster(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance of its own, as dagster.yaml has it."""
    monkeypatch.setenv("C360_DAGSTER_DB", f"dagster_{settings.bucket.removeprefix('test-')}")
    with instance(c360_home()) as opened:
        yield opened


@pytest.fixture
def put(landing: Landing, tmp_path: Path) -> Callable[[str, str], None]:
    """Puts a file of events into the landing area."""

    def put_file(name: str, content: str) -> None:
        file = tmp_path / name
        file.write_text(content)
        landing.put_file(file, DAY)

    return put_file


def evaluate(name: str, dagster: dg.DagsterInstance, cursor: str | None = None, **resources: Any) -> Any:
    """One tick of a sensor, as the daemon does it."""
    sensor = defs.resolve_sensor_def(name)
    with dg.build_sensor_context(instance=dagster, cursor=cursor, resources=resources) as context:
        return sensor(context)


def files_tick(dagster: dg.DagsterInstance, cursor: str | None = None) -> Any:
    return evaluate(
        "new_landing_files", dagster, cursor, landing=LandingResource(), lake=LakeResource(), control=ControlResource()
    )


def asset_facts(key: dg.AssetKey) -> dict[str, Any]:
    """What a person would notice in the UI if it changed."""
    graph = defs.resolve_asset_graph()
    node = graph.get(key)
    specs = sorted(
        (graph.get_check_spec(k) for k in graph.asset_check_keys if k.asset_key == key), key=lambda s: s.name
    )
    partitions = node.partitions_def
    return {
        "deps": sorted(parent.to_user_string() for parent in node.parent_keys),
        "group": node.group_name,
        "partitions": getattr(partitions, "name", None) or (type(partitions).__name__ if partitions else None),
        "pools": sorted(node.pools or ()),
        "checks": {spec.name: "blocking" if spec.blocking else "tells" for spec in specs},
        "automation": node.automation_condition.get_label() if node.automation_condition else None,
    }


def test_definitions_are_as_they_were(request: pytest.FixtureRequest) -> None:
    jobs = sorted(defs.resolve_all_job_defs(), key=lambda job: job.name)
    said = {
        "assets": {key.to_user_string(): asset_facts(key) for key in sorted(defs.resolve_all_asset_keys())},
        "jobs": {j.name: sorted(k.to_user_string() for k in j.asset_layer.executable_asset_keys) for j in jobs},
        "schedules": {
            schedule.name: [schedule.cron_schedule, schedule.job_name, schedule.default_status.value]
            for schedule in map(defs.resolve_schedule_def, ("nightly", "nightly_maintenance"))
        },
        "sensors": {
            sensor.name: [sensor.minimum_interval_seconds, sensor.default_status.value]
            for sensor in map(defs.resolve_sensor_def, SENSORS)
        },
    }
    text = json.dumps(said, indent=1) + "\n"
    if request.config.getoption("update_golden"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_every_check_has_an_entry_in_the_runbook() -> None:
    runbook = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
    for key in defs.resolve_asset_graph().asset_check_keys:
        assert f'<a id="{key.name}"></a>' in runbook, key.name


def test_alerts_and_dashboard_name_figures_that_there_are_and_entries_of_the_runbook() -> None:
    docs = Path(__file__).parents[2] / "docs"
    alerts, board = (docs / "operations" / name for name in ("alerts.yaml", "dashboard.json"))
    code = "".join(p.read_text() for p in (docs.parent / "c360_pipeline").rglob("*.py"))
    runbook = (docs / "runbook.md").read_text()
    expressions = re.findall(r"expr: (.*)", alerts.read_text())
    expressions += [target["expr"] for panel in json.loads(board.read_text())["panels"] for target in panel["targets"]]
    named = {name for text in expressions for name in re.findall(r"c360_(\w+)", text)}
    assert len(named) > 10
    for name in named:
        assert f'"{name}"' in code, name
    for alert in yaml.safe_load(alerts.read_text())["groups"][0]["rules"]:
        anchor = alert["annotations"]["runbook"].removeprefix("docs/runbook.md#")
        assert f'<a id="{anchor}"></a>' in runbook, alert["alert"]


def test_files_that_wait_ask_once(dagster: dg.DagsterInstance, put: Callable[[str, str], None]) -> None:
    assert isinstance(files_tick(dagster), dg.SkipReason)
    put("a.jsonl", event(1))
    first = files_tick(dagster)
    (request,) = first.run_requests
    assert request.tags["c360/waiting_files"] == "1"
    # The same files within a minute: no second run, whatever became of the first.
    assert isinstance(files_tick(dagster, first.cursor), dg.SkipReason)
    put("a.jsonl", event(1) + event(2))  # other content under the same name is another file
    second = files_tick(dagster, first.cursor)
    assert second.run_requests[0].run_key != request.run_key
    assert second.run_requests[0].tags["c360/waiting_files"] == "2"


def test_files_that_were_not_landed_ask_again_later_and_later(
    dagster: dg.DagsterInstance, put: Callable[[str, str], None]
) -> None:
    put("a.jsonl", event(1))
    asked = Asked(**json.loads(files_tick(dagster).cursor))
    keys = set()
    for attempts, minutes in ((1, 1), (2, 2), (3, 4), (9, 60)):
        early, late = (
            Asked(asked.waiting, attempts, (datetime.now(UTC) - timedelta(minutes=m)).isoformat())
            for m in (minutes - 0.2, minutes + 0.2)
        )
        assert isinstance(files_tick(dagster, json.dumps(vars(early))), dg.SkipReason)
        again = files_tick(dagster, json.dumps(vars(late)))
        assert json.loads(again.cursor)["attempts"] == attempts + 1
        keys.add(again.run_requests[0].run_key)
    assert len(keys) == 4


def test_files_wait_for_the_run_that_will_take_them(
    dagster: dg.DagsterInstance, put: Callable[[str, str], None]
) -> None:
    put("a.jsonl", event(1))
    (request,) = files_tick(dagster).run_requests
    run = dagster.create_run_for_job(
        defs.resolve_job_def("landed_files"), tags=dict(request.tags), status=dg.DagsterRunStatus.NOT_STARTED
    )
    put("b.jsonl", event(2))
    assert "not begun" in str(files_tick(dagster).skip_message)
    dagster.report_run_failed(run)
    assert files_tick(dagster).run_requests


def test_half_an_upload_is_no_file(dagster: dg.DagsterInstance, landing: Landing) -> None:
    client = landing._client
    key = f"{DAY}large.jsonl"
    upload = client.create_multipart_upload(Bucket=landing.bucket, Key=key)["UploadId"]
    part = client.upload_part(
        Bucket=landing.bucket, Key=key, UploadId=upload, PartNumber=1, Body=event(1).encode() * 60_000
    )
    assert isinstance(files_tick(dagster), dg.SkipReason)
    client.complete_multipart_upload(
        Bucket=landing.bucket, Key=key, UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )  # fmt: skip
    assert files_tick(dagster).run_requests


def test_a_run_that_names_no_partition_says_which_it_was_about(
    dagster: dg.DagsterInstance, put: Callable[[str, str], None], graph: Graph
) -> None:
    put("a.jsonl", event(1) + "{}\n")
    outcome = materialise(c360_home(), "landed_events", None, lambda _: None)
    assert outcome.succeeded
    for asset in LANDED:
        assert dagster.get_materialized_partitions(dg.AssetKey(asset)) == {"2025-11-02"}
    event_log = dagster.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("dead_letters"), asset_partitions=["2025-11-02"]), limit=1
    )
    metadata = event_log.records[0].asset_materialization.metadata  # type: ignore[union-attr]
    assert (metadata["lines"].value, metadata["dead"].value, metadata["landed"].value) == (2, 1, 1)
    assert "| missing_field | open | 1 |" in str(metadata["by_reason"].value)


def test_a_range_of_landing_dates_is_read_anew_in_one_run(
    dagster: dg.DagsterInstance, landing: Landing, lake: Lake, tmp_path: Path
) -> None:
    for day in range(1, 6):
        file = tmp_path / f"{day}.jsonl"
        file.write_text(event(day))
        landing.put_file(file, f"{EVENTS_PREFIX}date=2025-11-0{day}/")
    tags = {"dagster/asset_partition_range_start": "2025-11-01", "dagster/asset_partition_range_end": "2025-11-04"}
    done = defs.resolve_job_def("landed_files").execute_in_process(
        instance=dagster,
        tags=tags,
        asset_selection=[dg.AssetKey(n) for n in ("landed_events", "dead_letters", "landing_files")],
    )
    assert done.success
    assert lake.count(EVENTS) == 4  # the fifth day was not asked for
    assert len(dagster.get_materialized_partitions(dg.AssetKey("landed_events"))) == 4


def test_tenants_are_partitions(
    dagster: dg.DagsterInstance, put: Callable[[str, str], None], lake: Lake, graph: Graph
) -> None:
    assert isinstance(evaluate("tenants", dagster, lake=LakeResource()), dg.SkipReason)
    put("a.jsonl", event(1) + event(2, "globex"))
    assert materialise(c360_home(), "landed_events", None, lambda _: None).succeeded
    (request,) = evaluate("tenants", dagster, lake=LakeResource()).dynamic_partitions_requests
    assert sorted(request.partition_keys) == ["acme", "globex"]


def nightly(dagster: dg.DagsterInstance, planned: datetime) -> Any:
    schedule = defs.resolve_schedule_def("nightly")
    with dg.build_schedule_context(
        instance=dagster, scheduled_execution_time=planned, resources={"control": ControlResource()}
    ) as context:
        return schedule(context)


def test_of_nights_that_were_missed_the_last_is_made_up_for(dagster: dg.DagsterInstance) -> None:
    now = datetime.now(UTC)
    assert isinstance(nightly(dagster, now - timedelta(days=3)), dg.SkipReason)
    assert isinstance(nightly(dagster, now - timedelta(days=1)), dg.SkipReason)
    late = nightly(dagster, now - timedelta(hours=19))
    assert late.run_key == f"nightly {now - timedelta(hours=19):%Y-%m-%d}"


def test_features_follow_the_first_comparison_of_the_night_that_found_both_sides_equal(
    dagster: dg.DagsterInstance,
) -> None:
    dagster.add_dynamic_partitions("tenant", ["acme", "globex"])
    now = datetime.now(UTC)
    tick = now.replace(hour=2, minute=0, second=0, microsecond=0)
    tick -= timedelta(days=int(tick > now))
    cursor = None

    def requested(at: datetime) -> int:
        nonlocal cursor
        result = dg.evaluate_automation_conditions(
            defs, dagster, asset_selection=automation.FEATURES, evaluation_time=at, cursor=cursor
        )
        cursor = result.cursor
        return result.total_requested

    def compared(*, equal: bool) -> None:
        for name in ("reconciliations", "reconciliation_findings", "graph_proofs"):
            dagster.report_runless_asset_event(dg.AssetMaterialization(name))
        dagster.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("reconciliations"), check_name="graph_equals_archive", passed=equal, metadata={}
            )
        )

    assert requested(tick - timedelta(minutes=1)) == 0
    assert requested(now) == 0  # the night has come, the comparison has not
    compared(equal=False)
    assert requested(now) == 0
    compared(equal=True)
    assert requested(now) == 2 * len(FEATURES)  # a partition for each tenant and table
    assert requested(now) == 0  # once a night


def evaluated(check: dg.AssetChecksDefinition, **resources: Any) -> dg.AssetCheckResult:
    """What a check says, called as a function."""
    result: dg.AssetCheckResult = check.node_def.compute_fn.decorated_fn(**resources)  # type: ignore[union-attr]
    return result


def test_a_column_that_is_excluded_afterwards_is_found_in_the_lake(
    dagster: dg.DagsterInstance, settings: Settings, graph: Graph
) -> None:
    login = postgres_login(settings, settings.etl_db_name)
    silo_samples.seed(login, open_control(settings), "sample", lambda _: None)
    assert materialise(c360_home(), "silo_tables", None, lambda _: None).succeeded

    def check() -> dg.AssetCheckResult:
        return evaluated(silos.no_excluded_column_is_in_the_lake, control=ControlResource(), lake=LakeResource())

    assert check().passed
    with psycopg.connect(**login) as rows:
        rows.execute(
            "INSERT INTO field_exclusion_rules (table_id, column_name, reason) "
            "SELECT table_id, 'full_name', 'a name' FROM source_tables WHERE table_name = 'accounts'"
        )
    found = check()
    assert not found.passed
    assert found.metadata["found"].value == {"silos/profiles_db/accounts": ["full_name"]}
    assert materialise(c360_home(), "silo_tables", None, lambda _: None).succeeded
    assert check().passed


def test_events_that_are_not_in_the_graph_are_told(
    dagster: dg.DagsterInstance, put: Callable[[str, str], None], graph: Graph
) -> None:
    put("a.jsonl", event(1))
    assert materialise(c360_home(), "landed_events", None, lambda _: None).succeeded
    late = evaluated(graph_assets.newest_events_are_in_the_graph, lake=LakeResource(), graph=GraphResource())
    assert (late.passed, late.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "acme" in str(late.metadata["lag"].value)


class Received(BaseHTTPRequestHandler):
    """A chat service that takes notices, after it was away for a moment."""

    notices: ClassVar[list[dict[str, Any]]] = []
    refusals = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if type(self).refusals:
            type(self).refusals -= 1
            self.send_response(503)
        else:
            self.notices.append(body)
            self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def chat_service() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Address and what arrives."""
    Received.notices, Received.refusals = [], 1
    with HTTPServer(("127.0.0.1", 0), Received) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hooks/secret-token", Received.notices
        server.shutdown()


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What is posted to the webhook."""
    with chat_service() as (address, received):
        monkeypatch.setenv("C360_NOTIFY_WEBHOOK", address)
        yield received


def test_a_failed_run_is_told_once_with_its_cause(
    dagster: dg.DagsterInstance, notices: list[dict[str, Any]], settings: Settings
) -> None:
    config = {"ops": {"repair_findings": {"config": {"approved_run": "nobody's"}}}}
    done = defs.resolve_job_def("repair_graph").execute_in_process(
        instance=dagster, run_config=config, raise_on_error=False
    )
    assert not done.success
    (failure,) = (e for e in done.all_events if e.is_run_failure)
    with dg.build_run_status_sensor_context(
        "failed_runs", failure, dagster, done.dagster_run, resources={"notifier": NotifierResource()}
    ) as context:
        automation.failed_runs(context.for_run_failure())
    (notice,) = notices
    assert notice["subject"] == "repair_graph failed"
    assert "ConflictError: Run nobody's was approved" in notice["text"]
    assert notice["link"].endswith(f"/runs/{done.run_id}")
    assert "secret-token" not in json.dumps(notice)


def test_drift_asks_for_approval_and_is_repaired_when_approved(
    dagster: dg.DagsterInstance,
    notices: list[dict[str, Any]],
    put: Callable[[str, str], None],
    graph: Graph,
    lake: Lake,
) -> None:
    put("a.jsonl", "".join(map(event, range(30))))
    home = c360_home()
    assert materialise(home, "*", None, lambda _: None).succeeded
    graph.run("MATCH (e:Event {id: 'e7'}) SET e.type = 'stolen'")
    compared = materialise(home, "reconciliations", None, lambda _: None)
    assert "reconciliations: graph_equals_archive" in compared.failed_checks

    asked = evaluate("found_drift", dagster, notifier=NotifierResource())
    assert compared.run_id in str(asked.skip_message)
    assert compared.run_id in notices[-1]["text"]
    seen = len(notices)
    evaluate("found_drift", dagster, compared.run_id, notifier=NotifierResource())
    assert len(notices) == seen

    config = {"ops": {"repair_findings": {"config": {"approved_run": compared.run_id}}}}
    repair = defs.resolve_job_def("repair_graph")
    assert repair.execute_in_process(instance=dagster, run_config=config).success
    assert graph.run("MATCH (e:Event {id: 'e7'}) RETURN e.type AS type") == [{"type": "view"}]
    assert sorted(lake.read(RECONCILIATION_FINDINGS)["repaired"]) == [False, True]
    # An approval is of what was seen: afterwards there is a newer comparison.
    again = repair.execute_in_process(instance=dagster, run_config=config, raise_on_error=False)
    assert not again.success


def test_the_process_of_a_run_is_looked_for(dagster: dg.DagsterInstance) -> None:
    job = defs.resolve_job_def("table_maintenance")
    mine = tags_of_this_process()
    gone = {**mine, PROCESS_TAG: "4194303", STARTED_TAG: "1"}
    elsewhere = {**gone, HOST_TAG: "another"}
    launcher = dagster.run_launcher
    states = []
    for tags in (mine, gone, elsewhere, {}):
        run = dagster.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
        states.append(launcher.check_run_worker_health(run).status.value)
    assert states == ["RUNNING", "FAILED", "RUNNING", "RUNNING"]


def test_a_run_waits_for_who_has_the_stores(settings: Settings) -> None:
    control = open_control(settings)
    waiting, done = threading.Event(), threading.Event()

    def run() -> None:
        with control.locks.shared_run(waiting.set):
            done.set()

    with control.locks.exclusive_run():
        thread = threading.Thread(target=run)
        thread.start()
        assert waiting.wait(30)
        assert not done.is_set()
    thread.join(30)
    assert done.is_set()
    assert control.locks.runs_at_work() == 0
    with control.locks.shared_run(lambda: None), control.locks.shared_run(lambda: None):
        assert control.locks.runs_at_work() == 2  # runs do not keep each other away


def test_the_calendar_has_today() -> None:
    assert LANDING_DATES.get_last_partition_key() == datetime.now(UTC).date().isoformat()


ADD_SHOP = """
    WITH added AS (
        INSERT INTO source_databases (tenant_id, db_name, host, port, db_user, password_ref)
        VALUES ('acme', %(name)s, %(host)s, %(port)s, %(user)s, 'env:C360_SOURCE_READER') RETURNING database_id
    )
    INSERT INTO source_tables (database_id, table_name, key_columns) SELECT database_id, 'orders', '{id}' FROM added
"""


def test_a_table_whose_grants_come_later_is_read_once_they_do(
    settings: Settings, dagster: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = postgres_login(settings, settings.etl_db_name)
    open_control(settings)
    name = f"shop_{settings.bucket.removeprefix('test-')}"
    reader = sql.Identifier(f"reader_{name}")
    monkeypatch.setenv("C360_SOURCE_READER", "x")
    monkeypatch.setenv("C360_SOURCE_READER_HOST", "*")
    resources = {"control": ControlResource(), "silos": SilosResource()}
    with psycopg.connect(**login, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        server.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(reader))
        with psycopg.connect(**{**login, "dbname": name}, autocommit=True) as shop:
            shop.execute("CREATE TABLE orders (id int PRIMARY KEY)")
            values = {"name": name, "host": login["host"], "port": login["port"], "user": f"reader_{name}"}
            server.execute(ADD_SHOP.encode(), values)
            first = evaluate("control_rows", dagster, **resources)
            assert (first.run_requests, len(first.dynamic_partitions_requests)) == ([], 1)
            dagster.add_dynamic_partitions("silo_table", first.dynamic_partitions_requests[0].partition_keys)
            waiting = evaluate("control_rows", dagster, first.cursor, **resources)
            assert isinstance(waiting, dg.SkipReason)
            assert "the login may not read column 'id'" in str(waiting.skip_message)
            shop.execute(sql.SQL("GRANT SELECT ON orders TO {}").format(reader))
            (run,) = evaluate("control_rows", dagster, first.cursor, **resources).run_requests
            assert run.tags["dagster/asset_partition_range_start"] == f"{name}.public.orders"
            assert materialise(c360_home(), "silo_tables", None, lambda _: None).failed_checks == []
            assert isinstance(evaluate("control_rows", dagster, first.cursor, **resources), dg.SkipReason)
            shop.execute(sql.SQL("DROP OWNED BY {}").format(reader))
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        server.execute(sql.SQL("DROP ROLE {}").format(reader))


def test_a_source_and_a_range_of_dates_is_read_anew_in_one_run(
    dagster: dg.DagsterInstance, settings: Settings, landing: Landing, lake: Lake, control: ControlDb, tmp_path: Path
) -> None:
    """As a backfill of the UI asks for it: Dagster makes the run of the partitions that a person chose."""
    record = {"type": "track", "event": "Product Viewed", "userId": "u", "timestamp": "2026-11-20T10:00:00Z"}
    for source in ("shop", "app"):
        control.sources.add(source, f"s3://{settings.bucket}/{source}/{{date}}/*", "lines", None, None)
        control.sources.apply(source, control.sources.add_mapping(source, SEGMENT, ""))
        for day in range(20, 24):
            file = tmp_path / "records.jsonl"
            file.write_text(json.dumps(record | {"messageId": f"{source}-{day}"}) + "\n")
            landing.put_file(file, f"{source}/2026-11-{day}/")
    tick = files_tick(dagster)
    assert [request.partition_keys for request in tick.dynamic_partitions_requests] == [["app", "shop"]]
    assert len(tick.run_requests) == 1
    assert materialise(c360_home(), "landed_events", None, lambda _: None).succeeded
    noted = dagster.get_materialized_partitions(dg.AssetKey("event_sources"))
    assert noted == {f"2026-11-{day}|{source}" for source in ("shop", "app") for day in range(20, 24)}
    better = SEGMENT | {"action": {"map": {"Product Viewed": "look"}}}
    control.sources.apply("shop", control.sources.add_mapping("shop", better, ""))

    chosen = [source_day_key("shop", date(2026, 11, day)) for day in (20, 21, 22)]
    (request,) = build_run_requests_with_backfill_policies(
        [AssetKeyPartitionKey(dg.AssetKey("event_sources"), key) for key in chosen], defs.resolve_asset_graph(),
        dynamic_partitions_store=dagster,
    )  # fmt: skip
    job = defs.resolve_implicit_global_asset_job_def()
    done = job.execute_in_process(instance=dagster, tags=request.tags, asset_selection=request.asset_selection)
    assert done.success
    actions = lake.read(EVENTS).select("event_id", "action").sort("event_id").rows()
    assert actions == [
        *((f"app-{day}", "view") for day in range(20, 24)),
        *((f"shop-{day}", "look") for day in range(20, 23)), ("shop-23", "view"),
    ]  # fmt: skip


def test_a_backfill_of_days_on_which_nothing_came_of_a_source_fails_and_says_so(
    dagster: dg.DagsterInstance, settings: Settings, control: ControlDb, lake: Lake
) -> None:
    control.sources.add("shop", f"s3://{settings.bucket}/shop/{{date}}/*", "lines", None, None)
    control.sources.apply("shop", control.sources.add_mapping("shop", SEGMENT, ""))
    keep_partitions(dagster, EVENT_SOURCES, ["shop"])
    done = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=dagster, partition_key=source_day_key("shop", date(2026, 11, 20)), raise_on_error=False,
        asset_selection=[dg.AssetKey("event_sources")],
    )  # fmt: skip
    (failed,) = done.filter_events(lambda event: event.is_step_failure)
    assert "No file came of shop on 2026-11-20" in str(failed.step_failure_data.error)


def test_a_source_that_falls_silent_is_told_and_one_that_is_loaded_once_is_not() -> None:
    def row(name: str, days: int | None) -> SourceRow:
        return SourceRow(1, name, f"s3://b/{name}/*", "lines", None, None, 1, True, None, None, None, days, 1)

    today, sources = date(2026, 11, 29), [row("daily", 1), row("weekly", 7), row("once", None), row("new", 1)]
    newest = dict.fromkeys(("daily", "weekly", "once"), today - timedelta(days=2))
    late = late_sources(sources, newest, today)
    assert sorted(late) == ["daily", "new"]
    assert "2 days ago" in late["daily"]
    assert "No file was ever read" in late["new"]
    assert late_sources(sources, dict.fromkeys(("daily", "weekly", "once", "new"), today), today) == {}


def test_a_source_that_is_wrong_is_said_by_one_run_though_no_file_waits(
    dagster: dg.DagsterInstance, settings: Settings, control: ControlDb
) -> None:
    control.sources.add("shop", "s3://a-bucket-that-nobody-named/shop/*", "lines", None, None)
    control.sources.apply("shop", control.sources.add_mapping("shop", SEGMENT, ""))
    keep_partitions(dagster, EVENT_SOURCES, ["shop"])
    tick = files_tick(dagster)
    assert len(tick.run_requests) == 1
    again = files_tick(dagster, tick.cursor)
    assert "a run has said why" in again.skip_message
    # Mended, and wrong again: that is said again.
    control.execute("UPDATE event_sources SET is_active = false")
    keep_partitions(dagster, EVENT_SOURCES, [])
    well = files_tick(dagster, tick.cursor)
    control.execute("UPDATE event_sources SET is_active = true")
    assert len(files_tick(dagster, well.cursor).run_requests) == 1
