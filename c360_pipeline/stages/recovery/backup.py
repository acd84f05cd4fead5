"""An online logical backup: the lake at pinned versions, landing area and dead letters, the control database, digests.

The graph is not in it: it is rebuilt from its archive, and its digest proves that it is the same. So a backup needs
nothing of Neo4j that the Community edition does not have.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.tables import DEAD_LETTER_LINES, DEAD_LETTERS, LANDING_FILES
from c360_pipeline.core.reconciliation.compare import combined_digest
from c360_pipeline.errors import C360Error, ConfigError, InvariantError
from c360_pipeline.stages.reconciliation.reconcile import Reconciled
from c360_pipeline.stages.reconciliation.results import drift, graph_digest, lake_digest
from c360_pipeline.stages.recovery.cypher_script import SCRIPTS_PREFIX
from c360_pipeline.stages.sources.tables import FOLDER as TABLE_EVENTS
from c360_pipeline.stages.sources.topics import FOLDER as TOPIC_EVENTS
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.bucket import Bucket, Copied, file_sha256

Observe = Callable[[str], None]
FORMAT = 1
LAKE = "lake/"
AREAS = ("landing/", "dead-letters/", SCRIPTS_PREFIX, TABLE_EVENTS, TOPIC_EVENTS)
"""Beside the lake; what lies there is never changed."""
ACCOUNTING = (LANDING_FILES.name, DEAD_LETTERS.name, DEAD_LETTER_LINES.name)
MANIFEST, OBJECTS, CONTROL, FILES = "backup.json", "objects.parquet", "control.dump", "objects"
RESTORING = "restoring.json"
"""The object that says which backup is being restored, until it is."""
LOG = "_delta_log/"
VERSION_DIGITS = 20


@dataclass(frozen=True)
class Manifest:
    """What a backup holds.

    Attributes:
        format: of the folder.
        made_at: ISO 8601, UTC.
        made_by: version of this package.
        bucket: that it was taken of.
        versions: of the lake's tables, by name.
        digests: of the lake's tables, by name.
        graph_digest: of the graph as reconciled.
        objects: how many.
        bytes: of all objects.
        objects_sha256: of the list of objects.
        control_sha256: of the dump of the control database.
    """

    format: int
    made_at: str
    made_by: str
    bucket: str
    versions: dict[str, int]
    digests: dict[str, str]
    graph_digest: str
    objects: int
    bytes: int
    objects_sha256: str
    control_sha256: str

    @property
    def digest(self) -> str:
        """Of lake and graph."""
        return combined_digest({**self.digests, "graph": self.graph_digest})


def take(
    bucket: Bucket,
    lake: Lake,
    control: ControlDb,
    results: list[Reconciled],
    folder: Path,
    tools: Path,
    observe: Observe = lambda what: None,
) -> Manifest:
    """Write a backup into a folder, and verify it.

    Nothing may project meanwhile; others may land.

    Args:
        bucket: holds the lake.
        lake: whose tables are pinned at what they are now.
        control: is dumped.
        results: the comparison of graph and archive, which are equal.
        folder: empty, or not there, or with a backup that was broken off.
        tools: folder of pg_dump.
        observe: called with what comes next.

    Raises:
        ConfigError: the folder holds something else.
        InvariantError: graph and archive differ, or what was written is not what was read.
    """
    if found := drift(results):
        raise InvariantError(
            f"The graph differs from its archive in {len(found):,} rows: `c360 reconcile --repair` before the backup."
        )
    _make_empty(folder)
    # Books first: what lands in between is in the archive and in no accounting, and lands again as a duplicate.
    names = sorted(lake.table_names(), key=lambda name: (name not in ACCOUNTING, name))
    versions = {name: version.number for name in names if (version := lake.versions.version(name))}
    observe("dumping the control database")
    dump_control(control, tools, folder / CONTROL)
    copied: list[Copied] = []
    for name, number in versions.items():
        observe(f"copying {name} at version {number}")
        copied += bucket.fetch(table_objects(bucket, lake, name, number), folder / FILES)
    for area in AREAS:
        observe(f"copying {area}")
        copied += bucket.fetch(sorted(o.path for o in bucket.objects(area)), folder / FILES)
    pl.DataFrame([asdict(one) for one in copied], schema=OBJECTS_SCHEMA).write_parquet(folder / OBJECTS)
    observe("computing digests")
    manifest = Manifest(
        FORMAT, datetime.now(UTC).isoformat(), package_version("c360-pipeline"), bucket.name, versions,
        lake_digests(lake, versions), graph_digest(results), len(copied), sum(one.bytes for one in copied),
        file_sha256(folder / OBJECTS), file_sha256(folder / CONTROL),
    )  # fmt: skip
    scratch = folder / f"{MANIFEST}.partial"
    scratch.write_text(json.dumps(asdict(manifest), indent=2), encoding="utf-8")
    scratch.rename(folder / MANIFEST)
    return verify(folder, tools, observe)


OBJECTS_SCHEMA = {"path": pl.String, "bytes": pl.Int64, "sha256": pl.String}


def _make_empty(folder: Path) -> None:
    """A folder without a manifest, with our files only, is a backup that was broken off."""
    ours = {MANIFEST, f"{MANIFEST}.partial", OBJECTS, CONTROL, FILES}
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if MANIFEST in present or present - ours:
        raise ConfigError(f"{folder} is not empty: a backup needs a folder of its own.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def table_objects(bucket: Bucket, lake: Lake, name: str, number: int) -> list[str]:
    """Keys of the objects that a version of a table needs: its data files, and its log up to there."""
    folder = f"{LAKE}{name}/"
    root = lake.uri("")
    files = sorted(LAKE + uri.removeprefix(root).lstrip("/") for uri in lake.versions.uris_at(name, number))
    log = [o.path for o in bucket.objects(folder + LOG) if _log_version(o.path.removeprefix(folder + LOG)) <= number]
    return [*files, *sorted(log)]


def _log_version(file: str) -> float:
    digits = file[:VERSION_DIGITS]
    # `_last_checkpoint` may name one that came later: without it, the log itself is listed.
    return int(digits) if digits.isdecimal() and len(digits) == VERSION_DIGITS else float("inf")


def lake_digests(lake: Lake, versions: dict[str, int]) -> dict[str, str]:
    """The digest of each table at a version, without columns that only say when and whence a row came."""
    return {f"lake {name}": lake_digest(lake, name, number) for name, number in sorted(versions.items())}


def verify(folder: Path, tools: Path, observe: Observe = lambda what: None) -> Manifest:
    """Read a backup from end to end: every object's bytes, every table's rows, the dump of the control database.

    Raises:
        ConfigError: there is no whole backup in the folder.
        InvariantError: something in it is not what was written.
    """
    manifest = read_manifest(folder)
    for name, wanted in ((OBJECTS, manifest.objects_sha256), (CONTROL, manifest.control_sha256)):
        if file_sha256(folder / name) != wanted:
            raise InvariantError(f"{folder / name} was changed since the backup was made.")
    observe("verifying the objects")
    objects = pl.read_parquet(folder / OBJECTS)
    for path, size, sha256 in objects.iter_rows():
        file = folder / FILES / path
        if not file.is_file() or file.stat().st_size != size or file_sha256(file) != sha256:
            raise InvariantError(f"{file} is missing, or was changed since the backup was made.")
    observe("verifying the tables")
    with_cache = Lake(str(folder / FILES / "lake"), {}, folder / "cache")
    found = lake_digests(with_cache, manifest.versions)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    if differing := sorted(name for name, digest in manifest.digests.items() if found.get(name) != digest):
        raise InvariantError(f"{', '.join(differing)}: the backup in {folder} holds other rows than were read.")
    _run_tool([str(tools / "pg_restore"), "--list", str(folder / CONTROL)], {})
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """What a folder's backup holds.

    Raises:
        ConfigError: there is none, or one of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(f"There is no backup in {folder}, or one that was broken off.")
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if said.get("format") != FORMAT:
        raise ConfigError(f"{path} has the format {said.get('format')}, this release reads {FORMAT}.")
    return Manifest(**said)


def put_back(
    bucket: Bucket,
    control: ControlDb,
    folder: Path,
    manifest: Manifest,
    tools: Path,
    observe: Observe = lambda what: None,
) -> None:
    """Put the objects and the control database of a backup, verified before, into empty services.

    Broken off, it goes on when it is called again with the same backup.

    Raises:
        ConfigError: bucket or control database hold something already.
    """
    _require_empty(bucket, control, manifest)
    paths = pl.read_parquet(folder / OBJECTS)["path"].to_list()
    # Logs last, in their order: a table shows once all its files are there.
    logs = sorted(path for path in paths if LOG in path)
    observe("putting objects back")
    bucket.send(sorted(set(paths) - set(logs)), folder / FILES)
    for path in logs:
        bucket.send([path], folder / FILES)
    observe("putting the control database back")
    restore_control(control, tools, folder / CONTROL)


def finish(bucket: Bucket, lake: Lake, manifest: Manifest) -> None:
    """Note that a backup is restored whole.

    Earlier versions are not in it: the logs forget them, so that whoever goes on from one looks at everything.
    """
    for name in manifest.versions:
        lake.maintenance.forget_versions(name)
    bucket.delete([RESTORING])


def _require_empty(bucket: Bucket, control: ControlDb, manifest: Manifest) -> None:
    if bucket.has(RESTORING) and json.loads(bucket.read(RESTORING))["made_at"] == manifest.made_at:
        return
    full = [area for area in (LAKE, *AREAS) if not bucket.is_empty(area)]
    if full or control.is_used():
        what = ", ".join([*(f"s3://{bucket.name}/{area}" for area in full), *(["etl_control_db"] * control.is_used())])
        raise ConfigError(f"{what}: not empty. A backup is restored into empty services only.")
    bucket.put(RESTORING, json.dumps({"made_at": manifest.made_at}).encode())


def dump_control(control: ControlDb, tools: Path, file: Path) -> None:
    """Write the control database into a file."""
    arguments, environment = _connection(control)
    _run_tool([str(tools / "pg_dump"), "--format=custom", f"--file={file}", *arguments], environment)


def restore_control(control: ControlDb, tools: Path, file: Path) -> None:
    """Make the control database what a file says; tables of ours that the file does not know go first."""
    # A table that a later release added refers to others, and would keep them from being replaced.
    control.drop_tables()
    arguments, environment = _connection(control)
    _run_tool(
        [str(tools / "pg_restore"), "--clean", "--if-exists", "--no-owner", "--single-transaction",
         *arguments, str(file)], environment,
    )  # fmt: skip


def _connection(control: ControlDb) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a tool; a password on the command line would show in the list of processes."""
    login = control.login
    return (
        [f"--host={login['host']}", f"--port={login['port']}", f"--username={login['user']}",
         f"--dbname={login['dbname']}"],
        {"PGPASSWORD": str(login["password"])},
    )  # fmt: skip


def _run_tool(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-2000:]}")


class ToolError(C360Error):
    """A tool of Postgres failed; the message holds the end of what it said."""
