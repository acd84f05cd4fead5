"""A field that is added to the declaration of an event is in every output and store, without another line of code."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from c360_pipeline.core.contract.events import canonical_hash
from c360_pipeline.settings import Settings
from c360_pipeline.stores.neo4j.graph import Graph


@pytest.fixture
def found(settings: Settings, graph: Graph) -> dict[str, Any]:
    """What a process says that knows two more fields."""
    worker = Path(__file__).with_name("new_field_worker.py")
    done = subprocess.run([sys.executable, str(worker)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_a_new_field_is_in_every_output_and_store(found: dict[str, Any]) -> None:
    assert {"channel", "contactPhone"} <= set(found["schema"])
    assert found["archive"] == [["kiosk", "+43 660 1234567"], [None, None]]
    assert found["scanned as parsed"]
    assert found["changed id"]
    assert found["unlanded in the graph"] == [{"channel": "kiosk"}]
    assert found["in the graph"] == [{"channel": "kiosk"}]
    assert found["reconciled"] == []
    assert found["damage"] == ["channel: archive kiosk, graph web"]
    assert found["replayed"] == ["None", "kiosk"]
    assert found["codec"]
    assert {"channel", "contact_phone"} <= set(found["compared"])
    assert found["cassandra"] in (["kiosk", True], None)
    assert found["event"][-3:] == ["channel", "contact_phone", "content_hash"]
    # A personal field is searched for by an erasure, wherever its value stands.
    assert found["erasure searches"]
    assert found["hits"]["lake"] > 0
    assert found["hits"]["landing area"] > 0
    # Events that do not have the new fields are the events that they were.
    values = {"tenant_id": "acme", "user_id": "u2", "session_id": "s2", "ts": datetime(2025, 11, 3, 10, tzinfo=UTC),
              "action": "view", "item_id": "p1", "attrs": {"a": "b"}}  # fmt: skip
    assert found["id of a line without them"] == canonical_hash(values)
