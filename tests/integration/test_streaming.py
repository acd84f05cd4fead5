"""The real-time path with all its real servers, some of which are killed on the way."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from confluent_kafka import Consumer
from dagster_processes import wait_until

from c360_pipeline.cli.stream import SINK_NAMES, sample_lines, start_job
from c360_pipeline.connections import open_bucket, open_graph, open_lake
from c360_pipeline.core.lake import EVENTS
from c360_pipeline.devstack import stack
from c360_pipeline.devstack.event_samples import SampleRequest, write_sample
from c360_pipeline.devstack.pause import paused
from c360_pipeline.devstack.services import PREFERRED_PORTS, STREAMING_PORTS
from c360_pipeline.runs import EVERYTHING, materialise
from c360_pipeline.settings import Settings, load_settings
from c360_pipeline.streaming.agreement import Agreement
from c360_pipeline.streaming.clients import DEAD_LETTER_TOPIC, kafka_options, open_user_events
from c360_pipeline.streaming.cluster import StreamCluster
from c360_pipeline.streaming.opened import compared
from c360_pipeline.streaming.producer import EventProducer, key_of, send
from c360_pipeline.streaming.replay import REPLAY, archived_lines

SAMPLE = SampleRequest(events=10_000, tenants=3, seed=5, malformed_rate=0.02, duplicate_rate=0.03, late_rate=0.02)
NEO4J_AWAY_SECONDS = 20.0
NO_WAIT = timedelta(0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder with every service, none of them shared with other tests."""
    folder = tmp_path_factory.mktemp("streaming") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("C360_HOME", str(folder))
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


def of_place(agreement: Agreement, name: str) -> dict[str, int]:
    """missing, altered and extra events of a store."""
    place = next(p for p in agreement.places if p.name == name)
    return {"missing": place.missing.height, "altered": place.altered.height, "extra": place.extra.height}


EQUAL = {"missing": 0, "altered": 0, "extra": 0}


@pytest.mark.timeout(1_200)
def test_nothing_is_lost_and_nothing_is_there_twice_whatever_is_killed(home: Path, tmp_path: Path) -> None:
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
        return compared(settings, None, timedelta(hours=1))[0]

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
    landed, _ = compared(settings, None, NO_WAIT)
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

    drift_is_named_and_repaired(settings)
    an_archive_refills_cassandra(settings)
    assert cluster.job_id() == started.job_id
    savepoint = cluster.stop()
    assert savepoint is not None
    assert cluster.status().state == "stopped"
    again = start_job(home, settings, SINK_NAMES, lambda _: None)
    assert again.job_id != started.job_id
    assert sum(again.lag.values()) == 0


def events_in_graph(settings: Settings) -> int:
    """Events in the graph."""
    with open_graph(settings) as graph:
        return int(graph.query("MATCH (e:Event) RETURN count(e) AS number")[0]["number"])


def drift_is_named_and_repaired(settings: Settings) -> None:
    """One event less in Cassandra, one more, one altered in the graph."""
    with open_user_events(settings) as table:
        row = next(iter(table.scan()))
        gone = table.of_day(row.tenant_id, row.user_id, row.bucket_date)
        table.delete_days(row.tenant_id, row.user_id, [row.bucket_date])
    with open_graph(settings) as graph:
        graph.run("MATCH (e:Event) WITH e ORDER BY e.id LIMIT 1 SET e.type = 'stolen'")
    found, _ = compared(settings, None, NO_WAIT)
    assert of_place(found, "cassandra") == EQUAL | {"missing": len(gone)}
    assert of_place(found, "graph") == EQUAL | {"altered": 1}
    missing = next(p for p in found.places if p.name == "cassandra").missing
    assert set(missing["event_id"]) == {event.event_id for event in gone}
    _, repaired = compared(settings, None, NO_WAIT, repair=True)
    assert repaired == len(gone) + 1
    again, _ = compared(settings, None, NO_WAIT)
    assert of_place(again, "cassandra") == EQUAL


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
