"""Files in S3 become events and dead letters, whatever a file holds and wherever the work was interrupted."""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from botocore.exceptions import ClientError

from c360_pipeline.core.arrays.row_hashes import user_hash
from c360_pipeline.core.catalog.tables import DEAD_LETTER_LINES, DEAD_LETTERS, EVENTS, LANDING_FILES
from c360_pipeline.core.contract import events as contract
from c360_pipeline.core.landing.accounting import QUEUE_COUNTED_BY, misaccounted, misaccounted_dead, unbalanced
from c360_pipeline.core.landing.overwrites import OverwriteRule, OverwriteRules
from c360_pipeline.core.landing.suppressed import Suppressed
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.landing import ingest as ingesting
from c360_pipeline.stages.landing.backfill import land as land_files
from c360_pipeline.stages.landing.dead_letters import DeadLetters, Selection
from c360_pipeline.stages.landing.ingest import Ingest
from c360_pipeline.stores.delta.commits import Commits
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.s3.landing import EVENTS_PREFIX, Landing, dead_letter_key

DAY, NEXT_DAY = date(2025, 11, 2), date(2025, 11, 3)
TODAY = f"{EVENTS_PREFIX}date={DAY}/"
TOMORROW = f"{EVENTS_PREFIX}date={NEXT_DAY}/"
NOBODY = Suppressed()
Put = Callable[..., str]


def event(n: int, **changes: object) -> bytes:
    fields = {"tenantId": "acme", "userId": f"u{n}", "sessionId": "s", "ts": 1762077600000 + n, "action": "view"}
    return json.dumps(fields | changes).encode()


@pytest.fixture
def put(landing: Landing, tmp_path: Path) -> Put:
    """Upload lines as a file of that name."""

    def upload(name: str, *lines: bytes, folder: str = TODAY, overwrite: bool = False) -> str:
        content = b"\n".join(lines) + b"\n"
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return landing.put_file(path, folder, overwrite=overwrite)

    return upload


class World:
    """A landing area and a lake; every look at the accounting proves that they are right."""

    def __init__(self, landing: Landing, lake: Lake) -> None:
        self.landing = landing
        self.lake = lake
        self.suppressed = NOBODY
        self.overwrites = OverwriteRules()
        self.unreadable: dict[str, str] = {}

    def suppress(self, *users: str) -> None:
        listed = pl.DataFrame({"tenant_id": ["acme"] * len(users), "user_id": users})
        self.suppressed = Suppressed(listed.select("tenant_id", user_hash=user_hash()))

    @property
    def ingest(self) -> Ingest:
        return Ingest(self.landing, self.lake, self.suppressed, self.overwrites, unreadable=self.unreadable)

    @property
    def queue(self) -> DeadLetters:
        return DeadLetters(self.ingest)

    def land(self, day: date | None = None) -> pl.DataFrame:
        """Land what is new, or a day again; returns all accounts."""
        land_files(self.ingest, self.landing.event_files(), None if day is None else {day}, lambda _: None)
        return self.accounts()

    def accounts(self) -> pl.DataFrame:
        """All accounts, after proving that they balance and that archive and queue hold what they say."""
        accounts = self.lake.read(LANDING_FILES)
        archived = self.lake.count_by(EVENTS, "source_uri").rename({"len": "archived"})
        assert unbalanced(accounts).is_empty()
        assert misaccounted(accounts, archived).is_empty()
        assert misaccounted_dead(accounts, self.lake.count_by(DEAD_LETTER_LINES, *QUEUE_COUNTED_BY)).is_empty()
        assert self.lake.count(EVENTS) == accounts["landed"].sum() == self.events().n_unique(["tenant_id", "event_id"])
        letters = self.lake.read(DEAD_LETTERS)
        for letter_id, raw in letters.select("dead_letter_id", "raw").iter_rows():
            stored = self.landing.read_dead_letter(letter_id)
            assert hashlib.sha256(stored).hexdigest() == letter_id
            assert raw in (None, stored)
        return accounts.sort("landing_date", "source_uri")

    def totals(self) -> tuple[int, ...]:
        """Lines, landed, duplicates, dead, suppressed of all files."""
        return self.accounts().select("lines", "landed", "duplicates", "dead", "suppressed").sum().row(0)

    def events(self) -> pl.DataFrame:
        """The archive."""
        return self.lake.read(EVENTS)

    def users(self) -> list[str]:
        """The users of the archive, by event."""
        return sorted(self.events()["user_id"])

    def letters(self) -> dict[bytes, tuple[str, str, str | None]]:
        """Class, status and resolution of every letter, by its bytes."""
        rows = self.lake.read(DEAD_LETTERS).select("raw", "error_class", "status", "resolution").iter_rows()
        return {raw: tuple(facts) for raw, *facts in rows}


@pytest.fixture
def world(landing: Landing, lake: Lake) -> World:
    return World(landing, lake)


def test_good_and_bad_lines_and_repetitions_are_in_the_books(world: World, put: Put) -> None:
    put("a.jsonl.gz", event(1), event(2), b"{oops", event(1), b"")
    put("b.jsonl", event(2), event(3), b"\xff")
    world.land()
    assert world.totals() == (7, 3, 2, 2, 0)
    assert world.users() == ["u1", "u2", "u3"]
    assert set(world.letters()) == {b"{oops", b"\xff"}
    first = world.lake.scan(DEAD_LETTERS).filter(pl.col("raw") == b"{oops").collect().row(0, named=True)
    assert (first["source_line"], first["byte_offset"]) == (3, len(event(1)) + len(event(2)) + 2)
    history = world.lake.versions.history(EVENTS)[0]
    assert {span["file"].rsplit("/", 1)[1] for span in json.loads(history["c360.landed_from"])} == {
        "a.jsonl.gz",
        "b.jsonl",
    }


def test_a_file_lands_once(world: World, put: Put) -> None:
    put("a.jsonl", event(1), b"{oops")
    first = world.land()
    versions = [world.lake.versions.version(t.name) for t in (EVENTS, DEAD_LETTERS, DEAD_LETTER_LINES, LANDING_FILES)]
    assert world.land().equals(first)
    assert [
        world.lake.versions.version(t.name) for t in (EVENTS, DEAD_LETTERS, DEAD_LETTER_LINES, LANDING_FILES)
    ] == versions


def test_a_file_delivered_again_on_another_day_is_all_duplicates(world: World, put: Put) -> None:
    put("a.jsonl", event(1), event(2))
    world.land()
    put("a.jsonl", event(1), event(2), folder=TOMORROW)
    assert world.land()["duplicates"].to_list() == [0, 2]


def test_an_id_is_taken_whatever_the_day(world: World, put: Put) -> None:
    put("a.jsonl", event(1, eventId="e"), event(2))
    world.land()
    taken = world.events().filter(pl.col("user_id") == "u2")["event_id"].item()
    last_week = 1762077600000 - 7 * 86_400_000
    put("b.jsonl", event(9, eventId="e", ts=last_week), event(9, eventId=taken, ts=last_week), folder=TOMORROW)
    assert world.land()["dead"].to_list() == [0, 2]
    assert {error_class for error_class, _, _ in world.letters().values()} == {"duplicate_id_conflict"}


def test_the_same_rejected_bytes_are_one_letter_with_every_place(world: World, put: Put) -> None:
    put("a.jsonl", b"{oops", b"{oops")
    put("b.jsonl", b"{oops")
    world.land()
    assert world.totals() == (3, 0, 0, 3, 0)
    letter = world.queue.one(hashlib.sha256(b"{oops").hexdigest()[:8])
    assert letter["raw"] == b"{oops"
    assert [(p["source_uri"][-7:], p["source_line"]) for p in letter["places"]] == [
        ("a.jsonl", 1), ("a.jsonl", 2), ("b.jsonl", 1)
    ]  # fmt: skip


@contextmanager
def dying_after(monkeypatch: pytest.MonkeyPatch, target: type, name: str, calls: int) -> Iterator[None]:
    """Let a method work so many times; the next call does its work, and then the process dies."""
    real, count = getattr(target, name), iter(range(calls + 1))

    def dying(self: object, *args: object, **kwargs: object) -> object:
        result = real(self, *args, **kwargs)
        if next(count, None) == calls:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patched:
        patched.setattr(target, name, dying)
        try:
            yield
        except KeyboardInterrupt:
            return
    pytest.fail(f"{name} was called less than {calls + 1} times")


@pytest.mark.parametrize("table_writes", range(5))
def test_after_a_crash_between_any_two_writes_nothing_is_lost_or_there_twice(
    world: World, put: Put, monkeypatch: pytest.MonkeyPatch, table_writes: int
) -> None:
    monkeypatch.setattr(ingesting, "BATCH_BYTES", 1)
    monkeypatch.setattr(ingesting, "PIECE_BYTES", 64)
    put("a.jsonl", event(1), event(2), b"{oops", event(2), event(3))
    with dying_after(monkeypatch, Commits, "append_exclusive", table_writes):
        world.land()
    world.land()
    assert world.totals() == (5, 3, 1, 1, 0)
    assert world.users() == ["u1", "u2", "u3"]


def test_workers_on_the_same_files_leave_each_line_in_one_place(
    world: World, put: Put, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ingesting, "BATCH_BYTES", 200)
    monkeypatch.setattr(ingesting, "PIECE_BYTES", 100)
    for name in ("a", "b"):
        put(
            f"{name}.jsonl",
            *(event(n) for n in range(4)),
            b"{oops " + name.encode(),
            event(1, eventId="e"),
            event(2, eventId="e"),
        )
    files = world.landing.event_files()

    def work(number: int) -> None:
        own = Lake(world.lake._storage.root, world.lake._storage.options, tmp_path / f"cache{number}")
        Ingest(world.landing, own, NOBODY).land(files, lambda lines: None)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert world.totals() == (14, 5, 5, 4, 0)


def test_a_truncated_gzip_lands_what_it_holds_and_is_named(world: World, put: Put, tmp_path: Path) -> None:
    lines = [event(n, attrs={"noise": hashlib.sha256(str(n).encode()).hexdigest()}) for n in range(2000)]
    whole = gzip.compress(b"\n".join(lines))
    broken = tmp_path / "a.jsonl.gz"
    broken.write_bytes(whole[: len(whole) // 2])
    key = world.landing.put_file(broken, TODAY).split("/", 3)[3]
    put("b.jsonl", event(5000))
    first, second = world.land().iter_rows(named=True)
    assert "a.jsonl.gz is not a whole gzip file" in first["damage"]
    assert second["damage"] is None
    assert 500 < first["landed"] < 1500
    assert first["dead"] == 1  # the line in the middle of which it breaks off
    # The producer sends it whole under its name: what had been read is not there twice.
    world.landing._client.put_object(Bucket=world.landing.bucket, Key=key, Body=whole)
    world.land()
    assert world.events().height == 2001


def test_damage_inside_a_gzip_is_named(world: World, tmp_path: Path) -> None:
    content = bytearray(gzip.compress(b"\n".join(event(n) for n in range(2000))))
    content[20:40] = bytes(20)
    (tmp_path / "a.jsonl.gz").write_bytes(bytes(content))
    world.landing.put_file(tmp_path / "a.jsonl.gz", TODAY)
    assert "not a whole gzip file" in world.land()["damage"].item()


def test_a_file_is_what_its_bytes_are_not_what_its_name_says(world: World, tmp_path: Path) -> None:
    files = {
        "members.jsonl.gz": gzip.compress(event(1) + b"\n") + gzip.compress(event(2)),
        "plain.jsonl.gz": event(3),
        "packed.jsonl": gzip.compress(event(4)),
        "empty.jsonl": b"",
        "empty.jsonl.gz": b"",
        "nothing.jsonl.gz": gzip.compress(b""),
        "bom.jsonl": b"\xef\xbb\xbf" + event(5) + b"\r\n\r\n",
        "picture.jsonl": b"\x89PNG\r\n\x1a\n\x00\x00",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        world.landing.put_file(tmp_path / name, TODAY)
    accounts = world.land()
    assert accounts.height == len(files)
    assert world.users() == ["u1", "u2", "u3", "u4", "u5"]
    assert world.letters() == {}
    (damage,) = accounts["damage"].drop_nulls()
    assert "picture.jsonl is a picture. Landing reads JSON lines" in damage


def test_a_long_line_is_kept_and_the_rest_lands(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c360_pipeline.core.landing.lines.LONGEST_LINE_BYTES", 3 * 1024 * 1024)
    long, longer = (event(1, attrs={"a": "x" * (n * 1024 * 1024)}) for n in (2, 5))
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join((event(2), long, longer, event(3))))
    world.landing.put_file(path, TODAY)
    world.land()
    assert world.totals() == (4, 2, 0, 2, 0)
    ids = {hashlib.sha256(line).hexdigest() for line in (long, longer)}
    letters = world.lake.read(DEAD_LETTERS)
    assert set(letters["dead_letter_id"]) == ids
    assert set(letters["error_class"]) == {"too_large"}
    replayed = world.queue.replay(Selection(), dry_run=False)
    assert replayed["outcome"].to_list() == ["dead"]
    assert world.totals() == (4, 2, 0, 2, 0)


def test_a_delivery_that_was_replaced_before_it_was_read_to_its_end_is_booked_as_lost(
    world: World, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingesting, "BATCH_BYTES", 1)
    monkeypatch.setattr(ingesting, "PIECE_BYTES", 64)
    key = put("a.jsonl", event(1), b"{oops", event(2)).split("/", 3)[3]
    with dying_after(monkeypatch, Commits, "append_exclusive", 3):
        world.land()
    world.landing._client.put_object(Bucket=world.landing.bucket, Key=key, Body=event(3))
    accounts = world.land()
    assert accounts.height == 2
    assert "was changed or removed" in accounts["damage"].drop_nulls().item()
    assert {"u1", "u3"} <= set(world.users())


def test_suppressed_users_are_counted_and_never_land(world: World, put: Put) -> None:
    put("a.jsonl", event(1), event(2), event(1, action=[]), b"{oops")
    world.suppress("u1")
    world.land()
    assert world.totals() == (4, 1, 0, 1, 2)
    assert world.users() == ["u2"]
    assert set(world.letters()) == {b"{oops"}


def stored(world: World, name: str) -> bytes:
    """The lines of a file as they are stored now."""
    (file,) = (f for f in world.landing.event_files() if f.key.endswith(f"/{name}"))
    return b"".join(world.landing.pieces(file, 1 << 20))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_lines_of_suppressed_users_are_stored_nowhere(world: World, put: Put, name: str) -> None:
    lines = event(1), event(2), b"{oops", event(1, action=[]), event(3)
    put(name, *lines)
    world.suppress("u1")
    first = world.land()
    assert world.totals() == (5, 2, 0, 1, 2)
    assert stored(world, name) == b"\n".join([b"", event(2), b"{oops", b"", event(3)]) + b"\n"
    assert world.events().sort("source_line")["source_line"].to_list() == [2, 5]
    assert b"u1" not in b"".join(world.letters())
    # The file is the same one: nothing is new, and its day can be read again.
    assert world.land().equals(first)
    world.land(DAY)
    assert world.users() == ["u2", "u3"]


@pytest.mark.parametrize(("owner", "method", "calls"), [
    *((Landing, "replace", n) for n in range(2)), *((Commits, "rename_deliveries", n) for n in range(5)),
])  # fmt: skip
def test_blanking_that_was_killed_is_made_up_for_by_the_next_run(
    world: World, put: Put, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, calls: int
) -> None:
    put("a.jsonl", event(1), event(2), b"{oops")
    put("b.jsonl", event(1), event(3), folder=TOMORROW)
    world.suppress("u1")
    with dying_after(monkeypatch, owner, method, calls):
        world.land()
    world.land()
    assert world.totals()[1:] == (2, 0, 1, world.totals()[0] - 3)
    assert (stored(world, "a.jsonl"), stored(world, "b.jsonl")) == (
        b"\n" + event(2) + b"\n{oops\n", b"\n" + event(3) + b"\n",
    )  # fmt: skip
    assert world.accounts()["reopened_at"].null_count() == 2
    assert world.accounts()["damage"].null_count() == 2


def test_a_file_that_its_producer_sends_anew_meanwhile_is_not_overwritten(
    world: World, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = put("a.jsonl", event(1), event(2)).split("/", 3)[3]
    world.suppress("u1")
    replace = Landing.replace

    def sent_before(landing: Landing, *args: object) -> str:
        world.landing._client.put_object(Bucket=world.landing.bucket, Key=key, Body=event(4) + b"\n")
        return replace(landing, *args)  # type: ignore[arg-type]  # as given

    with monkeypatch.context() as patched:
        patched.setattr(Landing, "replace", sent_before)
        world.land()
    assert stored(world, "a.jsonl") == event(4) + b"\n"
    world.land()
    assert world.users() == ["u2", "u4"]


# Backfill: a landing date read again under today's rules.


def test_a_backfill_without_new_rules_changes_nothing(world: World, put: Put) -> None:
    put("a.jsonl", event(1), event(1), b"{oops", event(4, eventId="e"), event(5, eventId="e"))
    put("b.jsonl", event(1), event(2), folder=TOMORROW)
    before, archive, version = world.land(), world.events(), world.lake.versions.version(EVENTS.name)
    again = world.land(DAY)
    assert again.drop("landed_at").equals(before.drop("landed_at"))
    assert world.lake.versions.version(EVENTS.name) == version
    assert world.events().equals(archive)


def test_a_backfill_brings_the_archive_to_todays_rules_in_one_commit(
    world: World, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" * 40
    put("a.jsonl", event(1), event(2, itemId=long), event(3), event(3), event(4, attrs={"a": "1", "b": "2"}))
    put("b.jsonl", event(2, itemId=long), event(3), folder=TOMORROW)
    world.land()
    assert world.totals() == (7, 4, 3, 0, 0)
    version = world.lake.versions.version(EVENTS.name)
    with monkeypatch.context() as patched:
        patched.setattr(contract, "MAX_STRING_CHARACTERS", 39)
        patched.setattr("c360_pipeline.core.contract.columns.MAX_STRING_CHARACTERS", 39)
        world.suppress("u3")
        world.land(DAY)
        assert world.accounts()["suppressed"].to_list() == [2, 0]
    assert world.users() == ["u1", "u4"]
    now = world.lake.versions.version(EVENTS.name)
    assert version is not None
    assert now is not None
    assert now.number == version.number + 1
    assert [letter[:2] for letter in world.letters().values()] == [("too_large", "open")]
    # The old rules come back: so do the rows, and the letter is resolved.
    world.suppressed = NOBODY
    world.land(DAY)
    assert world.totals() == (7, 4, 3, 0, 0)
    assert world.users() == ["u1", "u2", "u3", "u4"]
    assert list(world.letters().values()) == [("too_large", "replayed", "landed")]
    # And again the new ones: the letter is open once more.
    with monkeypatch.context() as patched:
        patched.setattr(contract, "MAX_STRING_CHARACTERS", 39)
        patched.setattr("c360_pipeline.core.contract.columns.MAX_STRING_CHARACTERS", 39)
        world.land(DAY)
    assert list(world.letters().values()) == [("too_large", "open", None)]


def test_a_backfill_mends_what_hands_did_to_the_archive(world: World, put: Put) -> None:
    put("a.jsonl", *(event(n) for n in range(5)))
    world.land()
    rows = world.events().sort("source_line")
    lost, altered = rows.slice(0, 1), rows.slice(1, 1).with_columns(source_line=pl.lit(77, pl.Int64))
    world.lake.commits.merge(EVENTS, altered, lost.select("tenant_id", "event_id"))
    world.land(DAY)
    assert world.events().sort("source_line").drop("landed_at").equals(rows.drop("landed_at"))


@pytest.mark.parametrize("calls", range(4))
def test_a_backfill_that_was_killed_is_taken_up_by_the_next_run(
    world: World, put: Put, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    put("a.jsonl", event(1), event(2), b"{oops")
    world.land()
    world.suppress("u1")
    with dying_after(monkeypatch, Commits, "merge", calls):
        world.land(DAY)
    world.land()
    assert world.totals() == (3, 1, 0, 1, 1)
    assert world.users() == ["u2"]
    assert world.lake.read(LANDING_FILES)["reopened_at"].null_count() == 1


def test_a_file_that_is_replaced_while_its_day_is_backfilled_keeps_its_rows(world: World, put: Put) -> None:
    key = put("a.jsonl", event(1), event(2)).split("/", 3)[3]
    put("b.jsonl", event(3))
    world.land()
    listed = world.landing.event_files()
    world.landing._client.put_object(Bucket=world.landing.bucket, Key=key, Body=event(9))
    land_files(world.ingest, listed, {DAY}, lambda _: None)
    assert world.users() == ["u1", "u2", "u3"]
    world.land()
    assert world.users() == ["u1", "u2", "u3", "u9"]


def test_a_backfill_of_a_day_without_files_does_nothing(world: World, put: Put) -> None:
    put("a.jsonl", event(1))
    before = world.land()
    assert world.land(date(2030, 1, 1)).equals(before)


def test_a_backfill_of_a_day_that_never_landed_lands_it(world: World, put: Put) -> None:
    put("a.jsonl", event(1), b"{oops")
    put("b.jsonl", event(2), folder=TOMORROW)
    assert world.land(DAY)["landing_date"].to_list() == [DAY]
    assert world.totals() == (2, 1, 0, 1, 0)
    world.land()
    assert world.users() == ["u1", "u2"]


# The dead-letter queue.


def test_a_replay_lands_what_passes_today_and_the_books_follow(
    world: World, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(contract, "MAX_ATTRS", 1)
        patched.setattr("c360_pipeline.core.contract.columns.MAX_ATTRS", 1)
        two = {"a": "1", "b": "2"}
        put("a.jsonl", event(1, attrs=two), event(1, attrs=two), event(2, attrs=two), b"{oops", event(3))
        put("b.jsonl", event(1, attrs=two), event(4, attrs=two), folder=TOMORROW)
        world.land()
    assert world.totals() == (7, 1, 0, 6, 0)
    put("c.jsonl", event(4, attrs=two), folder=TOMORROW)
    world.land()
    world.suppress("u2")
    planned = world.queue.replay(Selection(), dry_run=True)
    assert planned.sort("outcome")["outcome"].to_list() == ["dead", "duplicate", "landed", "suppressed"]
    assert world.totals() == (8, 2, 0, 6, 0)
    done = world.queue.replay(Selection(), dry_run=False)
    assert done.equals(planned)
    assert world.totals() == (8, 3, 3, 1, 1)
    assert world.users() == ["u1", "u3", "u4"]
    assert world.letters()[b"{oops"] == ("invalid_json", "open", None)
    assert sorted(r for _, s, r in world.letters().values() if s == "replayed" and r) == [
        "duplicate",
        "landed",
        "suppressed",
    ]
    landed = world.events().filter(pl.col("user_id") == "u1").row(0, named=True)
    assert (landed["source_uri"][-7:], landed["source_line"]) == ("a.jsonl", 1)
    versions = [world.lake.versions.version(t.name) for t in (EVENTS, DEAD_LETTER_LINES, LANDING_FILES)]
    assert world.queue.replay(Selection(), dry_run=False)["outcome"].to_list() == ["dead"]
    assert [world.lake.versions.version(t.name) for t in (EVENTS, DEAD_LETTER_LINES, LANDING_FILES)] == versions


@pytest.mark.parametrize("calls", range(3))
def test_a_replay_that_was_killed_is_right_after_the_next(
    world: World, put: Put, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(contract, "MAX_ATTRS", 0)
        patched.setattr("c360_pipeline.core.contract.columns.MAX_ATTRS", 0)
        put("a.jsonl", event(1, attrs={"a": "1"}), event(1, attrs={"a": "1"}), event(2))
        world.land()
    with dying_after(monkeypatch, Commits, "merge", calls):
        world.queue.replay(Selection(), dry_run=False)
    world.queue.replay(Selection(), dry_run=False)
    assert world.totals() == (3, 2, 1, 0, 0)
    assert world.users() == ["u1", "u2"]
    assert [s for _, s, _ in world.letters().values()] == ["replayed"]


def test_after_a_replay_a_backfill_changes_nothing(world: World, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(contract, "MAX_ATTRS", 0)
        patched.setattr("c360_pipeline.core.contract.columns.MAX_ATTRS", 0)
        put("a.jsonl", event(1, attrs={"a": "1"}), event(1, attrs={"a": "1"}), event(2))
        world.land()
    world.queue.replay(Selection(), dry_run=False)
    version = world.lake.versions.version(EVENTS.name)
    world.land(DAY)
    assert world.totals() == (3, 2, 1, 0, 0)
    assert world.lake.versions.version(EVENTS.name) == version


def test_a_conflict_lands_when_the_other_event_is_gone(world: World, put: Put) -> None:
    put("a.jsonl", event(1, eventId="e"), event(2, eventId="e"))
    world.land()
    assert world.queue.replay(Selection(), dry_run=False)["error_class"].to_list() == ["duplicate_id_conflict"]
    world.suppress("u1")
    world.land(DAY)
    assert world.users() == ["u2"]
    assert world.totals() == (2, 1, 0, 0, 1)


def test_letters_are_found_by_class_tenant_file_day_status_and_id(world: World, put: Put) -> None:
    put("a.jsonl", b"{oops", event(1, action=[]))
    put("b.jsonl", b"{oops", event(2, action=[], tenantId="globex"), folder=TOMORROW)
    world.land()

    def count(**chosen: object) -> int:
        return world.queue.find(Selection(**chosen)).height  # type: ignore[arg-type]  # as given

    assert count() == 3
    assert count(error_class="wrong_type") == 2
    assert count(tenant_id="globex") == 1
    assert count(file="b.jsonl") == count(day=NEXT_DAY) == 2
    assert count(day=NEXT_DAY, error_class="invalid_json") == 1
    assert count(ids=(hashlib.sha256(b"{oops").hexdigest()[:6],)) == 1
    assert world.queue.discard(Selection(error_class="invalid_json"), "a broken robot").height == 1
    assert (count(), count(status="discarded"), count(status=None)) == (2, 1, 3)
    assert world.letters()[b"{oops"] == ("invalid_json", "discarded", "a broken robot")
    assert world.totals() == (4, 0, 0, 4, 0)
    put("c.jsonl", b"{oops")
    world.land()
    assert world.letters()[b"{oops"][1] == "discarded"
    with pytest.raises(ConfigError, match="0 dead letters have an id"):
        world.queue.one("zz")


def test_the_bytes_of_a_letter_are_where_the_contract_says(world: World, put: Put) -> None:
    put("a.jsonl", b"{\xc3\xa9\x00oops")
    world.land()
    digest = hashlib.sha256(b"{\xc3\xa9\x00oops").hexdigest()
    assert dead_letter_key(digest) == f"dead-letters/{digest[:2]}/{digest}"
    stored = world.landing._client.get_object(Bucket=world.landing.bucket, Key=dead_letter_key(digest))
    assert stored["Body"].read() == b"{\xc3\xa9\x00oops"


def test_an_object_that_landing_passes_over_is_seen(landing: Landing, put: Put) -> None:
    put("a.jsonl", event(1), folder=f"{EVENTS_PREFIX}date=2025-02-30/")
    put("b.txt", event(1))
    area = landing.events_area()
    assert area.files == []
    assert [f.key.rsplit("/", 1)[1] for f in area.unrecognised] == ["a.jsonl", "b.txt"]


def test_names_of_files_may_hold_blanks_and_letters(world: World, put: Put) -> None:
    uri = put("ä b+c%20.jsonl", event(1))
    assert world.land()["source_uri"].to_list() == [uri]


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


def test_an_object_that_is_not_handed_out_leaves_the_others_alone_and_lands_when_it_is(
    world: World, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a.jsonl", event(1))
    archived = put("b.jsonl", event(2))
    put("c.jsonl", event(3))
    client = world.landing._client
    get_object = client.get_object

    def refused(**options: Any) -> Any:
        if archived.endswith(options["Key"]):
            answer = {"Error": {"Code": "InvalidObjectState", "Message": "The object is archived"},
                      "ResponseMetadata": {"HTTPStatusCode": 403}}  # fmt: skip
            raise ClientError(answer, "GetObject")
        return get_object(**options)

    with monkeypatch.context() as patch:
        patch.setattr(client, "get_object", refused)
        ingest = world.ingest
        land_files(ingest, world.landing.event_files(), None, lambda _: None)
    assert world.users() == ["u1", "u3"]
    (why,) = ingest.unreadable.values()
    assert list(ingest.unreadable) == [archived]
    assert "S3 answers 403 InvalidObjectState (The object is archived). Restore it" in why
    assert world.land().height == 3
    assert world.users() == ["u1", "u2", "u3"]


@pytest.mark.parametrize(
    "key",
    ["dt=2025-11-02/a.ndjson", "2025/11/02/14/firehose-1.gz", "date=2025-11-02/hour=07/a.json",
     "date=2025-11-02/A.JSONL.GZ", "2025-11-02/a.jsonl.zst"],
)  # fmt: skip
def test_layouts_that_engines_write_are_read(world: World, key: str) -> None:
    world.landing._client.put_object(Bucket=world.landing.bucket, Key=f"{EVENTS_PREFIX}{key}", Body=event(1) + event(2))
    assert world.land()["landing_date"].to_list() == [DAY]
    assert world.users() == ["u1", "u2"]


def test_what_engines_have_not_finished_is_left_alone_and_what_nobody_reads_is_named(world: World) -> None:
    for key in ("date=2025-11-02/_SUCCESS", "date=2025-11-02/.part-0.inprogress.1", "_temporary/0/a.jsonl",
                "date=2025-11-02/a.jsonl.tmp", "date=2025-11-02/a.xlsx", "somewhere/a.jsonl"):  # fmt: skip
        world.landing._client.put_object(Bucket=world.landing.bucket, Key=f"{EVENTS_PREFIX}{key}", Body=event(1))
    area = world.landing.events_area()
    assert area.files == []
    assert [file.key.removeprefix(EVENTS_PREFIX) for file in area.unrecognised] == [
        "date=2025-11-02/a.xlsx", "somewhere/a.jsonl",
    ]  # fmt: skip


REPLACE = OverwriteRules((OverwriteRule("*", "append"), OverwriteRule("date=*/shop-*", "replace")))


def test_a_corrected_file_replaces_what_its_earlier_version_brought(world: World, put: Put) -> None:
    world.overwrites = REPLACE
    put("shop-1.jsonl", event(1, itemId="lamp"), event(2), event(3), b"{oops")
    put("log-1.jsonl", event(4), event(5))
    world.land()
    put("shop-1.jsonl", event(1, itemId="bulb"), event(3), overwrite=True)
    put("log-1.jsonl", event(4), overwrite=True)
    accounts = world.land().select("source_uri", "lines", "landed", "duplicates", "dead", "replaced").rows()
    assert sorted((uri[-12:], *counts) for uri, *counts in accounts) == [
        ("/log-1.jsonl", 1, 0, 1, 0, 0), ("/log-1.jsonl", 2, 2, 0, 0, 0),
        ("shop-1.jsonl", 2, 2, 0, 0, 0), ("shop-1.jsonl", 4, 0, 0, 0, 4),
    ]  # fmt: skip
    assert world.users() == ["u1", "u3", "u4", "u5"]
    assert set(world.events().filter(pl.col("user_id") == "u1")["item_id"]) == {"bulb"}
    assert world.letters() == {b"{oops": ("invalid_json", "replayed", "replaced")}
    before = world.lake.versions.version(EVENTS.name)
    world.land()
    world.land(date.fromisoformat(TODAY.removesuffix("/")[-10:]))
    assert world.lake.versions.version(EVENTS.name) == before


def test_a_rule_that_comes_later_holds_for_a_day_that_is_read_again(world: World, put: Put) -> None:
    put("shop-1.jsonl", event(1, eventId="e1", itemId="lamp"), event(2))
    world.land()
    put("shop-1.jsonl", event(1, eventId="e1", itemId="bulb"), overwrite=True)
    world.land()
    assert world.totals()[:4] == (3, 2, 0, 1)
    world.overwrites = REPLACE
    world.land(date.fromisoformat(TODAY.removesuffix("/")[-10:]))
    assert world.totals()[:4] == (3, 1, 0, 0)
    assert world.events()["item_id"].to_list() == ["bulb"]


@pytest.mark.parametrize("content", [(b"{oops", b"{oops", event(1)), (b"",), (event(1),)])
def test_a_version_that_looks_broken_waits_and_what_was_there_stays(
    world: World, put: Put, content: tuple[bytes, ...]
) -> None:
    world.overwrites = REPLACE
    put("shop-1.jsonl", *(event(n) for n in range(1, 6)))
    world.land()
    uri = put("shop-1.jsonl", *content, overwrite=True)
    for _ in range(2):
        world.land()
        assert world.totals() == (5, 5, 0, 0, 0)
        assert "earlier version" in world.unreadable.pop(uri)
    put("shop-1.jsonl", *(event(n) for n in range(2, 6)), overwrite=True)
    world.land()
    assert world.users() == ["u2", "u3", "u4", "u5"]


@pytest.mark.parametrize("table_writes", range(3))
def test_a_correction_that_is_killed_between_any_two_writes_is_taken_up_again(
    world: World, put: Put, monkeypatch: pytest.MonkeyPatch, table_writes: int
) -> None:
    world.overwrites = REPLACE
    put("shop-1.jsonl", event(1), event(2), event(3), b"{oops")
    world.land()
    put("shop-1.jsonl", event(1, itemId="bulb"), event(3), b"{oops again", overwrite=True)
    with dying_after(monkeypatch, Commits, "merge", table_writes):
        land_files(world.ingest, world.landing.event_files(), None, lambda _: None)
    world.land()
    assert world.users() == ["u1", "u3"]
    assert world.totals() == (7, 2, 0, 1, 0)
