"""Who may what, and what is noted of it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from dagster_processes import wait_until
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from c360_pipeline.cli import app as cli
from c360_pipeline.core.privacy.roles import NAMED_ROLES, ROLES, Permission
from c360_pipeline.serving import audit
from c360_pipeline.serving.app import create_app
from c360_pipeline.serving.backend import Backend
from c360_pipeline.stages.privacy import rotation
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.audit_log import Line
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.landing import Landing

BUYERS = {"who": {"did": "purchase"}}
MakeClient = Callable[..., TestClient]
ASKS: dict[Permission, tuple[tuple[str, str, Any], ...]] = {
    Permission.TRACK: (("POST", "/graph/track", {"product_id": "p", "user_id": "u", "interaction_type": "VIEWED"}),),
    Permission.READ: (("GET", "/users/power", None), ("GET", "/app/overview", None)),
    Permission.AUDIENCES: (("PUT", "/audiences/buyers", BUYERS), ("DELETE", "/audiences/buyers", None),
                           ("POST", "/app/audiences/apply", None), ("POST", "/app/audiences/buyers/end", None)),
    Permission.IDENTITY: (("POST", "/app/journeys/unmerge", None), ("POST", "/app/visitors/split", None)),
    Permission.AUDIT: (("GET", "/audit", None), ("GET", "/app/audit", None)),
}  # fmt: skip


@pytest.fixture
def backend(graph: Graph, lake: Lake, landing: Landing, control: ControlDb) -> Backend:
    return Backend(graph, lake, landing, control)


@pytest.fixture
def make_client(backend: Backend) -> Iterator[MakeClient]:
    with TestClient(create_app(backend, rate="100000/second"), raise_server_exceptions=False) as opened:

        def client(role: str, tenant: str = "acme", note: str = "") -> TestClient:
            key, _ = backend.keys.add(tenant, role, note)
            return TestClient(opened.app, headers={"authorization": f"Bearer {key}"}, raise_server_exceptions=False)

        yield client


def noted(backend: Backend, person: str | None = None, tenant: str = "acme") -> list[Line]:
    return backend.control.audit.of(tenant, 500, person)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_what_it_allows_and_nothing_else(make_client: MakeClient, role: str) -> None:
    client = make_client(role)
    for permission, asks in ASKS.items():
        for method, path, body in asks:
            answer = client.request(method, path, json=body, follow_redirects=False)
            if permission in ROLES[role]:
                assert answer.status_code not in (401, 403), (path, answer.text)
            else:
                assert answer.status_code == 403, path
                assert f"The key has the role {role}." in answer.text
                assert "admin" in answer.text


def test_looks_and_changes_are_noted_and_name_nobody(
    backend: Backend, make_client: MakeClient, graph: Graph, control: ControlDb
) -> None:
    graph.run("CREATE (:User {tenant_id: 'acme', id: 'ana@example.org'}), (:User {tenant_id: 'acme', id: 'bo-4711'})")
    agent, analyst, officer = make_client("viewer", note="support"), make_client("analyst"), make_client("privacy")
    for _ in range(3):
        assert agent.get("/customers/ana@example.org").status_code == 200
    assert agent.get("/customers/bo-4711").status_code == 200
    assert agent.get("/customers/nobody").status_code == 404
    assert analyst.put("/audiences/buyers", json=BUYERS).status_code == 200
    wait_until(lambda: noted(backend, "bo-4711"), 30)
    (look,) = noted(backend, "  ANA@example.org ")
    assert (look.actor.split()[0], look.actor.split(" ", 2)[2]) == ("key", "(support)")
    assert (look.role, look.action) == ("viewer", "looked at a customer")
    assert noted(backend, "nobody") == []
    assert [(line.role, line.what) for line in noted(backend) if "audience" in line.action] == [("analyst", "buyers")]
    # What the officer is told, and that it is noted that they asked.
    told = officer.get("/audit?person=ana@example.org").json()["entries"]
    assert [entry["audit_id"] for entry in told] == [look.audit_id]
    page = officer.get("/app/audit")
    assert "looked at a customer" in page.text
    assert "applied an audience" in page.text
    assert officer.get("/app/audit?person=nobody").text.count("Nothing is noted about nobody.") == 1
    first = officer.get("/audit?limit=1").json()
    second = officer.get(f"/audit?limit=1&before={first['next']}").json()
    assert first["entries"][0]["audit_id"] > second["entries"][0]["audit_id"]
    wait_until(lambda: [line for line in noted(backend) if line.action == "read the audit log"], 30)
    # Another tenant has a log of its own, and no row names whom it is about.
    assert make_client("privacy", "globex").get("/audit").json()["entries"] == []
    with psycopg.connect(**control.login) as connection:
        rows = str(connection.execute("SELECT audit_log::text FROM audit_log").fetchall())
    assert "example.org" not in rows.lower()
    assert "bo-4711" not in rows
    assert "buyers" in rows


def test_who_looked_is_still_known_after_the_secret_was_rotated(
    backend: Backend, make_client: MakeClient, lake: Lake, graph: Graph, control: ControlDb
) -> None:
    graph.run("CREATE (:User {tenant_id: 'acme', id: 'ana'})")
    assert make_client("viewer").get("/customers/ana").status_code == 200
    wait_until(lambda: noted(backend, "ana"), 30)
    before = noted(backend, "ana")[0].subject_hash
    rotation.rotate(control, lake, graph, lambda _: None)
    (after,) = noted(backend, "ana")
    assert after.subject_hash != before


@contextmanager
def locked(control: ControlDb) -> Iterator[None]:
    """The log can't be written meanwhile."""
    with psycopg.connect(**control.login) as connection:
        connection.execute("LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE")
        yield


def test_what_cannot_be_noted_is_not_changed_and_looks_wait(
    backend: Backend, make_client: MakeClient, graph: Graph, control: ControlDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c360_pipeline.serving.api.SECONDS", 2.0)
    graph.run("CREATE (:User {tenant_id: 'acme', id: 'ana'})")
    analyst = make_client("analyst")
    with locked(control):
        refused = analyst.put("/audiences/buyers", json=BUYERS)
        assert (refused.status_code, refused.headers["content-type"]) == (504, "application/problem+json")
        assert analyst.get("/customers/ana").status_code == 200
    assert analyst.get("/audiences").json()["audiences"] == []
    wait_until(lambda: noted(backend, "ana"), 30)
    assert analyst.put("/audiences/buyers", json=BUYERS).status_code == 200


def test_looks_from_many_threads_are_noted_once_each_and_none_is_lost(
    backend: Backend, make_client: MakeClient
) -> None:
    make_client("viewer")
    (key,) = backend.keys.all()

    def look(worker: int) -> None:
        for number in range(200):
            backend.audit.looked(key, audit.Action.LOOKED_AT, [f"u{(number + worker) % 200}"])

    threads = [threading.Thread(target=look, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(noted(backend)) >= 200, 30)
    assert backend.audit.write_waiting()
    looks = [line.subject_hash for line in noted(backend)]
    assert len(looks) == len(set(looks)) == 200


def test_commands_are_noted(backend: Backend, control: ControlDb) -> None:
    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        return result

    made = json.loads(run("api-keys", "create", "--tenant", "acme", "--role", "privacy", "--json").stdout)
    run("suppress", "add", "--tenant", "acme", "--user", "ana")
    run("suppress", "remove", "--tenant", "acme", "--user", "ana")
    run("api-keys", "revoke", str(made["key_id"]))
    lines = json.loads(run("audit", "--tenant", "acme", "--json").stdout)
    assert [line["action"] for line in lines] == [
        "revoked an API key", "ended a suppression", "suppressed a person", "made an API key",
    ]  # fmt: skip
    assert {line["actor"].startswith("command line (") for line in lines} == {True}
    assert [line["what"] for line in lines][-1] == "privacy"
    about = json.loads(run("audit", "--tenant", "acme", "--person", " ana ", "--json").stdout)
    assert [line["action"] for line in about] == ["ended a suppression", "suppressed a person"]
    assert "suppressed a person" in run("audit", "--tenant", "acme").stdout
    assert "Nothing is noted of 'globex'." in run("audit", "--tenant", "globex").stderr
    # What is older than it is kept goes with the next entry.
    control.execute("UPDATE audit_log SET at = at - interval '401 days' WHERE action LIKE '%% API key'")
    run("suppress", "add", "--tenant", "acme", "--user", "ana")
    assert "API key" not in str([line.action for line in noted(backend)])


def test_sessions_of_people_are_ended_by_name_or_all_at_once(backend: Backend, control: ControlDb) -> None:
    ana, bo = (
        backend.keys.begin_session_of_person("acme", "viewer", f"{name}@example.org ({name})", 3_600)
        for name in ("ana", "bo")
    )
    key, _ = backend.keys.add("acme", "viewer")
    of_key = backend.keys.begin_session(key, 3_600)
    assert of_key is not None
    ended = CliRunner().invoke(cli, ["api-keys", "end-sessions", "--person", "person ana@example.org (ana)"])
    assert ended.exit_code == 0, ended.output
    assert backend.keys.find_session(ana) is None
    assert backend.keys.find_session(bo) is not None
    assert CliRunner().invoke(cli, ["api-keys", "end-sessions"]).exit_code == 0
    assert backend.keys.find_session(bo) is None
    assert backend.keys.find_session(of_key) is not None
    assert [(line.action, line.what) for line in noted(backend)] == [
        ("ended sessions of the pages", f"person {name}@example.org ({name})") for name in ("bo", "ana")
    ]
    nobody = CliRunner().invoke(cli, ["api-keys", "end-sessions"])
    assert "Nobody who signed in has a session." in str(nobody.exception)


def test_an_unknown_role_is_refused_with_those_that_there_are() -> None:
    result = CliRunner().invoke(cli, ["api-keys", "create", "--tenant", "acme", "--role", "root"])
    assert result.exit_code != 0
    assert ", ".join(NAMED_ROLES) in str(result.exception)
