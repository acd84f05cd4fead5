"""What a version of a Delta table says of its files, and how commits on it are described."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

import polars as pl
import pyarrow as pa
from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    Schema,
    Transaction,
    WriterProperties,
)

from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.table import Table

WRITER = "exclusive"
WRITTEN_ROWS = 16 * 1024
"""Rows handed to the writer at once: it takes several such batches ahead."""
ROW_GROUP_ROWS = 128 * 1024
"""Rows of a row group: what a reader or writer has in memory of a file."""


def version_of(snapshot: DeltaTable) -> Version:
    """The version that a snapshot is of."""
    return Version(str(snapshot.metadata().id), snapshot.version())


def rows_of(snapshot: DeltaTable, table: Table) -> pl.LazyFrame:
    """The table's rows; a column that the table does not have yet is null."""
    present = {field.name for field in snapshot.schema().fields}
    schema = table.empty().schema
    return pl.scan_delta(snapshot).select(
        pl.col(name) if name in present else pl.lit(None, schema[name]).alias(name) for name in table.columns
    )


def rows_by_file(snapshot: DeltaTable) -> dict[str, int]:
    """Rows of each data file, by its address."""
    files = data_files(snapshot)
    return dict(zip(files["uri"], files["num_records"], strict=True))


def data_files(snapshot: DeltaTable) -> pl.DataFrame:
    """One row per data file: uri, num_records, partition values and statistics as delta-rs names them."""
    by_name = {uri.rpartition("/")[2]: uri for uri in snapshot.file_uris()}
    files = pl.DataFrame(snapshot.get_add_actions(flatten=True))
    names = files["path"].str.split("/").list.last()
    return files.with_columns(uri=names.replace_strict(by_name, return_dtype=pl.String))


def stored_bytes_of(snapshot: DeltaTable) -> int:
    """Bytes of the data files."""
    return int(data_files(snapshot)["size_bytes"].sum())


def evolved(snapshot: DeltaTable, table: Table) -> DeltaTable:
    """Add the columns that this release knows and the table does not have; older rows hold null there."""
    present = {field.name for field in snapshot.schema().fields}
    missing = [field for field in Schema.from_arrow(table.schema).fields if field.name not in present]
    if missing:
        snapshot.alter.add_columns(missing)
    return snapshot


def fitting_mode(snapshot: DeltaTable, table: Table) -> Literal["merge"] | None:
    """How rows are written that lack columns which another engine added: they hold null there."""
    has_more = {field.name for field in snapshot.schema().fields} - set(table.columns)
    return "merge" if has_more else None


def instant_of(milliseconds: int) -> datetime:
    """An instant of the log, which has milliseconds since 1970, in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def arrow_batches(frames: Iterable[pl.DataFrame], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Frames as batches of `WRITTEN_ROWS` rows at most, cast to a schema."""
    for frame in frames:
        yield from frame.to_arrow().cast(schema).to_batches(max_chunksize=WRITTEN_ROWS)


def quoted(column: str) -> str:
    """A column in SQL."""
    doubled = column.replace('"', '""')
    return f'"{doubled}"'


def literals(values: Sequence[str]) -> str:
    """Texts in SQL."""
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


def transactions(numbers: Mapping[str, int]) -> list[Transaction]:
    """Transactions of a commit: named numbers."""
    return [Transaction(name, number) for name, number in numbers.items()]


def next_transaction(
    snapshot: DeltaTable, about: dict[str, str] | None = None, numbers: Mapping[str, int] | None = None
) -> CommitProperties:
    """What a commit says besides its rows: the next number of our exclusive writes, and named numbers.

    Args:
        snapshot: that the commit is decided on.
        about: kept with the commit, for those who read the history.
        numbers: further numbers by name.
    """
    last = snapshot.transaction_version(WRITER) or 0
    named = transactions({WRITER: last + 1, **(numbers or {})})
    return CommitProperties(custom_metadata=about, app_transactions=named)


def writer_properties(table: Table) -> WriterProperties:
    """How files of a table are written: in row groups, and without dictionaries of values that hardly repeat."""
    plain = ColumnProperties(dictionary_enabled=False)
    return WriterProperties(max_row_group_size=ROW_GROUP_ROWS, column_properties=dict.fromkeys(table.distinct, plain))
