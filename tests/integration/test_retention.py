"""What is older than its rule leaves the archive, and accounts, journeys and graph are right without it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from repetition import representatives

from c360_pipeline.connections import open_bucket
from c360_pipeline.core.catalog.tables import DEAD_LETTERS, EVENT_JOURNEY, EVENTS, JOURNEY_LOG, LANDING_FILES
from c360_pipeline.core.landing.accounting import misaccounted, unbalanced
from c360_pipeline.settings import Settings
from c360_pipeline.stages.landing.ingest import Ingest
from c360_pipeline.stages.privacy import retention
from c360_pipeline.stages.privacy.retention import find_expired, retain
from c360_pipeline.stages.projection.everything import project_all, stitch_all
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import summarise
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.bucket import Bucket
from c360_pipeline.stores.s3.landing import Landing

NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)


def line(number: int, action: str, days: float, tenant: str = "acme") -> str:
    at = NOW - timedelta(days=days)
    return json.dumps({"tenantId": tenant, "userId": f"u{number % 3}", "sessionId": f"s{number}", "ts": at.isoformat(),
                       "action": action, "itemId": "p1", "eventId": f"{tenant}-e{number}"})  # fmt: skip


LINES = [
    line(1, "view", 366), line(2, "view", 364), line(3, "purchase", 700), line(4, "view", 365.5),
    line(4, "view", 365.5), line(5, "view", 800, "globex"), "broken",
]  # fmt: skip


@pytest.fixture
def bucket(settings: Settings, landing: Landing) -> Bucket:
    return open_bucket(settings)


@pytest.fixture
def landed(lake: Lake, landing: Landing, control: ControlDb, graph: Graph, tmp_path: Path) -> Lake:
    (tmp_path / "old.jsonl").write_text("\n".join(LINES) + "\n")
    landing.put_file(tmp_path / "old.jsonl", "landing/events/date=2026-01-10/")
    Ingest(landing, lake, control.privacy.suppressed_users()).land(landing.event_files(), lambda _: None)
    stitch_all(lake, control.key_rules.policy())
    project_all(lake, control.read(), graph)
    return lake


def check(lake: Lake, control: ControlDb, graph: Graph, left: set[str]) -> None:
    """Archive, accounts, journeys and graph agree on what is left."""
    assert set(lake.read(EVENTS)["event_id"]) == set(lake.read(EVENT_JOURNEY)["event_id"]) == left
    assert summarise(reconcile(Archive(lake, control.read()), graph))["findings"] == []
    assert set(lake.read(JOURNEY_LOG)["event_id"].drop_nulls()) <= left
    accounts = lake.read(LANDING_FILES)
    assert unbalanced(accounts).is_empty()
    assert misaccounted(accounts, lake.count_by(EVENTS, "source_uri").rename({"len": "archived"})).is_empty()


def test_views_expire_after_a_year_and_nothing_else(
    landed: Lake, control: ControlDb, graph: Graph, bucket: Bucket
) -> None:
    assert find_expired(landed, control.privacy.retention_rules(), NOW).events.rows() == [
        ("acme", "view", 2), ("globex", "view", 1),
    ]  # fmt: skip
    retain(landed, bucket, control, graph, NOW)
    check(landed, control, graph, {"acme-e2", "acme-e3"})
    (account,) = landed.read(LANDING_FILES).select("lines", "landed", "duplicates", "dead", "suppressed").rows()
    assert account == (7, 2, 1, 1, 3)
    before = landed.versions.version(EVENTS.name)
    assert retain(landed, bucket, control, graph, NOW).events.is_empty()
    assert landed.versions.version(EVENTS.name) == before


@pytest.mark.parametrize("step", representatives(["remove_events", "project_all", "Journeys"], "project_all"))
def test_a_retention_that_was_broken_off_goes_on(
    landed: Lake, control: ControlDb, graph: Graph, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(retention, step, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retain(landed, bucket, control, graph, NOW)
    retain(landed, bucket, control, graph, NOW)
    check(landed, control, graph, {"acme-e2", "acme-e3"})


def test_a_tenants_own_rule_and_dead_letters(
    landed: Lake, landing: Landing, control: ControlDb, graph: Graph, bucket: Bucket
) -> None:
    control.execute(
        "INSERT INTO retention_rules (tenant_id, label, action, days) VALUES "
        "('globex', 'Action', 'view', 1000), ('acme', 'Action', '*', 400), ('*', 'DeadLetter', '*', 30)"
    )
    in_two_months = datetime.now(UTC) + timedelta(days=60)
    control.execute(
        "UPDATE retention_rules SET tenant_id = '*', action = 'nothing' WHERE action = 'view' AND days = 365"
    )
    assert find_expired(landed, control.privacy.retention_rules(), NOW).events.rows() == [("acme", "purchase", 1)]
    done = retain(landed, bucket, control, graph, in_two_months)
    assert done.letters.rows() == [("invalid_json", 1)]
    letter = landed.read(DEAD_LETTERS).row(0, named=True)
    assert (letter["raw"], letter["status"], letter["resolution"]) == (None, "discarded", "expired")
    assert bucket.is_empty("dead-letters/")
    assert retain(landed, bucket, control, graph, in_two_months).letters.is_empty()
