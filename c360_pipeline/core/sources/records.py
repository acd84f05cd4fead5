"""Files of records made into JSON lines: what landing reads, whatever the source writes.

JSON lines, values one after the other and arrays are `core.landing.framing`'s. Here are tables: tab- or
comma-separated values, Parquet and Avro, a row each; and records that lie within one value, such as a batch. Numbers of
lines count what comes out, so that each record has a place of its own.
"""

import codecs
import csv
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import count
from types import MappingProxyType
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from c360_pipeline.core.contract.events import Number, refuse_constant, unique_names
from c360_pipeline.core.sources.values import Place, inside
from c360_pipeline.errors import ConfigError, ContractError

LINES, CONCATENATED, ARRAY, TSV, CSV, PARQUET, AVRO = "lines", "concatenated", "array", "tsv", "csv", "parquet", "avro"
FRAMINGS = (LINES, CONCATENATED, ARRAY, TSV, CSV, PARQUET, AVRO)
OF_JSON = (LINES, CONCATENATED, ARRAY)
"""Which of these a file is shows by itself."""
ROWS_AT_ONCE = 5_000
PEEKED_BYTES = 64 * 1024
NOTHING: Mapping[str, Any] = MappingProxyType({})
MOST_BYTES_OF_A_VALUE = 256 * 1024 * 1024
"""Of all records that lie within one value, with what each carries along."""
LONGEST_CELL = 64 * 1024 * 1024
"""Characters of a cell: a longer one is a quotation mark that was never closed."""
_PATH = re.compile(r"(?:\[[^.\[\]]+\]\.)?(?:[^.\[\]]+(?:\[[^.\[\]]*\])?\.)*[^.\[\]]+\[\]")


@dataclass(frozen=True)
class Framing:
    """How records stand in a file.

    Attributes:
        kind: one of `FRAMINGS`.
        columns: of a table without a header.
        records: path to records within one value, `batch[]` or `resourceLogs[resource].scopeLogs[].logRecords[]`, where
            the names in brackets are members of an element that each of its records gets along; of the value itself
            before the path, `[sentAt].batch[]`. None where each value is one record.
        is_of_messages: whether each line is a message of its own: how a file begins says nothing of its other lines.
    """

    kind: str = LINES
    columns: tuple[str, ...] | None = None
    records: str | None = None
    is_of_messages: bool = False

    def __post_init__(self) -> None:
        if self.kind not in FRAMINGS:
            raise ConfigError(f"framing {self.kind!r} is not one of {', '.join(FRAMINGS)}.")
        if self.columns is not None and self.kind not in (TSV, CSV):
            raise ConfigError(f"columns are for tsv and csv; a file of {self.kind} names its own.")
        if self.columns is not None and len(set(self.columns)) != len(self.columns):
            raise ConfigError("columns: a name occurs twice.")
        _steps(self.records)
        if self.is_of_messages and self.kind != LINES and (self.kind not in (TSV, CSV) or self.columns is None):
            raise ConfigError(
                f"framing {self.kind}: a message of a topic is a JSON value (lines), or a row of tsv or csv with its "
                "`columns` said."
            )


class _Step(NamedTuple):
    """A part of the path to records.

    Attributes:
        name: of a member; empty for the value itself.
        is_list: whether every element of it counts.
        carried: names of members that the records below get along.
    """

    name: str
    is_list: bool
    carried: tuple[str, ...]


def _steps(records: str | None) -> tuple[_Step, ...]:
    """The path to records in its parts."""
    if records is None:
        return ()
    if not _PATH.fullmatch(records):
        raise Place("records").wrong(
            f"{records!r} is no path to a list: write names with [] behind lists, as in batch[], and in brackets of an "
            "outer list which of its members each record gets along, as in resourceLogs[resource].logRecords[]."
        )
    found = []
    for part in records.split("."):
        name, bracket, inner = part.partition("[")
        carried = tuple(one.strip() for one in inner.removesuffix("]").split(",") if one.strip())
        found.append(_Step(name, bool(bracket and name), carried))
    return tuple(found)


def table_lines(file: IO[bytes], framing: Framing, name: str) -> Iterator[bytes]:
    """A file of a table as JSON lines, a row each.

    Args:
        file: unpacked; Parquet and Avro must be seekable.
        framing: of kind tsv, csv, parquet or avro.
        name: of the file, for messages.

    Raises:
        ContractError: it is no such table, or breaks off; after the rows before.
    """
    rows: Callable[[IO[bytes], Framing, str], Iterator[Row]] = {
        TSV: _tab_separated, CSV: _comma_separated, PARQUET: _parquet, AVRO: _avro,
    }[framing.kind]  # fmt: skip
    out: list[bytes] = []
    try:
        for row in rows(file, framing, name):
            out.append(row if isinstance(row, bytes) else json_row(row))
            if len(out) >= ROWS_AT_ONCE:
                yield b"".join(out)
                out = []
    except ContractError:
        yield b"".join(out)
        raise
    except (ValueError, OverflowError, EOFError, OSError, RecursionError, zlib.error, pa.ArrowException) as error:
        yield b"".join(out)
        said = str(error).splitlines() or [type(error).__name__]
        raise ContractError(f"{name} is damaged, or no {framing.kind}: {said[0][:200]}.") from None
    yield b"".join(out)


def message_lines(pieces: Iterable[bytes], framing: Framing) -> Iterator[bytes]:
    """Messages, a line each, as JSON lines of their records; what one of them is, no other is judged by.

    A line that is none of the framing stays as it is: it becomes a dead letter of its own.

    Args:
        pieces: the lines.
        framing: whose `is_of_messages` holds.
    """
    lines = pieces if framing.kind == LINES else _line_by_line(pieces, lambda line: _row_of_message(line, framing))
    return iter(within(lines, framing) if framing.records else lines)


def _line_by_line(pieces: Iterable[bytes], made_of: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """What is made of each line of pieces; before a piece that is damaged, of what there is of its line, too."""
    carried = b""
    try:
        for piece in pieces:
            whole, newline, carried = (carried + piece).rpartition(b"\n")
            if newline:
                yield b"".join(map(made_of, whole.split(b"\n")))
    except ContractError:
        yield made_of(carried)
        raise
    if carried:
        yield made_of(carried)


def _row_of_message(line: bytes, framing: Framing) -> bytes:
    if not line.strip():
        return b"\n"  # the numbers of the others stay
    try:
        return b"".join(table_lines(cast("IO[bytes]", io.BufferedReader(io.BytesIO(line))), framing, "the message"))
    except ContractError:
        return json_row(line.decode("utf-8", "backslashreplace"))


def within(lines: Iterable[bytes], framing: Framing) -> Iterator[bytes]:
    """JSON lines of the records that lie within the values of JSON lines.

    A line that is no JSON, or has no list there, stays as it is: it becomes a dead letter of its own.

    Args:
        lines: JSON lines in pieces.
        framing: with `records`.
    """
    steps = _steps(framing.records)
    return _line_by_line(lines, lambda line: b"".join(_inner(line, steps, framing)))


def without_records(line: bytes, framing: Framing, numbers: Set[int]) -> bytes:
    """A message without some of its records, the places of the others as they were.

    Args:
        line: the message, without its end.
        framing: whose `is_of_messages` holds.
        numbers: of its records, from 1.
    """
    steps = _steps(framing.records)
    try:
        value = _value_of(line) if steps else None
    except (ValueError, RecursionError):
        value = None
    if value is None or _records_in(value, steps) is None:
        return b""
    return _json(_emptied(value, steps, numbers, count(1))).encode("utf-8", "surrogatepass")


def _emptied(value: Any, steps: Sequence[_Step], numbers: Set[int], counter: Iterator[int]) -> Any:
    """The same with null in the place of records."""
    if not steps:
        return None if next(counter) in numbers else value
    step, *rest = steps
    held = inside(value)
    found = held if not step.name else held.get(step.name) if isinstance(held, dict) else None
    if found is None or (step.is_list and not isinstance(found, list)):
        return value
    left = (
        [_emptied(one, rest, numbers, counter) for one in found]
        if step.is_list
        else _emptied(found, rest, numbers, counter)
    )
    return {**held, step.name: left} if step.name else left


def _value_of(line: bytes) -> Any:
    return json.loads(
        line, parse_float=Number, parse_int=Number, parse_constant=refuse_constant, object_pairs_hook=unique_names
    )  # fmt: skip


def _inner(line: bytes, steps: tuple[_Step, ...], framing: Framing) -> Iterator[bytes]:
    if not line.strip():
        # Of messages the numbers stay: one may have been made blank.
        yield from [b"\n"] if framing.is_of_messages else []
        return
    try:
        found = _records_in(_value_of(line), steps)
        rows = None if found is None else _rows_of(found, framing)
    except (ValueError, RecursionError):
        rows = None
    yield from [line + b"\n"] if rows is None else rows


def _rows_of(records: Sequence[Any], framing: Framing) -> list[bytes] | None:
    """Records as lines; None where what is carried along makes more of them than anybody can mean."""
    rows, size = list[bytes](), 0
    for record in records:
        rows.append(b"\n" if record is None and framing.is_of_messages else json_row(record))
        size += len(rows[-1])
        if size > MOST_BYTES_OF_A_VALUE:
            return None
    return rows


def _records_in(value: Any, steps: Sequence[_Step], carried: Mapping[str, Any] = NOTHING) -> list[Any] | None:
    """The records below a path, with what is carried along; None where the value has nothing there."""
    if not steps:
        # What a record says itself stands.
        return [{**carried, **value} if carried and isinstance(value, dict) else value]
    step, *rest = steps
    held = inside(value)
    found = held if not step.name else held.get(step.name) if isinstance(held, dict) else None
    if found is None or (step.is_list and not isinstance(found, list)):
        return None
    parts = []
    for one in found if step.is_list else [found]:
        more = {name: one[name] for name in step.carried if name in one} if isinstance(one, dict) else {}
        parts.append(_records_in(one, rest, {**carried, **more} if more else carried))
    return [record for part in parts for record in part or []]


def json_row(record: Any) -> bytes:
    """A record as a line of JSON with its line end."""
    return _json(record).encode("utf-8", "surrogatepass") + b"\n"


def _json(value: Any) -> str:
    """JSON of a row: numbers with the digits that they have, instants in RFC 3339, bytes as text."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(k))}:{_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_json, value)) + "]"
    if isinstance(value, Number | Decimal):
        return value.sent if isinstance(value, Number) else str(value)
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
        case date():
            return value.isoformat()
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case float():
            return value if math.isfinite(value) else None
        case None | int() | str():
            return value
        case _:
            return str(value)


Row = dict[str, Any] | bytes
"""A row by name, or the bytes of one that is none: they become a dead letter as they are."""


def _tab_separated(file: IO[bytes], framing: Framing, name: str) -> Iterator[Row]:
    """Values between tabs, as they stand: there are no quotes in this form."""
    columns = framing.columns
    for raw in _lines(file):
        line = raw.rstrip(b"\r\n").removeprefix(codecs.BOM_UTF8)
        try:
            values = line.decode("utf-8").split("\t")
        except UnicodeDecodeError:
            yield line + b"\n"
            continue
        if columns is None:
            columns = _header(values, name)
        elif values != [""]:
            yield _row(columns, values, line)


def _lines(file: IO[bytes]) -> Iterable[bytes]:
    """The lines of a file; one whose beginning has none that ends with a line feed ends them with carriage returns."""
    start = file.peek(PEEKED_BYTES) if isinstance(file, io.BufferedReader) else b"\n"
    if b"\n" in start or b"\r" not in start:
        return file
    text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="\r")
    return (line.encode("utf-8", "surrogateescape") for line in text)


def _comma_separated(file: IO[bytes], framing: Framing, name: str) -> Iterator[Row]:
    columns = framing.columns
    csv.field_size_limit(LONGEST_CELL)
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text)
    try:
        for values in reader:
            raw = ",".join(values).encode("utf-8", "surrogateescape")
            if columns is None:
                columns = _header(values, name)
            elif values:
                yield raw + b"\n" if _is_broken(raw) else _row(columns, values, raw)
    except csv.Error as error:
        raise ContractError(f"{name}, line {reader.line_num}: no comma-separated values ({error}).") from None
    finally:
        text.detach()


def _is_broken(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def _header(values: list[str], name: str) -> tuple[str, ...]:
    if len(set(values)) != len(values) or "" in values:
        raise ContractError(
            f"{name}: its first line should name the columns, each once; say them in `columns` otherwise."
        )
    return tuple(values)


def _row(columns: Sequence[str], values: list[str], raw: bytes) -> Row:
    """A row by name; of one with another number of values the text, which no mapping takes for a record."""
    if len(values) != len(columns):
        return json_row(raw)
    return {column: value for column, value in zip(columns, values, strict=True) if value != ""}


def _parquet(file: IO[bytes], framing: Framing, name: str) -> Iterator[Row]:
    try:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ContractError(f"{name} is no Parquet file that can be read ({str(error).splitlines()[0]}).") from None


def _avro(file: IO[bytes], framing: Framing, name: str) -> Iterator[Row]:
    import fastavro  # what only files of Avro need

    try:
        for record in fastavro.reader(file):
            yield record if isinstance(record, dict) else {"value": record}
    except (ValueError, EOFError, fastavro.schema.SchemaParseException) as error:
        raise ContractError(f"{name} is no Avro file that can be read ({error}).") from None
