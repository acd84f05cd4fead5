"""Silos with awkward types, names and writers: read over ADBC into the lake, and from there into the graph."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from psycopg import sql
from repetition import representatives
from silo_world import (
    ADD_DATABASE,
    ADD_MAPPING,
    ADD_TABLE,
    AWKWARD,
    EXCLUDE,
    READ_RUN_LOGS,
    World,
    a_silo,
)
from typer.testing import CliRunner

from c360_pipeline.cli import app
from c360_pipeline.connections import open_silo
from c360_pipeline.core.silos.plan import make_plan
from c360_pipeline.errors import ConfigError, ContractError
from c360_pipeline.settings import Settings
from c360_pipeline.stages.projection.silos import SiloGraph
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.prove import prove
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import drift
from c360_pipeline.stages.recovery.cypher_script import write_script
from c360_pipeline.stages.silos import load as silo_load
from c360_pipeline.stages.silos.grants import create_role_statement, grant_statements
from c360_pipeline.stages.silos.run import SiloRun, found_tables, readable_exclusions
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.landing import Landing


@pytest.fixture
def world(settings: Settings, control: ControlDb, lake: Lake) -> Iterator[World]:
    with a_silo(settings, control, lake) as silo:
        yield silo


def test_every_type_comes_through_without_loss(world: World) -> None:
    world.source.execute(AWKWARD.encode())
    world.add("awkward")
    world.load()
    first, second = world.held("awkward").to_dicts()
    texts = {name: str(value) for name, value in first.items()}
    assert texts["whole"] == "12345678901234567890"
    assert texts["exact"] == "1234567890123456789012345678.0123456789"
    assert (texts["free"], texts["huge"]) == ("NaN", "12345678901234567890123456789.50000")
    assert (texts["negative_scale"], texts["amount"]) == ("12300", "9.99")
    assert first["at"] == datetime(2024, 2, 29, 21, 59, 59, 123456, tzinfo=UTC)
    assert first["local"] == datetime(2024, 2, 29, 23, 59, 59, 123456)  # noqa: DTZ001 - the source has no zone
    assert (first["day"], texts["clock"]) == (date(2024, 2, 29), "23:59:59.5")
    assert texts["span"] == "1 mon 2 days 03:04:05"
    assert (texts["doc"], texts["raw_doc"]) == ('{"a": [1, null]}', '{"a":  1}')
    assert (texts["numbers"], texts["words"]) == ("{1,NULL,3}", '{a,"b,c"}')
    assert (first["bytes"], texts["address"], texts["network"]) == (b"\x00\xff", "10.0.0.1/8", "10.0.0.0/8")
    assert (texts["numbers_range"], first["padded"], texts["feeling"]) == ("[1,5)", "ab", "ok")
    assert (first["flag"], first["double"], first["big"], first["object"]) == (True, 0.1, 2**63 - 1, 7)
    assert (first["select"], first['Grüße "quoted" x'], first["bits"]) == ("reserved", "named", "101")
    assert second["at"] == datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    assert (second["local"], second["day"]) == (datetime(1, 1, 1), date(9999, 12, 31))  # noqa: DTZ001
    assert second["single"] != second["single"]
    assert second["double"] == float("-inf")
    before = world.lake.versions.version(f"silos/{world.name}/awkward")
    world.load()
    assert world.lake.versions.version(f"silos/{world.name}/awkward") == before


def test_a_table_that_can_not_be_loaded_leaves_the_others_alone(world: World) -> None:
    world.source.execute("CREATE TABLE bad (id int PRIMARY KEY, n numeric(10, 2)); INSERT INTO bad VALUES (1, 'NaN')")
    world.source.execute("CREATE TABLE twice (id int, v text); INSERT INTO twice VALUES (1, 'a'), (1, 'b'), (2, 'c')")
    world.source.execute("CREATE TABLE good (id int PRIMARY KEY); INSERT INTO good VALUES (1)")
    for name in ("bad", "twice", "good"):
        world.add(name)
    failures = world.load().failures
    assert list(failures) == [f"{world.name}.public.{name}" for name in ("bad", "twice")]
    assert "column 'n' of the row with id = '1': NaN" in failures[f"{world.name}.public.bad"]
    assert (
        "2 rows share a key with another, such as tenant_id = 'acme', id = 1" in failures[f"{world.name}.public.twice"]
    )
    assert world.held("good")["id"].to_list() == [1]
    assert [(name, status) for name, status, *_ in world.logged()] == [
        ("bad", "failed"), ("twice", "failed"), ("good", "done"),
    ]  # fmt: skip
    assert world.lake.versions.version(f"silos/{world.name}/bad") is None
    ((_, status, plan_hash, error),) = world.rows_of(READ_RUN_LOGS)
    assert (status, len(plan_hash)) == ("partial", 64)
    assert "bad" in error
    world.source.execute("DROP TABLE good")
    with pytest.raises(ContractError, match="No table of the silos could be loaded") as caught:
        world.load()
    assert "column 'n' of the row with id = '1': NaN" in str(caught.value)
    assert "there is no such table" in str(caught.value)


def test_only_what_differs_is_written_and_the_rest_keeps_its_time(world: World) -> None:
    world.source.execute("CREATE TABLE t (a text, b int, v text, PRIMARY KEY (a, b))")
    world.source.execute("INSERT INTO t SELECT 'k' || g % 7, g, 'v' FROM generate_series(1, 1000) g")
    world.add("t", key="a,b")
    world.load()
    world.source.execute("UPDATE t SET v = 'changed' WHERE b <= 10; DELETE FROM t WHERE b > 990")
    world.source.execute("INSERT INTO t VALUES ('new', 5000, NULL)")
    world.load()
    assert world.logged()[-1][:6] == ("t", "done", "full", 991, 11, 10)
    rows = world.lake.read(world.table("t", "a", "b"))
    assert rows.height == 991
    assert rows.group_by("run_id").len().sort("run_id").rows() == [("run-1", 980), ("run-2", 11)]
    world.source.execute("TRUNCATE t")
    world.load()
    assert world.lake.count(world.table("t", "a", "b")) == 0
    version = world.lake.versions.version(f"silos/{world.name}/t")
    world.load()
    assert world.lake.versions.version(f"silos/{world.name}/t") == version


@pytest.mark.parametrize("spool_bytes", [0, 96 * 2**20])
@pytest.mark.parametrize(("merged_rows", "merged_bytes"), [(0, 0), (200_000, 0), (200_000, 64 * 2**20)])
def test_memory_and_disk_merge_and_rewrite_end_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, spool_bytes: int, merged_rows: int, merged_bytes: int
) -> None:
    monkeypatch.setattr(silo_load, "SPOOL_BYTES", spool_bytes)
    monkeypatch.setattr(silo_load, "MERGED_ROWS", merged_rows)
    monkeypatch.setattr(silo_load, "MERGED_BYTES", merged_bytes)
    world.source.execute('CREATE TABLE t (id int PRIMARY KEY, "we`ird "" \' name" text, gone text)')
    world.source.execute("INSERT INTO t SELECT g, g, g FROM generate_series(1, 5000) g")
    world.add("t")
    world.load()
    world.source.execute("DELETE FROM t WHERE id % 10 = 0; INSERT INTO t VALUES (10, 'back', NULL), (9999, NULL, 'x')")
    world.source.execute("UPDATE t SET gone = NULL WHERE id = 7")
    world.load()
    expected = world.source.execute("SELECT * FROM t ORDER BY id").fetchall()
    assert world.held("t").drop("tenant_id", "extracted_at", "run_id").rows() == expected
    world.source.execute("ALTER TABLE t DROP COLUMN gone; ALTER TABLE t ADD COLUMN added int DEFAULT 5")
    world.load()
    assert world.held("t").columns == ["tenant_id", "id", "we`ird \" ' name", "added", "extracted_at", "run_id"]
    assert world.held("t")["added"].unique().to_list() == [5]
    world.source.execute("ALTER TABLE t ALTER COLUMN added TYPE text")
    world.load()
    assert world.held("t")["added"].unique().to_list() == ["5"]


def test_an_incremental_read_loses_no_row_at_ties_in_flight_or_without_cursor(world: World) -> None:
    world.source.execute("CREATE TABLE t (id int PRIMARY KEY, v text, changed timestamptz)")
    world.source.execute("INSERT INTO t SELECT g, 'v', '2025-01-01' FROM generate_series(1, 500) g")
    world.add("t", cursor="changed", mode="incremental")
    world.load()
    with psycopg.connect(**{**world.login, "dbname": world.name}) as slow:
        slow.execute("INSERT INTO t VALUES (900, 'in flight', '2024-06-01'), (901, 'in flight', '2025-01-01')")
        with slow.transaction():  # a savepoint: its rows bear a transaction id of their own
            slow.execute("INSERT INTO t VALUES (902, 'in a savepoint', '2024-06-02')")
        world.source.execute("INSERT INTO t VALUES (600, 'link', '2025-01-01'), (601, 'later', '2025-02-01')")
        world.load()
        assert world.held("t")["id"].to_list() == [*range(1, 501), 600, 601]
    world.source.execute("INSERT INTO t VALUES (602, 'link', '2025-02-01'), (603, 'no cursor', NULL)")
    world.source.execute("UPDATE t SET v = 'old cursor' WHERE id = 5")
    world.load()
    assert world.held("t")["id"].to_list() == [*range(1, 501), 600, 601, 602, 603, 900, 901, 902]
    assert world.held("t").filter(pl.col("id") == 5)["v"].item() == "old cursor"
    world.source.execute("DELETE FROM t WHERE id IN (1, 600, 902)")
    world.load()
    assert world.held("t")["id"].to_list() == [*range(2, 501), 601, 602, 603, 900, 901]
    modes = [(mode, loaded, deleted) for _, _, mode, _, loaded, deleted, _ in world.logged()]
    assert modes == [("full", 500, 0), ("incremental", 2, 0), ("incremental", 6, 0), ("incremental", 0, 3)]
    assert world.logged()[-1][3] < 10  # rows read


KEYS_AND_TABLES = {
    "partitioned": "CREATE TABLE t (id int, n int, PRIMARY KEY (id, n)) PARTITION BY RANGE (n);"
    "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10);"
    "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (100)",
    **{kind: f"CREATE TABLE t (id {kind} PRIMARY KEY, n int)"
       for kind in ("bytea", "numeric", "float8", "date", "timestamptz", "bool")},
    "view": "CREATE TABLE base (id int, n int); CREATE VIEW t AS SELECT id, n FROM base",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "mode"),
    representatives(product(KEYS_AND_TABLES, ["full", "incremental"]), ("partitioned", "incremental"),
                    ("bytea", "full"), ("timestamptz", "incremental"), ("view", "full")),
)  # fmt: skip
def test_whatever_is_a_key_or_a_table(world: World, graph: Graph, kind: str, mode: str) -> None:
    create, name = KEYS_AND_TABLES[kind], "base" if kind == "view" else "t"
    forms = {"bytea": "'\\x0{}'::bytea", "date": "date '2025-01-0{}'", "bool": "({} = 1)",
              "timestamptz": "timestamptz '2025-01-0{}'"}  # fmt: skip
    literal = forms.get(kind, "{}")
    world.source.execute(create.encode())
    table = sql.Identifier(name)
    for number in (1, 2):
        values = sql.SQL(literal.format(number)), sql.Literal(number)
        world.source.execute(sql.SQL("INSERT INTO {} VALUES ({}, {})").format(table, *values))
    world.add("t", label="Thing", cursor="n", mode=mode)
    for _ in range(2):
        world.load()
        project(world, graph)
        assert graph.counts.label_count("Thing") == 2
    world.source.execute(sql.SQL("DELETE FROM {} WHERE n = 1").format(table))
    world.source.execute(sql.SQL("UPDATE {} SET n = 5 WHERE n = 2").format(table))
    world.load()
    project(world, graph)
    assert world.held("t")["n"].to_list() == [5]
    assert graph.run("MATCH (t:Thing) RETURN t.n AS n") == [{"n": 5}]


def test_many_deletes_beside_few_changes_are_all_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silo_load, "MERGED_ROWS", 50)
    world.source.execute("CREATE TABLE t (id int PRIMARY KEY, n int)")
    world.source.execute("INSERT INTO t SELECT g, g FROM generate_series(1, 1000) g")
    world.add("t", cursor="n", mode="incremental")
    world.load()
    world.source.execute("DELETE FROM t WHERE id <= 100; INSERT INTO t SELECT g, g FROM generate_series(2001, 2010) g")
    world.load()
    assert world.held("t")["id"].to_list() == [*range(101, 1001), *range(2001, 2011)]
    assert world.logged()[-1][4:6] == (10, 100)


def test_an_incremental_table_is_read_whole_when_its_lake_table_is_not_what_it_was(world: World) -> None:
    world.source.execute("CREATE TABLE t (id int PRIMARY KEY, v text, n int)")
    world.source.execute("INSERT INTO t SELECT g, 'v', g FROM generate_series(1, 100) g")
    table_id = world.add("t", cursor="n", mode="incremental")
    world.load()
    world.lake.maintenance.maintain_silo(f"silos/{world.name}/t")
    world.load()
    world.lake.commits.merge(
        world.table("t"), world.held("t").clear(), world.held("t").head(3).select("tenant_id", "id")
    )
    world.load()
    world.configure(EXCLUDE, table_id, "v")
    world.load()
    assert [mode for _, _, mode, *_ in world.logged()] == ["full", "incremental", "full", "full"]
    assert world.held("t").drop("extracted_at", "run_id").columns == ["tenant_id", "id", "n"]
    assert world.held("t")["id"].to_list() == list(range(1, 101))


def test_all_tables_of_a_silo_are_read_at_one_moment(world: World) -> None:
    world.source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    world.source.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)")
    for name in ("a", "b"):
        world.add(name)
    control = world.control.read()
    first, second = make_plan(control, found_tables(control, open_silo)).extracts
    with open_silo(control.databases[0]).snapshot() as snapshot:
        assert pl.concat(snapshot.rows(first))["id"].to_list() == [1]
        world.source.execute("INSERT INTO a VALUES (2); INSERT INTO b VALUES (2)")
        assert pl.concat(snapshot.rows(second))["id"].to_list() == [1]


def test_an_excluded_column_can_not_be_read_by_a_login_with_the_printed_grants(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.source.execute('CREATE SCHEMA "my schema"')
    world.source.execute('CREATE TABLE "my schema"."t ""x" (id int PRIMARY KEY, "a b" text, secret text, n int)')
    world.source.execute("""INSERT INTO "my schema"."t ""x" VALUES (1, 'a', 'top secret', 1)""")
    table = world.add('t "x', schema="my schema", cursor="n", mode="incremental")
    world.configure(EXCLUDE, table, "secret")
    control = world.control.read()
    assert readable_exclusions(control, open_silo) == [f'{world.name}.my schema.t "x.secret']
    plan = make_plan(control, found_tables(control, open_silo))
    role = f"reader_{world.name}"
    world.source.execute(create_role_statement(role))
    world.source.execute(sql.SQL("ALTER ROLE {} PASSWORD 'x y'").format(sql.Identifier(role)))
    world.configure("UPDATE source_databases SET db_user = %s, password_ref = 'env:C360_SOURCE_READER'", role)
    monkeypatch.setenv("C360_SOURCE_READER", "x y")
    monkeypatch.setenv("C360_SOURCE_READER_HOST", "*")
    with pytest.raises(ConfigError, match="may not read column 'id'"):
        world.load()
    for statement in grant_statements(world.name, role, plan.extracts):
        world.source.execute(statement)
    assert readable_exclusions(world.control.read(), open_silo) == []
    world.load()
    world.load()
    held = world.lake.read(world.table("t_x20__x22_x"))
    assert held.columns == ["tenant_id", "id", "a b", "n", "extracted_at", "run_id"]
    login = {**world.login, "dbname": world.name, "user": role, "password": "x y"}
    with psycopg.connect(**login) as reader, pytest.raises(psycopg.errors.InsufficientPrivilege):
        reader.execute('SELECT secret FROM "my schema"."t ""x"')
    world.source.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


@pytest.fixture
def people(world: World) -> World:
    """200 persons, two phones each, and their graph."""
    world.source.execute("CREATE TABLE person (id int PRIMARY KEY, name text)")
    world.source.execute("CREATE TABLE phone (id int PRIMARY KEY, person int, number text)")
    world.source.execute("INSERT INTO person SELECT g, 'p' || g FROM generate_series(1, 200) g")
    world.source.execute("INSERT INTO phone SELECT g, (g + 1) / 2, '+' || g FROM generate_series(1, 400) g")
    world.add("person", label="Person")
    world.add("phone", label="Phone")
    world.configure(ADD_MAPPING, "Person", "Phone", "HAS_PHONE", "p.id = n.person", None)
    world.load()
    return world


HELD_PAIRS = "MATCH (p:Person)-[:HAS_PHONE]->(n:Phone) RETURN p.tenant_id + p.id + '-' + n.id AS pair ORDER BY pair"


def project(world: World, graph: Graph, *, force: bool = False) -> tuple[dict[str, int], dict[str, int]]:
    silos = SiloGraph(world.lake, graph, world.control.read(), force=force)
    nodes = silos.project_nodes()
    return nodes, {name: changed for name, (_, changed) in silos.project_relationships().items()}


def waiting(world: World, graph: Graph) -> dict[str, str]:
    """What stays in the graph as it is, and why."""
    silos = SiloGraph(world.lake, graph, world.control.read())
    silos.project_nodes()
    silos.project_relationships()
    return silos.waiting


def pairs(graph: Graph) -> list[str]:
    return [row["pair"] for row in graph.run(HELD_PAIRS)]


def test_the_graph_follows_what_changed_and_only_that(people: World, graph: Graph) -> None:
    relationship = "(Person)-[:HAS_PHONE]->(Phone)"
    assert project(people, graph) == ({"Person": 200, "Phone": 400}, {relationship: 400})
    assert project(people, graph) == ({"Person": 0, "Phone": 0}, {relationship: 0})
    first = prove(Archive(people.lake, people.control.read()), graph, None).proof
    assert prove(Archive(people.lake, people.control.read()), graph, first, small=0).proof.rows == 0
    people.source.execute("UPDATE phone SET person = 7 WHERE id = 1; DELETE FROM phone WHERE id = 400")
    people.source.execute("INSERT INTO phone VALUES (401, 9, '+'), (402, NULL, '+'), (403, 9999, '+')")
    people.source.execute("UPDATE person SET name = 'Ann' WHERE id = 3; DELETE FROM person WHERE id = 10")
    people.load()
    nodes, changed = project(people, graph)
    assert nodes == {"Person": 2, "Phone": 5}
    assert changed[relationship] <= 12
    expected = people.source.execute("SELECT p.id, n.id FROM person p JOIN phone n ON n.person = p.id").fetchall()
    assert pairs(graph) == sorted(f"acme{p}-{n}" for p, n in expected)
    assert graph.run("MATCH (p:Person {id: 3}) RETURN p.name AS name") == [{"name": "Ann"}]
    then = prove(Archive(people.lake, people.control.read()), graph, first, small=0)
    assert (then.differing, then.proof.reason) == ([], None)
    assert then.proof.counts["Phone"] == 402
    graph.run("MATCH (p:Person {id: 3}) SET p.name = 'Bob'")
    graph.run("MATCH (:Person)-[r:HAS_PHONE]->(:Phone {id: 401}) DELETE r")
    damaged = prove(Archive(people.lake, people.control.read()), graph, first, small=0)
    assert {r.kind.name for r in damaged.differing} == {"Person", relationship}


def test_a_mass_removal_waits_for_a_word(people: World, graph: Graph) -> None:
    project(people, graph)
    people.source.execute("DELETE FROM phone WHERE id > 350; UPDATE person SET name = 'Ann' WHERE id = 3")
    people.load()
    (why,) = waiting(people, graph).values()
    assert "50 of 400 Phone of acme would be removed" in why
    assert "--force-removal" in why
    assert graph.counts.label_count("Phone") == 400
    # Another label is not kept waiting, and what waits is no drift.
    assert graph.run("MATCH (p:Person {id: 3}) RETURN p.name AS name") == [{"name": "Ann"}]
    assert drift(reconcile(Archive.as_projected(people.lake, people.control.read(), graph), graph)) == []
    project(people, graph, force=True)
    assert graph.counts.label_count("Phone") == 350
    people.configure("DELETE FROM node_label_mappings WHERE node_label = 'Phone'")
    assert "350 of 350 Phone" in waiting(people, graph)["Phone"]
    project(people, graph, force=True)
    assert graph.counts.label_count("Phone") == 0
    assert graph.checkpoints.names("silo nodes ") == ["silo nodes Person"]


def test_a_condition_that_changes_joins_all_anew(people: World, graph: Graph) -> None:
    project(people, graph)
    people.configure("UPDATE relationship_mappings SET join_condition = 'p.id = n.id'")
    project(people, graph, force=True)
    assert pairs(graph) == sorted(f"acme{n}-{n}" for n in range(1, 201))
    people.configure("DELETE FROM relationship_mappings")
    assert list(waiting(people, graph)) == ["(Person)-[:HAS_PHONE]->(Phone)"]
    project(people, graph, force=True)
    assert pairs(graph) == []


def test_an_excluded_property_leaves_the_nodes_that_have_it(people: World, graph: Graph) -> None:
    project(people, graph)
    control = people.control.read()
    people.configure(EXCLUDE, next(t.table_id for t in control.tables if t.table_name == "person"), "name")
    people.load()
    project(people, graph)
    assert graph.run("MATCH (p:Person) WHERE p.name IS NOT NULL RETURN count(p) AS number") == [{"number": 0}]


def test_via_rows_and_pairs_that_hold_twice(people: World, graph: Graph) -> None:
    people.source.execute("CREATE TABLE link (id int PRIMARY KEY, a int, b int)")
    people.source.execute("INSERT INTO link VALUES (1, 1, 2), (2, 1, 2), (3, 3, 4)")
    people.add("link", label="Link")
    people.configure(ADD_MAPPING, "Person", "Person", "KNOWS", "a.id = l.a AND l.b = b.id", "Link")
    people.load()
    project(people, graph)
    known = "MATCH (a:Person)-[:KNOWS]->(b:Person) RETURN a.id AS a, b.id AS b ORDER BY a"
    assert graph.run(known) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    people.source.execute("DELETE FROM link WHERE id IN (2, 3)")
    people.load()
    project(people, graph)
    assert graph.run(known) == [{"a": 1, "b": 2}]


HOSTILE = (
    "a'; DROP TABLE person; --", 'a"b', "a`b", "a}) DETACH DELETE n //", "$rows", "{id: 1}", "a.b", " ", "é\u0301",
    "select", "NULL", "a;b", "a--b", "/*x*/", "a\nb", "a\tb", "%s", "%(x)s", ":tenant", "{}", "x" * 63, "🙂",
)  # fmt: skip


def test_hostile_names_and_values_change_nothing_but_their_row(people: World, graph: Graph) -> None:
    columns = [sql.SQL("{} text").format(sql.Identifier(name)) for name in HOSTILE]
    people.source.execute(sql.SQL("CREATE TABLE hostile (id text PRIMARY KEY, {})").format(sql.SQL(", ").join(columns)))
    places = sql.SQL(", ").join([sql.Placeholder()] * (len(HOSTILE) + 1))
    insert = sql.SQL("INSERT INTO hostile VALUES ({})").format(places)
    values = [*HOSTILE, *(f"{one}{other}{n}" for one in HOSTILE for other in HOSTILE for n in (1, 2, 3))]
    assert len(values) > 1_000
    for value in values:
        people.source.execute(insert, [value, *([value] * len(HOSTILE))])
    people.add("hostile", label="Hostile")
    people.load()
    project(people, graph)
    assert graph.counts.label_counts() == {"Person": 200, "Phone": 400, "Hostile": len(values)}
    rows = [row["n"] for row in graph.run("MATCH (n:Hostile) RETURN properties(n) AS n")]
    assert all(set(row.values()) == {"acme", row["id"]} for row in rows)
    assert {row["id"] for row in rows} == set(values)
    assert set(rows[0]) == {"tenant_id", "id", *HOSTILE}
    assert people.source.execute("SELECT count(*) FROM person").fetchone() == (200,)


def test_the_script_rebuilds_the_graph_in_an_empty_database(
    people: World, graph: Graph, empty_graph: Callable[[], None], landing: Landing, settings: Settings, tmp_path: Path
) -> None:
    people.source.execute(
        "CREATE TABLE odd (id int PRIMARY KEY, t text, f float8, at timestamptz, l timestamp, d date, b bool)"
    )
    texts = ("it's", 'a "b" \\', "line\nbreak;\r\ttab", "`", "${x}", "\u2028 \u2029 \x85", "🙂", "", "\\u0041")
    for number, text in enumerate(texts):
        people.source.execute(ADD_ODD, [number, text])
    people.source.execute(
        "INSERT INTO odd (id, f) VALUES (100, 'NaN'), (101, 'Infinity'), (102, '-Infinity'), (103, 1e300)"
    )
    people.add("odd", label="Odd")
    people.load()
    project(people, graph)
    archive = Archive(people.lake, people.control.read())
    script = write_script(archive, tmp_path / "a.cypher")
    assert write_script(archive, tmp_path / "b.cypher") == script
    assert (tmp_path / "a.cypher").read_bytes() == (tmp_path / "b.cypher").read_bytes()
    counts = graph.counts.all()
    people.control.runs.add_script(
        landing.put_file(tmp_path / "a.cypher", "cypher/"), script.sha256, "", script.statements
    )
    command = ["cypher-script", "run", "--uri", settings.neo4j_uri, "--password-ref", "env:NEO4J_PASSWORD"]
    refused = CliRunner().invoke(app, command)
    assert "is not empty" in str(refused.exception)
    empty_graph()
    assert CliRunner().invoke(app, command).exit_code == 0
    assert graph.counts.all() == counts
    printed = CliRunner().invoke(app, ["cypher-script", "get"])
    assert printed.stdout_bytes == (tmp_path / "a.cypher").read_bytes()
    assert script.sha256 in CliRunner().invoke(app, ["cypher-script", "list", "--json"]).stdout
    differing = [r for r in reconcile(archive, graph) if not r.comparison.is_equal]
    assert [(r.kind.name, r.comparison.findings.rows()) for r in differing] == []


ADD_ODD = """
    INSERT INTO odd VALUES (%s, %s, 0.1, '2024-01-01 10:00:00.123456+05', '0001-01-01 00:00:00', '0999-02-03', true)
"""


def test_an_excluded_column_leaves_a_label_that_another_table_fills_too(people: World, graph: Graph) -> None:
    people.source.execute("CREATE TABLE guest (id int PRIMARY KEY, name text); INSERT INTO guest VALUES (1000, 'Gast')")
    people.add("guest", label="Person")
    people.load()
    project(people, graph)
    control = people.control.read()
    people.configure(EXCLUDE, next(t.table_id for t in control.tables if t.table_name == "person"), "name")
    project(people, graph)  # before the table is read again
    assert graph.run("MATCH (p:Person) WHERE p.name IS NOT NULL RETURN p.name AS name") == [{"name": "Gast"}]
    people.load()
    project(people, graph)
    assert graph.run("MATCH (p:Person) WHERE p.name IS NOT NULL RETURN p.name AS name") == [{"name": "Gast"}]


def test_rows_that_went_and_came_back_have_their_relationships(people: World, graph: Graph) -> None:
    project(people, graph)
    people.source.execute("CREATE TABLE kept AS SELECT * FROM person WHERE id <= 4; DELETE FROM person WHERE id <= 4")
    people.load()
    SiloGraph(people.lake, graph, people.control.read()).project_nodes()  # and then the run was killed
    people.source.execute("INSERT INTO person SELECT * FROM kept")
    people.load()
    project(people, graph)
    assert len(pairs(graph)) == 400


def test_relationships_of_removed_nodes_do_not_trip_the_brake(people: World, graph: Graph) -> None:
    project(people, graph)
    people.source.execute("UPDATE phone SET person = 1 WHERE id <= 200")
    people.load()
    project(people, graph, force=True)
    people.source.execute("DELETE FROM person WHERE id = 1")
    people.load()
    project(people, graph)
    assert len(pairs(graph)) == 200


@pytest.mark.parametrize(("before", "after"), [("int", "text"), ("text", "int"), ("numeric(10, 0)", "numeric(12, 2)")])
def test_a_key_may_get_another_type(world: World, graph: Graph, before: str, after: str) -> None:
    world.source.execute(f"CREATE TABLE t (id {before} PRIMARY KEY)".encode())
    world.source.execute(b"INSERT INTO t SELECT g FROM generate_series(1, 50) g")
    world.add("t", label="Thing")
    world.load()
    project(world, graph)
    world.source.execute(f"ALTER TABLE t ALTER COLUMN id TYPE {after} USING id::{after}".encode())
    world.load()
    assert "50 of 50 Thing" in waiting(world, graph)["Thing"]
    project(world, graph, force=True)
    assert graph.counts.label_count("Thing") == 50


def test_a_column_with_a_name_of_ours_gets_another_in_lake_and_graph(world: World, graph: Graph) -> None:
    world.source.execute("""
        CREATE TABLE t (
            tenant_id int PRIMARY KEY, run_id text, "Name" text, name text, extracted_at timestamptz NOT NULL
        );
        INSERT INTO t VALUES (1, 'r', 'A', 'a', now() - interval '1 day'), (2, 's', 'B', 'b', now())
    """)
    table = world.add("t", "tenant_id", label="Thing", mode="incremental", cursor="extracted_at")
    with pytest.raises(ConfigError, match="lake_name in column_names"):
        make_plan(world.control.read(), found_tables(world.control.read(), open_silo))
    for column in ("tenant_id", "run_id", "extracted_at", "Name"):
        world.configure("INSERT INTO column_names VALUES (%s, %s, %s)", table, column, f"their_{column.lower()}")
    world.configure(EXCLUDE, table, "run_id")
    assert world.load().failures == {}
    world.source.execute("INSERT INTO t VALUES (3, 't', 'C', 'c', now())")
    assert world.load().failures == {}
    assert world.logged()[-1][:6] == ("t", "done", "incremental", 2, 1, 0)
    held = world.lake.read(world.table("t", "their_tenant_id")).sort("their_tenant_id")
    assert held.select("tenant_id", "their_tenant_id", "their_name", "name").rows() == [
        ("acme", 1, "A", "a"), ("acme", 2, "B", "b"), ("acme", 3, "C", "c"),
    ]  # fmt: skip
    assert "their_run_id" not in held.columns
    project(world, graph)
    assert graph.counts.label_count("Thing") == 3
    grants = "; ".join(s.as_string(None) for s in grant_statements(
        world.name, "reader", make_plan(world.control.read(), found_tables(world.control.read(), open_silo)).extracts
    ))  # fmt: skip
    assert '"tenant_id", "Name", "name", "extracted_at", "xmin"' in grants
    world.configure("INSERT INTO column_names VALUES (%s, 'none', 'name')", table)
    with pytest.raises(ConfigError, match=r"there is no column 'none'.*\n?.*as another column is"):
        make_plan(world.control.read(), found_tables(world.control.read(), open_silo))


def test_a_paused_table_is_frozen_when_it_comes_back(world: World) -> None:
    world.source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.add("t")
    world.load()
    world.configure("UPDATE source_tables SET is_active = false, drift_policy = 'freeze'")
    world.load()
    world.source.execute("ALTER TABLE t ADD COLUMN ssn text")
    world.configure("UPDATE source_tables SET is_active = true")
    world.load()
    assert "ssn" not in world.held("t").columns


def test_a_table_may_get_another_key(people: World, graph: Graph) -> None:
    project(people, graph)
    people.configure("UPDATE source_tables SET key_columns = '{name}' WHERE table_name = 'person'")
    people.load()
    people.configure("UPDATE relationship_mappings SET is_active = false")
    project(people, graph, force=True)
    (row,) = graph.run(
        "SHOW CONSTRAINTS YIELD labelsOrTypes, properties WHERE labelsOrTypes = ['Person'] RETURN properties"
    )
    assert row["properties"] == ["tenant_id", "name"]
    assert graph.counts.label_count("Person") == 200


def test_two_workers_at_once_end_like_one(people: World, graph: Graph) -> None:
    people.source.execute("UPDATE person SET name = name || '!'; DELETE FROM phone WHERE id = 1")
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(people.load), pool.submit(people.load)]:
            done.result()
    assert people.held("person")["name"].str.ends_with("!").all()
    assert people.lake.count(people.table("phone")) == 399
    assert {status for _, status, *_ in people.logged()} == {"done"}


def test_a_killed_run_is_closed_by_the_next(world: World) -> None:
    world.source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    world.add("t")
    world.configure("INSERT INTO etl_run_logs (run_id, status) VALUES ('killed', 'running')")
    world.load()
    assert [row[:2] for row in world.rows_of(READ_RUN_LOGS)] == [("killed", "failed"), ("run-1", "done")]


def test_an_older_control_database_gets_what_is_new(world: World) -> None:
    world.configure("DROP TABLE applied_plans, control_schema; ALTER TABLE source_tables DROP COLUMN drift_policy")
    world.control.ensure()
    assert world.control.runs.applied_plan() is None
    with pytest.raises(psycopg.errors.CheckViolation):
        world.add("t", mode="incremental")


def test_opening_a_control_database_changes_nothing_and_waits_for_nobody(world: World) -> None:
    world.configure("DELETE FROM correlation_key_rules WHERE key_type = 'device'")
    reading = psycopg.connect(**world.control.login)
    with reading, world.control._sessions.session() as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for row in tables:
            # As a worker that reads and writes: a statement that changes the table would wait for its end.
            reading.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(sql.Identifier(row["tablename"])))
        world.control.ensure()
    reading.close()
    assert "device" not in {rule.key_type for rule in world.control.key_rules.policy().rules}


def test_drift_is_measured_against_the_last_run(world: World) -> None:
    world.source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    table_id = world.add("t")
    world.load()
    world.configure("UPDATE source_tables SET drift_policy = 'fail' WHERE table_id = %s", table_id)
    world.source.execute("ALTER TABLE t ADD COLUMN w int")
    with pytest.raises(ConfigError, match=f"source_tables row {table_id} .*column 'w' is new"):
        world.load()
    world.configure("UPDATE source_tables SET drift_policy = 'freeze'")
    world.load()
    assert "w" not in world.held("t").columns
    world.configure("UPDATE source_tables SET drift_policy = 'evolve'")
    world.load()
    assert "w" in world.held("t").columns


def test_a_table_of_another_tenant_is_another_table(world: World) -> None:
    world.source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    world.add("t")
    world.load()
    world.configure("UPDATE source_databases SET tenant_id = 'globex'")
    world.load()
    assert world.held("t")["tenant_id"].to_list() == ["globex"]


def failures_of(world: World, **options: bool) -> dict[str, str]:
    """Why tables could not be had, by their name without the database's."""
    return {name.removeprefix(f"{world.name}."): why for name, why in world.load(**options).failures.items()}


def test_fewer_rows_without_an_error_are_looked_at_before_they_are_believed(world: World) -> None:
    world.source.execute("CREATE TABLE kept (id int PRIMARY KEY); INSERT INTO kept VALUES (1)")
    world.source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    world.source.execute("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 1000) g")
    for name in ("t", "kept"):
        world.add(name)
    world.load(force=False)
    for emptied in ("TRUNCATE t", "DROP TABLE t; CREATE TABLE t (id bigint PRIMARY KEY, v text)"):
        world.source.execute(emptied.encode())
        (why,) = failures_of(world, force=False).values()
        assert "has 0 rows now, and 1,000 of the 1,000" in why
        assert "restore into an empty database" in why
        assert world.lake.count(world.table("t")) == 1_000
    assert world.load().failures == {}
    assert world.lake.count(world.table("t")) == 0


def test_row_level_security_empties_no_archive(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.source.execute("CREATE TABLE customers (id int PRIMARY KEY); INSERT INTO customers VALUES (1), (2)")
    world.source.execute("CREATE TABLE free (id int PRIMARY KEY); INSERT INTO free VALUES (1)")
    for name in ("customers", "free"):
        world.add(name)
    world.load()
    role = f"reader_{world.name}"
    world.source.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(sql.Identifier(role)))
    world.source.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(sql.Identifier(role)))
    world.configure("UPDATE source_databases SET db_user = %s, password_ref = 'env:C360_SOURCE_READER'", role)
    monkeypatch.setenv("C360_SOURCE_READER", "x")
    monkeypatch.setenv("C360_SOURCE_READER_HOST", "*")
    world.source.execute(
        "ALTER TABLE customers ENABLE ROW LEVEL SECURITY; "
        "CREATE POLICY own ON customers USING (id::text = current_setting('app.user', true))"
    )
    (why,) = failures_of(world).values()
    assert "row level security hides rows" in why
    assert "BYPASSRLS" in why
    assert world.held("customers")["id"].to_list() == [1, 2]
    world.source.execute(sql.SQL("ALTER ROLE {} BYPASSRLS").format(sql.Identifier(role)))
    assert world.load().failures == {}
    world.source.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


@pytest.fixture
def encoded(world: World, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    """A database of another encoding in place of the world's."""
    name = f"{world.name}_encoded"
    with psycopg.connect(**{**world.login, "dbname": "postgres"}, autocommit=True) as server:
        server.execute(
            sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0").format(
                sql.Identifier(name), sql.Literal(request.param)
            )
        )
        world.configure("UPDATE source_databases SET db_name = %s", name)
        world.name = name
        with psycopg.connect(**{**world.login, "dbname": name}, autocommit=True, client_encoding="UTF8") as source:
            yield source
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.mark.parametrize("encoded", ["LATIN1", "WIN1252", "LATIN9", "EUC_JP"], indirect=True)
def test_a_database_in_another_encoding_is_read_as_what_it_says(world: World, encoded: psycopg.Connection[Any]) -> None:
    name = "\u30df\u30e5\u30e9\u30fc" if encoded.info.parameter_status("server_encoding") == "EUC_JP" else "Müller"
    encoded.execute('CREATE TABLE people (id int PRIMARY KEY, "Straße" text)'.replace("Straße", name).encode())
    world.add("people")
    for row in ((1, "Ana"), (2, name)):
        encoded.execute("INSERT INTO people VALUES (%s, %s)", row)
        assert world.load().failures == {}
    assert world.held("people")[name].to_list() == ["Ana", name]


@pytest.mark.parametrize("encoded", ["SQL_ASCII"], indirect=True)
def test_bytes_that_are_no_text_never_reach_the_archive(world: World, encoded: psycopg.Connection[Any]) -> None:
    encoded.execute("CREATE TABLE people (id int PRIMARY KEY, name text); INSERT INTO people VALUES (1, 'Ana')")
    encoded.execute("CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)")
    for name in ("people", "other"):
        world.add(name)
    assert world.load().failures == {}
    encoded.execute("SET client_encoding = 'SQL_ASCII'")
    encoded.execute(b"INSERT INTO people VALUES (2, 'M\xfcller')")
    (why,) = failures_of(world).values()
    assert "public.people (source_tables row" in why
    assert 'invalid byte sequence for encoding "UTF8": 0xfc' in why
    assert world.held("people")["name"].to_list() == ["Ana"]
    encoded.execute("DELETE FROM people WHERE id = 2")
    assert world.load().failures == {}


def test_a_silo_that_is_down_leaves_the_others_alone(world: World) -> None:
    world.source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    world.add("t")
    down = world.control.execute(ADD_DATABASE, name="nowhere", host="127.0.0.1", port=9, user="u")["database_id"]
    world.control.execute(ADD_TABLE, database=down, schema="public", table="x", key=["id"], cursor=None, mode="full")
    ((name, why),) = world.load().failures.items()
    assert name == "nowhere.public.x"
    assert "The silo nowhere at 127.0.0.1:9" in why
    assert world.held("t")["id"].to_list() == [1]
    assert [(table, status) for table, status, *_ in world.logged()] == [("x", "failed"), ("t", "done")]


def test_a_column_without_a_grant_a_renamed_table_and_a_bad_mapping_fail_alone(world: World) -> None:
    for name in ("t", "u", "v"):
        world.source.execute(sql.SQL("CREATE TABLE {0} (id int PRIMARY KEY)").format(sql.Identifier(name)))
        world.source.execute(sql.SQL("INSERT INTO {0} VALUES (1)").format(sql.Identifier(name)))
        world.add(name, label=f"L{name}")
    assert world.load().failures == {}
    world.source.execute("ALTER TABLE u RENAME TO w; INSERT INTO t VALUES (2)")
    world.configure(ADD_MAPPING, "Lt", "Lv", "BAD", "a.nope = b.id", None)
    failures = failures_of(world)
    assert list(failures) == ["public.u", "(Lt)-[:BAD]->(Lv)"]
    assert world.held("t")["id"].to_list() == [1, 2]
    assert world.held("u")["id"].to_list() == [1]


def test_a_session_that_ends_in_the_middle_is_opened_again_and_said_so(world: World) -> None:
    world.source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)")
    world.source.execute("CREATE TABLE b (id int PRIMARY KEY, v text)")
    world.source.execute("INSERT INTO b SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g")
    for name in ("a", "b"):
        world.add(name)
    ended: list[int] = []

    def say(line: str) -> None:
        world.said.append(line)
        if ".a:" in line and not ended:  # between two tables of one snapshot
            rows = world.source.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
                (world.name,),
            ).fetchall()
            ended.append(len(rows))

    with world.control.runs.logged_run("run") as log:
        loaded = SiloRun(world.control, world.lake, open_silo, "run", log, say).load()
    assert ended == [1]
    assert loaded.failures == {}
    assert any("b is read again, in a new snapshot" in line for line in world.said)
    assert world.lake.count(world.table("b")) == 20_000


def test_a_statement_that_takes_too_long_fails_alone_and_says_so(world: World) -> None:
    world.source.execute("CREATE VIEW slow AS SELECT 1 AS id, pg_sleep(3)::text AS v")
    world.source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    for name in ("slow", "t"):
        world.add(name)
    world.source.execute(
        sql.SQL("ALTER DATABASE {} SET statement_timeout = '300ms'").format(sql.Identifier(world.name))
    )
    ((name, why),) = failures_of(world).items()
    assert name == "public.slow"
    assert "statement timeout" in why
    assert world.held("t")["id"].to_list() == [1]
    assert len([line for line in world.said if "slow is read again" in line]) == 1
