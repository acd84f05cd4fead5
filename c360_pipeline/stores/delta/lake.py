"""The lake: Delta tables in S3, written so that a repeated or concurrent write has one result.

delta-rs writes a transaction id twice when asked twice, so every exclusive write looks at the snapshot first and
commits on that very snapshot; a worker that was faster makes the commit fail and the work is done again on the new
snapshot (see docs/adr/0006).
"""

import json
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    Schema,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction
from pyarrow.fs import FileSelector, PyFileSystem
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from c360_pipeline.core.arrays.row_hashes import identity_hash
from c360_pipeline.core.catalog.changes import Changes, RowChanges, Version, compare_versions
from c360_pipeline.core.catalog.tables import SILO_RETENTION, Care, Table
from c360_pipeline.errors import C360Error, ConfigError, ConflictError, UnavailableError
from c360_pipeline.stores.delta.key_index import Hashes, KeyIndex

MAX_ATTEMPTS = 20
WRITER = "exclusive"
FILES_AT_ONCE = 64
TARGET_FILE_BYTES = 128 * 1024 * 1024
WRITTEN_ROWS = 16 * 1024
"""Rows handed to the writer at once: it takes several such batches ahead."""
ROW_GROUP_ROWS = 128 * 1024
"""Rows of a row group: what a reader or writer has in memory of a file."""
BATCH_ROWS = 2 * ROW_GROUP_ROWS
MERGED_BYTES = 64 * 1024 * 1024
"""Up to this size a table takes changes by a merge, which holds it in memory; a larger one is written anew."""
SPILL_BYTES = 128 * 1024 * 1024
"""Memory of a merge before it spills to disk."""
BEFORE_ALL = -1
"""The number of the version that a table had before there was any."""
LOG_RETENTION = {
    "delta.logRetentionDuration": "interval 30 days", "delta.deletedFileRetentionDuration": "interval 7 days",
}  # fmt: skip
"""What Delta does where nothing is said."""
CARE_OPERATIONS = ("OPTIMIZE", "VACUUM START", "VACUUM END")
T = TypeVar("T")


class Lake:
    """Delta tables under one root.

    Args:
        root: `s3://bucket/lake`, or a folder.
        storage_options: options of the object store, as delta-rs and polars take them.
        cache: folder on this machine for what can be made again at any time.
    """

    def __init__(self, root: str, storage_options: dict[str, str], cache: Path) -> None:
        self._root = root.rstrip("/")
        self._options = storage_options
        self._cache = cache
        self._indexes: dict[str, KeyIndex] = {}
        self._writers = threading.local()

    @property
    def cache(self) -> Path:
        """Folder on this machine for what can be made again at any time."""
        return self._cache

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
        existing = self._open(table.name)
        kept[table.name] = _evolved(existing, table) if existing is not None else self._create(table)
        return kept[table.name]

    def _create(self, table: Table) -> DeltaTable:
        return DeltaTable.create(
            self.uri(table.name),
            schema=table.schema,
            mode="ignore",
            partition_by=list(table.partition_by),
            name=table.name.replace("/", "_"),
            description=table.description,
            storage_options=self._options,
        )

    def append_numbered(
        self, table: Table, snapshot: DeltaTable, rows: pl.DataFrame, numbers: Mapping[str, int]
    ) -> None:
        """Append rows that were decided on a snapshot, and set named numbers with them; no rows set just the numbers.

        Args:
            table: where to.
            snapshot: of this table; afterwards that of the commit.
            rows: columns of the table.
            numbers: by name; each is above the snapshot's, as `DeltaTable.transaction_version` tells.

        Raises:
            CommitFailedError: another worker set one of these numbers since the snapshot.
        """
        write_deltalake(
            snapshot,
            rows.select(list(table.columns)),
            mode="append",
            writer_properties=_writer_properties(table),
            commit_properties=CommitProperties(app_transactions=_transactions(numbers)),
        )

    def apply(self, table: Table, snapshot: DeltaTable, changes: RowChanges, numbers: Mapping[str, int]) -> None:
        """Bring changes into a table and set named numbers, in one commit on a snapshot.

        The cost follows the changes while rows only come; rows that change or go are merged into a small table, and of
        a large one all rows are written anew, batch by batch.

        Args:
            table: where.
            snapshot: what the changes were decided on; afterwards that of the commit.
            changes: of whole rows.
            numbers: as `append_numbered` takes them.

        Raises:
            CommitFailedError: another worker set one of these numbers, or changed the table, since the snapshot.
        """
        properties = _next_transaction(snapshot, numbers=numbers)
        upserts = pl.concat([changes.inserted, changes.updated]).select(list(table.columns))
        if not changes.updated.height + changes.deleted.height:
            write_deltalake(
                snapshot, upserts, mode="append", writer_properties=_writer_properties(table),
                commit_properties=properties,
            )  # fmt: skip
        elif _stored_bytes(snapshot) <= MERGED_BYTES:
            _merge(snapshot, table, upserts, changes.deleted, table.key, properties)
        else:
            touched = pl.concat([changes.updated.select(table.key), changes.deleted.select(table.key)])
            held = self._batches(table, _rows_by_file(snapshot))
            kept = (batch.join(touched, on=list(table.key), how="anti") for batch in held)
            schema = table.empty().to_arrow().schema
            write_deltalake(
                snapshot,
                pa.RecordBatchReader.from_batches(schema, _arrow_batches(chain(kept, [upserts]), schema)),
                mode="overwrite",
                target_file_size=TARGET_FILE_BYTES,
                writer_properties=_writer_properties(table),
                commit_properties=properties,
            )

    def commit_files(self, table: Table, snapshot: DeltaTable, folder: str, numbers: Mapping[str, int]) -> int:
        """Commit Parquet files that somebody wrote below a table's own folder; returns how many rows they hold.

        Args:
            table: without partitions.
            snapshot: what the rows were decided on; afterwards that of the commit.
            folder: below the table, where the files are.
            numbers: as `append_numbered` takes them.

        Raises:
            CommitFailedError: another worker set one of these numbers since the snapshot.
        """
        files = PyFileSystem(DeltaStorageHandler(self.uri(table.name), self._options))
        found = [f for f in files.get_file_info(FileSelector(folder)) if f.path.endswith(".parquet") and f.size]
        actions: list[AddAction | RemoveAction] = []
        rows = 0
        for file in sorted(found, key=lambda one: one.path):
            with files.open_input_file(file.path) as opened:
                count = pq.ParquetFile(opened).metadata.num_rows
            rows += count
            stats = json.dumps({"numRecords": count})
            changed = int(file.mtime_ns or 0) // 1_000_000
            actions.append(AddAction(file.path, file.size, {}, changed, data_change=True, stats=stats))
        snapshot.create_write_transaction(
            actions, "append", table.schema, commit_properties=CommitProperties(app_transactions=_transactions(numbers))
        )
        snapshot.update_incremental()
        return rows

    def file_uris(self, table: Table, version: Version | None = None) -> list[str]:
        """The data files of a table, at a version or now: for engines that read them by themselves."""
        snapshot = self._open(table.name, version.number if version else None)
        return snapshot.file_uris() if snapshot else []

    def delete_rows(
        self,
        table: Table,
        tenants: Sequence[str],
        values: Mapping[str, Sequence[str]],
        blank: Mapping[str, Sequence[str]],
    ) -> int:
        """Remove the rows of some tenants that have one of some values in one of some columns; returns how many.

        Values of columns in `blank` become empty, and their rows stay.
        """
        any_of = [f"{_quoted(name)} IN ({_literals(held)})" for name, held in values.items() if held]
        blanked = {name: held for name, held in blank.items() if held}
        if not (tenants and (any_of or blanked)):
            return 0
        of_tenants = f"{_quoted('tenant_id')} IN ({_literals(tenants)})"

        def attempt() -> int:
            snapshot = self.snapshot(table)
            gone = 0
            if any_of:
                predicate = f"{of_tenants} AND ({' OR '.join(any_of)})"
                done = snapshot.delete(predicate, writer_properties=_writer_properties(table))
                gone = int(done["num_deleted_rows"])
            for name, held in blanked.items():
                snapshot.update({name: "''"}, predicate=f"{of_tenants} AND {_quoted(name)} IN ({_literals(held)})")
            return gone

        return self.retried(table.name, attempt)

    def rename_deliveries(self, table: Table, etag_column: str, renamed: Mapping[tuple[str, str], str]) -> None:
        """Say of rows of deliveries that their file has another etag now.

        Args:
            table: with source_uri.
            etag_column: where the etag is.
            renamed: the new etag by address and old etag.
        """
        uri, etag = _quoted("source_uri"), _quoted(etag_column)
        cases = [
            f"WHEN {uri} = {_literals([address])} AND {etag} = {_literals([old])} THEN {_literals([new])}"
            for (address, old), new in renamed.items()
        ]
        if not cases or not self.count(table):
            return
        addresses, olds = (sorted({pair[n] for pair in renamed}) for n in (0, 1))
        predicate = f"{uri} IN ({_literals(addresses)}) AND {etag} IN ({_literals(olds)})"

        def attempt() -> None:
            self.snapshot(table).update(
                {etag_column: f"CASE {' '.join(cases)} ELSE {etag} END"}, predicate=predicate,
                writer_properties=_writer_properties(table),
            )  # fmt: skip

        self.retried(table.name, attempt)

    def forget_versions(self, name: str) -> tuple[Version, Version] | None:
        """Remove what earlier versions held from the store: their files, and the log that tells of them.

        Nobody can read an earlier version afterwards.

        Returns:
            The newest version before and after, of the same rows; None when somebody wrote meanwhile.
        """
        snapshot = self._open(name)
        if snapshot is None:
            return None
        before = _version(snapshot)

        def attempt() -> tuple[Version, Version] | None:
            table = DeltaTable(self.uri(name), storage_options=self._options)
            table.alter.set_table_properties(dict.fromkeys(LOG_RETENTION, "interval 0 seconds"))
            table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
            fresh = DeltaTable(self.uri(name), storage_options=self._options)
            later = fresh.history(fresh.version() - before.number)
            fresh.create_checkpoint()
            fresh.cleanup_metadata()
            fresh.alter.set_table_properties(LOG_RETENTION)
            is_same = all(commit["operation"] in (*CARE_OPERATIONS, "SET TBLPROPERTIES") for commit in later)
            return (before, _version(fresh)) if is_same else None

        done = self.retried(name, attempt)
        vars(self._writers).pop(name, None)
        return done

    def scan_files(self, table: Table, files: set[str]) -> pl.LazyFrame:
        """The rows of some data files, lazily."""
        return self._scan_parquet(table, sorted(files)) if files else table.empty().lazy()

    def uris_at(self, name: str, number: int) -> list[str]:
        """The data files of a version of a table."""
        snapshot = self._open(name, number)
        return snapshot.file_uris() if snapshot else []

    def table_names(self) -> list[str]:
        """Every table that there is, by name."""
        files = PyFileSystem(DeltaStorageHandler(self._root, self._options))
        found, waiting = [], [""]
        while waiting:
            folder = waiting.pop()
            below = [f.path for f in files.get_file_info(FileSelector(folder, allow_not_found=True)) if not f.is_file]
            if any(path.rpartition("/")[2] == "_delta_log" for path in below):
                found.append(folder)
            else:
                waiting += below
        return sorted(found)

    def version(self, name: str) -> Version | None:
        """The newest version; None when there is no such table."""
        snapshot = self._open(name)
        return _version(snapshot) if snapshot else None

    def version_at(self, name: str, instant: datetime, retention: timedelta) -> Version | None:
        """The version that a table had at an instant; None when there is no such table.

        Args:
            name: of the table.
            instant: with a time zone.
            retention: for how long files that a later version does not need are kept.

        Raises:
            ConfigError: the table does not keep what it was then.
        """
        snapshot = self._open(name)
        if snapshot is None:
            return None
        commits = sorted((entry["version"], _instant(entry["timestamp"])) for entry in snapshot.history())
        until = [number for number, at in commits if at <= instant]
        later = [at for _, at in commits if at > instant]
        table_id = str(snapshot.metadata().id)
        if not until and commits[0][0] == 0:
            return Version(table_id, BEFORE_ALL)
        if not until or (later and datetime.now(UTC) - min(later) > retention):
            raise ConfigError(
                f"{name} does not tell any more what it was at {instant.isoformat()}: "
                f"replaced files are kept for {retention.days} days."
            )
        return Version(table_id, max(until))

    def history(self, table: Table) -> list[dict[str, Any]]:
        """The commits of a table, the newest first."""
        snapshot = self._open(table.name)
        return snapshot.history() if snapshot else []

    def scan(self, table: Table, version: int | None = None) -> pl.LazyFrame:
        """The rows of a table, lazily; no rows when it was never written, or not yet."""
        snapshot = self._open(table.name, version) if version != BEFORE_ALL else None
        return _rows(snapshot, table) if snapshot else table.empty().lazy()

    def read(self, table: Table, version: int | None = None) -> pl.DataFrame:
        """The rows of a table."""
        return self.scan(table, version).collect()

    def append_exclusive(
        self,
        table: Table,
        keys: pl.DataFrame,
        columns: Sequence[str],
        build: Callable[[pl.DataFrame], pl.DataFrame],
        about: dict[str, str] | None = None,
    ) -> pl.DataFrame:
        """Append rows that depend on the rows there already, as if no other worker existed.

        The cost follows the rows that are looked for and appended, not the table.

        Args:
            table: where to.
            keys: the key columns of the rows that the decision depends on.
            columns: what is to be known of them.
            build: called with the rows that have these keys, returns the rows to append; called again when another
                worker was faster, so it must be pure.
            about: kept with the commit, for those who read the table's history.

        Returns:
            The rows that were appended.

        Raises:
            ConflictError: other workers were faster 20 times in a row.
        """

        def attempt() -> pl.DataFrame:
            snapshot = self.snapshot(table)
            rows = build(self._held(snapshot, table, keys, columns))
            if rows.height:
                before = set(snapshot.file_uris())
                _commit_exclusive(snapshot, table, rows, "append", about)
                self._index_appended(snapshot, table, before, rows)
            return rows

        return self.retried(table.name, attempt)

    def insert_new(self, table: Table, rows: pl.DataFrame) -> int:
        """Append the rows whose key the table does not hold; returns how many that were."""
        key = list(table.key)
        fresh = rows.unique(key, keep="first", maintain_order=True)

        def build(held: pl.DataFrame) -> pl.DataFrame:
            return fresh.join(held, on=key, how="anti", maintain_order="left", nulls_equal=True)

        return self.append_exclusive(table, fresh, key, build).height if rows.height else 0

    def held(self, table: Table, keys: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
        """Those columns of the rows that have these keys."""
        snapshot = self._open(table.name)
        if snapshot is None:
            return table.empty().select(columns)
        return self._held(snapshot, table, keys, columns)

    def _held(self, snapshot: DeltaTable, table: Table, keys: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
        key = list(table.key)
        is_found, files = self._index(snapshot, table).find(
            identity_hash(keys, key).to_numpy(), set(snapshot.file_uris())
        )
        if not files:
            return table.empty().select(columns)
        wanted = keys.select(key).filter(pl.Series(is_found)).unique()
        needed = list(dict.fromkeys((*columns, *key)))
        parts = [
            part.join(wanted, on=key, how="semi", nulls_equal=True).select(columns)
            for part in self._read_in_parts(table, files, needed)
        ]
        return pl.concat(parts)

    def _index(self, snapshot: DeltaTable, table: Table) -> KeyIndex:
        table_id = str(snapshot.metadata().id)
        if table_id not in self._indexes:

            def read(files: list[str]) -> Iterator[tuple[str, Hashes]]:
                key = list(table.key)
                for file in files:
                    yield file, identity_hash(self._read_files(table, {file}, key), key).to_numpy()

            self._indexes[table_id] = KeyIndex(self._cache / "keys" / table_id, read)
        return self._indexes[table_id]

    def _index_appended(self, snapshot: DeltaTable, table: Table, before: set[str], rows: pl.DataFrame) -> None:
        """Tell the index what was just written, where one file holds all rows of its partition."""
        new = _data_files(snapshot).filter(~pl.col("uri").is_in(before))
        by = list(table.partition_by)
        hashed = rows.select(*by, hash=identity_hash(rows, table.key))
        parts = {tuple(row[f"partition.{name}"] for name in by): row["uri"] for row in new.iter_rows(named=True)}
        if len(parts) == new.height:
            groups = hashed.group_by(by) if by else [((), hashed)]
            known = [(parts.get(part), group["hash"].to_numpy()) for part, group in groups]
            self._index(snapshot, table).add([(file, hashes) for file, hashes in known if file])

    def merge(
        self,
        table: Table,
        upserts: pl.DataFrame,
        gone: pl.DataFrame | None = None,
        on: Sequence[str] | None = None,
        expected: Version | None = None,
    ) -> int:
        """Replace or insert rows and remove others, in one commit; nothing is committed when there is nothing to do.

        Args:
            table: where.
            upserts: whole rows.
            gone: the `on` columns of rows to remove.
            on: columns that say which row is which, the table's key if not given; partition columns among them keep
                the work within partitions.
            expected: the version that the rows were derived from; without it, whatever is there is merged into.

        Returns:
            Rows given.

        Raises:
            ConflictError: the table has another version than expected, or other workers were faster 20 times in a row.
        """
        on = list(on or table.key)
        gone = upserts.select(on).clear() if gone is None else gone
        given = upserts.height + gone.height

        def attempt() -> int:
            snapshot = self.snapshot(table)
            if expected is not None and expected != _version(snapshot):
                raise ConflictError(f"{table.name} was changed by another worker after {expected}.")
            _merge(snapshot, table, upserts, gone, on, _next_transaction(snapshot))
            return given

        return self.retried(table.name, attempt) if given else 0

    def count(self, table: Table) -> int:
        """Rows of a table, from its log."""
        snapshot = self._open(table.name)
        return int(_data_files(snapshot)["num_records"].sum()) if snapshot else 0

    def newest(self, table: Table, column: str, by: str, version: int | None = None) -> dict[str, Any]:
        """The largest value of a column for each value of a partition column, from the table's log alone.

        Args:
            table: which.
            column: whose statistics are kept.
            by: a column that the table is partitioned by.
            version: as of which; the newest by default.
        """
        snapshot = self._open(table.name, version)
        files = _data_files(snapshot) if snapshot else pl.DataFrame()
        if f"max.{column}" not in files.columns:
            return {}
        found = files.group_by(pl.col(f"partition.{by}")).agg(pl.col(f"max.{column}").max())
        return dict(found.sort(by=pl.first()).iter_rows())

    def count_by(self, table: Table, *columns: str) -> pl.DataFrame:
        """Rows per value of some columns, as `len`, by value; of partition columns, from the log."""
        snapshot = self._open(table.name)
        if snapshot is None:
            return table.empty().select(columns).with_columns(len=pl.lit(0, pl.Int64)).clear()
        if set(columns) <= set(table.partition_by):
            files = _data_files(snapshot).select(*(pl.col(f"partition.{c}").alias(c) for c in columns), "num_records")
            return files.group_by(columns).agg(len=pl.col("num_records").sum().cast(pl.Int64)).sort(columns)
        counts = _rows(snapshot, table).group_by(columns).agg(len=pl.len().cast(pl.Int64)).sort(columns)
        return counts.collect(engine="streaming")

    def scan_range(self, table: Table, column: str, values: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The rows whose `column` has one of the values, some files at a time; files without any are not read."""
        snapshot = self._open(table.name)
        if snapshot is None or not values:
            return
        files = _data_files(snapshot)
        low, high = (
            pl.col(f"{side}.{column}") if f"{side}.{column}" in files.columns else pl.lit(None, pl.String)
            for side in ("min", "max")
        )
        may_hold = (low.is_null() | (low <= max(values))) & (high.is_null() | (high >= min(values)))
        for part in self._read_in_parts(table, set(files.filter(may_hold)["uri"]), list(table.columns)):
            yield part.filter(pl.col(column).is_in(values))

    def replace(self, table: Table, rows: pl.DataFrame, tenants: Collection[str] | None = None) -> Changes:
        """Make the table hold exactly these rows; commits nothing when it does already.

        Args:
            table: which.
            rows: all that it is to hold.
            tenants: whose rows are meant, where those of the others stay; all by default.

        Returns:
            What changed.
        """

        def attempt() -> Changes:
            snapshot = self.snapshot(table)
            held = _rows(snapshot, table).collect()
            is_meant = pl.lit(value=True) if tenants is None else pl.col("tenant_id").is_in(list(tenants))
            changes = compare_versions(held.filter(is_meant), rows.select(list(table.columns)), table.key)
            if changes.count:
                whole = pl.concat([held.filter(~is_meant), rows.select(held.columns)])
                _commit_exclusive(snapshot, table, whole, "overwrite")
            return changes

        return self.retried(table.name, attempt)

    def care_for(self, table: Table) -> Care | None:
        """Add columns that the table lacks, put small files together, remove files that no kept version needs.

        Rows are what they were. Others may write meanwhile; what they win is done the next time.

        Returns:
            What was done; None when there is no such table.
        """
        snapshot = self._open(table.name)
        if snapshot is None:
            return None
        columns = len(snapshot.schema().fields)
        done = self._care_for(table.name, table.retention, _writer_properties(table), lambda s: _evolved(s, table))
        now = self._open(table.name)
        if now is not None and table.key:
            # Files that were just written are looked up by the next landing: their keys are read here, not there.
            self._held(now, table, table.empty(), table.key)
        return replace(done, added_columns=len(table.columns) - columns) if columns < len(table.columns) else done

    def missing_columns(self, table: Table) -> list[str]:
        """Columns that the table lacks or has with another type; none when it was never written."""
        snapshot = self._open(table.name)
        if snapshot is None:
            return []
        held = {field.name: field.type for field in snapshot.schema().fields}
        wanted = Schema.from_arrow(table.schema).fields
        return [field.name for field in wanted if held.get(field.name) != field.type]

    def care_for_silo(self, name: str) -> Care | None:
        """The same for a table of a silo."""
        if self._open(name) is None:
            return None
        return self._care_for(
            name, SILO_RETENTION, WriterProperties(max_row_group_size=ROW_GROUP_ROWS), lambda snapshot: snapshot
        )

    def _care_for(
        self,
        name: str,
        retention: timedelta,
        properties: WriterProperties,
        complete: Callable[[DeltaTable], DeltaTable],
    ) -> Care:
        def attempt() -> Care:
            snapshot = DeltaTable(self.uri(name), storage_options=self._options)
            before = len(snapshot.file_uris())
            complete(snapshot)
            snapshot.optimize.compact(
                target_size=TARGET_FILE_BYTES, max_concurrent_tasks=1, writer_properties=properties
            )
            snapshot.create_checkpoint()
            vacuumed = snapshot.vacuum(
                retention_hours=int(retention.total_seconds() // 3600), dry_run=False, enforce_retention_duration=True
            )
            files = _data_files(snapshot)
            rows, size = int(files["num_records"].sum()), int(files["size_bytes"].sum())
            return Care(name, rows, before, files.height, size, len(vacuumed), 0)

        return self.retried(name, attempt)

    def overwrite(self, table: Table, batches: Iterator[pl.DataFrame]) -> None:
        """Make the table hold these rows and these columns, in one commit once all batches came.

        Args:
            table: where; its columns become the table's.
            batches: frames with the table's columns; an error in them leaves the table as it was.
        """
        snapshot = self._open(table.name)
        schema = table.empty().to_arrow().schema
        failures: list[C360Error] = []

        def arrow_batches() -> Iterator[pa.RecordBatch]:
            try:
                yield from _arrow_batches(batches, schema)
            except C360Error as error:
                failures.append(error)  # on its way through the writer it would become text
                raise

        try:
            write_deltalake(
                snapshot or self.uri(table.name),
                pa.RecordBatchReader.from_batches(schema, arrow_batches()),
                mode="overwrite",
                schema_mode="overwrite" if snapshot else None,
                name=table.name.replace("/", "_"),
                description=table.description,
                target_file_size=TARGET_FILE_BYTES,
                writer_properties=_writer_properties(table),
                commit_properties=_next_transaction(snapshot) if snapshot else None,
                storage_options=self._options,
            )
        except CommitFailedError as error:
            raise _overtaken(table, error) from error
        except DeltaError:
            if failures:
                raise failures[0] from None
            raise
        vars(self._writers).pop(table.name, None)

    def append(self, table: Table, rows: pl.DataFrame) -> None:
        """Append rows that the caller knows to be new, in one commit.

        Raises:
            ConflictError: another worker committed meanwhile, so that they may not be new any more.
        """
        try:
            _commit_exclusive(self.snapshot(table), table, rows, "append")
        except CommitFailedError as error:
            raise _overtaken(table, error) from error

    def batches(self, table: Table, version: int | None = None) -> Iterator[pl.DataFrame]:
        """The rows of a table in bounded batches; a column that the table does not have is null."""
        snapshot = self._open(table.name, version)
        return self._batches(table, _rows_by_file(snapshot) if snapshot else {})

    def _batches(self, table: Table, rows_by_file: Mapping[str, int]) -> Iterator[pl.DataFrame]:
        columns = list(table.empty().schema)
        for uri, count in sorted(rows_by_file.items()):
            rows = self._scan_parquet(table, [uri]).select(columns)
            # One slice after the other: an engine that reads ahead holds the table when its reader is slow.
            for start in range(0, count, BATCH_ROWS):
                yield rows.slice(start, BATCH_ROWS).collect()

    def has_columns(self, table: Table) -> bool:
        """Whether the table as it is has exactly these columns."""
        snapshot = self._open(table.name)
        wanted = Schema.from_arrow(table.schema).fields
        return (
            snapshot is not None
            and [f.name for f in snapshot.schema().fields] == [f.name for f in wanted]
            and (not self.missing_columns(table))
        )

    def retyped_columns(self, table: Table) -> list[str]:
        """Columns that the table has with another type."""
        snapshot = self._open(table.name)
        held = {field.name for field in snapshot.schema().fields} if snapshot else set()
        return [name for name in self.missing_columns(table) if name in held]

    def stored_table(self, name: str, key: Sequence[str]) -> Table | None:
        """A table that only its log describes; None when it was never written."""
        snapshot = self._open(name)
        if snapshot is None:
            return None
        columns = {field.name: field.type for field in pa.schema(cast("Any", snapshot.schema().to_arrow()))}
        return Table(name, tuple(key), columns, str(snapshot.metadata().description or ""), retention=SILO_RETENTION)

    def changed_since(
        self, table: Table, since: Version | None, stamp: Sequence[str]
    ) -> tuple[Iterator[pl.DataFrame], pl.DataFrame, Version | None]:
        """What changed in a table whose rows are stamped with each change.

        Only files that one of the two versions has and the other has not are read, and of most rows only key and stamp.

        Args:
            table: which.
            since: a version that is still there, as `still_there` says; None for all rows.
            stamp: columns that differ whenever any other differs.

        Returns:
            Rows that are new or altered, in batches; key columns of rows that are gone; and the newest version.
        """
        now = self._open(table.name)
        key, marks = list(table.key), [*table.key, *stamp]
        if now is None or since is None:
            return self.batches(table), table.empty().select(key), _version(now) if now else None
        before = self._open(table.name, since.number)
        files_now, files_before = set(now.file_uris()), set(before.file_uris()) if before else set()
        added = files_now - files_before
        after_marks = self._read_files(table, added, marks)
        before_marks = self._read_files(table, files_before - files_now, marks)
        changed = after_marks.join(before_marks, on=marks, how="anti", nulls_equal=True).select(key)
        gone = before_marks.select(key).join(after_marks.select(key), on=key, how="anti")
        to_read = {uri: n for uri, n in _rows_by_file(now).items() if uri in added} if changed.height else {}
        rows = (part.join(changed, on=key, how="semi") for part in self._batches(table, to_read))
        return rows, gone, _version(now)

    def stored_bytes(self, table: Table) -> int:
        """Bytes of the table's data files, from its log."""
        snapshot = self._open(table.name)
        return _stored_bytes(snapshot) if snapshot else 0

    def only_cared_for_since(self, name: str, since: Version) -> bool:
        """Whether the table is the same as at a version but for the arrangement of its files."""
        snapshot = self._open(name)
        if snapshot is None or str(snapshot.metadata().id) != since.table_id or snapshot.version() < since.number:
            return False
        later = snapshot.history(snapshot.version() - since.number) if snapshot.version() > since.number else []
        return all(commit["operation"] in CARE_OPERATIONS for commit in later)

    def still_there(self, table: Table, since: Version | None) -> Version | None:
        """The version, or None when the table was made anew since or no longer keeps it."""
        now = self._open(table.name)
        return since if now is not None and self._open_earlier(table, now, since) is not None else None

    def changes(
        self, table: Table, since: Version | None, columns: Sequence[str] | None = None
    ) -> tuple[Changes, Version | None]:
        """What changed since a version, and the version it changed to.

        Rows that differ in other columns than these are none that changed; all columns count where none are given.

        Only files that one of the two versions has and the other has not are read, so the cost follows the change.
        A version that is gone, or of another table, counts as an empty table.
        """
        now = self._open(table.name)
        if now is None:
            nothing = table.empty()
            return Changes(nothing.select(columns or nothing.columns), nothing.select(table.key)), None
        before = self._open_earlier(table, now, since)
        files_now, files_before = set(now.file_uris()), set(before.file_uris()) if before else set()
        after_rows = self._read_files(table, files_now - files_before, columns)
        before_rows = self._read_files(table, files_before - files_now, columns)
        return compare_versions(before_rows, after_rows, table.key), _version(now)

    def _open_earlier(self, table: Table, now: DeltaTable, since: Version | None) -> DeltaTable | None:
        if since is None or since.table_id != str(now.metadata().id):
            return None
        try:
            earlier = self._open(table.name, since.number)
        except DeltaError:
            return None
        if earlier is None or since.number == now.version():
            return earlier
        # Files that were replaced since may have been removed once the version is older than they are kept.
        committed = _instant(earlier.history(1)[0]["timestamp"])
        return earlier if datetime.now(UTC) - committed < table.retention else None

    def _read_files(self, table: Table, files: set[str], columns: Sequence[str] | None = None) -> pl.DataFrame:
        schema = {name: dtype for name, dtype in table.empty().schema.items() if columns is None or name in columns}
        if not files:
            return pl.DataFrame(schema=schema)
        scan = self._scan_parquet(table, sorted(files))
        return scan.select(pl.col(name).cast(dtype) for name, dtype in schema.items()).collect()

    def _scan_parquet(self, table: Table, files: list[str]) -> pl.LazyFrame:
        """Data files with their partition values; a column that a file does not have is null."""
        schema = table.empty().schema
        return pl.scan_parquet(
            files,
            hive_partitioning=bool(table.partition_by),
            hive_schema={c: schema[c] for c in table.partition_by} if table.partition_by else None,
            storage_options=self._options or None,
            missing_columns="insert",
            schema={n: d for n, d in schema.items() if n not in table.partition_by},
            extra_columns="ignore",
        )

    def _read_in_parts(self, table: Table, files: set[str], columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        ordered = sorted(files)
        for start in range(0, len(ordered), FILES_AT_ONCE):
            yield self._read_files(table, set(ordered[start : start + FILES_AT_ONCE]), columns)

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


def _merge(
    snapshot: DeltaTable,
    table: Table,
    upserts: pl.DataFrame,
    gone: pl.DataFrame,
    on: Sequence[str],
    properties: CommitProperties,
) -> None:
    columns = list(table.columns)
    kept, removed = upserts.select(columns).with_columns(__c360_gone=False), gone.select(on)
    rows = pl.concat([kept, removed.with_columns(__c360_gone=True)], how="diagonal")
    values = {_quoted(name): f"s.{_quoted(name)}" for name in columns}
    (
        snapshot.merge(
            rows,
            " AND ".join(f"t.{_quoted(name)} = s.{_quoted(name)}" for name in on),
            source_alias="s",
            target_alias="t",
            writer_properties=_writer_properties(table),
            max_spill_size=SPILL_BYTES,
            streamed_exec=False,  # the rows are in memory; their partitions then limit what is read
            commit_properties=properties,
        )
        .when_matched_delete("s.__c360_gone")
        .when_matched_update(values, predicate="NOT s.__c360_gone")
        .when_not_matched_insert(values, predicate="NOT s.__c360_gone")
        .execute()
    )


def _arrow_batches(frames: Iterable[pl.DataFrame], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for frame in frames:
        yield from frame.to_arrow().cast(schema).to_batches(max_chunksize=WRITTEN_ROWS)


def _stored_bytes(snapshot: DeltaTable) -> int:
    return int(_data_files(snapshot)["size_bytes"].sum())


def _instant(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _overtaken(table: Table, error: CommitFailedError) -> ConflictError:
    return ConflictError(f"{table.name} was changed by another worker meanwhile: {error}")


def _version(snapshot: DeltaTable) -> Version:
    return Version(str(snapshot.metadata().id), snapshot.version())


def _rows(snapshot: DeltaTable, table: Table) -> pl.LazyFrame:
    """The table's rows; a column that the table does not have yet is null."""
    present = {field.name for field in snapshot.schema().fields}
    schema = table.empty().schema
    return pl.scan_delta(snapshot).select(
        pl.col(name) if name in present else pl.lit(None, schema[name]).alias(name) for name in table.columns
    )


def _rows_by_file(snapshot: DeltaTable) -> dict[str, int]:
    files = _data_files(snapshot)
    return dict(zip(files["uri"], files["num_records"], strict=True))


def _data_files(snapshot: DeltaTable) -> pl.DataFrame:
    """One row per data file: uri, num_records, partition values and statistics as delta-rs names them."""
    by_name = {uri.rpartition("/")[2]: uri for uri in snapshot.file_uris()}
    files = pl.DataFrame(snapshot.get_add_actions(flatten=True))
    names = files["path"].str.split("/").list.last()
    return files.with_columns(uri=names.replace_strict(by_name, return_dtype=pl.String))


def _evolved(snapshot: DeltaTable, table: Table) -> DeltaTable:
    """Add the columns that this release knows and the table does not have; older rows hold null there."""
    present = {field.name for field in snapshot.schema().fields}
    missing = [field for field in Schema.from_arrow(table.schema).fields if field.name not in present]
    if missing:
        snapshot.alter.add_columns(missing)
    return snapshot


def _quoted(column: str) -> str:
    """A column in SQL."""
    doubled = column.replace('"', '""')
    return f'"{doubled}"'


def _literals(values: Sequence[str]) -> str:
    """Texts in SQL."""
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


def _transactions(numbers: Mapping[str, int]) -> list[Transaction]:
    return [Transaction(name, number) for name, number in numbers.items()]


def _next_transaction(
    snapshot: DeltaTable, about: dict[str, str] | None = None, numbers: Mapping[str, int] | None = None
) -> CommitProperties:
    last = snapshot.transaction_version(WRITER) or 0
    transactions = _transactions({WRITER: last + 1, **(numbers or {})})
    return CommitProperties(custom_metadata=about, app_transactions=transactions)


def _commit_exclusive(
    snapshot: DeltaTable,
    table: Table,
    rows: pl.DataFrame,
    mode: Literal["append", "overwrite"],
    about: dict[str, str] | None = None,
) -> None:
    """Commit on this snapshot, or fail when anything else was committed exclusively since.

    The transaction's number makes it so: two appends, or two overwrites of an empty table, do not conflict by
    themselves.
    """
    write_deltalake(
        snapshot,
        rows.select(list(table.columns)),
        mode=mode,
        writer_properties=_writer_properties(table),
        commit_properties=_next_transaction(snapshot, about),
    )


def _writer_properties(table: Table) -> WriterProperties:
    plain = ColumnProperties(dictionary_enabled=False)
    return WriterProperties(max_row_group_size=ROW_GROUP_ROWS, column_properties=dict.fromkeys(table.distinct, plain))
