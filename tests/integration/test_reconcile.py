"""Reconciliation: damages of all kinds are found, named and repaired, none is invented, and writers may go on."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from event_world import DAYS, Finding, World
from repetition import Trials, often, representatives

from c360_pipeline.core.catalog.tables import EVENTS, RECONCILIATION_FINDINGS, RECONCILIATIONS
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.removal_limit import REMOVALS_FREE
from c360_pipeline.errors import RemovalLimitError
from c360_pipeline.stages.reconciliation import reconcile as reconciling
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import digests_by_day, publish, summarise


class Damages:
    """Damages done by hand-written Cypher, each to an event of its own, and what should be found."""

    def __init__(self, world: World, seed: int) -> None:
        self.run: Callable[..., Any] = world.graph.run
        self.rng = np.random.default_rng(seed)
        self.events = world.lake.read(EVENTS).sort("event_id").sample(fraction=1, shuffle=True, seed=seed).to_dicts()
        self.of_event: dict[tuple[str, str], list[Finding]] = {}
        for kind, frame in world.archive.expected():
            end = {"Action": "id"}.get(kind.name.split(".")[0])
            if isinstance(kind, model.RelationshipKind):
                end = "from_id" if kind.source is model.ACTION else "to_id" if kind.target is model.ACTION else None
            if end is None or kind.is_owned:
                continue
            for row in frame.select(kind.key_columns).to_dicts():
                key = " ".join(row[name] for name in kind.key_columns)
                self.of_event.setdefault((row["tenant_id"], row[end]), []).append(
                    (row["tenant_id"], kind.name, "missing", key)
                )
        self.expected: set[Finding] = set()

    def do(self, number: int) -> None:
        """One damage of one of eight kinds."""
        event = self.events[number]
        ids = {"t": event["tenant_id"], "e": event["event_id"]}
        (self.lost_node, self.lost_relationship, self.ghost, self.altered, self.twice, self.elsewhere,
         self.ghost_relationship, self.unlabelled)[number % 8](event, ids, number)  # fmt: skip

    def lost_node(self, event: dict[str, Any], ids: dict[str, str], number: int) -> None:
        self.run("MATCH (e:Event {tenant_id: $t, id: $e}) DETACH DELETE e", **ids)
        self.expected |= set(self.of_event[ids["t"], ids["e"]])

    def lost_relationship(self, event: dict[str, Any], ids: dict[str, str], number: int) -> None:
        self.run("MATCH (:Session)-[r:HAS_ACTION]->(:Event {tenant_id: $t, id: $e}) DELETE r", **ids)
        self._expect(event, "missing")

    def ghost(self, event: dict[str, Any], ids: dict[str, str], number: int) -> None:
        self.run("CREATE (:Product {tenant_id: $t, id: $id, name: 'nothing', price: 1.0})", t=ids["t"], id=f"g{number}")
        self.expected.add((ids["t"], "Product", "ghost", f"{ids['t']} g{number}"))

    def altered(self, event: dict[str, Any], ids: dict[str, str], number: int) -> None:
        change = ("e.type = 'stolen'", "e.ts = e.ts + duration('PT1S')", "e.user_id = null", "e.attrs = 5",
                  "e.ts = toString(e.ts)", "e.ts = localdatetime(e.ts)", "e.type = [e.type]",
                  "e.ts = e.ts + duration({days: 3})", "e.attrs = ''")[number // 8 % 9]  # fmt: skip
        self.run(f"MATCH (e:Event {{tenant_id: $t, id: $e}}) SET {change}", **ids)
        self.expected.add((ids["t"], "Action", "altered", f"{ids['t']} {ids['e']}"))

    def twice(self, event: dict[str, Any], ids: dict[str, str], number: int) -> None:
        self.run("MATCH (s)-[:HAS_ACTION]->(e:Event {tenant_id: $t, id: $e}) CREATE (s)-[:HAS_ACTION]->(e)", **ids)
        self._expect(event, "duplicate")

    def elsewhere(self, event: dict[str, Any], ids: dict[str, str], number: int) -> None:
        other = self._with_another_session(event)
        self.run(
            "MATCH (:Session)-[r:HAS_ACTION]->(e:Event {tenant_id: $t, id: $e}) "
            "MATCH (s:Session {tenant_id: $t, id: $s}) DELETE r CREATE (s)-[:HAS_ACTION]->(e)",
            s=other["session_id"], **ids,
        )  # fmt: skip
        self._expect(event, "missing")
        self._expect(other, "ghost")

    def ghost_relationship(self, event: dict[str, Any], ids: dict[str, str], number: int) -> None:
        other = self._with_another_session(event)
        self.run(
            "MATCH (e:Event {tenant_id: $t, id: $e}), (s:Session {tenant_id: $t, id: $s}) "
            "CREATE (s)-[:HAS_ACTION]->(e)",
            s=other["session_id"], **ids,
        )  # fmt: skip
        self._expect(other, "ghost")

    def unlabelled(self, event: dict[str, Any], ids: dict[str, str], number: int) -> None:
        self.run("MATCH (e:Event {tenant_id: $t, id: $e}) REMOVE e:Event", **ids)
        self.expected.add((ids["t"], "Action", "altered", f"{ids['t']} {ids['e']}"))

    def _with_another_session(self, event: dict[str, Any]) -> dict[str, Any]:
        others = (e["session_id"] for e in self.events if e["tenant_id"] == event["tenant_id"])
        return {**event, "session_id": next(session for session in others if session != event["session_id"])}

    def _expect(self, event: dict[str, Any], kind: str) -> None:
        tenant = event["tenant_id"]
        key = f"{tenant} {event['session_id']} {event['event_id']}"
        self.expected.add((tenant, "(Session)-[:HAS_ACTION]->(Action)", kind, key))


DAMAGES, SEED = often(40, 300), 7


@pytest.mark.leaves_world
@pytest.mark.repeats
def test_random_damages_are_found_named_and_repaired_and_none_is_invented(
    world: World, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials(DAMAGES, SEED)
    before = world.digest()
    damages = Damages(world, SEED)
    for number in range(DAMAGES):
        damages.do(number)
    assert world.findings() == damages.expected
    with monkeypatch.context() as large:
        large.setattr(reconciling, "PART_ROWS", 130)
        assert world.findings() == damages.expected
    assert world.findings(repair=True, force=True) == damages.expected
    assert world.findings() == set()
    assert world.digest() == before


def test_an_archive_in_parts_is_the_archive(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {(r.tenant_id, r.kind.name): r for r in reconcile(world.archive, world.graph)}
    days = digests_by_day(whole.values())
    monkeypatch.setattr(reconciling, "PART_ROWS", 130)
    in_parts = {(r.tenant_id, r.kind.name): r for r in reconcile(world.archive, world.graph)}
    assert {name: r.archived for name, r in in_parts.items()} == {name: r.archived for name, r in whole.items()}
    assert sorted(digests_by_day(in_parts.values()), key=str) == sorted(days, key=str)
    world.graph.run("CREATE (:Visitor {tenant_id: 'acme', id: 'v'}), (:Session {tenant_id: 'acme', id: '\U0001f389'})")
    assert world.findings() == {("acme", "Visitor", "ghost", "acme v"), ("acme", "Session", "ghost", "acme \U0001f389")}
    world.findings(repair=True)


def test_what_differs_is_told_with_both_values_and_the_day(world: World) -> None:
    world.graph.run("MATCH (p:Product {tenant_id: 'acme', id: 'p1'}) SET p.price = toString(p.price), p.name = 'x'")
    event = world.lake.read(EVENTS).row(0, named=True)
    ids = {"t": event["tenant_id"], "e": event["event_id"]}
    world.graph.run("MATCH (e:Event {tenant_id: $t, id: $e}) SET e.ts = '2025' REMOVE e:Event", **ids)
    found = {f["entity"]: f for f in summarise(reconcile(world.archive, world.graph))["findings"]}
    assert found["Product"]["difference"] == "name: archive Product 1, graph x; price: archive 1.5, graph '1.5' (str)"
    assert found["Product"]["day"] is None
    at = int(event["ts"].timestamp() * 1_000_000)
    assert found["Action"]["difference"] == f"ts: archive {at}, graph '2025' (str); :Event: not there"
    assert found["Action"]["day"] == event["event_date"].isoformat()


def test_a_relationship_that_leads_elsewhere_says_where_it_should(world: World) -> None:
    world.graph.run("MATCH (:Product {tenant_id: 'acme', id: 'p1'})-[r:IN_CATEGORY]->() DELETE r")
    world.graph.run("MATCH (p:Product {tenant_id: 'acme', id: 'p1'}), (c:Category {tenant_id: 'acme', name: 'c3'}) "
                    "CREATE (p)-[:IN_CATEGORY]->(c)")  # fmt: skip
    found = summarise(reconcile(world.archive, world.graph))["findings"]
    assert {(f["kind"], f["key"], f["difference"]) for f in found} == {
        ("missing", "acme p1 c1", "the graph has c3 instead"),
        ("ghost", "acme p1 c3", "the archive has c1 instead"),
    }


ORPHANS = {
    "a tenant that nobody has": "CREATE (:Journey {tenant_id: 'nobody', id: 'x'})",
    "no tenant": "CREATE (:User {id: 'x'})",
    "no key": "CREATE (:Session {tenant_id: 'acme'})",
    "a key of another type": "CREATE (:Product {tenant_id: 'acme', id: 5})",
    "another label": "CREATE (:Event {tenant_id: 'acme', id: 'x'})",
    "half of the labels": "MATCH (e:Event) WITH e ORDER BY e.id LIMIT 1 REMOVE e:Action",
    "across tenants": (
        "MATCH (u:User {tenant_id: 'acme'}), (p:Product {tenant_id: 'globex'}) WITH u, p LIMIT 1 "
        "CREATE (u)-[:VIEWED]->(p)"
    ),
    "between other labels": (
        "MATCH (u:User {tenant_id: 'acme'}), (c:Category {tenant_id: 'acme'}) WITH u, c LIMIT 1 "
        "CREATE (u)-[:VIEWED]->(c)"
    ),
}


@pytest.mark.leaves_world
@pytest.mark.parametrize("orphan", representatives(ORPHANS, "no key", "half of the labels", "across tenants"))
def test_what_belongs_to_nobody_is_found_and_removed(world: World, orphan: str) -> None:
    before, counts = world.digest(), world.graph.counts.all()
    world.graph.run(ORPHANS[orphan])
    found = world.findings()
    assert any(kind == "ghost" for _, _, kind, _ in found)
    world.findings(repair=True)
    assert world.findings() == set()
    assert world.digest() == before
    assert world.graph.counts.all() == counts


@pytest.mark.leaves_world
def test_too_many_differences_stop_the_repair(world: World) -> None:
    before = world.digest()
    world.graph.run(
        "MATCH (u:User) WITH u ORDER BY u.tenant_id, u.id LIMIT $n SET u.first_seen = null", n=REMOVALS_FREE
    )
    assert len(world.findings(repair=True)) == REMOVALS_FREE
    world.graph.run("MATCH (u:User) WITH u ORDER BY u.id LIMIT $n SET u.first_seen = null", n=60)
    damaged = world.digest()
    with pytest.raises(RemovalLimitError, match=r"User: more than 5% differ.*--force"):
        world.findings(repair=True)
    assert world.digest() == damaged
    assert len(world.findings(repair=True, force=True)) == 60
    assert world.digest() == before


def test_what_was_found_and_repaired_is_kept(world: World) -> None:
    world.graph.run("CREATE (:User {tenant_id: 'acme', id: 'nobody'})")
    for run_id in ("one", "one"):  # a step that is tried again
        publish(world.lake, reconcile(world.archive, world.graph), run_id)
    publish(world.lake, reconcile(world.archive, world.graph, repair=True), "two")
    rows = world.lake.read(RECONCILIATION_FINDINGS).select("run_id", "label", "kind", "key", "repaired").sort("run_id")
    ghost = ("User", "ghost", "acme nobody")
    assert rows.rows() == [("one", *ghost, False), ("two", *ghost, True)]
    buckets = world.lake.read(RECONCILIATIONS).filter(pl.col("run_id") == "one")
    actions = buckets.filter((pl.col("entity") == "Action") & (pl.col("tenant_id") == "acme"))
    assert actions.height == DAYS
    assert actions["expected"].sum() == 500
    assert buckets.select("tenant_id", "entity", "day").is_duplicated().sum() == 0


def test_what_the_graph_has_not_taken_up_yet_is_no_drift(world: World) -> None:
    world.land(60, seed=2)
    assert world.findings() == set()
    damaged = {("acme", "User", "ghost", "acme nobody")}
    world.graph.run("CREATE (:User {tenant_id: 'acme', id: 'nobody'})")
    assert world.findings() == damaged
    world.findings(repair=True)
    world.project()
    assert world.findings() == set()


@pytest.mark.repeats
def test_half_of_a_projection_is_no_drift(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = world.graph.writer._write
    for after in range(1, 14, often(4, 2)):
        world.land(60, seed=3)
        writes = 0

        def failing(*arguments: Any, allowed: int = after, **options: Any) -> None:
            nonlocal writes
            writes += 1
            if writes > allowed:
                raise ConnectionError
            whole(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(world.graph.writer, "_write", failing)
            with pytest.raises(ConnectionError):
                world.project()
        assert world.findings() == set(), after
    world.project()
    assert world.findings() == set()


def test_what_another_run_brings_for_the_first_time_is_no_drift_and_an_emptied_graph_is(world: World) -> None:
    """Two runs of a new installation: one compares while the other has landed events and not projected them."""
    world.graph.checkpoints.forget_all()
    world.graph.run("MATCH (n) WHERE NOT n:ProjectionCheckpoint DETACH DELETE n")

    def found(*, beside_others: bool) -> set[str]:
        results = reconcile(world.archive, world.graph, beside_others=beside_others)
        return {finding["kind"] for finding in summarise(results)["findings"]}

    assert found(beside_others=True) == set()
    assert found(beside_others=False) == {"missing"}
    world.project()
    world.graph.run("MATCH (e:Event) WITH e ORDER BY e.id LIMIT 1 DETACH DELETE e")
    assert found(beside_others=True) == {"missing"}


@pytest.mark.repeats
def test_writers_may_go_on_meanwhile(world: World) -> None:
    stop, failed = threading.Event(), []

    def write() -> None:
        try:
            while not stop.is_set():
                world.land(12, seed=4)
                world.project()
        except BaseException as error:
            failed.append(error)
            raise

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(often(3, 10)):
            assert world.findings() == set()
    finally:
        stop.set()
        writer.join()
    assert not failed
    assert world.count > 1_500
    assert world.findings() == set()
