"""The API over real stores: what it says is what the events say, and nobody sees another tenant."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest
from event_world import World
from fastapi.testclient import TestClient
from httpx2 import Response

from c360_pipeline.core import features
from c360_pipeline.core.lake import CATALOG, EVENTS, PRODUCT_SIMILARITIES, USER_COMMUNITIES
from c360_pipeline.serving.app import create_app
from c360_pipeline.serving.backend import Backend
from c360_pipeline.serving.models import MOST_EVENTS
from c360_pipeline.serving.security import MOST_BODY_BYTES
from c360_pipeline.stores.api_keys import ApiKeys
from c360_pipeline.stores.control import ControlDb
from c360_pipeline.stores.event_graph import EventGraph, ProductGraph
from c360_pipeline.stores.fresh_events import unlanded_events
from c360_pipeline.stores.graph import Graph
from c360_pipeline.stores.ingest import Ingest
from c360_pipeline.stores.lake import Lake
from c360_pipeline.stores.landing import Landing

HOSTILE = [
    "' OR 1=1 //", "}) DETACH DELETE n //", "<script>alert(1)</script>", "a\r\nSet-Cookie: x=y", "\x00", "..;/",
    "\U0001d4e4\u202e\u0301", "é" * 500, "'; DROP TABLE api_keys; --", "${jndi:ldap://x}", "{{7*7}}",
]  # fmt: skip


INTERACTION = {"tenant_id": "acme", "user_id": "u1", "product_id": "p1", "interaction_type": "VIEWED"}


@pytest.fixture
def shop(world: World) -> World:
    """The world with communities and similar products; users of a community have an even or an odd number."""
    users = world.lake.scan(EVENTS).select("tenant_id", "user_id").unique().collect()
    community = pl.col("user_id").str.slice(1).cast(pl.Int64) % 2
    rows = users.with_columns(community=community, community_size=pl.lit(30, pl.Int64))
    world.lake.replace(USER_COMMUNITIES, rows.select(list(USER_COMMUNITIES.columns)))
    # All that a user views is taken for one session: so few events make no pairs otherwise.
    views = world.lake.scan(EVENTS).filter(pl.col("action") == "view").with_columns(session_id="user_id")
    world.lake.replace(PRODUCT_SIMILARITIES, features.similar_by_sessions(views))
    world.project()
    return world


@pytest.fixture
def backend(graph: Graph, lake: Lake, landing: Landing, control: ControlDb, monkeypatch: pytest.MonkeyPatch) -> Backend:
    # What these tests look at is what the graph shows, on a machine however slow.
    monkeypatch.setattr("c360_pipeline.serving.backend.SHOW_SECONDS", 30.0)
    return Backend(graph, lake, landing, control)


@pytest.fixture
def make_client(backend: Backend) -> Iterator[Callable[..., TestClient]]:
    """Clients with a key of a role of a tenant."""
    with TestClient(create_app(backend, rate="100000/second"), raise_server_exceptions=False) as opened:

        def client(role: str = "admin", tenant: str = "acme") -> TestClient:
            key, _ = backend.keys.add(tenant, role)
            return TestClient(opened.app, headers={"authorization": f"Bearer {key}"}, raise_server_exceptions=False)

        yield client


@pytest.fixture
def acme(make_client: Callable[..., TestClient], shop: World) -> TestClient:
    return make_client()


def recommend(client: TestClient, user: str, top_k: int = 5, **context: Any) -> list[dict[str, Any]]:
    body = {"tenant_id": "acme", "user_id": user, "context": context, "top_k": top_k}
    answer = client.post("/recommend/products", json=body)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["recommendations"])


def by_hand(lake: Lake, user: str, top_k: int) -> list[dict[str, Any]]:
    """Recommendations from similar users, counted from the events one by one."""
    bought: dict[str, Counter[str]] = defaultdict(Counter)
    for row in lake.read(EVENTS).filter(pl.col("tenant_id") == "acme").to_dicts():
        if row["action"] == "purchase" and row["item_id"]:
            bought[row["user_id"]][row["item_id"]] += 1
    names = {r["id"]: (r["name"], r["category"]) for r in lake.read(CATALOG).to_dicts() if r["tenant_id"] == "acme"}
    mine = set(bought[user])
    evidence: dict[str, list[tuple[int, str]]] = defaultdict(list)
    strength: Counter[str] = Counter()
    because: dict[str, Counter[str]] = defaultdict(Counter)
    for other, theirs in bought.items():
        shared = mine & set(theirs)
        if other == user or not shared:
            continue
        for product in set(theirs) - mine:
            evidence[product].append((-len(shared), other))
            strength[product] += theirs[product] * len(shared)
            because[product].update(shared)
    ordered = sorted(evidence, key=lambda p: (-(10 * len(evidence[p]) + strength[p]), p))[:top_k]
    found = []
    for product in ordered:
        people = [other for _, other in sorted(evidence[product])]
        first = min(because[product], key=lambda p: (-because[product][p], p))
        more = len(because[product]) - 1
        others = f" or {more} other product{'s' if more > 1 else ''} of yours" if more else ""
        same = any(int(p[1:]) % 2 == int(user[1:]) % 2 for p in people)
        found.append({
            "product_id": product, "product_name": names.get(product, (None, None))[0],
            "category": names.get(product, (None, None))[1], "score": float(10 * len(people) + strength[product]),
            "reason": f"{len(people)} customer{'s' if len(people) > 1 else ''} who bought "
                      f"*{names.get(first, (first, None))[0]}*{others} also bought this"
                      f"{'; in your community' if same else ''}",
            "similar_users": people[:5],
        })  # fmt: skip
    return found


def test_recommendations_of_twenty_users_are_those_that_are_counted_by_hand(acme: TestClient, shop: World) -> None:
    counted = 0
    for number in range(20):
        told, hand = recommend(acme, f"u{number}", 7), by_hand(shop.lake, f"u{number}", 7)
        assert told[: len(hand)] == hand
        assert all(r["score"] < 10 for r in told[len(hand) :])
        counted += len(hand)
    assert counted > 100


def test_a_category_and_what_is_excluded_are_kept_to(acme: TestClient) -> None:
    everything = recommend(acme, "u1", 20)
    chosen = [r for r in everything if r["category"] == "c1"]
    assert recommend(acme, "u1", len(chosen), category="c1") == chosen
    excluded = [r["product_id"] for r in everything[:3]]
    assert not {r["product_id"] for r in recommend(acme, "u1", 20, exclude=excluded)} & set(excluded)


def test_who_bought_nothing_gets_what_was_viewed_together_then_the_community_then_trends(
    acme: TestClient, graph: Graph, shop: World
) -> None:
    views = "MATCH (u:User {tenant_id: 'acme'})-[:VIEWED]->()-[:ALSO_VIEWED]->(p)"
    user = graph.run(f"{views} RETURN u.id AS id, count(DISTINCT p) AS n ORDER BY n DESC LIMIT 1")[0]["id"]
    graph.run("MATCH (:User {tenant_id: 'acme', id: $id})-[r:PURCHASED]->() DELETE r", id=user)
    reasons = [r["reason"] for r in recommend(acme, user, 40)]
    kinds = [next(k for k in ("viewed together", "of your community", "trending") if k in r) for r in reasons]
    assert kinds == sorted(kinds, key=("viewed together", "of your community", "trending").index)
    assert {"viewed together"} <= set(kinds)
    assert all(r.startswith("trending: ") for r in (x["reason"] for x in recommend(acme, "nobody", 5)))


def events_with_item(lake: Lake, user: str, item: str) -> pl.DataFrame:
    return lake.read(EVENTS).filter(
        (pl.col("tenant_id") == "acme") & (pl.col("user_id") == user) & (pl.col("item_id") == item)
    )


def land(lake: Lake, landing: Landing, control: ControlDb) -> None:
    Ingest(landing, lake, control.suppressed_users()).land(landing.event_files(), lambda _: None)


def test_a_tracked_event_is_in_s3_and_the_graph_once_and_stays_one_when_it_lands(
    acme: TestClient, shop: World, graph: Graph, lake: Lake, landing: Landing, control: ControlDb
) -> None:
    best = recommend(acme, "u1", 1)[0]["product_id"]
    body = {**INTERACTION, "product_id": best, "interaction_type": "purchased", "event_id": "mine"}
    first, again = acme.post("/graph/track", json=body).json(), acme.post("/graph/track", json=body).json()
    assert (first["event_ids"], first["graph"], again["graph"]) == (["mine"], "updated", "updated")
    stored = landing.read(landing.named(first["stored"])).decode().splitlines()
    assert [json.loads(line)["eventId"] for line in stored] == ["mine"]
    bought = "MATCH (:User {tenant_id: 'acme', id: 'u1'})-[r:PURCHASED]->(:Product {id: $id}) RETURN r.count AS n"
    assert graph.run(bought, id=best) == [{"n": 1}]
    assert unlanded_events(graph)["event_id"].to_list() == ["mine"]
    assert best not in [r["product_id"] for r in recommend(acme, "u1", 40)]
    assert shop.findings() == set()
    land(lake, landing, control)
    assert events_with_item(lake, "u1", best).height == 1
    shop.project()
    assert unlanded_events(graph).is_empty()
    assert graph.run(bought, id=best) == [{"n": 1}]
    assert shop.findings() == set()
    marks = graph.run("MATCH (e:Event {tenant_id: 'acme', id: 'mine'}) RETURN labels(e) AS labels, keys(e) AS names")
    assert "Unlanded" not in marks[0]["labels"]
    assert "written_at" not in marks[0]["names"]


def test_an_event_that_never_lands_is_a_ghost_after_a_day(acme: TestClient, shop: World, graph: Graph) -> None:
    acme.post("/graph/track", json={**INTERACTION, "event_id": "lost"})
    assert shop.findings() == set()
    graph.run("MATCH (e:Unlanded) SET e.written_at = datetime() - duration('P2D')")
    assert ("acme", "Action", "ghost", "acme lost") in shop.findings()
    shop.findings(repair=True, force=True)
    assert shop.findings() == set()


def test_a_batch_is_stored_whole_or_not_at_all(acme: TestClient, landing: Landing) -> None:
    files = len(landing.event_files())
    good = {"user_id": "u1", "product_id": "p1", "interaction_type": "VIEWED"}
    batch = {"tenant_id": "acme", "interactions": [good] * MOST_EVENTS}
    assert len(acme.post("/graph/track/batch", json=batch).json()["event_ids"]) == MOST_EVENTS
    assert len(landing.event_files()) == files + 1
    late = {**good, "ts": "1999-01-01T00:00:00Z"}
    refused = acme.post("/graph/track/batch", json={"tenant_id": "acme", "interactions": [good, late]})
    assert (refused.status_code, refused.json()["detail"][:38]) == (422, "Interaction 2 would be rejected as tim")
    too_many = acme.post("/graph/track/batch", json={"tenant_id": "acme", "interactions": [good] * (MOST_EVENTS + 1)})
    assert too_many.status_code == 422
    assert len(landing.event_files()) == files + 1


def test_people_who_are_suppressed_or_being_erased_are_not_shown(
    acme: TestClient, graph: Graph, control: ControlDb, backend: Backend
) -> None:
    body = {"tenant_id": "acme", "product_id": "p1", "interaction_type": "VIEWED"}
    control.suppress("acme", "hidden", "asked to be forgotten")
    assert acme.post("/graph/track", json={**body, "user_id": "hidden"}).json()["graph"] == "pending"
    control.begin_erasure()
    assert acme.post("/graph/track", json={**body, "user_id": "somebody"}).json()["graph"] == "pending"
    control.end_erasure()
    assert acme.post("/graph/track", json={**body, "user_id": "somebody"}).json()["graph"] == "updated"
    shown = graph.run("MATCH (u:User {tenant_id: 'acme'}) WHERE u.id IN ['hidden', 'somebody'] RETURN u.id AS id")
    assert shown == [{"id": "somebody"}]


ROUTES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/recommend/products", {"tenant_id": "acme", "user_id": "u1"}),
    ("POST", "/graph/track", INTERACTION),
    ("POST", "/graph/track/batch", {"tenant_id": "acme", "interactions": [
        {"user_id": "u1", "product_id": "p1", "interaction_type": "VIEWED"}]}),
    ("GET", "/products/trending?tenant_id=acme", None),
    ("GET", "/products/p1/similar?tenant_id=acme", None),
    ("GET", "/users/power?tenant_id=acme", None),
    ("GET", "/customers/u1?tenant_id=acme", None),
    ("GET", "/journeys/e000000?tenant_id=acme", None),
    ("GET", "/journeys/explain?first=e000000&second=e000003&tenant_id=acme", None),
]  # fmt: skip


def send(client: TestClient, route: tuple[str, str, dict[str, Any] | None]) -> Response:
    method, path, body = route
    return client.request(method, path, json=body)


@pytest.fixture
def everyone(make_client: Callable[..., TestClient], shop: World) -> Callable[..., TestClient]:
    return make_client


def test_every_route_needs_a_key_with_its_role_and_of_its_tenant(everyone: Callable[..., TestClient]) -> None:
    admin, theirs, reads, ingests = everyone(), everyone(tenant="globex"), everyone("read"), everyone("ingest")
    nobody, wrong = everyone(), everyone()
    nobody.headers.pop("authorization")
    wrong.headers["authorization"] = "Bearer c360_wrong"
    for route in ROUTES:
        assert send(admin, route).status_code == 200, route
        tracks = route[1].startswith("/graph")
        for client, status in ((nobody, 401), (wrong, 401), (theirs, 404), (ingests if not tracks else reads, 403)):
            answer = send(client, route)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), route
        assert send(ingests if tracks else reads, route).status_code == 200


def test_another_tenants_data_is_not_there(everyone: Callable[..., TestClient], shop: World) -> None:
    theirs = everyone(tenant="globex")
    own = {f"e{n:06}" for n in range(0, 60, 3)}
    for path in ("/products/only-acme/similar", "/customers/only-acme", *(f"/journeys/{event}" for event in own)):
        assert theirs.get(path).status_code == 404
    assert theirs.get("/journeys/explain?first=e000000&second=e000003").json() == {"chain": []}
    shown = theirs.get("/customers/u1").json()
    assert shown["tenant_id"] == "globex"
    assert {e["id"] for e in shown["timeline"]} <= {f"e{n:06}" for n in range(1, 1_500, 3)}


def test_a_key_that_is_revoked_opens_nothing(backend: Backend, make_client: Callable[..., TestClient]) -> None:
    key, made = backend.keys.add("acme", "read")
    assert ApiKeys(backend.control.login).revoke(made.key_id)
    assert backend.keys.find(key) is None
    client = make_client()
    client.headers["authorization"] = f"Bearer {key}"
    assert client.get("/users/power").status_code == 401


def test_products_customers_and_journeys_say_what_the_events_say(acme: TestClient, shop: World, lake: Lake) -> None:
    events = lake.read(EVENTS).filter(pl.col("tenant_id") == "acme")
    trending = acme.get("/products/trending", params={"time_window_hours": 24, "limit": 3}).json()
    newest = events["ts"].max()
    assert datetime.fromisoformat(trending["as_of"]) == newest
    day = events.filter((newest - pl.col("ts")) < pl.duration(hours=24)).drop_nulls("item_id")
    people = {
        item: (part.filter(pl.col("action") == "view")["user_id"].n_unique(),
               part.filter(pl.col("action") == "purchase")["user_id"].n_unique())
        for (item,), part in day.group_by("item_id")
    }  # fmt: skip
    best = sorted(people, key=lambda p: (-(people[p][0] + 5 * people[p][1]), p))[:3]
    assert [(p["product_id"], p["viewers"], p["buyers"]) for p in trending["products"]] == [
        (item, *people[item]) for item in best
    ]
    similar = acme.get("/products/p1/similar").json()["similar"]
    assert [s["rank"] for s in similar] == list(range(1, len(similar) + 1))
    assert acme.get("/products/none/similar").status_code == 404
    customer = acme.get("/customers/u1", params={"limit": 500}).json()
    assert {e["id"] for e in customer["timeline"]} == set(events.filter(pl.col("user_id") == "u1")["event_id"])
    assert [j["event_count"] for j in customer["journeys"]] == [len(customer["timeline"])]
    earlier = acme.get("/customers/u1", params={"limit": 5, "before": customer["timeline"][4]["at"]}).json()["timeline"]
    assert earlier == customer["timeline"][5:10]
    event = customer["timeline"][0]["id"]
    journey = acme.get(f"/journeys/{event}").json()
    assert {e["event_id"] for e in journey["events"]} == {e["id"] for e in customer["timeline"]}
    ends = {"first": event, "second": customer["timeline"][-1]["id"]}
    chain = acme.get("/journeys/explain", params=ends).json()["chain"]
    assert chain[0]["event_id"] == event
    assert {node["key_type"] for node in chain if "key_type" in node} <= {"user", "session"}


def test_hostile_values_are_values(acme: TestClient, shop: World) -> None:
    before = shop.digest()
    for text in HOSTILE:
        assert acme.post("/recommend/products", json={"tenant_id": "acme", "user_id": text}).status_code == 200
        assert acme.get("/customers/" + "x", params={"tenant_id": text}).status_code in (404, 422)
        for path in ("/customers/{}", "/journeys/{}", "/products/{}/similar"):
            answer = acme.get(path.format(quote(text, safe="")))
            assert answer.status_code in (404, 422), (path, text)
        assert acme.get("/products/trending", params={"category": text}).json()["products"] == []
        assert acme.get("/journeys/explain", params={"first": text, "second": text}).status_code == 200
    assert shop.digest() == before


def test_limits_are_kept(backend: Backend, acme: TestClient) -> None:
    large = acme.post("/recommend/products", content=b"x" * (MOST_BODY_BYTES + 1))
    assert (large.status_code, large.json()["title"]) == (413, "Too large")
    key, _ = backend.keys.add("acme", "read")
    app = create_app(backend, rate="3/minute")
    # Not entered: the backend stays open for others.
    slow = TestClient(app, headers={"x-api-key": key})
    statuses = [slow.get("/users/power").status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert int(slow.get("/users/power").headers["retry-after"]) <= 60


def test_operations(acme: TestClient) -> None:
    assert acme.get("/health/live").json() == {"status": "live"}
    assert acme.get("/health").json() == {
        "status": "ready", "services": {"neo4j": True, "s3": True, "postgres": True}
    }  # fmt: skip
    recommend(acme, "u1")
    recommend(acme, "u1")
    figures = acme.get("/metrics").text
    assert 'c360_api_recommendations_total{source="cache"} 1.0' in figures
    assert 'route="/recommend/products"' in figures
    assert "u1" not in figures
    document = acme.get("/openapi.json").json()
    assert document["components"]["schemas"]["Problem"]["properties"].keys() >= {"type", "title", "status", "detail"}
    answer = acme.get("/customers/u1")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def test_what_was_taken_is_stored_before_the_api_ends(
    graph: Graph, lake: Lake, landing: Landing, control: ControlDb
) -> None:
    backend = Backend(graph, lake, landing, control)
    key, _ = backend.keys.add("acme", "ingest")
    body = {"tenant_id": "acme", "user_id": "u", "product_id": "p", "interaction_type": "VIEWED", "event_id": "last"}
    with TestClient(create_app(backend), headers={"authorization": f"Bearer {key}"}) as client:
        stored = client.post("/graph/track", json=body).json()["stored"]
    assert b'"last"' in landing.read(landing.named(stored))
    assert datetime.now(UTC).date().isoformat() in stored


def test_graphs_of_features_are_the_archives(shop: World, graph: Graph, lake: Lake) -> None:
    assert graph.type_counts()["ALSO_VIEWED"] == lake.count(PRODUCT_SIMILARITIES)
    graph.run("MATCH ()-[r:ALSO_VIEWED]->() WITH r LIMIT 1 DELETE r")
    ((tenant, entity, kind, _),) = shop.findings()
    assert (entity, kind) == ("(Product)-[:ALSO_VIEWED]->(Product)", "missing")
    assert tenant in ("acme", "globex", "initech")
    shop.findings(repair=True)
    assert shop.findings() == set()
    lake.replace(PRODUCT_SIMILARITIES, PRODUCT_SIMILARITIES.empty())
    assert shop.findings() == set()
    ProductGraph(lake, graph).project()
    EventGraph(lake, graph).project()
    assert "ALSO_VIEWED" not in graph.type_counts()
    assert shop.findings() == set()
