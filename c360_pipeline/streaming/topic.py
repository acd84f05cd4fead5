"""The topic read from outside the job: what was sent, as the job judges it."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

import polars as pl
from confluent_kafka import Consumer, KafkaException, TopicPartition

from c360_pipeline.core.events import EPOCH
from c360_pipeline.errors import UnavailableError
from c360_pipeline.settings import Settings
from c360_pipeline.streaming.clients import TOPIC, kafka_options
from c360_pipeline.streaming.operators import (
    REPLAY_HEADER,
    DeadLetter,
    Message,
    contents_of,
    judge,
    seen_name,
)

SECONDS = 15.0
AT_ONCE = 5_000
READER = "c360-verify"
CONTENT: dict[str, pl.DataType | type[pl.DataType]] = {
    "tenant_id": pl.String, "event_id": pl.String, "user_id": pl.String, "session_id": pl.String, "micros": pl.Int64,
    "action": pl.String, "item_id": pl.String, "attrs": pl.String,
}  # fmt: skip
"""An event wherever it is: `micros` since 1970 in UTC, `attrs` as JSON with sorted names."""
SENT: dict[str, pl.DataType | type[pl.DataType]] = {
    **CONTENT, "is_late": pl.Boolean, "partition": pl.Int64, "offset": pl.Int64, "sent_at": pl.Datetime("us", "UTC")
}  # fmt: skip


Ends = dict[int, tuple[int, int]]
"""By partition: its first offset, and the one after its last."""


class TopicReader:
    """Reads what was sent.

    Args:
        settings: of Kafka.
    """

    def __init__(self, settings: Settings) -> None:
        self._options = {
            **kafka_options(settings), "group.id": READER, "enable.auto.commit": False,
            "auto.offset.reset": "earliest", "enable.partition.eof": False,
        }  # fmt: skip

    def sent(self, since: datetime | None, now: datetime) -> tuple[pl.DataFrame, dict[str, int]]:
        """The events that were sent until now, each id once, judged partition by partition as the job does.

        Args:
            since: messages of this moment and later; all that Kafka has where it is None.
            now: the moment of the judgement.

        Returns:
            `SENT` rows; and how many messages, dead letters, late events and repetitions there are.

        Raises:
            UnavailableError: Kafka does not answer.
        """
        return self._judged(self._messages(lambda consumer, ends: self._begins(consumer, ends, since)), now)

    def newest(self, count: int, now: datetime) -> pl.DataFrame:
        """The events among the newest messages of each partition: `SENT` rows.

        Raises:
            UnavailableError: Kafka does not answer.
        """
        begins = lambda _, ends: {p: max(begin, end - count) for p, (begin, end) in ends.items()}  # noqa: E731
        return self._judged(self._messages(begins), now)[0]

    @staticmethod
    def _judged(
        messages: Iterable[tuple[Message, bool, datetime]], now: datetime
    ) -> tuple[pl.DataFrame, dict[str, int]]:
        clocks: dict[int, datetime | None] = {}
        seen: set[str] = set()
        counts = dict.fromkeys(("messages", "dead_letters", "late", "duplicates"), 0)
        rows: list[tuple[Any, ...]] = []
        for message, is_replay, sent_at in messages:
            counts["messages"] += 1
            clock = clocks.get(message.partition)
            found, clocks[message.partition] = judge(message, clock, now, is_replay=is_replay)
            if isinstance(found, DeadLetter) and found.late_event is None:
                counts["dead_letters"] += 1
                continue
            event = found.late_event if isinstance(found, DeadLetter) else found
            if event is None or seen_name(event) in seen:
                counts["duplicates"] += 1
                continue
            is_late = isinstance(found, DeadLetter)
            if not is_late:
                seen.add(seen_name(event))
            rows.append((*contents_of(event), is_late, message.partition, message.offset, sent_at))
        frame = pl.DataFrame(rows, schema=SENT, orient="row")
        # A late event may have come in time before, or come again.
        first = frame.sort("is_late", "partition", "offset").unique(["tenant_id", "event_id"], keep="first")
        return first, counts | {"late": int(first["is_late"].sum())}

    def _messages(
        self, begins_of: Callable[[Consumer, Ends], dict[int, int]]
    ) -> Iterator[tuple[Message, bool, datetime]]:
        consumer = Consumer(self._options)
        try:
            known = consumer.list_topics(TOPIC, timeout=SECONDS).topics[TOPIC].partitions
            ends = {p: consumer.get_watermark_offsets(TopicPartition(TOPIC, p), timeout=SECONDS) for p in known}
            begins = begins_of(consumer, ends)
            left = {p for p, (_, end) in ends.items() if begins[p] < end}
            consumer.assign([TopicPartition(TOPIC, p, begins[p]) for p in left])
            while left:
                batch = consumer.consume(AT_ONCE, timeout=SECONDS)
                if not batch:
                    raise UnavailableError(f"Kafka does not deliver the messages of partitions {sorted(left)}.")
                if failed := [one.error() for one in batch if one.error()]:
                    raise UnavailableError(f"Kafka does not deliver: {failed[0]}")
                for one in batch:
                    partition, offset = one.partition() or 0, one.offset() or 0
                    end = ends[partition][1]
                    if offset >= end - 1:
                        left.discard(partition)
                    if offset < end and (value := one.value()) is not None:
                        at = EPOCH + timedelta(milliseconds=one.timestamp()[1])
                        replayed = REPLAY_HEADER in dict(one.headers() or ())
                        yield Message(bytes(value), partition, offset), replayed, at
        except KafkaException as error:
            raise UnavailableError(f"Kafka does not answer: {error}") from error
        finally:
            consumer.close()

    @staticmethod
    def _begins(consumer: Consumer, ends: dict[int, tuple[int, int]], since: datetime | None) -> dict[int, int]:
        if since is None:
            return {p: begin for p, (begin, _) in ends.items()}
        millis = (since - EPOCH) // timedelta(milliseconds=1)
        found = consumer.offsets_for_times([TopicPartition(TOPIC, p, millis) for p in ends], timeout=SECONDS)
        return {p.partition: p.offset if p.offset >= 0 else ends[p.partition][1] for p in found}
