"""The real-time path with all its real servers, some of which are killed on the way."""

import base64
import hashlib
import json
import os
import signal
import stat
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import neo4j
import polars as pl
import pytest
import requests
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import Cluster
from cassandra.io.asyncioreactor import AsyncioConnection
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from dagster_processes import wait_until
from typer.testing import CliRunner

from c360_pipeline.assets.reconciliation import stream_agrees
from c360_pipeline.cli import app
from c360_pipeline.cli.stream import SINK_NAMES, sample_lines, start_job
from c360_pipeline.connections import open_bucket, open_control, open_graph, open_lake, open_landing
from c360_pipeline.core.catalog.feature_tables import USUAL_STEPS
from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.landing.accounting import OUTCOMES
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.devstack import stack
from c360_pipeline.devstack.event_samples import SampleRequest, write_sample
from c360_pipeline.devstack.pause import paused
from c360_pipeline.devstack.service import passwords
from c360_pipeline.devstack.services import PREFERRED_PORTS, STREAMING_PORTS
from c360_pipeline.reads.insights import surprising_now
from c360_pipeline.resources import StreamResource
from c360_pipeline.runs import EVERYTHING, materialise
from c360_pipeline.settings import Settings, load_settings
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.driver_values import Read
from c360_pipeline.streaming import agreement
from c360_pipeline.streaming.agreement import Agreement
from c360_pipeline.streaming.clients import DEAD_LETTER_TOPIC, kafka_options, open_user_events
from c360_pipeline.streaming.cluster import StreamCluster
from c360_pipeline.streaming.lag import seen_by
from c360_pipeline.streaming.producer import EventProducer, key_of, send
from c360_pipeline.streaming.replay import REPLAY, archived_lines
from c360_pipeline.streaming.verify import compared

SAMPLE = SampleRequest(events=10_000, tenants=3, seed=5, malformed_rate=0.02, duplicate_rate=0.03, late_rate=0.02)
NEO4J_AWAY_SECONDS = 20.0
NO_WAIT = timedelta(0)
HOLD_A_SECRET = ("connection.env", "kafka.properties", "config.yaml")
"""What a user takes the connection from, and files of servers that have their own password in them."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder with every service, none of them shared with other tests."""
    folder = tmp_path_factory.mktemp("streaming") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("C360_HOME", str(folder))
        patch.setenv("C360_SOURCE_TOPICS", "web.*")
        with stack.attached(folder, lambda _: None, ports=dict.fromkeys([*PREFERRED_PORTS, *STREAMING_PORTS], 0)):
            yield folder


def process_of(home: Path, service: str) -> int:
    """The process of a service."""
    services = json.loads((home / "services.json").read_text())["services"]
    return next(int(s["pid"]) for s in services if s["service"] == service)


def landed_lines(settings: Settings) -> list[bytes]:
    """Every line of the files that the stream has landed."""
    bucket = open_bucket(settings)
    paths = [found.path for found in bucket.objects("landing/events/") if found.path.endswith(".jsonl")]
    return [line for path in paths for line in bucket.read(path).splitlines()]


def dead_letters(settings: Settings) -> list[dict[str, str]]:
    """The topic of dead letters, from its beginning."""
    options = {"group.id": "test", "auto.offset.reset": "earliest", "enable.partition.eof": False}
    consumer = Consumer(kafka_options(settings) | options)
    consumer.subscribe([DEAD_LETTER_TOPIC])
    found: list[dict[str, str]] = []
    while batch := consumer.consume(10_000, timeout=10.0):
        found += [json.loads(one.value() or b"") for one in batch]
    consumer.close()
    return found


def of_place(found: Agreement, name: str) -> dict[str, int]:
    """missing, altered and extra events of a store."""
    place = next(p for p in found.places if p.name == name)
    return {name: drift.events for name, drift in place.differing.items()}


EQUAL = {"missing": 0, "altered": 0, "extra": 0}


@pytest.mark.soak
@pytest.mark.timeout(1_200)
def test_nothing_is_lost_and_nothing_is_there_twice_whatever_is_killed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "PART_ROWS", 3_000)
    settings = load_settings(home)
    written = write_sample(SAMPLE, tmp_path, lambda _: None)
    lines = list(sample_lines(sorted(written.event_files)))
    quarter = len(lines) // 4
    started = start_job(home, settings, SINK_NAMES, lambda _: None)
    cluster = StreamCluster(settings)

    def a_task_manager_dies() -> None:
        os.kill(process_of(home, "flink-taskmanager"), signal.SIGKILL)
        with paused(home, "flink-taskmanager"):
            pass

    def the_graph_is_away() -> None:
        until = time.monotonic() + NEO4J_AWAY_SECONDS
        with paused(home, "neo4j"):
            wait_until(lambda: time.monotonic() > until, NEO4J_AWAY_SECONDS * 2)

    def kafka_restarts() -> None:
        with paused(home, "kafka"):
            pass

    def cassandra_is_away() -> None:
        before = events_in_graph(settings)
        with paused(home, "cassandra"):
            wait_until(lambda: events_in_graph(settings) > before, seconds=60)

    def now() -> Agreement:
        return compared(settings, None, timedelta(hours=1))

    faults: list[Callable[[], None]] = [a_task_manager_dies, the_graph_is_away, kafka_restarts, cassandra_is_away]
    for number, fault in enumerate(faults):
        part = lines[number * quarter : (number + 1) * quarter if number < len(faults) - 1 else None]
        with EventProducer(settings) as producer:
            send(producer, ((line, key_of(line)) for line in part), None, lambda _: None)
        fault()
    wait_until(lambda: of_place(now(), "graph") == EQUAL and of_place(now(), "cassandra") == EQUAL, 300)
    found = now()
    assert found.counts["messages"] == len(lines)
    assert found.counts["events"] == SAMPLE.events

    wait_until(lambda: len(landed_lines(settings)) >= len(lines), 180)
    assert sorted(landed_lines(settings)) == sorted(lines)
    assert materialise(home, EVERYTHING, None, lambda _: None).succeeded
    landed = compared(settings, None, NO_WAIT)
    assert landed.is_equal, landed.as_dict()
    assert {p.name: p.events for p in landed.places} == {
        "archive": SAMPLE.events, "graph": SAMPLE.events - landed.counts["late"],
        "cassandra": SAMPLE.events - landed.counts["late"],
    }  # fmt: skip
    letters = dead_letters(settings)
    by_id = {letter["dead_letter_id"]: letter["error_class"] for letter in letters}
    kept = {found.path.rpartition("/")[2] for found in open_bucket(settings).objects("dead-letters/")}
    assert by_id.keys() <= kept
    assert sum(error_class == "late" for error_class in by_id.values()) >= landed.counts["late"] > 0

    assert stream_agrees(stream=StreamResource()).passed
    drift_is_named_and_repaired(settings)
    what_expires_leaves_cassandra(settings)
    an_archive_refills_cassandra(settings)
    assert cluster.job_id() == started.job_id
    savepoint = cluster.stop()
    assert savepoint is not None
    assert cluster.status().state == "stopped"
    again = start_job(home, settings, SINK_NAMES, lambda _: None)
    assert again.job_id != started.job_id
    wait_until(lambda: sum(cluster.lag().values()) == 0, 60)


def events_in_graph(settings: Settings) -> int:
    """Events in the graph."""
    with open_graph(settings) as graph:
        return int(graph.query("MATCH (e:Event) RETURN count(e) AS number")[0]["number"])


def drift_is_named_and_repaired(settings: Settings) -> None:
    """One event less in Cassandra, one more, one altered in the graph."""
    with open_user_events(settings) as table:
        row = next(iter(table.scan()))
        gone = list(table.of_days([(row.tenant_id, row.user_id, row.bucket_date)]))
        table.delete_days(row.tenant_id, row.user_id, [row.bucket_date])
    with open_graph(settings) as graph:
        graph.run("MATCH (e:Event) WITH e ORDER BY e.id LIMIT 1 SET e.type = 'stolen'")
    found = compared(settings, None, NO_WAIT)
    assert of_place(found, "cassandra") == EQUAL | {"missing": len(gone)}
    assert of_place(found, "graph") == EQUAL | {"altered": 1}
    assert not stream_agrees(stream=StreamResource()).passed
    missing = next(p for p in found.places if p.name == "cassandra").missing.first
    assert set(missing["event_id"]) == {event.event_id for event in gone}
    left = compared(settings, None, NO_WAIT, repair=True)
    assert left.repaired == len(gone)
    assert of_place(left, "cassandra") == EQUAL
    assert of_place(left, "graph") == EQUAL | {"altered": 1}
    with open_graph(settings) as graph:
        reconcile(Archive(open_lake(settings), open_control(settings).read()), graph, repair=True)
    assert compared(settings, None, NO_WAIT).is_equal


def what_expires_leaves_cassandra(settings: Settings) -> None:
    """Rows are found by what the archive knows of an event, and those of others stay."""
    with open_user_events(settings) as table:
        row = next(iter(table.scan()))
        day = list(table.of_days([(row.tenant_id, row.user_id, row.bucket_date)]))
        lake = open_lake(settings)
        expired = lake.read(EVENTS).filter(tenant_id=row.tenant_id, event_id=row.event_id)
        table.delete(expired)
        assert expired.height == 1
        assert list(table.of_days([(row.tenant_id, row.user_id, row.bucket_date)])) == [
            one for one in day if one != row
        ]
        table.write([row])


def an_archive_refills_cassandra(settings: Settings) -> None:
    """A tenant's events go to Kafka again; Cassandra has them once, the late ones too, and the archive no more."""
    lake = open_lake(settings)
    events = lake.read(EVENTS)
    mine = events.filter(pl.col("tenant_id") == "acme")
    first, last = mine["event_date"].min(), mine["event_date"].max()
    with open_user_events(settings) as table:
        for user, days in mine.group_by("user_id").agg(pl.col("event_date").unique()).iter_rows():
            table.delete_days("acme", user, days)
        with EventProducer(settings, headers=REPLAY) as producer:
            sent = send(producer, archived_lines(lake, "acme", first, last), None, lambda _: None)  # type: ignore[arg-type]
        assert sent == mine.height

        def there() -> int:
            return sum(1 for row in table.scan() if row.tenant_id == "acme")

        wait_until(lambda: there() >= mine.height, 120)
        assert there() == mine.height
    assert events_in_graph(settings) == events.height


KNOWN = ("known-a", "known-b", "known-c")
HOSTILE = (
    "'); DROP TABLE user_events; --", "\"}) DETACH DELETE n //", "`User`:Admin", "zero\x00byte", "tab\tand\nline",
    "e\u0301 \U0001f469\u200d\U0001f4bb \u202eright to left", "x" * 1024, " ", "$tenant_id", "+I[a, b]",
)  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """A message and what is to become of it.

    Attributes:
        line: its bytes.
        tenant: whose.
        event_id: of the event that all stores hold in the end; None of a dead letter.
        error_class: of a dead letter; `late` of an event that the stream leaves to the batch path.
    """

    line: bytes
    tenant: str
    event_id: str | None
    error_class: str | None = None


NOBODY_KNOWN = "nobody-known"


def known_stream(newest: datetime) -> list[Sent]:
    """A stream with known outcome: late by 1, 119 and 121 s, equal times, hostile values, repeats, broken lines."""
    found = []

    def add(tenant: str, name: str, behind: timedelta, error_class: str | None = None, **fields: Any) -> None:
        event = {
            "tenantId": tenant, "userId": "known", "sessionId": "s", "ts": (newest - behind).isoformat(),
            "action": "view", "itemId": "p1", "eventId": name, **fields,
        }  # fmt: skip
        line = json.dumps(event, ensure_ascii=False, indent=2 if name == "of-many-lines" else None).encode()
        if error_class == "invalid_json":
            found.append(Sent(line.replace(b"BREAK", b"line\r\nbreak"), tenant, None, error_class))
        else:
            found.append(Sent(line, tenant, nfc(name), error_class))

    for tenant in KNOWN:
        add(tenant, "newest", timedelta(0))
        add(tenant, "late-1", timedelta(seconds=1))
        add(tenant, "late-119", timedelta(seconds=119))
        add(tenant, "late-121", timedelta(seconds=121), "late")
        for twin in ("twin-1", "twin-2"):
            add(tenant, twin, timedelta(seconds=5))
        add(tenant, "a-microsecond-before", timedelta(seconds=5, microseconds=1))
        add(tenant, "newest", timedelta(0))
        add(tenant, "of-many-lines", timedelta(seconds=7))
        add(tenant, NOBODY_KNOWN, timedelta(seconds=6), userId=None, anonymousId="browser-1")
        # More than servers take in one batch of several rows: 200 KB.
        add(tenant, "large", timedelta(seconds=8), attrs={f"a{n}": "\U0001f469" * 1024 for n in range(50)})
        for number, value in enumerate(HOSTILE):
            add(tenant, f"hostile-{number}{value[:200]}", timedelta(seconds=9), sessionId=f"s{value[:1000]}",
                itemId=f"i{value[:1000]}", attrs={f"a{value[:1000]}": value})  # fmt: skip
        found.append(Sent(f'{{"tenantId": "{tenant}", "userId": "known"'.encode(), tenant, None, "invalid_json"))
        add(tenant, "newest", timedelta(0), "invalid_json", attrs={"in a text": "BREAK"})
        found.append(Sent(f'{{"tenantId": "{tenant}", "ts": 1}}\xff'.encode("latin-1"), tenant, None, "invalid_utf8"))
    return found


@pytest.mark.timeout(600)
def test_a_known_stream_is_read_back_from_all_sinks_by_clients_of_their_own(home: Path) -> None:
    settings = load_settings(home)
    # Views follow views in none of the past's sessions.
    usual = {"from_action": "view", "to_action": "purchase", "steps": 1_000, "starts": 1_000, "actions": 2,
             "usual_surprise": 1.0, "spread": 1.0}  # fmt: skip
    past = [{"tenant_id": tenant, **usual} for tenant in KNOWN]
    open_lake(settings).commits.insert_new(USUAL_STEPS, pl.DataFrame(past, schema=USUAL_STEPS.empty().schema))
    start_job(home, settings, SINK_NAMES, lambda _: None)
    before = len(landed_lines(settings))
    newest = datetime.now(UTC).replace(microsecond=0)
    sent = known_stream(newest)
    producer = Producer(kafka_options(settings))
    for one in sent:
        # One partition: so that which event is the newest is known.
        producer.produce("user_events", value=one.line, key=b"known", partition=0)
    producer.produce("user_events", value=None, key=b"known", partition=0)
    assert producer.flush(30) == 0
    held = {(one.tenant, one.event_id) for one in sent if one.event_id and not one.error_class}
    contents = {(one.tenant, one.event_id): json.loads(one.line) for one in sent if one.event_id}
    days = {(newest - timedelta(seconds=s)).date() for s in (0, 130)}

    wait_until(lambda: {key for key in of_graph(settings) if key[0] in KNOWN} >= held, 60)
    wait_until(lambda: of_cassandra(settings, days).keys() >= {key for key in held if key[1] != NOBODY_KNOWN}, 60)
    # Cassandra has events by user: those of nobody known are in the graph, and the comparison knows it.
    by_user = {key for key in held if key[1] != NOBODY_KNOWN}
    for store, wanted_keys in ((of_graph(settings), held), (of_cassandra(settings, days), by_user)):
        assert {key for key in store if key[0] in KNOWN} == wanted_keys
        for key in wanted_keys:
            event = contents[key]
            assert store[key] == as_kept(event), key
    wanted = {hashlib.sha256(one.line).hexdigest(): one.error_class for one in sent if one.error_class}
    letters = {letter["dead_letter_id"]: letter for letter in dead_letters(settings)}
    assert {name: letters[name]["error_class"] for name in wanted} == wanted
    for one in sent:
        if one.error_class:
            name = hashlib.sha256(one.line).hexdigest()
            assert base64.b64decode(letters[name]["value"]) == one.line
            assert s3_object(settings, f"dead-letters/{name[:2]}/{name}") == one.line

    wait_until(lambda: len(landed_lines(settings)) >= before + len(sent), 120)
    agreed = compared(settings, None, timedelta(hours=1))
    assert of_place(agreed, "graph") == of_place(agreed, "cassandra") == EQUAL
    as_lines = sorted(one.line.translate(bytes.maketrans(b"\r\n", b"\t\t")) for one in sent)
    assert sorted(line for line in landed_lines(settings) if line in set(as_lines)) == as_lines
    for tenant in KNOWN:
        with open_graph(settings) as graph:
            wait_until(partial(odd_sessions, graph.read_only, open_lake(settings), tenant), 30)
            assert odd_sessions(graph.read_only, open_lake(settings), tenant) == ["s"]


def odd_sessions(read: Read, lake: Lake, tenant: str) -> list[str]:
    return [row["session_id"] for row in surprising_now(lake, read, tenant, 10, []).rows]


def segment(number: int, at: datetime, **more: Any) -> bytes:
    """A record as Segment writes it."""
    record = {
        "messageId": f"m{number}", "type": "track", "event": "Product Viewed", "anonymousId": "browser",
        "userId": "seven", "timestamp": at.isoformat(), "properties": {"product_id": f"p{number}"},
    }  # fmt: skip
    return json.dumps(record | more, indent=1).encode()


@pytest.mark.timeout(600)
def test_messages_of_a_topic_of_a_source_are_in_the_graph_at_once_and_land_by_the_same_mapping(home: Path) -> None:
    """Segment in JSON and in batches, and rows of values; the first message of each file looks like another file."""
    settings = load_settings(home)
    now = datetime.now(UTC).replace(microsecond=0)
    columns = home.parent / "rows.json"
    columns.write_text(json.dumps({
        "tenant": {"const": "rows"}, "id": {"path": "id"}, "time": {"path": "at", "as": "rfc3339"},
        "user": {"path": "user"}, "action": {"path": "what"},
    }))  # fmt: skip
    clicks = home.parent / "clicks.json"
    skip = [{"path": "type", "values": ["screen"]}]
    clicks.write_text(json.dumps({"extends": "segment@1", "tenant": {"const": "shop"}, "skip": skip}))
    for arguments in (
        ["web-clicks", "--topic", "web.clicks", "--mapping", str(clicks)],
        ["web-batches", "--topic", "web.batches", "--preset", "segment", "--tenant", "shop", "--records", "batch[]"],
        ["web-rows", "--topic", "web.rows", "--mapping", str(columns), "--framing", "csv",
         "--columns", "id,at,user,what"],
    ):  # fmt: skip
        added = CliRunner().invoke(app, ["sources", "add", *arguments])
        assert added.exit_code == 0, added.output
    refused = CliRunner().invoke(app, ["sources", "add", "a", "--topic", "payroll", "--preset", "segment"])
    assert (refused.exit_code, type(refused.exception).__name__) == (1, "ConfigError")
    assert "C360_SOURCE_TOPICS" in str(refused.exception)
    # Nobody has made the topics: they are read as soon as they are there.
    started = start_job(home, settings, SINK_NAMES, lambda _: None)
    assert start_job(home, settings, SINK_NAMES, lambda _: None).job_id == started.job_id
    sent = {
        "web.clicks": [
            b"\x1f\x8b no gzip", *(segment(n, now) for n in range(3)), b"PAR1", segment(2, now),
            segment(3, now, userId="seven\nlines"), segment(4, now - timedelta(seconds=130)),
            segment(5, now, type="screen"),
            segment(6, now, timestamp="soon"),
        ],
        "web.batches": [
            json.dumps({"batch": [json.loads(segment(n, now)) for n in (10, 11)], "sentAt": "x"}).encode(), b"[",
        ],
        "web.rows": [
            b'"a quote that is never closed', f"r1,{now.isoformat()},seven,view\n".encode(), b"r2,too few",
            f'r3,{now.isoformat()},"of, two words",buy'.encode(),
        ],
    }  # fmt: skip
    client = AdminClient(kafka_options(settings))
    for one in client.create_topics([NewTopic(topic, num_partitions=1) for topic in sent]).values():
        one.result(30)
    producer = Producer(kafka_options(settings))
    for topic, values in sent.items():
        for value in values:
            producer.produce(topic, value=value, key=b"one", partition=0)
    assert producer.flush(30) == 0
    at_once = {("shop", f"m{n}") for n in (0, 1, 2, 3, 10, 11)} | {("rows", "r1"), ("rows", "r3")}

    def in_graph() -> set[tuple[str, str]]:
        with open_graph(settings) as graph:
            rows = graph.query(EVENTS_OF, tenants=["shop", "rows"])
        return {(row["tenant"], row["id"]) for row in rows}

    wait_until(lambda: in_graph() >= at_once, 120)
    assert in_graph() == at_once
    bucket = open_bucket(settings)

    def lines_of(topic: str) -> list[bytes]:
        # One that is not committed yet has a name of its own.
        files = [one for one in bucket.objects(f"topic-events/topic={topic}/") if "/part-" in one.path]
        return [line for one in files for line in bucket.read(one.path).splitlines()]

    for topic, values in sent.items():
        wait_until(lambda topic=topic, values=values: len(lines_of(topic)) >= len(values), 120)
        assert len(lines_of(topic)) == len(values)
    assert StreamCluster(settings).topics == ("user_events", "web.batches", "web.clicks", "web.rows")
    counts = StreamCluster(settings).status().counts
    assert (counts["validate.left_out"], counts["validate.late"]) == (1, 1)
    agreed = compared(settings, None, timedelta(hours=1))
    assert of_place(agreed, "graph") == of_place(agreed, "cassandra") == EQUAL
    # What lands is the same: nothing is new in the graph but the event that was late.
    assert materialise(home, EVERYTHING, None, lambda _: None).succeeded
    listed = json.loads(CliRunner().invoke(app, ["sources", "list", "--json"]).stdout)
    found = {row["name"]: {name: row["accounting"][name] for name in OUTCOMES} for row in listed}
    nothing = dict.fromkeys(OUTCOMES, 0)
    assert found == {
        "web-clicks": nothing | {"landed": 5, "duplicates": 1, "dead": 3, "skipped": 1},
        "web-batches": nothing | {"landed": 2, "dead": 1},
        "web-rows": nothing | {"landed": 2, "dead": 2},
    }
    assert in_graph() == at_once | {("shop", "m4")}
    assert compared(settings, None, NO_WAIT).is_equal


EVENTS_OF = Statement("""
    UNWIND $tenants AS tenant
    MATCH (e:Event {tenant_id: tenant}) RETURN tenant, e.id AS id
""")


def as_kept(event: dict[str, Any]) -> tuple[Any, ...]:
    """user, session, moment, action, item and attributes of an event as all stores hold them."""
    return (
        event["userId"], nfc(event["sessionId"]), datetime.fromisoformat(event["ts"]), event["action"],
        nfc(event["itemId"]), {nfc(name): nfc(value) for name, value in event.get("attrs", {}).items()},
    )  # fmt: skip


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def of_graph(settings: Settings) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Events of the graph by tenant and id, read with the driver."""
    login = (settings.neo4j_user, settings.neo4j_password.get_secret_value())
    statement = """
        MATCH (s:Session)-[:HAS_ACTION]->(e:Event)
        OPTIONAL MATCH (u:User)-[:HAS_SESSION]->(s) WHERE u.id = e.user_id
        OPTIONAL MATCH (e)-[:ON_PRODUCT]->(p) RETURN e, u.id AS user, s.id AS session, p.id AS item
    """
    with neo4j.GraphDatabase.driver(settings.neo4j_uri, auth=login) as driver:
        rows = driver.execute_query(statement).records
    return {
        (row["e"]["tenant_id"], row["e"]["id"]): (
            row["user"], row["session"], row["e"]["ts"].to_native(), row["e"]["type"], row["item"],
            json.loads(row["e"]["attrs"] or "{}"),
        )
        for row in rows if row["user"] == row["e"]["user_id"]
    }  # fmt: skip


def of_cassandra(settings: Settings, days: set[date]) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Events of the known tenants in Cassandra by tenant and id, read by user and day with the driver."""
    assert settings.cassandra_user is not None
    assert settings.cassandra_password is not None
    login = PlainTextAuthProvider(settings.cassandra_user, settings.cassandra_password.get_secret_value())
    rows = []
    with Cluster(
        [settings.cassandra_hosts],
        port=settings.cassandra_port,
        auth_provider=login,
        connection_class=AsyncioConnection,
    ) as cluster:
        session = cluster.connect(settings.cassandra_keyspace)
        for tenant in KNOWN:
            for day in days:
                found = list(session.execute(
                    "SELECT * FROM user_events WHERE tenant_id = %s AND user_id = 'known' AND bucket_date = %s",
                    (tenant, day),
                ))  # fmt: skip
                assert [row.event_time for row in found] == sorted((row.event_time for row in found), reverse=True)
                rows += found
    for row in rows:
        assert row.event_time.replace(tzinfo=UTC) == epoch(row.event_micros - row.event_micros % 1000)
    return {
        (row.tenant_id, row.event_id): (row.user_id, row.session_id, epoch(row.event_micros), row.event_type,
                                        row.item_id, dict(row.metadata or {}))
        for row in rows
    }  # fmt: skip


def epoch(micros: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


def s3_object(settings: Settings, key: str) -> bytes:
    """An object, read with boto3."""
    client = boto3.client(
        "s3", endpoint_url=settings.aws_endpoint_url, region_name=settings.aws_region,
        aws_access_key_id=settings.aws_access_key_id,
        aws_secret_access_key=settings.aws_secret_access_key.get_secret_value(),
    )  # fmt: skip
    return bytes(client.get_object(Bucket=settings.bucket, Key=key)["Body"].read())


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_who_is_erased_leaves_cassandra_and_does_not_come_back(home: Path) -> None:
    settings = load_settings(home)
    start_job(home, settings, SINK_NAMES, lambda _: None)

    def of_person() -> list[date]:
        with open_user_events(settings) as table:
            return table.days("erasure", "person-to-erase")

    def track(user: str) -> None:
        event = {
            "tenantId": "erasure", "userId": user, "sessionId": f"session-of-{user}", "action": "view",
            "ts": datetime.now(UTC).isoformat(), "eventId": str(uuid4()),
        }  # fmt: skip
        with EventProducer(settings) as producer:
            send(producer, [(json.dumps(event).encode(), b"erasure")], None, lambda _: None)

    lines = len(landed_lines(settings))
    track("person-to-erase")
    track("person-who-stays")
    wait_until(lambda: bool(of_person()), 60)
    wait_until(lambda: len(landed_lines(settings)) >= lines + 2, 120)
    assert materialise(home, EVERYTHING, None, lambda _: None).succeeded
    certificate = home.parent / "certificate.json"
    erased = CliRunner().invoke(
        app, ["erase", "--tenant", "erasure", "--user", "person-to-erase", "--certificate", str(certificate)]
    )
    assert erased.exit_code == 0, (erased.output, erased.exception)
    said = json.loads(certificate.read_text())
    assert [one for one in said["stores"] if one["left_in"]] == []
    hits = {one["store"]: (one["hits_before"], one["hits_after"]) for one in said["stores"]}
    assert hits["cassandra"][0] > 0
    assert hits["cassandra"][1] == 0
    assert of_person() == []

    track("person-to-erase")
    track("person-after")
    with open_user_events(settings) as table:
        wait_until(lambda: bool(table.days("erasure", "person-after")), 60)
        assert table.days("erasure", "person-who-stays")
    wait_until(lambda: sum(StreamCluster(settings).lag().values()) == 0, 60)
    assert of_person() == []
    wait_until(lambda: seen_by(settings, "erasure").lag_seconds == 0.0, 60)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_an_event_under_a_taken_id_is_a_conflict_and_cassandra_follows_the_archive(home: Path, tmp_path: Path) -> None:
    settings = load_settings(home)
    start_job(home, settings, SINK_NAMES, lambda _: None)
    lines = len(landed_lines(settings))
    now = datetime.now(UTC)

    def event(event_id: str, item: str, behind: int) -> bytes:
        at = (now - timedelta(seconds=behind)).isoformat()
        # The one that is rejected is of no product: what is null on both sides is equal.
        product = {} if (event_id, item) == ("taken", "bulb") else {"itemId": item}
        return json.dumps({
            "tenantId": "conflicts", "userId": "one", "sessionId": "s", "action": "view", "ts": at, **product,
            "eventId": event_id, "attrs": {"campaign": item},
        }).encode()  # fmt: skip

    first = tmp_path / "first.jsonl"
    first.write_bytes(event("taken", "lamp", 30) + b"\n")
    open_landing(settings).put_file(first, f"landing/events/date={now:%Y-%m-%d}/")
    assert materialise(home, EVERYTHING, None, lambda _: None).succeeded
    with EventProducer(settings) as producer:
        sent = [event("taken", "bulb", 20), event("free", "bulb", 10)]
        send(producer, [(line, b"conflicts/one") for line in sent], None, lambda _: None)
    wait_until(lambda: len(landed_lines(settings)) >= lines + 2, 120)
    assert of_place(compared(settings, 0.1, timedelta(hours=1)), "archive") == EQUAL
    materialise(home, EVERYTHING, None, lambda _: None)
    found = compared(settings, 0.1, NO_WAIT)
    assert found.counts["conflicts"] == 1
    assert [of_place(found, name) for name in ("archive", "graph")] == [EQUAL, EQUAL]
    assert of_place(found, "cassandra") == EQUAL | {"altered": 1}
    assert compared(settings, 0.1, NO_WAIT, repair=True).is_equal
    with open_user_events(settings) as table:
        assert {(row.event_id, row.item_id) for row in table.of_days([("conflicts", "one", now.date())])} == {
            ("taken", "lamp"), ("free", "bulb"),
        }  # fmt: skip


def arguments_with(secrets: list[bytes]) -> list[bytes]:
    """Arguments of processes in which a secret stands."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            arguments = (process / "cmdline").read_bytes()
            found += [arguments[:80]] if any(value in arguments for value in secrets) else []
    return found


def holds_one_of(secrets: list[bytes], path: Path) -> bool:
    """Whether a file has one of these values; servers take files of theirs away meanwhile."""
    with suppress(FileNotFoundError):
        content = path.read_bytes() if path.is_file() else b""
        return any(value in content for value in secrets)
    return False


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_no_secret_is_in_what_the_real_time_path_writes_or_shows(home: Path) -> None:
    """Logs, checkpoints, topics, Flink's own interface, arguments of processes, records of Dagster, the lake."""
    settings = load_settings(home)
    cluster = start_job(home, settings, SINK_NAMES, lambda _: None)
    secrets = [value.encode() for value in passwords(home).values()]
    assert len(secrets) > 4
    # Where each server has its password: closed to all but the owner. Databases keep digests of theirs.
    allowed = {"passwords.json", *HOLD_A_SECRET}
    files = [Path(folder, name) for folder, _, names in os.walk(home) for name in names]
    assert {path.suffix for path in files} >= {".log"}
    assert [str(path) for path in files if path.name not in allowed and holds_one_of(secrets, path)] == []
    assert not [path for path in files if path.name in allowed and stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert arguments_with(secrets) == []
    address = str(settings.flink_rest_url).rstrip("/")
    paths = ["config", "jobmanager/config", "jobmanager/environment", "jobmanager/logs", f"jobs/{cluster.job_id}"]
    paths += [f"jobs/{cluster.job_id}/{what}" for what in ("config", "plan", "exceptions", "checkpoints")]
    for manager in requests.get(f"{address}/taskmanagers", timeout=30).json()["taskmanagers"]:
        paths += [f"taskmanagers/{manager['id']}", f"taskmanagers/{manager['id']}/log"]
    answers = {path: requests.get(f"{address}/{path}", timeout=30) for path in paths}
    assert {path: answer.status_code for path, answer in answers.items() if answer.status_code != 200} == {}
    assert [path for path, answer in answers.items() if any(value in answer.content for value in secrets)] == []
    letters = json.dumps(dead_letters(settings)).encode()
    assert not [value for value in secrets if value in letters]
