"""Silos: what the control database asks for, held against what the source databases have.

Control rows in, validated plans out: which columns of which tables are read, what they become in the lake and in
the graph, and how rows of different silos join. Source: "Customer 360 Graph Pipeline".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
import sqlglot
from sqlglot import expressions as sql
from sqlglot.errors import SqlglotError

from c360_pipeline.core.graph import NodeKind, RelationshipKind
from c360_pipeline.errors import ConfigError

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FOLDER = re.compile(r"(?!\.+$)[^/\\]+")
RESERVED_LABELS = frozenset(
    ("User", "Session", "Action", "Event", "Product", "Category", "Correlation", "Journey", "ProjectionCheckpoint")
)
EXACT_FLOAT_DIGITS = 15
WHOLE_DIGITS = 18
LINEAGE = ("tenant_id", "extracted_at", "run_id")
"""Columns that every silo table of the lake has beside its source's."""


@dataclass(frozen=True)
class SourceDatabase:
    """A row of `source_databases`; the password is a reference, never a value."""

    database_id: int
    tenant_id: str
    db_name: str
    host: str
    port: int
    user: str
    password_ref: str


@dataclass(frozen=True)
class SourceTable:
    """A row of `source_tables`."""

    table_id: int
    database_id: int
    schema_name: str
    table_name: str
    key_columns: tuple[str, ...]


@dataclass(frozen=True)
class ControlRows:
    """The control database as one value: active databases, their tables, exclusions, labels, relationships."""

    databases: tuple[SourceDatabase, ...]
    tables: tuple[SourceTable, ...]
    excluded: frozenset[tuple[int, str]]
    labels: Mapping[int, str]
    relationships: tuple["RelationshipRow", ...]

    def lake_table(self, table: SourceTable) -> str:
        """The Delta table that a source table's rows land in."""
        db_name = next(d.db_name for d in self.databases if d.database_id == table.database_id)
        return f"silos/{db_name}/{table.table_name}"


@dataclass(frozen=True)
class RelationshipRow:
    """A row of `relationship_mappings`."""

    mapping_id: int
    from_label: str
    to_label: str
    relationship_type: str
    join_condition: str
    via_label: str | None


@dataclass(frozen=True)
class Column:
    """A column of a source table: its name, its Postgres type and, for numeric, its digits and scale."""

    name: str
    pg_type: str
    precision: int | None = None
    scale: int | None = None


@dataclass(frozen=True)
class Extract:
    """One bounded read of a source table.

    Attributes:
        table: the control row.
        tenant_id: whose data it is.
        db_name: the source database.
        columns: what is read; excluded columns are not among them.
        excluded: what is left out.
        label: node label, or None for a table that stays in the lake.
        lake_table: the Delta table that the rows land in.
    """

    table: SourceTable
    tenant_id: str
    db_name: str
    columns: tuple[Column, ...]
    excluded: tuple[str, ...]
    label: str | None
    lake_table: str


LAKE_TYPES: dict[str, pl.DataType] = {
    "int2": pl.Int64(), "int4": pl.Int64(), "int8": pl.Int64(), "oid": pl.Int64(),
    "float4": pl.Float64(), "float8": pl.Float64(), "bool": pl.Boolean(), "date": pl.Date(),
    "timestamp": pl.Datetime("us"), "timestamptz": pl.Datetime("us", "UTC"), "bytea": pl.Binary(),
}  # fmt: skip
"""Postgres types with a type of their own in the lake; numeric is a decimal, all others are text."""


def lake_type(column: Column) -> pl.DataType:
    """The column's type in the lake; numeric keeps every digit."""
    if column.pg_type == "numeric" and column.precision is not None and column.precision <= 38:
        return pl.Decimal(column.precision, column.scale or 0)
    return LAKE_TYPES.get(column.pg_type, pl.String())


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


def node_rows(kind: NodeKind, rows: pl.DataFrame) -> pl.DataFrame:
    """Lake rows of a silo table as node rows."""
    return rows.select(pl.col(name).cast(dtype) for name, dtype in kind.schema.items())


def plan_extracts(control: ControlRows, found: Mapping[int, Mapping[str, Column]]) -> list[Extract]:
    """Decide what to read.

    Args:
        control: the control rows.
        found: by table_id, the columns that the source table has, by name.

    Raises:
        ConfigError: control rows that name a table, column or label that can't be; all problems at once, each with
            the row's id and what to change.
    """
    databases = {d.database_id: d for d in control.databases}
    problems: list[str] = []
    extracts: list[Extract] = []
    for table in control.tables:
        columns = found.get(table.table_id, {})
        excluded = {name for table_id, name in control.excluded if table_id == table.table_id}
        label = control.labels.get(table.table_id)
        database = databases[table.database_id]
        problems += _table_problems(database.db_name, table, columns, excluded, label)
        kept = tuple(column for name, column in columns.items() if name not in excluded)
        extracts.append(
            Extract(
                table=table,
                tenant_id=database.tenant_id,
                db_name=database.db_name,
                columns=kept,
                excluded=tuple(sorted(excluded)),
                label=label,
                lake_table=control.lake_table(table),
            )
        )
    problems += _shared_paths(extracts) + _labels_apart(extracts)
    if problems:
        raise ConfigError("The control database asks for what can't be:\n- " + "\n- ".join(problems))
    return extracts


def _shared_paths(extracts: list[Extract]) -> list[str]:
    """Tables that would overwrite each other in the lake."""
    first: dict[str, Extract] = {}
    problems = []
    for extract in extracts:
        other = first.setdefault(extract.lake_table, extract)
        if other is not extract:
            problems.append(
                f"source_tables rows {other.table.table_id} and {extract.table.table_id} have one place in the lake, "
                f"{extract.lake_table}: give their databases different names, or read one of them only"
            )
    return problems


def _labels_apart(extracts: list[Extract]) -> list[str]:
    """Tables of one label whose keys differ: their nodes could not be told apart."""
    first: dict[str, Extract] = {}
    problems = []
    for extract in extracts:
        other = first.setdefault(extract.label, extract) if extract.label else extract
        if other.table.key_columns != extract.table.key_columns:
            problems.append(
                f"node_label_mappings: label {extract.label!r} of the source_tables rows {other.table.table_id} and "
                f"{extract.table.table_id} has two keys, {other.table.key_columns} and {extract.table.key_columns}"
            )
    return problems


def _table_problems(
    database: str, table: SourceTable, columns: Mapping[str, Column], excluded: set[str], label: str | None
) -> list[str]:
    row = f"source_tables row {table.table_id} ({table.schema_name}.{table.table_name})"
    if not columns:
        return [f"{row}: there is no such table, or its login may not read it"]
    problems = [f"{row}: key column {k!r} does not exist" for k in table.key_columns if k not in columns]
    problems += [f"{row}: key column {k!r} is excluded" for k in table.key_columns if k in excluded]
    problems += [f"{row}: excluded column {e!r} does not exist" for e in sorted(excluded - set(columns))]
    problems += [
        f"{row}: column {c!r} clashes with a column of ours" for c in LINEAGE if c in columns and c not in excluded
    ]
    if label is not None and not IDENTIFIER.fullmatch(label):
        problems.append(f"{row}: label {label!r} must match {IDENTIFIER.pattern}")
    if label in RESERVED_LABELS:
        problems.append(f"{row}: label {label!r} is one of the graph's own")
    problems += [
        f"{row}: {n!r} can't be the name of a folder" for n in (database, table.table_name) if not FOLDER.fullmatch(n)
    ]
    problems += [
        f"{row}: column {c!r} holds a backslash, a graph property can't"
        for c in columns
        if "\\" in c and c not in excluded
    ]
    return problems


@dataclass(frozen=True)
class Term:
    """One side of an equation: an alias' column, compared as text when `as_text`."""

    alias: str
    column: str
    as_text: bool


@dataclass(frozen=True)
class Join:
    """A parsed `join_condition`: alternatives, each a conjunction of equations; aliases in order of appearance."""

    aliases: tuple[str, ...]
    alternatives: tuple[tuple[tuple[Term, Term], ...], ...]


def parse_join(row: RelationshipRow) -> Join:
    """Read a join condition such as `u.id = a.email OR u.id = toString(a.account_id)`.

    The first alias stands for from_label; with a via_label the second stands for it; the last for to_label.

    Raises:
        ConfigError: it is not a disjunction of conjunctions of equations between columns of these aliases.
    """
    where = (
        f"relationship_mappings row {row.mapping_id} ({row.relationship_type}): join_condition {row.join_condition!r}"
    )
    try:
        tree = sqlglot.parse_one(row.join_condition, dialect="postgres")
    except SqlglotError as error:
        raise ConfigError(f"{where} can't be read: {error}") from None
    alternatives = tuple(
        tuple(_equation(part, where) for part in _flatten(alternative, sql.And))
        for alternative in _flatten(tree, sql.Or)
    )
    aliases = tuple(dict.fromkeys(t.alias for alt in alternatives for pair in alt for t in pair))
    expected = 3 if row.via_label else 2
    if len(aliases) != expected:
        raise ConfigError(f"{where} names the aliases {', '.join(aliases)}; {expected} are right")
    return Join(aliases, alternatives)


def _flatten(tree: sql.Expression, kind: type[sql.Expression]) -> list[sql.Expression]:
    tree = tree.unnest()
    return list(tree.flatten()) if isinstance(tree, kind) else [tree]


def _equation(tree: sql.Expression, where: str) -> tuple[Term, Term]:
    tree = tree.unnest()
    if not isinstance(tree, sql.EQ):
        raise ConfigError(f"{where}: {tree.sql()} is not an equation of two columns")
    return _term(tree.left, where), _term(tree.right, where)


def _term(tree: sql.Expression, where: str) -> Term:
    as_text = isinstance(tree, sql.Anonymous) and tree.name.lower() == "tostring" and len(tree.expressions) == 1
    column = tree.expressions[0] if as_text else tree
    if not isinstance(column, sql.Column) or not column.table or column.args.get("db"):
        raise ConfigError(f"{where}: {tree.sql()} is neither alias.column nor toString(alias.column)")
    return Term(column.table, column.name, as_text)


def join_labels(
    row: RelationshipRow, frames: Mapping[str, pl.DataFrame], kinds: Mapping[str, NodeKind]
) -> pl.DataFrame:
    """The relationships that a mapping row asks for.

    Args:
        row: the control row.
        frames: node rows by label, with tenant_id.
        kinds: node kinds by label.

    Returns:
        tenant_id and the key columns of both ends, prefixed `from_` and `to_`, each pair once.

    Raises:
        ConfigError: a label or column that is not there.
    """
    join = parse_join(row)
    labels = [row.from_label, *([row.via_label] if row.via_label else []), row.to_label]
    for label in labels:
        if label not in frames:
            raise ConfigError(f"relationship_mappings row {row.mapping_id}: no table has the label {label!r}")
    by_alias = dict(zip(join.aliases, labels, strict=True))
    sides = {alias: _side(alias, frames[label]) for alias, label in by_alias.items()}
    kind = relationship_kind(row, kinds)
    first, last = join.aliases[0], join.aliases[-1]
    ends = {f"{first}.{k}": f"from_{k}" for k in kind.source.key} | {f"{last}.{k}": f"to_{k}" for k in kind.target.key}
    parts = [
        _join_alternative(row, join.aliases, alternative, sides).select(
            pl.col("tenant_id"), *(pl.col(old).alias(new) for old, new in ends.items())
        )
        for alternative in join.alternatives
    ]
    return pl.concat(parts).unique().sort(pl.all())


def relationship_kind(row: RelationshipRow, kinds: Mapping[str, NodeKind]) -> RelationshipKind:
    """The kind of relationship that a mapping row makes."""
    if not IDENTIFIER.fullmatch(row.relationship_type):
        raise ConfigError(
            f"relationship_mappings row {row.mapping_id}: type {row.relationship_type!r} must match "
            f"{IDENTIFIER.pattern}"
        )
    return RelationshipKind(row.relationship_type, kinds[row.from_label], kinds[row.to_label])


def _side(alias: str, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.rename({c: f"{alias}.{c}" for c in frame.columns if c != "tenant_id"})


def _join_alternative(
    row: RelationshipRow,
    aliases: tuple[str, ...],
    equations: tuple[tuple[Term, Term], ...],
    sides: Mapping[str, pl.DataFrame],
) -> pl.DataFrame:
    joined = sides[aliases[0]]
    seen = {aliases[0]}
    for alias in aliases[1:]:
        usable = [
            pair for pair in equations if {t.alias for t in pair} <= seen | {alias} and alias in {t.alias for t in pair}
        ]
        if not usable:
            raise ConfigError(f"relationship_mappings row {row.mapping_id}: nothing joins the alias {alias!r}")
        here = [next(t for t in pair if t.alias != alias) for pair in usable]
        there = [next(t for t in pair if t.alias == alias) for pair in usable]
        left = [_value(row, term, joined).alias(f"__join{i}") for i, term in enumerate(here)]
        right = [_value(row, term, sides[alias]).alias(f"__join{i}") for i, term in enumerate(there)]
        keys = ["tenant_id", *(f"__join{i}" for i in range(len(usable)))]
        joined = joined.with_columns(left).join(sides[alias].with_columns(right), on=keys).drop(keys[1:])
        seen.add(alias)
    return joined


def _value(row: RelationshipRow, term: Term, frame: pl.DataFrame) -> pl.Expr:
    name = f"{term.alias}.{term.column}"
    if name not in frame.columns:
        raise ConfigError(
            f"relationship_mappings row {row.mapping_id} ({row.relationship_type}): {name} is excluded "
            "or does not exist"
        )
    column = pl.col(name)
    return column.cast(pl.String) if term.as_text else column


def changed_rows(current: pl.DataFrame, extracted: pl.DataFrame, key: list[str]) -> tuple[pl.DataFrame, int]:
    """The lake table after an extract: unchanged rows keep the `extracted_at` and `run_id` of their last change.

    Args:
        current: the lake table as it is.
        extracted: all rows of the source now.
        key: key columns.

    Returns:
        The rows, and how many of them are new, altered or gone.
    """
    content = [c for c in extracted.columns if c not in ("extracted_at", "run_id")]
    if current.is_empty() or dict(current.schema) != dict(extracted.schema):
        return extracted, extracted.height + current.height
    kept = current.select(extracted.columns).join(extracted, on=content, how="semi", nulls_equal=True)
    changed = extracted.join(current, on=content, how="anti", nulls_equal=True)
    gone = current.join(extracted, on=["tenant_id", *key], how="anti").height
    return pl.concat([kept, changed]), changed.height + gone
