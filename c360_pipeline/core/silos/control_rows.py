"""Silos: the rows of the control database, and what the types of a source table become in the lake and in the graph.

Source: "Customer 360 Graph Pipeline". What is wrong with control rows, and what a run will do: `core.silos.plan`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import cached_property

import polars as pl

from c360_pipeline.core.projection.graph import NodeKind
from c360_pipeline.core.projection.user_properties import UserProperty
from c360_pipeline.errors import ContractError

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_IN_ADDRESS = re.compile(r"[^A-Za-z0-9_.-]")
EXACT_FLOAT_DIGITS = 15
WHOLE_DIGITS = 18
MAX_DECIMAL_DIGITS = 38
LINEAGE = ("tenant_id", "extracted_at", "run_id")
"""Columns that every silo table of the lake has beside its source's."""
FULL, INCREMENTAL = "full", "incremental"
EVOLVE, FREEZE, FAIL = "evolve", "freeze", "fail"


@dataclass(frozen=True)
class SourceDatabase:
    """A row of `source_databases`; the password is a reference, never a value; `sslmode` is one of libpq's."""

    database_id: int
    tenant_id: str
    db_name: str
    host: str
    port: int
    user: str
    password_ref: str
    sslmode: str = "prefer"


@dataclass(frozen=True)
class SourceTable:
    """A row of `source_tables`.

    Attributes:
        key_columns: the table's primary key; with tenant_id the key of its nodes.
        cursor_column: the column that grows with every change, for incremental reads.
        snapshot_mode: `full` or `incremental`.
        drift_policy: what to do when the source's columns change: `evolve`, `freeze` or `fail`.
    """

    table_id: int
    database_id: int
    schema_name: str
    table_name: str
    key_columns: tuple[str, ...]
    cursor_column: str | None = None
    snapshot_mode: str = FULL
    drift_policy: str = EVOLVE


@dataclass(frozen=True)
class IndexRow:
    """A control row of `graph_indexes`: an index that people's own queries need.

    Attributes:
        label: of the nodes.
        properties: of the index, behind the tenant's.
    """

    label: str
    properties: tuple[str, ...]


@dataclass(frozen=True)
class ControlRows:
    """The control database as one value: active databases, their tables, exclusions, labels, relationships.

    Columns are called as in the lake, here and in what sources are found to have.

    Attributes:
        databases: active ones.
        tables: active ones.
        excluded: the reason of each excluded column, by table_id and name.
        labels: by table_id.
        relationships: active ones.
        renamed: by table_id and the source's name, the lake's name of columns that are called otherwise there.
        indexes: of the graph, active ones.
        properties: traits that are properties of users.
    """

    databases: tuple[SourceDatabase, ...]
    tables: tuple[SourceTable, ...]
    excluded: Mapping[tuple[int, str], str]
    labels: Mapping[int, str]
    relationships: tuple["RelationshipRow", ...]
    renamed: Mapping[tuple[int, str], str] = field(default_factory=dict)
    indexes: tuple[IndexRow, ...] = ()
    properties: tuple[UserProperty, ...] = ()

    def database_of(self, table: SourceTable) -> SourceDatabase:
        """The database that a table is in."""
        return next(d for d in self.databases if d.database_id == table.database_id)

    def table_name(self, table: SourceTable) -> str:
        """How people call a table: `database.schema.table`.

        Where two servers have a database of one name, that of the later rows has its number, `database#2`.
        """
        return self._table_names[table.table_id]

    @cached_property
    def _table_names(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for table in sorted(self.tables, key=lambda row: row.table_id):
            database, rest = self.database_of(table).db_name, f"{table.schema_name}.{table.table_name}"
            name = f"{database}.{rest}"
            is_taken = name in names.values()
            names[table.table_id] = f"{database}#{table.database_id}.{rest}" if is_taken else name
        return names

    @property
    def table_names(self) -> list[str]:
        """The names of all tables, in the order of their rows."""
        return [self.table_name(table) for table in self.tables]

    def lake_table(self, table: SourceTable) -> str:
        """The Delta table that a source table's rows land in.

        A character that an address of an object store would have to quote is written by its number: `_x20_`. Where two
        tables would have one place, that of the later row has the schema in it, and where that is not enough the number
        of its database.
        """
        return self._lake_tables[table.table_id]

    @cached_property
    def _lake_tables(self) -> dict[int, str]:
        places: dict[int, str] = {}
        taken: set[str] = set()
        for table in sorted(self.tables, key=lambda row: row.table_id):
            database = self.database_of(table).db_name
            names = (
                (database, table.table_name), (database, f"{table.schema_name}.{table.table_name}"),
                (f"{database}.{table.database_id}", f"{table.schema_name}.{table.table_name}"),
            )  # fmt: skip
            tried = ["/".join(("silos", *map(_in_address, pair))) for pair in names]
            # Some stores and file systems do not tell capitals apart.
            places[table.table_id] = next((place for place in tried if place.casefold() not in taken), tried[0])
            taken.add(places[table.table_id].casefold())
        return places


def _in_address(name: str) -> str:
    return _NOT_IN_ADDRESS.sub(lambda c: f"_x{ord(c[0]):x}_", name)


@dataclass(frozen=True)
class RelationshipRow:
    """A row of `relationship_mappings`."""

    mapping_id: int
    from_label: str
    to_label: str
    relationship_type: str
    join_condition: str
    via_label: str | None

    @property
    def name(self) -> str:
        """How the kind of relationship that it makes is called."""
        return f"({self.from_label})-[:{self.relationship_type}]->({self.to_label})"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that it joins, in the order of its aliases."""
        via = [self.via_label] if self.via_label else []
        return (self.from_label, *via, self.to_label)


@dataclass(frozen=True)
class Column:
    """A column of a source table.

    Attributes:
        name: in the lake.
        pg_type: name of its type, of a domain's base type.
        precision: digits of a numeric, if declared.
        scale: digits of a numeric behind the point, if declared.
        readable: whether the login may select it.
        source_name: as the source has it, where that is another one.
    """

    name: str
    pg_type: str
    precision: int | None = None
    scale: int | None = None
    readable: bool = True
    source_name: str = ""

    @property
    def at_source(self) -> str:
        """Its name in statements for the source."""
        return self.source_name or self.name

    @property
    def declared(self) -> str:
        """The type as people write it."""
        return self.pg_type if self.precision is None else f"{self.pg_type}({self.precision},{self.scale or 0})"


@dataclass(frozen=True)
class FoundTable:
    """What a source database has under the name of a table.

    Attributes:
        columns: by name; none when there is no such table.
        rows: about how many rows it has, by the database's own statistics; None where it does not tell.
        is_stored: a table with rows of its own, not a view or a foreign table.
        hides_rows: row level security shows its login a part of the rows.
        misnamed: what is wrong with rows of column_names.
    """

    columns: Mapping[str, Column]
    rows: int | None = 0
    is_stored: bool = True
    hides_rows: bool = False
    misnamed: tuple[str, ...] = ()

    def renamed(self, names: Mapping[str, str]) -> "FoundTable":
        """The same with the lake's names of its columns.

        Args:
            names: by the source's names, those of columns that are called otherwise.
        """
        unknown = [f"column_names: there is no column {name!r}" for name in names if name not in self.columns]
        kept = set(self.columns) - set(names)
        taken = [f"column_names: {name!r} is to be called {new!r}, as another column is" for name, new in names.items()
                 if new in kept]  # fmt: skip
        columns = {
            names.get(name, name): replace(column, name=names.get(name, name), source_name=name)
            for name, column in self.columns.items()
        }
        return replace(self, columns=columns, misnamed=(*unknown, *taken) if self.columns else ())


LAKE_TYPES: dict[str, pl.DataType] = {
    "int2": pl.Int64(), "int4": pl.Int64(), "int8": pl.Int64(), "oid": pl.Int64(),
    "float4": pl.Float64(), "float8": pl.Float64(), "bool": pl.Boolean(), "date": pl.Date(),
    "timestamp": pl.Datetime("us"), "timestamptz": pl.Datetime("us", "UTC"), "bytea": pl.Binary(),
}  # fmt: skip
"""Postgres types with a type of their own in the lake; numeric is a decimal, all others are text."""


def lake_type(column: Column) -> pl.DataType:
    """The column's type in the lake; numeric keeps every digit."""
    if column.pg_type == "numeric" and column.precision is not None:
        scale = column.scale or 0
        if column.precision <= MAX_DECIMAL_DIGITS and 0 <= scale <= column.precision:
            return pl.Decimal(column.precision, scale)
    return LAKE_TYPES.get(column.pg_type, pl.String())


def typed(rows: pl.DataFrame, columns: Sequence[Column], key: Sequence[str]) -> pl.DataFrame:
    """Rows as the driver hands them over, with the types of the lake.

    Postgres' infinity of times and dates becomes the last moment of the year 9999, minus infinity the first of the
    year 1: neither the lake nor the graph has a value of its own for them.

    Args:
        rows: the columns, those without a type of their own in Arrow as text.
        columns: of the source.
        key: columns that name a row in messages.

    Raises:
        ContractError: a value that the lake's type can't hold; the message names key, column and value.
    """
    cast = rows.select(_typed(rows.schema[c.name], c).alias(c.name) for c in columns)
    for column in columns:
        lost = cast[column.name].is_null() & rows[column.name].is_not_null()
        if lost.any():
            first = rows.filter(lost).head(1)
            shown = [_shown(first, name).alias(str(n)) for n, name in enumerate([*key, column.name])]
            *values, value = first.select(shown).row(0)
            raise ContractError(
                f"column {column.name!r} of the row with {_named(key, values)}: {value} is no {column.declared} that "
                f"the lake can hold ({int(lost.sum()):,} such rows). Correct the rows or exclude the column."
            )
    return cast


def _shown(rows: pl.DataFrame, name: str) -> pl.Expr:
    """A value as text for a message; times may be out of all range."""
    dtype, value = rows.schema[name], pl.col(name)
    if dtype == pl.Binary():
        return value.bin.encode("hex")
    return (value.to_physical() if dtype.is_temporal() else value).cast(pl.String)


def _named(key: Sequence[str], values: Sequence[object]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in zip(key, values, strict=True))


def _typed(found: pl.DataType, column: Column) -> pl.Expr:
    wanted, value = lake_type(column), pl.col(column.name)
    if not isinstance(wanted, pl.Datetime | pl.Date):
        return value.cast(wanted, strict=False)
    number = value.to_physical()
    infinite = _INFINITE[type(wanted)]
    low, high = (pl.lit(bound).cast(wanted) for bound in _BOUNDS[type(wanted)])
    held = value.cast(wanted)
    return (
        pl.when(number == infinite[0]).then(high).when(number == infinite[1]).then(low)
        .when(held.is_between(low, high)).then(held)
    )  # fmt: skip


_EPOCH_DAYS = 10_957
_EPOCH_MICROS = _EPOCH_DAYS * 86_400_000_000
_INFINITE: dict[type[pl.DataType], tuple[int, int]] = {
    pl.Datetime: (2**63 - 1 + _EPOCH_MICROS - 2**64, -(2**63) + _EPOCH_MICROS),
    pl.Date: (2**31 - 1 + _EPOCH_DAYS - 2**32, -(2**31) + _EPOCH_DAYS),
}
"""Infinity and minus infinity as the driver hands them over: Postgres' own numbers, counted from 1970, not 2000."""
_BOUNDS: dict[type[pl.DataType], tuple[date, date]] = {
    pl.Datetime: (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    pl.Date: (date(1, 1, 1), date(9999, 12, 31)),
}
"""First and last value that lake, graph and Python all hold."""


def graph_type(in_lake: pl.DataType) -> pl.DataType:
    """A lake column's type in the graph: a decimal that an integer or a float holds is one, others are text."""
    if isinstance(in_lake, pl.Decimal) and not in_lake.scale and (in_lake.precision or 39) <= WHOLE_DIGITS:
        return pl.Int64()
    if isinstance(in_lake, pl.Decimal):
        return pl.Float64() if (in_lake.precision or 39) <= EXACT_FLOAT_DIGITS else pl.String()
    return in_lake


def node_kind(label: str, key_columns: tuple[str, ...], lake_schema: pl.Schema) -> NodeKind:
    """The kind of node that a row of a silo table becomes: every column that was not excluded is a property."""
    return NodeKind(label, key_columns, {c: graph_type(t) for c, t in lake_schema.items() if c not in LINEAGE})


def with_properties_of(kind: NodeKind, earlier: NodeKind | None) -> NodeKind:
    """The kind of a label that several tables fill: with the columns of all."""
    return NodeKind(kind.label, kind.key, {**(earlier.properties if earlier else {}), **kind.properties})


def node_rows(kind: NodeKind, rows: pl.DataFrame) -> pl.DataFrame:
    """Lake rows of a silo table as node rows; columns that only another table of the label has are null."""
    return rows.select(
        (pl.col(name).cast(dtype) if name in rows.columns else pl.lit(None, dtype)).alias(name)
        for name, dtype in kind.schema.items()
    )


HELD_SUFFIX = "\0held"
"""A column of a source can't have this in its name."""


def unusable_keys(rows: pl.DataFrame, key: Sequence[str]) -> str | None:
    """What is wrong with the keys of some rows: a null among them, or one that is there twice; None when nothing is."""
    keys = rows.select(key)
    missing = keys.filter(pl.any_horizontal(pl.col(*key).is_null()))
    if missing.height:
        return f"{missing.height:,} rows have no value in a key column ({', '.join(key)})"
    repeated = keys.filter(keys.is_duplicated())
    if repeated.height:
        return f"{repeated.height:,} rows share a key with another, such as {_named(key, repeated.row(0))}"
    return None
