"""Sends events of the archive to Kafka again, for stores that lack them; nothing is there twice afterwards."""

import json
from collections.abc import Iterator
from datetime import date

import polars as pl

from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.contract.fields import FIELDS, FieldType
from c360_pipeline.core.contract.layout import INSTANTS
from c360_pipeline.core.projection.graph import attributes_text
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.streaming.operators import REPLAY_HEADER
from c360_pipeline.streaming.producer import Header, message_key

MAPS = tuple(field.column for field in FIELDS if field.type in (FieldType.ATTRIBUTES, FieldType.TEXTS))
REPLAY: tuple[Header, ...] = ((REPLAY_HEADER, b"1"),)


def archived_lines(lake: Lake, tenant_id: str, first: date, last: date) -> Iterator[tuple[bytes, bytes]]:
    """Lines as producers send them, with their keys, by time.

    Args:
        lake: the archive.
        tenant_id: whose.
        first: date of events, in UTC.
        last: the same, included.
    """
    for day in pl.date_range(first, last, eager=True):
        events = lake.scan(EVENTS).filter((pl.col("tenant_id") == tenant_id) & (pl.col("event_date") == day))
        found = events.sort("ts", "event_id").collect()
        texts = [attributes_text(found[column]).alias(column) for column in MAPS]
        for row in found.with_columns(texts).iter_rows(named=True):
            maps = {column: json.loads(row[column]) or None for column in MAPS}
            instants = {column: row[column].isoformat() for column in INSTANTS if row[column] is not None}
            values = {**row, **maps, **instants, "attrs": maps["attrs"] or {}}
            line = {field.name: values[field.column] for field in FIELDS}
            key = message_key(row["tenant_id"], row["user_id"] or row["anonymous_id"] or "")
            yield json.dumps(line, ensure_ascii=False).encode(), key
