"""Files in S3 become events and dead letters, whatever a file holds and wherever the work was interrupted."""

import gzip
import hashlib
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from c360_pipeline.assets.landing import Ledger, batches, closed_books, land_batch, unbooked_files
from c360_pipeline.core.lake import DEAD_LETTERS, EVENTS, LANDING_FILES
from c360_pipeline.core.landing import misbooked, unbalanced
from c360_pipeline.stores.lake import Lake
from c360_pipeline.stores.landing import EVENTS_PREFIX, Landing

TODAY = f"{EVENTS_PREFIX}date=2025-11-02/"
Put = Callable[..., str]


def event(n: int, **changes: object) -> bytes:
    fields = {"tenantId": "acme", "userId": f"u{n}", "sessionId": "s", "ts": 1762077600000 + n, "action": "view"}
    return json.dumps(fields | changes).encode()


@pytest.fixture
def put(landing: Landing, tmp_path: Path) -> Put:
    """Upload lines as a file of that name."""

    def upload(name: str, *lines: bytes, folder: str = TODAY) -> str:
        content = b"\n".join(lines) + b"\n"
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return landing.put_file(path, folder)

    return upload


def land(landing: Landing, lake: Lake) -> pl.DataFrame:
    """Land what is new; returns all books."""
    files, ledger = unbooked_files(landing, lake, None), Ledger()
    for blocks in batches(landing, files, ledger):
        land_batch(landing, lake, blocks, ledger)
    lake.insert_new(LANDING_FILES, closed_books(ledger, files))
    return lake.read(LANDING_FILES)


def test_good_and_bad_lines_and_repetitions_are_in_the_books(landing: Landing, lake: Lake, put: Put) -> None:
    put("a.jsonl.gz", event(1), event(2), b"{oops", event(1), b"")
    put("b.jsonl", event(2), event(3), b"\xff")
    books = land(landing, lake)
    assert unbalanced(books).is_empty()
    assert books.select("lines", "landed", "duplicates", "dead").sum().row(0) == (7, 3, 2, 2)
    assert sorted(lake.read(EVENTS)["user_id"]) == ["u1", "u2", "u3"]
    letters = lake.read(DEAD_LETTERS)
    assert set(letters["raw"]) == {b"{oops", b"\xff"}
    for raw in letters["raw"]:
        key = hashlib.sha256(raw).hexdigest()
        stored = landing._client.get_object(Bucket=landing.bucket, Key=f"dead-letters/{key[:2]}/{key}")
        assert stored["Body"].read() == raw


def test_a_file_lands_once(landing: Landing, lake: Lake, put: Put) -> None:
    put("a.jsonl", event(1))
    first = land(landing, lake)
    version = lake.version(EVENTS.name)
    assert land(landing, lake).equals(first)
    assert lake.version(EVENTS.name) == version


def test_a_file_delivered_again_on_another_day_is_all_duplicates(landing: Landing, lake: Lake, put: Put) -> None:
    put("a.jsonl", event(1), event(2))
    land(landing, lake)
    put("a.jsonl", event(1), event(2), folder=f"{EVENTS_PREFIX}date=2025-11-03/")
    assert land(landing, lake).sort("source_uri")["duplicates"].to_list() == [0, 2]


def test_after_a_crash_before_the_books_were_closed_nothing_is_there_twice(
    landing: Landing, lake: Lake, put: Put
) -> None:
    put("a.jsonl", event(1), event(2), b"{oops")
    files, ledger = unbooked_files(landing, lake, None), Ledger()
    for blocks in batches(landing, files, ledger):
        land_batch(landing, lake, blocks, ledger)
    # The process dies here: the archive has the rows, the books do not.
    books = land(landing, lake)
    assert books.select("lines", "landed", "duplicates", "dead").row(0) == (3, 2, 0, 1)
    assert lake.read(EVENTS).height == 2
    assert lake.read(DEAD_LETTERS).height == 1


def test_a_broken_gzip_is_named_and_the_other_files_land(
    landing: Landing, lake: Lake, put: Put, tmp_path: Path
) -> None:
    whole = gzip.compress(b"\n".join(event(n) for n in range(2000)))
    broken = tmp_path / "a-broken.jsonl.gz"
    broken.write_bytes(whole[: len(whole) // 2])
    landing.put_file(broken, TODAY)
    put("b.jsonl", event(5000))
    files, ledger = unbooked_files(landing, lake, None), Ledger()
    for blocks in batches(landing, files, ledger):
        land_batch(landing, lake, blocks, ledger)
    lake.insert_new(LANDING_FILES, closed_books(ledger, files))
    (message,) = ledger.unreadable.values()
    assert "a-broken.jsonl.gz is not a whole gzip file" in message
    assert [uri.rsplit("/", 1)[1] for uri in lake.read(LANDING_FILES)["source_uri"]] == ["b.jsonl"]
    # The producer sends it whole: what had been read is not there twice.
    landing._client.put_object(Bucket=landing.bucket, Key=f"{TODAY}a-broken.jsonl.gz", Body=whole)
    books = land(landing, lake)
    assert unbalanced(books).is_empty()
    assert books["landed"].sum() == lake.read(EVENTS).height == 2001


def test_a_broken_file_that_is_sent_again_under_a_new_name_and_removed_leaves_right_books(
    landing: Landing, lake: Lake, put: Put, tmp_path: Path
) -> None:
    lines = [event(n) for n in range(20_000)]
    whole = gzip.compress(b"\n".join(lines))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    broken = landing.put_file(path, TODAY)
    land(landing, lake)
    path.write_bytes(whole)
    assert landing.put_file(path, TODAY) != broken
    landing._client.delete_object(Bucket=landing.bucket, Key=broken.split("/", 3)[3])
    books = land(landing, lake)
    archived = lake.scan(EVENTS).group_by("source_uri").agg(archived=pl.len().cast(pl.Int64)).collect()
    assert unbalanced(books).is_empty()
    assert misbooked(books, archived).is_empty()
    assert lake.read(EVENTS).height == len(lines)


def test_a_damaged_gzip_is_named(landing: Landing, lake: Lake, tmp_path: Path) -> None:
    content = bytearray(gzip.compress(b"\n".join(event(n) for n in range(2000))))
    content[20:40] = bytes(20)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(bytes(content))
    landing.put_file(path, TODAY)
    files, ledger = unbooked_files(landing, lake, None), Ledger()
    for blocks in batches(landing, files, ledger):
        land_batch(landing, lake, blocks, ledger)
    assert len(ledger.unreadable) == 1


def test_a_folder_of_no_date_is_not_read(landing: Landing, put: Put) -> None:
    put("a.jsonl", event(1), folder=f"{EVENTS_PREFIX}date=2025-02-30/")
    assert landing.event_files() == []


def test_names_of_files_may_hold_blanks_and_letters(landing: Landing, lake: Lake, put: Put) -> None:
    uri = put("ä b+c%20.jsonl", event(1))
    assert land(landing, lake)["source_uri"].to_list() == [uri]


def test_only_dated_event_files_are_read(landing: Landing, put: Put) -> None:
    put("a.jsonl", event(1))
    put("b.jsonl", event(1), folder=f"{EVENTS_PREFIX}somewhere/")
    put("c.txt", event(1))
    (file,) = landing.event_files()
    assert (file.key, file.landing_date) == (f"{TODAY}a.jsonl", date(2025, 11, 2))


def test_a_landing_file_is_never_changed(landing: Landing, put: Put) -> None:
    first = put("a.jsonl", event(1))
    assert put("a.jsonl", event(1)) == first
    other = put("a.jsonl", event(2))
    assert other != first
    assert len(landing.event_files()) == 2
