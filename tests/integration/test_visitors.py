"""Visitors in the graph: a login moves what came before, in batches and within a second; moves can be undone."""

import json
from collections.abc import Callable
from datetime import timedelta
from itertools import permutations
from typing import Any

import polars as pl
import psycopg
import pytest
from event_world import POLICY
from repetition import IS_SOAK, representatives
from typer.testing import CliRunner
from visitor_world import START, Shop, archived, event

from c360_pipeline.cli import app
from c360_pipeline.core.catalog.tables import EVENTS, SESSIONS, USER_CONSENTS, USER_TRAITS
from c360_pipeline.core.contract.events import Event
from c360_pipeline.core.contract.frames import event_frame
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.errors import ConfigError
from c360_pipeline.reads.recommend import RecommendationRequest, Recommender
from c360_pipeline.stages.projection.everything import bring_up_visitors
from c360_pipeline.stages.realtime.unlanded_events import write_unlanded
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import graph_digest
from c360_pipeline.stages.visitors.counted import EventsAt
from c360_pipeline.stages.visitors.decisions import Decisions
from c360_pipeline.stages.visitors.tables import VisitorTables
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb

VIEWS = Statement("""
    MATCH (u:User {tenant_id: 'acme'})-[r:VIEWED]->(p:Product) RETURN u.id AS user, p.id AS product, r.count AS number
""")
MOMENTS = Statement("""
    MATCH (u:User {tenant_id: 'acme'})-[r:VIEWED]->(p:Product)
    RETURN u.id + ' ' + p.id AS pair, r.first_interaction AS first, r.last_interaction AS last
""")
MEMBERS = Statement("""
    MATCH (u:User {tenant_id: 'acme'})-[m:MEMBER_OF]->(g:Group {tenant_id: 'acme'})
    RETURN u.id AS user, g.type AS type, g.id AS id
""")
PROPERTIES_OF_USERS = Statement("MATCH (u:User {tenant_id: 'acme'}) RETURN u.id AS id, properties(u) AS held")
DAMAGE_A_PROPERTY = Statement("MATCH (u:User {tenant_id: 'acme', id: 'ana'}) SET u.age = 31")
GROUPS = Statement("MATCH (g:Group {tenant_id: 'acme'}) RETURN g.id AS id, g.facts AS facts")
SESSION_USERS = Statement("""
    MATCH (u:User {tenant_id: 'acme'})-[:HAS_SESSION]->(s:Session) RETURN u.id AS user, s.id AS session
""")


def views(graph: Graph) -> dict[tuple[str, str], int]:
    return {(row["user"], row["product"]): row["number"] for row in graph.query(VIEWS)}


@pytest.fixture
def shop(lake: Lake, graph: Graph) -> Shop:
    return Shop(lake, graph)


def as_batches(shop: Shop, events: list[Event]) -> None:
    """Some events after the others land and are projected."""
    for n in range(0, len(events), 3):
        archived(shop.lake, events[n : n + 3])
        shop.project()


def at_once(shop: Shop, events: list[Event]) -> None:
    """Each event is written as it comes, then all land."""
    for one in events:
        write_unlanded(shop.graph, event_frame([one]))
        write_unlanded(shop.graph, event_frame([one]))  # delivered twice


STORY = [
    event(0, None, "phone", "s"), event(1, None, "phone", "s", item_id="vase"), event(2, "ana", "phone", "s"),
    event(3, None, "phone", "s"), event(5, None, "tablet", "t"), event(6, "bo", "tablet", "t"),
    event(7, None, "tablet", "u"), event(8, "cy", "tablet", "u"), event(9, None, "tablet", "u"),
]  # fmt: skip
"""Ana alone on her phone; Bo and Cy on one tablet, where the last visit is nobody's."""


MIXED = [STORY[n] for n in (7, 2, 8, 0, 5, 3, 1, 6, 4)]
WAYS = [(come, order) for come in (as_batches, at_once) for order in (STORY, STORY[::-1], MIXED)]


@pytest.mark.parametrize(("come", "order"), representatives(WAYS, (as_batches, MIXED), (at_once, STORY[::-1])))
def test_what_was_done_before_a_login_counts_for_who_logged_in(
    shop: Shop, come: Callable[[Shop, list[Event]], None], order: list[Event]
) -> None:
    come(shop, order)
    counted = {("ana", "lamp"): 3, ("ana", "vase"): 1, ("bo", "lamp"): 2, ("cy", "lamp"): 2}
    assert views(shop.graph) == counted
    assert shop.known_in_graph() == {"phone": "ana"}
    assert shop.findings() == set()
    moments = shop.graph.query(MOMENTS)
    archived(shop.lake, order)
    shop.project()
    assert views(shop.graph) == counted
    assert sorted(map(repr, shop.graph.query(MOMENTS))) == sorted(map(repr, moments))
    assert shop.known() == shop.known_in_graph() == {"phone": "ana"}
    assert shop.findings() == set()


def test_a_second_login_takes_back_what_the_first_one_moved(shop: Shop, graph: Graph) -> None:
    first = [event(0, None, "phone", "s"), event(1, None, "phone", "t"), event(2, "ana", "phone", "t")]
    archived(shop.lake, first)
    shop.project()
    assert views(graph) == {("ana", "lamp"): 3}
    write_unlanded(graph, event_frame([event(3, "bo", "phone", "u")]))
    assert views(graph) == {("ana", "lamp"): 2, ("bo", "lamp"): 1}  # the visit of session s is nobody's now
    assert {(row["user"], row["session"]) for row in graph.query(SESSION_USERS)} == {("ana", "t"), ("bo", "u")}
    assert shop.findings() == set()
    archived(shop.lake, [event(3, "bo", "phone", "u")])
    shop.project()
    assert shop.findings() == set()
    assert shop.known() == shop.known_in_graph() == {}
    # It never was: with it, everything goes back.
    shop.lake.commits.merge(EVENTS, EVENTS.empty(), pl.DataFrame({"tenant_id": ["acme"], "event_id": ["e3"]}))
    shop.project()
    assert views(graph) == {("ana", "lamp"): 3}
    assert shop.findings() == set()


def test_logins_in_any_order_before_they_land_leave_no_trace_of_the_order(shop: Shop, graph: Graph) -> None:
    pre = [event(0, None, "phone", "s"), event(4, "ana", None, "x")]
    ways = list(permutations([event(1, "bo", "phone", "s"), event(2, "ana", "phone", "s"), event(3, None, "phone")]))
    for orders in ways if IS_SOAK else ways[2:4]:
        graph.writer.clear()
        archived(shop.lake, pre)
        shop.project()
        for one in orders:
            write_unlanded(graph, event_frame([one]))
        assert shop.findings() == set()
        archived(shop.lake, orders)
        shop.project()
        assert views(graph) == {("ana", "lamp"): 2, ("bo", "lamp"): 2}
        assert shop.findings() == set(), [one.event_id for one in orders]
        keys = shop.lake.read(EVENTS).select(EVENTS.key)
        shop.lake.commits.merge(EVENTS, EVENTS.empty(), keys)


def test_who_belongs_to_a_group_follows_whom_events_count_for(shop: Shop, graph: Graph) -> None:
    def members() -> set[tuple[str, str, str]]:
        return {(row["user"], row["type"], row["id"]) for row in graph.query(MEMBERS)}

    said = {"group.id": "c-77", "group.type": "company", "group.name": "Example"}
    before_login = event(0, None, "phone", "s", action="group", attrs=said)
    renamed = event(9, "cy", "desk", "d", action="group", attrs={**said, "group.name": "Example GmbH"})
    archived(shop.lake, [before_login, event(1, "ana", "phone", "s"), event(4, "ana", None, "t")])
    shop.project()
    assert members() == {("ana", "company", "c-77")}
    archived(shop.lake, [renamed, event(2, "bo", "phone", "u")])
    shop.project()
    # Two people on one phone: what was done in a session counts for who logged in next there, which is Ana still.
    assert members() == {("ana", "company", "c-77"), ("cy", "company", "c-77")}
    assert {row["id"]: row["facts"] for row in graph.query(GROUPS)} == {"c-77": '{"name": "Example GmbH"}'}
    assert shop.findings() == set()
    for gone in (renamed, before_login):
        keys = pl.DataFrame({"tenant_id": ["acme"], "event_id": [gone.event_id]})
        shop.lake.commits.merge(EVENTS, EVENTS.empty(), keys)
        shop.project()
        assert shop.findings() == set()
    assert members() == set()
    assert graph.query(GROUPS) == []


def test_a_visitor_is_split_and_the_split_is_undone(shop: Shop, graph: Graph) -> None:
    archived(shop.lake, STORY[:4])
    shop.project()
    bring_up_visitors(shop.lake, graph, POLICY, shop.archive.control)
    before, digest = views(graph), graph_digest(reconcile(shop.archive, graph))
    decisions = Decisions(shop.lake)
    found = decisions.visitor("phone", None)
    assert (found.tenant_id, found.users, found.anonymous_events, found.user_id) == ("acme", {"ana": 1}, 3, "ana")
    decisions.split(found, "sold", undo=False)
    assert shop.findings() == set()  # the decision is on its way
    bring_up_visitors(shop.lake, graph, POLICY, shop.archive.control)
    assert views(graph) == {("ana", "lamp"): 1}
    assert shop.known() == shop.known_in_graph() == {}
    assert shop.findings() == set()
    assert decisions.visitor("phone", "acme").is_split
    write_unlanded(graph, event_frame([event(4, None, "phone")]))
    assert views(graph) == {("ana", "lamp"): 1}
    archived(shop.lake, [event(4, None, "phone")])
    shop.project()
    assert shop.findings() == set()
    shop.lake.commits.merge(EVENTS, EVENTS.empty(), pl.DataFrame({"tenant_id": ["acme"], "event_id": ["e4"]}))
    decisions.split(found, "", undo=True)
    bring_up_visitors(shop.lake, graph, POLICY, shop.archive.control)
    assert views(graph) == before
    assert graph_digest(reconcile(shop.archive, graph)) == digest


def test_the_commands_say_part_and_undo(shop: Shop, graph: Graph, control: ControlDb) -> None:
    def said(*arguments: str) -> Any:
        result = CliRunner().invoke(app, ["visitor", *arguments, "--json"])
        assert result.exit_code == 0, (result.output, result.exception)
        return json.loads(result.stdout)

    archived(shop.lake, [*STORY[:4], event(40, None, "phone", None), event(52, None, "phone", None)])
    shop.project()
    bring_up_visitors(shop.lake, graph, control.key_rules.policy(), shop.archive.control)
    before = views(graph)
    assert said("show", "phone")["user_id"] == "ana"
    assert said("split", "phone", "--reason", "sold")["visitor_user"] == 1
    assert views(graph) == {("ana", "lamp"): 1}
    assert said("show", "phone")["is_split"]
    assert said("split", "phone", "--undo")["visitor_user"] == 1
    assert views(graph) == before
    assert said("gap", "10", "--tenant", "acme")["sessions"] == 2
    assert set(shop.lake.read(SESSIONS)["session_id"]) == {"s", "gap:e40", "gap:e52"}
    assert said("gap", "--tenant", "acme")["sessions"] == 2
    assert shop.findings() == set()
    nobody = CliRunner().invoke(app, ["visitor", "split", "no-such-visitor"])
    assert isinstance(nobody.exception, ConfigError)
    assert "no-such-visitor" in str(nobody.exception)


def test_sessions_are_made_by_gaps_and_follow_late_events(shop: Shop, graph: Graph) -> None:
    of_gaps = [event(0, None, "phone", None), event(50, None, "phone", None), event(55, "ana", "phone", None)]
    archived(shop.lake, of_gaps)
    shop.project()
    assert shop.findings() == set()

    def sessions() -> list[tuple[str, int, float, str | None]]:
        table = shop.lake.read(SESSIONS).sort("first_event_ts")
        return table.select("session_id", "event_count", "seconds", "user_id").rows()

    assert sessions() == [("gap:e0", 1, 0.0, "ana"), ("gap:e50", 2, 300.0, "ana")]
    archived(shop.lake, [event(25, None, "phone", None)])  # late: it joins them
    shop.project()
    assert sessions() == [("gap:e0", 4, 3300.0, "ana")]
    assert shop.findings() == set()
    Decisions(shop.lake).set_gap("acme", 20, "short visits")
    bring_up_visitors(shop.lake, graph, POLICY, shop.archive.control)
    assert [row[0] for row in sessions()] == ["gap:e0", "gap:e25", "gap:e50"]
    assert shop.findings() == set()
    whole = VisitorTables(shop.lake)
    shop.lake.commits.overwrite(SESSIONS, iter([SESSIONS.empty()]))
    whole.publish_all()
    shop.project()
    assert shop.findings() == set()


SAID = Statement("""
    MATCH (u:User {tenant_id: 'acme', id: 'ana'}) RETURN u.traits AS traits, u.consents AS consents
""")


def test_what_is_said_of_a_user_shows_at_once_and_is_what_the_archive_says(shop: Shop, graph: Graph) -> None:
    said = [
        event(0, None, "phone", "s", consent={"ads": "granted", "mail": "true"}),
        event(2, "ana", "phone", "s", traits={"plan": "free", "email": "ana@x.test"}),
        event(1, None, "phone", "s", traits={"plan": "none"}),  # older: landing knows where it belongs
        event(3, None, "phone", "t", consent={"ads": "denied"}, traits={"plan": "pro"}),
    ]
    for one in said:
        write_unlanded(graph, event_frame([one]))
    (now,) = graph.query(SAID)
    assert now["traits"] == '{"email": "ana@x.test", "plan": "pro"}'
    assert '"ads": "denied"' in now["consents"]
    assert shop.findings() == set()
    archived(shop.lake, said)
    shop.project()
    assert graph.query(SAID) == [{"traits": now["traits"], "consents": '{"ads": "denied", "mail": "denied"}'}]
    assert shop.findings() == set()
    consents = shop.lake.read(USER_CONSENTS).filter(purpose="ads").sort("set_at")
    assert consents.select("user_id", "state", "event_id").rows() == [("ana", "granted", "e0"), ("ana", "denied", "e3")]
    assert consents["until"].to_list() == [START + timedelta(minutes=3), None]
    traits = shop.lake.read(USER_TRAITS).sort("name", "set_at")
    assert traits.select("name", "value", "is_personal").rows() == [
        ("email", "ana@x.test", True), ("plan", "none", False), ("plan", "free", False), ("plan", "pro", False)
    ]  # fmt: skip


def test_traits_that_a_row_names_are_properties_of_users_with_types(
    shop: Shop, graph: Graph, control: ControlDb
) -> None:
    def held() -> dict[str, dict[str, Any]]:
        rows = graph.query(PROPERTIES_OF_USERS)
        return {row["id"]: {name: row["held"][name] for name in ("plan", "age") if name in row["held"]} for row in rows}

    visit = event(0, None, "phone", "s", traits={"plan": "free", "age": "30"})
    archived(shop.lake, [visit, event(1, "cy", None, "t", traits={"plan": "pro"}), event(2, "ana", None, "a")])
    shop.project()
    assert held() == {"cy": {}, "ana": {}}
    control.execute(
        "INSERT INTO user_properties (property, trait, type) VALUES ('plan', 'plan', 'text'), ('age', 'age', 'integer')"
    )
    shop.properties = control.read().properties
    shop.project()
    assert held() == {"cy": {"plan": "pro"}, "ana": {}}
    assert shop.findings() == set()
    # A login makes what the visitor said the customer's; a second user takes it back; another value is newer.
    archived(shop.lake, [event(3, "ana", "phone", "s")])
    shop.project()
    assert held()["ana"] == {"plan": "free", "age": 30}
    archived(
        shop.lake, [event(4, "bo", "phone", "u"), event(5, "cy", None, "t", traits={"plan": "team", "age": "old"})]
    )
    shop.project()
    assert held() == {"ana": {"plan": "free", "age": 30}, "bo": {}, "cy": {"plan": "team"}}
    assert shop.findings() == set()
    graph.run(DAMAGE_A_PROPERTY)
    assert {(entity, kind) for _, entity, kind, _ in shop.findings(repair=True)} == {("User.age", "altered")}
    assert held()["ana"] == {"plan": "free", "age": 30}
    # A row that goes takes the property along, and a rebuilt graph has the others.
    control.execute("DELETE FROM user_properties WHERE property = 'plan'")
    shop.properties = control.read().properties
    shop.project()
    assert held() == {"ana": {"age": 30}, "bo": {}, "cy": {}}
    assert shop.findings() == set()
    with pytest.raises(psycopg.errors.CheckViolation):
        control.execute("INSERT INTO user_properties (property, trait) VALUES ('tenant_id', 'x')")
    with pytest.raises(psycopg.errors.CheckViolation, match="age has another type"):
        control.execute("INSERT INTO user_properties (tenant_id, property, trait) VALUES ('globex', 'age', 'years')")


def test_who_refuses_a_purpose_is_left_out_at_once(shop: Shop, graph: Graph) -> None:
    bought = [("ana", "lamp"), ("ana", "vase"), ("bo", "lamp"), ("bo", "desk"), ("cy", "lamp"), ("cy", "rug")]
    orders = [event(n, who, None, who, action="purchase", item_id=what) for n, (who, what) in enumerate(bought)]
    archived(shop.lake, orders)
    shop.project()
    recommender = Recommender(graph, "acme", lambda: ["ads"])

    def ids(user: str) -> dict[str, str]:
        return {one.product_id: one.reason for one in recommender.recommend(RecommendationRequest(user, 10))}

    before = ids("ana")
    assert set(before) == {"desk", "rug"}
    assert "trending" not in before["rug"]
    no, yes = (
        event(n, "cy", None, "x", action="page", item_id=None, consent={"ads": word})
        for n, word in ((9, "denied"), (10, "granted"))
    )
    write_unlanded(graph, event_frame([no]))
    assert set(ids("ana")) == {"desk"}  # what Cy did is used for nobody
    assert all(reason.startswith("trending") for reason in ids("cy").values())
    write_unlanded(graph, event_frame([yes]))
    assert ids("ana") == before
    used = EventsAt.now(shop.lake)
    purposes = pl.DataFrame({"tenant_id": ["acme"], "purpose": ["ads"]})
    archived(shop.lake, [no])
    assert used.of_tenants(["acme"], ["user_id"], purposes).collect().height == 6
    later = EventsAt.now(shop.lake).of_tenants(["acme"], ["user_id"], purposes).collect()
    assert set(later["user_id"]) == {"ana", "bo"}


@pytest.mark.parametrize(
    ("landed", "written", "with_them"),
    [
        # A view without a session counted for Ana until Bo logged in on the same phone.
        ([event(0, "ana", "phone", None)], [event(5, None, "phone", None, item_id="vase"),
                                            event(6, "bo", "phone", None)], []),
        # A file lands with them that says that the phone is shared.
        ([event(0, "ana", "phone", "s")], [event(5, None, "phone", "t", item_id="vase")],
         [event(1, "bo", "phone", "u")]),
        ([], [event(5, None, "phone", "t", item_id="vase"), event(6, "ana", "phone", "u")],
         [event(1, "bo", "phone", "v")]),
        # What a word that names nobody did.
        ([event(0, "guest", None, None)], [event(5, "guest", "phone", None), event(6, "ana", "phone", None)], []),
        # A consent of somebody who then is nobody known.
        ([event(0, "ana", "phone", "s", consent={"ads": "denied"})],
         [event(5, None, "phone", "t", consent={"ads": "granted"}), event(6, "bo", "phone", "u")], []),
    ],
)  # fmt: skip
def test_what_a_login_moved_before_it_landed_leaves_nothing_that_the_archive_does_not_say(
    shop: Shop, graph: Graph, landed: list[Event], written: list[Event], with_them: list[Event]
) -> None:
    archived(shop.lake, landed)
    shop.project()
    for one in written:
        write_unlanded(graph, event_frame([one]))
    assert shop.findings() == set()
    archived(shop.lake, [*written, *with_them])
    shop.project()
    assert shop.findings() == set()


def test_a_refusal_that_has_not_landed_outlives_a_run(shop: Shop, graph: Graph) -> None:
    archived(shop.lake, [event(0, "ana", None, "s")])
    shop.project()
    write_unlanded(graph, event_frame([event(5, "ana", None, "s", consent={"ads": "denied"})]))
    archived(shop.lake, [event(1, "ana", None, "s")])
    shop.project()
    assert graph.query(SAID) == [{"traits": None, "consents": '{"ads": "denied"}'}]
    assert shop.findings() == set()
