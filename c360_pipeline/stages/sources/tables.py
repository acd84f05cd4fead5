"""Rows of silo tables as records of sources: a purchase in a table becomes an event as one in a file does.

What came or changed in the lake's copy of a table is written as a file of the source, named after the version that it
brings the source to. From there on it is a file as any other: mapped, accounted for, replayed and read again. A row
that leaves its table is no event: what happened, happened.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.silos.control_rows import LINEAGE, ControlRows
from c360_pipeline.core.sources.records import json_row
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.local.scratch import scratch_folder
from c360_pipeline.stores.postgres.event_sources import SourceRow
from c360_pipeline.stores.s3.landing import Landing

FOLDER = "table-events/"
"""Under which the rows of tables lie, by source and day."""
_BROUGHT_TO = re.compile(r"/(?P<table>[0-9a-f-]{36})-(?P<number>[0-9]{20})\.jsonl$")
OWN = set(LINEAGE) - {"tenant_id"}
"""Columns that say when and by whom a row was read; they are no part of a record."""


@dataclass(frozen=True)
class Exported:
    """What became of a table.

    Attributes:
        source: its name.
        rows: that came or changed.
        uri: of the file with them; None where there are none.
    """

    source: str
    rows: int
    uri: str | None


def location_of(bucket: str, source: str) -> str:
    """Where the files of a source of rows lie."""
    return f"s3://{bucket}/{FOLDER}{source}/date={{date}}/*.jsonl"


def export_rows(
    lake: Lake, landing: Landing, control: ControlRows, sources: list[SourceRow], day: datetime | None = None
) -> tuple[list[Exported], dict[str, str]]:
    """Write what came or changed in the tables that sources name.

    Done again, or after a crash at any point, it writes the same file or none.

    Args:
        lake: with the copies of the tables.
        landing: where the files go.
        control: the silo tables.
        sources: all sources; those that are not active or of no table are passed over.
        day: the landing date; today where it is not given.

    Returns:
        What became of each table, and by source why one could not be had.
    """
    done, left = list[Exported](), dict[str, str]()
    tables = {control.table_name(table): table for table in control.tables}
    for row in sources:
        if row.from_table is None or not row.is_active:
            continue
        table = tables.get(row.from_table)
        if table is None:
            left[row.name] = f"{row.from_table} is no active row of source_tables: correct from_table of event_sources."
            continue
        stored = lake.stored_table(control.lake_table(table), ("tenant_id", *table.key_columns))
        if stored is None:
            left[row.name] = f"{row.from_table} was not read yet: `c360 run --select silo_tables` reads it."
            continue
        since = lake.versions.still_there(stored, _brought_to(landing, row.name, lake.versions.version(stored.name)))
        changed, version = lake.versions.changes(stored, since)
        rows = changed.upserted.drop([name for name in OWN if name in changed.upserted.columns])
        uri = None
        if rows.height and version is not None:
            uri = _write(landing, row.name, rows.sort(stored.key), version, day or datetime.now(UTC))
        done.append(Exported(row.name, rows.height, uri))
    return done, left


def _brought_to(landing: Landing, source: str, now: Version | None) -> Version | None:
    """The newest version of the table that a file of a source brought it to."""
    found = [match for key in landing.keys(f"{FOLDER}{source}/") if (match := _BROUGHT_TO.search(key))]
    numbers = [int(match["number"]) for match in found if now is not None and match["table"] == now.table_id]
    return Version(now.table_id, max(numbers)) if now is not None and numbers else None


def _write(landing: Landing, source: str, rows: pl.DataFrame, version: Version, day: datetime) -> str:
    with scratch_folder() as folder:
        path = folder / f"{version.table_id}-{version.number:020}.jsonl"
        with path.open("wb") as file:
            file.writelines(_lines(rows))
        return landing.put_file(path, f"{FOLDER}{source}/date={day.date().isoformat()}/")


def _lines(rows: pl.DataFrame) -> Iterator[bytes]:
    for part in rows.iter_slices(10_000):
        for row in part.iter_rows(named=True):
            yield json_row(row)
