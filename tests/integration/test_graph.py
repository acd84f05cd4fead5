"""The graph: repeatable writes, exact reads, and statements that the server understands."""

from datetime import UTC, datetime

import polars as pl
import pytest

from c360_pipeline.core.catalog.changes import Changes
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.graph import NodeKind, RelationshipKind
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.silos.control_rows import IndexRow
from c360_pipeline.errors import ConfigError, InvariantError
from c360_pipeline.stores.neo4j import audit, cypher, projections
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.neo4j.writer import apart

AT = datetime(2025, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)


def users(*ids: str, tenant: str = "acme") -> pl.DataFrame:
    nothing_said = dict.fromkeys(model.SAID)
    rows = [{"tenant_id": tenant, "id": i, "first_seen": AT, "last_seen": AT, **nothing_said} for i in ids]
    return pl.DataFrame(rows, schema=model.USER.schema)


def sessions(*ids: str, tenant: str = "acme") -> pl.DataFrame:
    return pl.DataFrame([(tenant, i, AT, AT) for i in ids], schema=model.SESSION.schema, orient="row")


def pairs(*ends: tuple[str, str], kind: RelationshipKind = model.HAS_SESSION) -> pl.DataFrame:
    return pl.DataFrame([("acme", *pair) for pair in ends], schema=kind.schema, orient="row")


def test_what_is_written_twice_is_there_once_and_reads_as_written(graph: Graph) -> None:
    for _ in range(2):
        graph.writer.merge(model.USER, users("a", "b"))
    assert graph.audit.rows(model.USER, "acme").sort("id").equals(users("a", "b"))
    assert graph.counts.label_counts() == {"User": 2}


def test_tenants_do_not_see_each_other(graph: Graph) -> None:
    graph.writer.merge(model.USER, users("a"))
    graph.writer.merge(model.USER, users("a", tenant="globex"))
    assert graph.counts.label_counts() == {"User": 2}
    assert graph.audit.rows(model.USER, "acme").height == 1
    graph.writer.delete(model.USER, users("a", tenant="globex").select("tenant_id", "id"))
    assert graph.counts.tenants() == ["acme"]


def test_a_relationship_without_its_node_is_an_error_not_a_silence(graph: Graph) -> None:
    graph.writer.merge(model.USER, users("a"))
    with pytest.raises(InvariantError, match="1 of 1 rows of tenant acme"):
        graph.writer.merge(model.HAS_SESSION, pairs(("a", "missing")))


def test_changes_bring_a_kind_from_one_version_to_the_next(graph: Graph) -> None:
    graph.writer.merge(model.USER, users("a", "b"))
    graph.writer.merge(model.SESSION, sessions("s"))
    graph.writer.merge(model.HAS_SESSION, pairs(("a", "s"), ("b", "s")))
    graph.writer.apply(model.HAS_SESSION, Changes.of(pairs(("a", "s")), pairs(("b", "s"))))
    assert graph.audit.rows(model.HAS_SESSION, "acme").rows() == [("acme", "a", "s")]


def test_a_moved_relationship_has_one_target(graph: Graph) -> None:
    graph.writer.merge(model.USER, users("a"))
    graph.writer.merge(model.SESSION, sessions("s", "t"))
    graph.writer.move(model.HAS_SESSION, pairs(("a", "s")))
    graph.writer.move(model.HAS_SESSION, pairs(("a", "t")))
    graph.writer.move(model.HAS_SESSION, pairs(("a", "t")))
    assert graph.audit.rows(model.HAS_SESSION, "acme")["to_id"].to_list() == ["t"]


@pytest.mark.parametrize(
    "damage", ["'yesterday'", "1762077600000000", "null", "date('2025-11-01')", "[datetime()]",
               "datetime('2025-11-01T12:00:00.123456789Z')"],
)  # fmt: skip
def test_a_value_of_another_type_is_seen(graph: Graph, damage: str) -> None:
    graph.writer.merge(model.USER, users("a"))
    graph.run(f"MATCH (u:User) SET u.first_seen = {damage}")
    assert not graph.audit.rows(model.USER, "acme").equals(users("a"))


def test_an_instant_written_with_another_zone_is_the_same_instant(graph: Graph) -> None:
    graph.writer.merge(model.USER, users("a"))
    graph.run("MATCH (u:User) SET u.first_seen = datetime('2025-11-01T14:00:00.123456+02:00')")
    assert graph.audit.rows(model.USER, "acme").equals(users("a"))


@pytest.mark.parametrize("label", ["User) DETACH DELETE (n", "a`b", "1a", "", "ä"])
def test_a_label_that_is_no_identifier_never_reaches_the_server(label: str) -> None:
    with pytest.raises(ConfigError, match="label, type or property"):
        cypher.merge_statement(NodeKind(label, ("id",), {"id": pl.String()}))


def test_a_property_with_a_backslash_never_reaches_the_server() -> None:
    kind = NodeKind("Odd", ("id",), {"id": pl.Int64(), "x\\u0060 = 1 //": pl.String()})
    with pytest.raises(ConfigError, match="backslash"):
        cypher.read_statement(kind)


def test_properties_that_are_no_longer_declared_go(graph: Graph) -> None:
    graph.writer.merge(model.USER, users("a"))
    graph.run("MATCH (u:User) SET u.phone = '1', u.mail = 'x'")
    assert graph.writer.remove_undeclared_properties(model.USER) == ["mail", "phone"]
    (row,) = graph.run("MATCH (u:User) RETURN keys(u) AS names")
    assert sorted(row["names"]) == sorted({*model.USER.schema} - {*model.SAID})  # null is no property


def test_a_property_may_have_any_name(graph: Graph) -> None:
    kind = NodeKind("Odd", ("id",), {"id": pl.Int64(), "a `b` c": pl.String()})
    rows = pl.DataFrame([("acme", 1, "x")], schema=kind.schema, orient="row")
    graph.writer.merge(kind, rows)
    assert graph.audit.rows(kind, "acme").equals(rows)


@pytest.mark.parametrize(
    ("dtype", "right", "wrong"),
    [(pl.String(), "'a'", "1"), (pl.Int64(), "1", "'1'"), (pl.Float64(), "1.5", "1"), (pl.Boolean(), "true", "'true'"),
     (pl.Date(), "date()", "datetime()"), (pl.Datetime("us", "UTC"), "datetime()", "localdatetime()"),
     (pl.Datetime("us"), "localdatetime()", "datetime()"), (pl.Binary(), "$bytes", "'a'")],
)  # fmt: skip
def test_nodes_whose_key_is_of_another_type_go(graph: Graph, dtype: pl.DataType, right: str, wrong: str) -> None:
    kind = NodeKind("Odd", ("id",), {"id": dtype})
    for value in (right, wrong):
        graph.run(
            f"CREATE (:Odd {{tenant_id: 'acme', id: {value}, is_right: {str(value == right).lower()}}})", bytes=b"a"
        )
    graph.writer.delete_mistyped(kind, "acme", "id")
    assert graph.run("MATCH (n:Odd) RETURN n.is_right AS kept") == [{"kept": True}]


def test_many_relationships_of_few_nodes_are_written_without_a_deadlock(
    graph: Graph, caplog: pytest.LogCaptureFixture
) -> None:
    sources = users(*(f"u{n}" for n in range(6_000)))
    graph.writer.merge(model.USER, sources)
    graph.writer.merge(model.SESSION, sessions("s1", "s2", "s3"))
    every = pl.concat(sources.select("tenant_id", from_id="id").with_columns(to_id=pl.lit(f"s{n}")) for n in (1, 2, 3))
    graph.writer.merge(model.HAS_SESSION, every)
    graph.writer.merge(model.HAS_SESSION, every)
    assert graph.counts.type_counts() == {"HAS_SESSION": 18_000}
    assert "Deadlock" not in caplog.text


@pytest.mark.parametrize("kind", [model.HAS_SESSION, model.USER])
def test_batches_that_are_written_at_once_share_no_node(kind: model.Kind) -> None:
    ends = [(f"u{n % 977}", f"s{n % 7}") for n in range(30_000)]
    rows = (
        pl.DataFrame(ends, schema=["from_id", "to_id"], orient="row").unique()
        if kind is model.HAS_SESSION
        else pl.DataFrame({"id": [f"u{n}" for n in range(30_000)]})
    ).select(pl.lit("acme").alias("tenant_id"), pl.all())
    written = []
    for group in apart(kind, pl.concat([rows] * 5) if kind is model.HAS_SESSION else rows):
        for column in ("from_id", "to_id", "id"):
            values = [set(batch[column]) for _, batch in group if column in batch.columns]
            assert sum(map(len, values)) == len(set().union(*values)), column
        written += [batch for _, batch in group]
    assert pl.concat(written).height == (rows.height * 5 if kind is model.HAS_SESSION else rows.height)


@pytest.mark.parametrize("page_nodes", [1, 7, 10, 1000])
def test_pages_hold_every_row_once(graph: Graph, monkeypatch: pytest.MonkeyPatch, page_nodes: int) -> None:
    """Also where more nodes than a page share the first column of their key."""
    monkeypatch.setattr(audit, "PAGE_NODES", page_nodes)
    item = NodeKind("Item", ("shop", "no"), {"shop": pl.String(), "no": pl.Int64()})
    next_to = RelationshipKind("NEXT_TO", item, item)
    graph.schema.apply([item])
    nodes = pl.DataFrame(
        [("acme", shop, no) for shop, count in (("a", 1), ("b", 25), ("c", 3), ("", 11)) for no in range(count)]
        + [("globex", "b", 1)],
        schema=item.schema, orient="row",
    )  # fmt: skip
    ends = nodes.filter(pl.col("tenant_id") == "acme").select(
        "tenant_id", from_shop="shop", from_no="no", to_shop=pl.lit("b"), to_no=pl.lit(0, pl.Int64)
    )
    graph.writer.merge(item, nodes)
    graph.writer.merge(next_to, ends)
    try:
        read = graph.audit.rows(item, "acme")
        assert read.sort(pl.all()).equals(nodes.filter(pl.col("tenant_id") == "acme").sort(pl.all()))
        assert graph.audit.rows(next_to, "acme").sort(pl.all()).equals(ends.sort(pl.all()))
    finally:
        graph.writer.clear_label("Item")
        graph.run(cypher.drop_constraint(cypher.key_constraint_name(item)))


def test_indexes_that_control_rows_name_are_used_and_go_with_their_row(graph: Graph) -> None:
    """Properties may have any name; what another made, and the constraints, are left alone."""
    rows = [IndexRow("Gadget", ("price",)), IndexRow("Gadget", ("shelf`s no", "größe")), IndexRow("Gizmo", ("a",))]
    find = "EXPLAIN MATCH (n:Gadget {tenant_id: 'acme'}) WHERE n.price > 3 RETURN n"

    def operators() -> str:
        with graph._client.session() as session:
            return str(session.run(find).consume().plan)

    assert "NodeByLabelScan" in operators()
    constraints = graph.schema.constraint_count()
    graph.run(Statement("CREATE INDEX by_hand IF NOT EXISTS FOR (n:Gadget) ON (n.weight)"))
    try:
        assert graph.schema.apply_indexes(rows) == 3
        assert graph.schema.apply_indexes(rows) == 0
        assert "NodeIndexSeek" in operators()
        assert graph.schema.apply_indexes(rows[1:]) == 1
        assert "NodeByLabelScan" in operators()
    finally:
        assert graph.schema.apply_indexes([]) == 2
        assert graph.run(Statement("SHOW INDEXES YIELD name WHERE name = 'by_hand' RETURN name"))
        graph.run(Statement("DROP INDEX by_hand"))
    assert graph.schema.constraint_count() == constraints


def test_an_index_that_failed_is_told_and_made_again_once_its_values_fit(graph: Graph) -> None:
    graph.run(Statement("CREATE (:Gadget {tenant_id: 'acme', text: $text})"), text="x" * 10_000)
    row = IndexRow("Gadget", ("text",))
    try:
        impossible, good = IndexRow("Gadget", ("a", "a")), IndexRow("Gadget", ("price",))
        graph.schema.apply_indexes([impossible, row, good])
        assert graph.schema.unusable_indexes([impossible, row, good]) == {
            "Gadget(a,a)_of_control_rows": "MISSING", "Gadget(text)_of_control_rows": "FAILED",
        }  # fmt: skip
        assert all(cypher.is_of_control_rows(found["name"]) for found in graph.schema.indexes_not_online())
        graph.run(Statement("MATCH (n:Gadget {tenant_id: 'acme'}) DETACH DELETE n"))
        assert graph.schema.apply_indexes([row, good]) == 1
        assert graph.schema.unusable_indexes([row, good]) == {}
    finally:
        graph.schema.apply_indexes([])


def test_the_guides_louvain_runs_over_a_graph_of_one_tenant(graph: Graph) -> None:
    """The statement as the guide prints it, but for the id in place of the e-mail address."""
    for tenant in ("acme", "globex"):
        graph.run(
            Statement(
                "UNWIND range(1, 4) AS n MERGE (u:User {tenant_id: $tenant_id, id: 'u' + n}) "
                "MERGE (p:Product {tenant_id: $tenant_id, id: 'p' + (n % 2)}) "
                "CREATE (u)-[:VIEWED {count: 3}]->(p), (u)-[:PURCHASED {count: 1}]->(p)"
            ),
            tenant_id=tenant,
        )
    made = projections.project(graph, "acme", "user-product-graph")
    try:
        assert (made.nodes, made.relationships) == (6, 16)
        assert projections.project(graph, "acme", "user-product-graph") == made
        assert [row["name"] for row in projections.listed(graph)] == ["user-product-graph"]
        found = graph.run(
            Statement(
                "CALL gds.louvain.stream('user-product-graph') YIELD nodeId, communityId "
                "WITH gds.util.asNode(nodeId) AS user, communityId WHERE user:User "
                "RETURN communityId, COUNT(user) AS community_size, COLLECT(user.id)[0..5] AS sample_users"
            )
        )
        assert sorted(sorted(row["sample_users"]) for row in found) == [["u1", "u3"], ["u2", "u4"]]
    finally:
        assert projections.drop(graph, "user-product-graph")
    assert not projections.drop(graph, "user-product-graph")
    with pytest.raises(ConfigError, match="nobody has no user who viewed"):
        projections.project(graph, "nobody", "user-product-graph")
