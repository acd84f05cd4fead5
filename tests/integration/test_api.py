"""The API over real stores: what it says is what the events say, and nobody sees another tenant."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from unicodedata import normalize
from urllib.parse import quote

import polars as pl
import pytest
import structlog
from dagster_processes import wait_until
from event_world import World
from fastapi.testclient import TestClient
from httpx2 import Response
from limits import parse
from typer.testing import CliRunner

from c360_pipeline.cli import app as cli
from c360_pipeline.core.catalog.feature_tables import (
    ACCOUNT_VALUES,
    CUSTOMER_CHURN,
    CUSTOMER_MODELS,
    CUSTOMER_VALUES,
    DROP_OFFS,
    PATH_ANOMALIES,
    PRODUCT_SIMILARITIES,
    SUPPORT_INSIGHTS,
    USER_COMMUNITIES,
    USUAL_STEPS,
)
from c360_pipeline.core.catalog.recommendation_tables import RECOMMENDATION_HITS, RECOMMENDATIONS_GIVEN
from c360_pipeline.core.catalog.tables import CATALOG, DEAD_LETTERS, EVENTS
from c360_pipeline.core.features import leads, similar_products
from c360_pipeline.errors import UnavailableError
from c360_pipeline.logs import configure_logging
from c360_pipeline.reads.customer_pages import CustomerPages
from c360_pipeline.reads.insights import KINDS, NOW
from c360_pipeline.reads.recommend import RecommendationRequest
from c360_pipeline.serving import security
from c360_pipeline.serving.app import create_app
from c360_pipeline.serving.backend import Backend
from c360_pipeline.serving.models import MOST_EVENTS
from c360_pipeline.serving.security import MOST_BODY_BYTES
from c360_pipeline.stages.landing.ingest import Ingest
from c360_pipeline.stages.projection.audiences import bring_up_audiences
from c360_pipeline.stages.projection.events import EventGraph, ProductGraph
from c360_pipeline.stages.realtime.given import Given, GivenRecommendations
from c360_pipeline.stages.realtime.surprises import forget_surprises
from c360_pipeline.stages.realtime.unlanded_events import unlanded_events
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.api_keys import ApiKeys
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.landing import Landing
from c360_pipeline.streaming.lag import StreamSeen

HOSTILE = [
    "' OR 1=1 //", "}) DETACH DELETE n //", "<script>alert(1)</script>", "a\r\nSet-Cookie: x=y", "\x00", "..;/",
    "\U0001d4e4\u202e\u0301", "é" * 500, "'; DROP TABLE api_keys; --", "${jndi:ldap://x}", "{{7*7}}",
]  # fmt: skip


AT = "2025-10-20T10:00:00Z"
INTERACTION = {"tenant_id": "acme", "user_id": "u1", "product_id": "p1", "interaction_type": "VIEWED"}


@pytest.fixture
def shop(world: World) -> World:
    """The world with communities and similar products; users of a community have an even or an odd number."""
    if world.is_shared:
        return world
    users = world.lake.scan(EVENTS).select("tenant_id", "user_id").unique().collect()
    community = pl.col("user_id").str.slice(1).cast(pl.Int64) % 2
    rows = users.with_columns(community=community, community_size=pl.lit(30, pl.Int64))
    world.lake.commits.replace(USER_COMMUNITIES, rows.select(list(USER_COMMUNITIES.columns)))
    # All that a user views is taken for one session: so few events make no pairs otherwise.
    views = world.lake.scan(EVENTS).filter(pl.col("action") == "view").with_columns(session_id="user_id")
    world.lake.commits.replace(PRODUCT_SIMILARITIES, similar_products.similar_by_sessions(views))
    world.project()
    return world


@pytest.fixture
def backend(graph: Graph, lake: Lake, landing: Landing, control: ControlDb, monkeypatch: pytest.MonkeyPatch) -> Backend:
    # What these tests look at is what the graph shows, on a machine however slow.
    monkeypatch.setattr("c360_pipeline.serving.backend.SHOW_SECONDS", 30.0)
    control.execute("DELETE FROM identifier_keys")  # the world is stitched without a secret
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
    # What the catalogue does not know is not recommended.
    ordered = sorted(evidence.keys() & names, key=lambda p: (-(10 * len(evidence[p]) + strength[p]), p))[:top_k]
    found = []
    for product in ordered:
        people = [other for _, other in sorted(evidence[product])]
        first = min(because[product], key=lambda p: (-because[product][p], p))
        more = len(because[product]) - 1
        others = f" or {more} other product{'s' if more > 1 else ''} of yours" if more else ""
        same = any(int(p[1:]) % 2 == int(user[1:]) % 2 for p in people)
        worth = 10 * len(people) + strength[product]
        found.append({
            "product_id": product, "product_name": names.get(product, (None, None))[0],
            "category": names.get(product, (None, None))[1], "score": round(8 + 2 * worth / (worth + 10), 4),
            "reason": f"{len(people)} customer{'s' if len(people) > 1 else ''} who bought "
                      f"“{names.get(first, (first, None))[0]}”{others} also bought this"
                      f"{'; in your community' if same else ''}",
            "similar_users": people[:5], "because_of": None, "share": None,
            "source": "similar_users",
        })  # fmt: skip
    return found


@pytest.mark.leaves_world
def test_recommendations_of_twenty_users_are_those_that_are_counted_by_hand(acme: TestClient, shop: World) -> None:
    counted = 0
    for number in range(20):
        told, hand = recommend(acme, f"u{number}", 7), by_hand(shop.lake, f"u{number}", 7)
        assert told[: len(hand)] == hand
        assert all(r["score"] < 8 for r in told[len(hand) :])
        counted += len(hand)
    assert counted > 100


@pytest.mark.leaves_world
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
    ladder = ("viewed together", "of your community", "which you like", "trending")
    kinds = [next(k for k in ladder if k in r) for r in reasons]
    assert kinds == sorted(kinds, key=ladder.index)
    assert {"viewed together"} <= set(kinds)
    assert all(r.startswith("trending: ") for r in (x["reason"] for x in recommend(acme, "nobody", 5)))


def test_what_ones_own_products_lead_to_comes_first_and_can_be_recounted(
    acme: TestClient, shop: World, graph: Graph, lake: Lake
) -> None:
    met = leads.interactions(lake.scan(EVENTS).filter(pl.col("tenant_id") == "acme"))
    pairs, bought = leads.interests(met), met.filter(action="purchase").select("user_id", "product_id")
    weights = leads.learned(pairs, [20.0])[20.0]
    similar = lake.read(PRODUCT_SIMILARITIES)
    lake.commits.replace(PRODUCT_SIMILARITIES, pl.concat([similar, leads.lead_rows("acme", weights)]))
    ProductGraph(lake, graph).project_similarities()
    assert shop.findings() == set()
    known = lake.read(CATALOG).filter(tenant_id="acme").select(product_id="id")
    best = pl.concat(leads.ranked(pairs, bought, weights, leads.Settings().half_life, 100))
    best = best.join(known, on="product_id", how="semi")
    counted = 0
    for number in range(20):
        wanted = best.filter(user_id=f"u{number}").select("product_id", "score", "because_of", "share").rows()
        told = recommend(acme, f"u{number}", 100)[: len(wanted)]
        assert [(r["product_id"], r["because_of"]) for r in told] == [(product, why) for product, _, why, _ in wanted]
        for one, (_, score, _, share) in zip(told, wanted, strict=True):
            assert (one["score"], one["share"]) == (
                pytest.approx(10 + 100 * score, abs=2e-4),
                pytest.approx(share, abs=1e-3),
            )
        counted += len(wanted)
    assert counted > 100
    few = recommend(acme, "u1", 8, most_of_category=1)
    assert len({r["category"] for r in few}) == len(few)
    # What was tracked a second ago counts, of somebody new and of a visitor, who is somebody after the login.
    first, second = weights.join(known, on="product_id", how="semi")["product_id"].unique().sort()[:2]
    lead_to = set(weights.filter(product_id=first).join(
        known, left_on="similar_product_id", right_on="product_id", how="semi")["similar_product_id"])  # fmt: skip
    seen = {"product_id": first, "interaction_type": "VIEWED"}

    def of_visitor() -> list[dict[str, Any]]:
        body = {"anonymous_id": "browser-1", "top_k": 100}
        return list(acme.post("/recommend/products", json=body).json()["recommendations"])

    assert {r["because_of"] for r in of_visitor()} == {None}
    assert acme.post("/graph/track", json={**seen, "anonymous_id": "browser-1"}).json()["graph"] == "updated"
    found = [r for r in of_visitor() if r["because_of"]]
    assert {r["product_id"] for r in found} == lead_to
    assert {r["because_of"] for r in found} == {first}
    assert all(r["reason"].startswith("because you viewed “") for r in found)
    order = {"product_id": second, "interaction_type": "PURCHASED", "user_id": "newcomer", "anonymous_id": "browser-1"}
    assert acme.post("/graph/track", json=order).json()["graph"] == "updated"
    assert {r["because_of"] for r in recommend(acme, "newcomer", 100)} >= {second}
    assert {r["product_id"] for r in of_visitor()} == {r["product_id"] for r in recommend(acme, "newcomer", 100)}
    assert second not in {r["product_id"] for r in of_visitor()}
    assert acme.post("/recommend/products", json={"top_k": 3}).status_code == 422


INSIGHTS = {
    "anomalies": (PATH_ANOMALIES, {
        "session_id": "odd", "user_id": "u1", "started_at": datetime(2025, 10, 20, tzinfo=UTC), "steps": 5,
        "surprise": 6.5, "usual_surprise": 2.0, "deviations": 4.5, "from_action": "view", "to_action": "refund",
        "probability": 0.01, "path": "view → refund",
    }),
    "drop-offs": (DROP_OFFS, {
        "funnel": "purchase", "step": 1, "action": "view", "next_action": "add_to_cart", "sessions": 200,
        "continued": 50, "drop_off_rate": 0.75, "previous_rate": None, "change": None, "deviations": None,
        "as_of": datetime(2025, 10, 20, tzinfo=UTC),
    }),
    "before-tickets": (SUPPORT_INSIGHTS, {
        "path": "pay → error", "tickets_with_path": 8, "tickets": 10, "share_before_tickets": 0.8,
        "sessions_with_path": 5, "sessions": 100, "share_elsewhere": 0.05, "lift": 16.0,
        "lift_at_least": 7.5,
    }),
    "churn": (ACCOUNT_VALUES, {
        "account_id": "7", "email": "seven@example.org", "plan": "Basic", "months": 3, "monthly_value": 9.5,
        "value_to_date": 30.0, "churn_risk": 0.625, "risk_level": "high", "value_in_a_year": 60.0,
        "why": "use fell by half",
    }),
    "leaving": (CUSTOMER_CHURN, {
        "user_id": "u1", "last_seen": date(2025, 10, 1), "days_silent": 19, "days_active": 7, "chance_to_leave": 0.75,
        "level": "high", "made_by": "model", "why": "not seen for 19 days, usually every 2.5",
        "as_of": datetime(2025, 10, 20, tzinfo=UTC),
    }),
    "values": (CUSTOMER_VALUES, {
        "user_id": "u1", "first_bought": date(2025, 1, 1), "last_bought": date(2025, 10, 1), "days_since_purchase": 19,
        "purchases": 4, "orders": 5, "revenue": 99.5, "mean_paid": 24.88, "currency": "EUR", "recency_class": 5,
        "frequency_class": 4, "monetary_class": 3, "chance_active": 0.9, "purchases_in_a_year": 5.25,
        "value_in_a_year": 130.5, "as_of": datetime(2025, 10, 20, tzinfo=UTC),
    }),
    "recommended": (RECOMMENDATION_HITS, {
        "day": date(2025, 10, 20), "version": "1", "source": "all", "customers": 10, "products": 50, "clicked": 5,
        "bought": 2, "customers_with_hit": 4, "hit_rate": 0.4, "is_complete": True,
    }),
    "models": (CUSTOMER_MODELS, {
        "model": "churn", "measure": "order (AUC)", "value": 0.9, "baseline": 0.8, "cases": 400, "is_used": True,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIGHTS)
def test_insights_are_read_by_api_page_and_command(
    make_client: Callable[..., TestClient], lake: Lake, control: ControlDb, landing: Landing, name: str
) -> None:
    table, row = INSIGHTS[name]
    ours, theirs = make_client("read"), make_client("read", "globex")
    never = ours.get(f"/insights/{name}").json()
    assert (never["total"], never["changed_at"], never["rows"]) == (0, None, [])
    assert "Not made yet" in never["none"]
    last = table.key[-1]
    second = row | {last: 2 if row[last] == 1 else "z"}
    schema = table.empty().schema
    rows = [{"tenant_id": "acme", **one} for one in (second, row)]
    lake.commits.replace(table, pl.DataFrame(rows, schema=schema))
    # The answers of before may be ten seconds old: of another number of rows there is none.
    told = ours.get(f"/insights/{name}?limit=1").json()
    assert (told["total"], told["none"], len(told["rows"])) == (2, None, 1)
    shown = {key: value.isoformat().replace("+00:00", "Z") if isinstance(value, date) else value
             for key, value in row.items()}  # fmt: skip
    assert told["rows"][0] == shown
    other = theirs.get(f"/insights/{name}").json()
    assert other["rows"] == []
    assert "Not made" not in other["none"]
    page = ours.get("/app/insights")
    assert page.status_code == 200
    assert KINDS[name].title in page.text
    assert all(title in page.text for title in KINDS[name].columns.values())
    said = CliRunner().invoke(cli, ["insights", name, "--tenant", "acme", "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)[name]["total"] == 2
    assert KINDS[name].title in CliRunner().invoke(cli, ["insights", "--tenant", "acme"]).output


def test_a_session_is_told_to_be_odd_while_it_goes_on_but_of_nobody_who_refused(
    make_client: Callable[..., TestClient], lake: Lake, graph: Graph, control: ControlDb
) -> None:
    control.execute("INSERT INTO feature_purposes VALUES ('acme', 'path_anomalies', 'analytics')")
    usual = {"from_action": "purchase", "to_action": "purchase", "steps": 1_000, "starts": 1_000, "actions": 2,
             "usual_surprise": 0.1, "spread": 1.0}  # fmt: skip
    past = [{"tenant_id": "acme", **usual, "from_action": action} for action in ("purchase", "view")]
    lake.commits.insert_new(USUAL_STEPS, pl.DataFrame(past, schema=USUAL_STEPS.empty().schema))
    client, others = make_client("admin"), make_client("read", "globex")

    def track(session: str, kinds: str, **who: str) -> None:
        for number, kind in enumerate(kinds.split()):
            event = {**INTERACTION, "user_id": None, "interaction_type": kind, "event_id": f"{session}-{number}",
                     "session_id": session, "ts": f"2025-10-20T10:00:{number:02}Z", **who}  # fmt: skip
            assert client.post("/graph/track", json=event).json()["graph"] == "updated"

    graph.run("CREATE (:User {tenant_id: 'acme', id: 'unwilling', consents: '{\"analytics\": \"denied\"}'})")
    track("usual", "VIEWED PURCHASED PURCHASED PURCHASED", user_id="u1")
    track("short", "PURCHASED VIEWED VIEWED", user_id="u1")
    track("refused", "PURCHASED VIEWED VIEWED VIEWED VIEWED", user_id="unwilling")
    track("unknown", "PURCHASED VIEWED VIEWED VIEWED VIEWED", anonymous_id="browser-9")
    track("odd", "PURCHASED VIEWED VIEWED VIEWED VIEWED", user_id="u1")
    # Looked for from the graph: the API may keep an answer for ten seconds.
    wait_until(
        lambda: graph.run("MATCH (s:Session {tenant_id: 'acme', id: 'odd'}) RETURN s.deviations AS d")[0]["d"], 30
    )
    told = client.get("/insights/now?limit=7").json()
    assert (told["total"], [row["session_id"] for row in told["rows"]]) == (1, ["odd"])
    row = told["rows"][0]
    assert (row["user_id"], row["started_at"][:19], row["oddest_step"]) == (
        "u1", "2025-10-20T10:00:00", "purchase → view",
    )  # fmt: skip
    # Four steps that nobody took: -log2(1 / 1,002) bits each.
    assert (row["surprise"], row["deviations"]) == (pytest.approx(9.969, abs=1e-3), pytest.approx(19.737, abs=1e-3))
    scored = graph.run("MATCH (s:Session) WHERE s.surprise IS NOT NULL RETURN s.id AS id ORDER BY id")
    assert [one["id"] for one in scored] == ["odd", "usual"]
    assert others.get("/insights/now").json()["rows"] == []
    assert "purchase → view" in client.get("/app/insights").text
    said = CliRunner().invoke(cli, ["insights", "now", "--tenant", "acme", "--json"])
    assert json.loads(said.stdout)["now"]["total"] == 1
    # Who refuses is told of no more: at once by what reads, and from the next event on not in the graph.
    graph.run("MATCH (u:User {tenant_id: 'acme', id: 'u1'}) SET u.consents = '{\"analytics\": \"denied\"}'")
    assert client.get("/insights/now?limit=8").json()["rows"] == []
    track("odd", "PURCHASED VIEWED VIEWED VIEWED VIEWED VIEWED", user_id="u1")
    left = "MATCH (s:Session {tenant_id: 'acme', id: 'odd'}) WHERE s.surprise IS NULL RETURN s.id AS id"
    wait_until(lambda: graph.run(left), 30)
    # At night what is a week old goes, and what is left of those who refused.
    forget_surprises(graph, "acme", datetime(2025, 10, 21, tzinfo=UTC), [])
    assert [one["id"] for one in graph.run("MATCH (s:Session) WHERE s.surprise IS NOT NULL RETURN s.id AS id")] == [
        "usual"
    ]
    forget_surprises(graph, "acme", datetime(2025, 11, 21, tzinfo=UTC), [])
    assert graph.run("MATCH (s:Session) WHERE s.surprise IS NOT NULL RETURN s.id AS id") == []


def test_what_is_recommended_is_noted_for_those_who_may_be_and_measured(
    backend: Backend, shop: World, control: ControlDb
) -> None:
    """Not of a person who asked to be forgotten, nor of one who refused, nor while somebody is being erased."""
    before = shop.lake.read(RECOMMENDATIONS_GIVEN)
    control.privacy.suppress("acme", "u3", "asked to be forgotten")
    with TestClient(create_app(backend, rate="100000/second"), raise_server_exceptions=False) as opened:
        key, _ = backend.keys.add("acme", "admin")
        client = TestClient(opened.app, headers={"authorization": f"Bearer {key}"}, raise_server_exceptions=False)
        given = recommend(client, "u1")
        assert recommend(client, "u1") == given, "the second answer is the first one, and is noted once"
        recommend(client, "u3")
        visitor = {"tenant_id": "acme", "anonymous_id": "nobody-yet", "top_k": 3}
        assert client.post("/recommend/products", json=visitor).status_code == 200
    noted = shop.lake.read(RECOMMENDATIONS_GIVEN).join(before, on="given_id", how="anti").sort("user_id")
    assert noted.select("tenant_id", "user_id", "anonymous_id").rows() == [
        ("acme", None, "nobody-yet"), ("acme", "u1", None)
    ]  # fmt: skip
    assert noted["products"][1].to_list() == [one["product_id"] for one in given]
    assert noted["sources"][1].to_list() == [one["source"] for one in given]
    assert "half-life 5, ridge 200" in noted["version"][1]


@pytest.mark.leaves_world
def test_a_customers_page_is_there_while_the_lake_is_away(acme: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise UnavailableError("The lake can't be reached.")

    monkeypatch.setattr(CustomerPages, "foreseen", away)
    page = acme.get("/app/customers/u1")
    assert page.status_code == 200
    assert "What may be expected can't be read now" in page.text


def test_nothing_is_noted_of_those_who_refused_and_all_waits_for_an_erasure(
    graph: Graph, lake: Lake, landing: Landing, control: ControlDb, shop: World
) -> None:
    before = lake.read(RECOMMENDATIONS_GIVEN)
    wanted = RecommendationRequest("u1", 3)
    backend = Backend(graph, lake, landing, control)
    found = backend.recommender("acme").recommended(wanted)
    backend.note_given("acme", wanted, found._replace(is_refused=True))
    backend.close()
    assert lake.count(RECOMMENDATIONS_GIVEN) == before.height

    given = GivenRecommendations(lake, control.privacy)
    control.privacy.begin_erasure()
    with control.locks.exclusive_run():
        given.note(Given.now("acme", "u1", None, "1", [("p1", "trending")]))
        given.write_waiting()
        assert lake.count(RECOMMENDATIONS_GIVEN) == before.height
    given.close()
    assert lake.count(RECOMMENDATIONS_GIVEN) == before.height + 1


def events_with_item(lake: Lake, user: str, item: str) -> pl.DataFrame:
    return lake.read(EVENTS).filter(
        (pl.col("tenant_id") == "acme") & (pl.col("user_id") == user) & (pl.col("item_id") == item)
    )


def land(lake: Lake, landing: Landing, control: ControlDb) -> None:
    Ingest(landing, lake, control.privacy.suppressed_users()).land(landing.event_files(), lambda _: None)


def test_a_tracked_event_is_in_s3_and_the_graph_once_and_stays_one_when_it_lands(
    acme: TestClient, shop: World, graph: Graph, lake: Lake, landing: Landing, control: ControlDb
) -> None:
    best = recommend(acme, "u1", 1)[0]["product_id"]
    body = {**INTERACTION, "product_id": best, "interaction_type": "purchased", "event_id": "mine", "ts": AT}
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
    acme.post("/graph/track", json={**INTERACTION, "event_id": "lost", "ts": AT})
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
    acme: TestClient, graph: Graph, control: ControlDb, landing: Landing
) -> None:
    body = {"tenant_id": "acme", "product_id": "p1", "interaction_type": "VIEWED"}
    control.privacy.suppress("acme", "hidden", "asked to be forgotten")
    files = len(landing.event_files())
    for spelling in ("hidden", " hidden", "hidden\u200b"):
        answer = acme.post("/graph/track", json={**body, "user_id": spelling}).json()
        assert answer == {"event_ids": [], "stored": None, "graph": "suppressed", "suppressed": 1}
    assert len(landing.event_files()) == files
    now = datetime.now(UTC).isoformat()
    pair = [
        {"user_id": user, "product_id": "p1", "interaction_type": "VIEWED", "event_id": f"of-{user}", "ts": now}
        for user in ("hidden", "else")
    ]
    mixed = acme.post("/graph/track/batch", json={"tenant_id": "acme", "interactions": pair}).json()
    assert (mixed["event_ids"], mixed["suppressed"], mixed["graph"]) == (["of-else"], 1, "updated")
    assert b"hidden" not in landing.read(landing.named(mixed["stored"]))
    control.privacy.begin_erasure()
    with control.locks.exclusive_run():
        assert acme.post("/graph/track", json={**body, "user_id": "somebody"}).json()["graph"] == "pending"
    # One that was broken off keeps nobody else waiting.
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
    ("GET", "/audiences?tenant_id=acme", None),
    ("POST", "/audiences/size?tenant_id=acme", {"who": {"did": "view"}}),
    *(("GET", f"/insights/{name}?tenant_id=acme", None) for name in (NOW.name, *KINDS)),
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


@pytest.mark.leaves_world
def test_another_tenants_data_is_not_there(everyone: Callable[..., TestClient], shop: World) -> None:
    theirs = everyone(tenant="globex")
    own = {f"e{n:06}" for n in range(0, 60, 3)}
    for path in ("/products/only-acme/similar", "/customers/only-acme", *(f"/journeys/{event}" for event in own)):
        assert theirs.get(path).status_code == 404
    assert theirs.get("/journeys/explain?first=e000000&second=e000003").json() == {"chain": []}
    shown = theirs.get("/customers/u1").json()
    assert shown["tenant_id"] == "globex"
    assert {e["id"] for e in shown["timeline"]} <= {f"e{n:06}" for n in range(1, 1_500, 3)}


def test_a_key_expires_and_the_next_stands_in_for_it(backend: Backend, make_client: Callable[..., TestClient]) -> None:
    key, made = backend.keys.add("acme", "read", "shop", days=1)
    assert made.expires_at is not None
    assert made.expires_at - made.created_at == timedelta(days=1)
    found = backend.keys.rotate(made.key_id, grace_hours=24)
    assert found is not None
    after, new = found
    assert (new.tenant_id, new.role, new.note, new.expires_at) == ("acme", "read", "shop", None)
    assert backend.keys.find(key) is not None
    session = backend.keys.begin_session(key, 3_600)
    assert session is not None
    backend.control.execute("UPDATE api_keys SET expires_at = now() WHERE key_id = %(key_id)s", key_id=made.key_id)
    assert (backend.keys.find(key), backend.keys.find_session(session)) == (None, None)
    assert (backend.keys.begin_session(key, 3_600), backend.keys.rotate(made.key_id, 1)) == (None, None)
    assert backend.keys.find(after) is not None
    client = make_client()
    client.headers["authorization"] = f"Bearer {key}"
    assert client.get("/users/power").status_code == 401


def test_a_key_that_is_revoked_opens_nothing(backend: Backend, make_client: Callable[..., TestClient]) -> None:
    key, made = backend.keys.add("acme", "read")
    assert ApiKeys(backend.control.login).revoke(made.key_id)
    assert backend.keys.find(key) is None
    client = make_client()
    client.headers["authorization"] = f"Bearer {key}"
    assert client.get("/users/power").status_code == 401


@pytest.mark.leaves_world
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


@pytest.mark.leaves_world
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


@pytest.mark.leaves_world
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


@pytest.mark.leaves_world
def test_operations(acme: TestClient) -> None:
    assert acme.get("/health/live").json() == {"status": "live"}
    assert acme.get("/health").json() == {
        "status": "ready", "services": {"neo4j": True, "s3": True, "postgres": True, "tracking": True}
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


@pytest.mark.leaves_world
def test_the_delivery_page_says_that_files_wait_for_an_erasure(acme: TestClient, backend: Backend) -> None:
    backend.control.privacy.begin_erasure()
    assert "Some files wait" in acme.get("/app/delivery").text
    backend.control.privacy.end_erasure()


@pytest.mark.leaves_world
def test_the_delivery_page_tells_of_the_stream_where_there_is_one(acme: TestClient, backend: Backend) -> None:
    assert "Real time" not in acme.get("/app/delivery").text
    assert acme.get("/app/delivery/stream").status_code == 404
    asked = []

    def seen(tenant_id: str) -> StreamSeen:
        asked.append(tenant_id)
        return StreamSeen("RUNNING", 12.4, None)

    backend.stream = seen
    assert "/app/delivery/stream" in acme.get("/app/delivery").text
    shown = acme.get("/app/delivery/stream").text
    assert (asked, "running" in shown, "12 s" in shown, "none" in shown) == (["acme"], True, True, True)

    def away(tenant_id: str) -> StreamSeen:
        raise UnavailableError("Kafka does not answer")

    backend.stream = away
    assert "does not answer" in acme.get("/app/delivery/stream").text


def test_what_was_taken_is_stored_before_the_api_ends(
    graph: Graph, lake: Lake, landing: Landing, control: ControlDb
) -> None:
    backend = Backend(graph, lake, landing, control)
    key, _ = backend.keys.add("acme", "ingest")
    body = {**INTERACTION, "user_id": "u", "event_id": "last", "ts": AT}
    with TestClient(create_app(backend), headers={"authorization": f"Bearer {key}"}) as client:
        stored = client.post("/graph/track", json=body).json()["stored"]
    assert b'"last"' in landing.read(landing.named(stored))
    assert datetime.now(UTC).date().isoformat() in stored


def test_an_event_that_is_sent_several_times_at_once_counts_once(
    acme: TestClient, shop: World, graph: Graph, lake: Lake, landing: Landing, control: ControlDb
) -> None:
    one = {"user_id": "rv", "product_id": "p1", "interaction_type": "VIEWED", "event_id": "same", "ts": AT}
    batch = {"tenant_id": "acme", "interactions": [one, one, one]}
    for _ in range(2):
        assert acme.post("/graph/track/batch", json=batch).json()["graph"] == "updated"
    read = "MATCH (s)-[r:HAS_ACTION]->(:Event {tenant_id: 'acme', id: 'same'})-[o:ON_PRODUCT]->() RETURN count(*) AS n"
    assert graph.run(read) == [{"n": 1}]
    viewed = "MATCH (:User {tenant_id: 'acme', id: 'rv'})-[r:VIEWED]->() RETURN r.count AS n"
    assert graph.run(viewed) == [{"n": 1}]
    other = {**one, "user_id": "somebody else"}
    refused = acme.post("/graph/track/batch", json={"tenant_id": "acme", "interactions": [one, other]})
    assert refused.status_code == 422
    assert "1 and 2 have one event_id" in refused.json()["detail"]
    land(lake, landing, control)
    shop.project()
    assert shop.findings() == set()
    assert lake.count(DEAD_LETTERS) == 0


@pytest.mark.leaves_world
def test_an_event_with_an_id_of_its_own_needs_its_time(acme: TestClient) -> None:
    refused = acme.post("/graph/track", json={**INTERACTION, "event_id": "mine"})
    assert refused.status_code == 422
    assert "ts is needed" in refused.json()["invalid"][0]["problem"]


def test_a_moment_with_more_events_than_a_page_is_told_whole(acme: TestClient) -> None:
    many = [{"user_id": "many", "product_id": "p1", "interaction_type": "VIEWED", "event_id": f"many-{n:02}", "ts": AT}
            for n in range(60)]  # fmt: skip
    earlier = [{**many[0], "event_id": f"earlier-{n}", "ts": f"2025-10-19T10:00:0{n}Z"} for n in range(3)]
    acme.post("/graph/track/batch", json={"tenant_id": "acme", "interactions": many + earlier})
    seen, before = [], None
    while True:
        page = acme.get("/customers/many", params={"limit": 20, **({"before": before} if before else {})}).json()
        seen += [entry["id"] for entry in page["timeline"]]
        if not page["is_more"]:
            break
        before = page["timeline"][-1]["at"]
    assert sorted(seen) == sorted(event["event_id"] for event in many + earlier)


def test_audiences_are_made_sized_read_and_ended(
    everyone: Callable[..., TestClient], shop: World, backend: Backend, graph: Graph, lake: Lake
) -> None:
    admin, reader, other = everyone("admin"), everyone("read"), everyone("admin", "globex")
    buyers = {
        user for tenant, user, action in lake.read(EVENTS).select("tenant_id", "user_id", "action").iter_rows()
        if tenant == "acme" and action == "purchase"
    }  # fmt: skip
    document = {"who": {"did": "purchase"}, "title": "Buyers", "note": "a test"}
    assert reader.post("/audiences/size", json=document).json()["members"] == len(buyers)
    assert reader.put("/audiences/buyers", json=document).status_code == 403
    assert admin.put("/audiences/buyers", json=document).json() == {"audience": "buyers", "version": 1, "changed": True}
    assert admin.put("/audiences/buyers", json=document).json()["changed"] is False
    assert other.get("/audiences").json() == {"audiences": []}
    assert other.get("/audiences/buyers/members").status_code == 404
    bring_up_audiences(lake, backend.control, graph, datetime.now(UTC))
    members: list[str] = []
    after: str | None = None
    while True:
        page = reader.get(
            "/audiences/buyers/members", params={"limit": 7, **({"after": after} if after else {})}
        ).json()
        members += [one["user_id"] for one in page["members"]]
        after = page["next"]
        if after is None:
            break
    assert (members, page["total"]) == (sorted(buyers), len(buyers))
    for wrong in (
        {"who": {"did": 3}},
        {"who": {"label": "Nope"}},
        {"who": {}},
        {"who": {"did": "x"}, "deliver": {"a": 1}},
    ):
        answer = admin.put("/audiences/wrong", json=wrong)
        assert (answer.status_code, answer.json()["title"]) == (422, "Not valid"), wrong
    assert reader.delete("/audiences/buyers").status_code == 403
    assert other.delete("/audiences/buyers").status_code == 404
    assert admin.delete("/audiences/buyers").status_code == 204
    assert admin.delete("/audiences/buyers").status_code == 404
    bring_up_audiences(lake, backend.control, graph, datetime.now(UTC))
    assert reader.get("/audiences/buyers/members").json()["total"] == 0
    assert [one["is_active"] for one in reader.get("/audiences").json()["audiences"]] == [False]
    assert shop.findings() == set()


def test_customers_are_found_by_whatever_a_person_has_of_them(
    everyone: Callable[..., TestClient], shop: World, lake: Lake, graph: Graph
) -> None:
    acme, other = everyone("read"), everyone("read", "globex")
    event = lake.read(EVENTS).filter(pl.col("tenant_id") == "acme").row(0, named=True)
    graph.run("CREATE (:Account {tenant_id: 'acme', account_id: 7, email: 'zoe@x.test', full_name: 'Zoe Lind'})")

    def found(client: TestClient, text: str) -> dict[str, str]:
        page = client.get("/app/search", params={"q": text})
        assert page.status_code == 200, page.text
        cells = [re.sub("<[^>]+>", "", cell).strip() for cell in re.findall("<td>(.*?)</td>", page.text)]
        return {cells[place]: cells[place + 2] for place in range(0, len(cells), 5)}

    user, session = event["user_id"], event["session_id"]
    assert found(acme, user)[user] == "user id"
    assert found(acme, event["event_id"]) == {user: f"event: {event['event_id']}"}
    assert found(acme, session) == {user: f"session: {session}"}
    assert found(acme, "zoe@") == {"zoe@x.test": "e-mail"}
    assert found(acme, "zoe li") == {"zoe@x.test": "name: Zoe Lind"}
    assert len(found(acme, "")) == 25, "those who were seen last"
    assert found(acme, "nobody at all") == {}
    for text in (event["event_id"], "zoe@"):
        assert found(other, text) == {}, "of another tenant"
    for text in HOSTILE:
        assert found(acme, text) == {}
    graph.run("MATCH (a:Account {tenant_id: 'acme', account_id: 7}) DELETE a")


@pytest.mark.parametrize("user", ["..", "~."])
def test_names_that_browsers_take_for_folders_have_pages(acme: TestClient, user: str) -> None:
    assert acme.post("/graph/track", json={**INTERACTION, "user_id": user}).json()["graph"] == "updated"
    (link,) = re.findall(r'href="(/app/customers/[^"]+)"', acme.get("/app/customers", params={"q": user}).text)
    assert not link.endswith(("/.", "/.."))
    shown = acme.get(link)
    assert (shown.status_code, f"<h1>{user}</h1>" in shown.text) == (200, True)
    for part in ("neighbourhood", "activity", "history"):
        assert acme.get(f"{link}/{part}").status_code == 200


@pytest.mark.parametrize("user", ["a/b", "a/history/b", "o\u0301", "explain"])
def test_whoever_can_be_tracked_can_be_read(acme: TestClient, user: str) -> None:
    event = {**INTERACTION, "user_id": user, "event_id": f"of {user}", "ts": AT}
    assert acme.post("/graph/track", json=event).json()["graph"] == "updated"
    part = quote(user, safe="")
    assert [e["id"] for e in acme.get(f"/customers/{part}").json()["timeline"]] == [normalize("NFC", f"of {user}")]
    assert acme.get(f"/app/customers/{part}").status_code == 200
    assert acme.get(f"/app/customers/{part}/timeline", params={"before": "2030-01-01"}).status_code == 200


@pytest.mark.leaves_world
@pytest.mark.parametrize(
    ("path", "status"),
    [("/app/queries/nosuch%3Cscript%3E", 422), ("/users/power?min_products=%F0%9F%98%80", 422),
     ("/customers/u1?before=0001-01-01T00:00:00%2B14:00", 422), ("/app/queries/power_users?limit=-1", 422),
     ("/app/queries/power_users?limit=99999999999999999999999", 422)],
)  # fmt: skip
def test_what_can_not_be_is_the_askers_mistake(acme: TestClient, path: str, status: int) -> None:
    answer = acme.get(path)
    assert answer.status_code == status
    assert not [sent for sent in ("<script>", "nosuch", "😀", "99999") if sent in answer.text.split("Try again")[0]]


@pytest.mark.leaves_world
def test_an_error_that_nobody_thought_of_tells_the_log_where_and_nobody_what(
    acme: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: object, customer_id: str, limit: int = 100, before: object = None) -> None:
        raise ValueError("unthought of")

    monkeypatch.setattr("c360_pipeline.reads.customers.Customers.find", fails)
    before = structlog.get_config()
    configure_logging(as_json=False)
    try:
        answer = acme.get("/customers/john.smith@email.com")
    finally:
        structlog.configure(**before)
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    said = capsys.readouterr().err
    assert "unthought of" in said
    assert "/customers/{customer_id:text}" in said
    assert acme.headers["authorization"].removeprefix("Bearer ") not in said
    assert "john.smith" not in said
    assert 'route="/customers/{customer_id:text}",status="500"' in acme.get("/metrics").text


@pytest.mark.leaves_world
@pytest.mark.parametrize("error", [TimeoutError(), UnavailableError("secret"), ValueError("secret")])
def test_a_person_gets_a_page_whatever_goes_wrong(
    acme: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(self: object, *_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("c360_pipeline.serving.backend.Backend.answer", fails)
    shown = acme.get("/app/queries/power_users?limit=5")
    assert shown.status_code >= 500
    assert shown.headers["content-type"].startswith("text/html")
    assert 'href="/app/queries/power_users?limit=5"' in shown.text
    assert "secret" not in shown.text
    part = acme.get("/app/queries/power_users?limit=5", headers={"hx-request": "true"}).text
    assert "<html" not in part
    assert "Try again" in part
    for path in ("/app/queries/none", "/app/customers/u1/timeline?before=x"):
        assert acme.get(path).headers["content-type"].startswith("text/html")


@pytest.mark.leaves_world
def test_the_tenant_of_a_key_need_not_be_said(acme: TestClient) -> None:
    body = {"user_id": "u1", "top_k": 3}
    said = {**body, "tenant_id": "acme"}
    given, known = (acme.post("/recommend/products", json=one).json() for one in (body, said))
    assert given == known
    refused = acme.post("/graph/track", json={"user_id": "u1", "product_id": "p1", "interaction_type": "X"})
    assert [part["location"] for part in refused.json()["invalid"]] == ["body.interaction_type"]


@pytest.mark.leaves_world
def test_a_body_that_is_not_valid_is_not_quoted(acme: TestClient) -> None:
    refused = acme.post("/graph/track", json={**INTERACTION, "attrs": {"jane@doe.com": 2}})
    assert refused.status_code == 422
    assert refused.json()["invalid"][0]["location"] == "body.attrs.*"


def test_keys_that_nobody_has_are_looked_up_a_bounded_number_of_times(
    make_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c360_pipeline.serving.security.LOOK_UPS", parse("5/hour"))
    client = make_client()
    found = [client.get("/users/power", headers={"authorization": f"Bearer c360_{n}"}).status_code for n in range(7)]
    assert found == [401] * 5 + [429] * 2
    again = client.get("/users/power", headers={"authorization": "Bearer c360_0"})
    assert again.status_code == 401


def test_a_control_database_that_is_away_is_said_to_be(backend: Backend) -> None:
    backend.keys = ApiKeys({**backend.control.login, "port": 1})
    with TestClient(create_app(backend), raise_server_exceptions=False) as client:
        answer = client.get("/users/power", headers={"authorization": "Bearer c360_x"})
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers


@pytest.mark.leaves_world
def test_a_key_stands_for_a_moment_while_the_control_database_is_away(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, made = backend.keys.add("acme", "read")
    now = 0.0
    monkeypatch.setattr(security, "KEY_SECONDS", 0.0)
    app = create_app(backend)
    app.state.gate._clock = lambda: now
    with TestClient(app, raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {key}"
        assert client.get("/users/power").status_code == 200
        away = ApiKeys({**backend.control.login, "port": 1})
        monkeypatch.setattr(backend.keys, "_find", away._find)
        now = security.STANDING_SECONDS - 1
        assert client.get("/users/power").status_code == 200
        now = security.STANDING_SECONDS + 1
        assert client.get("/users/power").status_code == 503
        monkeypatch.undo()
        assert client.get("/users/power").status_code == 200
        backend.keys.revoke(made.key_id)
        assert client.get("/users/power").status_code == 401


@pytest.mark.leaves_world
def test_the_api_is_told_to_people_without_a_script_of_others(acme: TestClient) -> None:
    page = acme.get("/docs").text
    assert all(path in page for path in acme.get("/openapi.json").json()["paths"])
    assert "://" not in page.partition("<main")[0]


def test_graphs_of_features_are_the_archives(shop: World, graph: Graph, lake: Lake) -> None:
    assert graph.counts.type_counts()["ALSO_VIEWED"] == lake.count(PRODUCT_SIMILARITIES)
    graph.run("MATCH ()-[r:ALSO_VIEWED]->() WITH r LIMIT 1 DELETE r")
    ((tenant, entity, kind, _),) = shop.findings()
    assert (entity, kind) == ("(Product)-[:ALSO_VIEWED]->(Product)", "missing")
    assert tenant in ("acme", "globex", "initech")
    shop.findings(repair=True)
    assert shop.findings() == set()
    before = graph.counts.type_counts()["ALSO_VIEWED"]
    of_item = (pl.col("tenant_id") == "acme") & (pl.col("item_id") == "p35")
    events = lake.read(EVENTS).filter(of_item)
    for rows in (None, events):  # a product that goes and comes back has what it was similar to
        if rows is None:
            lake.commits.delete_rows(EVENTS, ["acme"], {"item_id": ["p35"]}, {})
        else:
            lake.commits.insert_new(EVENTS, rows)
        ProductGraph(lake, graph).project()
        EventGraph(lake, graph, ()).project()
        assert (graph.counts.type_counts()["ALSO_VIEWED"] == before) == (rows is not None)
        assert {found for found in shop.findings() if "ALSO_VIEWED" in found[1]} == set()
    shop.findings(repair=True)  # nobody stitched the events again
    lake.commits.replace(PRODUCT_SIMILARITIES, PRODUCT_SIMILARITIES.empty())
    assert shop.findings() == set()
    ProductGraph(lake, graph).project()
    EventGraph(lake, graph, ()).project()
    assert "ALSO_VIEWED" not in graph.counts.type_counts()
    assert shop.findings() == set()


@pytest.fixture
def browser(acme: TestClient, backend: Backend) -> TestClient:
    """A browser at the pages, not logged in yet; the key that it has is its header `key`."""
    key, _ = backend.keys.add("acme", "read")
    client = TestClient(acme.app, raise_server_exceptions=False, follow_redirects=False)
    client.headers["key"] = key
    return client


def log_in(browser: TestClient, **headers: str) -> Response:
    return browser.post("/app/login", data={"key": browser.headers["key"]}, headers=headers)


@pytest.mark.leaves_world
def test_a_session_is_not_the_key_and_ends_with_logout_or_with_the_key(browser: TestClient, backend: Backend) -> None:
    assert log_in(browser).status_code == 303
    (name, token) = next(iter(browser.cookies.items()))
    assert name == "c360_session"
    assert browser.headers["key"] not in token
    assert browser.get("/app/customers").status_code == 200
    for shown in ({"authorization": f"Bearer {token}"}, {"x-api-key": token}):
        assert TestClient(browser.app).get("/products/trending", headers=shown).status_code == 401
    key_as_cookie = TestClient(browser.app, cookies={name: browser.headers["key"]}, follow_redirects=False)
    assert key_as_cookie.get("/app/customers").status_code == 303
    assert browser.post("/app/logout").status_code == 303
    stolen = TestClient(browser.app, cookies={name: token}, follow_redirects=False)
    assert stolen.get("/app/customers").headers["location"] == "/app/login"

    log_in(browser)
    first = browser.cookies[name]
    log_in(browser)
    assert backend.keys.find_session(first) is None, "a new login ends the session of before"
    held = backend.keys.find_session(browser.cookies[name])
    assert held is not None
    backend.keys.revoke(held.key_id)
    assert backend.keys.find_session(browser.cookies[name]) is None
    assert backend.keys.begin_session(browser.headers["key"], 60) is None


@pytest.mark.leaves_world
def test_a_session_ends_in_time(browser: TestClient, backend: Backend) -> None:
    token = backend.keys.begin_session(browser.headers["key"], 0)
    assert token is not None
    assert backend.keys.find_session(token) is None


@pytest.mark.leaves_world
@pytest.mark.parametrize(
    ("headers", "is_ours"),
    [
        ({"sec-fetch-site": "same-origin", "origin": "null"}, True), ({"sec-fetch-site": "none"}, True),
        ({"origin": "http://testserver"}, True), ({}, True), ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False), ({"origin": "http://testserver:8051"}, False),
        ({"origin": "null"}, False), ({"origin": "https://evil.example"}, False),
    ],
)  # fmt: skip
def test_no_other_site_logs_anybody_in_or_out(browser: TestClient, headers: dict[str, str], is_ours: bool) -> None:
    assert log_in(browser, **headers).status_code == (303 if is_ours else 403)
    assert bool(browser.cookies) == is_ours
    log_in(browser)
    left = browser.post("/app/logout", headers=headers)
    assert left.status_code == (303 if is_ours else 403)
    assert (browser.get("/app/customers").status_code == 200) == (not is_ours)


@pytest.mark.leaves_world
def test_an_address_that_shows_wrong_keys_has_to_wait_and_others_do_not(browser: TestClient) -> None:
    for _ in range(10):
        assert browser.post("/app/login", data={"key": "guessed"}).status_code == 401
    assert log_in(browser).status_code == 429
    elsewhere = TestClient(browser.app, client=("192.0.2.7", 5_000), follow_redirects=False)
    assert elsewhere.post("/app/login", data={"key": browser.headers["key"]}).status_code == 303


@pytest.mark.leaves_world
def test_behind_tls_the_cookie_is_of_this_host_alone(
    acme: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("C360_API_URL", "https://c360.example")
    key, _ = backend.keys.add("acme", "read")
    with TestClient(create_app(backend), base_url="https://c360.example", follow_redirects=False) as client:
        said = client.post("/app/login", data={"key": key}).headers["set-cookie"]
        assert said.startswith("__Host-c360_session=")
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=strict"} <= {part.strip() for part in said.split(";")}
        assert client.get("/app/customers").status_code == 200
