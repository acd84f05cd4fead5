"""What a release has stored is read by the code of today: tables, control database, graph, indexes, messages.

The fixtures are made by the release itself (tests/fixtures/formats/README.md). Where a format changes, its reader here
stays, and the new one gets a folder of its own.
"""

import base64
import json
import lzma
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import neo4j
import polars as pl
import pytest

from c360_pipeline.cli.embedded import postgres_tools
from c360_pipeline.connections import open_bucket, open_control, open_lake
from c360_pipeline.core.arrays.row_hashes import identity_hash
from c360_pipeline.core.catalog.tables import EVENTS, JOURNEY_LOG, TABLES
from c360_pipeline.core.contract.events import Rejected, parse_event
from c360_pipeline.settings import Settings, load_settings
from c360_pipeline.stages.projection.everything import project_all
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import graph_digest, summarise
from c360_pipeline.stages.recovery import backup as backups
from c360_pipeline.stages.stitching.commit import log_number
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stores.delta.key_index import KeyIndex
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.streaming.operators import DeadLetter, Message, decode, validate

FORMATS = Path(__file__).parents[1] / "fixtures" / "formats"
RELEASES = sorted(folder.name for folder in FORMATS.iterdir() if folder.is_dir())
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Stored:
    """A release's backup, put back into services of today."""

    fixtures: Path
    folder: Path
    manifest: backups.Manifest
    settings: Settings
    lake: Lake
    control: ControlDb


@pytest.fixture(scope="module", params=RELEASES)
def stored(request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """In the bucket that the release had, which the names in its indexes begin with."""
    fixtures, folder = FORMATS / request.param, tmp_path_factory.mktemp("stored")
    for name in ("backup", "cache"):
        with tarfile.open(fixtures / f"{name}.tar.xz") as packed:
            packed.extractall(folder, filter="data")
    manifest = backups.verify(folder / "backup", postgres_tools())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("C360_BUCKET", manifest.bucket)
        patch.setenv("ETL_DB_NAME", f"stored_{uuid4().hex[:12]}")
        patch.setenv("C360_HOME", str(folder))
        settings = load_settings(home)
        bucket, control, lake = open_bucket(settings), open_control(settings), open_lake(settings)
        bucket.delete(one.path for one in bucket.objects(""))
        backups.put_back(bucket, control, folder / "backup", manifest, postgres_tools())
        control.ensure()
        yield Stored(fixtures, folder, manifest, settings, lake, control)


@pytest.fixture
def exported(stored: Stored, graph: Graph) -> Graph:
    """The graph as the release had it, with its checkpoints."""
    ids: dict[str, str] = {}
    with lzma.open(stored.fixtures / "graph.jsonl.xz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    login = (stored.settings.neo4j_user, stored.settings.neo4j_password.get_secret_value())
    with neo4j.GraphDatabase.driver(stored.settings.neo4j_uri, auth=login) as driver, driver.session() as session:
        for labels in sorted({tuple(row["labels"]) for row in rows if "node" in row}):
            named = ":".join(f"`{label}`" for label in labels)
            nodes = [
                {"id": r["node"], "p": _values(r["properties"])} for r in rows if tuple(r.get("labels", ())) == labels
            ]
            made = session.run(
                f"UNWIND $nodes AS node CREATE (n:{named}) SET n = node.p RETURN node.id AS was, elementId(n) AS now",
                nodes=nodes,
            )
            ids |= {record["was"]: record["now"] for record in made}
        for kind in sorted({row["relationship"] for row in rows if "relationship" in row}):
            ends = [{"a": ids[r["from"]], "b": ids[r["to"]], "p": _values(r["properties"])}
                    for r in rows if r.get("relationship") == kind]  # fmt: skip
            session.run(
                "UNWIND $ends AS end MATCH (a) WHERE elementId(a) = end.a MATCH (b) WHERE elementId(b) = end.b "
                f"CREATE (a)-[r:`{kind}`]->(b) SET r = end.p",
                ends=ends,
            ).consume()
    return graph


def _values(properties: dict[str, Any]) -> dict[str, Any]:
    read = {"datetime": neo4j.time.DateTime.from_iso_format, "localdatetime": neo4j.time.DateTime.from_iso_format,
            "date": neo4j.time.Date.from_iso_format, "bytes": base64.b64decode}  # fmt: skip
    return {
        name: read[next(iter(value))](next(iter(value.values()))) if isinstance(value, dict) else value
        for name, value in properties.items()
    }


def lines_of(stored: Stored, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stored.fixtures / name).read_text(encoding="utf-8").splitlines()]


def test_every_table_is_read_with_the_columns_of_today_and_has_its_digest(stored: Stored) -> None:
    assert backups.lake_digests(stored.lake, stored.manifest.versions) == stored.manifest.digests
    for table in TABLES.values():
        rows = stored.lake.read(table)
        assert rows.columns == list(table.columns), table.name
    assert stored.lake.count(EVENTS) > 200


def test_tables_take_what_is_written_today(stored: Stored) -> None:
    event = stored.lake.read(EVENTS).head(1).with_columns(event_id=pl.lit("of today"))
    assert stored.lake.commits.insert_new(EVENTS, event) == 1
    assert stored.lake.commits.insert_new(EVENTS, event) == 0
    stored.lake.commits.merge(EVENTS, EVENTS.empty(), event.select("tenant_id", "event_date", "event_id"),
                              on=("tenant_id", "event_date", "event_id"))  # fmt: skip


def test_the_control_database_says_what_it_said(stored: Stored) -> None:
    rows, policy = stored.control.read(), stored.control.key_rules.policy()
    assert len(rows.tables) > 5
    assert {rule.key_type for rule in policy.rules} >= {"user", "session", "device"}
    assert stored.control.runs.applied_plan() is not None
    assert stored.control.runs.last_script()["sha256"]


def test_the_graph_is_equal_to_its_archive_and_the_next_run_has_nothing_to_do(stored: Stored, exported: Graph) -> None:
    archive = Archive(stored.lake, stored.control.read())
    before = reconcile(archive, exported)
    assert summarise(before)["findings"] == []
    assert graph_digest(before) == stored.manifest.graph_digest
    written = exported.statistics.as_dict()
    project_all(stored.lake, stored.control.read(), exported, lambda _: None)
    assert graph_digest(reconcile(archive, exported)) == stored.manifest.graph_digest
    assert written.keys() <= exported.statistics.as_dict().keys()


def test_the_index_of_keys_is_used_as_it_is(stored: Stored) -> None:
    snapshot = stored.lake.commits.snapshot(EVENTS)
    (folder,) = [f for f in (stored.folder / "cache" / "keys").iterdir() if f.name == str(snapshot.metadata().id)]

    def read(files: list[str]) -> Iterator[Any]:
        pytest.fail(f"{files} were read again: the index does not know them")

    made_then = set(stored.lake.versions.uris_at(EVENTS.name, stored.manifest.versions[EVENTS.name]))
    keys = stored.lake.read(EVENTS, stored.manifest.versions[EVENTS.name]).select(EVENTS.key)
    is_found, files = KeyIndex(folder, read).find(identity_hash(keys, EVENTS.key).to_numpy(), made_then)
    assert is_found.all()
    assert files == made_then


def test_the_index_of_journeys_is_used_as_it_is(stored: Stored) -> None:
    folder = next((stored.folder / "cache" / "journeys").iterdir())
    before = (folder / "index.json").read_text(encoding="utf-8")
    lake = Lake(stored.lake.uri("").rstrip("/"), stored.lake._storage.options, stored.folder / "cache")
    snapshot, index = Journeys(lake).log.refresh()
    assert index.seqs
    assert all(snapshot.transaction_version(log_number(tenant)) == seq for tenant, seq in index.seqs.items())
    assert (folder / "index.json").read_text(encoding="utf-8") == before, "the log was read again"
    events = lake.read(EVENTS, stored.manifest.versions[EVENTS.name])
    assert index.known_events(events)["fingerprint"].is_not_null().all()
    assert lake.count(JOURNEY_LOG) > 0


def test_messages_of_the_topic_and_events_between_operators_are_read(stored: Stored) -> None:
    messages = lines_of(stored, "kafka.jsonl")
    events = {name["event"] for name in lines_of(stored, "between_operators.jsonl")}
    found, clock = {}, None
    for one in (m for m in messages if m["topic"] == "user_events"):
        value = base64.b64decode(one["value"])
        is_replay = "c360-replay" in dict(one["headers"])
        outcome, clock = validate(Message(value, 0, one["offset"]), clock, NOW, is_replay=is_replay)
        found[one["offset"]] = outcome
    read = [decode(text) for text in sorted(events)]
    told = [event for event in found.values() if not isinstance(event, DeadLetter)]
    assert sorted(event.event_id for event in read) == sorted({event.event_id for event in told})
    assert all(event in told for event in read)
    letters = {json.loads(m["value"])["dead_letter_id"] for m in messages if m["topic"].endswith("dead-letters")}
    assert letters == {letter.letter_id for letter in found.values() if isinstance(letter, DeadLetter)}


def test_rows_of_cassandra_are_what_is_written_today(stored: Stored) -> None:
    from c360_pipeline.stores.cassandra.user_events import COLUMNS, user_event

    rows = {row["event_id"]: row for row in lines_of(stored, "cassandra_rows.jsonl")}
    assert set(next(iter(rows.values()))) <= set(COLUMNS)
    for one in lines_of(stored, "kafka.jsonl"):
        if one["topic"] == "user_events" and one["key"]:
            try:
                event = parse_event(base64.b64decode(one["value"]), NOW)
            except Rejected:
                continue
            made = user_event(event._asdict())._asdict()
            text = {n: v.isoformat() if isinstance(v, date | datetime) else v for n, v in made.items()}
            if event.event_id in rows:
                assert {name: text[name] for name in rows[event.event_id]} == rows[event.event_id]
