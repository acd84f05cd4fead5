"""Where the Delta tables are: opens their versions and data files, and repeats what another worker overtook."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from c360_pipeline.core.catalog.table import Table
from c360_pipeline.errors import ConflictError, UnavailableError
from c360_pipeline.stores.delta.opened import OpenedVersions
from c360_pipeline.stores.delta.snapshots import ROW_GROUP_ROWS, evolved

MAX_ATTEMPTS = 20
FILES_AT_ONCE = 64
BATCH_ROWS = 2 * ROW_GROUP_ROWS
"""Rows of a batch that a reader has in memory."""
T = TypeVar("T")


class Storage:
    """The object store, or folder, below which the tables are.

    Args:
        root: `s3://bucket/lake`, or a folder.
        options: of the object store, as delta-rs and polars take them; they hold the secret.
        cache: folder on this machine for what can be made again at any time.
    """

    def __init__(self, root: str, options: dict[str, str], cache: Path) -> None:
        self.root = root.rstrip("/")
        self.options = options
        self.cache = cache
        self._writers = threading.local()
        self._opened = OpenedVersions(root, options)

    def uri(self, name: str) -> str:
        """Where a table is."""
        return f"{self.root}/{name}"

    def open(self, name: str, version: int | None = None) -> DeltaTable | None:
        """A version of a table, the newest by default, to be read and not written; None when there is no such table.

        Raises:
            UnavailableError: the store can't be read.
        """
        return self._opened.get(name, version, lambda: self.open_own(name, version))

    def open_own(self, name: str, version: int | None = None) -> DeltaTable | None:
        """The same, read anew, for whoever writes to it: a commit changes what was opened.

        Raises:
            UnavailableError: the store can't be read.
        """
        try:
            return DeltaTable(self.uri(name), version=version, storage_options=self.options)
        except TableNotFoundError:
            return None
        except OSError as error:
            raise UnavailableError(f"The lake at {self.root} can't be read: {error}") from error

    def snapshot(self, table: Table) -> DeltaTable:
        """The table as it is now, made or completed where needed: what a decision is taken and committed on.

        Each thread keeps its own up to date.
        """
        kept: dict[str, DeltaTable] = vars(self._writers)
        if table.name in kept:
            try:
                kept[table.name].update_incremental()
            except DeltaError:
                del kept[table.name]  # the commits that came since are not told one by one any more
            else:
                return kept[table.name]
        existing = self.open_own(table.name)
        kept[table.name] = evolved(existing, table) if existing is not None else self._create(table)
        return kept[table.name]

    def _create(self, table: Table) -> DeltaTable:
        return DeltaTable.create(
            self.uri(table.name),
            schema=table.schema,
            mode="ignore",
            partition_by=list(table.partition_by),
            name=table.name.replace("/", "_"),
            description=table.description,
            storage_options=self.options,
        )

    def forget_snapshot(self, name: str) -> None:
        """Open a table again the next time: what this thread knows of it is out of date."""
        vars(self._writers).pop(name, None)

    def batches_of(self, table: Table, rows_by_file: Mapping[str, int]) -> Iterator[pl.DataFrame]:
        """The rows of some data files in batches of `BATCH_ROWS` at most; a column that a file lacks is null."""
        columns = list(table.empty().schema)
        for uri, count in sorted(rows_by_file.items()):
            rows = self.scan_files(table, [uri]).select(columns)
            # One slice after the other: an engine that reads ahead holds the table when its reader is slow.
            for start in range(0, count, BATCH_ROWS):
                yield rows.slice(start, BATCH_ROWS).collect()

    def read_files(self, table: Table, files: set[str], columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Those columns, or all, of the rows of some data files, cast to the types of the table."""
        schema = {name: dtype for name, dtype in table.empty().schema.items() if columns is None or name in columns}
        if not files:
            return pl.DataFrame(schema=schema)
        scan = self.scan_files(table, sorted(files))
        return scan.select(pl.col(name).cast(dtype) for name, dtype in schema.items()).collect()

    def scan_files(self, table: Table, files: list[str]) -> pl.LazyFrame:
        """Data files with their partition values; a column that a file does not have is null."""
        schema = table.empty().schema
        return pl.scan_parquet(
            files,
            hive_partitioning=bool(table.partition_by),
            hive_schema={c: schema[c] for c in table.partition_by} if table.partition_by else None,
            storage_options=self.options or None,
            missing_columns="insert",
            schema={n: d for n, d in schema.items() if n not in table.partition_by},
            extra_columns="ignore",
        )

    def read_in_parts(self, table: Table, files: set[str], columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The same, `FILES_AT_ONCE` files at a time."""
        ordered = sorted(files)
        for start in range(0, len(ordered), FILES_AT_ONCE):
            yield self.read_files(table, set(ordered[start : start + FILES_AT_ONCE]), columns)

    def retried(self, name: str, attempt: Callable[[], T]) -> T:
        """Do what commits on a snapshot, again on a new one as long as other workers were faster.

        Raises:
            ConflictError: other workers were faster 20 times in a row.
        """
        try:
            return Retrying(
                retry=retry_if_exception_type(CommitFailedError),
                wait=wait_random_exponential(multiplier=0.05, max=2),
                stop=stop_after_attempt(MAX_ATTEMPTS),
                reraise=True,
            )(attempt)
        except CommitFailedError as error:
            raise ConflictError(f"Other workers changed {name} {MAX_ATTEMPTS} times in a row: {error}") from error
