"""A Delta table, declared once: its columns, key and partitions."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

import polars as pl
import pyarrow as pa

from c360_pipeline.core.catalog.columns import Column


@dataclass(frozen=True, eq=False)
class Table:
    """A Delta table under `lake/`.

    Attributes:
        name: path below `lake/`.
        key: columns that are unique together.
        declared: the columns, in their order.
        description: one sentence for the catalogue and the UI.
        partition_by: Delta partition columns.
        distinct: columns whose values hardly repeat: a dictionary of them would be built in vain.
        retention: for how long data files that newer versions do not need are kept, for readers of older ones.
    """

    name: str
    key: tuple[str, ...]
    declared: tuple[Column, ...]
    description: str
    partition_by: tuple[str, ...] = ()
    distinct: tuple[str, ...] = ()
    retention: timedelta = timedelta(days=7)

    @classmethod
    def of_types(
        cls, name: str, key: tuple[str, ...], types: Mapping[str, pa.DataType], description: str, retention: timedelta
    ) -> "Table":
        """A table whose columns only a source or its log describes: types by name."""
        return cls(name, key, tuple(Column(n, t, "") for n, t in types.items()), description, retention=retention)

    @cached_property
    def columns(self) -> dict[str, pa.DataType]:
        """Arrow types by column name."""
        return {column.name: column.type for column in self.declared}

    @cached_property
    def meanings(self) -> dict[str, str]:
        """What each column means, by name."""
        return {column.name: column.meaning for column in self.declared}

    @cached_property
    def origins(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """By column, the tables and columns that it is made of; of those that are made of any."""
        return {column.name: column.origin for column in self.declared if column.origin}

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema."""
        return pa.schema(list(self.columns.items()))

    def empty(self) -> pl.DataFrame:
        """A frame with the table's columns and no rows."""
        return pl.DataFrame(schema=pl.Schema(self.schema))


SILO_RETENTION = timedelta(days=7)
"""As `Table.retention`, for tables of silos."""
