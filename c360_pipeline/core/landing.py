"""Landing: lines become events or dead letters, and each line is counted once.

Belongs here: decoding lines, and deciding which events are new. Not here: reading files, writing tables.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from c360_pipeline.core.event_columns import ParsedBlock, parse_block
from c360_pipeline.core.events import ERROR_CLASSES, Event, Rejected, parse_event
from c360_pipeline.core.lake import DEAD_LETTERS, EVENTS
from c360_pipeline.errors import ContractError

BOM = b"\xef\xbb\xbf"
NEWLINE = 0x0A
LONGEST_LINE_BYTES = 64 * 1024 * 1024
"""Longer lines are not kept as dead letters: the file is refused, so that memory stays bounded."""
BLANKS = " \t\n\r\x0b\x0c"


class Line(NamedTuple):
    """One line of a landing file, without its newline; `number` counts from 1, `offset` is in uncompressed bytes."""

    source_uri: str
    number: int
    offset: int
    raw: bytes


@dataclass(frozen=True)
class LineBlock:
    """Consecutive whole lines of one file.

    Attributes:
        source_uri: the file.
        first_number: number of the first line, counted from 1.
        first_offset: where the block begins in the uncompressed file, in bytes.
        content: the lines with their newlines; the last line of a file may have none.
    """

    source_uri: str
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
        return Line(self.source_uri, self.first_number + index, self.first_offset + start, raw)


@dataclass(frozen=True)
class Decoded:
    """A batch of lines after the contract.

    Attributes:
        events: rows of `EVENTS`, in the order of the lines.
        dead: rows of `DEAD_LETTERS`, one per rejected line.
    """

    events: pl.DataFrame
    dead: pl.DataFrame


@dataclass(frozen=True)
class Classified:
    """A batch of events after comparison with the archive.

    Attributes:
        landed: rows that are in the archive once this batch is committed, by this batch or by an earlier try.
        to_append: those of `landed` that the archive does not hold yet.
        duplicates: rows whose event the archive holds from another line.
        conflicts: rows with the id of another event but other content.
    """

    landed: pl.DataFrame
    to_append: pl.DataFrame
    duplicates: pl.DataFrame
    conflicts: pl.DataFrame


def line_blocks(source_uri: str, pieces: Iterable[bytes]) -> Iterator[LineBlock]:
    """Cut a file into blocks of whole lines, about as long as the pieces that it comes in.

    Blank lines count in the numbering and for nothing else: they hold nothing that could be lost. A byte order mark
    at the start of the file is not part of its first line.

    Raises:
        ContractError: a line has no end within 64 MiB: this is no file of JSON lines.
    """
    number, offset = 1, 0
    carried = b""
    is_start = True
    for piece in pieces:
        content = carried + piece
        if is_start and not (len(content) < len(BOM) and BOM.startswith(content)):
            is_start = False
            offset = len(BOM) if content.startswith(BOM) else 0
            content = content[offset:]
        end = content.rfind(b"\n") + 1
        carried = content[end:]
        if len(carried) > LONGEST_LINE_BYTES:
            raise ContractError(
                f"{source_uri}: what begins at byte {offset + end:,} has no newline within {LONGEST_LINE_BYTES:,} "
                "bytes. Ask its producer for one JSON object a line."
            )
        if end:
            block = LineBlock(source_uri, number, offset, content[:end])
            number += len(block.starts) - 1
            offset += end
            yield block
    if carried:
        yield LineBlock(source_uri, number, offset, carried)


def decode(blocks: Iterable[LineBlock], now: datetime) -> Decoded:
    """Hold each line against the contract.

    Args:
        blocks: all of them are in memory at once, so pass a bounded number.
        now: the moment of landing, UTC.
    """
    parts = [_decode_block(block, now) for block in blocks]
    return Decoded(
        pl.concat([EVENTS.empty(), *(part.events for part in parts)]),
        pl.concat([DEAD_LETTERS.empty(), *(part.dead for part in parts)]),
    )


def _decode_block(block: LineBlock, now: datetime) -> Decoded:
    parsed = parse_block(block.content, block.starts, now)
    events: list[tuple[Event, Line]] = []
    dead: list[tuple[Rejected, Line]] = []
    for line in map(block.line, parsed.left.tolist()):
        try:
            events.append((parse_event(line.raw, now), line))
        except Rejected as rejected:
            dead.append((rejected, line))
    columns = list(EVENTS.columns)
    usual = parsed.events.with_columns(
        event_date=pl.col("ts").dt.date(),
        source_uri=pl.lit(block.source_uri),
        source_line=pl.col("number") + block.first_number,
        landed_at=pl.lit(now).cast(pl.Datetime("us", "UTC")),
    ).select(columns)
    frame = pl.concat([usual, _event_frame(events, now)]).sort("source_line") if events else usual
    return Decoded(frame, _dead_frame(dead, now))


def _event_frame(events: list[tuple[Event, Line]], now: datetime) -> pl.DataFrame:
    columns = {
        **{name: [getattr(event, name) for event, _ in events] for name in Event._fields},
        "event_date": [event.ts.date() for event, _ in events],
        "source_uri": [line.source_uri for _, line in events],
        "source_line": [line.number for _, line in events],
        "landed_at": [now] * len(events),
    }
    schema = EVENTS.empty().schema
    return pl.DataFrame({name: columns[name] for name in schema}, schema=schema)


def _dead_frame(dead: list[tuple[Rejected, Line]], now: datetime) -> pl.DataFrame:
    rows = [
        (
            hashlib.sha256(line.raw).hexdigest(), line.source_uri, line.number, line.offset, line.raw,
            rejected.error_class, rejected.reason, rejected.tenant_id, now, "open",
        )
        for rejected, line in dead
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=DEAD_LETTERS.empty().schema, orient="row")


def classify(events: pl.DataFrame, archived: pl.DataFrame, booked: Collection[str] = ()) -> Classified:
    """Decide which events of a batch are new.

    The first of several lines with one identity wins, in the archive before the batch and in the batch by order.
    A row that the archive holds from this very line is an earlier, interrupted try: landed, not a duplicate; unless the
    file is booked, for then it was delivered again under its old name.

    Args:
        events: rows of `EVENTS`.
        archived: tenant_id, event_id, content_hash, source_uri, source_line of archive rows with the batch's ids.
        booked: addresses of files that have a book already, with other content.
    """
    key = ["tenant_id", "event_id"]
    facts = ["content_hash", "source_uri", "source_line"]
    first = events.unique(subset=key, keep="first", maintain_order=True).join(archived, on=key, how="anti")
    winners = pl.concat(
        [
            archived.select(*key, *facts, is_new=pl.lit(value=False)),
            first.select(*key, *facts, is_new=pl.lit(value=True)),
        ]
    )
    judged = events.join(winners, on=key, how="left", suffix="_winner", maintain_order="left")
    is_winner = (pl.col("source_uri") == pl.col("source_uri_winner")) & (
        pl.col("source_line") == pl.col("source_line_winner")
    )
    is_same = pl.col("content_hash") == pl.col("content_hash_winner")
    is_landed = is_winner & is_same & (pl.col("is_new") | ~pl.col("source_uri").is_in(list(booked)))
    return Classified(
        landed=judged.filter(is_landed).select(events.columns),
        to_append=judged.filter(is_landed & pl.col("is_new")).select(events.columns),
        duplicates=judged.filter(~is_landed & is_same).select(events.columns),
        conflicts=judged.filter(~is_same).select(
            *events.columns, pl.col("source_uri_winner"), pl.col("source_line_winner")
        ),
    )


def conflict_letters(conflicts: pl.DataFrame, blocks: Iterable[LineBlock], now: datetime) -> pl.DataFrame:
    """Dead letters for events that reuse an id with other content.

    Args:
        conflicts: as `classify` returns them.
        blocks: those that the conflicts were decoded from.
        now: the moment of landing, UTC.
    """
    rejected = [
        (
            Rejected(
                "duplicate_id_conflict",
                f"event id {row['event_id']!r} is taken by another event, line {row['source_line_winner']} of "
                f"{row['source_uri_winner']}; give every event an id of its own",
                row["tenant_id"],
            ),
            _line_at(blocks, row["source_uri"], row["source_line"]),
        )
        for row in conflicts.iter_rows(named=True)
    ]
    return _dead_frame(rejected, now)


def _line_at(blocks: Iterable[LineBlock], source_uri: str, number: int) -> Line:
    return next(
        block.line(number - block.first_number)
        for block in blocks
        if block.source_uri == source_uri and 0 <= number - block.first_number < len(block.starts) - 1
    )


@dataclass
class FileBook:
    """The book of one file while it is read; balanced when every line is in one of the four columns."""

    source_uri: str
    etag: str
    landing_date: date
    bytes: int = 0
    lines: int = 0
    landed: int = 0
    duplicates: int = 0
    dead: int = 0
    suppressed: int = 0


def count_by_file(frame: pl.DataFrame) -> Counter[str]:
    """Rows per source_uri."""
    return Counter(dict(frame.group_by("source_uri").len().iter_rows()))


def unbalanced(files: pl.DataFrame) -> pl.DataFrame:
    """Rows of `LANDING_FILES` whose columns do not add up to their lines."""
    accounted = pl.col("landed") + pl.col("duplicates") + pl.col("dead") + pl.col("suppressed")
    return files.filter(pl.col("lines") != accounted)


def damaged_letters(letters: pl.DataFrame) -> pl.DataFrame:
    """Rows of `DEAD_LETTERS` whose id is not the sha256 of their bytes, or whose class the contract does not know."""
    hashes = pl.Series([hashlib.sha256(raw).hexdigest() for raw in letters["raw"]], dtype=pl.String)
    return letters.filter((pl.col("dead_letter_id") != hashes) | ~pl.col("error_class").is_in(ERROR_CLASSES))


def misbooked(files: pl.DataFrame, archived: pl.DataFrame) -> pl.DataFrame:
    """Booked files of which the archive holds more or fewer rows than their books say.

    A file that could not be read to its end has rows in the archive and no book; it is not judged here.

    Args:
        files: rows of `LANDING_FILES`; a file that was delivered anew has several.
        archived: source_uri and `archived`, the number of archive rows from it.
    """
    booked = files.group_by("source_uri").agg(pl.col("landed").sum())
    both = booked.join(archived, on="source_uri", how="left").with_columns(pl.col("archived").fill_null(0))
    return both.filter(pl.col("landed") != pl.col("archived")).sort("source_uri")
