"""A mapping over columns: a whole block of records at once, for those that are plainly good.

What the scanner accepts becomes exactly the events that `decode.event_from` makes of the same records; the others are
left to that function, which also has the reasons. A property in the tests holds the two together.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from c360_pipeline.core.contract.columns import TextsOf, digests, lists_of
from c360_pipeline.core.contract.events import (
    EARLIEST,
    LATEST_AHEAD,
    MAX_ATTRS,
    MAX_ITEMS,
    MAX_LINE_BYTES,
    MAX_STRING_CHARACTERS,
    MAX_TENANT_BYTES,
    NO_TENANT,
    Event,
    epoch_micros,
)
from c360_pipeline.core.contract.frames import ITEMS
from c360_pipeline.core.contract.scan import Integers, composed_table, scratch
from c360_pipeline.core.kernels import event_scan as kernel
from c360_pipeline.core.kernels.event_scan import LENGTH_BITS, MappedRecords
from c360_pipeline.core.sources.programs import RecordProgram

MAPPED_COLUMNS = ("number", *Event._fields)
_FIELDS = {
    "tenant_id": kernel.TENANT, "user_id": kernel.USER, "anonymous_id": kernel.ANONYMOUS,
    "session_id": kernel.SESSION, "action": kernel.ACTION, "event_id": kernel.ID,
}  # fmt: skip
_LIMITS = np.array([MAX_LINE_BYTES, MAX_STRING_CHARACTERS, MAX_ATTRS, MAX_TENANT_BYTES, MAX_ITEMS], np.int64)
_NO_TENANT = np.frombuffer(NO_TENANT.encode(), np.uint8)
_SPARE_BYTES = 64 * 1024
_ATTRIBUTES, _TRAITS, _CONSENTS, _ITEMS = range(4)


@dataclass(frozen=True)
class MappedBlock:
    """A block of records after their mapping.

    Attributes:
        events: `number` (index of the record) and the fields of `contract.events.Event`, in the order of the records.
        left: indexes of the records that are not plainly good, ascending.
        skipped: records that the mapping leaves out.
        withheld: records whose visitor refused what the source requires.
        count: records; blank lines are none.
    """

    events: pl.DataFrame
    left: Integers
    skipped: int
    withheld: int
    count: int


def map_block(
    block: bytes, starts: Integers, program: RecordProgram, name: tuple[str, int], now: datetime, tenant: str | None
) -> MappedBlock:
    """The events of the records that are plainly good.

    Args:
        block: the records, a JSON line each, less than 2 GiB.
        starts: where each record begins in the block, and where the last one ends.
        program: the mapping.
        name: its source and version.
        now: the moment of landing, UTC.
        tenant: of all records, where their file's address says so.
    """
    texts = [program.constants, np.frombuffer((tenant or "").encode(), np.uint8)]
    lengths = np.diff(np.concatenate(([0], program.constant_ends, [program.constant_ends[-1] + len(texts[1])])))
    size, behind = len(block), np.concatenate(texts)
    found, buffer = _room(size, len(starts) - 1, program, len(behind))
    buffer[:size] = np.frombuffer(block, np.uint8)
    buffer[size : size + len(behind)] = behind
    offsets = size + np.concatenate(([0], np.cumsum(lengths)[:-1]))
    filled, form, free = kernel.map_records(
        buffer, starts, size + len(behind), (offsets << LENGTH_BITS) | lengths, _LIMITS, composed_table(), _NO_TENANT,
        program.tree, program.program, epoch_micros(EARLIEST), epoch_micros(now + LATEST_AHEAD),
        len(lengths) - 1 if tenant else -1, found,
    )  # fmt: skip
    status = found.status
    number = np.flatnonzero(status == kernel.GOOD)
    view = TextsOf(block, buffer[:free])
    return MappedBlock(
        events=_events(found._replace(canonical=found.canonical[:form]), number, filled, view, name),
        left=np.flatnonzero(status == kernel.LEFT),
        skipped=int(np.count_nonzero(status == kernel.SKIPPED)),
        withheld=int(np.count_nonzero(status == kernel.WITHHELD)),
        count=int(np.count_nonzero(status != kernel.BLANK)),
    )


def _room(size: int, records: int, program: RecordProgram, constants: int) -> tuple[MappedRecords, Any]:
    """Arrays for a block of records, and the buffer of its texts."""
    named = max(len(program.program.attributes), len(program.program.consents))
    # A member of an object takes five bytes at least, and so does an item.
    members = size // 5 + records * named + 1
    buffer = scratch.array("record buffer", 2 * size + constants + _SPARE_BYTES, np.uint8)
    items = scratch.array("record items", (size // 5 + records + 1) * kernel.ITEM_PARTS, np.int64)
    found = MappedRecords(
        status=scratch.array("record status", records, np.uint8),
        fields=scratch.array("record fields", records * kernel.TIME, np.int64).reshape(records, kernel.TIME),
        micros=scratch.array("record micros", records, np.int64),
        received=scratch.array("record received", records, np.int64),
        ends=scratch.array("record ends", records * 4, np.int64).reshape(records, 4),
        names=scratch.array("record names", 3 * members, np.int64).reshape(3, members),
        values=scratch.array("record values", 3 * members, np.int64).reshape(3, members),
        hashed=scratch.array("record hashed", members, np.bool_),
        items=items.reshape(-1, kernel.ITEM_PARTS),
        canonical=scratch.array("record canonical", size + 256 * records + _SPARE_BYTES, np.uint8),
        canonical_ends=scratch.array("record canonical ends", records, np.int64),
    )
    return found, buffer


def _events(
    found: MappedRecords, number: Integers, filled: Integers, texts: TextsOf, name: tuple[str, int]
) -> pl.DataFrame:
    columns = {"number": pl.Series(number)}
    for column, field in _FIELDS.items():
        columns[column] = texts.series(found.fields[number, field])
    columns["ts"] = _instants(found.micros[number])
    received = found.received[number]
    columns["received_at"] = _instants(received).set(pl.Series(received < 0), None)
    ends = found.ends[number]
    values = texts.series(found.values[_ATTRIBUTES, : filled[_ATTRIBUTES]])
    hashed = np.flatnonzero(found.hashed[: filled[_ATTRIBUTES]])
    if len(hashed):
        values = values.scatter(pl.Series(hashed), _sha256(values.gather(hashed)))
    columns["attrs"] = _map(texts.series(found.names[_ATTRIBUTES, : filled[_ATTRIBUTES]]), values, ends[:, _ATTRIBUTES])
    for column, part in (("traits", _TRAITS), ("consent", _CONSENTS)):
        held = texts.series(found.names[part, : filled[part]]), texts.series(found.values[part, : filled[part]])
        columns[column] = _none_if_empty(_map(*held, ends[:, part]), ends[:, part])
    columns["items"] = _none_if_empty(_items(found.items[: filled[_ITEMS]], texts, ends[:, _ITEMS]), ends[:, _ITEMS])
    source, version = name
    return (
        pl.DataFrame(columns)
        .with_columns(
            item_id=pl.lit(None, pl.String), source=pl.lit(source), mapping_version=pl.lit(version, pl.Int64),
            content_hash=digests(found.canonical, found.canonical_ends[number]),
        )
        .select(MAPPED_COLUMNS)
    )  # fmt: skip


def _instants(micros: Integers) -> pl.Series:
    return pl.Series(micros).cast(pl.Datetime("us", "UTC"))


def _sha256(texts: pl.Series) -> pl.Series:
    return texts.to_frame("text").select(pl.col("text").chash.sha2_256()).to_series()  # type: ignore[attr-defined]  # registered by polars_hash


def _map(names: pl.Series, values: pl.Series, ends: Integers) -> pl.Series:
    pairs = pl.DataFrame({"key": names, "value": values}).to_struct().to_arrow()
    return lists_of(pairs, ends).cast(pl.Map(pl.String, pl.String))


def _items(parts: Integers, texts: TextsOf, ends: Integers) -> pl.Series:
    frame = pl.DataFrame(
        {
            "id": texts.series(parts[:, kernel.ID_PART]),
            "quantity": texts.series(parts[:, kernel.QUANTITY_PART]).cast(pl.Float64),
            "price": texts.series(parts[:, kernel.PRICE_PART]).cast(pl.Float64),
            "currency": texts.series(parts[:, kernel.CURRENCY_PART]),
        }
    )
    return lists_of(frame.to_struct().to_arrow(), ends).cast(ITEMS)


def _none_if_empty(lists: pl.Series, ends: Integers) -> pl.Series:
    return lists.set(pl.Series(np.diff(ends, prepend=0) == 0), None)
