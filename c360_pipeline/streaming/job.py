"""The Flink job: reads the topic, judges every message, writes to the graph, Cassandra and S3.

Run by Flink in its own environment (`c360 stream start` hands it over). Each operator has a name by which its state is
found again in a savepoint; what it decides is in `operators`.
"""

import base64
import json
import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from pyflink.common import Encoder, Row, Types
from pyflink.common.serialization import SimpleStringSchema
from pyflink.common.time import Time
from pyflink.datastream import OutputTag, StreamExecutionEnvironment
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.file_system import BucketAssigner, FileSink, OutputFileConfig, RollingPolicy
from pyflink.datastream.connectors.kafka import KafkaRecordSerializationSchema, KafkaSink
from pyflink.datastream.functions import KeyedProcessFunction, MapFunction, RuntimeContext
from pyflink.datastream.state import ListStateDescriptor, MapStateDescriptor, StateTtlConfig, ValueStateDescriptor
from pyflink.table import StreamTableEnvironment

from c360_pipeline.connections import open_landing
from c360_pipeline.settings import Settings, load_settings
from c360_pipeline.stores.landing import EVENTS_PREFIX
from c360_pipeline.streaming.clients import DEAD_LETTER_TOPIC, GROUP, TOPIC, java_kafka_options
from c360_pipeline.streaming.operators import (
    EPOCH,
    DeadLetter,
    Message,
    decode,
    encode,
    judge,
    landed_line,
    shard_of,
)
from c360_pipeline.streaming.sinks import PatientSink, refusal

JOB = "c360-user-events"
BATCH_EVENTS, BATCH_MS = 200, 300
"""Of one tenant and shard: written when there are so many, or when the first has waited for so long."""
SEEN_FOR = Time.hours(6)
"""For how long the id of an event is known; the archive knows it for good."""
BYTES = "ISO-8859-1"
"""A text of this encoding has one character for each byte: how bytes go through operators that know texts only."""
LANDED = OutputTag("landed", Types.STRING())
DEAD = OutputTag("dead", Types.STRING())
FILE_BYTES, FILE_MS, IDLE_MS = 64 * 1024 * 1024, 60_000, 15_000
"""A landed file ends when it is so large, so old, or when nothing came for so long."""


def log_to_flink() -> None:
    """Send what we log through Python's logging, which a worker hands on to Flink."""
    structlog.configure(
        processors=[structlog.processors.KeyValueRenderer(key_order=["event"])],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


class Judge(KeyedProcessFunction):  # type: ignore[misc]  # pyflink has no types
    """Tells events from dead letters, partition by partition, with the partition's clock and the ids it has seen."""

    def open(self, context: RuntimeContext) -> None:
        """Bind the state."""
        self._clock = context.get_state(ValueStateDescriptor("clock", Types.LONG()))
        seen = MapStateDescriptor("seen", Types.STRING(), Types.BOOLEAN())
        seen.enable_time_to_live(StateTtlConfig.new_builder(SEEN_FOR).build())
        self._seen = context.get_map_state(seen)
        metrics = context.get_metrics_group()
        self._count = {name: metrics.counter(name) for name in ("events", "dead_letters", "late", "duplicates")}

    def process_element(self, row: Row, context: Any) -> Iterator[Any]:
        """One message."""
        message = Message(bytes(row[0]), row[1], row[2])
        yield LANDED, landed_line(message.value).decode(BYTES)
        known = self._clock.value()
        clock = None if known is None else EPOCH + timedelta(microseconds=known)
        found, moved = judge(message, clock, self._is_seen, datetime.now(UTC), is_replay=bool(row[3]))
        if moved is not None and moved != clock:
            self._clock.update((moved - EPOCH) // timedelta(microseconds=1))
        if found is None:
            self._count["duplicates"].inc()
        elif isinstance(found, DeadLetter):
            self._count["late" if found.error_class == "late" else "dead_letters"].inc()
            yield DEAD, found.as_json()
        else:
            self._count["events"].inc()
            yield Row(shard_of(found), encode(found))

    def _is_seen(self, name: str) -> bool:
        if self._seen.contains(name):
            return True
        self._seen.put(name, True)
        return False


class MicroBatch(KeyedProcessFunction):  # type: ignore[misc]
    """Gathers the events of a tenant's shard in Flink's state, and writes them together.

    They leave the state after they are written: what a crash leaves half done is written again, which changes nothing.
    """

    def __init__(self, sink: str) -> None:
        self._name = sink

    def open(self, context: RuntimeContext) -> None:
        """Bind the state."""
        log_to_flink()
        self._waiting = context.get_list_state(ListStateDescriptor("waiting", Types.STRING()))
        self._pending = context.get_state(ValueStateDescriptor("pending", Types.TUPLE([Types.INT(), Types.LONG()])))
        self._sink = PatientSink(self._name, load_settings())
        metrics = context.get_metrics_group()
        self._count = {name: metrics.counter(name) for name in ("written", "refused", "batches", "retries")}
        self._batch_ms = 0
        metrics.gauge("batch_ms", lambda: self._batch_ms)

    def close(self) -> None:
        """Close the store."""
        self._sink.close()

    def process_element(self, row: Row, context: Any) -> Iterable[Any]:
        """One event."""
        count, timer = self._pending.value() or (0, 0)
        self._waiting.add(row[1])
        if count == 0:
            timer = context.timer_service().current_processing_time() + BATCH_MS
            context.timer_service().register_processing_time_timer(timer)
        if count + 1 >= BATCH_EVENTS:
            context.timer_service().delete_processing_time_timer(timer)
            yield from self._write()
        else:
            self._pending.update((count + 1, timer))

    def on_timer(self, timestamp: int, context: Any) -> Iterable[Any]:
        """The first has waited for long enough."""
        if self._pending.value() is not None:
            yield from self._write()

    def _write(self) -> Iterator[Any]:
        events = [decode(text) for text in self._waiting.get()]
        began, retries = datetime.now(UTC), self._sink.retries
        refused = self._sink.write(events)
        self._batch_ms = (datetime.now(UTC) - began) // timedelta(milliseconds=1)
        self._waiting.clear()
        self._pending.clear()
        self._count["batches"].inc()
        self._count["written"].inc(len(events) - len(refused))
        self._count["refused"].inc(len(refused))
        self._count["retries"].inc(self._sink.retries - retries)
        for event, error in refused:
            event_id, reason = refusal(event, error)
            original = Message(encode_refused(event).encode(), -1, -1)
            yield DeadLetter(original, f"refused_by_{self._name}", f"event {event_id}: {reason}").as_json()


def encode_refused(event: Any) -> str:
    """An event that a store refuses, as it was between the operators."""
    return json.dumps({**event._asdict(), "ts": event.ts.isoformat()}, ensure_ascii=False)


class KeepDeadLetter(MapFunction):  # type: ignore[misc]
    """Puts the bytes of dead letters into S3 under their hash, where the batch path keeps its own."""

    def open(self, context: RuntimeContext) -> None:
        """Open S3."""
        self._landing = open_landing(load_settings())

    def map(self, text: str) -> str:
        """One dead letter; putting it twice changes nothing."""
        letter = json.loads(text)
        self._landing.put_dead_letter(letter["dead_letter_id"], base64.b64decode(letter["value"]))
        return text


def build(environment: StreamExecutionEnvironment, settings: Settings, sinks: Iterable[str]) -> None:
    """Wire the job.

    Args:
        environment: of Flink.
        settings: addresses and logins.
        sinks: names of those to write to, of `neo4j`, `cassandra` and `s3`.
    """
    tables = StreamTableEnvironment.create(environment)
    options = {
        "connector": "kafka", "topic": TOPIC, "format": "raw", "scan.startup.mode": "group-offsets",
        "properties.group.id": GROUP, "properties.auto.offset.reset": "earliest",
        "scan.topic-partition-discovery.interval": "30 s",
        **{f"properties.{name}": value for name, value in java_kafka_options(settings).items()},
    }  # fmt: skip
    said = ", ".join(f"'{name}' = '{_sql_text(value)}'" for name, value in options.items())
    tables.execute_sql(
        "CREATE TEMPORARY TABLE user_events (line BYTES, `partition` INT METADATA VIRTUAL, "
        "`offset` BIGINT METADATA VIRTUAL, headers MAP<STRING, BYTES> METADATA VIRTUAL) "
        f"WITH ({said})"
    )
    chosen = tables.sql_query(
        "SELECT line, `partition`, `offset`, headers['c360-replay'] IS NOT NULL FROM user_events WHERE line IS NOT NULL"
    )
    messages = tables.to_data_stream(chosen)
    judged = (
        messages.key_by(lambda row: row[1], key_type=Types.INT())
        .process(Judge(), output_type=Types.ROW([Types.STRING(), Types.STRING()]))
        .name("judge").uid("judge")
    )  # fmt: skip
    events = judged.key_by(lambda row: row[0], key_type=Types.STRING())
    dead = judged.get_side_output(DEAD)
    for name in sinks:
        if name == "s3":
            judged.get_side_output(LANDED).sink_to(landed_files(settings)).name("landed files").uid("landed-files")
        else:
            refused = events.process(MicroBatch(name), output_type=Types.STRING()).name(name).uid(f"to-{name}")
            dead = dead.union(refused)
    kept = dead.map(KeepDeadLetter(), output_type=Types.STRING()).name("dead letters").uid("dead-letters")
    kept.sink_to(dead_letter_topic(settings)).name("topic of dead letters").uid("dead-letter-topic")


def landed_files(settings: Settings) -> FileSink:
    """Files that landing takes up, each there once and whole."""
    names = OutputFileConfig.builder().with_part_prefix("stream").with_part_suffix(".jsonl").build()
    return (
        FileSink.for_row_format(f"s3://{settings.bucket}/{EVENTS_PREFIX}", Encoder.simple_string_encoder(BYTES))
        .with_bucket_assigner(BucketAssigner.date_time_bucket_assigner("'date='yyyy-MM-dd", "UTC"))
        .with_rolling_policy(RollingPolicy.default_rolling_policy(FILE_BYTES, FILE_MS, IDLE_MS))
        .with_output_file_config(names)
        .build()
    )


def dead_letter_topic(settings: Settings) -> KafkaSink:
    """The topic of dead letters; one may be there twice, with one id."""
    builder = KafkaSink.builder()
    for name, value in java_kafka_options(settings).items():
        builder = builder.set_property(name, value)
    schema = (
        KafkaRecordSerializationSchema.builder()
        .set_topic(DEAD_LETTER_TOPIC)
        .set_value_serialization_schema(SimpleStringSchema())
        .build()
    )
    servers = settings.kafka_bootstrap_servers
    return (
        builder.set_bootstrap_servers(servers)
        .set_record_serializer(schema)
        .set_delivery_guarantee(DeliveryGuarantee.AT_LEAST_ONCE)
        .build()
    )


def _sql_text(value: str) -> str:
    return value.replace("'", "''")


def main(arguments: list[str]) -> None:
    """Hand the job over: `job.py SINK …`."""
    environment = StreamExecutionEnvironment.get_execution_environment()
    build(environment, load_settings(), arguments or ["neo4j", "cassandra", "s3"])
    environment.execute(JOB)
