"""The lake: Delta tables in S3, written so that a repeated or concurrent write has one result.

delta-rs writes a transaction id twice when asked twice, so every exclusive write looks at the snapshot first and
commits on that very snapshot; a worker that was faster makes the commit fail and the work is done again on the new
snapshot (see docs/adr/0006).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import polars as pl
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from c360_pipeline.core.lake import Changes, Table, compare_versions
from c360_pipeline.errors import ConflictError, UnavailableError

MAX_ATTEMPTS = 20
WRITER = "exclusive"
T = TypeVar("T")


@dataclass(frozen=True)
class Version:
    """A version of a table; `table_id` tells a table from one that was made anew under the same name."""

    table_id: str
    number: int

    def __str__(self) -> str:
        return f"{self.table_id}@{self.number}"

    @classmethod
    def parse(cls, text: str) -> "Version":
        """The inverse of str()."""
        table_id, _, number = text.rpartition("@")
        return cls(table_id, int(number))


class Lake:
    """Delta tables under one root.

    Args:
        root: `s3://bucket/lake`, or a folder.
        storage_options: options of the object store, as delta-rs and polars take them.
    """

    def __init__(self, root: str, storage_options: dict[str, str]) -> None:
        self._root = root.rstrip("/")
        self._options = storage_options

    def uri(self, name: str) -> str:
        """Where a table is."""
        return f"{self._root}/{name}"

    def _open(self, name: str, version: int | None = None) -> DeltaTable | None:
        try:
            return DeltaTable(self.uri(name), version=version, storage_options=self._options)
        except TableNotFoundError:
            return None
        except OSError as error:
            raise UnavailableError(f"The lake at {self._root} can't be read: {error}") from error

    def _ensure(self, table: Table) -> DeltaTable:
        existing = self._open(table.name)
        if existing is not None:
            return existing
        return DeltaTable.create(
            self.uri(table.name),
            schema=table.schema,
            mode="ignore",
            partition_by=list(table.partition_by),
            name=table.name.replace("/", "_"),
            description=table.description,
            storage_options=self._options,
        )

    def version(self, name: str) -> Version | None:
        """The newest version; None when there is no such table."""
        snapshot = self._open(name)
        return _version(snapshot) if snapshot else None

    def scan(self, table: Table, version: int | None = None) -> pl.LazyFrame:
        """The rows of a table, lazily; no rows when it was never written."""
        snapshot = self._open(table.name, version)
        return _rows(snapshot, table) if snapshot else table.empty().lazy()

    def read(self, table: Table, version: int | None = None) -> pl.DataFrame:
        """The rows of a table."""
        return self.scan(table, version).collect()

    def append_exclusive(self, table: Table, build: Callable[[pl.LazyFrame], pl.DataFrame]) -> pl.DataFrame:
        """Append rows that depend on the rows there already, as if no other worker existed.

        Args:
            table: where to.
            build: called with the current rows, returns the rows to append; called again when another worker was
                faster, so it must be pure.

        Returns:
            The rows that were appended.

        Raises:
            ConflictError: other workers were faster 20 times in a row.
        """

        def attempt() -> pl.DataFrame:
            snapshot = self._ensure(table)
            rows = build(_rows(snapshot, table))
            if rows.height:
                _commit_exclusive(snapshot, rows.select(list(table.columns)), "append")
            return rows

        return self._retried(table.name, attempt)

    def insert_new(self, table: Table, rows: pl.DataFrame) -> int:
        """Append the rows whose key the table does not hold; returns how many that were."""
        key = list(table.key)
        fresh = rows.unique(key, keep="first", maintain_order=True)

        def build(current: pl.LazyFrame) -> pl.DataFrame:
            wanted = fresh.select(key).lazy()
            held = current.select(key).join(wanted, on=key, how="semi").collect()
            return fresh.join(held, on=key, how="anti", maintain_order="left")

        return self.append_exclusive(table, build).height if rows.height else 0

    def replace(self, table: Table, rows: pl.DataFrame) -> Changes:
        """Make the table hold exactly these rows; commits nothing when it does already.

        Returns:
            What changed.
        """

        def attempt() -> Changes:
            snapshot = self._ensure(table)
            current = _rows(snapshot, table).collect()
            changes = compare_versions(current, rows.select(list(table.columns)), table.key)
            if changes.count:
                _commit_exclusive(snapshot, rows.select(list(table.columns)), "overwrite")
            return changes

        return self._retried(table.name, attempt)

    def read_silo(self, name: str) -> pl.DataFrame:
        """The rows of a silo table, whatever its columns; an empty frame without columns when it was never read."""
        snapshot = self._open(name)
        return pl.scan_delta(snapshot).collect() if snapshot else pl.DataFrame()

    def replace_silo(self, name: str, rows: pl.DataFrame, description: str) -> None:
        """Make a silo table hold these rows and these columns."""

        def attempt() -> None:
            snapshot = self._open(name)
            write_deltalake(
                snapshot or self.uri(name),
                rows,
                mode="overwrite",
                schema_mode="overwrite" if snapshot else None,
                description=description,
                storage_options=self._options,
            )

        self._retried(name, attempt)

    def still_there(self, table: Table, since: Version | None) -> Version | None:
        """The version, or None when the table was made anew since or no longer keeps it."""
        now = self._open(table.name)
        return since if now is not None and self._open_earlier(table, now, since) is not None else None

    def changes(self, table: Table, since: Version | None) -> tuple[Changes, Version | None]:
        """What changed since a version, and the version it changed to.

        Only files that one of the two versions has and the other has not are read, so the cost follows the change.
        A version that is gone, or of another table, counts as an empty table.
        """
        now = self._open(table.name)
        if now is None:
            return Changes(table.empty(), table.empty().select(table.key)), None
        before = self._open_earlier(table, now, since)
        files_now, files_before = set(now.file_uris()), set(before.file_uris()) if before else set()
        after_rows = self._read_files(table, files_now - files_before)
        before_rows = self._read_files(table, files_before - files_now)
        return compare_versions(before_rows, after_rows, table.key), _version(now)

    def _open_earlier(self, table: Table, now: DeltaTable, since: Version | None) -> DeltaTable | None:
        if since is None or since.table_id != str(now.metadata().id):
            return None
        try:
            return self._open(table.name, since.number)
        except DeltaError:
            return None

    def _read_files(self, table: Table, files: set[str]) -> pl.DataFrame:
        if not files:
            return table.empty()
        schema = table.empty().schema
        scan = pl.scan_parquet(
            sorted(files),
            hive_partitioning=bool(table.partition_by),
            hive_schema={c: schema[c] for c in table.partition_by} if table.partition_by else None,
            storage_options=self._options or None,
        )
        return scan.select(pl.col(name).cast(dtype) for name, dtype in schema.items()).collect()

    def _retried(self, name: str, attempt: Callable[[], T]) -> T:
        try:
            return Retrying(
                retry=retry_if_exception_type(CommitFailedError),
                wait=wait_random_exponential(multiplier=0.05, max=2),
                stop=stop_after_attempt(MAX_ATTEMPTS),
                reraise=True,
            )(attempt)
        except CommitFailedError as error:
            raise ConflictError(f"Other workers changed {name} {MAX_ATTEMPTS} times in a row: {error}") from error


def _version(snapshot: DeltaTable) -> Version:
    return Version(str(snapshot.metadata().id), snapshot.version())


def _rows(snapshot: DeltaTable, table: Table) -> pl.LazyFrame:
    return pl.scan_delta(snapshot).select(list(table.columns))


def _commit_exclusive(snapshot: DeltaTable, rows: pl.DataFrame, mode: Literal["append", "overwrite"]) -> None:
    """Commit on this snapshot, or fail when anything else was committed exclusively since.

    The transaction's number makes it so: two appends, or two overwrites of an empty table, do not conflict by
    themselves.
    """
    last = snapshot.transaction_version(WRITER) or 0
    properties = CommitProperties(app_transactions=[Transaction(WRITER, last + 1)])
    write_deltalake(snapshot, rows, mode=mode, commit_properties=properties)
