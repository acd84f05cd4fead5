"""The Flink job: reads the topic, validates every message, writes to the graph, Cassandra and S3.

Run by Flink in its own environment (`c360 stream start` hands it over). Each operator has a name by which its state is
found again in a savepoint; what it decides is in `operators`.
"""

import base64
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from pyflink.common import Encoder, Types
from pyflink.common.serialization import SimpleStringSchema
from pyflink.datastream import DataStream, KeyedStream, OutputTag, StreamExecutionEnvironment
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.file_system import BucketAssigner, FileSink, OutputFileConfig, RollingPolicy
from pyflink.datastream.connectors.kafka import KafkaRecordSerializationSchema, KafkaSink
from pyflink.datastream.functions import KeyedProcessFunction, MapFunction, RuntimeContext
from pyflink.datastream.state import ValueStateDescriptor
from pyflink.java_gateway import get_gateway
from pyflink.table import Schema, StreamTableEnvironment

from c360_pipeline.connections import open_landing
from c360_pipeline.core.contract.events import EPOCH, Event, epoch_micros
from c360_pipeline.core.sources.source import Source
from c360_pipeline.settings import Settings, load_settings
from c360_pipeline.stages.sources.topics import FOLDER as TOPIC_EVENTS
from c360_pipeline.stores.s3.landing import EVENTS_PREFIX
from c360_pipeline.streaming.clients import (
    DEAD_LETTER_TOPIC,
    GROUP,
    JOB,
    TOPIC,
    TOPICS_OF_SOURCES,
    java_kafka_options,
)
from c360_pipeline.streaming.operators import (
    BYTES,
    DeadLetter,
    Message,
    decode,
    encode,
    messages_of,
    records_in,
    refused_line,
    seen_name,
    shard_of,
    validate,
)
from c360_pipeline.streaming.sinks import STORES, RetryingSink, refusal
from c360_pipeline.streaming.topic_sources import TopicSources, sources_of_topics

SEEN_FOR = "6 h"
"""For how long the id of an event is known; the archive knows it for good."""
MESSAGES = """
    SELECT topic, CONCAT_WS(' ', topic, CAST(`partition` AS STRING)) AS place, CAST(`offset` AS STRING) AS number,
        DECODE(line, 'ISO-8859-1') AS line,
        CASE WHEN headers['c360-replay'] IS NULL THEN '' ELSE 'replay' END AS replay
    FROM user_events WHERE line IS NOT NULL AND topic IN ({topics})
"""
# As `LINE_BREAKS` of topics: a space would make good JSON of a line break within a text, which is a dead letter here.
LINES = "SELECT TRANSLATE(line, CHR(13) || CHR(10), CHR(9) || CHR(9)) FROM messages WHERE topic = 'user_events'"
LINES_OF_SOURCES = """
    INSERT INTO topic_files
    SELECT TRANSLATE(TRIM(TRAILING CHR(13) || CHR(10) FROM line), CHR(13) || CHR(10), CHR(9) || CHR(9)), topic,
        CAST(CURRENT_DATE AS STRING)
    FROM messages WHERE topic <> 'user_events'
"""
# What goes to Python goes in blocks: one by one, a row costs several times there what is done with it.
TO_VALIDATE = """
    SELECT place, ARRAY_JOIN(
        ARRAY_AGG(CONCAT_WS(' ', place, number, replay, CAST(CHAR_LENGTH(line) AS STRING), line)), ''
    )
    FROM TABLE(TUMBLE(TABLE messages, DESCRIPTOR(seen_at), INTERVAL '0.1' SECOND))
    GROUP BY place, window_start, window_end
"""
# The ids that were seen are kept by Flink's own operator for it: a look-up of state from Python crosses processes.
VALIDATED = """
    SELECT SPLIT_INDEX(f0, CHR(31), 0) AS name, SPLIT_INDEX(f0, CHR(31), 1) AS shard,
        SPLIT_INDEX(f0, CHR(31), 2) AS event, seen_at
    FROM validated
"""
FIRST_OF_EACH_NAME = """
    SELECT shard, event FROM entries WHERE name = ''
    UNION ALL
    SELECT shard, event FROM (
        SELECT shard, event, ROW_NUMBER() OVER (PARTITION BY name ORDER BY seen_at) AS number
        FROM entries WHERE name <> ''
    ) WHERE number = 1
"""
TO_WRITE = """
    SELECT shard, ARRAY_JOIN(ARRAY_AGG(event), CHR(30))
    FROM TABLE(TUMBLE(TABLE events, DESCRIPTOR(seen_at), INTERVAL '0.5' SECOND))
    GROUP BY shard, window_start, window_end
"""
EVENT_END, PART_END = "\x1e", "\x1f"
"""What separates events, and their parts: JSON has neither as it is."""
JUDGED = ("events", "dead_letters", "late", "left_out", "waiting")
"""What records are counted as: left out by the mapping of their source, or waiting in a file for a paused one."""
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


class Validator(KeyedProcessFunction):  # type: ignore[misc]  # pyflink has no types
    """Tells events from dead letters, partition by partition, with the partition's clock.

    Args:
        topics: of sources, as they were allowed where the job was started: its workers have another environment.
    """

    def __init__(self, topics: tuple[str, ...]) -> None:
        self._topics = topics

    def open(self, context: RuntimeContext) -> None:
        """Bind the state."""
        self._clock = context.get_state(ValueStateDescriptor("clock", Types.LONG()))
        log_to_flink()
        settings = load_settings()
        self._shards = settings.stream_shards
        self._sources = TopicSources(lambda: sources_of_topics(settings, self._topics))
        metrics = context.get_metrics_group()
        self._count = {name: metrics.counter(name) for name in JUDGED}

    def process_element(self, block: str, context: Any) -> Iterator[Any]:
        """Some messages of a partition, in its order."""
        known = self._clock.value()
        clock = None if known is None else EPOCH + timedelta(microseconds=known)
        for message, source, is_replay in self._records(block):
            found, clock = validate(message, clock, datetime.now(UTC), is_replay=is_replay, source=source)
            if found is None:
                self._count["left_out"].inc()
            elif isinstance(found, DeadLetter):
                self._count["late" if found.error_class == "late" else "dead_letters"].inc()
                yield DEAD, found.as_json()
            else:
                name = "" if is_replay else seen_name(found)
                self._count["events"].inc()
                yield PART_END.join((name, shard_of(found, self._shards), encode(found)))
        if clock is not None:
            self._clock.update(epoch_micros(clock))

    def _records(self, block: str) -> Iterator[tuple[Message, Source | None, bool]]:
        """The messages of a block; of a source's topic their records. Those of one that is paused wait in a file."""
        for message, is_replay in messages_of(block):
            if message.topic == TOPIC:
                yield message, None, is_replay
            elif (source := self._sources.of(message.topic)) is None:
                self._count["waiting"].inc()
            else:
                yield from ((record, source, is_replay) for record in records_in(message, source))


class WriteBatch(KeyedProcessFunction):  # type: ignore[misc]
    """Writes the events of a tenant's shard.

    It has no state: what a crash leaves half done is read from the checkpoint and written again, which changes nothing.
    """

    def __init__(self, sink: str) -> None:
        self._name = sink

    def open(self, context: RuntimeContext) -> None:
        """Count, and log."""
        log_to_flink()
        self._sink = RetryingSink(self._name, load_settings())
        metrics = context.get_metrics_group()
        self._count = {name: metrics.counter(name) for name in ("written", "refused", "batches", "retries")}
        self._batch_ms = 0
        metrics.gauge("batch_ms", lambda: self._batch_ms)

    def close(self) -> None:
        """Close the store."""
        self._sink.close()

    def process_element(self, block: str, context: Any) -> Iterator[str]:
        """Events that have come within a moment."""
        events = [decode(text) for text in block.split(EVENT_END)]
        at_once = STORES[self._name].batch_events
        for start in range(0, len(events), at_once):
            yield from self._write(events[start : start + at_once])

    def _write(self, events: list[Event]) -> Iterator[str]:
        began, retries = datetime.now(UTC), self._sink.retries
        refused = self._sink.write(events)
        self._batch_ms = (datetime.now(UTC) - began) // timedelta(milliseconds=1)
        self._count["batches"].inc()
        self._count["written"].inc(len(events) - len(refused))
        self._count["refused"].inc(len(refused))
        self._count["retries"].inc(self._sink.retries - retries)
        for event, error in refused:
            event_id, reason = refusal(event, error)
            original = Message(refused_line(event), -1, -1)
            yield DeadLetter(original, f"refused_by_{self._name}", f"event {event_id}: {reason}").as_json()


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


def build(
    environment: StreamExecutionEnvironment, settings: Settings, sinks: Iterable[str], topics: Sequence[str]
) -> None:
    """Wire the job.

    Args:
        environment: of Flink.
        settings: addresses and logins.
        sinks: names of those to write to, of `neo4j`, `cassandra` and `s3`.
        topics: of sources; one that is not there is read as soon as it is.
    """
    tables = StreamTableEnvironment.create(environment)
    tables.get_config().set("table.exec.state.ttl", SEEN_FOR)
    tables.get_config().set("table.local-time-zone", "UTC")
    # By pattern, and not by name: a topic that is missing stops nobody then.
    pattern = "|".join(re.escape(topic) for topic in (TOPIC, *topics))
    options = {
        "connector": "kafka", "topic-pattern": pattern, "format": "raw", "scan.startup.mode": "group-offsets",
        "properties.group.id": GROUP, "properties.auto.offset.reset": "earliest",
        "properties.isolation.level": "read_committed",
        "scan.topic-partition-discovery.interval": "30 s",
        **{f"properties.{name}": value for name, value in java_kafka_options(settings).items()},
    }  # fmt: skip
    tables.execute_sql(
        "CREATE TEMPORARY TABLE user_events (line BYTES, topic STRING METADATA VIRTUAL, `partition` INT METADATA "
        "VIRTUAL, `offset` BIGINT METADATA VIRTUAL, headers MAP<STRING, BYTES> METADATA VIRTUAL) "
        f"WITH ({_sql_options(options)})"
    )
    # A stream, from which both queries go on: of a table each would read the topic for itself.
    # A savepoint may hold partitions of a topic that no source names any more.
    named = ", ".join(f"'{_sql_text(topic)}'" for topic in (TOPIC, *topics))
    timed_view(tables, "messages", tables.to_data_stream(tables.sql_query(MESSAGES.format(topics=named))))
    validated = keyed(tables, TO_VALIDATE, Types.STRING()).process(Validator(tuple(topics)), output_type=Types.STRING())
    validated = validated.name("validate").uid("validate")
    dead = validated.get_side_output(DEAD)
    timed_view(tables, "validated", validated)
    tables.create_temporary_view("entries", tables.sql_query(VALIDATED))
    timed_view(tables, "events", tables.to_data_stream(tables.sql_query(FIRST_OF_EACH_NAME)))
    batches = keyed(tables, TO_WRITE, Types.STRING())
    for name in sinks:
        if name == "s3":
            text = get_gateway().jvm.org.apache.flink.table.api.DataTypes.STRING()
            lines = DataStream(tables._j_tenv.toDataStream(tables.sql_query(LINES)._j_table, text))
            lines.sink_to(landed_files(settings)).name("landed files").uid("landed-files")
            write_topic_files(tables, settings)
        else:
            refused = batches.process(WriteBatch(name), output_type=Types.STRING()).name(name).uid(f"to-{name}")
            dead = dead.union(refused)
    kept = dead.map(KeepDeadLetter(), output_type=Types.STRING()).name("dead letters").uid("dead-letters")
    kept.sink_to(dead_letter_topic(settings)).name("topic of dead letters").uid("dead-letter-topic")


def timed_view(tables: StreamTableEnvironment, name: str, stream: DataStream) -> None:
    """A view of a stream, with `seen_at`, the moment in which a row is looked at."""
    schema = Schema.new_builder().column_by_expression("seen_at", "PROCTIME()").build()
    tables.create_temporary_view(name, tables.from_data_stream(stream, schema))


def keyed(tables: StreamTableEnvironment, query: str, key: Any) -> KeyedStream:
    """Texts of a query, keyed; as `key_by` makes them, but for its Python operator that works out the key.

    Args:
        tables: where the query's tables are.
        query: of two columns: the key, and a text.
        key: type of the key.
    """
    with_key = tables.to_append_stream(tables.sql_query(query), Types.ROW([key, Types.STRING()]))
    selector = get_gateway().jvm.KeyByKeySelector()
    by_key = with_key._j_data_stream.keyBy(selector, Types.ROW([key]).get_java_type_info())
    return KeyedStream(by_key, Types.STRING(), with_key)


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


def write_topic_files(tables: StreamTableEnvironment, settings: Settings) -> None:
    """Write the messages of sources' topics into files by topic and day, each there once and whole."""
    options = {
        "connector": "filesystem", "path": f"s3://{settings.bucket}/{TOPIC_EVENTS}", "format": "raw",
        "raw.charset": BYTES, "sink.rolling-policy.file-size": f"{FILE_BYTES} b",
        "sink.rolling-policy.rollover-interval": f"{FILE_MS} ms",
        "sink.rolling-policy.inactivity-interval": f"{IDLE_MS} ms",
        "sink.rolling-policy.check-interval": f"{IDLE_MS} ms",
    }  # fmt: skip
    tables.execute_sql(
        "CREATE TEMPORARY TABLE topic_files (line STRING, topic STRING, `date` STRING) "
        f"PARTITIONED BY (topic, `date`) WITH ({_sql_options(options)})"
    )
    together = tables.create_statement_set()
    together.add_insert_sql(LINES_OF_SOURCES)
    together.attach_as_datastream()


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


def _sql_options(options: Mapping[str, str]) -> str:
    return ", ".join(f"'{name}' = '{_sql_text(value)}'" for name, value in options.items())


def main(arguments: list[str]) -> None:
    """Hand the job over: `job.py SINK … topic=NAME …`."""
    environment = StreamExecutionEnvironment.get_execution_environment()
    topics = [one.removeprefix("topic=") for one in arguments if one.startswith("topic=")]
    # Shown with the job: by this it is known whether it reads what sources name now.
    environment.get_config().set_global_job_parameters({TOPICS_OF_SOURCES: ",".join(topics)})
    build(environment, load_settings(), [one for one in arguments if not one.startswith("topic=")], topics)
    environment.execute(JOB)
