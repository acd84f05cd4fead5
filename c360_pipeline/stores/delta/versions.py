"""Versions of tables: which there are, which are still kept, and what changed between them."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from deltalake import DeltaTable

from c360_pipeline.core.catalog.changes import Changes, Version, difference
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.errors import ConfigError, TableError
from c360_pipeline.stores.delta.snapshots import data_files, instant_of, rows_by_file, version_of
from c360_pipeline.stores.delta.storage import Storage

BEFORE_ALL = -1
"""The number of the version that a table had before there was any."""
MAINTENANCE_OPERATIONS = ("OPTIMIZE", "VACUUM START", "VACUUM END")


class Versions:
    """The versions of the tables.

    Args:
        storage: where the tables are.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def version(self, name: str) -> Version | None:
        """The newest version; None when there is no such table."""
        snapshot = self._storage.open(name)
        return version_of(snapshot) if snapshot else None

    def version_at(self, name: str, instant: datetime, retention: timedelta) -> Version | None:
        """The version that a table had at an instant; None when there is no such table.

        Args:
            name: of the table.
            instant: with a time zone.
            retention: for how long files that a later version does not need are kept.

        Raises:
            ConfigError: the table does not keep what it was then.
        """
        snapshot = self._storage.open(name)
        if snapshot is None:
            return None
        commits = sorted((entry["version"], instant_of(entry["timestamp"])) for entry in snapshot.history())
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
        snapshot = self._storage.open(table.name)
        return snapshot.history() if snapshot else []

    def changed_at(self, table: Table) -> datetime | None:
        """When the newest version was committed; None when there is no such table."""
        snapshot = self._storage.open(table.name)
        return instant_of(snapshot.history(1)[0]["timestamp"]) if snapshot else None

    def uris_at(self, name: str, number: int) -> list[str]:
        """The data files of a version of a table."""
        snapshot = self._storage.open(name, number)
        return snapshot.file_uris() if snapshot else []

    def file_uris(self, table: Table, version: Version | None = None) -> list[str]:
        """The data files of a table, at a version or now: for engines that read them by themselves."""
        snapshot = self._storage.open(table.name, version.number if version else None)
        return snapshot.file_uris() if snapshot else []

    def still_there(self, table: Table, since: Version | None) -> Version | None:
        """The version, or None when the table was rebuilt since or no longer keeps it."""
        now = self._storage.open(table.name)
        return since if now is not None and self._open_earlier(table, now, since) is not None else None

    def changes(
        self,
        table: Table,
        since: Version | None,
        columns: Sequence[str] | None = None,
        until: Version | None = None,
    ) -> tuple[Changes, Version | None]:
        """What changed since a version, and the version it changed to: the newest, or a given one that is still there.

        Rows that differ in other columns than these are none that changed; all columns count where none are given.

        Only files that one of the two versions has and the other has not are read, so the cost follows the change.
        A version that is gone, or of another table, counts as an empty table.
        """
        now = self._storage.open(table.name)
        if now is None:
            nothing = table.empty()
            return Changes.of(nothing.select(columns or nothing.columns), nothing.select(table.key)), None
        now = (self._open_earlier(table, now, until) if until else None) or now
        before = self._open_earlier(table, now, since)
        files_now, files_before = set(now.file_uris()), set(before.file_uris()) if before else set()
        after_rows = self._storage.read_files(table, files_now - files_before, columns)
        before_rows = self._storage.read_files(table, files_before - files_now, columns)
        return difference(before_rows, after_rows, table.key), version_of(now)

    def changed_partitions(self, table: Table, since: Version | None) -> tuple[pl.DataFrame, set[str], Version | None]:
        """The partitions that have other data files than at a version.

        Returns:
            Their partition columns, of the types of the table; the data files that they have now; the newest version.
        """
        now = self._storage.open(table.name)
        columns = list(table.partition_by)
        if now is None:
            return table.empty().select(columns), set(), None
        before = self._open_earlier(table, now, since)
        names = ["uri", *(f"partition.{column}" for column in columns)]
        files = [data_files(one).select(names) if one else None for one in (now, before)]
        are_now = files[0] if files[0] is not None else pl.DataFrame()
        were = files[1] if files[1] is not None else are_now.clear()
        other = pl.concat([are_now.join(were, on="uri", how="anti"), were.join(are_now, on="uri", how="anti")])
        touched = other.select(names[1:]).unique()
        held = are_now.join(touched, on=names[1:], how="semi")["uri"]
        schema = table.empty().schema
        typed = touched.select(pl.col(f"partition.{name}").cast(schema[name]).alias(name) for name in columns)
        return typed, {*held}, version_of(now)

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
        now = self._storage.open(table.name)
        key, marks = list(table.key), [*table.key, *stamp]
        if now is None or since is None:
            return (
                self._storage.batches_of(table, rows_by_file(now) if now else {}),
                table.empty().select(key),
                version_of(now) if now else None,
            )
        before = self._storage.open(table.name, since.number)
        files_now, files_before = set(now.file_uris()), set(before.file_uris()) if before else set()
        added = files_now - files_before
        after_marks = self._storage.read_files(table, added, marks)
        before_marks = self._storage.read_files(table, files_before - files_now, marks)
        differing = difference(before_marks, after_marks, key)
        changed = differing.upserted.select(key)
        to_read = {uri: n for uri, n in rows_by_file(now).items() if uri in added} if changed.height else {}
        rows = (part.join(changed, on=key, how="semi") for part in self._storage.batches_of(table, to_read))
        return rows, differing.deleted, version_of(now)

    def only_maintained_since(self, name: str, since: Version) -> bool:
        """Whether the table is the same as at a version but for the arrangement of its files."""
        snapshot = self._storage.open(name)
        if snapshot is None or str(snapshot.metadata().id) != since.table_id or snapshot.version() < since.number:
            return False
        later = snapshot.history(snapshot.version() - since.number) if snapshot.version() > since.number else []
        return all(commit["operation"] in MAINTENANCE_OPERATIONS for commit in later)

    def _open_earlier(self, table: Table, now: DeltaTable, since: Version | None) -> DeltaTable | None:
        if since is None or since.table_id != str(now.metadata().id):
            return None
        try:
            earlier = self._storage.open(table.name, since.number)
        except TableError:
            return None
        if earlier is None or since.number == now.version():
            return earlier
        # Files that were replaced since may have been removed once the version is older than they are kept.
        committed = instant_of(earlier.history(1)[0]["timestamp"])
        return earlier if datetime.now(UTC) - committed < table.retention else None
