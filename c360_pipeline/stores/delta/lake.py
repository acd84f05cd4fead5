"""The lake: Delta tables in S3. Reading is here; what writes, compares versions and maintains is in its parts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import polars as pl
import pyarrow as pa
from deltalake import Schema
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import FileSelector, PyFileSystem

from c360_pipeline.core.catalog.table import SILO_RETENTION, Table
from c360_pipeline.stores.delta.commits import Commits
from c360_pipeline.stores.delta.key_lookup import KeyLookup
from c360_pipeline.stores.delta.maintenance import Maintenance
from c360_pipeline.stores.delta.snapshots import data_files, rows_by_file, rows_of, stored_bytes_of
from c360_pipeline.stores.delta.storage import Storage
from c360_pipeline.stores.delta.versions import BEFORE_ALL, Versions


class Lake:
    """Delta tables under one root.

    Attributes:
        commits: what writes to the tables.
        versions: which versions there are, and what changed between them.
        maintenance: compaction, vacuum, columns of a new release.

    Args:
        root: `s3://bucket/lake`, or a folder.
        storage_options: options of the object store, as delta-rs and polars take them.
        cache: folder on this machine for what can be made again at any time.
    """

    def __init__(self, root: str, storage_options: dict[str, str], cache: Path) -> None:
        self._storage = Storage(root, storage_options, cache)
        self._keys = KeyLookup(self._storage)
        self.commits = Commits(self._storage, self._keys)
        self.versions = Versions(self._storage)
        self.maintenance = Maintenance(self._storage, self._keys)

    @property
    def cache(self) -> Path:
        """Folder on this machine for what can be made again at any time."""
        return self._storage.cache

    def uri(self, name: str) -> str:
        """Where a table is."""
        return self._storage.uri(name)

    def scan(self, table: Table, version: int | None = None) -> pl.LazyFrame:
        """The rows of a table, lazily; no rows when it was never written, or not yet."""
        snapshot = self._storage.open(table.name, version) if version != BEFORE_ALL else None
        return rows_of(snapshot, table) if snapshot else table.empty().lazy()

    def read(self, table: Table, version: int | None = None) -> pl.DataFrame:
        """The rows of a table."""
        with self._storage.named(table.name, version):
            return self.scan(table, version).collect()

    def batches(self, table: Table, version: int | None = None) -> Iterator[pl.DataFrame]:
        """The rows of a table in bounded batches; a column that the table does not have is null."""
        snapshot = self._storage.open(table.name, version)
        return self._storage.batches_of(table, rows_by_file(snapshot) if snapshot else {})

    def scan_range(self, table: Table, column: str, values: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The rows whose `column` has one of the values, some files at a time; files without any are not read."""
        snapshot = self._storage.open(table.name)
        if snapshot is None or not values:
            return
        files = data_files(snapshot)
        low, high = (
            pl.col(f"{side}.{column}") if f"{side}.{column}" in files.columns else pl.lit(None, pl.String)
            for side in ("min", "max")
        )
        may_hold = (low.is_null() | (low <= max(values))) & (high.is_null() | (high >= min(values)))
        for part in self._storage.read_in_parts(table, set(files.filter(may_hold)["uri"]), list(table.columns)):
            yield part.filter(pl.col(column).is_in(values))

    def scan_files(self, table: Table, files: set[str]) -> pl.LazyFrame:
        """The rows of some data files, lazily."""
        return self._storage.scan_files(table, sorted(files)) if files else table.empty().lazy()

    def held(self, table: Table, keys: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
        """Those columns of the rows that have these keys."""
        snapshot = self._storage.open(table.name)
        if snapshot is None:
            return table.empty().select(columns)
        return self._keys.held(snapshot, table, keys, columns)

    def count(self, table: Table, version: int | None = None) -> int:
        """Rows of a table, at a version or now, from its log."""
        snapshot = self._storage.open(table.name, version)
        return int(data_files(snapshot)["num_records"].sum()) if snapshot else 0

    def count_by(self, table: Table, *columns: str) -> pl.DataFrame:
        """Rows per value of some columns, as `len`, by value; of partition columns, from the log."""
        snapshot = self._storage.open(table.name)
        if snapshot is None:
            return table.empty().select(columns).with_columns(len=pl.lit(0, pl.Int64)).clear()
        if set(columns) <= set(table.partition_by):
            files = data_files(snapshot).select(*(pl.col(f"partition.{c}").alias(c) for c in columns), "num_records")
            return files.group_by(columns).agg(len=pl.col("num_records").sum().cast(pl.Int64)).sort(columns)
        counts = rows_of(snapshot, table).group_by(columns).agg(len=pl.len().cast(pl.Int64)).sort(columns)
        return counts.collect(engine="streaming")

    def newest(self, table: Table, column: str, by: str, version: int | None = None) -> dict[str, Any]:
        """The largest value of a column for each value of a partition column, from the table's log alone.

        Args:
            table: which.
            column: whose statistics are kept.
            by: a column that the table is partitioned by.
            version: as of which; the newest by default.
        """
        snapshot = self._storage.open(table.name, version)
        files = data_files(snapshot) if snapshot else pl.DataFrame()
        if f"max.{column}" not in files.columns:
            return {}
        found = files.group_by(pl.col(f"partition.{by}")).agg(pl.col(f"max.{column}").max())
        return dict(found.sort(by=pl.first()).iter_rows())

    def table_names(self) -> list[str]:
        """Every table that there is, by name."""
        files = PyFileSystem(DeltaStorageHandler(self._storage.root, self._storage.options))
        found, waiting = [], [""]
        while waiting:
            folder = waiting.pop()
            below = [f.path for f in files.get_file_info(FileSelector(folder, allow_not_found=True)) if not f.is_file]
            if any(path.rpartition("/")[2] == "_delta_log" for path in below):
                found.append(folder)
            else:
                waiting += below
        return sorted(found)

    def stored_table(self, name: str, key: Sequence[str]) -> Table | None:
        """A table that only its log describes; None when it was never written."""
        snapshot = self._storage.open(name)
        if snapshot is None:
            return None
        columns = {field.name: field.type for field in pa.schema(cast("Any", snapshot.schema().to_arrow()))}
        return Table.of_types(
            name, tuple(key), columns, str(snapshot.metadata().description or ""), retention=SILO_RETENTION
        )

    def column_names(self, name: str, version: int | None = None) -> list[str]:
        """The columns that a table has at a version; none when there is no such table."""
        snapshot = self._storage.open(name, version)
        return [field.name for field in snapshot.schema().fields] if snapshot else []

    def has_columns(self, table: Table) -> bool:
        """Whether the table as it is has exactly these columns."""
        snapshot = self._storage.open(table.name)
        if snapshot is None:
            return False
        wanted = Schema.from_arrow(table.schema).fields
        return [(f.name, f.type) for f in snapshot.schema().fields] == [(f.name, f.type) for f in wanted]

    def missing_columns(self, table: Table) -> list[str]:
        """Columns that the table lacks or has with another type; none when it was never written."""
        snapshot = self._storage.open(table.name)
        if snapshot is None:
            return []
        held = {field.name: field.type for field in snapshot.schema().fields}
        wanted = Schema.from_arrow(table.schema).fields
        return [field.name for field in wanted if held.get(field.name) != field.type]

    def retyped_columns(self, table: Table) -> list[str]:
        """Columns that the table has with another type."""
        snapshot = self._storage.open(table.name)
        held = {field.name for field in snapshot.schema().fields} if snapshot else set()
        return [name for name in self.missing_columns(table) if name in held]

    def stored_bytes(self, table: Table) -> int:
        """Bytes of the table's data files, from its log."""
        snapshot = self._storage.open(table.name)
        return stored_bytes_of(snapshot) if snapshot else 0
