"""The command line: exit codes, one JSON document, one clear line of error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner, Result

from c360_pipeline import cli
from c360_pipeline.settings import Settings, postgres_login
from c360_pipeline.stores.landing import Landing

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
    ],
)
def test_bad_input_is_2_with_one_clear_line(settings: Settings, arguments: list[str], says: str) -> None:
    result = in_a_process(*arguments)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


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


def test_the_demo_refuses_servers_of_others(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("NEO4J_URI=bolt://production\nNEO4J_PASSWORD=x\n")
    command = [sys.executable, "-m", "c360_pipeline.cli", "demo"]
    environment = {**os.environ, "C360_HOME": str(tmp_path / "home")}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 2
    assert "NEO4J_PASSWORD, NEO4J_URI name other servers" in result.stderr


def test_seed_twice_is_seed_once_and_leaves_strangers_alone(settings: Settings) -> None:
    assert run("seed").exit_code == 0
    assert run("seed").exit_code == 0
    with psycopg.connect(**postgres_login(settings, "profiles_db")) as silo:
        assert silo.execute("SELECT count(*) FROM accounts").fetchone() == (240,)
        assert silo.execute("SELECT count(*) FROM accounts WHERE email = 'john.smith@email.com'").fetchone() == (1,)
        silo.execute("COMMENT ON DATABASE profiles_db IS 'the real one'")
    refused = in_a_process("seed")
    assert refused.returncode == 2
    assert "profiles_db exists and is not a sample" in refused.stderr
    with psycopg.connect(**postgres_login(settings, "profiles_db")) as silo:
        silo.execute("COMMENT ON DATABASE profiles_db IS 'sample database of c360_pipeline'")
