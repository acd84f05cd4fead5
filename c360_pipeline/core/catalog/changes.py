"""How versions of a table and their rows differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Version:
    """A version of a table; `table_id` tells a table from one that was rebuilt under the same name."""

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
    """What differs between rows as they were and rows as they should be.

    Attributes:
        inserted: rows whose key is new.
        updated: rows whose key was there with other values, as they should be.
        deleted: key columns of rows that are gone.
    """

    inserted: pl.DataFrame
    updated: pl.DataFrame
    deleted: pl.DataFrame

    @classmethod
    def of(cls, upserted: pl.DataFrame, deleted: pl.DataFrame) -> "Changes":
        """For those to whom new and altered rows are one: all count as new."""
        return cls(upserted, upserted.clear(), deleted)

    @property
    def upserted(self) -> pl.DataFrame:
        """Rows that are new or altered, as they should be."""
        return pl.concat([self.inserted, self.updated])

    @property
    def count(self) -> int:
        """Rows that differ."""
        return self.inserted.height + self.updated.height + self.deleted.height


def difference(before: pl.DataFrame, after: pl.DataFrame, key: Sequence[str], *, is_all: bool = True) -> Changes:
    """The difference of two frames by key: on this the claim rests that one thing is equal to another.

    Null equals null and NaN equals NaN. Rows that are there several times are none that differ while one of them is
    equal. Where a column has another type than before, every row counts as altered.

    Args:
        before: rows as they were; the columns of `after` at least.
        after: rows as they should be.
        key: columns that name a row.
        is_all: whether `after` is everything; only then are rows that it lacks deleted.
    """
    names, columns = list(key), after.columns
    was = before.select(columns)
    if was.select(names).schema != after.select(names).schema:
        return Changes(after, after.clear(), was.select(names))
    has_types = was.schema == after.schema
    differing = after.join(was, on=columns, how="anti", nulls_equal=True, maintain_order="left") if has_types else after
    known = was.select(names).join(differing.select(names), on=names, how="semi", nulls_equal=True)
    inserted = differing.join(known, on=names, how="anti", nulls_equal=True, maintain_order="left")
    updated = differing.join(known, on=names, how="semi", nulls_equal=True, maintain_order="left")
    deleted = was.select(names)
    deleted = deleted.join(after.select(names), on=names, how="anti", nulls_equal=True) if is_all else deleted.clear()
    return Changes(inserted, updated, deleted)
