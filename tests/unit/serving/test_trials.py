"""Audiences that are tried while somebody writes them: by events that are at hand, for several tenants at once."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from dagster_processes import wait_until

from c360_pipeline.core.audiences.definition import read_audience
from c360_pipeline.core.catalog.tables import EVENTS, VISITOR_DECISIONS
from c360_pipeline.stages.audiences import trials
from c360_pipeline.stages.audiences.trials import Trials
from c360_pipeline.stores.delta.lake import Lake

NOON = datetime(2026, 3, 20, 12, tzinfo=UTC)
TENANTS = ("a", "b", "c")


def events(tenant: str, users: int, action: str = "view") -> pl.DataFrame:
    rows = [
        {"tenant_id": tenant, "event_id": f"{action}-{n}", "user_id": f"u{n}", "ts": NOON - timedelta(hours=1),
         "action": action, "traits": {"plan": "gold"}, "consent": {"ads": "granted"}, "event_date": NOON.date()}
        for n in range(users)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=EVENTS.empty().schema)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(f"{tmp_path}/lake", {}, tmp_path / "cache")
    made.commits.append(VISITOR_DECISIONS, VISITOR_DECISIONS.empty())
    made.commits.append(EVENTS, pl.concat([events(tenant, 2 + n) for n, tenant in enumerate(TENANTS)]))
    return made


def nothing(*_: Any, **__: Any) -> list[dict[str, Any]]:
    return []


def size(tried: Trials, tenant: str, action: str = "view") -> tuple[int, int]:
    found = tried.tried([read_audience({"audience": "x", "tenant": tenant, "who": {"did": action}})], [], NOON)
    return found.sizes("x")["members"], found.customers


def test_newer_events_count_after_half_a_minute_and_nothing_stays_on_disk(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = Trials(lake, nothing)
    assert size(tried, "a") == (2, 2)
    assert tried.offered("a") == trials.Offered(["view"], ["plan"], ["ads"])
    lake.commits.insert_new(EVENTS, events("a", 5, "cart"))
    assert size(tried, "a", "cart") == (0, 2)
    monkeypatch.setattr(trials, "FRESH_SECONDS", 0.0)
    assert size(tried, "a", "cart") == (5, 5)
    assert tried.offered("a").actions == ["cart", "view"]
    tried.close()
    assert not [*(tmp_path / "cache").glob("c360-scratch-*")]


def test_what_was_cleared_is_made_again_and_what_nobody_asks_for_goes(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "IDLE_SECONDS", 0.2)
    tried = Trials(lake, nothing)
    assert size(tried, "a") == (2, 2)
    for folder in (tmp_path / "cache").glob("c360-scratch-*/"):
        shutil.rmtree(folder)  # as an erasure does
    assert size(tried, "a") == (2, 2)
    wait_until(lambda: not [*(tmp_path / "cache").glob("c360-scratch-*/")], seconds=10)
    assert size(tried, "a") == (2, 2)
    tried.close()


def test_several_tenants_at_once_with_room_for_one(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "KEPT_TENANTS", 1)
    tried = Trials(lake, nothing)
    with ThreadPoolExecutor(6) as pool:
        asked = [TENANTS[n % 3] for n in range(30)]
        found = list(pool.map(lambda tenant: size(tried, tenant), asked))
    assert found == [(2 + TENANTS.index(tenant),) * 2 for tenant in asked]
    tried.close()
