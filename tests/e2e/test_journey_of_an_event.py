"""One event, from the file that a producer delivers to the recommendation that it causes, by the users' commands."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from c360_pipeline import cli
from c360_pipeline.reads.recommend import RecommendationRequest, Recommender
from c360_pipeline.stores.neo4j.graph import Graph


def c360(*arguments: str) -> str:
    """Run the command line; returns what it printed."""
    run = CliRunner().invoke(cli.app, arguments)
    assert run.exit_code == 0, run.output
    return run.stdout


def event(event_id: str, user: str, action: str, item: str, **attrs: str) -> dict[str, Any]:
    return {
        "tenantId": "acme", "userId": user, "sessionId": f"s-{user}", "ts": "2025-11-02T10:00:00Z", "action": action,
        "itemId": item, "eventId": event_id, "attrs": attrs,
    }  # fmt: skip


def write(path: Path, *events: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(e) + "\n" for e in events))
    return str(path)


def recommended(graph: Graph, user: str) -> dict[str, str]:
    return {r.product_id: r.reason for r in Recommender(graph, "acme").recommend(RecommendationRequest(user, 10))}


@pytest.mark.soak
def test_one_event_becomes_a_recommendation(graph: Graph, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.csv"
    catalog.write_text(
        "tenant_id,id,name,category,price\nacme,lamp,Reading lamp,lighting,39.9\nacme,bulb,Warm bulb,lighting,4.5\n"
    )
    others = [event("b1", "bea", "purchase", "lamp"), event("b2", "bea", "purchase", "bulb")]
    c360("land", str(catalog), write(tmp_path / "others.jsonl", *others))
    c360("run")
    assert set(recommended(graph, "ann").values()) == {"trending: 1 person viewed or bought this in 30 days"}

    # Ann looks at the lamp before she logs in: only the cookie tells that it is her.
    before = event("a1", "anon-7", "view", "lamp", cookieId="c-7")
    login = event("a2", "ann", "purchase", "lamp", cookieId="c-7")
    c360("land", write(tmp_path / "one.jsonl", before, login))
    outcome = json.loads(c360("run", "--json"))
    assert outcome["failed_checks"] == []

    journey = json.loads(c360("journey", "show", "a1", "--json"))
    assert [(e["event_id"], e["user_id"]) for e in journey] == [("a1", "anon-7"), ("a2", "ann")]
    assert all("cookie" in e["key_types"] for e in journey)
    reason = recommended(graph, "ann")["bulb"]
    assert reason == "1 customer who bought “Reading lamp” also bought this"
    assert json.loads(c360("reconcile", "--json"))["found"]["findings"] == []

    # Why, and what if not.
    chain = json.loads(c360("journey", "explain", "a1", "a2", "--json"))["chain"]
    assert [node.get("event_id") or node["key_type"] for node in chain] == ["a1", "cookie", "a2"]
    together = datetime.now(UTC).isoformat()
    unmerged = json.loads(c360("journey", "unmerge", "cookie=c-7", "--json"))
    assert [split["event_count"] for split in unmerged["splits"]] == [1]
    assert [e["event_id"] for e in json.loads(c360("journey", "show", "a1", "--json"))] == ["a1"]
    past = json.loads(c360("journey", "show", "a1", "--as-of", together, "--json"))
    assert [e["event_id"] for e in past] == ["a1", "a2"]
    assert {e["journey_id"] for e in past} == {journey[0]["journey_id"]}
    assert json.loads(c360("run", "--json"))["failed_checks"] == []
    (plan,) = json.loads(c360("journey", "rebase", "--plan", "--json"))
    assert (plan["merges"], plan["splits"], plan["moved"]) == ([], [], 0)
    c360("journey", "unmerge", "cookie:" + chain[1]["key"].partition(":")[2], "--undo")
    assert len(json.loads(c360("journey", "show", "a2", "--json"))) == 2
    assert json.loads(c360("journey", "conflicts", "--json")) == []
    assert json.loads(c360("reconcile", "--json"))["found"]["findings"] == []
