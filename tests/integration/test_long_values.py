"""Names and values of 1,000 characters that mean harm: whole in every store and on pages, or refused whole."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from c360_pipeline.connections import open_control
from c360_pipeline.core.catalog.tables import DEAD_LETTERS, EVENTS
from c360_pipeline.runs import EVERYTHING, materialise
from c360_pipeline.serving.app import create_app
from c360_pipeline.serving.backend import Backend
from c360_pipeline.settings import Settings, c360_home
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.s3.landing import EVENTS_PREFIX, Landing

KINDS = (
    "'",
    "`",
    '"',
    "\\",
    "\u202e",
    "🙂",
    "é",
    "漢",
    "\t",
    "\n",
    "\x07",
    "$x",
    "{a}",
    "=1+1;",
    "</script>",
    "%s",
    "/..",
    "a ",
)
TENANTS = ("t'`\"🙂", "\u202e..", "$^$_{", "_x", "a\nb")
LENGTH = 1_000


def long(kind: str, number: int) -> str:
    return f"{number}{kind * LENGTH}"[: LENGTH - 1] + "."


@pytest.fixture
def sent(settings: Settings, landing: Landing, graph: Graph, tmp_path: Path) -> list[str]:
    """An event for each kind, with a text of its own in every field, brought all the way."""
    texts = [long(kind, number) for number, kind in enumerate(KINDS)]
    file = tmp_path / "a.jsonl"
    lines = [
        {
            "tenantId": "acme", "userId": text, "anonymousId": f"a{text}"[:LENGTH], "sessionId": f"s{text}"[:LENGTH],
            "ts": "2025-11-02T10:00:00Z", "action": "purchase", "itemId": text, "eventId": text, "attrs": {text: text},
        }
        for text in texts
    ]  # fmt: skip
    hostile_tenants = [{**lines[0], "tenantId": tenant} for tenant in (*TENANTS, texts[0], "x" * 201)]
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *hostile_tenants]))
    landing.put_file(file, f"{EVENTS_PREFIX}date=2025-11-02/")
    outcome = materialise(c360_home(), EVERYTHING, None, lambda _: None)
    assert (outcome.error, outcome.failed_checks) == (None, [])
    return texts


@pytest.mark.soak
def test_they_are_whole_in_every_store_and_on_every_page(
    sent: list[str], settings: Settings, lake: Lake, graph: Graph, landing: Landing
) -> None:
    events = lake.read(EVENTS)
    ours = events.filter(events["tenant_id"] == "acme")
    assert set(ours["user_id"]) == set(ours["item_id"]) == set(ours["event_id"]) == set(sent)
    assert sorted(events["tenant_id"].unique()) == sorted(["acme", *TENANTS])
    letters = lake.read(DEAD_LETTERS)
    assert letters["error_class"].to_list() == ["too_large", "too_large"]  # a tenant is a folder, too
    users = graph.query(
        "MATCH (u:User {tenant_id: 'acme'})-[:PURCHASED]->(p:Product) RETURN u.id AS user, p.id AS item"
    )
    assert {(row["user"], row["item"]) for row in users} == {(text, text) for text in sent}

    backend = Backend(graph, lake, landing, open_control(settings))
    key, _ = backend.keys.add("acme", "admin")
    with TestClient(create_app(backend, rate="100000/second"), headers={"x-api-key": key}) as client:
        for text in sent:
            answer = client.get(f"/customers/{quote(text, safe='')}")
            assert answer.status_code == 200, (text[:20], answer.text[:300])
            assert {event["id"] for event in answer.json()["timeline"]} == {text}
            page = client.get("/app/explore", params={"first": text, "second": text})
            assert (page.status_code, "</script>.<" in page.text) == (200, False)
            body = {"tenant_id": "acme", "user_id": text}
            assert client.post("/recommend/products", json=body).status_code == 200
