"""Events as frames: the types of their columns, in the archive's form and between stores."""

from collections.abc import Iterable

import polars as pl

from c360_pipeline.core.contract.events import Event
from c360_pipeline.core.contract.fields import FieldType
from c360_pipeline.core.contract.layout import COLUMNS, STREAM_COLUMNS, field_of

Types = dict[str, pl.DataType | type[pl.DataType]]
ENTRIES = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
ITEMS = pl.List(pl.Struct({"id": pl.String, "quantity": pl.Float64, "price": pl.Float64, "currency": pl.String}))
_TYPES: dict[FieldType, pl.DataType] = {
    FieldType.TEXT: pl.String(), FieldType.INSTANT: pl.Datetime("us", "UTC"), FieldType.ATTRIBUTES: ENTRIES,
    FieldType.TEXTS: ENTRIES, FieldType.ITEMS: ITEMS, FieldType.WHOLE: pl.Int64(),
}  # fmt: skip
EVENT_SCHEMA: Types = {column: _TYPES[field_of(column).type] for column in COLUMNS}
"""Columns of an event, its attributes as a list of key and value."""
MICROS = "micros"
"""An instant as microseconds since 1970 in UTC, where stores are compared; the column of the only one is named so."""
CONTENT: Types = {
    MICROS if column == "ts" else column:
    {FieldType.TEXT: pl.String, FieldType.INSTANT: pl.Int64, FieldType.ATTRIBUTES: pl.String}[field_of(column).type]
    for column in STREAM_COLUMNS
}  # fmt: skip
"""An event wherever it is, as stores are compared: instants as `micros`, attributes as JSON with sorted names."""
TEXT_COLUMNS = tuple(column for column in STREAM_COLUMNS if field_of(column).type is FieldType.TEXT)


def event_frame(events: Iterable[Event]) -> pl.DataFrame:
    """Events as rows of `EVENT_SCHEMA`."""
    rows = [
        {
            column: [{"key": k, "value": v} for k, v in value.items()] if isinstance(value, dict) else value
            for column, value in event._asdict().items() if column in EVENT_SCHEMA
        }
        for event in events
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=EVENT_SCHEMA)
