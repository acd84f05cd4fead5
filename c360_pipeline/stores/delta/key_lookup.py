"""Rows by their keys: which data files may hold them is looked up in the key index."""

from collections.abc import Iterator, Sequence

import polars as pl
from deltalake import DeltaTable

from c360_pipeline.core.arrays.row_hashes import identity_hash
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.stores.delta.key_index import Hashes, KeyIndex
from c360_pipeline.stores.delta.snapshots import data_files
from c360_pipeline.stores.delta.storage import Storage


class KeyLookup:
    """Finds rows by key; the cost follows the keys, not the table.

    Args:
        storage: where the tables are.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._indexes: dict[str, KeyIndex] = {}

    def held(self, snapshot: DeltaTable, table: Table, keys: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
        """Those columns of the rows of a snapshot that have these keys.

        Args:
            snapshot: of the table.
            table: which.
            keys: key columns.
            columns: wanted of the rows.
        """
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
            for part in self._storage.read_in_parts(table, files, needed)
        ]
        return pl.concat(parts)

    def _index(self, snapshot: DeltaTable, table: Table) -> KeyIndex:
        table_id = str(snapshot.metadata().id)
        if table_id not in self._indexes:

            def read(files: list[str]) -> Iterator[tuple[str, Hashes]]:
                key = list(table.key)
                for file in files:
                    yield file, identity_hash(self._storage.read_files(table, {file}, key), key).to_numpy()

            self._indexes[table_id] = KeyIndex(self._storage.cache / "keys" / table_id, read)
        return self._indexes[table_id]

    def add_appended(self, snapshot: DeltaTable, table: Table, before: set[str], rows: pl.DataFrame) -> None:
        """Tell the index what was just written, where one file holds all rows of its partition."""
        new = data_files(snapshot).filter(~pl.col("uri").is_in(before))
        by = list(table.partition_by)
        hashed = rows.select(*by, hash=identity_hash(rows, table.key))
        parts = {tuple(row[f"partition.{name}"] for name in by): row["uri"] for row in new.iter_rows(named=True)}
        if len(parts) == new.height:
            groups = hashed.group_by(by) if by else [((), hashed)]
            known = [(parts.get(part), group["hash"].to_numpy()) for part, group in groups]
            self._index(snapshot, table).add([(file, hashes) for file, hashes in known if file])
