"""Landing: lines become events or dead letters, and each line is counted once.

Belongs here: decoding lines, and deciding which events are new. Not here: reading files, writing tables.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import NamedTuple

import polars as pl

from c360_pipeline.core.events import ERROR_CLASSES, Event, Rejected, parse_event
from c360_pipeline.core.lake import DEAD_LETTERS, EVENTS

BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line of a landing file, without its newline; `number` counts from 1, `offset` is in uncompressed bytes."""

    source_uri: str
    number: int
    offset: int
    raw: bytes


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


def split_lines(source_uri: str, stream: Iterable[bytes]) -> Iterator[Line]:
    """Number the lines of a file and note where each begins.

    Blank lines are passed over: they hold nothing that could be lost. A byte order mark at the start of the
    file is not part of its first line.
    """
    offset = 0
    for number, piece in enumerate(stream, start=1):
        raw = piece.removesuffix(b"\n")
        skipped = len(BOM) if number == 1 and raw.startswith(BOM) else 0
        if raw[skipped:].strip():
            yield Line(source_uri, number, offset + skipped, raw[skipped:])
        offset += len(piece)


def decode(lines: Iterable[Line], now: datetime) -> Decoded:
    """Hold each line against the contract.

    Args:
        lines: any number of lines; all of them are in memory at once, so pass a bounded batch.
        now: the moment of landing, UTC.
    """
    events: list[tuple[Event, Line]] = []
    dead: list[tuple[Rejected, Line]] = []
    for line in lines:
        try:
            events.append((parse_event(line.raw, now), line))
        except Rejected as rejected:
            dead.append((rejected, line))
    return Decoded(_event_frame(events, now), _dead_frame(dead, now))


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


def classify(events: pl.DataFrame, archived: pl.DataFrame) -> Classified:
    """Decide which events of a batch are new.

    The first of several lines with one identity wins, in the archive before the batch and in the batch by order.
    A row that the archive holds from this very line is an earlier, interrupted try: landed, not a duplicate.

    Args:
        events: rows of `EVENTS`.
        archived: tenant_id, event_id, content_hash, source_uri, source_line of archive rows with the batch's ids.
    """
    key = ["tenant_id", "event_id"]
    facts = ["content_hash", "source_uri", "source_line"]
    first = events.unique(subset=key, keep="first", maintain_order=True).join(archived, on=key, how="anti")
    winners = pl.concat([archived.select(*key, *facts), first.select(*key, *facts)])
    judged = events.join(winners, on=key, how="left", suffix="_winner", maintain_order="left")
    is_winner = (pl.col("source_uri") == pl.col("source_uri_winner")) & (
        pl.col("source_line") == pl.col("source_line_winner")
    )
    is_same = pl.col("content_hash") == pl.col("content_hash_winner")
    landed = judged.filter(is_winner).select(events.columns)
    return Classified(
        landed=landed,
        to_append=landed.join(archived, on=key, how="anti", maintain_order="left"),
        duplicates=judged.filter(~is_winner & is_same).select(events.columns),
        conflicts=judged.filter(~is_winner & ~is_same).select(
            *events.columns, pl.col("source_uri_winner"), pl.col("source_line_winner")
        ),
    )


def conflict_letters(conflicts: pl.DataFrame, raw: dict[tuple[str, int], bytes], now: datetime) -> pl.DataFrame:
    """Dead letters for events that reuse an id with other content.

    Args:
        conflicts: as `classify` returns them.
        raw: the bytes of the batch's lines by (source_uri, line).
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
            Line(row["source_uri"], row["source_line"], 0, raw[row["source_uri"], row["source_line"]]),
        )
        for row in conflicts.iter_rows(named=True)
    ]
    return _dead_frame(rejected, now)


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
