"""Maintenance: columns that a release adds, small files put together, files that no kept version needs removed."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from deltalake import (
    DeltaTable,
    WriterProperties,
)

from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.table import SILO_RETENTION, Table
from c360_pipeline.core.catalog.tables import MaintenanceReport
from c360_pipeline.stores.delta.commits import TARGET_FILE_BYTES
from c360_pipeline.stores.delta.key_lookup import KeyLookup
from c360_pipeline.stores.delta.snapshots import ROW_GROUP_ROWS, data_files, evolved, version_of, writer_properties
from c360_pipeline.stores.delta.storage import Storage
from c360_pipeline.stores.delta.versions import MAINTENANCE_OPERATIONS

LOG_RETENTION = {
    "delta.logRetentionDuration": "interval 30 days", "delta.deletedFileRetentionDuration": "interval 7 days",
}  # fmt: skip
"""What Delta does where nothing is said."""


class Maintenance:
    """Keeps the tables small and complete; rows stay what they are.

    Args:
        storage: where they are.
        keys: finds rows by key.
    """

    def __init__(self, storage: Storage, keys: KeyLookup) -> None:
        self._storage = storage
        self._keys = keys

    def maintain(self, table: Table) -> MaintenanceReport | None:
        """Add columns that the table lacks, put small files together, remove files that no kept version needs.

        Rows are what they were. Others may write meanwhile; what they win is done the next time.

        Returns:
            What was done; None when there is no such table.
        """
        snapshot = self._storage.open_own(table.name)
        if snapshot is None:
            return None
        columns = len(snapshot.schema().fields)
        done = self._maintain(table.name, table.retention, writer_properties(table), lambda s: evolved(s, table))
        now = self._storage.open_own(table.name)
        if now is not None and table.key:
            # Files that were just written are looked up by the next landing: their keys are read here, not there.
            self._keys.held(now, table, table.empty(), table.key)
        return replace(done, added_columns=len(table.columns) - columns) if columns < len(table.columns) else done

    def maintain_silo(self, name: str) -> MaintenanceReport | None:
        """The same for a table of a silo."""
        if self._storage.open_own(name) is None:
            return None
        return self._maintain(
            name, SILO_RETENTION, WriterProperties(max_row_group_size=ROW_GROUP_ROWS), lambda snapshot: snapshot
        )

    def _maintain(
        self,
        name: str,
        retention: timedelta,
        properties: WriterProperties,
        complete: Callable[[DeltaTable], DeltaTable],
    ) -> MaintenanceReport:
        def attempt() -> MaintenanceReport:
            snapshot = DeltaTable(self._storage.uri(name), storage_options=self._storage.options)
            before = len(snapshot.file_uris())
            complete(snapshot)
            snapshot.optimize.compact(
                target_size=TARGET_FILE_BYTES, max_concurrent_tasks=1, writer_properties=properties
            )
            snapshot.create_checkpoint()
            vacuumed = snapshot.vacuum(
                retention_hours=int(retention.total_seconds() // 3600), dry_run=False, enforce_retention_duration=True
            )
            files = data_files(snapshot)
            rows, size = int(files["num_records"].sum()), int(files["size_bytes"].sum())
            return MaintenanceReport(name, rows, before, files.height, size, len(vacuumed), 0)

        return self._storage.retried(name, attempt)

    def forget_versions(self, name: str) -> tuple[Version, Version] | None:
        """Remove what earlier versions held from the store: their files, and the log that tells of them.

        Nobody can read an earlier version afterwards.

        Returns:
            The newest version before and after, of the same rows; None when somebody wrote meanwhile.
        """
        snapshot = self._storage.open_own(name)
        if snapshot is None:
            return None
        before = version_of(snapshot)

        def attempt() -> tuple[Version, Version] | None:
            table = DeltaTable(self._storage.uri(name), storage_options=self._storage.options)
            table.alter.set_table_properties(dict.fromkeys(LOG_RETENTION, "interval 0 seconds"))
            table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
            fresh = DeltaTable(self._storage.uri(name), storage_options=self._storage.options)
            later = fresh.history(fresh.version() - before.number)
            fresh.create_checkpoint()
            fresh.cleanup_metadata()
            fresh.alter.set_table_properties(LOG_RETENTION)
            is_same = all(commit["operation"] in (*MAINTENANCE_OPERATIONS, "SET TBLPROPERTIES") for commit in later)
            return (before, version_of(fresh)) if is_same else None

        done = self._storage.retried(name, attempt)
        self._storage.forget_snapshot(name)
        return done
