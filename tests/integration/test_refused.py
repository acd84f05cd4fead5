"""Rows that the graph refuses go to the dead letters; the rest goes on, and nothing is lost."""

from collections.abc import Iterator

import neo4j
import polars as pl
import pytest
from event_world import World

from c360_pipeline.core.catalog.tables import CATALOG, DEAD_LETTERS, EVENTS
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.refused import REFUSED
from c360_pipeline.errors import InvariantError
from c360_pipeline.reads.customer_pages import CustomerPages
from c360_pipeline.stages.projection.refused import RefusedRows
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import bucket_rows, finding_rows, summarise
from c360_pipeline.stores.neo4j import refusals
from c360_pipeline.stores.neo4j.graph import Graph

LONG = "x" * 9_000
"""More than an index can hold."""


def products(*ids: str) -> pl.DataFrame:
    rows = [("acme", i, f"Product {i[:20]}", "shoes", 1.0, "x") for i in ids]
    return pl.DataFrame(rows, schema=CATALOG.empty().schema, orient="row")


def open_letters(world: World) -> pl.DataFrame:
    return RefusedRows(world.lake, world.graph.refusals).letters("open")


@pytest.fixture
def unique_names(graph: Graph) -> Iterator[None]:
    """A constraint of the graph's owner, of which the project knows nothing."""
    graph.run("CREATE CONSTRAINT owners_rule FOR (n:Product) REQUIRE (n.tenant_id, n.name) IS UNIQUE")
    yield
    graph.run("DROP CONSTRAINT owners_rule IF EXISTS")


def test_one_row_among_thousands_is_found_and_the_rest_is_written(world: World) -> None:
    world.lake.commits.insert_new(CATALOG, products(LONG, *(f"new{n}" for n in range(3_000))))
    world.project()
    letters = open_letters(world)
    assert letters.select("entity", "error_class", "tenant_id").unique().rows() == [("Product", REFUSED, "acme")]
    assert letters["key"].to_list() == [f"acme {LONG}"]
    assert "too large to index" in letters["reason"][0]
    assert set(world.graph.refusals.samples) == {"Neo.DatabaseError.Statement.ExecutionFailed"}
    (shown,) = CustomerPages(world.graph, world.lake, "acme").delivery()["refused"]
    assert shown["code"] == "Neo.DatabaseError.Statement.ExecutionFailed"
    assert "MERGE (n:`Product`" in shown["statement"]
    assert LONG not in shown["statement"]
    found = world.findings()
    assert {f[1:3] for f in found} == {("Product", "missing"), ("(Product)-[:IN_CATEGORY]->(Category)", "missing")}
    assert len(found) == 2
    said = {f["difference"] for f in summarise(reconcile(world.archive, world.graph))["findings"]}
    assert said == {"refused by the graph, see `c360 dead-letters list --reason refused_by_graph`"}


def test_what_is_projected_again_makes_no_second_letter(world: World) -> None:
    world.lake.commits.insert_new(CATALOG, products(LONG))
    world.project()
    world.lake.commits.insert_new(CATALOG, products("another"))
    with_other_process = World(world.lake, world.graph)
    with_other_process.project()
    assert open_letters(world).height == 1


def test_a_letter_is_closed_once_a_repair_has_written_its_row(world: World, unique_names: None) -> None:
    twin = products("twin").with_columns(name=pl.lit("Product 7"))
    world.lake.commits.insert_new(CATALOG, twin)
    world.project()
    assert open_letters(world)["key"].to_list() == ["acme twin"]

    results = reconcile(world.archive, world.graph, repair=True)
    assert finding_rows(results, "r")["repaired"].to_list() == [False, False]
    assert open_letters(world).height == 1

    world.graph.run("DROP CONSTRAINT owners_rule")
    world.graph.refusals = refusals.Refusals()
    results = reconcile(world.archive, world.graph, repair=True)
    assert finding_rows(results, "r")["repaired"].to_list() == [True, True]
    assert open_letters(world).is_empty()
    closed = world.lake.read(DEAD_LETTERS)
    assert closed.select("status", "resolution").rows() == [("replayed", "written by a repair")]
    assert world.findings() == set()


def test_a_refused_row_that_was_discarded_is_no_drift(world: World) -> None:
    world.lake.commits.insert_new(CATALOG, products(LONG))
    world.project()
    letters = world.lake.read(DEAD_LETTERS)
    world.lake.commits.merge(DEAD_LETTERS, letters.with_columns(status=pl.lit("discarded")))
    results = reconcile(world.archive, world.graph)
    assert summarise(results)["findings"] == []
    assert (bucket_rows(results, "r")["expected"] == bucket_rows(results, "r")["found"]).all()


def test_events_of_a_refused_product_wait_with_it(world: World) -> None:
    """The catalogue has no such product; the items of events are checked by the same index."""
    events = world.lake.read(EVENTS).filter(pl.col("tenant_id") == "acme").head(3)
    odd = events.with_columns(event_id=pl.format("odd{}", pl.int_range(3)), item_id=pl.lit(LONG))
    world.lake.commits.insert_new(EVENTS, odd)
    world.project()
    waiting = {f[1:] for f in world.findings()}
    on_product = {key for entity, _, key in waiting if entity == model.ON_PRODUCT.name}
    assert on_product == {f"acme odd{n} {LONG}" for n in range(3)}
    assert open_letters(world)["entity"].to_list() == ["Product"]


def test_a_relationship_without_its_node_is_still_an_error(world: World) -> None:
    row = pl.DataFrame([("acme", "e000000", "nowhere", None, None, None)], schema=model.ON_PRODUCT.schema, orient="row")
    with pytest.raises(InvariantError, match="nowhere"):
        world.graph.writer.merge(model.ON_PRODUCT, row)


def test_a_graph_that_refuses_everything_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MOST", 5)
    rows = [("acme", f"{LONG}{n}", None, None, None) for n in range(10)]
    with pytest.raises(InvariantError, match="row after row"):
        world.graph.writer.merge(model.PRODUCT, pl.DataFrame(rows, schema=model.PRODUCT.schema, orient="row"))


def test_a_statement_that_is_wrong_is_not_the_fault_of_a_row(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c360_pipeline.stores.neo4j.cypher.merge_statement", lambda _: "UNWIND $rows AS row MERGED")
    with pytest.raises(neo4j.exceptions.CypherSyntaxError):
        graph.writer.merge(model.PRODUCT, products("a").select(list(model.PRODUCT.schema)))
    assert graph.refusals.letters == []
