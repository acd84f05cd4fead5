"""Backup and restore: what is restored into empty services has the same digests, and damage is noticed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import polars as pl
import pytest
from event_world import World

from c360_pipeline.cli.embedded import postgres_tools
from c360_pipeline.connections import open_bucket, open_control, open_lake, open_landing
from c360_pipeline.core.catalog.tables import DEAD_LETTERS, EVENTS
from c360_pipeline.errors import ConfigError, InvariantError
from c360_pipeline.settings import Settings, load_settings
from c360_pipeline.stages.landing.ingest import Ingest
from c360_pipeline.stages.projection.corrections import bring_up
from c360_pipeline.stages.projection.events import EventGraph, ProductGraph
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import graph_digest, summarise
from c360_pipeline.stages.recovery import backup as backups
from c360_pipeline.stages.recovery.backup import Manifest, put_back, take, verify
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.bucket import Bucket
from c360_pipeline.stores.s3.landing import Landing

TOOLS = postgres_tools()
LINE = '{"tenantId":"ac me/ü","userId":"u1","sessionId":"s","ts":"2025-11-03T10:00:00Z","action":"view"}'
LINES = f"{LINE}\nbroken\n".encode()


@pytest.fixture
def bucket(settings: Settings, landing: Landing) -> Bucket:
    return open_bucket(settings)


@pytest.fixture
def landed(world: World, landing: Landing, control: ControlDb, tmp_path: Path) -> World:
    """With a landing file, a tenant whose name is no path, dead letters, and a suppressed user."""
    (tmp_path / "first.jsonl").write_bytes(LINES)
    landing.put_file(tmp_path / "first.jsonl", "landing/events/date=2025-11-03/")
    Ingest(landing, world.lake, control.privacy.suppressed_users()).land(landing.event_files(), lambda _: None)
    control.privacy.suppress("acme", "somebody", "asked for it")
    world.project()
    return world


@pytest.fixture
def taken(landed: World, bucket: Bucket, control: ControlDb, tmp_path: Path) -> tuple[Path, Manifest]:
    folder = tmp_path / "backup"
    results = reconcile(landed.archive, landed.graph)
    return folder, take(bucket, landed.lake, control, results, folder, TOOLS)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Manifest]]:
    """The backup that the first of the tests took which only look at one."""
    return {}


@pytest.fixture
def copied(
    request: pytest.FixtureRequest, kept: dict[str, tuple[Path, Manifest]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    """A backup of one's own to damage or to restore, without the world that it was taken of."""
    if not kept:
        folder, manifest = request.getfixturevalue("taken")
        kept["one"] = Path(shutil.copytree(folder, tmp_path_factory.mktemp("kept") / "backup")), manifest
    folder, manifest = kept["one"]
    return Path(shutil.copytree(folder, tmp_path_factory.mktemp("copied") / "backup")), manifest


@pytest.fixture
def empty(home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Services that hold nothing yet."""
    name = uuid4().hex[:12]
    monkeypatch.setenv("C360_BUCKET", f"restored-{name}")
    monkeypatch.setenv("ETL_DB_NAME", f"restored_{name}")
    return load_settings(home)


def project(archive: Archive, graph: Graph) -> str:
    """The graph again; its digest."""
    graph.writer.clear()
    ProductGraph(archive.lake, graph).project()
    EventGraph(archive.lake, graph, ()).project()
    bring_up(archive.lake, graph)
    results = reconcile(archive, graph)
    assert summarise(results)["findings"] == []
    return graph_digest(results)


def test_what_is_restored_into_empty_services_has_the_same_digests(
    landed: World, taken: tuple[Path, Manifest], empty: Settings, settings: Settings
) -> None:
    folder, manifest = taken
    landed.land(30)  # is not in the backup, and does not disturb it
    control, bucket = open_control(empty), open_bucket(empty)
    put_back(bucket, control, folder, verify(folder, TOOLS), TOOLS)
    lake = open_lake(empty)
    assert backups.lake_digests(lake, manifest.versions) == manifest.digests
    assert project(Archive(lake, control.read()), landed.graph) == manifest.graph_digest
    assert control.privacy.suppressed_users().listed.height == 1
    backups.finish(bucket, lake, manifest)
    # The landing area is the same to the byte, and nothing of it lands twice.
    landing = open_landing(empty)
    (file,) = landing.event_files()
    assert b"".join(landing.pieces(file, 1000)) == LINES
    (letter,) = lake.read(DEAD_LETTERS)["dead_letter_id"]
    assert landing.read_dead_letter(letter) == b"broken"
    assert (file.etag,) == tuple(f.etag for f in open_landing(settings).event_files())
    # What was restored goes on as what it was made from.
    restored = World(lake, landed.graph)
    restored.count = landed.count
    restored.land(30)
    restored.project()
    assert restored.findings() == set()


def test_a_restore_that_was_broken_off_goes_on(
    copied: tuple[Path, Manifest], empty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = copied
    control, bucket = open_control(empty), open_bucket(empty)
    with monkeypatch.context() as patch:
        patch.setattr(backups, "restore_control", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            put_back(bucket, control, folder, manifest, TOOLS)
    put_back(bucket, control, folder, manifest, TOOLS)
    assert control.privacy.suppressed_users().listed.height == 1


@pytest.mark.parametrize("what", ["bucket", "control"])
def test_services_that_hold_something_are_left_alone(copied: tuple[Path, Manifest], empty: Settings, what: str) -> None:
    folder, manifest = copied
    control, bucket = open_control(empty), open_bucket(empty)
    if what == "bucket":
        bucket.put("landing/events/date=2025-01-01/a.jsonl", b"{}")
    else:
        control.privacy.suppress("acme", "u", "")
    with pytest.raises(ConfigError, match="not empty"):
        put_back(bucket, control, folder, manifest, TOOLS)
    assert bucket.is_empty("lake/")


def spoil_object(folder: Path) -> None:
    path = max((p for p in (folder / backups.FILES).rglob("*.parquet")), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_object(folder: Path) -> None:
    next((folder / backups.FILES / "landing").rglob("*.jsonl")).unlink()


def spoil_control(folder: Path) -> None:
    (folder / backups.CONTROL).write_bytes(b"nothing")


def other_digest(folder: Path) -> None:
    said = json.loads((folder / backups.MANIFEST).read_text())
    said["digests"]["lake events"] = "1-0"
    (folder / backups.MANIFEST).write_text(json.dumps(said))


@pytest.mark.parametrize("damage", [spoil_object, lose_object, spoil_control, other_digest])
def test_a_damaged_backup_is_noticed(copied: tuple[Path, Manifest], damage: Callable[[Path], None]) -> None:
    folder, manifest = copied
    assert verify(folder, TOOLS) == manifest
    damage(folder)
    with pytest.raises(InvariantError):
        verify(folder, TOOLS)


def test_a_folder_is_used_once(taken: tuple[Path, Manifest], landed: World, bucket: Bucket, control: ControlDb) -> None:
    folder, manifest = taken
    results = reconcile(landed.archive, landed.graph)
    with pytest.raises(ConfigError, match="not empty"):
        take(bucket, landed.lake, control, results, folder, TOOLS)
    # Without its manifest it is a backup that was broken off.
    (folder / backups.MANIFEST).unlink()
    with pytest.raises(ConfigError, match="broken off"):
        verify(folder, TOOLS)
    again = take(bucket, landed.lake, control, results, folder, TOOLS)
    assert again.digest == manifest.digest
    (folder / "mine.txt").write_text("keep")
    (folder / backups.MANIFEST).unlink()
    with pytest.raises(ConfigError, match="not empty"):
        take(bucket, landed.lake, control, results, folder, TOOLS)


def test_a_graph_that_drifted_is_not_backed_up(
    landed: World, bucket: Bucket, control: ControlDb, tmp_path: Path
) -> None:
    landed.graph.run("MATCH (e:Event) WITH e LIMIT 1 DETACH DELETE e")
    with pytest.raises(InvariantError, match="reconcile --repair"):
        take(bucket, landed.lake, control, reconcile(landed.archive, landed.graph), tmp_path / "backup", TOOLS)


def test_every_table_is_in_a_backup(landed: World, taken: tuple[Path, Manifest]) -> None:
    _, manifest = taken
    assert {"events", "journey_log", "landing_files", "dead_letters"} <= manifest.versions.keys()
    assert manifest.versions["events"] == landed.lake.versions.version(EVENTS.name).number  # type: ignore[union-attr]
    assert landed.lake.scan(EVENTS).select(pl.col("tenant_id").n_unique()).collect().item() == 4
