"""Delta tables on S3: what a repeated or concurrent write leaves behind."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, Schema
from deltalake.table import TableFeatures

from c360_pipeline.core.catalog.changes import Changes
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import EVENTS, JOURNEY_KEYS
from c360_pipeline.errors import ConflictError, TableError
from c360_pipeline.stores.delta import commits
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.s3.landing import Landing

JOURNEYS_OF_KEYS = JOURNEY_KEYS


def keys(journey: str, *hashes: str) -> pl.DataFrame:
    rows = [("t", "user", h, journey) for h in hashes]
    return pl.DataFrame(rows, schema=JOURNEYS_OF_KEYS.empty().schema, orient="row")


def held(lake: Lake, table: Table = JOURNEYS_OF_KEYS) -> list[str]:
    return sorted(lake.read(table)["key_hash"])


def test_a_table_that_was_never_written_is_empty(lake: Lake) -> None:
    assert lake.read(EVENTS).schema == EVENTS.empty().schema
    assert lake.versions.version(EVENTS.name) is None
    changes, version = lake.versions.changes(EVENTS, None)
    assert (changes.count, version) == (0, None)


def test_a_row_is_inserted_once(lake: Lake) -> None:
    assert lake.commits.insert_new(JOURNEYS_OF_KEYS, keys("j", "a", "b", "a")) == 2
    assert lake.commits.insert_new(JOURNEYS_OF_KEYS, keys("j", "b", "c")) == 1
    assert held(lake) == ["a", "b", "c"]


def test_workers_that_insert_the_same_rows_at_once_leave_each_row_once(lake: Lake) -> None:
    rows = keys("j", *(f"k{n}" for n in range(50)))
    with ThreadPoolExecutor(6) as pool:
        inserted = list(pool.map(lambda _: lake.commits.insert_new(JOURNEYS_OF_KEYS, rows), range(6)))
    assert sum(inserted) == 50
    assert held(lake) == sorted(rows["key_hash"])


def test_replacing_by_the_same_rows_commits_nothing(lake: Lake) -> None:
    lake.commits.replace(JOURNEYS_OF_KEYS, keys("j", "a", "b"))
    version = lake.versions.version(JOURNEYS_OF_KEYS.name)
    assert lake.commits.replace(JOURNEYS_OF_KEYS, keys("j", "b", "a")).count == 0
    assert lake.versions.version(JOURNEYS_OF_KEYS.name) == version


def test_workers_that_replace_at_once_leave_one_of_their_results(lake: Lake) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: lake.commits.replace(JOURNEYS_OF_KEYS, keys(f"j{n}", "a", "b")), range(4)))
    assert held(lake) == ["a", "b"]
    assert lake.read(JOURNEYS_OF_KEYS)["journey_id"].n_unique() == 1


def another(lake: Lake, cache: Path) -> Lake:
    """The same lake as another machine sees it."""
    return Lake(lake._storage.root, lake._storage.options, cache)


def test_a_lost_index_is_made_again(lake: Lake, tmp_path: Path) -> None:
    lake.commits.insert_new(JOURNEYS_OF_KEYS, keys("j", "a", "b"))
    assert another(lake, tmp_path / "none").commits.insert_new(JOURNEYS_OF_KEYS, keys("j", "b", "c")) == 1
    assert lake.commits.insert_new(JOURNEYS_OF_KEYS, keys("j", "a", "c", "d")) == 1
    assert held(lake) == ["a", "b", "c", "d"]


def test_a_table_that_others_compacted_is_looked_up_in_its_new_files(lake: Lake, tmp_path: Path) -> None:
    for n in range(12):
        lake.commits.insert_new(JOURNEYS_OF_KEYS, keys("j", f"k{n}"))
    maintained = another(lake, tmp_path / "other").maintenance.maintain(JOURNEYS_OF_KEYS)
    assert maintained is not None
    assert (maintained.rows, maintained.files_before, maintained.files, maintained.vacuumed) == (12, 12, 1, 0)
    assert lake.commits.insert_new(JOURNEYS_OF_KEYS, keys("j", *(f"k{n}" for n in range(13)))) == 1
    assert lake.count(JOURNEYS_OF_KEYS) == 13


def test_workers_on_machines_of_their_own_leave_each_row_once(lake: Lake, tmp_path: Path) -> None:
    rows = keys("j", *(f"k{n}" for n in range(50)))
    lakes = [another(lake, tmp_path / str(n)) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda own: own.commits.insert_new(JOURNEYS_OF_KEYS, rows), lakes)) == 50
    assert held(lake) == sorted(rows["key_hash"])


def test_workers_that_merge_at_once_lose_nothing(lake: Lake) -> None:
    none = keys("j").select(JOURNEYS_OF_KEYS.key)
    lake.commits.insert_new(JOURNEYS_OF_KEYS, keys("j", "shared"))
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(lambda n: lake.commits.merge(JOURNEYS_OF_KEYS, keys(f"j{n}", "shared", f"own{n}"), none), range(4))
        )
    assert held(lake) == ["own0", "own1", "own2", "own3", "shared"]
    assert (
        lake.commits.merge(JOURNEYS_OF_KEYS, keys("j"), keys("j", "own1", "shared").select(JOURNEYS_OF_KEYS.key)) == 2
    )
    assert held(lake) == ["own0", "own2", "own3"]


def test_a_merge_into_a_version_that_is_gone_is_refused(lake: Lake) -> None:
    lake.commits.insert_new(JOURNEYS_OF_KEYS, keys("j", "a"))
    seen = lake.versions.version(JOURNEYS_OF_KEYS.name)
    lake.commits.insert_new(JOURNEYS_OF_KEYS, keys("j", "b"))
    with pytest.raises(ConflictError, match="changed by another worker"):
        lake.commits.merge(JOURNEYS_OF_KEYS, keys("j", "c"), keys("j").select(JOURNEYS_OF_KEYS.key), expected=seen)
    assert held(lake) == ["a", "b"]


def test_a_table_of_an_older_release_gets_the_columns_of_this_one(lake: Lake) -> None:
    older = replace(JOURNEYS_OF_KEYS, declared=JOURNEYS_OF_KEYS.declared[:-1])
    lake.commits.insert_new(older, keys("j", "a").drop("journey_id"))
    assert lake.missing_columns(JOURNEYS_OF_KEYS) == ["journey_id"]
    assert lake.read(JOURNEYS_OF_KEYS)["journey_id"].to_list() == [None]
    later = Lake(lake._storage.root, lake._storage.options, lake.cache)
    assert later.commits.insert_new(JOURNEYS_OF_KEYS, keys("j", "a", "b")) == 1
    assert later.missing_columns(JOURNEYS_OF_KEYS) == []
    assert later.read(JOURNEYS_OF_KEYS).sort("key_hash")["journey_id"].to_list() == [None, "j"]
    assert later.versions.changes(JOURNEYS_OF_KEYS, None)[0].upserted.height == 2


def test_changes_since_a_version(lake: Lake) -> None:
    lake.commits.replace(JOURNEYS_OF_KEYS, keys("j", "a", "b", "c"))
    since = lake.versions.version(JOURNEYS_OF_KEYS.name)
    lake.commits.replace(JOURNEYS_OF_KEYS, pl.concat([keys("j", "a"), keys("k", "b"), keys("j", "d")]))
    lake.commits.insert_new(JOURNEYS_OF_KEYS, keys("j", "e"))
    changes, now = lake.versions.changes(JOURNEYS_OF_KEYS, since)
    assert sorted(changes.upserted["key_hash"]) == ["b", "d", "e"]
    assert changes.deleted["key_hash"].to_list() == ["c"]
    assert lake.versions.changes(JOURNEYS_OF_KEYS, now)[0].count == 0


def test_a_version_of_another_table_counts_as_nothing(lake: Lake) -> None:
    lake.commits.replace(JOURNEYS_OF_KEYS, keys("j", "a"))
    stranger = type(lake.versions.version(JOURNEYS_OF_KEYS.name))("another-table", 0)  # type: ignore[misc]  # Version
    assert lake.versions.changes(JOURNEYS_OF_KEYS, stranger)[0].upserted.height == 1


@pytest.mark.parametrize("tenant", ["acme", "a b/c=d%", "ünï"])
def test_events_come_back_as_they_went_in(lake: Lake, tenant: str) -> None:
    at = datetime(2025, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)
    row = {
        "event_id": "e", "tenant_id": tenant, "user_id": "u", "session_id": "s", "ts": at, "action": "view",
        "attrs": {"b": "2", "a": "1"}, "items": [{"id": "p", "quantity": 2.0, "price": None, "currency": "EUR"}],
        "traits": {"plan": "pro"}, "received_at": at, "mapping_version": 3, "event_date": at.date(),
        "content_hash": "h", "source_uri": "f", "source_etag": "e", "source_line": 1, "landed_at": at,
    }  # fmt: skip
    schema = EVENTS.empty().schema
    rows = pl.DataFrame([{name: row.get(name) for name in schema}], schema=schema)
    lake.commits.insert_new(EVENTS, rows)
    assert lake.read(EVENTS).equals(rows)
    assert lake.versions.changes(EVENTS, None)[0].upserted.equals(rows)


def foreign(lake: Lake, table: Table) -> DeltaTable:
    """The table as another engine opens it."""
    return DeltaTable(lake.uri(table.name), storage_options=lake._storage.options)


@pytest.mark.parametrize("large", [False, True])
def test_a_column_that_another_engine_adds_is_left_alone_by_every_write(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr(commits, "MERGED_BYTES", 0 if large else 1 << 30)
    table, nothing = JOURNEYS_OF_KEYS, JOURNEYS_OF_KEYS.empty()
    lake.commits.insert_new(table, keys("j", "a", "b"))
    other = foreign(lake, table)
    other.alter.add_columns(Schema.from_arrow(pa.schema({"note": pa.string()})).fields)
    other.update({"note": "'kept'"}, predicate="key_hash = 'a'")
    lake.commits.insert_new(table, keys("j", "c"))
    lake.commits.append(table, keys("j", "d"))
    lake.commits.merge(table, keys("j2", "a"), keys("j", "b").select(table.key))
    snapshot = lake.commits.snapshot(table)
    lake.commits.append_numbered(table, snapshot, keys("j", "e"), {"n": 1})
    lake.commits.delete_rows(table, ["t"], {"key_hash": ["e"]}, {})
    notes = pl.DataFrame(foreign(lake, table).to_pyarrow_table())
    assert dict(notes.select("key_hash", "note").iter_rows()) == {"a": "kept", "c": None, "d": None}
    for number, changes in enumerate(
        (
            Changes(keys("j", "f"), nothing, nothing.select(table.key)),
            Changes(nothing, keys("j3", "a"), keys("j", "c").select(table.key)),
        ),
        start=2,
    ):
        lake.commits.apply(table, lake.commits.snapshot(table), changes, {"n": number})
    assert lake.commits.replace(table, keys("j3", "a", "d")).count == 2
    assert lake.maintenance.maintain(table) is not None
    assert held(lake) == ["a", "d"]
    assert lake.read(table).columns == list(table.columns)
    assert lake.versions.changes(table, None)[0].count == 2


@pytest.mark.parametrize(
    ("feature", "reads"),
    [
        (TableFeatures.DeletionVectors, False), (TableFeatures.ColumnMapping, False), (TableFeatures.RowTracking, True),
        (TableFeatures.IdentityColumns, True),
    ],
)  # fmt: skip
def test_what_another_engine_asks_of_a_table_is_named_and_nothing_is_written(
    lake: Lake, feature: TableFeatures, reads: bool
) -> None:
    table = JOURNEYS_OF_KEYS
    lake.commits.insert_new(table, keys("j", "a", "b"))
    lake.read(table)
    foreign(lake, table).alter.add_feature(feature, allow_protocol_versions_increase=True)
    before = foreign(lake, table).version()
    if reads:
        assert held(lake) == ["a", "b"]
    else:
        with pytest.raises(TableError, match=rf"{table.name} at s3://\S+, version \d+, needs .*runbook"):
            lake.read(table)
    for _ in range(2):
        with pytest.raises(TableError, match=rf"The table {table.name} at s3://.*runbook"):
            lake.commits.insert_new(table, keys("j", "c"))
        with pytest.raises(TableError, match=rf"The table {table.name} at s3://.*runbook"):
            lake.commits.merge(table, keys("j", "c"))
    assert foreign(lake, table).version() == before


def test_a_data_file_that_is_gone_is_named(lake: Lake, landing: Landing) -> None:
    lake.commits.insert_new(JOURNEYS_OF_KEYS, keys("j", "a", "b"))
    (uri,) = lake.versions.file_uris(JOURNEYS_OF_KEYS)
    boto = landing._client
    boto.delete_object(Bucket=landing.bucket, Key=uri.removeprefix(f"s3://{landing.bucket}/"))
    with pytest.raises(TableError, match=r"journey_keys at s3://"):
        lake.read(JOURNEYS_OF_KEYS)
