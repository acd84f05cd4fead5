"""Delta tables on S3: what a repeated or concurrent write leaves behind."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import polars as pl
import pytest

from c360_pipeline.core.lake import EVENTS, JOURNEY_KEYS, Table
from c360_pipeline.stores.lake import Lake

JOURNEYS_OF_KEYS = JOURNEY_KEYS


def keys(journey: str, *hashes: str) -> pl.DataFrame:
    rows = [("t", "user", h, journey) for h in hashes]
    return pl.DataFrame(rows, schema=JOURNEYS_OF_KEYS.empty().schema, orient="row")


def held(lake: Lake, table: Table = JOURNEYS_OF_KEYS) -> list[str]:
    return sorted(lake.read(table)["key_hash"])


def test_a_table_that_was_never_written_is_empty(lake: Lake) -> None:
    assert lake.read(EVENTS).schema == EVENTS.empty().schema
    assert lake.version(EVENTS.name) is None
    changes, version = lake.changes(EVENTS, None)
    assert (changes.count, version) == (0, None)


def test_a_row_is_inserted_once(lake: Lake) -> None:
    assert lake.insert_new(JOURNEYS_OF_KEYS, keys("j", "a", "b", "a")) == 2
    assert lake.insert_new(JOURNEYS_OF_KEYS, keys("j", "b", "c")) == 1
    assert held(lake) == ["a", "b", "c"]


def test_workers_that_insert_the_same_rows_at_once_leave_each_row_once(lake: Lake) -> None:
    rows = keys("j", *(f"k{n}" for n in range(50)))
    with ThreadPoolExecutor(6) as pool:
        inserted = list(pool.map(lambda _: lake.insert_new(JOURNEYS_OF_KEYS, rows), range(6)))
    assert sum(inserted) == 50
    assert held(lake) == sorted(rows["key_hash"])


def test_replacing_by_the_same_rows_commits_nothing(lake: Lake) -> None:
    lake.replace(JOURNEYS_OF_KEYS, keys("j", "a", "b"))
    version = lake.version(JOURNEYS_OF_KEYS.name)
    assert lake.replace(JOURNEYS_OF_KEYS, keys("j", "b", "a")).count == 0
    assert lake.version(JOURNEYS_OF_KEYS.name) == version


def test_workers_that_replace_at_once_leave_one_of_their_results(lake: Lake) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: lake.replace(JOURNEYS_OF_KEYS, keys(f"j{n}", "a", "b")), range(4)))
    assert held(lake) == ["a", "b"]
    assert lake.read(JOURNEYS_OF_KEYS)["journey_id"].n_unique() == 1


def test_changes_since_a_version(lake: Lake) -> None:
    lake.replace(JOURNEYS_OF_KEYS, keys("j", "a", "b", "c"))
    since = lake.version(JOURNEYS_OF_KEYS.name)
    lake.replace(JOURNEYS_OF_KEYS, pl.concat([keys("j", "a"), keys("k", "b"), keys("j", "d")]))
    lake.insert_new(JOURNEYS_OF_KEYS, keys("j", "e"))
    changes, now = lake.changes(JOURNEYS_OF_KEYS, since)
    assert sorted(changes.upserted["key_hash"]) == ["b", "d", "e"]
    assert changes.deleted["key_hash"].to_list() == ["c"]
    assert lake.changes(JOURNEYS_OF_KEYS, now)[0].count == 0


def test_a_version_of_another_table_counts_as_nothing(lake: Lake) -> None:
    lake.replace(JOURNEYS_OF_KEYS, keys("j", "a"))
    stranger = type(lake.version(JOURNEYS_OF_KEYS.name))("another-table", 0)  # type: ignore[misc]  # Version
    assert lake.changes(JOURNEYS_OF_KEYS, stranger)[0].upserted.height == 1


@pytest.mark.parametrize("tenant", ["acme", "a b/c=d%", "ünï"])
def test_events_come_back_as_they_went_in(lake: Lake, tenant: str) -> None:
    at = datetime(2025, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)
    rows = pl.DataFrame(
        [("e", tenant, "u", "s", at, "view", None, {"b": "2", "a": "1"}, at.date(), "h", "f", "e", 1, at)],
        schema=EVENTS.empty().schema, orient="row",
    )  # fmt: skip
    lake.insert_new(EVENTS, rows)
    assert lake.read(EVENTS).equals(rows)
    assert lake.changes(EVENTS, None)[0].upserted.equals(rows)
