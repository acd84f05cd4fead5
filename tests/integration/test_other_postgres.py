"""Silos on servers as others run them: PostgreSQL 12 to 18, a standby, PgBouncer in its two modes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from postgres_servers import HOST, PASSWORD, VERSIONS, Server, pgbouncer, postgres, standby
from silo_world import ADD_DATABASE, AWKWARD, World

from c360_pipeline.settings import Settings, postgres_login
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.control import ControlDb

pytestmark = pytest.mark.soak
NEWEST = VERSIONS[-1]
PEOPLE = """
    CREATE TABLE parents (id int PRIMARY KEY, changed_at timestamptz NOT NULL DEFAULT now()) PARTITION BY RANGE (id);
    CREATE TABLE parents_few PARTITION OF parents FOR VALUES FROM (0) TO (1000);
    CREATE TABLE parents_many PARTITION OF parents FOR VALUES FROM (1000) TO (1000000);
    CREATE TABLE children (id int PRIMARY KEY, parent_id int NOT NULL REFERENCES parents);
    INSERT INTO parents SELECT n, now() - n * interval '1 second' FROM generate_series(1, 2000) n;
    INSERT INTO children SELECT n, n FROM generate_series(1, 2000) n;
"""
FAMILY = """
    WITH next AS (SELECT max(id) + 1 AS id FROM parents), parent AS (INSERT INTO parents SELECT id FROM next)
    INSERT INTO children SELECT id, id FROM next
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        above.chmod(0o755)  # a server that is not root's goes through them
    return tmp_path


@contextmanager
def silo_at(
    server: Server, settings: Settings, control: ControlDb, lake: Lake, monkeypatch: pytest.MonkeyPatch, port: int = 0
) -> Iterator[World]:
    """A silo of that server, read at its port or at that of a pooler."""
    monkeypatch.setenv("C360_SOURCE_OTHER", PASSWORD)
    monkeypatch.setenv("C360_SOURCE_OTHER_HOST", f"{HOST}:*")
    statement = ADD_DATABASE.replace("env:C360_SOURCE_TEST", "env:C360_SOURCE_OTHER")
    login = {**server.login, "port": port or server.port}
    row = control.execute(
        statement,
        name=login["dbname"],
        host=login["host"],
        port=login["port"],
        user=login["user"],  # type: ignore[arg-type]
    )
    with psycopg.connect(**server.login, autocommit=True) as source:
        control_login = postgres_login(settings, settings.etl_db_name)
        yield World(control_login, login["dbname"], row["database_id"], control, lake, source)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_read_alike(
    version: str, folder: Path, settings: Settings, control: ControlDb, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        postgres(version, folder) as server,
        silo_at(server, settings, control, lake, monkeypatch) as world,
    ):
        script = AWKWARD if int(version.split(".")[0]) >= 15 else AWKWARD.replace("numeric(5, -2)", "numeric(5, 0)")
        world.source.execute(script.encode())
        world.source.execute(PEOPLE.encode())
        world.add("awkward")
        world.add("parents", mode="incremental", cursor="changed_at")
        world.add("children")
        assert world.load().failures == {}
        first, second = world.held("awkward").to_dicts()
        assert str(first["exact"]) == "1234567890123456789012345678.0123456789"
        assert (str(first["negative_scale"]), str(first["span"])) == ("12300", "1 mon 2 days 03:04:05")
        assert first["at"] == datetime(2024, 2, 29, 21, 59, 59, 123456, tzinfo=UTC)
        assert (first["words"], first["bytes"], first["double"]) == ('{a,"b,c"}', b"\x00\xff", 0.1)
        assert second["at"] == datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
        world.source.execute(FAMILY.encode())
        world.source.execute("DELETE FROM children WHERE id = 7")
        assert world.load().failures == {}
        assert world.held("parents").height == world.held("children").height + 1 == 2001
        assert [log[:6] for log in world.logged()[-3:]] == [
            ("awkward", "done", "full", 2, 0, 0), ("parents", "done", "incremental", 2, 1, 0),
            ("children", "done", "full", 2000, 1, 1),
        ]  # fmt: skip


@contextmanager
def families_come(server: Server) -> Iterator[None]:
    """A parent with its child, one after the other, as fast as the server takes them."""
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(**server.login, autocommit=True) as connection:
            while not stop.is_set():
                connection.execute(FAMILY.encode())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join(30)


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_behind_pgbouncer_all_tables_are_of_one_moment(
    mode: str, folder: Path, settings: Settings, control: ControlDb, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        postgres(NEWEST, folder) as server,
        pgbouncer(server, folder, mode) as port,
        silo_at(server, settings, control, lake, monkeypatch, port) as world,
    ):
        world.source.execute(PEOPLE.encode())
        world.add("children")
        world.add("parents", mode="incremental", cursor="changed_at")
        with families_come(server):
            for _ in range(5):
                assert world.load().failures == {}
                assert set(world.held("children")["parent_id"]) == set(world.held("parents")["id"])
        assert world.held("parents").height > 2000


def test_a_standby_is_read_at_one_moment_and_what_its_replay_ends_is_read_again(
    folder: Path, settings: Settings, control: ControlDb, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres(NEWEST, folder) as primary:
        with psycopg.connect(**primary.login, autocommit=True) as source:
            source.execute(PEOPLE.encode())
        with (
            standby(primary, folder) as follower,
            silo_at(follower, settings, control, lake, monkeypatch) as world,
        ):
            assert world.source.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
            world.add("children")
            world.add("parents", mode="incremental", cursor="changed_at")
            with families_come(primary):
                for _ in range(3):
                    assert world.load().failures == {}
                    assert set(world.held("children")["parent_id"]) == set(world.held("parents")["id"])
            assert world.held("parents").height > 2000
