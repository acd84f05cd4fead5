"""The topic read from outside the job: what was sent, as the job validates it."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Delivered

from c360_pipeline.core.contract.events import EPOCH
from c360_pipeline.core.contract.frames import CONTENT, EVENT_SCHEMA, TEXT_COLUMNS, Types
from c360_pipeline.core.projection.graph import attributes_text
from c360_pipeline.core.sources.source import NO_SOURCES, Source, Sources
from c360_pipeline.errors import UnavailableError
from c360_pipeline.settings import Settings
from c360_pipeline.streaming.clients import TOPIC, kafka_options
from c360_pipeline.streaming.operators import REPLAY_HEADER, validate_all

SECONDS = 15.0
AT_ONCE = 10_000
"""Messages that are in memory together."""
WAIT_SECONDS = 0.5
READER = "c360-verify"
SENT: Types = {
    **CONTENT,
    **{name: EVENT_SCHEMA[name] for name in ("anonymous_id", "items", "traits", "consent")},
    "is_late": pl.Boolean,
    "topic": pl.String,
    "partition": pl.Int64,
    "offset": pl.Int64,
    "sent_at": pl.Datetime("us", "UTC"),
}


Place = tuple[str, int]
"""Topic and partition."""
Ends = dict[Place, tuple[int, int]]
"""By place: its first offset, and the one after its last."""


@dataclass(frozen=True)
class Validated:
    """Some messages of one partition.

    Attributes:
        messages: how many.
        dead_letters: records in them that are no events.
        events: `SENT` rows of those that are events; an id can be there several times.
    """

    messages: int
    dead_letters: int
    events: pl.DataFrame


@dataclass(frozen=True)
class Reading:
    """Messages that are there to be read.

    Attributes:
        at_most: how many.
        validated: what becomes of them, partition by partition in their order; at most `AT_ONCE` in memory.
    """

    at_most: int
    validated: Iterator[Validated]


class TopicReader:
    """Reads what was sent.

    Args:
        settings: of Kafka.
        sources: of which those of a topic are read beside the product's own.
    """

    def __init__(self, settings: Settings, sources: Sources = NO_SOURCES) -> None:
        self._sources: dict[str, Source | None] = {source.topic: source for source in sources if source.topic}
        self._sources[TOPIC] = None
        self._options = {
            **kafka_options(settings), "group.id": READER, "enable.auto.commit": False,
            "auto.offset.reset": "earliest", "enable.partition.eof": True,
        }  # fmt: skip

    def sent(self, since: datetime | None, now: datetime) -> Reading:
        """What was sent until now, validated as the job does.

        Args:
            since: messages of this moment and later; all that Kafka has where it is None.
            now: the instant of the validation.

        Raises:
            UnavailableError: Kafka does not answer; while it is read, too.
        """
        return self._reading(lambda consumer, ends: _begins(consumer, ends, since), now)

    def newest(self, count: int, now: datetime) -> pl.DataFrame:
        """The events among the newest messages of each partition: `SENT` rows, each event once.

        Raises:
            UnavailableError: Kafka does not answer.
        """
        begins = lambda _, ends: {p: max(begin, end - count) for p, (begin, end) in ends.items()}  # noqa: E731
        found = [validated.events for validated in self._reading(begins, now).validated]
        return each_once(pl.concat([pl.DataFrame(schema=SENT), *found]))

    def _reading(self, begins_of: Callable[[Consumer, Ends], dict[Place, int]], now: datetime) -> Reading:
        consumer = Consumer(self._options)
        try:
            known = partitions_of(consumer, self._sources)
            ends = {(p.topic, p.partition): consumer.get_watermark_offsets(p, timeout=SECONDS) for p in known}
            begins = begins_of(consumer, ends)
        except KafkaException as error:
            consumer.close()
            raise UnavailableError(f"Kafka does not answer: {error}") from error
        left = {p: (begins[p], end) for p, (_, end) in ends.items() if begins[p] < end}
        return Reading(sum(end - begin for begin, end in left.values()), _validated(consumer, left, self._sources, now))


def each_once(events: pl.DataFrame) -> pl.DataFrame:
    """Of the `SENT` rows of an id the first; a late event may have come in time before, or come again."""
    first = events.sort("is_late", "topic", "partition", "offset")
    return first.unique(["tenant_id", "event_id"], keep="first", maintain_order=True)


def partitions_of(consumer: Consumer, topics: Iterable[str]) -> list[TopicPartition]:
    """The partitions of topics; those of sources may be missing, and have none then.

    Raises:
        KafkaException: Kafka does not answer, or has no topic of events.
    """
    there = consumer.list_topics(timeout=SECONDS).topics
    if TOPIC not in there:
        raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, f"there is no topic {TOPIC}"))
    return [TopicPartition(topic, p) for topic in topics if topic in there for p in there[topic].partitions]


def _validated(
    consumer: Consumer, left: Ends, sources: Mapping[str, Source | None], now: datetime
) -> Iterator[Validated]:
    clocks: dict[Place, datetime | None] = {}
    for place, messages in _messages(consumer, left):
        values = [one.value() or b"" for one in messages]
        replayed = [REPLAY_HEADER in dict(one.headers() or ()) for one in messages]
        found = validate_all(values, replayed, clocks.get(place), now, sources[place[0]])
        clocks[place] = found.clock
        yield Validated(len(messages), found.dead_letters, _sent(found.events, place, messages))


def _sent(found: pl.DataFrame, place: Place, messages: list[Delivered]) -> pl.DataFrame:
    """`SENT` rows of the events among some messages."""
    millis = pl.Series([one.timestamp()[1] for one in messages], dtype=pl.Int64)[found["number"]]
    return found.select(
        *TEXT_COLUMNS, "anonymous_id", "items", "is_late",
        attributes_text(found["attrs"]).alias("attrs"),
        *(pl.col(name).cast(EVENT_SCHEMA[name]) for name in ("traits", "consent")),
        pl.Series("offset", [one.offset() for one in messages], dtype=pl.Int64)[found["number"]],
        micros=pl.col("ts").dt.epoch("us"), topic=pl.lit(place[0]), partition=pl.lit(place[1], pl.Int64),
        sent_at=millis.cast(pl.Datetime("ms", "UTC")).cast(pl.Datetime("us", "UTC")),
    ).select(list(SENT))  # fmt: skip


def _messages(consumer: Consumer, left: Ends) -> Iterator[tuple[Place, list[Delivered]]]:
    """The messages of each partition up to its end, in order, some at a time."""
    todo = dict(left)
    try:
        consumer.assign([TopicPartition(*place, begin) for place, (begin, _) in todo.items()])
        deadline = time.monotonic() + SECONDS
        while todo:
            batch = consumer.consume(AT_ONCE, timeout=WAIT_SECONDS)
            if batch:
                deadline = time.monotonic() + SECONDS
            elif time.monotonic() > deadline:
                raise UnavailableError(f"Kafka does not deliver the messages of partitions {sorted(todo)}.")
            parts: dict[Place, list[Delivered]] = {}
            for one in batch:
                place, is_message, is_last = _place_of(one, left)
                if is_message:
                    parts.setdefault(place, []).append(one)
                if is_last:
                    todo.pop(place, None)
            yield from parts.items()
    except KafkaException as error:
        raise UnavailableError(f"Kafka does not answer: {error}") from error
    finally:
        consumer.close()


def _place_of(one: Delivered, ends: Ends) -> tuple[Place, bool, bool]:
    """Topic and partition; whether this is one of its messages before the end; and whether no more of them come."""
    place, offset, error = (one.topic() or TOPIC, one.partition() or 0), one.offset() or 0, one.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise UnavailableError(f"Kafka does not deliver: {error}")
    end = ends[place][1]
    is_message = error is None and offset < end and one.value() is not None
    return place, is_message, error is not None or offset >= end - 1


def _begins(consumer: Consumer, ends: Ends, since: datetime | None) -> dict[Place, int]:
    if since is None:
        return {p: begin for p, (begin, _) in ends.items()}
    millis = (since - EPOCH) // timedelta(milliseconds=1)
    found = consumer.offsets_for_times([TopicPartition(*place, millis) for place in ends], timeout=SECONDS)
    places = {(p.topic, p.partition): p.offset for p in found}
    return {place: offset if offset >= 0 else ends[place][1] for place, offset in places.items()}
