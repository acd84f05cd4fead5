"""The command line: exit codes, one JSON document, one clear line of error."""

import base64
import json
import os
import socket
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest
from event_world import World
from typer.testing import CliRunner, Result

from c360_pipeline import cli, queries
from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.devstack import silo_samples
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import Settings, postgres_login
from c360_pipeline.stages.landing.ingest import Ingest
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.landing import EVENTS_PREFIX, Landing

RUNNER = CliRunner()


def run(*arguments: str) -> Result:
    return RUNNER.invoke(cli.app, arguments)


def in_a_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "c360_pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_status_and_doctor_say_that_all_is_well(home: Path) -> None:
    status = run("status", "--json")
    assert status.exit_code == 0
    assert {s["service"] for s in json.loads(status.stdout)} == {"postgres", "s3", "neo4j"}
    doctor = run("doctor", "--json")
    assert doctor.exit_code == 0
    assert all(f["found"] for f in json.loads(doctor.stdout))


def test_env_can_be_evaluated_by_a_shell(settings: Settings) -> None:
    printed = run("env").stdout
    shell = subprocess.run(
        ["bash", "-c", f'{printed}\nprintf %s "$NEO4J_PASSWORD"'], capture_output=True, text=True, check=True
    )
    assert shell.stdout == settings.neo4j_password.get_secret_value()
    assert json.loads(run("env", "--json").stdout)["C360_BUCKET"] == settings.bucket


def test_without_services_the_exit_code_is_3_and_says_how_to_start_them(tmp_path: Path) -> None:
    unreachable = {
        "NEO4J_URI": "bolt://127.0.0.1:9", "NEO4J_PASSWORD": "x", "ETL_DB_HOST": "127.0.0.1", "ETL_DB_PORT": "9",
        "ETL_DB_USER": "x", "ETL_DB_PASSWORD": "geheim", "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "geheim",
    }  # fmt: skip
    for command in (["seed"], ["run"], ["land", __file__.replace(".py", ".jsonl")], ["reconcile"]):
        if command[0] == "land":
            file = tmp_path / "a.jsonl"
            file.write_text("{}\n")
            command = ["land", str(file)]
        result = in_a_process(*command, **unreachable)
        assert result.returncode == 3, (command, result.stderr)
        assert "c360 up" in result.stderr
        assert "Traceback" not in result.stderr
        assert "geheim" not in result.stderr


def test_without_settings_the_exit_code_is_2_and_names_them(tmp_path: Path) -> None:
    result = in_a_process("digest", C360_HOME=str(tmp_path))
    assert result.returncode == 2
    assert "NEO4J_URI" in result.stderr
    assert "Traceback" not in result.stderr


def test_status_without_services_is_3(tmp_path: Path) -> None:
    assert in_a_process("status", C360_HOME=str(tmp_path)).returncode == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "--events", "0", "--out", "x"], "--events 0"),
        (["generate", "--from", "nowhere", "--out", "x"], "--from"),
        (["seed", "--source", "nowhere"], "--source"),
        (["land", "/nowhere"], "/nowhere"),
        (["run", "--select", "no_such_asset"], "no_such_asset"),
        (["run", "--select", "[/x]"], "[/x]"),
        (["run", "--partition", "yesterday"], "yesterday"),
        (["journey", "show", "no-such-event"], "no-such-event"),
        (["demo", "--data", "nowhere"], "nowhere"),
        (["dead-letters", "list", "--reason", "bad luck"], "bad luck"),
        (["dead-letters", "list", "--day", "yesterday"], "yesterday"),
        (["dead-letters", "list", "--status", "lost"], "lost"),
        (["dead-letters", "show", "zz"], "zz"),
        (["dead-letters", "discard", "--note", "why"], "--all"),
        (["suppress", "remove", "--tenant", "acme", "--user", "nobody"], "nobody"),
        (["rebuild", "--as-of", "yesterday"], "yesterday"),
        (["diff", "77"], "77"),
        (["restore", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_2_with_one_clear_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    says: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["c360", *arguments])
    monkeypatch.setattr(os, "umask", lambda _: 0)  # of the process of all tests
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2, said.err
    assert says in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_generate_into_s3_and_land(settings: Settings, landing: Landing, tmp_path: Path) -> None:
    folder = f"s3://{settings.bucket}/landing/events/date=2025-11-03/"
    assert run("generate", "--events", "50", "--tenants", "1", "--seed", "3", "--out", folder).exit_code == 0
    first = len(landing.event_files())
    assert run("generate", "--events", "50", "--tenants", "1", "--seed", "3", "--out", str(tmp_path)).exit_code == 0
    assert run("land", str(tmp_path)).exit_code == 0
    assert len(landing.event_files()) == 2 * first == 18
    assert len(landing.catalog_files()) == 1


def test_seed_leaves_control_rows_of_others_alone(settings: Settings) -> None:
    assert run("seed").exit_code == 0
    with psycopg.connect(**postgres_login(settings, settings.etl_db_name)) as control:
        control.execute(
            "INSERT INTO source_databases (tenant_id, db_name, host, port, db_user, password_ref) "
            "VALUES ('acme', 'orders', 'db.example', 5432, 'reader', 'env:ORDERS_PASSWORD')"
        )
    refused = in_a_process("seed")
    assert refused.returncode == 2
    assert "reads orders" in refused.stderr


def test_the_demo_refuses_servers_of_others(home: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("NEO4J_URI=bolt://production\nNEO4J_PASSWORD=x\n")
    command = [sys.executable, "-m", "c360_pipeline.cli", "demo"]
    environment = {**os.environ, "C360_HOME": str(home)}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 2
    assert "NEO4J_PASSWORD, NEO4J_URI name other servers" in result.stderr


def test_seed_twice_is_seed_once_and_leaves_other_databases_alone(settings: Settings) -> None:
    assert run("seed").exit_code == 0
    assert run("seed").exit_code == 0
    with psycopg.connect(**postgres_login(settings, "profiles_db")) as silo:
        assert silo.execute("SELECT count(*) FROM accounts").fetchone() == (240,)
        assert silo.execute("SELECT count(*) FROM accounts WHERE email = 'john.smith@email.com'").fetchone() == (1,)
        silo.execute("COMMENT ON DATABASE profiles_db IS 'the real one'")
    login = postgres_login(settings, settings.etl_db_name)
    with psycopg.connect(**login) as control:
        control.execute("UPDATE source_databases SET port = 1")
    assert (silo_samples.follow_server(login), silo_samples.follow_server(login)) == (3, 0)
    refused = in_a_process("seed")
    assert refused.returncode == 2
    assert "profiles_db exists and is not a sample" in refused.stderr
    with psycopg.connect(**postgres_login(settings, "profiles_db")) as silo:
        silo.execute("COMMENT ON DATABASE profiles_db IS 'sample database of c360_pipeline'")


def test_dead_letters_are_listed_shown_replayed_and_discarded(
    settings: Settings, landing: Landing, lake: Lake, control: ControlDb, tmp_path: Path
) -> None:
    bad = b'{"tenantId":"acme","userId":"u","sessionId":"s","ts":"yesterday","action":"view"}'
    (tmp_path / "a.jsonl").write_bytes(b"\xff[x]\n" + bad + b"\n")
    landing.put_file(tmp_path / "a.jsonl", f"{EVENTS_PREFIX}date=2025-11-03/")
    Ingest(landing, lake, control.privacy.suppressed_users()).land(landing.event_files(), lambda lines: None)
    listed = run("dead-letters", "list", "--json")
    letters = {letter["error_class"]: letter for letter in json.loads(listed.stdout)}
    assert set(letters) == {"invalid_utf8", "bad_timestamp"}
    assert "'yesterday' is not RFC 3339" in letters["bad_timestamp"]["reason"]
    assert "bad_timestamp" in run("dead-letters", "list", "--tenant", "acme").stdout
    letter_id = letters["invalid_utf8"]["dead_letter_id"]
    shown = run("dead-letters", "show", letter_id[:10])
    assert r"\xff[x]" in shown.stdout
    assert "line 1 at byte 0: dead" in shown.stdout
    assert run("dead-letters", "show", letter_id[:10], "--raw").stdout_bytes == b"\xff[x]"
    as_json = json.loads(run("dead-letters", "show", letter_id[:10], "--json").stdout)
    assert base64.b64decode(as_json["raw_base64"]) == b"\xff[x]"
    for dry in ([], ["--dry-run"]):
        replayed = json.loads(run("dead-letters", "replay", "--json", *dry).stdout)
        assert replayed["outcomes"] == {"dead": 2}
    assert run("dead-letters", "discard", "--reason", "invalid_utf8", "--note", "noise").exit_code == 0
    assert len(json.loads(run("dead-letters", "list", "--json").stdout)) == 1
    assert len(json.loads(run("dead-letters", "list", "--json", "--status", "all").stdout)) == 2


def test_suppressed_users_are_listed_without_their_names(settings: Settings) -> None:
    for _ in range(2):
        assert run("suppress", "add", "--tenant", "acme", "--user", "john@example.com").exit_code == 0
    listed = run("suppress", "list", "--json").stdout
    assert [row["tenant_id"] for row in json.loads(listed)] == ["acme"]
    assert "john" not in listed
    assert run("suppress", "remove", "--tenant", "acme", "--user", "john@example.com").exit_code == 0
    assert json.loads(run("suppress", "list", "--json").stdout) == []


def test_plan_and_grants_say_what_the_next_run_reads(settings: Settings, control: ControlDb) -> None:
    assert run("seed").exit_code == 0
    plan = json.loads(run("plan", "--json").stdout)
    accounts = plan["tables"]["profiles_db.public.accounts"]
    assert accounts["leaves_out"] == {"hashed_password": "a credential", "phone": "not needed for any question"}
    assert accounts["label"] == "Account"
    assert plan["expected_rows"]["streaming_db.public.play_events"] > 4_000
    assert {"subject": "profiles_db.public.accounts", "change": "table is new"} in plan["changes"]
    assert f"plan {plan['hash']}" in run("plan").stdout
    grants = run("grants", "--role", "reader").stdout
    assert 'GRANT SELECT ("ticket_id", "tag_id") ON TABLE "public"."ticket_tags" TO "reader";' in grants
    assert "hashed_password" not in grants
    with psycopg.connect(**postgres_login(settings, settings.etl_db_name)) as rows:
        rows.execute("UPDATE source_tables SET table_name = 'people' WHERE table_id = 1")
    refused = in_a_process("plan")
    assert refused.returncode == 2
    assert "source_tables row 1 (public.people): there is no such table" in refused.stderr


def test_queries_are_listed_shown_and_refused(settings: Settings, graph: Graph) -> None:
    names = [q["name"] for q in json.loads(run("query", "--list", "--json").stdout)]
    assert names == [p.stem for p in sorted(resources.files(queries).iterdir()) if p.suffix == ".cypher"]
    assert "$tenant_id" in run("query", "churn-risk", "--show").stdout
    assert json.loads(run("query", "churn_risk", "--tenant", "acme", "--json").stdout)["rows"] == []
    for wrong in (["nothing"], ["churn_risk"], ["churn_risk", "--set", "x=1"], ["churn_risk", "--set", "limit=many"]):
        refused = in_a_process("query", *wrong)
        assert refused.returncode == 2, wrong
        assert len(refused.stderr.strip().splitlines()) <= 2


def test_the_graph_is_cleared_only_when_it_was_said_twice(settings: Settings, control: ControlDb, graph: Graph) -> None:
    graph.run("CREATE (:Thing), (:Thing)")
    for answers in ("n\n", "y\nno\n", ""):
        assert RUNNER.invoke(cli.app, ["clear-database"], input=answers).exit_code != 0
        assert graph.counts.label_count("Thing") == 2
    assert RUNNER.invoke(cli.app, ["clear-database"], input=f"y\n{settings.neo4j_uri}\n").exit_code == 0
    assert graph.counts.label_count("Thing") == 0


def document(*arguments: str) -> Any:
    """The one JSON document that a command prints."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_what_looks_at_archive_and_graph_prints_one_document(world: World, tmp_path: Path) -> None:
    backup = document("backup", str(tmp_path / "backup"))
    assert document("backup", str(tmp_path / "backup"), "--verify") == backup
    assert isinstance(run("backup", str(tmp_path / "backup")).exception, ConfigError)
    digest = document("digest", "--by-day")
    assert {day["archive"] == day["graph"] for day in digest["days"]} == {True}
    assert document("diff", "0", "--limit", "3")["counts"] == document("diff", "0", "now")["counts"]
    expired = document("retain", "--dry-run")
    assert {row["action"] for row in expired["events"]} == {"view"}  # of a year ago
    assert sum(row["len"] for row in expired["events"]) < world.count == world.lake.count(EVENTS)
    (user,) = world.graph.run("MATCH (u:User {tenant_id: 'acme'}) RETURN u.id AS id LIMIT 1")
    found = {
        one["store"]: one["hits"] for one in document("erase", "--tenant", "acme", "--user", user["id"], "--dry-run")
    }
    assert found["lake"] > 0
    assert found["graph"] > 0
    assert document("rebuild", "--online")["digest"] == document("rebuild", "--online")["digest_before"]


def test_a_port_that_is_taken_is_said_before_anything_starts(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = in_a_process("dev", "--port", str(port))
    assert ended.returncode == 2
    assert ended.stderr.strip() == (
        f"error: Port {port} of 127.0.0.1 can't be used (Address already in use). Choose another with --port."
    )


def test_a_selection_may_be_a_list_and_says_what_it_leaves_out(settings: Settings, landing: Landing) -> None:
    done = json.loads(run("run", "--select", "landed_events, product_catalog", "--json").stdout)
    assert set(done["rows"]) == {"landed_events", "dead_letters", "landing_files", "product_catalog"}
    assert done["summary"] == ["landing: no new file"]
    unknown = run("run", "--select", "landed_events,landed_evnets")
    assert "there is no asset landed_evnets" in str(unknown.exception)
    above = json.loads(run("run", "--select", "journey_graph", "--json").stdout)
    assert "landed_events" in above["summary"][-1]
    assert above["summary"][-1].startswith("not run, though what was selected is made of them: ")
