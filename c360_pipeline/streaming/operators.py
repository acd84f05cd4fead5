"""What the stream decides of every message: event, dead letter or late; pure, as in the batch path.

Lateness is decided by a clock of each partition, the newest event that it has delivered, and not by the watermark
that Flink sends round every 200 ms: so that a stream that is read again is validated as it was (docs/adr/0036).
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import polars as pl

from c360_pipeline.core.contract.events import EPOCH, Event, Rejected, epoch_micros, load_object, parse_event
from c360_pipeline.core.contract.layout import INSTANTS
from c360_pipeline.core.landing.decode import decode as decode_lines
from c360_pipeline.core.landing.decode import decode_records
from c360_pipeline.core.landing.lines import Delivery, LineBlock
from c360_pipeline.core.sources.decode import event_from
from c360_pipeline.core.sources.mapping import Skipped
from c360_pipeline.core.sources.source import Source
from c360_pipeline.stages.sources.topics import LINE_BREAKS, records_of
from c360_pipeline.streaming.clients import TOPIC

LATENESS = timedelta(minutes=2)
"""How far an event may lie behind the newest of its partition. Source: "Real-Time User Event Streaming System"."""
LATE = "late"
REPLAY_HEADER = "c360-replay"
"""Of messages that come from the archive."""
IN_A_LIST = ("event_id", "tenant_id", "user_id", "session_id", "ts", "action", "item_id", "attrs", "content_hash")
"""What release 0.1.0 wrote between two operators, by position."""
BYTES = "ISO-8859-1"
"""A text of this encoding has one character for each byte: how bytes go through what knows texts only."""
HEADER_CHARACTERS = 320
"""What stands before a message in a block is shorter."""


class Message(NamedTuple):
    """What Kafka delivered: the bytes, and where they lie."""

    value: bytes
    partition: int
    offset: int
    topic: str = TOPIC


def messages_of(block: str) -> Iterator[tuple[Message, bool]]:
    """The messages of a block, and whether each comes from the archive.

    Args:
        block: of each message topic, partition, offset, whether it is a replay, how long it is, and its bytes as
            `BYTES`.
    """
    end = 0
    while end < len(block):
        header = block[end : end + HEADER_CHARACTERS].split(" ", 5)[:5]
        topic, partition, offset, replay, length = header
        start = end + sum(map(len, header)) + len(header)
        end = start + int(length)
        yield Message(block[start:end].encode(BYTES), int(partition), int(offset), topic), bool(replay)


@dataclass(frozen=True)
class DeadLetter:
    """A message that the sinks of the stream do not get; its bytes are in the landed file, too.

    Attributes:
        message: what came.
        error_class: of the contract, or `late`.
        reason: for its producer.
        late_event: of a late one, the event, which the batch path brings.
    """

    message: Message
    error_class: str
    reason: str
    late_event: Event | None = None

    @property
    def letter_id(self) -> str:
        """sha256 of the bytes in hex, which is what the dead letter is called everywhere."""
        return hashlib.sha256(self.message.value).hexdigest()

    def as_json(self) -> str:
        """As the topic of dead letters has it; the bytes in base64."""
        return json.dumps({
            "dead_letter_id": self.letter_id, "error_class": self.error_class, "reason": self.reason,
            "topic": self.message.topic, "partition": self.message.partition, "offset": self.message.offset,
            "value": base64.b64encode(self.message.value).decode(),
        })  # fmt: skip


def records_in(message: Message, source: Source) -> list[Message]:
    """The records of a message of a source's topic, each with its place; landing finds the same in its file."""
    return [message._replace(value=record) for record in records_of(message.value, source.framing)]


def validate(
    message: Message,
    clock: datetime | None,
    now: datetime,
    *,
    is_replay: bool = False,
    source: Source | None = None,
) -> tuple[Event | DeadLetter | None, datetime | None]:
    """Decide what becomes of a message.

    Args:
        message: as it came; of a source's topic, one of its records.
        clock: of its partition; None before the first event.
        now: the moment of the decision.
        is_replay: whether it comes from the archive: never late, whatever its age.
        source: whose topic it is of; None of the product's own, whose messages are events as the contract has them.

    Returns:
        The event, a dead letter, or None where the source's mapping leaves it out; and the clock after it. A clock does
        not pass `now`: a device whose calendar runs ahead makes nobody else late.
    """
    try:
        if source is None:
            event = parse_event(message.value, now)
        else:
            event = event_from(load_object(message.value), source.mapping, now)
    except Skipped:
        return None, clock
    except Rejected as rejected:
        return DeadLetter(message, rejected.error_class, rejected.reason), clock
    if is_replay:
        return event, clock
    if clock is not None and clock - event.ts > LATENESS:
        behind = (clock - event.ts).total_seconds()
        said = f"{behind:,.3f} s behind the newest event of its partition, {LATENESS.total_seconds():.0f} s are allowed"
        return DeadLetter(message, LATE, said, event), clock
    newest = min(event.ts, now)
    moved = newest if clock is None else max(clock, newest)
    return event, moved


class Judged(NamedTuple):
    """What became of many messages of one partition.

    Attributes:
        events: those that are events, late or not: `number` (index of the message), the columns of `EVENTS` and
            `is_late`, in order.
        dead_letters: how many records are none.
        clock: of the partition after them.
    """

    events: pl.DataFrame
    dead_letters: int
    clock: datetime | None


def validate_all(
    values: Sequence[bytes],
    is_replay: Sequence[bool],
    clock: datetime | None,
    now: datetime,
    source: Source | None = None,
) -> Judged:
    """Decide what becomes of many messages of one partition at once, as `validate` does of each.

    Args:
        values: the messages, in the order of the partition; less than 2 GiB.
        is_replay: of each whether it comes from the archive.
        clock: of the partition before them; None before the first event.
        now: the moment of the decision.
        source: whose topic they are of; None for the product's own.
    """
    if source is None:
        lines = [value.translate(LINE_BREAKS) for value in values]
        numbers = pl.Series(range(len(values)), dtype=pl.Int64)
    else:
        found = [(n, line) for n, value in enumerate(values) for line in records_of(value, source.framing)]
        lines = [line for _, line in found]
        numbers = pl.Series([number for number, _ in found], dtype=pl.Int64)
    block = LineBlock(Delivery("", ""), 0, 0, b"".join(line + b"\n" for line in lines))
    decoded = decode_lines(block, now) if source is None else decode_records(block, now, source)
    events = decoded.events.sort("source_line")
    rows = events.with_columns(numbers.gather(events["source_line"]).alias("number")).drop("source_line")
    replayed = pl.Series("is_replay", is_replay, dtype=pl.Boolean)[rows["number"]]
    # A late event lies behind the clock, and so never is the newest.
    moves = rows.select(pl.when(~replayed).then(pl.min_horizontal("ts", pl.lit(now)))).to_series()
    newest = moves.cum_max().fill_null(strategy="forward")
    before = pl.select(pl.max_horizontal(newest.shift(1), pl.lit(clock, pl.Datetime("us", "UTC")))).to_series()
    is_late = (~replayed & (before - rows["ts"] > LATENESS)).fill_null(value=False)
    times = [time for time in (clock, newest.max()) if isinstance(time, datetime)]
    # An empty message of the product's own topic is a dead letter, and as a line a blank one.
    dead = len(values) - rows.height if source is None else decoded.rejected.height
    return Judged(rows.with_columns(is_late.alias("is_late")), dead, max(times, default=None))


def seen_name(event: Event) -> str:
    """What an event is called among those that were seen: a hash, so that checkpoints hold no id of a person's."""
    return hashlib.blake2b(f"{event.tenant_id}\x1f{event.event_id}".encode(), digest_size=16).hexdigest()


def encode(event: Event) -> str:
    """An event between two operators, as JSON by column; the instant in microseconds."""
    values = {name: epoch_micros(v) if isinstance(v, datetime) else v for name, v in event._asdict().items()}
    return json.dumps(values, ensure_ascii=False)


def decode(text: str) -> Event:
    """The inverse of `encode`; reads what release 0.1.0 left in a savepoint, too."""
    found = json.loads(text)
    values = found if isinstance(found, dict) else dict(zip(IN_A_LIST, found, strict=True))
    instants = {name: EPOCH + timedelta(microseconds=values[name]) for name in INSTANTS if values.get(name) is not None}
    return Event(**{**dict.fromkeys(Event._fields), **values, **instants})


def refused_line(event: Event) -> bytes:
    """An event that a store refuses, as the bytes of its dead letter: JSON of its columns."""
    columns = {name: v.isoformat() if isinstance(v, datetime) else v for name, v in event._asdict().items()}
    del columns["content_hash"]
    return json.dumps(columns, ensure_ascii=False).encode()


def shard_of(event: Event, shards: int) -> str:
    """Tenant and writer of an event, as the key of the sinks; events of one user have one writer.

    Args:
        event: the event.
        shards: writers of one tenant at once.
    """
    return json.dumps([event.tenant_id, zlib.crc32((event.user_id or event.anonymous_id or "").encode()) % shards])
