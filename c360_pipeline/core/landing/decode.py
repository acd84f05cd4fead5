"""Landing: lines become events or dead letters, and each line is counted once.

Belongs here: decoding lines, and deciding which events are new. Not here: reading files, writing tables. A delivery is
one content of one file: its address and the etag that the store gave to the content.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from c360_pipeline.core.arrays.row_hashes import identity_hash, user_hash
from c360_pipeline.core.catalog.tables import DEAD_LETTERS, EVENTS
from c360_pipeline.core.contract.columns import parse_block
from c360_pipeline.core.contract.events import Event, Rejected, parse_event
from c360_pipeline.errors import ContractError

BOM = b"\xef\xbb\xbf"
NEWLINE = 0x0A
LONGEST_LINE_BYTES = 64 * 1024 * 1024
"""Longer lines are never in memory as a whole."""
DELIVERY = ["source_uri", "source_etag"]
PLACE = [*DELIVERY, "source_line"]
ARCHIVED_FACTS = ["tenant_id", "event_id", "content_hash", *PLACE]
"""Columns of archive rows that decide about an event with their id."""
REJECTED_SCHEMA = DEAD_LETTERS.empty().with_columns(user_id=pl.lit(None, pl.String)).schema
"""Columns of rejected lines: those of `DEAD_LETTERS`, and who is named in the line, where that can be read."""


class Delivery(NamedTuple):
    """One content of one file."""

    source_uri: str
    source_etag: str


class Line(NamedTuple):
    """One line of a delivery, without its newline; `number` counts from 1, `offset` is in uncompressed bytes."""

    delivery: Delivery
    number: int
    offset: int
    raw: bytes


@dataclass(frozen=True)
class LineBlock:
    """Consecutive whole lines of one file.

    Attributes:
        delivery: the file.
        first_number: number of the first line, counted from 1.
        first_offset: where the block begins in the uncompressed file, in bytes.
        content: the lines with their newlines; the last line of a file may have none.
    """

    delivery: Delivery
    first_number: int
    first_offset: int
    content: bytes

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each line begins in `content`, and where the last one ends."""
        ends = np.flatnonzero(np.frombuffer(self.content, np.uint8) == NEWLINE) + 1
        starts = np.concatenate(([0], ends)).astype(np.int64)
        return starts if starts[-1] == len(self.content) else np.append(starts, len(self.content))

    def line(self, index: int) -> Line:
        """A line by its index in the block."""
        start, end = int(self.starts[index]), int(self.starts[index + 1])
        raw = self.content[start:end].removesuffix(b"\n")
        return Line(self.delivery, self.first_number + index, self.first_offset + start, raw)


@dataclass(frozen=True)
class LongLine:
    """A line that is too long to be held; `pieces` are its bytes, to be taken before the next block is asked for."""

    delivery: Delivery
    number: int
    offset: int
    pieces: Iterator[bytes]


@dataclass(frozen=True)
class Decoded:
    """Lines after the contract.

    Attributes:
        events: rows of `EVENTS`, in the order of the blocks; `content_hash` is there on every row.
        rejected: one row per rejected line, of `REJECTED_SCHEMA`.
        lines: lines of each delivery that are not blank.
    """

    events: pl.DataFrame
    rejected: pl.DataFrame
    lines: Counter[Delivery]

    @classmethod
    def together(cls, parts: Iterable["Decoded"]) -> "Decoded":
        """One after the other."""
        parts = list(parts)
        return cls(
            pl.concat([EVENTS.empty(), *(part.events for part in parts)]),
            pl.concat([pl.DataFrame(schema=REJECTED_SCHEMA), *(part.rejected for part in parts)]),
            sum((part.lines for part in parts), Counter()),
        )


NEW, HELD, DUPLICATE, CONFLICT = range(4)


@dataclass(frozen=True)
class Classified:
    """Events after comparison with the archive.

    Attributes:
        events: rows of `EVENTS`.
        verdicts: of each event, NEW: the archive does not hold it; HELD: it is there from this very line, by an earlier
            try; DUPLICATE: it is there from another line; CONFLICT: its id is taken by an event of other content.
        takers: of each conflict in turn, `taken_by_uri` and `taken_by_line` of the event that has the id.
    """

    events: pl.DataFrame
    verdicts: pl.Series
    takers: pl.DataFrame

    def of(self, *verdicts: int) -> pl.DataFrame:
        """The events with one of these verdicts."""
        chosen = self.verdicts.is_in(verdicts)
        return self.events if chosen.all() else self.events.filter(chosen)

    @property
    def to_append(self) -> pl.DataFrame:
        """Events that the archive does not hold."""
        return self.of(NEW)

    @property
    def landed(self) -> pl.DataFrame:
        """Events that the archive holds from these lines once `to_append` is there."""
        return self.of(NEW, HELD)

    @property
    def duplicates(self) -> pl.DataFrame:
        """Events that the archive holds from other lines."""
        return self.of(DUPLICATE)

    @property
    def conflicts(self) -> pl.DataFrame:
        """Events whose id is taken, with the place of the event that has it."""
        return self.of(CONFLICT).hstack(self.takers)

    def count(self, *verdicts: int) -> Counter[Delivery]:
        """Events with one of these verdicts, by delivery."""
        return count_by_delivery(self.events.select(DELIVERY).filter(self.verdicts.is_in(verdicts)))


def count_by_delivery(rows: pl.DataFrame) -> Counter[Delivery]:
    """Rows per delivery."""
    return Counter({Delivery(uri, etag): n for uri, etag, n in rows.group_by(DELIVERY).len().iter_rows()})


def line_blocks(delivery: Delivery, pieces: Iterable[bytes]) -> Iterator[LineBlock | LongLine]:
    """Cut a file into blocks of whole lines, about as long as the pieces that it comes in.

    Blank lines count in the numbering and for nothing else: they hold nothing that could be lost. A byte order mark
    at the start of the file is not part of its first line. Where the file breaks off, what there is of its last line
    is a line.

    Raises:
        ContractError: as `pieces` does, after everything before it was handed out.
    """
    cutter = _Cutter(delivery)
    source = iter(pieces)
    try:
        for piece in source:
            if cutter.take(piece):
                yield cutter.block()
            if len(cutter.carried) > LONGEST_LINE_BYTES:
                yield LongLine(delivery, cutter.number, cutter.offset, cutter.rest_of_line(source))
    except ContractError:
        yield from cutter.last()
        raise
    yield from cutter.last()


class _Cutter:
    """The state of `line_blocks`: where in the file it is, and what there is of the next line."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._is_start = True
        self._whole = b""
        self.number = 1
        self.offset = 0
        self.carried = b""

    def take(self, piece: bytes) -> bool:
        """Take a piece; whether there are whole lines now."""
        content = self.carried + piece
        if self._is_start and not (len(content) < len(BOM) and BOM.startswith(content)):
            self._is_start = False
            self.offset = len(BOM) if content.startswith(BOM) else 0
            content = content[self.offset :]
        end = content.rfind(b"\n") + 1
        self._whole, self.carried = content[:end], content[end:]
        return end > 0

    def block(self) -> LineBlock:
        """The whole lines."""
        block = LineBlock(self._delivery, self.number, self.offset, self._whole)
        self.number += len(block.starts) - 1
        self.offset += len(block.content)
        return block

    def rest_of_line(self, source: Iterator[bytes]) -> Iterator[bytes]:
        """The bytes of the line that has begun, up to its newline; what follows is carried on."""
        piece, self.carried = self.carried, b""
        while piece:
            line, newline, rest = piece.partition(b"\n")
            self.offset += len(line) + len(newline)
            yield line
            if newline:
                self.carried = rest
                break
            piece = next(source, b"")
        self.number += 1

    def last(self) -> Iterator[LineBlock]:
        """What there is behind the last newline."""
        if self.carried:
            yield LineBlock(self._delivery, self.number, self.offset, self.carried)


def decode(block: LineBlock, now: datetime) -> Decoded:
    """Hold each line against the contract.

    Args:
        block: the lines.
        now: the moment of landing, UTC.
    """
    parsed = parse_block(block.content, block.starts, now)
    events: list[tuple[Event, Line]] = []
    rejected: list[tuple[Rejected, Line]] = []
    for line in map(block.line, parsed.left.tolist()):
        try:
            events.append((parse_event(line.raw, now), line))
        except Rejected as reason:
            rejected.append((reason, line))
    usual = parsed.events.with_columns(
        event_date=pl.col("ts").dt.date(),
        source_uri=pl.lit(block.delivery.source_uri),
        source_etag=pl.lit(block.delivery.source_etag),
        source_line=pl.col("number") + block.first_number,
        landed_at=pl.lit(now).cast(pl.Datetime("us", "UTC")),
    ).select(list(EVENTS.columns))
    frame = pl.concat([usual, _event_frame(events, now)]) if events else usual
    return Decoded(frame, rejected_frame(rejected, now), Counter({block.delivery: parsed.line_count}))


def decode_file(delivery: Delivery, content: bytes, now: datetime) -> Decoded:
    """Hold each line of a small file against the contract; lines too long to be held are left out."""
    blocks = line_blocks(delivery, [content])
    return Decoded.together(decode(block, now) for block in blocks if isinstance(block, LineBlock))


def _event_frame(events: list[tuple[Event, Line]], now: datetime) -> pl.DataFrame:
    columns = {
        **{name: [getattr(event, name) for event, _ in events] for name in Event._fields},
        "event_date": [event.ts.date() for event, _ in events],
        "source_uri": [line.delivery.source_uri for _, line in events],
        "source_etag": [line.delivery.source_etag for _, line in events],
        "source_line": [line.number for _, line in events],
        "landed_at": [now] * len(events),
    }
    schema = EVENTS.empty().schema
    return pl.DataFrame({name: columns[name] for name in schema}, schema=schema)


def rejected_frame(rejected: Iterable[tuple[Rejected, Line]], now: datetime) -> pl.DataFrame:
    """Rows of `REJECTED_SCHEMA`, open dead letters first seen now."""
    rows = [
        {
            "dead_letter_id": hashlib.sha256(line.raw).hexdigest(), **line.delivery._asdict(),
            "source_line": line.number, "byte_offset": line.offset, "raw": line.raw,
            "error_class": reason.error_class, "reason": str(reason), "tenant_id": reason.tenant_id,
            "user_id": reason.user_id, "first_seen_at": now, "status": "open", "resolved_at": None, "resolution": None,
        }
        for reason, line in rejected
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=REJECTED_SCHEMA)


def split_suppressed(rows: pl.DataFrame, suppressed: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Part rows into those that may land and those of suppressed users.

    Args:
        rows: with tenant_id and user_id, either of which may be null.
        suppressed: tenant_id and user_hash, as `user_hash` makes it.
    """
    if suppressed.is_empty():
        return rows, rows.clear()
    users = rows.select("tenant_id", "user_id").unique().with_columns(user_hash=user_hash())
    found = users.join(suppressed, on=["tenant_id", "user_hash"], how="semi")
    key = ["tenant_id", "user_id"]
    return (
        rows.join(found, on=key, how="anti", maintain_order="left"),
        rows.join(found, on=key, how="semi", maintain_order="left"),
    )


def classify(events: pl.DataFrame, archived: pl.DataFrame) -> Classified:
    """Decide which events are new.

    The first of several lines with one identity wins, in the archive before the batch and in the batch by line. A row
    that the archive holds from this very line of this very delivery is an earlier, interrupted try: landed, not a
    duplicate.

    Args:
        events: rows of `EVENTS`.
        archived: `ARCHIVED_FACTS` of the archive rows with the ids of these events.
    """
    key = EVENTS.key
    hashes = identity_hash(events, key)
    # An event whose hash nothing else has is new; only the others are looked at closely.
    is_alone = ~(hashes.is_duplicated() | hashes.is_in(identity_hash(archived, key).implode()))
    verdicts = pl.Series(np.full(events.height, NEW, np.int8))
    if is_alone.all():
        return Classified(events, verdicts, _TAKERS_OF_NONE)
    close = events.select(ARCHIVED_FACTS).with_row_index("row").filter(~is_alone)
    by_line = close.sort(pl.col("row").min().over(DELIVERY), "source_line")
    judged = _judged(by_line, archived).sort("row")
    verdicts = verdicts.scatter(judged["row"], judged["verdict"])
    takers = judged.filter(pl.col("verdict") == CONFLICT).select(_TAKERS_OF_NONE.columns)
    return Classified(events, verdicts, takers)


_TAKERS_OF_NONE = pl.DataFrame(schema={"taken_by_uri": pl.String, "taken_by_line": pl.Int64})


def _judged(events: pl.DataFrame, archived: pl.DataFrame) -> pl.DataFrame:
    """Verdicts on events, and who took the ids of conflicts; in the order of the events."""
    key, facts = list(EVENTS.key), ["content_hash", *PLACE]
    first = events.unique(subset=key, keep="first", maintain_order=True).join(archived, on=key, how="anti")
    winners = pl.concat(
        [
            archived.select(*key, *facts, is_new=pl.lit(value=False)),
            first.select(*key, *facts, is_new=pl.lit(value=True)),
        ]
    ).with_columns(pl.col("content_hash").fill_null(pl.col("event_id")))
    judged = events.join(winners, on=key, how="left", suffix="_winner", maintain_order="left")
    is_winner = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_winner")) for name in PLACE)
    is_same = pl.col("content_hash") == pl.col("content_hash_winner")
    verdict = (
        pl.when(~is_same)
        .then(CONFLICT)
        .when(~is_winner)
        .then(DUPLICATE)
        .when(pl.col("is_new"))
        .then(NEW)
        .otherwise(HELD)
    )
    return judged.select(
        "row",
        verdict=verdict.cast(pl.Int8),
        taken_by_uri="source_uri_winner",
        taken_by_line="source_line_winner",
    )


def difference(before: pl.DataFrame, after: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What to write and what to remove so that the archive holds `after` in place of `before`.

    Args:
        before: rows of the archive.
        after: rows that should be there; `content_hash` is there on every row.

    Returns:
        Rows of `after` that are new or from another line or of other content, as the archive keeps them; and rows of
        `before` with an id and day that `after` does not have.
    """
    identity = ["tenant_id", "event_date", "event_id"]
    known = before.with_columns(pl.col("content_hash").fill_null(pl.col("event_id")))
    changed = after.join(known, on=[*identity, "content_hash", *PLACE], how="anti", maintain_order="left")
    return stored_events(changed), before.join(after, on=identity, how="anti")


def rejected_conflicts(
    conflicts: pl.DataFrame, line_at: Callable[[Delivery, int], Line], now: datetime
) -> pl.DataFrame:
    """Rejected lines, for events that reuse an id with other content.

    Args:
        conflicts: as `classify` returns them.
        line_at: the line of a delivery by its number.
        now: the moment of landing, UTC.
    """
    rejected = [
        (
            Rejected(
                "duplicate_id_conflict",
                f"event id {row['event_id']!r} is taken by another event, line {row['taken_by_line']} of "
                f"{row['taken_by_uri']}; give every event an id of its own",
                row["tenant_id"],
                row["user_id"],
            ),
            line_at(Delivery(row["source_uri"], row["source_etag"]), row["source_line"]),
        )
        for row in conflicts.iter_rows(named=True)
    ]
    return rejected_frame(rejected, now)


def line_in(blocks: Iterable[LineBlock], delivery: Delivery, number: int) -> Line:
    """The line of a delivery by its number, from blocks of which one holds it."""
    return next(
        block.line(number - block.first_number)
        for block in blocks
        if block.delivery == delivery and 0 <= number - block.first_number < len(block.starts) - 1
    )


def stored_events(events: pl.DataFrame) -> pl.DataFrame:
    """Events as the archive keeps them: a hash that is the event's id is not written twice."""
    own_hash = pl.when(pl.col("content_hash") != pl.col("event_id")).then(pl.col("content_hash"))
    return events.with_columns(content_hash=own_hash)
