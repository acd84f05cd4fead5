"""What the project logs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from c360_pipeline.cli import app
from c360_pipeline.logs import configure_logging, slow_statements_told
from c360_pipeline.stores.neo4j import graph_statistics
from c360_pipeline.stores.neo4j.graph_statistics import GraphStatistics


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = structlog.get_config() if structlog.is_configured() else None
    yield
    if before is None:
        structlog.reset_defaults()
    else:
        structlog.configure(**before)


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logging(as_json=True)
    monkeypatch.setattr(graph_statistics, "SLOW_SECONDS", 0.0)
    with GraphStatistics(1).measured("MATCH (n)\n RETURN n", lambda: 1):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["event"], said["level"], said["statement"]) == ("slow_statement", "warning", "MATCH (n) RETURN n")
    assert said["timestamp"].endswith("Z")


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(as_json=False)
    structlog.get_logger().warning("notice", subject="it failed")
    assert "subject='it failed'" in capsys.readouterr().err


def test_slow_statements_go_to_a_file_and_a_count_to_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "logs" / "slow-statements.log"
    configure_logging(as_json=False, slow_statements=file)
    assert slow_statements_told() is None
    monkeypatch.setattr(graph_statistics, "SLOW_SECONDS", 0.0)
    for _ in range(2):
        with GraphStatistics(1).measured("MATCH (n) RETURN n", lambda: 1):
            pass
    structlog.get_logger().warning("notice")
    said = capsys.readouterr().err
    assert "notice" in said
    assert "MATCH" not in said
    assert [json.loads(line)["statement"] for line in file.read_text().splitlines()] == ["MATCH (n) RETURN n"] * 2
    assert slow_statements_told() == f"2 statements took more than a second: see {file}."


def test_what_a_command_logs_is_never_in_its_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    structlog.reset_defaults()
    monkeypatch.setenv("C360_HOME", str(tmp_path))
    assert CliRunner().invoke(app, ["status", "--json"]).exit_code == 3, "nothing runs there"
    structlog.get_logger().warning("notice")
    said = capsys.readouterr()
    assert ("notice" in said.out, "notice" in said.err) == (False, True)


def test_definitions_leave_what_a_command_has_set_up(tmp_path: Path) -> None:
    said = (
        "from pathlib import Path; from c360_pipeline import logs; "
        f"logs.configure_logging(as_json=False, slow_statements=Path({str(tmp_path / 'slow.log')!r})); "
        "import c360_pipeline.definitions, structlog; "
        "structlog.get_logger().warning('slow_statement', statement='x'); print(logs.slow_statements_told())"
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 statements took more than a second")
    assert "slow_statement" not in done.stderr
