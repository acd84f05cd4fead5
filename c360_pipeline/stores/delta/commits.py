"""Commits: every write has one result, however often and by however many workers it is done.

delta-rs writes a transaction id twice when asked twice, so every exclusive write looks at the snapshot first and
commits on that very snapshot; a worker that was faster makes the commit fail and the work is done again on the new
snapshot (see docs/adr/0006).
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import (
    CommitProperties,
    DeltaTable,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction
from pyarrow.fs import FileSelector, PyFileSystem

from c360_pipeline.core.catalog.changes import Changes, Version, difference
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.errors import C360Error, ConflictError
from c360_pipeline.stores.delta.key_lookup import KeyLookup
from c360_pipeline.stores.delta.snapshots import (
    arrow_batches,
    data_files,
    fitting_mode,
    literals,
    next_transaction,
    quoted,
    rows_by_file,
    rows_of,
    stored_bytes_of,
    transactions,
    version_of,
    writer_properties,
)
from c360_pipeline.stores.delta.storage import Storage, T

TARGET_FILE_BYTES = 128 * 1024 * 1024
MERGED_BYTES = 64 * 1024 * 1024
"""Up to this size a table takes changes by a merge, which holds it in memory; a larger one is rewritten."""
SPILL_BYTES = 128 * 1024 * 1024
"""Memory of a merge before it spills to disk."""


class Commits:
    """What writes to the tables.

    Args:
        storage: where they are.
        keys: finds rows by key.
    """

    def __init__(self, storage: Storage, keys: KeyLookup) -> None:
        self._storage = storage
        self._keys = keys

    def retried(self, name: str, attempt: Callable[[], T]) -> T:
        """Do what commits on a snapshot, again on a new one as long as other workers were faster.

        Raises:
            ConflictError: other workers were faster 20 times in a row.
        """
        return self._storage.retried(name, attempt)

    def snapshot(self, table: Table) -> DeltaTable:
        """The table as it is now, made or completed where needed: what a decision is taken and committed on."""
        return self._storage.snapshot(table)

    def append(self, table: Table, rows: pl.DataFrame) -> None:
        """Append rows that the caller knows to be new, in one commit.

        Raises:
            ConflictError: another worker committed meanwhile, so that they may not be new any more.
        """
        try:
            _commit_exclusive(self._storage.snapshot(table), table, rows, "append")
        except CommitFailedError as error:
            raise _overtaken(table, error) from error

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
            snapshot = self._storage.snapshot(table)
            rows = build(self._keys.held(snapshot, table, keys, columns))
            if rows.height:
                before = set(snapshot.file_uris())
                _commit_exclusive(snapshot, table, rows, "append", about)
                self._keys.add_appended(snapshot, table, before, rows)
            return rows

        return self._storage.retried(table.name, attempt)

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
            schema_mode=fitting_mode(snapshot, table),
            writer_properties=writer_properties(table),
            commit_properties=CommitProperties(app_transactions=transactions(numbers)),
        )

    def insert_new(self, table: Table, rows: pl.DataFrame) -> int:
        """Append the rows whose key the table does not hold; returns how many that were."""
        key = list(table.key)
        fresh = rows.unique(key, keep="first", maintain_order=True)

        def build(held: pl.DataFrame) -> pl.DataFrame:
            return fresh.join(held, on=key, how="anti", maintain_order="left", nulls_equal=True)

        return self.append_exclusive(table, fresh, key, build).height if rows.height else 0

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
            snapshot = self._storage.snapshot(table)
            if expected is not None and expected != version_of(snapshot):
                raise ConflictError(f"{table.name} was changed by another worker after {expected}.")
            _merge(snapshot, table, upserts, gone, on, next_transaction(snapshot))
            return given

        return self._storage.retried(table.name, attempt) if given else 0

    def apply(self, table: Table, snapshot: DeltaTable, changes: Changes, numbers: Mapping[str, int]) -> None:
        """Bring changes into a table and set named numbers, in one commit on a snapshot.

        The cost follows the changes while rows only come; rows that change or go are merged into a small table, and of
        a large one all rows are rewritten, batch by batch.

        Args:
            table: where.
            snapshot: what the changes were decided on; afterwards that of the commit.
            changes: of whole rows.
            numbers: as `append_numbered` takes them.

        Raises:
            CommitFailedError: another worker set one of these numbers, or changed the table, since the snapshot.
        """
        properties = next_transaction(snapshot, numbers=numbers)
        upserts = pl.concat([changes.inserted, changes.updated]).select(list(table.columns))
        if not changes.updated.height + changes.deleted.height:
            write_deltalake(
                snapshot, upserts, mode="append", schema_mode=fitting_mode(snapshot, table),
                writer_properties=writer_properties(table), commit_properties=properties,
            )  # fmt: skip
        elif stored_bytes_of(snapshot) <= MERGED_BYTES:
            _merge(snapshot, table, upserts, changes.deleted, table.key, properties)
        else:
            touched = pl.concat([changes.updated.select(table.key), changes.deleted.select(table.key)])
            held = self._storage.batches_of(table, rows_by_file(snapshot))
            kept = (batch.join(touched, on=list(table.key), how="anti") for batch in held)
            _overwrite(snapshot, table, chain(kept, [upserts]), properties)

    def rewrite(self, table: Table, change: Callable[[pl.DataFrame], pl.DataFrame], numbers: Mapping[str, int]) -> None:
        """Make each row of a table another, batch by batch, and set named numbers, in one commit; once for a number.

        Args:
            table: which.
            change: of a batch of rows; called again when another worker was faster, so it must be pure.
            numbers: as `append_numbered` takes them.

        Raises:
            ConflictError: other workers were faster 20 times in a row.
        """

        def attempt() -> None:
            snapshot = self._storage.snapshot(table)
            if all((snapshot.transaction_version(name) or 0) >= number for name, number in numbers.items()):
                return  # by another worker, or by a try of this one whose answer was lost
            held = self._storage.batches_of(table, rows_by_file(snapshot))
            _overwrite(snapshot, table, map(change, held), next_transaction(snapshot, numbers=numbers))

        self._storage.retried(table.name, attempt)

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
            snapshot = self._storage.snapshot(table)
            held = rows_of(snapshot, table).collect()
            is_meant = pl.lit(value=True) if tenants is None else pl.col("tenant_id").is_in(list(tenants))
            changes = difference(held.filter(is_meant), rows.select(list(table.columns)), table.key)
            if changes.count:
                whole = pl.concat([held.filter(~is_meant), rows.select(held.columns)])
                _commit_exclusive(snapshot, table, whole, "overwrite")
            return changes

        return self._storage.retried(table.name, attempt)

    def overwrite(self, table: Table, batches: Iterator[pl.DataFrame]) -> None:
        """Make the table hold these rows and these columns, in one commit once all batches came.

        Args:
            table: where; its columns become the table's.
            batches: frames with the table's columns; an error in them leaves the table as it was.
        """
        snapshot = self._storage.open_own(table.name)
        schema = table.empty().to_arrow().schema
        failures: list[C360Error] = []

        def watched() -> Iterator[pa.RecordBatch]:
            try:
                yield from arrow_batches(batches, schema)
            except C360Error as error:
                failures.append(error)  # on its way through the writer it would become text
                raise

        try:
            write_deltalake(
                snapshot or self._storage.uri(table.name),
                pa.RecordBatchReader.from_batches(schema, watched()),
                mode="overwrite",
                schema_mode="overwrite" if snapshot else None,
                name=table.name.replace("/", "_"),
                description=table.description,
                target_file_size=TARGET_FILE_BYTES,
                writer_properties=writer_properties(table),
                commit_properties=next_transaction(snapshot) if snapshot else None,
                storage_options=self._storage.options,
            )
        except CommitFailedError as error:
            raise _overtaken(table, error) from error
        except DeltaError:
            if failures:
                raise failures[0] from None
            raise
        self._storage.forget_snapshot(table.name)

    def delete_rows(
        self,
        table: Table,
        tenants: Sequence[str],
        values: Mapping[str, Sequence[str]],
        blank: Mapping[str, Sequence[str]],
        unlisted: Mapping[str, Sequence[str]] | None = None,
    ) -> int:
        """Remove the rows of some tenants that have one of some values in one of some columns; returns how many.

        Values of columns in `blank` become empty, those of lists in `unlisted` leave these, and their rows stay.
        """
        any_of = [f"{quoted(name)} IN ({literals(held)})" for name, held in values.items() if held]
        blanked = {name: held for name, held in blank.items() if held}
        shorter = {name: held for name, held in (unlisted or {}).items() if held}
        if not (tenants and (any_of or blanked or shorter)):
            return 0
        of_tenants = f"{quoted('tenant_id')} IN ({literals(tenants)})"

        def attempt() -> int:
            snapshot = self._storage.snapshot(table)
            gone = 0
            if any_of:
                predicate = f"{of_tenants} AND ({' OR '.join(any_of)})"
                done = snapshot.delete(predicate, writer_properties=writer_properties(table))
                gone = int(done["num_deleted_rows"])
            for name, held in blanked.items():
                snapshot.update({name: "''"}, predicate=f"{of_tenants} AND {quoted(name)} IN ({literals(held)})")
            for name, held in shorter.items():
                # delta-rs can't write array_has_any into its commit.
                has_any = literals(["|".join(map(re.escape, held))])
                snapshot.update(
                    {name: f"array_except({quoted(name)}, make_array({literals(held)}))"},
                    predicate=f"{of_tenants} AND regexp_like(array_to_string({quoted(name)}, ' '), {has_any})",
                )
            return gone

        return self._storage.retried(table.name, attempt)

    def rename_deliveries(self, table: Table, etag_column: str, renamed: Mapping[tuple[str, str], str]) -> None:
        """Say of rows of deliveries that their file has another etag now.

        Args:
            table: with source_uri.
            etag_column: where the etag is.
            renamed: the new etag by address and old etag.
        """
        uri, etag = quoted("source_uri"), quoted(etag_column)
        cases = [
            f"WHEN {uri} = {literals([address])} AND {etag} = {literals([old])} THEN {literals([new])}"
            for (address, old), new in renamed.items()
        ]
        if not cases or not self._has_rows(table):
            return
        addresses, olds = (sorted({pair[n] for pair in renamed}) for n in (0, 1))
        predicate = f"{uri} IN ({literals(addresses)}) AND {etag} IN ({literals(olds)})"

        def attempt() -> None:
            self._storage.snapshot(table).update(
                {etag_column: f"CASE {' '.join(cases)} ELSE {etag} END"}, predicate=predicate,
                writer_properties=writer_properties(table),
            )  # fmt: skip

        self._storage.retried(table.name, attempt)

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
        files = PyFileSystem(DeltaStorageHandler(self._storage.uri(table.name), self._storage.options))
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
            actions, "append", table.schema, commit_properties=CommitProperties(app_transactions=transactions(numbers))
        )
        snapshot.update_incremental()
        return rows

    def _has_rows(self, table: Table) -> bool:
        snapshot = self._storage.open_own(table.name)
        return snapshot is not None and bool(data_files(snapshot)["num_records"].sum())


def _overwrite(
    snapshot: DeltaTable, table: Table, batches: Iterable[pl.DataFrame], properties: CommitProperties
) -> None:
    schema = table.empty().to_arrow().schema
    write_deltalake(
        snapshot,
        pa.RecordBatchReader.from_batches(schema, arrow_batches(batches, schema)),
        mode="overwrite",
        schema_mode=fitting_mode(snapshot, table),
        target_file_size=TARGET_FILE_BYTES,
        writer_properties=writer_properties(table),
        commit_properties=properties,
    )


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
    values = {quoted(name): f"s.{quoted(name)}" for name in columns}
    (
        snapshot.merge(
            rows,
            " AND ".join(f"t.{quoted(name)} = s.{quoted(name)}" for name in on),
            source_alias="s",
            target_alias="t",
            writer_properties=writer_properties(table),
            max_spill_size=SPILL_BYTES,
            streamed_exec=False,  # the rows are in memory; their partitions then limit what is read
            commit_properties=properties,
        )
        .when_matched_delete("s.__c360_gone")
        .when_matched_update(values, predicate="NOT s.__c360_gone")
        .when_not_matched_insert(values, predicate="NOT s.__c360_gone")
        .execute()
    )


def _overtaken(table: Table, error: CommitFailedError) -> ConflictError:
    return ConflictError(f"{table.name} was changed by another worker meanwhile: {error}")


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
        schema_mode=fitting_mode(snapshot, table),
        writer_properties=writer_properties(table),
        commit_properties=next_transaction(snapshot, about),
    )
