"""Where the Delta tables are: opens their versions and data files, and repeats what another worker overtook."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from c360_pipeline.core.catalog.table import Table
from c360_pipeline.errors import ConflictError, TableError, UnavailableError
from c360_pipeline.stores.delta.opened import OpenedVersions
from c360_pipeline.stores.delta.snapshots import ROW_GROUP_ROWS, evolved

MAX_ATTEMPTS = 20
FILES_AT_ONCE = 64
BATCH_ROWS = 2 * ROW_GROUP_ROWS
"""Rows of a batch that a reader has in memory."""
UNDERSTOOD = frozenset({"timestampNtz", "vacuumProtocolCheck"})
"""Features of Delta that a reader of single data files has to know, and that leave what they hold as it is."""
SEE = "See docs/runbook.md#a_table_by_another_engine."
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
            TableError: it is written in a way that is not read here.
            UnavailableError: the store can't be read.
        """
        return self._opened.get(name, version, lambda: self.open_own(name, version))

    def open_own(self, name: str, version: int | None = None) -> DeltaTable | None:
        """The same, read anew, for whoever writes to it: a commit changes what was opened.

        Raises:
            TableError: it is written in a way that is not read here.
            UnavailableError: the store can't be read.
        """
        with self.named(name, version):
            try:
                table = DeltaTable(self.uri(name), version=version, storage_options=self.options)
            except TableNotFoundError:
                return None
        beyond = set(table.protocol().reader_features or ()) - UNDERSTOOD
        if beyond:
            # Data files are read by themselves: rows that are marked as deleted beside them would come back.
            raise TableError(
                f"The table {name} at {self.uri(name)}, version {table.version()}, needs {', '.join(sorted(beyond))} "
                f"from its readers: another engine wrote it so. Drop the feature there, or restore the table. {SEE}"
            )
        return table

    @contextmanager
    def named(self, name: str, version: int | None = None) -> Iterator[None]:
        """Whatever a library has to say of a table is said with the table's name.

        Raises:
            TableError: the table can't be read or written as it is.
            UnavailableError: the store does not answer.
        """
        of = f"The table {name} at {self.uri(name)}" + ("" if version is None else f", version {version},")
        try:
            yield
        except (CommitFailedError, TableNotFoundError):
            raise
        except FileNotFoundError as error:
            raise TableError(f"{of} lacks a data file: {_first_line(error)}. {SEE}") from error
        except OSError as error:
            raise UnavailableError(f"{of} can't be reached: {_first_line(error)}") from error
        except (DeltaError, pl.exceptions.PolarsError, pa.ArrowException) as error:
            raise TableError(f"{of} can't be used: {_first_line(error)}. {SEE}") from error

    def snapshot(self, table: Table) -> DeltaTable:
        """The table as it is now, made or completed where needed: what a decision is taken and committed on.

        Each thread keeps its own up to date.
        """
        kept: dict[str, DeltaTable] = vars(self._writers)
        if table.name in kept:
            protocol = kept[table.name].protocol()
            try:
                kept[table.name].update_incremental()
            except DeltaError:
                del kept[table.name]  # the commits that came since are not told one by one any more
            else:
                if kept[table.name].protocol() == protocol:
                    return kept[table.name]
                del kept[table.name]
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
                with self.named(table.name):
                    batch = rows.slice(start, BATCH_ROWS).collect()
                yield batch

    def read_files(self, table: Table, files: set[str], columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Those columns, or all, of the rows of some data files, cast to the types of the table."""
        schema = {name: dtype for name, dtype in table.empty().schema.items() if columns is None or name in columns}
        if not files:
            return pl.DataFrame(schema=schema)
        scan = self.scan_files(table, sorted(files))
        with self.named(table.name):
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
            TableError: the table is not to be written as it is.
            UnavailableError: the store does not answer.
        """
        try:
            with self.named(name):
                return Retrying(
                    retry=retry_if_exception(_is_overtaken),
                    wait=wait_random_exponential(multiplier=0.05, max=2),
                    stop=stop_after_attempt(MAX_ATTEMPTS),
                    reraise=True,
                )(attempt)
        except CommitFailedError as error:
            if not _is_overtaken(error):
                raise TableError(
                    f"The table {name} at {self.uri(name)} can't be written: {_first_line(error)}. Another engine "
                    f"asked that of its writers. {SEE}"
                ) from error
            raise ConflictError(f"Other workers changed {name} {MAX_ATTEMPTS} times in a row: {error}") from error


def _is_overtaken(error: BaseException) -> bool:
    """Whether a commit failed because of another one, and not for what the table asks of its writers."""
    return isinstance(error, CommitFailedError) and "Unsupported table features" not in str(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
