"""The Dagster UI as an engineer on call uses it: materialise, look, see the checks, backfill."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dagster_processes import dagster_dev
from pictures import Picture
from playwright.sync_api import Page, expect

from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.devstack.service import free_port
from c360_pipeline.settings import Settings
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.s3.landing import EVENTS_PREFIX, Landing

TODAY = datetime.now(UTC)
DATES = [f"{TODAY - timedelta(days=back):%Y-%m-%d}" for back in range(4, -1, -1)]
A_RUN_MS = 180_000
EVENT = {"tenantId": "acme", "action": "view"}


@pytest.fixture
def files_of_five_days(landing: Landing, tmp_path: Path) -> None:
    """On each day 50 events, one line that is no event, and one that lacks its user."""
    for day in DATES:
        file = tmp_path / f"{day}.jsonl"
        events = ({**EVENT, "userId": f"u{n}", "sessionId": f"s{n}", "ts": f"{day}T00:00:{n:02}Z"} for n in range(50))
        bad = ['{"tenantId": "acme", "ts"', '{"tenantId": "acme", "sessionId": "s", "ts": 1, "action": "view"}']
        file.write_text("\n".join([*map(json.dumps, events), *bad, ""]))
        landing.put_file(file, f"{EVENTS_PREFIX}date={day}/")


@pytest.fixture
def ui(settings: Settings, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a UI with a daemon, runs of its own, and nothing that starts by itself."""
    monkeypatch.setenv("C360_DAGSTER_DB", f"dagster_{settings.bucket.removeprefix('test-')}")
    monkeypatch.setenv("C360_AUTOMATION", "off")
    port = free_port(0)
    with dagster_dev(port):
        yield f"http://127.0.0.1:{port}"


def test_an_engineer_materialises_backfills_and_sees_what_became_of_it(
    ui: str, files_of_five_days: None, page: Page, picture: Picture, lake: Lake
) -> None:
    materialise_an_asset(page, ui, picture)
    backfill_five_days(page, ui, picture)
    assert lake.count(EVENTS) == 250
    page.goto(f"{ui}/assets/landed_events?view=checks&checkDetail=archive_holds_what_the_accounting_says")
    expect(page.get_by_text("Passed", exact=True)).to_be_visible()
    expect(page.get_by_text("blocking")).to_be_visible()
    picture(page, "dagster-checks")
    page.goto(f"{ui}/assets/dead_letters?view=partitions&partition={DATES[-1]}")
    expect(page.get_by_text("by_reason")).to_be_visible()
    for reason in ("invalid_json", "missing_field"):
        expect(page.get_by_role("cell", name=reason).last).to_be_visible()
    picture(page, "dagster-dead-letters-of-a-day")
    page.goto(f"{ui}/asset-groups/")
    expect(page.get_by_text("stitching").filter(visible=True).first).to_be_visible()
    picture(page, "dagster-lineage")


def materialise_an_asset(page: Page, ui: str, picture: Picture) -> None:
    """From the button to the green run."""
    page.goto(f"{ui}/assets/graph_schema")
    page.get_by_role("button").filter(has_text="Materialize").first.click()
    expect(page.get_by_text(re.compile("Launch(ed|ing) run")).first).to_be_visible()
    page.goto(f"{ui}/runs")
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=A_RUN_MS)
    page.get_by_role("link", name="View", exact=True).first.click()
    expect(page.get_by_text("STEP_SUCCESS").first).to_be_visible()
    picture(page, "dagster-run")
    page.goto(f"{ui}/assets/graph_schema")
    expect(page.get_by_text("Row count")).to_be_visible()
    picture(page, "dagster-asset")


def backfill_five_days(page: Page, ui: str, picture: Picture) -> None:
    """From the range of dates to the backfill that is done."""
    page.goto(f"{ui}/assets/landed_events?view=partitions")
    page.get_by_role("button", name="Materialize…").click()
    page.get_by_role("button", name="Confirm").click()
    dialog = page.get_by_role("dialog")
    chosen = dialog.get_by_role("textbox").first
    chosen.fill(f"[{DATES[0]}...{DATES[-1]}]")
    chosen.press("Enter")
    expect(dialog.get_by_text("5 partitions")).to_be_visible()
    picture(page, "dagster-backfill-launch")
    dialog.get_by_role("button", name="Launch backfill").click()
    page.goto(f"{ui}/runs?view=backfills")
    expect(page.get_by_text(re.compile("Completed|Success")).first).to_be_visible(timeout=A_RUN_MS)
    picture(page, "dagster-backfill")
