"""Files of producers as they are: read in place, mapped, accounted for record by record, and mapped better later."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import boto3
import polars as pl
import pytest
from silo_world import World as SiloWorld
from silo_world import a_silo
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed
from typer.testing import CliRunner

from c360_pipeline.cli import app
from c360_pipeline.core.catalog.tables import DEAD_LETTER_LINES, DEAD_LETTERS, EVENTS, LANDING_FILES
from c360_pipeline.core.landing.accounting import OUTCOMES, unbalanced
from c360_pipeline.core.silos.control_rows import ControlRows
from c360_pipeline.devstack.service import free_port
from c360_pipeline.devstack.services import s3
from c360_pipeline.errors import ConfigError, UnreadableError
from c360_pipeline.reads.deliveries import delivered_by_source, sources_of_pages
from c360_pipeline.settings import Settings, require_allowed_location
from c360_pipeline.stages.landing.backfill import land
from c360_pipeline.stages.landing.dead_letters import DeadLetters, Selection
from c360_pipeline.stages.landing.ingest import Ingest, files_of, waiting_files
from c360_pipeline.stages.projection.everything import project_all
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import summarise
from c360_pipeline.stages.sources.active import active_sources
from c360_pipeline.stages.sources.tables import export_rows
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.landing import EventFile, Landing

FILES = Path(__file__).parents[1] / "fixtures" / "sources"
RUNNER = CliRunner()
FOLDER = "segment-logs/src_1/1795132800000/"
"""The folder of a day as Segment names it, by the day's first millisecond: 2026-11-20."""
EQUAL_FILES = {
    "segment.jsonl": "segment", "rudderstack.jsonl": "rudderstack", "posthog.jsonl": "posthog",
    "posthog.parquet": "posthog-parquet", "ga4.jsonl": "ga4", "snowplow-enriched.tsv": "snowplow-tsv",
    "snowplow-sdk.jsonl": "snowplow-sdk",
}  # fmt: skip
ANOTHER = {"extends": "segment@1", "tenant": {"const": "acme"}, "action": {"map": {"Product Viewed": "look"}}}


def run(*arguments: str) -> str:
    result = RUNNER.invoke(app, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout if "--json" in arguments else result.output


class World:
    """A landing area with sources, and a lake."""

    def __init__(self, settings: Settings, landing: Landing, lake: Lake, control: ControlDb) -> None:
        self.settings, self.landing, self.lake, self.control = settings, landing, lake, control

    def location(self, rest: str = "segment-logs/{any}/{received:epoch_ms}/*") -> str:
        return f"s3://{self.settings.bucket}/{rest}"

    def add(self, name: str, preset: str, rest: str = "segment-logs/{any}/{received:epoch_ms}/*", *more: str) -> None:
        run("sources", "add", name, "--location", self.location(rest), "--preset", preset, "--tenant", "acme", *more)

    def add_mapping(self, name: str, document: dict[str, Any], folder: Path) -> None:
        path = folder / "mapping.json"
        path.write_text(json.dumps(document))
        run("sources", "add", name, "--location", self.location(), "--mapping", str(path))

    def land(self) -> dict[str, str]:
        """Land what is new; returns what could not be read."""
        sources, faulty = active_sources(self.control)
        ingest = Ingest(self.landing, self.lake, self.control.privacy.suppressed_users(), sources=sources)
        found, unlisted = files_of(self.landing, sources)
        ingest.unreadable |= unlisted
        land(ingest, found.files, None, lambda _: None)
        assert unbalanced(self.lake.read(LANDING_FILES)).to_dicts() == []
        return faulty | ingest.unreadable

    def land_all(self) -> dict[str, str]:
        """Land what is new, after which every event of the archive is accounted for."""
        wrong = self.land()
        assert self.lake.count(EVENTS) == self.lake.read(LANDING_FILES)["landed"].sum()
        return wrong

    def accounting(self) -> dict[str, int]:
        files = self.lake.read(LANDING_FILES)
        return files.select("lines", *OUTCOMES).sum().row(0, named=True)

    def events(self) -> pl.DataFrame:
        return self.lake.read(EVENTS)


@pytest.fixture
def own(settings: Settings, landing: Landing, lake: Lake, control: ControlDb) -> World:
    return World(settings, landing, lake, control)


@pytest.fixture
def silos(settings: Settings, control: ControlDb, lake: Lake) -> Iterator[SiloWorld]:
    with a_silo(settings, control, lake) as silo:
        yield silo


@pytest.fixture
def put(landing: Landing, tmp_path: Path) -> Callable[..., str]:
    def upload(name: str, content: bytes, folder: str = FOLDER) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return landing.put_file(path, folder)

    return upload


@pytest.mark.parametrize(("file", "preset"), EQUAL_FILES.items())
def test_a_file_lands_whole_where_it_lies_and_again_brings_nothing(
    own: World, put: Callable[..., str], file: str, preset: str
) -> None:
    own.add("shop", preset)
    put(file, (FILES / file).read_bytes())
    assert own.land_all() == {}
    found = own.accounting()
    assert (found["landed"], found["duplicates"], found["dead"]) == (found["lines"] - 1, 1, 0)
    events = own.events()
    assert events["user_id"].null_count() == 5
    assert events["source"].unique().to_list() == ["shop"]
    assert events["mapping_version"].unique().to_list() == [1]
    (account,) = own.lake.read(LANDING_FILES).iter_rows(named=True)
    assert (account["source"], account["mapping_version"], account["landing_date"]) == ("shop", 1, date(2026, 11, 20))
    assert own.land_all() == {}
    assert own.accounting() == found


def test_a_better_mapping_alters_events_in_place_and_what_died_lands(
    own: World, put: Callable[..., str], graph: Graph, tmp_path: Path
) -> None:
    records = (FILES / "segment.jsonl").read_bytes()
    put(
        "a.jsonl",
        records + b'{"messageId": "m", "type": "track", "event": "Boo", "userId": 7, "at": "2026-11-20T10:00:00Z"}\n',
    )
    own.add("shop", "segment")
    own.land_all()
    assert own.accounting() | {"suppressed": 0} == {
        "lines": 13, "landed": 11, "duplicates": 1, "dead": 1, "suppressed": 0, "skipped": 0, "withheld": 0,
    }  # fmt: skip
    (letter,) = own.lake.read(DEAD_LETTERS)["reason"]
    assert letter == "no time: none of timestamp, originalTimestamp, sentAt, receivedAt has a value (shop v1)"
    project_all(own.lake, ControlRows((), (), {}, {}, ()), graph)
    before = own.events()

    better = {
        "extends": "segment@1", "tenant": {"const": "acme"}, "time": {"path": ["timestamp", "at"], "as": "rfc3339"},
        "action": {"map": {"Boo": "boo", "page": "visit"}},
        "attrs": {"locale": None, "title": "context.page.title"},
    }  # fmt: skip
    own.add_mapping("shop", better, tmp_path)
    plan = json.loads(run("sources", "plan", "shop", "--json"))
    assert (plan["from"], plan["to"]) == (1, 2)
    assert plan["outcomes"]["appear"] == {"boo": 1}
    assert plan["outcomes"]["vanish"] == plan["outcomes"]["die"] == {}
    assert sum(plan["outcomes"]["alter"].values()) == 11
    with pytest.raises(ConfigError, match="no file that came on 2026-11-27 or later: nothing was read again"):
        run("sources", "apply", "shop", "v2", "--from", "2026-11-27")
    run("sources", "apply", "shop", "v2", "--from", "2026-11-01")
    after = own.events()
    assert set(before["event_id"]) | {"m"} == set(after["event_id"])
    assert after.filter(event_id="m").select("user_id", "action").row(0) == ("7", "boo")
    assert after["mapping_version"].unique().to_list() == [2]
    assert set(after["action"]) - set(before["action"]) == {"visit", "boo"}
    assert own.accounting()["dead"] == 0
    assert own.lake.read(DEAD_LETTERS)["status"].to_list() == ["replayed"]
    project_all(own.lake, ControlRows((), (), {}, {}, ()), graph)
    assert summarise(reconcile(Archive(own.lake, ControlRows((), (), {}, {}, ())), graph))["findings"] == []
    rows = graph.query(
        "MATCH (u:User {tenant_id: 'acme', id: 'u-1001'})-[r:PURCHASED]->(p:Product) "
        "RETURN p.id AS id, r.quantity AS quantity, r.revenue AS revenue ORDER BY id"
    )
    assert [tuple(row.values()) for row in rows] == [("sku-1", 1.0, 79.0), ("sku-2", 2.0, 19.0), ("sku-3", 1.0, 24.9)]


def test_a_mapping_that_loses_events_waits_until_somebody_looked(
    own: World, put: Callable[..., str], tmp_path: Path
) -> None:
    put("a.jsonl", (FILES / "segment.jsonl").read_bytes())
    own.add("shop", "segment")
    own.land_all()
    worse = {"extends": "segment@1", "tenant": {"const": "acme"}, "time": {"path": "when"}}
    own.add_mapping("shop", worse, tmp_path)
    with pytest.raises(ConfigError, match="12 of 12 events would go"):
        run("sources", "apply", "shop", "v2")
    assert own.control.sources.row("shop").active_version == 1
    # The document that is there already is the version that it is.
    own.add_mapping("shop", worse, tmp_path)
    assert own.control.sources.row("shop").newest_version == 2


def another_version(own: World, folder: Path) -> None:
    own.add_mapping("shop", ANOTHER, folder)
    own.control.sources.apply("shop", 2)


def test_a_repetition_under_a_better_mapping_is_no_conflict(
    own: World, put: Callable[..., str], tmp_path: Path
) -> None:
    put("a.jsonl", (FILES / "segment.jsonl").read_bytes())
    own.add("shop", "segment")
    own.land_all()
    another_version(own, tmp_path)
    put("b.jsonl", (FILES / "segment.jsonl").read_bytes())
    assert own.land_all() == {}
    found = own.accounting()
    assert (found["lines"], found["landed"], found["duplicates"], found["dead"]) == (24, 11, 13, 0)


def test_files_with_messages_of_a_topic_land_as_files_of_its_source(
    own: World, put: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("C360_SOURCE_TOPICS", "web.clicks")
    run("sources", "add", "clicks", "--topic", "web.clicks", "--preset", "segment", "--tenant", "acme")
    lines = (FILES / "segment.jsonl").read_bytes()
    name = "part-02b02578-0781-46cd-bf9a-a6aec8a3c4b1-1-1"
    put(name, b"\x1f\x8b\n" + lines, "topic-events/topic=web.clicks/date=2026-11-20/")
    put("part-2-0", lines, "topic-events/topic=web.click/date=2026-11-20/")
    assert own.land_all() == {}
    found = own.accounting()
    assert (found["lines"], found["landed"], found["duplicates"], found["dead"]) == (13, 11, 1, 1)
    with pytest.raises(ConfigError, match="its records from web"):
        run("sources", "put", "clicks", str(FILES / "segment.jsonl"))
    with pytest.raises(ConfigError, match="one of --location, --table and --topic"):
        run("sources", "add", "a", "--topic", "b", "--location", own.location(), "--preset", "segment")
    with pytest.raises(ConfigError, match="a topic of the product's own"):
        run("sources", "add", "a", "--topic", "user_events", "--preset", "segment", "--tenant", "acme")
    monkeypatch.setenv("C360_SOURCE_TOPICS", "web.")
    (reason,) = own.land().values()
    assert "C360_SOURCE_TOPICS" in reason


def test_a_record_that_comes_again_is_a_repetition_within_an_hour_or_to_the_letter(
    own: World, put: Callable[..., str], tmp_path: Path
) -> None:
    """As the mapping says: collectors set times right when they try again; some producers take an id anew."""

    def record(number: str, at: str, **more: str) -> bytes:
        fields = {
            "messageId": number, "type": "track", "event": "Product Viewed", "userId": "ann", "timestamp": at, **more
        }  # fmt: skip
        return json.dumps(fields).encode() + b"\n"

    first = [record("a", "2026-11-20T10:00:00Z"), record("b", "2026-11-20T10:00:00Z")]
    later = [
        record("a", "2026-11-20T11:00:00Z", sentAt="2026-11-20T11:00:02Z"), record("b", "2026-11-20T11:00:00.001Z")
    ]  # fmt: skip
    put("a.jsonl", b"".join(first))
    own.add("shop", "segment")
    own.land_all()
    put("b.jsonl", b"".join(later))
    own.land_all()
    found = own.accounting()
    assert (found["landed"], found["duplicates"], found["dead"]) == (2, 1, 1)
    (letter,) = own.lake.read(DEAD_LETTERS).iter_rows(named=True)
    assert letter["error_class"] == "duplicate_id_conflict"
    assert "'b' is taken by another event, line 2 of" in letter["reason"]
    # What is volatile is no difference; everything else is one, where the mapping says that.
    own.add_mapping("shop", {**ANOTHER, "on_repeat": "conflict", "volatile": ["sentAt"]}, tmp_path)
    own.control.sources.apply("shop", 2)
    third = [record("c", "2026-11-20T10:00:00Z", sentAt="1"), record("c", "2026-11-20T10:00:00Z", sentAt="2"),
             record("c", "2026-11-20T10:00:01Z")]  # fmt: skip
    put("c.jsonl", b"".join(third))
    own.land_all()
    found = own.accounting()
    assert (found["landed"], found["duplicates"], found["dead"]) == (3, 2, 2)


@pytest.mark.parametrize("between", ["another version", "paused", "away"])
def test_a_file_that_was_read_in_part_is_read_to_its_end_whatever_came_between(
    own: World, put: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    put("a.jsonl", (FILES / "segment.jsonl").read_bytes())
    own.add("shop", "segment")

    def fail(*_: object) -> pl.DataFrame:
        raise ConnectionError("the lake went away")

    with monkeypatch.context() as broken:
        broken.setattr(Ingest, "closed", fail)
        with pytest.raises(ConnectionError):
            own.land()
    assert own.lake.count(EVENTS) == 11
    if between == "another version":
        another_version(own, tmp_path)
    elif between == "paused":
        run("sources", "pause", "shop")
        assert own.land() == {}
        own.control.sources.apply("shop", 1)
    else:
        with monkeypatch.context() as broken:
            broken.setattr(Landing, "source_files", unreadable)
            assert list(own.land().values()) == ["the bucket can't be listed"]
    if between != "another version":
        assert own.lake.read(LANDING_FILES).is_empty()
    assert own.land_all() == {}
    found = own.accounting()
    assert (found["lines"], found["landed"], found["duplicates"], found["dead"]) == (12, 11, 1, 0)


def test_the_same_bytes_in_files_of_two_tenants_are_replayed_as_events_of_both(
    own: World, put: Callable[..., str], tmp_path: Path
) -> None:
    """The path says whose they are; one letter stands for all, since its id is the hash of its bytes."""
    line = b'{"messageId": "m", "type": "track", "event": "Boo", "userId": 7, "at": "2026-11-20T10:00:00Z"}\n'
    for tenant, copies in (("acme", 2), ("globex", 1)):
        put("a.jsonl", line * copies, f"by-tenant/{tenant}/20261121/")
    put("b.jsonl", line, "other/")

    def add(source: str, location: str, number: int, **more: Any) -> None:
        own.control.sources.add(source, own.location(location), "lines", None, None)
        document = {"extends": "segment@1", "tenant": {"const": "initech"}} | more
        assert own.control.sources.add_mapping(source, document, "") == number
        own.control.sources.apply(source, number)

    def replay() -> list[tuple[str, ...]]:
        sources, _ = active_sources(own.control)
        queue = DeadLetters(Ingest(own.landing, own.lake, own.control.privacy.suppressed_users(), sources=sources))
        said = queue.replay(Selection(day=date(2026, 11, 21)), dry_run=False)
        assert unbalanced(own.lake.read(LANDING_FILES)).to_dicts() == []
        return sorted(said.select("outcome", "source_uri").rows())

    add("shops", "by-tenant/{tenant}/{date}/*.jsonl", 1)
    add("other", "other/*", 1)
    own.land_all()
    assert own.accounting()["dead"] == 4
    assert own.lake.count(DEAD_LETTERS) == 1
    assert {outcome for outcome, _ in replay()} == {"dead"}
    run("sources", "pause", "other")
    add("shops", "by-tenant/{tenant}/{date}/*.jsonl", 2, time="at")
    assert [outcome for outcome, _ in replay()] == ["landed", "landed"]
    assert sorted(own.events()["tenant_id"]) == ["acme", "globex"]
    assert own.accounting() | {"lines": 4} == {
        "lines": 4, "landed": 2, "duplicates": 1, "dead": 1, "suppressed": 0, "skipped": 0, "withheld": 0,
    }  # fmt: skip
    # What lies at a paused source waits, and what landed is not landed again.
    assert own.lake.read(DEAD_LETTERS)["status"].to_list() == ["open"]
    assert [outcome for outcome, _ in replay()] == ["landed", "landed"]
    add("other", "other/*", 2, time="at")
    assert [outcome for outcome, _ in replay()] == ["landed", "landed", "landed"]
    assert sorted(own.events()["tenant_id"]) == ["acme", "globex", "initech"]
    assert own.accounting()["dead"] == 0
    assert own.lake.read(DEAD_LETTERS)["status"].to_list() == ["replayed"]
    assert own.land_all() == {}


def unreadable(*_: object) -> list[EventFile]:
    raise UnreadableError("the bucket can't be listed")


def test_what_is_skipped_and_withheld_is_counted(own: World, put: Callable[..., str], tmp_path: Path) -> None:
    put("a.jsonl", (FILES / "ga4.jsonl").read_bytes())
    document = {
        "extends": "ga4@1", "tenant": {"const": "acme"}, "require": ["analytics"],
        "skip": {"path": "event_name", "values": ["join_group"]},
    }  # fmt: skip
    own.add_mapping("web", document, tmp_path)
    own.land_all()
    assert own.accounting() == {
        "lines": 11, "landed": 8, "duplicates": 1, "dead": 0, "suppressed": 0, "skipped": 1, "withheld": 1,
    }  # fmt: skip
    listed = json.loads(run("sources", "list", "--json"))
    assert listed[0]["accounting"]["withheld"] == 1


@pytest.mark.parametrize("folder", ["landing/events/**", "lake/events/*.parquet", "l*", "table-events/other/*"])
def test_a_row_reads_nothing_that_is_of_all_tenants_and_no_bucket_that_nobody_named(
    own: World, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for location in (own.location(folder), "s3://payroll-of-others/x/*.gz"):
        with pytest.raises(ConfigError, match=r"own|C360_SOURCE_LOCATIONS"):
            run("sources", "add", "thief", "--location", location, "--preset", "segment", "--tenant", "acme")
        own.control.sources.add("thief", location, "lines", None, None)
        own.control.sources.apply("thief", own.control.sources.add_mapping("thief", {"extends": "segment@1"}, ""))
        sources, faulty = active_sources(own.control)
        assert list(sources) == []
        assert location in faulty
        own.control.execute("DELETE FROM event_sources WHERE name = 'thief'")
    monkeypatch.setenv("C360_SOURCE_LOCATIONS", "s3://events-of-shop/raw/, s3://payroll-of-others/")
    require_allowed_location("s3://payroll-of-others/x/", own.settings)
    with pytest.raises(ConfigError):
        require_allowed_location("s3://payroll-of-others-too/x/", own.settings)


def test_a_source_that_is_wrong_or_away_leaves_the_others_alone(
    own: World, put: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("C360_SOURCE_LOCATIONS", "s3://no-such-bucket-here/")
    put("a.jsonl", (FILES / "segment.jsonl").read_bytes())
    own.add("shop", "segment")
    own.control.sources.add("gone", "s3://no-such-bucket-here/x/*.gz", "lines", None, None)
    own.control.sources.add("odd", own.location("odd/*.gz"), "lines", None, None)
    for name, document in (
        ("gone", {"extends": "segment@1", "tenant": {"const": "a"}}),
        ("odd", {"extends": "nobody@1"}),
    ):
        own.control.sources.apply(name, own.control.sources.add_mapping(name, document, ""))
    wrong = own.land_all()
    assert own.accounting()["landed"] == 11
    assert "no preset 'nobody@1'" in wrong[own.location("odd/*.gz")]
    assert "can't be listed" in wrong["s3://no-such-bucket-here/x/*.gz"]


def test_the_path_may_say_whose_events_these_are(own: World, put: Callable[..., str]) -> None:
    own.control.sources.add("shops", own.location("by-tenant/{tenant}/{date}/*.jsonl"), "lines", None, None)
    number = own.control.sources.add_mapping("shops", {"extends": "segment@1", "tenant": "nowhere"}, "")
    own.control.sources.apply("shops", number)
    for tenant in ("acme", "globex"):
        put("a.jsonl", (FILES / "segment.jsonl").read_bytes(), f"by-tenant/{tenant}/20261121/")
    assert own.land_all() == {}
    assert own.events().group_by("tenant_id").len().sort("tenant_id").rows() == [("acme", 11), ("globex", 11)]
    assert own.lake.read(LANDING_FILES)["landing_date"].unique().to_list() == [date(2026, 11, 21)]


def test_a_suppressed_person_lands_from_no_source_and_the_producers_file_stays_as_it_is(
    own: World, put: Callable[..., str]
) -> None:
    uri = put("a.jsonl", (FILES / "segment.jsonl").read_bytes())
    own.control.privacy.suppress("acme", "u-1001", "")
    own.add("shop", "segment")
    own.land_all()
    found = own.accounting()
    assert (found["landed"], found["suppressed"]) == (5, 7)
    assert own.events()["user_id"].null_count() == 5
    (source,) = active_sources(own.control)[0]
    assert waiting_files(own.lake, own.landing.source_files(source)) == ([], [])
    file = own.landing.named(uri)
    assert own.landing.read(file) == (FILES / "segment.jsonl").read_bytes()


def test_mappings_are_never_changed(own: World) -> None:
    own.add("shop", "segment")
    with pytest.raises(Exception, match="never changed"):
        own.control.execute("UPDATE event_mappings SET note = 'other'")


def test_purchases_of_a_silo_become_bought_products(own: World, silos: SiloWorld, tmp_path: Path, graph: Graph) -> None:
    """The guide's import: completed transactions of the shop's database."""
    silos.source.execute(
        "CREATE TABLE transactions (id bigint PRIMARY KEY, user_id text, product_id text, amount numeric(10, 2), "
        "status text, created_at timestamptz)"
    )
    bought = (
        "INSERT INTO transactions "
        "VALUES (%(id)s, 'buyer@lamps.example', 'lamp', 79.90, %(status)s, '2026-11-20T10:00:00Z')"
    )
    silos.source.execute(bought, {"id": 9007199254740993, "status": "completed"})
    silos.source.execute(bought, {"id": 2, "status": "pending"})
    silos.add("transactions")
    mapping = tmp_path / "purchases.json"
    document = {
        "tenant": "tenant_id", "user": "user_id", "time": "created_at", "action": {"const": "purchase"},
        "id": {"join": [{"const": "transaction"}, "id"], "with": "-"}, "only": {"status": "completed"},
        "items": {"each": ".", "item": {"id": "product_id", "price": "amount"}},
    }  # fmt: skip
    mapping.write_text(json.dumps(document))
    table = own.control.read().table_names[0]
    run("sources", "add", "purchases", "--table", table, "--mapping", str(mapping))

    def export() -> list[int]:
        silos.load()
        done, left = export_rows(own.lake, own.landing, own.control.read(), own.control.sources.rows())
        assert left == {}
        return [one.rows for one in done]

    assert export() == [2]
    assert export() == [0]
    assert own.land_all() == {}
    assert own.accounting()["landed"] == own.accounting()["skipped"] == 1
    assert own.events()["event_id"].to_list() == ["transaction-9007199254740993"]
    silos.source.execute("UPDATE transactions SET status = 'completed' WHERE id = 2")
    silos.source.execute("DELETE FROM transactions WHERE id > 2")
    assert export() == [1]
    own.land_all()
    assert sorted(own.events()["event_id"]) == ["transaction-2", "transaction-9007199254740993"]
    project_all(own.lake, ControlRows((), (), {}, {}, ()), graph)
    (row,) = graph.query("MATCH (:User)-[r:PURCHASED]->(p) RETURN r.count AS count, r.revenue AS revenue")
    assert row == {"count": 2, "revenue": 159.8}
    said = json.loads(run("erase", "--tenant", "acme", "--user", "buyer@lamps.example", "--json"))
    assert said["is_clean"], said["stores"]
    assert own.events().is_empty()
    assert own.land_all() == {}
    files = own.landing.files_under("table-events/")
    assert len(files) == 2
    assert not any(b"lamps.example" in own.landing.read(file) for file in files)


def test_the_tutorial_can_be_followed(own: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands as they stand there, but for services, names of files and the bucket; a run lands."""
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    text = (root / "docs" / "tutorial.md").read_text().replace("c360-lake", own.settings.bucket)
    mapping, better = tmp_path / "mapping.json", tmp_path / "better.json"
    better.write_text('{"extends": "segment@1", "tenant": {"const": "acme"}, "action": {"map": {"page": "visit"}}}')
    said = []
    for line in "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines():
        if not line:
            continue
        words = shlex.split(line.replace("mapping.json", str(mapping)).replace("better.json", str(better)))
        match words:
            case ["echo", document, ">", path]:
                Path(path).write_text(document)
            case ["c360", "run"]:
                assert own.land_all() == {}
            case ["c360", "up" | "api" | "api-keys", *_]:
                pass
            case ["c360", *arguments]:
                said.append(run(*arguments))
            case _:
                raise AssertionError(line)
    printed = "\n".join(said)
    for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL):
        first = block.splitlines()[0]
        assert first.startswith("source shop:") or first in printed, first
    assert own.accounting()["landed"] == 11
    assert "visit" in own.events()["action"].to_list()


def trial(*arguments: str) -> Any:
    result = RUNNER.invoke(app, ["sources", "try", *arguments, "--json"])
    return json.loads(result.stdout)


def test_a_trial_says_what_a_file_becomes_and_needs_no_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("C360_HOME", str(tmp_path / "nothing"))
    said = trial(str(FILES / "segment.jsonl"), "--preset", "segment", "--tenant", "acme")
    assert said["accounting"] == {
        "landed": 11, "duplicates": 1, "dead": 0, "suppressed": 0, "skipped": 0, "withheld": 0,
    }  # fmt: skip
    assert said["targets"]["userId"] == {"filled": 7, "by": {"userId": 7}}
    assert said["targets"]["ts"]["by"] == {"timestamp": 12}
    assert said["actions"]["purchase"] == 2
    assert len(said["examples"]) == 3
    assert said["examples"][1]["event"]["items"][0]["id"] == "sku-1"
    assert said["warnings"] == []
    assert "writeKey" in said["unread"]


def test_records_of_batches_and_of_tables_without_a_header_land_by_a_mapping_of_ones_own(
    own: World, put: Callable[..., str], tmp_path: Path
) -> None:
    """The examples of the documentation, by the commands that it names."""
    columns = ("exclude_hit,hitid_high,hitid_low,hit_time_gmt,post_visid_high,post_visid_low,post_evar1,visit_num,"
               "visit_start_time_gmt,post_event_list,post_product_list,post_pagename,post_currency")  # fmt: skip
    text = (Path(__file__).parents[2] / "docs" / "mappings.md").read_text(encoding="utf-8")
    for name, file, options in (
        ("OTLP", "otlp.jsonl", ["--records", "resourceLogs[resource].scopeLogs[].logRecords[]"]),
        ("Adobe", "adobe.tsv", ["--framing", "tsv", "--columns", columns]),
    ):
        mapping = tmp_path / f"{name}.json"
        mapping.write_text(text.split(f"### {name}\n")[1].split("```json\n")[1].split("```")[0])
        tried = json.loads(run("sources", "try", str(FILES / file), "--mapping", str(mapping), *options, "--json"))
        assert tried["accounting"]["landed"] == 11
        place = ["--location", own.location(f"{name.lower()}/*"), "--mapping", str(mapping)]
        assert "no file is at" in run("sources", "add", name.lower(), *place, *options)
        put(file, (FILES / file).read_bytes(), f"{name.lower()}/")
    assert own.land_all() == {}
    counts = own.accounting()
    assert (counts["lines"], counts["landed"], counts["duplicates"], counts["dead"]) == (24, 22, 2, 0)
    stories = own.events().group_by("source").agg(pl.col("ts").dt.truncate("1s").unique().sort()).sort("source")
    assert stories["ts"][0].to_list() == stories["ts"][1].to_list()


def test_users_of_a_new_tenant_stay_apart_and_of_one_that_has_events_nothing_changes(
    own: World, put: Callable[..., str]
) -> None:
    def added(name: str, tenant: str) -> str:
        return run("sources", "add", name, "--location", own.location(f"{name}/*"), "--preset", "segment",
                   "--tenant", tenant)  # fmt: skip

    def unique(tenant: str) -> list[str]:
        return [rule.source for rule in own.control.key_rules.policy().rules_of(tenant) if rule.is_unique]

    assert "Users of acme stay apart" in added("shop", "acme")
    assert unique("acme") == ["userId", "attrs.same_as"]
    assert not unique("globex")
    assert "apart" not in added("app", "acme"), "the rules are there"
    put("a.jsonl", (FILES / "segment.jsonl").read_bytes(), "shop/")
    assert own.land_all() == {}
    own.control.execute("DELETE FROM correlation_key_rules WHERE tenant_id = 'acme'")
    assert "may make two of its users one" in added("till", "acme")
    assert not unique("acme")


def test_a_file_is_tried_by_a_source_whose_path_says_the_tenant(own: World) -> None:
    location = own.location("by-tenant/{tenant}/*")
    run("sources", "add", "shop", "--location", location, "--preset", "segment")
    tried = json.loads(run("sources", "try", str(FILES / "segment.jsonl"), "--source", "shop", "--json"))
    assert tried["accounting"]["landed"] == 11
    assert tried["examples"][0]["event"]["tenant_id"] == "tenant-of-the-path"


def test_a_tenant_sees_the_accounting_of_sources_that_are_its_own_and_only_those(
    own: World, put: Callable[..., str]
) -> None:
    own.add("shop", "segment")
    put("a.jsonl", (FILES / "segment.jsonl").read_bytes() + b"{}\n")
    for name, place, document in (
        ("shops", "by-tenant/{tenant}/{date}/*.jsonl", {"extends": "segment@1"}),
        ("mixed", "mixed/*", {"extends": "segment@1", "tenant": "writeKey"}),
    ):
        own.control.sources.add(name, own.location(place), "lines", None, None)
        own.control.sources.apply(name, own.control.sources.add_mapping(name, document, ""))
    put("b.jsonl", (FILES / "segment.jsonl").read_bytes(), "by-tenant/globex/20261121/")
    others = (FILES / "segment.jsonl").read_bytes().replace(b"wk_shop", b"globex").replace(b"ajs-next", b"ajs-other")
    put("c.jsonl", others, "mixed/")
    own.land_all()

    def seen(tenant: str) -> dict[str, Any]:
        rows = delivered_by_source(own.lake, sources_of_pages(own.control), tenant)
        return {row["name"]: (row["version"], row["files"], row["records"], dict(row["outcomes"]), row["events"])
                for row in rows}  # fmt: skip

    whole = {"landed": 11, "duplicates": 1, "dead": 0}
    assert seen("acme") == {"shop": (1, 1, 13, whole | {"dead": 1}, 11)}
    # The alias among the records names no tenant.
    assert seen("globex") == {"shops": (1, 1, 12, whole, 11), "mixed": (1, None, None, {}, 10)}
    assert seen("initech") == {}
    # A source that changed hands: what it brought before stays with whose it was.
    number = own.control.sources.add_mapping("shop", {"extends": "segment@1", "tenant": {"const": "initech"}}, "")
    own.control.sources.apply("shop", number)
    assert seen("initech") == {"shop": (2, 0, 0, dict.fromkeys(whole, 0), 0)}
    assert seen("acme")["shop"][1:] == (1, 13, whole | {"dead": 1}, 11)


@pytest.fixture
def other_store(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A second S3 server with a login of its own, and the bucket `events-of-shop`."""
    server = s3(tmp_path, free_port(0), "a-secret-of-the-shop")
    server.prepare()
    with subprocess.Popen(server.command, env=server.environment) as process:
        retrying = Retrying(retry=retry_if_exception_type(), stop=stop_after_delay(30), wait=wait_fixed(0.2))
        retrying(server.probe)
        yield {
            "access_key_id": server.connection["AWS_ACCESS_KEY_ID"],
            "secret_access_key": server.connection["AWS_SECRET_ACCESS_KEY"],
            "endpoint_url": server.connection["AWS_ENDPOINT_URL"], "region": "us-east-1",
        }  # fmt: skip
        process.terminate()


def test_a_bucket_is_read_by_a_login_of_its_own_that_is_meant_for_it(
    own: World, put: Callable[..., str], other_store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = boto3.client(
        "s3", endpoint_url=other_store["endpoint_url"], aws_access_key_id=other_store["access_key_id"],
        aws_secret_access_key=other_store["secret_access_key"], region_name="us-east-1",
    )  # fmt: skip
    client.create_bucket(Bucket="events-of-shop")
    records = (FILES / "segment.jsonl").read_bytes()
    client.put_object(Bucket="events-of-shop", Key="raw/2026-11-20/a.jsonl", Body=records)
    location = "s3://events-of-shop/raw/{date}/*"
    monkeypatch.setenv("C360_SOURCE_LOCATIONS", "s3://events-of-shop/raw/")
    add = ["sources", "add", "shop", "--location", location, "--preset", "segment", "--tenant", "acme",
           "--login", "env:C360_SOURCE_SHOP"]  # fmt: skip
    for variables, said in (
        ({}, "leads nowhere"),
        ({"C360_SOURCE_SHOP": json.dumps(other_store)}, "set C360_SOURCE_SHOP_HOST to events-of-shop"),
        ({"C360_SOURCE_SHOP_HOST": "events-of-others"}, "names other servers"),
        ({"C360_SOURCE_SHOP_HOST": "events-of-shop", "C360_SOURCE_SHOP": "key:secret"}, "one line of JSON is right"),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=said):
            run(*add)
    monkeypatch.setenv("C360_SOURCE_SHOP", json.dumps(other_store))
    assert "1 files are there" in run(*add)
    assert own.land_all() == {}
    assert own.accounting()["landed"] == 11

    # Its server away, or its login refused: others land.
    own.add("own", "segment")
    put("b.jsonl", (FILES / "segment.jsonl").read_bytes().replace(b"ajs-next", b"ajs-other"))
    for wrong in (
        {"endpoint_url": "http://127.0.0.1:1"},
        {"secret_access_key": "guessed"},
        {"endpoint_url": "nonsense"},
    ):
        monkeypatch.setenv("C360_SOURCE_SHOP", json.dumps({**other_store, **wrong}))
        assert "can't be listed" in own.land()[location]
        assert "a-secret-of-the-shop" not in str(own.land())
    assert own.accounting()["landed"] == 22


def test_letters_whose_lines_are_numbered_anew_stay_open(own: World, put: Callable[..., str]) -> None:
    """A header that turns out to be a row: each record is a line further on, where another dead one was before."""
    place = own.location("tables/{date}/*")
    run("sources", "add", "shop", "--location", place, "--preset", "segment", "--tenant", "acme", "--framing", "tsv")
    put("a.tsv", b"messageId\tuserId\nm1\tu1\nm2\tu2\n", "tables/2026-11-20/")
    own.land()
    assert own.accounting()["dead"] == 2
    own.control.execute("UPDATE event_sources SET columns = ARRAY['messageId', 'userId']")
    run("sources", "apply", "shop", "v1", "--from", "2026-11-01")
    assert own.accounting()["dead"] == own.accounting()["lines"] == 3
    letters = own.lake.read(DEAD_LETTERS)
    assert letters.select("status").to_series().to_list() == ["open"] * 3
    assert sorted(own.lake.read(DEAD_LETTER_LINES)["source_line"]) == [1, 2, 3]
