"""How versions of a table and their rows differ."""

from dataclasses import dataclass

import polars as pl


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


@dataclass(frozen=True)
class Changes:
    """What differs between two versions of a table.

    Attributes:
        upserted: rows that are new or altered, as they are now.
        deleted: key columns of rows that are gone.
    """

    upserted: pl.DataFrame
    deleted: pl.DataFrame

    @property
    def count(self) -> int:
        """Rows that differ."""
        return self.upserted.height + self.deleted.height


@dataclass(frozen=True)
class RowChanges:
    """How rows as they should be differ from those that a table holds.

    Attributes:
        inserted: rows whose key the table does not hold.
        updated: rows of which the table holds other values, as they should be.
        deleted: key columns of rows that should not be there any more.
    """

    inserted: pl.DataFrame
    updated: pl.DataFrame
    deleted: pl.DataFrame

    @property
    def count(self) -> int:
        """Rows that differ."""
        return self.inserted.height + self.updated.height + self.deleted.height


def compare_versions(before: pl.DataFrame, after: pl.DataFrame, key: tuple[str, ...]) -> Changes:
    """Compare two frames of the same columns by key; null equals null.

    Where a column has another type than before, every row counts as altered.
    """
    if before.is_empty():
        return Changes(after, after.select(key).clear())
    if dict(before.schema) != dict(after.select(before.columns).schema):
        same_keys = before.select(key).schema == after.select(key).schema
        gone = before.select(key).join(after.select(key), on=list(key), how="anti") if same_keys else before.select(key)
        return Changes(after, gone)
    upserted = after.join(before, on=after.columns, how="anti", nulls_equal=True) if after.height else after
    deleted = before.select(key).join(after.select(key), on=list(key), how="anti", nulls_equal=True)
    return Changes(upserted, deleted)
