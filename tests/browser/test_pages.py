"""The pages as a support agent sees them: the customer, why it is one, what was delivered, what is proved."""

import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from dagster_processes import wait_until
from pictures import Picture
from playwright.sync_api import Browser, BrowserContext, Page, expect

from c360_pipeline.connections import open_control
from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.devstack import silo_samples
from c360_pipeline.devstack.event_samples import SampleRequest, write_sample
from c360_pipeline.devstack.people import SILO_TENANT
from c360_pipeline.devstack.service import free_port
from c360_pipeline.queries import find_query
from c360_pipeline.runs import EVERYTHING, materialise
from c360_pipeline.serving.app import create_app
from c360_pipeline.serving.backend import Backend
from c360_pipeline.settings import Settings, c360_home, postgres_login
from c360_pipeline.stages.projection.audiences import bring_up_audiences
from c360_pipeline.stages.visitors.counted import PROJECTED, EventsAt
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.s3.landing import Landing, folder_for

JOHN = "john.smith@email.com"
SAMPLE = SampleRequest(events=4_000, tenants=2, seed=1, malformed_rate=0.01, duplicate_rate=0.02)
SEGMENT = Path(__file__).parents[1] / "fixtures" / "sources" / "segment.jsonl"
HOSTILE = "<img src=x onerror=alert(1)>'\"; DROP TABLE accounts; --"


@pytest.fixture
def sample(settings: Settings, landing: Landing, lake: Lake, graph: Graph, tmp_path: Path) -> Settings:
    """The sample's silos and events, brought all the way."""
    control = open_control(settings)
    silo_samples.seed(postgres_login(settings, settings.etl_db_name), control, "sample", lambda _: None)
    written = write_sample(SAMPLE, tmp_path, lambda _: None)
    for path in (*written.event_files, written.catalog_file):
        landing.put_file(path, folder_for(path, datetime.now(UTC).date()))
    control.sources.add("shop", f"s3://{settings.bucket}/shop/*", "lines", None, None)
    document = {"extends": "segment@1", "tenant": {"const": SILO_TENANT}}
    control.sources.apply("shop", control.sources.add_mapping("shop", document, ""))
    landing.put_file(SEGMENT, "shop/")
    outcome = materialise(c360_home(), EVERYTHING, None, lambda _: None)
    assert (outcome.error, outcome.failed_checks) == (None, [])
    return settings


@pytest.fixture
def address(sample: Settings, graph: Graph, lake: Lake, landing: Landing) -> Iterator[tuple[str, Backend]]:
    """A server on loopback."""
    backend, port = Backend(graph, lake, landing, open_control(sample)), free_port(0)
    server = uvicorn.Server(uvicorn.Config(create_app(backend), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, seconds=30)
    yield f"http://127.0.0.1:{port}", backend
    server.should_exit = True
    thread.join(30)


def log_in(page: Page, at: str, key: str) -> None:
    page.goto(f"{at}/app")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{at}/app/overview")


def facts(page: Page) -> dict[str, str]:
    names, values = page.locator(".facts dt").all_inner_texts(), page.locator(".facts dd").all_inner_texts()
    return dict(zip(names, values, strict=True))


def accessible(page: Page) -> list[Any]:
    """What WCAG 2.2 AA would have otherwise."""
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    found = Axe().run(page, options=rules).response["violations"]
    return [(v["id"], [n["target"] for n in v["nodes"]]) for v in found]


def test_a_support_agent_finds_everything_about_a_customer(
    address: tuple[str, Backend], page: Page, picture: Picture, chromium: Browser, graph: Graph, lake: Lake
) -> None:
    at, backend = address
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    key, _ = backend.keys.add(SILO_TENANT, "read", "support")
    page.goto(f"{at}/app/customers/{JOHN}")
    page.wait_for_url(f"{at}/app/login")
    log_in(page, at, key)
    see_what_there_is(page, lake, picture)
    page.get_by_role("link", name="Customers", exact=True).click()
    page.get_by_label("User id").fill("john")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name=JOHN).click()
    expect(page.get_by_role("heading", level=1, name=JOHN)).to_be_visible()
    see_what_query_eight_says(page, backend)
    expect(page.locator("#neighbourhood[data-drawn=yes]")).to_be_visible()
    picture(page, "page-customer")
    shown = page.locator(".timeline > li").count()
    page.get_by_role("button", name="Earlier").click()
    expect(page.locator(".timeline > li")).not_to_have_count(shown)
    assert page.get_by_role("button", name="Never link").count() == 0
    see_the_other_pages(page, at, picture, lake)
    see_hostile_values_as_text(page, at, graph)
    make_an_audience(chromium, at, backend, graph, picture)
    assert said == []
    narrow_dark_and_by_keyboard(chromium, at, key, picture)
    undo_as_an_admin(chromium, at, backend)


def see_what_there_is(page: Page, lake: Lake, picture: Picture) -> None:
    mine = lake.read(EVENTS).filter(pl.col("tenant_id") == SILO_TENANT)
    told = facts(page)
    assert told["Events"].split()[0] == f"{mine.height:,}"
    assert told["Graph equals archive"].lower().startswith("proved")
    page.get_by_text("The numbers").click()
    days = [int(n.replace(",", "")) for n in page.locator("details td.number").all_inner_texts()]
    newest = mine["event_date"].max()
    assert isinstance(newest, date)
    assert sum(days) == mine.filter(pl.col("event_date") > newest - timedelta(days=30)).height
    assert page.get_by_role("link", name="rejected lines wait").count() == 1
    assert accessible(page) == []
    picture(page, "page-overview")


def make_an_audience(chromium: Browser, at: str, backend: Backend, graph: Graph, picture: Picture) -> None:
    """A marketer makes an audience of buyers who went quiet, and sees who is in it; what is hostile stays text."""
    key, _ = backend.keys.add(SILO_TENANT, "admin", "marketing")
    context = chromium.new_context()
    page = context.new_page()
    log_in(page, at, key)
    page.get_by_role("navigation").get_by_role("link", name="Audiences").click()
    page.get_by_role("link", name="New audience").click()
    size = page.locator("#size")
    expect(size.locator("strong")).to_be_visible()  # counted before anything is typed
    page.get_by_label("Name: lower-case").fill("gone-quiet")
    page.get_by_label("Title").fill(HOSTILE)
    first = page.locator(".condition").first
    first.get_by_label("in the last").fill("")
    page.get_by_role("button", name="Add a condition").click()
    second = page.locator(".condition").nth(1)
    second.get_by_label("Whether the condition holds").select_option("who not")
    second.get_by_label("Name of the action").fill("*")
    second.get_by_label("in the last").fill("30")
    at_now = EventsAt.now(backend.lake)
    mine = at_now.counted(at_now.scan(PROJECTED)).filter(pl.col("tenant_id") == SILO_TENANT).collect()
    recent = mine.filter(pl.col("ts").dt.date() > datetime.now(UTC).date() - timedelta(days=30))
    bought = {*mine.filter(pl.col("action") == "purchase")["customer_id"].drop_nulls()}
    buyers = len(bought - {*recent["customer_id"]})
    assert buyers > 10
    expect(size.locator("strong")).to_have_text(f"{buyers:,}")
    assert accessible(page) == []
    picture(page, "page-audience-form")
    page.get_by_role("button", name="Make the audience").click()
    page.wait_for_url(f"{at}/app/audiences/gone-quiet")
    bring_up_audiences(backend.lake, backend.control, graph, datetime.now(UTC))
    page.reload()
    assert facts(page)["Members"] == f"{buyers:,}"
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    assert page.locator("img").count() == 0
    assert accessible(page) == []
    picture(page, "page-audience")
    page.goto(f"{at}/app/audiences/gone-quiet/edit")
    expect(page.locator(".condition")).to_have_count(2)
    expect(size.get_by_text("0 would enter, 0 would leave")).to_be_visible()
    page.get_by_text("As a document").click()
    page.get_by_label("Everything that a condition").fill('{"audience": "gone-quiet", "who": {"did": 3}}')
    expect(size.get_by_role("alert")).to_contain_text("who.did: input should be a valid string")
    context.close()


def see_what_query_eight_says(page: Page, backend: Backend) -> None:
    values = find_query("customer_story").values({"email": JOHN}, datetime.now(UTC))
    (story,) = backend.graph.query(find_query("customer_story").statement, tenant_id=SILO_TENANT, **values)
    told = facts(page)
    assert told["Plan"].startswith(story["plan"])
    assert story["status"] in told["Plan"]
    assert told["Payment"] == ", ".join(story["payment"])
    assert told["Use"] == f"{story['streams']} streams of {story['titles']} titles"
    assert told["Tickets"].split()[0] == str(story["tickets"])
    assert all(topic in told["Tickets"] for topic in story["ticket_topics"])
    assert page.locator(".recommended li").count() == 6
    assert accessible(page) == []


def see_the_other_pages(page: Page, at: str, picture: Picture, lake: Lake) -> None:
    events = lake.read(EVENTS)
    cookie = events.filter(events["user_id"] == JOHN)["event_id"]
    page.goto(f"{at}/app/explore?first={cookie[0]}&second={cookie[-1]}")
    expect(page.locator(".chain .key").first).to_contain_text("both have the same")
    assert accessible(page) == []
    picture(page, "page-why-together")
    for path, name, text in (
        ("delivery", "page-delivery", "11 landed + 1 duplicates"),
        ("reconciliation", "page-reconciliation", "Compared"),
        ("queries", "page-queries", "Who buys most?"), ("queries/customer_value", "page-query", "Cypher"),
    ):  # fmt: skip
        page.goto(f"{at}/app/{path}")
        expect(page.get_by_text(text).first).to_be_visible()
        assert accessible(page) == [], path
        assert "differs" not in page.locator("td").all_inner_texts()
        picture(page, name)


def see_hostile_values_as_text(page: Page, at: str, graph: Graph) -> None:
    graph.run("MATCH (a:Account {email: $email}) SET a.full_name = $text", email=JOHN, text=HOSTILE)
    graph.run("MATCH (:User {id: $id})-[:PURCHASED]->(p:Product) SET p.name = $text", id=JOHN, text=HOSTILE)
    page.goto(f"{at}/app/customers?q=john")
    expect(page.get_by_role("cell", name=HOSTILE)).to_be_visible()
    page.goto(f"{at}/app/customers/{JOHN}")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    expect(page.get_by_text(HOSTILE).first).to_be_visible()
    assert page.locator("img").count() == 0
    page.goto(f"{at}/app/customers?q=%3Cscript%3Ealert(1)%3C/script%3E")
    expect(page.get_by_label("User id")).to_have_value("<script>alert(1)</script>")


def narrow_dark_and_by_keyboard(chromium: Browser, at: str, key: str, picture: Picture) -> None:
    context: BrowserContext = chromium.new_context(viewport={"width": 380, "height": 800}, color_scheme="dark")
    page = context.new_page()
    log_in(page, at, key)
    for path in (
        f"customers/{JOHN}", "explore", "delivery", "reconciliation", "queries", "queries/power_users", "overview",
        "audiences", "audiences/gone-quiet", "audiences/gone-quiet/edit",
    ):  # fmt: skip
        page.goto(f"{at}/app/{path}")
        assert page.evaluate("document.documentElement.scrollWidth") == 380, path
        assert accessible(page) == [], path
    page.goto(f"{at}/app/customers/{JOHN}")
    expect(page.locator("#neighbourhood[data-drawn=yes]")).to_be_visible()
    picture(page, "page-customer-narrow")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    reached = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim()"))
    assert {"Customers", "Deliveries", "Log out", "Earlier"} <= reached
    page.goto(f"{at}/app/customers/nobody")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"{at}/app/login")
    context.close()


def undo_as_an_admin(chromium: Browser, at: str, backend: Backend) -> None:
    key, _ = backend.keys.add(SILO_TENANT, "admin")
    context = chromium.new_context()
    page = context.new_page()
    log_in(page, at, key)
    page.goto(f"{at}/app/customers/{JOHN}")
    page.on("dialog", lambda dialog: dialog.accept())
    before = page.locator("section[aria-labelledby=together] tbody tr").count()
    page.get_by_role("button", name="Undo what cookie").first.click()
    expect(page.locator("section[aria-labelledby=together] tbody tr")).not_to_have_count(before, timeout=60_000)
    assert backend.control.key_rules.policy().blocked
    context.close()
