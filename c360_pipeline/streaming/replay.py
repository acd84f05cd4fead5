"""Sends events of the archive to Kafka again, for stores that lack them; nothing is there twice afterwards."""

import json
from collections.abc import Iterator
from datetime import date

import polars as pl

from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.contract.fields import FIELDS
from c360_pipeline.core.projection.graph import attributes_text
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.streaming.operators import REPLAY_HEADER
from c360_pipeline.streaming.producer import Header, message_key

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
        for row in found.with_columns(attributes_text(found["attrs"]).alias("attrs")).iter_rows(named=True):
            values = {**row, "ts": row["ts"].isoformat(), "attrs": json.loads(row["attrs"])}
            line = {field.name: values[field.column] for field in FIELDS}
            yield json.dumps(line, ensure_ascii=False).encode(), message_key(row["tenant_id"], row["user_id"])
