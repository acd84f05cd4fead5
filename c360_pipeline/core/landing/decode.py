"""Landing: lines become events or dead letters, and each line is counted once.

Belongs here: decoding lines, and deciding which events are new. Not here: reading files, writing tables. A delivery is
one content of one file: its address and the etag that the store gave to the content.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl
import pyarrow as pa

from c360_pipeline.core.catalog.tables import DEAD_LETTERS, EVENTS
from c360_pipeline.core.contract.columns import parse_block
from c360_pipeline.core.contract.events import Event, Rejected, load_object, parse_event
from c360_pipeline.core.contract.scan import is_surely_composed
from c360_pipeline.core.landing.lines import Delivery, Line, LineBlock, line_blocks
from c360_pipeline.core.sources.columns import MappedBlock, map_block
from c360_pipeline.core.sources.decode import event_from
from c360_pipeline.core.sources.mapping import Skipped
from c360_pipeline.core.sources.source import Source

PADDING = re.compile(rb"^(?:\xef\xbb\xbf|\x00)+|[\x00\r]+$")
"""What stands before and behind lines where parts were put together, or blocks were filled up."""
WHO = ("user_id", "anonymous_id", "session_id")
REJECTED_SCHEMA = DEAD_LETTERS.empty().with_columns(pl.lit(None, pl.String).alias(name) for name in WHO).schema
"""Columns of rejected lines: those of `DEAD_LETTERS`, and who is named in the line, where that can be read."""


@dataclass(frozen=True)
class Decoded:
    """Lines after the contract.

    Attributes:
        events: rows of `EVENTS`, in the order of the blocks; `content_hash` is there on every row.
        rejected: one row per rejected line, of `REJECTED_SCHEMA`.
        lines: lines of each delivery that are not blank.
        left_out: of these, records that a mapping leaves out, by delivery and `skipped` or `withheld`.
    """

    events: pl.DataFrame
    rejected: pl.DataFrame
    lines: Counter[Delivery]
    left_out: Counter[tuple[Delivery, str]] = field(default_factory=Counter)

    @classmethod
    def together(cls, parts: Iterable["Decoded"]) -> "Decoded":
        """One after the other."""
        parts = list(parts)
        return cls(
            pl.concat([EVENTS.empty(), *(part.events for part in parts)]),
            pl.concat([pl.DataFrame(schema=REJECTED_SCHEMA), *(part.rejected for part in parts)]),
            sum((part.lines for part in parts), Counter()),
            sum((part.left_out for part in parts), Counter()),
        )


def decode(block: LineBlock, now: datetime) -> Decoded:
    """Hold each line against the contract.

    Args:
        block: the lines.
        now: the moment of landing, UTC.
    """
    parsed = parse_block(block.content, block.starts, now)
    events: list[tuple[Event, Line]] = []
    rejected: list[tuple[Rejected, Line]] = []
    padding = 0
    for line in map(block.line, parsed.left.tolist()):
        said = PADDING.sub(b"", line.raw)
        padding += not said
        try:
            if said:
                events.append((parse_event(said, now), line))
        except Rejected as reason:
            rejected.append((reason, line))
    frame = _with_events(_at_their_places(parsed.events, block, now), events, now)
    return Decoded(frame, rejected_frame(rejected, now), Counter({block.delivery: parsed.line_count - padding}))


def _at_their_places(events: pl.DataFrame, block: LineBlock, now: datetime) -> pl.DataFrame:
    """Rows of `EVENTS`, of events with the `number` of their line in a block."""
    return events.with_columns(
        event_date=pl.col("ts").dt.date(),
        source_uri=pl.lit(block.delivery.source_uri),
        source_etag=pl.lit(block.delivery.source_etag),
        source_line=pl.col("number") + block.first_number,
        landed_at=pl.lit(now).cast(pl.Datetime("us", "UTC")),
    ).select(list(EVENTS.columns))


def _with_events(frame: pl.DataFrame, events: list[tuple[Event, Line]], now: datetime) -> pl.DataFrame:
    return pl.concat([frame, _event_frame(events, now)]) if events else frame


def decode_records(block: LineBlock, now: datetime, source: Source, *, keeps_left_out: bool = False) -> Decoded:
    """Map each record of a source, and hold it against the contract.

    Args:
        block: the records, a JSON line each.
        now: the moment of landing, UTC.
        source: that they are of.
        keeps_left_out: records that the mapping leaves out are rejected, as of a queue that holds them.
    """
    given = source.given(block.delivery.source_uri)
    mapped = None if keeps_left_out else _mapped(block, now, source, given)
    events: list[tuple[Event, Line]] = []
    rejected: list[tuple[Rejected, Line]] = []
    left_out: Counter[tuple[Delivery, str]] = Counter()
    left = range(len(block.starts) - 1) if mapped is None else mapped.left.tolist()
    lines = 0
    for line in map(block.line, left):
        said = line.raw
        if said[:1] != b"{" or said[-1:] != b"}":
            said = PADDING.sub(b"", said).strip()
            if not said:
                continue
        lines += 1
        try:
            events.append((event_from(load_object(said), source.mapping, now, given), line))
        except Skipped as skipped:
            left_out[block.delivery, skipped.outcome] += 1
            if keeps_left_out:
                rejected.append((Rejected("left_out", f"{skipped}: discard it"), line))
        except Rejected as reason:
            rejected.append((reason, line))
    frame = EVENTS.empty()
    if mapped is not None:
        lines += mapped.count - len(left)
        left_out += Counter({(block.delivery, name): getattr(mapped, name) for name in ("skipped", "withheld")})
        frame = _at_their_places(mapped.events, block, now)
    frame = _with_events(frame, events, now)
    return Decoded(frame, rejected_frame(rejected, now), Counter({block.delivery: lines}), left_out)


def _mapped(block: LineBlock, now: datetime, source: Source, given: Mapping[str, str]) -> MappedBlock | None:
    """The records that are plainly good; None where the scanner does not know the mapping, or what a place gives."""
    if source.program is None or given.keys() - {"tenantId"}:
        return None
    tenant = given.get("tenantId")
    if tenant is not None and (not tenant.strip() or not is_surely_composed(tenant)):
        return None
    name = source.mapping.source, source.mapping.version
    return map_block(block.content, block.starts, source.program, name, now, tenant)


def decode_file(delivery: Delivery, content: bytes, now: datetime) -> Decoded:
    """Hold each line of a small file against the contract; lines too long to be held are left out."""
    blocks = line_blocks(delivery, [content])
    return Decoded.together(decode(block, now) for block in blocks if isinstance(block, LineBlock))


def _event_frame(events: list[tuple[Event, Line]], now: datetime) -> pl.DataFrame:
    columns = dict(zip(Event._fields, zip(*(event for event, _ in events), strict=True), strict=True))
    columns |= {
        "event_date": tuple(event.ts.date() for event, _ in events),
        "source_uri": tuple(line.delivery.source_uri for _, line in events),
        "source_etag": tuple(line.delivery.source_etag for _, line in events),
        "source_line": tuple(line.number for _, line in events),
        "landed_at": (now,) * len(events),
    }
    # Arrow makes maps and lists of Python's ten times as fast as polars.
    arrays = [pa.array(_entries(columns[field.name], field.type), field.type) for field in EVENTS.schema]
    frame = pl.DataFrame(pa.Table.from_arrays(arrays, schema=EVENTS.schema))
    return frame.cast(EVENTS.empty().schema)


def _entries(values: Sequence[Any], dtype: pa.DataType) -> Sequence[Any]:
    """Values as Arrow takes them: of a map its entries."""
    return [None if one is None else list(one.items()) for one in values] if pa.types.is_map(dtype) else values


def rejected_frame(rejected: Iterable[tuple[Rejected, Line]], now: datetime) -> pl.DataFrame:
    """Rows of `REJECTED_SCHEMA`, open dead letters first seen now."""
    rows = [
        {
            "dead_letter_id": hashlib.sha256(line.raw).hexdigest(), **line.delivery._asdict(),
            "source_line": line.number, "byte_offset": line.offset, "raw": line.raw,
            "error_class": reason.error_class, "reason": str(reason), "tenant_id": reason.tenant_id,
            "user_id": reason.user_id, "anonymous_id": reason.anonymous_id, "session_id": reason.session_id,
            "first_seen_at": now, "status": "open", "resolved_at": None, "resolution": None,
        }
        for reason, line in rejected
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=REJECTED_SCHEMA)


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
