"""Audiences on real stores: who did what enters and leaves, in lake and graph, and destinations come to know."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from typer.testing import CliRunner
from visitor_world import Shop, archived, event

from c360_pipeline.cli import app
from c360_pipeline.connections import open_bucket
from c360_pipeline.core.catalog.audience_tables import AUDIENCE_DELIVERED, AUDIENCE_DELIVERIES, AUDIENCE_MEMBERS
from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import Settings
from c360_pipeline.stages.audiences.deliver import Deliveries
from c360_pipeline.stages.audiences.sinks import OpenSink, require_possible
from c360_pipeline.stages.projection.audiences import bring_up_audiences
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
INSIDE = Statement("""
    MATCH (u:User {tenant_id: 'acme'})-[:IN_AUDIENCE]->(a:Audience {tenant_id: 'acme'})
    RETURN a.id AS audience, u.id AS user ORDER BY audience, user
""")
AUDIENCES = Statement("MATCH (a:Audience {tenant_id: 'acme'}) RETURN a.id AS id")
DAMAGES = {
    "a member who is none": Statement("""
        MATCH (u:User {tenant_id: 'acme', id: 'cy'}) MATCH (a:Audience {tenant_id: 'acme', id: 'lookers'})
        CREATE (u)-[:IN_AUDIENCE {since: datetime('2026-03-02T00:00Z')}]->(a)
    """),
    "a member who is not there": Statement("""
        MATCH (:User {tenant_id: 'acme', id: 'ana'})-[r:IN_AUDIENCE]->(:Audience {tenant_id: 'acme'}) DELETE r
    """),
    "an audience too many": Statement("CREATE (:Audience {tenant_id: 'acme', id: 'nobody-knows'})"),
}
LOOKERS: dict[str, Any] = {
    "audience": "lookers", "tenant": "acme", "title": "Lookers",
    "who": {"did": "view", "at_least": 3},
    "deliver": {
        "file": {"to": "bucket"}, "lake": {"to": "bucket", "format": "parquet", "purpose": "ads"},
        "rows": {"to": "postgres", "database": "shop", "table": "public.members"},
    },
}  # fmt: skip


@pytest.fixture
def shop(lake: Lake, graph: Graph) -> Shop:
    return Shop(lake, graph)


def inside(shop: Shop) -> dict[str, set[str]]:
    """Members by audience, in the graph; the same as in the lake, and graph and archive are equal."""
    found: dict[str, set[str]] = {}
    for row in shop.graph.query(INSIDE):
        found.setdefault(row["audience"], set()).add(row["user"])
    held = shop.lake.read(AUDIENCE_MEMBERS).filter(pl.col("left_at").is_null())
    assert sorted(held.select("audience", "user_id").rows()) == sorted((a, u) for a, us in found.items() for u in us)
    assert {row["id"] for row in shop.graph.query(AUDIENCES)} == found.keys()
    assert shop.findings() == set()
    return found


def applied(control: ControlDb, *documents: dict[str, Any]) -> None:
    from c360_pipeline.core.audiences.definition import read_audience

    for document in documents:
        control.audiences.apply(read_audience(document), "")


def test_members_follow_logins_corrections_and_erased_events(shop: Shop, control: ControlDb) -> None:
    applied(control, {**LOOKERS, "deliver": {}}, {"audience": "cy", "tenant": "acme", "who": {"did": "search"}})

    def bring_up() -> dict[str, set[str]]:
        shop.project()
        bring_up_audiences(shop.lake, control, shop.graph, NOW)
        return inside(shop)

    archived(shop.lake, [event(0, None, "phone"), event(1, None, "phone"), event(3, "cy", "tablet", "t")])
    assert bring_up() == {}
    archived(shop.lake, [event(2, "ana", "phone")])
    assert bring_up() == {"lookers": {"ana"}}, "what was done before the login counts"
    archived(shop.lake, [event(4, "bo", "phone", "v"), event(5, "cy", "tablet", "t", action="search")])
    assert bring_up() == {"lookers": {"ana"}, "cy": {"cy"}}
    # One of the three views goes: Ana leaves, and comes back with another.
    key = pl.DataFrame({"tenant_id": ["acme"], "event_id": ["e0"]})
    shop.lake.commits.merge(EVENTS, EVENTS.empty(), key)
    assert bring_up() == {"cy": {"cy"}}
    archived(shop.lake, [event(6, "ana", "phone")])
    assert bring_up() == {"lookers": {"ana"}, "cy": {"cy"}}
    spans = shop.lake.read(AUDIENCE_MEMBERS).filter(pl.col("user_id") == "ana").sort("entered_at")
    assert spans["left_at"].is_null().to_list() == [False, True]
    # Of a customer who is gone from the archive nothing stays; nor of one in an audience that ended.
    control.audiences.end("acme", "cy")
    gone = pl.DataFrame({"tenant_id": ["acme"] * 2, "event_id": ["e3", "e5"]})
    shop.lake.commits.merge(EVENTS, EVENTS.empty(), gone)
    assert bring_up() == {"lookers": {"ana"}}
    assert {*shop.lake.read(AUDIENCE_MEMBERS)["user_id"]} == {"ana"}


def test_damages_of_members_are_found_and_repaired(shop: Shop, control: ControlDb) -> None:
    applied(control, {**LOOKERS, "deliver": {}})
    archived(shop.lake, [*(event(n, "ana", "phone") for n in range(3)), event(9, "cy", "tablet", "t")])
    shop.project()
    bring_up_audiences(shop.lake, control, shop.graph, NOW)
    assert inside(shop) == {"lookers": {"ana"}}
    for damage, statement in DAMAGES.items():
        shop.graph.run(statement)
        assert shop.findings(), damage
        assert [one.kind.name for one in shop.prove().differing], damage
        shop.findings(repair=True, force=True)
        assert inside(shop) == {"lookers": {"ana"}}, damage


@pytest.fixture
def destination(settings: Settings, control: ControlDb, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A database called shop, which a control row names."""
    login = dict(control.login)
    with psycopg.connect(**login, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS shop")
        connection.execute("CREATE DATABASE shop")
    host, port = login["host"], login["port"]
    monkeypatch.setenv("C360_SOURCE_SHOP", login["password"])
    monkeypatch.setenv("C360_SOURCE_SHOP_HOST", f"{host}:{port}")
    control.execute(
        "INSERT INTO source_databases (tenant_id, db_name, host, port, db_user, password_ref) VALUES "
        "('acme', 'shop', %(host)s, %(port)s, %(user)s, 'env:C360_SOURCE_SHOP')",
        host=host, port=port, user=login["user"],
    )  # fmt: skip
    yield {**login, "dbname": "shop"}
    with psycopg.connect(**login, autocommit=True) as connection:
        connection.execute("DROP DATABASE shop WITH (FORCE)")


def test_destinations_have_the_members_and_hear_that_all_left(
    shop: Shop, control: ControlDb, settings: Settings, destination: dict[str, Any]
) -> None:
    applied(control, LOOKERS)
    bucket = open_bucket(settings)
    archived(shop.lake, [
        *(event(n, "ana", "phone") for n in range(3)), *(event(n, "=cmd()", "pc", "t") for n in range(3, 6)),
        event(6, "ana", "phone", consent={"ads": "denied"}),
    ])  # fmt: skip

    def delivered() -> dict[str, tuple[int, int, int, str]]:
        shop.project()
        bring_up_audiences(shop.lake, control, shop.graph, NOW)
        active, _ = control.audiences.active()
        done = Deliveries(shop.lake, OpenSink(settings, control)).all(
            active, control.audiences.versions(), control.locks.named
        )
        return {one.destination: (one.entered, one.left, one.withheld, one.error) for one in done}

    def rows() -> set[str]:
        with psycopg.connect(**destination) as connection:
            return {user for (user,) in connection.execute("SELECT user_id FROM public.members").fetchall()}

    assert delivered() == {"file": (2, 0, 0, ""), "lake": (1, 0, 1, ""), "rows": (2, 0, 0, "")}
    text = bucket.read("audiences/acme/lookers/file/members.csv").decode()
    assert [row["user_id"] for row in csv.DictReader(io.StringIO(text))] == ["'=cmd()", "ana"], "no formula"
    exact = pl.read_parquet(bucket.read("audiences/acme/lookers/lake/members.parquet"))
    assert exact["user_id"].to_list() == ["=cmd()"]
    assert rows() == {"ana", "=cmd()"}
    assert delivered() == {"file": (0, 0, 0, ""), "lake": (0, 0, 1, ""), "rows": (0, 0, 0, "")}
    assert shop.lake.count(AUDIENCE_DELIVERIES) == 3
    # A destination that the document names no more hears that all left; so do those of an audience that ended.
    applied(control, {**LOOKERS, "deliver": {"file": {"to": "bucket"}}})
    assert delivered() == {"file": (0, 0, 0, ""), "lake": (0, 1, 0, ""), "rows": (0, 2, 0, "")}
    assert rows() == set()
    control.audiences.end("acme", "lookers")
    assert delivered() == {"file": (0, 2, 0, "")}
    assert shop.lake.count(AUDIENCE_DELIVERED) == 0
    assert inside(shop) == {}
    assert delivered() == {}


@pytest.mark.parametrize(
    ("to", "allowed", "why"),
    [
        ({"to": "webhook", "url": "https://evil.test/x", "secret_ref": "env:C360_SOURCE_SHOP"}, "", "evil.test"),
        ({"to": "webhook", "url": "http://127.0.0.1:1/x", "secret_ref": "env:C360_SOURCE_SHOP"}, "*", "named as it is"),
        ({"to": "webhook", "url": "http://localhost:1/x", "secret_ref": "env:C360_SOURCE_SHOP"}, "*", "named as it is"),
        ({"to": "webhook", "url": "http://[::1]:1/x", "secret_ref": "env:C360_SOURCE_SHOP"}, "*", "named as it is"),
        ({"to": "webhook", "url": "http://127.0.0.1:1/x", "secret_ref": "env:NEO4J_PASSWORD"}, "127.*.1,127.0.0.1",
         "not for sources"),
        ({"to": "webhook", "url": "http://127.0.0.1:1/x", "secret_ref": "env:C360_SOURCE_SHOP"}, "127.0.0.1",
         "is not for"),
        ({"to": "postgres", "database": "c360_control", "table": "public.api_keys"}, "", "no database"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("destination")
def test_members_go_nowhere_that_the_operator_has_not_opened(
    settings: Settings, control: ControlDb, monkeypatch: pytest.MonkeyPatch, to: dict[str, Any], allowed: str, why: str
) -> None:
    from c360_pipeline.core.audiences.definition import read_audience
    from c360_pipeline.stores import activation

    known = {"evil.test": "203.0.113.7"}
    look_up = activation.socket.getaddrinfo
    monkeypatch.setattr(
        activation.socket, "getaddrinfo", lambda host, *rest: look_up(known.get(str(host), host), *rest)
    )
    monkeypatch.setenv("C360_ACTIVATION_HOSTS", allowed)
    audience = read_audience({**LOOKERS, "deliver": {"out": to}})
    with pytest.raises(ConfigError, match=why) as found:
        require_possible(settings, control, audience)
    assert "deliver.out" in str(found.value)


def test_commands_plan_apply_and_show(shop: Shop, control: ControlDb, tmp_path: Path) -> None:
    archived(shop.lake, [*(event(n, "ana", "phone") for n in range(3)), event(9, "cy", "tablet", "t")])
    shop.project()
    file = tmp_path / "lookers.json"
    file.write_text(json.dumps({**LOOKERS, "deliver": {"file": {"to": "bucket"}}}))

    def said(*arguments: str, code: int = 0) -> Any:
        done = CliRunner().invoke(app, ["audiences", *arguments], catch_exceptions=code == 0)
        assert done.exit_code == code, done.output
        return json.loads(done.stdout) if "--json" in arguments else done.output

    (planned,) = said("plan", str(tmp_path), "--json")
    assert (planned["change"], planned["members"], planned["enter"], planned["customers"]) == ("new", 1, 1, 2)
    assert said("list", "--json") == []
    assert said("apply", str(file), "--json")[0]["version"] == 1
    assert said("apply", str(file), "--json")[0]["changed"] is False
    assert said("refresh", "--json")["changed"] == {"acme/lookers": [1, 0]}
    assert said("size", "lookers", "--each", "--json") == {
        "customers": 2, "members": 1, "each": {"did view at least 3 times": 1}
    }  # fmt: skip
    (listed,) = said("list", "--json")
    assert (listed["members"], listed["who"]) == (1, "did view at least 3 times")
    assert said("deliver", "--json")[0]["entered"] == 1
    shown = said("show", "lookers", "--json")
    assert (shown["members"], shown["deliveries"][0]["destination"]) == (1, "file")
    assert "1 members" in said("show", "lookers")
    said("end", "lookers")
    assert said("refresh", "--json")["changed"] == {"acme/lookers": [0, 1]}
    for wrong in (["show", "nope"], ["end", "lookers"], ["plan", str(Path(__file__))], ["replay", "lookers", "file"]):
        with pytest.raises(ConfigError):
            CliRunner().invoke(app, ["audiences", *wrong], catch_exceptions=False)
