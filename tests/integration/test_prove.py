"""The proof of a run: what changed is compared, the rest is counted, and everything is compared once a day."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from event_world import DAYS, World

from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.reads.customer_pages import CustomerPages
from c360_pipeline.stages.reconciliation.proofs import Proof, everything_proved_at
from c360_pipeline.stages.reconciliation.prove import prove, summary
from c360_pipeline.stages.reconciliation.results import publish


def found(world: World, proof: Proof | None, **how: object) -> set[tuple[str, str]]:
    """Kind and key of what a proof finds."""
    proved = prove(world.archive, world.graph, proof, **{"small": 0, **how})  # type: ignore[arg-type]
    parts = [(r.kind.name, row["key"]) for r in proved.differing for row in r.findings().iter_rows(named=True)]
    return set(parts)


def test_a_run_compares_what_changed_and_knows_the_number_of_the_rest(world: World) -> None:
    first = world.prove()
    assert first.proof.reason == "it is the first comparison"
    world.land(60, seed=5)
    world.project()
    second = world.prove()
    assert second.differing == []
    assert second.proof.reason is None
    assert 0 < second.proof.rows < first.proof.rows
    whole = prove(world.archive, world.graph, None).proof
    known = {name: count for name, count in second.proof.counts.items() if count is not None}
    assert known.items() <= whole.counts.items()
    assert second.proof.uncounted == ["(Product)-[:ALSO_VIEWED]->(Product)", "(Product)-[:LEADS_TO]->(Product)",
                                      "(Product)-[:SIMILAR_TO]->(Product)", "Product"]  # fmt: skip
    third = world.prove()
    assert (third.proof.rows, third.differing) == (0, [])
    assert summary(third)["compared"] == "what changed since the last comparison, and counts of the rest"


TOUCHED = {
    "a node that is gone": ("MATCH (e:Event {tenant_id: $t, id: $e}) DETACH DELETE e", "Action"),
    "a value that is another": ("MATCH (e:Event {tenant_id: $t, id: $e}) SET e.type = 'stolen'", "Action"),
    "a value of another type": ("MATCH (e:Event {tenant_id: $t, id: $e}) SET e.ts = toString(e.ts)", "Action"),
    "a label that is gone": ("MATCH (e:Event {tenant_id: $t, id: $e}) REMOVE e:Event", "Action"),
    "a user's moment": ("MATCH (u:User {tenant_id: $t, id: $u}) SET u.first_seen = null", "User"),
    "a relationship too many": (
        "MATCH (s:Session {tenant_id: $t, id: $s}), (p:Event {tenant_id: $t}) WHERE NOT (s)-[:HAS_ACTION]->(p) "
        "WITH s, p LIMIT 1 CREATE (s)-[:HAS_ACTION]->(p)",
        "(Session)-[:HAS_ACTION]->(Action)",
    ),
    "a relationship twice": (
        "MATCH (u:User {tenant_id: $t, id: $u})-[:HAS_SESSION]->(s) WITH u, s LIMIT 1 CREATE (u)-[:HAS_SESSION]->(s)",
        "(User)-[:HAS_SESSION]->(Session)",
    ),
    "a journey's number": (
        "MATCH (:Event {tenant_id: $t, id: $e})-[:HAS_KEY]->()-[:PART_OF]->(j:Journey) SET j.event_count = 0",
        "Journey",
    ),
    "a status": ("MATCH (e:Event {tenant_id: $t, id: $e}) SET e.status = 'NEW'", "Action.status"),
}


def test_damage_to_what_changed_is_found_by_the_next_run(world: World) -> None:
    world.prove()
    landed = world.land(3 * len(TOUCHED), seed=8)
    world.project()
    proof = world.proof
    for row, (statement, kind) in zip(landed.iter_rows(named=True), TOUCHED.values(), strict=False):
        ids = {"t": row["tenant_id"], "e": row["event_id"], "u": row["user_id"], "s": row["session_id"]}
        world.graph.run(statement, **ids)
        assert kind in {name for name, _ in found(world, proof)}
        world.findings(repair=True)
    assert found(world, proof) == set()


COUNTED = {
    "a node that is gone": ("MATCH (e:Event) WITH e ORDER BY e.tenant_id, e.id LIMIT 1 DETACH DELETE e", "Action"),
    "a node of nobody": ("CREATE (:User {id: 'x'})", "User"),
    "a node of a tenant that nobody has": ("CREATE (:Journey {tenant_id: 'nobody', id: 'x'})", "Journey"),
    "a relationship that is gone": (
        "MATCH (:User)-[r:VIEWED]->() WITH r LIMIT 1 DELETE r", "(User)-[:VIEWED]->(Product)"
    ),
    "half of a node's labels": ("MATCH (e:Event) WITH e ORDER BY e.id LIMIT 1 REMOVE e:Action", "Action"),
}  # fmt: skip


@pytest.mark.leaves_world
def test_damage_to_what_nobody_touched_is_found_at_once_where_a_count_shows_it(world: World) -> None:
    proof = world.prove().proof
    for statement, kind in COUNTED.values():
        world.graph.run(statement)
        assert kind in {name for name, _ in found(world, proof)}
        world.findings(repair=True)
    assert found(world, proof) == set()


@pytest.mark.leaves_world
def test_damage_that_no_count_shows_is_found_within_the_day(world: World) -> None:
    world.prove()
    event = world.lake.read(EVENTS).row(0, named=True)
    ids = {"t": event["tenant_id"], "e": event["event_id"]}
    world.graph.run("MATCH (e:Event {tenant_id: $t, id: $e}) SET e.type = 'stolen'", **ids)
    assert found(world, world.proof) == set()
    assert world.proof is not None
    yesterday = replace(world.proof, everything_at=datetime.now(UTC) - timedelta(hours=24))
    assert found(world, yesterday) == {("Action", f"{ids['t']} {ids['e']}")}
    # A small graph is compared whole each time.
    assert found(world, world.proof, small=10**9) == {("Action", f"{ids['t']} {ids['e']}")}
    world.findings(repair=True)


def test_what_is_not_known_any_more_is_compared_whole(world: World) -> None:
    proof = world.prove().proof
    assert prove(world.archive, world.graph, proof, small=0).proof.reason is None
    other = replace(proof, control="of other rows")
    assert prove(world.archive, world.graph, other, small=0).proof.reason == (
        "labels, mappings or properties have changed"
    )
    later = {name: replace(version, number=version.number + 1) for name, version in proof.pinned.versions.items()}
    ahead = replace(proof, pinned=replace(proof.pinned, versions=later))
    said = "the graph is not the one of the last comparison, or was made again"
    assert prove(world.archive, world.graph, ahead, small=0).proof.reason == said
    world.lake.maintenance.forget_versions(EVENTS.name)
    assert prove(world.archive, world.graph, proof, small=0).proof.reason == said


def test_a_proof_is_kept_and_read_again(world: World) -> None:
    assert Proof.newest(world.lake) is None
    assert everything_proved_at(world.lake) is None
    proof = prove(world.archive, world.graph, None).proof
    for _ in range(2):  # a step that is tried again
        proof.keep(world.lake, "one")
    assert Proof.newest(world.lake) == proof
    later = replace(proof, reason=None, proved_at=proof.proved_at + timedelta(minutes=1))
    later.keep(world.lake, "two")
    assert Proof.newest(world.lake) == later
    assert everything_proved_at(world.lake) == proof.everything_at
    assert world.lake.scan(EVENTS).select(pl.len()).collect().item() == world.count


def test_the_page_shows_the_comparison_of_everything_and_what_later_ones_found(world: World) -> None:
    page = CustomerPages(world.graph, world.lake, "acme")
    assert page.comparison() == {"at": None, "changes_at": None, "days": [], "kinds": []}
    whole = world.prove()
    publish(world.lake, whole.results, "everything")
    first = page.comparison()
    assert (len(first["days"]), first["changes_at"]) == (DAYS + 1, None)
    rows_of_actions = dict(first["kinds"])["Action"]
    world.land(9, seed=3)
    world.project()
    world.graph.run("CREATE (:User {tenant_id: 'acme', id: 'nobody'})")
    publish(world.lake, prove(world.archive, world.graph, world.proof, small=0).results, "changes")
    then = page.comparison()
    assert then["at"] == first["at"]
    assert then["changes_at"] > first["at"]
    kinds = dict(then["kinds"])
    assert kinds["Action"] == rows_of_actions
    assert kinds["User"][None] == (0, True)
