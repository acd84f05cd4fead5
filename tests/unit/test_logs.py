"""What the project logs."""

import json
from collections.abc import Iterator

import pytest
import structlog

from c360_pipeline.logs import configure_logging
from c360_pipeline.stores.neo4j import graph_statistics
from c360_pipeline.stores.neo4j.graph_statistics import GraphStatistics


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
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
