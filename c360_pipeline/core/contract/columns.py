"""The event contract over columns: a whole block of lines at once, for the lines that are plainly good.

What `event_scan` accepts becomes exactly the events that `events.parse_event` makes of the same lines; everything else,
good or bad, is left to that function, which also has the reasons. A property in the tests holds the two together.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import polars_hash  # noqa: F401 - registers the `chash` expressions
import pyarrow as pa

from c360_pipeline.core.contract.events import (
    EARLIEST,
    EXTRA_PREFIX,
    LATEST_AHEAD,
    MAX_ATTRS,
    MAX_LINE_BYTES,
    MAX_STRING_CHARACTERS,
    MAX_TENANT_BYTES,
    NO_TENANT,
    Event,
    epoch_micros,
)
from c360_pipeline.core.contract.fields import EITHER, FIELDS, EventField, FieldType
from c360_pipeline.core.contract.frames import ITEMS
from c360_pipeline.core.contract.layout import ADDED_TO_IDENTITY, IDENTITY
from c360_pipeline.core.contract.scan import Bytes, Integers, Scan, composed_table, scan, string_views
from c360_pipeline.core.kernels import event_scan as kernel
from c360_pipeline.core.kernels.event_scan import Grammar

_KINDS = {
    FieldType.TEXT: kernel.STRING, FieldType.INSTANT: kernel.TIMESTAMP, FieldType.ATTRIBUTES: kernel.ATTRIBUTES
}  # fmt: skip
_BESIDE: dict[FieldType, pl.DataType] = {
    FieldType.TEXTS: pl.Map(pl.String, pl.String), FieldType.ITEMS: ITEMS, FieldType.WHOLE: pl.Int64(),
    FieldType.INSTANT: pl.Datetime("us", "UTC"),
}  # fmt: skip
"""Types of fields whose values the scanner leaves."""
_NUMBER_OF = {field.name: number for number, field in enumerate(FIELDS)}
PARSED_COLUMNS = ("number", *Event._fields)


def _kind_of(field: EventField) -> int:
    """The scanner knows one instant, that of the event; what is rare is left to the reference."""
    is_known = field.type in _KINDS and (field.type is not FieldType.INSTANT or field.required)
    return _KINDS[field.type] if is_known else kernel.BESIDE


def _grammar() -> Grammar:
    names = [field.name.encode() for field in FIELDS]
    longest = max(map(len, names))
    return Grammar(
        names=np.frombuffer(b"".join(name.ljust(longest, b"\0") for name in names), np.uint8).reshape(-1, longest),
        name_lengths=np.array([len(name) for name in names], np.int64),
        kinds=np.array([_kind_of(field) for field in FIELDS], np.int64),
        required=np.array([field.required for field in FIELDS]),
        either=np.array([n for n, field in enumerate(FIELDS) if field.column in EITHER], np.int64),
        blank_refused=np.array([field.may_not_be_blank for field in FIELDS]),
        hash_order=np.array([_NUMBER_OF[field.name] for field in IDENTITY], np.int64),
        added=np.array([_NUMBER_OF[field.name] for field in ADDED_TO_IDENTITY], np.int64),
        tenant=_NUMBER_OF["tenantId"],
        no_tenant=np.frombuffer(NO_TENANT.encode(), np.uint8),
        extra_prefix=np.frombuffer(EXTRA_PREFIX.encode(), np.uint8),
        limits=np.array([MAX_LINE_BYTES, MAX_STRING_CHARACTERS, MAX_ATTRS, MAX_TENANT_BYTES], np.int64),
        composed=composed_table(),
    )


@dataclass(frozen=True)
class ParsedBlock:
    """A block of lines after the scan.

    Attributes:
        events: `number` (index of the line) and the fields of `events.Event`, in the order of the lines.
        left: indexes of the lines that are not plainly good, ascending.
        line_count: lines that are not blank.
    """

    events: pl.DataFrame
    left: Integers
    line_count: int


def parse_block(block: bytes, starts: Integers, now: datetime) -> ParsedBlock:
    """The events of the lines that are plainly good.

    Args:
        block: the lines, less than 2 GiB.
        starts: where each line begins in the block, and where the last one ends.
        now: the moment of landing, UTC.
    """
    scanned = scan(block, starts, _grammar(), epoch_micros(EARLIEST), epoch_micros(now + LATEST_AHEAD))
    number = np.flatnonzero(scanned.found.status == kernel.GOOD)
    return ParsedBlock(
        events=_events(scanned, number),
        left=np.flatnonzero(scanned.found.status == kernel.LEFT),
        line_count=int(np.count_nonzero(scanned.found.status != kernel.BLANK)),
    )


class TextsOf:
    """The texts of a block, as columns that point into it: long strings are not copied.

    Args:
        block: the lines.
        buffer: the lines, and behind them the texts that do not stand in the lines as they are.
    """

    def __init__(self, block: bytes, buffer: Bytes) -> None:
        self._block, self._buffer = block, buffer
        self._behind = _buffer(buffer[len(block) :].tobytes())

    def array(self, texts: Integers) -> "pa.Array[Any]":
        """An Arrow array of texts, each as `core.kernels.event_scan` writes it."""
        is_there = texts != kernel.NO_TEXT
        validity = None if is_there.all() else _buffer(np.packbits(is_there, bitorder="little"))
        views = string_views(texts, self._buffer, len(self._block))
        return pa.Array.from_buffers(
            pa.string_view(), len(texts), [validity, _buffer(views), _buffer(self._block), self._behind]
        )

    def series(self, texts: Integers) -> pl.Series:
        """The same as a column."""
        return pl.Series(pl.from_arrow(self.array(texts)))


def _events(scanned: Scan, number: Integers) -> pl.DataFrame:
    texts = TextsOf(scanned.block, scanned.buffer)
    columns = {"number": pl.Series(number)}
    for position, field in enumerate(FIELDS):
        match _kind_of(field):
            case kernel.STRING:
                columns[field.column] = texts.series(scanned.found.fields[number, position])
            case kernel.TIMESTAMP:
                columns[field.column] = pl.Series(scanned.found.micros[number]).cast(pl.Datetime("us", "UTC"))
            case kernel.ATTRIBUTES:
                columns[field.column] = _attributes(scanned, texts, number)
            case _:
                columns[field.column] = pl.Series([None] * len(number), dtype=_BESIDE[field.type])
    hashed = pl.DataFrame(columns).with_columns(
        content_hash=digests(scanned.found.canonical, scanned.found.canonical_ends[number])
    )
    return hashed.with_columns(event_id=pl.coalesce("event_id", "content_hash")).select(PARSED_COLUMNS)


def _attributes(scanned: Scan, texts: TextsOf, number: Integers) -> pl.Series:
    pairs = pa.StructArray.from_arrays(
        [texts.array(scanned.found.keys), texts.array(scanned.found.values)], ["key", "value"]
    )
    return lists_of(pairs, scanned.found.attr_ends[number]).cast(pl.Map(pl.String, pl.String))


def lists_of(rows: "pa.Array[Any]", ends: Integers) -> pl.Series:
    """Rows as lists, one after the other: the first ends where the first of `ends` says."""
    offsets = pa.array(np.concatenate(([0], ends)), pa.int64())
    return pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(offsets, rows)))


def digests(forms: Bytes, ends: Integers) -> pl.Series:
    """Hex sha256 of texts that stand one after the other."""
    offsets = np.concatenate(([0], ends))
    texts = pa.Array.from_buffers(pa.large_string(), len(ends), [None, _buffer(offsets), _buffer(forms)])
    frame = pl.LazyFrame({"form": pl.Series(pl.from_arrow(texts))})
    digest: pl.Expr = pl.col("form").chash.sha2_256()  # type: ignore[attr-defined]  # registered by polars_hash
    # The streaming engine hashes on all cores.
    return frame.select(digest).collect(engine="streaming").to_series()


def _buffer(memory: Any) -> pa.Buffer:
    """Arrow's view of bytes or of an array; its stubs know neither."""
    return pa.py_buffer(memory)
