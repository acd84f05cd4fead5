"""Joins of silo rows: the conditions of `relationship_mappings`, read, validated, and carried out on frames.

A condition is data, never code: it is parsed into equations of columns, and only those are carried out. Source:
"Customer 360 Graph Pipeline".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl
import sqlglot
from sqlglot import expressions as sql
from sqlglot.errors import SqlglotError

from c360_pipeline.core.contract.identifiers import normal_form
from c360_pipeline.core.projection.graph import NodeKind, RelationshipKind
from c360_pipeline.core.silos.control_rows import IDENTIFIER, RelationshipRow
from c360_pipeline.errors import ConfigError

FUNCTIONS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "tostring": lambda value: value.cast(pl.String),
    "lower": lambda value: value.str.to_lowercase(),
    "trim": lambda value: value.str.strip_chars(),
    "normalform": normal_form,
}
"""What a condition may compare instead of a column: `normalForm` is how stitching and erasure compare ids."""
JOINED_USER = NodeKind("User", ("id",), {"id": pl.String()})
"""What a condition may name of a user: the id that events bear."""


@dataclass(frozen=True)
class Term:
    """One side of an equation.

    Attributes:
        alias: of the row.
        column: of it.
        functions: names in `FUNCTIONS`, applied to the column in this order before it is compared.
    """

    alias: str
    column: str
    functions: tuple[str, ...] = ()

    def of(self, column: pl.Expr) -> pl.Expr:
        """What is compared, of the column."""
        for name in self.functions:
            column = FUNCTIONS[name](column)
        return column

    @property
    def is_text(self) -> bool:
        """Whether it is compared as text, whatever the column's type."""
        return "tostring" in self.functions

    @property
    def needs_text(self) -> bool:
        """Whether the first function takes text only."""
        return bool(self.functions) and self.functions[0] != "tostring"


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
    join = Join(aliases, alternatives)
    for alternative in alternatives:
        for position, alias in enumerate(aliases[1:], 1):
            if not _between(alternative, aliases[:position], alias):
                raise ConfigError(f"{where}: nothing joins the alias {alias!r} to those before it")
    return join


def _between(equations: Sequence[tuple[Term, Term]], seen: Sequence[str], alias: str) -> list[tuple[Term, Term]]:
    """The equations between an alias and some others; of each, the side of the others first."""
    turned = [pair if pair[1].alias == alias else (pair[1], pair[0]) for pair in equations]
    return [(here, there) for here, there in turned if there.alias == alias and here.alias in seen]


def _flatten(tree: sql.Expression, kind: type[sql.Expression]) -> list[sql.Expression]:
    tree = tree.unnest()
    return list(tree.flatten()) if isinstance(tree, kind) else [tree]


def _equation(tree: sql.Expression, where: str) -> tuple[Term, Term]:
    tree = tree.unnest()
    if not isinstance(tree, sql.EQ):
        raise ConfigError(f"{where}: {tree.sql()} is not an equation of two columns")
    left, right = _term(tree.left, where), _term(tree.right, where)
    if left.alias == right.alias:
        raise ConfigError(f"{where}: {tree.sql()} has the same alias on both sides")
    return left, right


def _term(tree: sql.Expression, where: str) -> Term:
    functions: list[str] = []
    column = tree
    while (call := _call(column)) is not None:
        functions.insert(0, call[0])
        column = call[1]
    if not isinstance(column, sql.Column) or not column.table or column.args.get("db"):
        raise ConfigError(
            f"{where}: {tree.sql()} is neither alias.column nor a function of it; there are toString, lower, trim and "
            "normalForm"
        )
    return Term(column.table, column.name, tuple(functions))


def _call(tree: sql.Expression) -> tuple[str, sql.Expression] | None:
    """The name of one of our functions, and what it is called with."""
    if isinstance(tree, sql.Lower | sql.Trim) and {k for k, v in tree.args.items() if v} == {"this"}:
        return tree.key, tree.this
    if isinstance(tree, sql.Anonymous) and tree.name.lower() in FUNCTIONS and len(tree.expressions) == 1:
        return tree.name.lower(), tree.expressions[0]
    return None


def labels_by_alias(row: RelationshipRow, join: Join) -> dict[str, str]:
    """What each alias of a mapping's join condition stands for, in order."""
    return dict(zip(join.aliases, row.labels, strict=True))


def join_problems(row: RelationshipRow, kinds: Mapping[str, NodeKind]) -> list[str]:
    """What is wrong with a mapping row: its condition, its labels, columns that are not there or can't be equal.

    Args:
        row: the control row.
        kinds: node kinds by label, with every column that is read.
    """
    where = f"relationship_mappings row {row.mapping_id} ({row.relationship_type})"
    problems = []
    if not IDENTIFIER.fullmatch(row.relationship_type):
        problems.append(f"{where}: type {row.relationship_type!r} must match {IDENTIFIER.pattern}")
    try:
        join = parse_join(row)
    except ConfigError as error:
        return [*problems, str(error)]
    by_alias = labels_by_alias(row, join)
    unknown = sorted({label for label in by_alias.values() if label not in kinds})
    if unknown:
        return [*problems, f"{where}: no active table has the label {', '.join(unknown)}"]
    for left, right in dict.fromkeys(pair for alternative in join.alternatives for pair in alternative):
        problems += [
            f"{where}: {term.alias}.tenant_id is compared in every join; leave it out"
            for term in (left, right)
            if term.column == "tenant_id"
        ]
        types = [_type_of(term, kinds[by_alias[term.alias]]) for term in (left, right)]
        for term, dtype in zip((left, right), types, strict=True):
            if dtype is None:
                problems.append(
                    f"{where}: {term.alias}.{term.column} is excluded or does not exist in the tables of "
                    f"{by_alias[term.alias]}"
                )
        no_text = [
            f"{where}: {term.functions[0]} takes text, and {term.alias}.{term.column} is {held}; "
            f"say toString({term.alias}.{term.column}) inside of it"
            for term in (left, right)
            if term.needs_text
            and (held := kinds[by_alias[term.alias]].schema.get(term.column)) not in (None, pl.String())
        ]
        problems += no_text
        if None not in types and types[0] != types[1] and not no_text:
            problems.append(
                f"{where}: {left.alias}.{left.column} is {types[0]} and {right.alias}.{right.column} is {types[1]}; "
                "compare them as text with toString(alias.column)"
            )
    return problems


def _type_of(term: Term, kind: NodeKind) -> pl.DataType | None:
    found = kind.schema.get(term.column)
    return pl.String() if found is not None and term.is_text else found


def joined_columns(row: RelationshipRow, kinds: Mapping[str, NodeKind]) -> dict[str, list[str]]:
    """By label, the columns that a mapping needs: keys of its ends and what its condition compares."""
    join = parse_join(row)
    needed = {label: dict.fromkeys(["tenant_id"]) for label in labels_by_alias(row, join).values()}
    for label in (row.from_label, row.to_label):
        needed[label] |= dict.fromkeys(kinds[label].key_columns)
    for alias, label in labels_by_alias(row, join).items():
        terms = [term for alternative in join.alternatives for pair in alternative for term in pair]
        needed[label] |= dict.fromkeys(term.column for term in terms if term.alias == alias)
    return {label: list(columns) for label, columns in needed.items()}


def join_labels(
    row: RelationshipRow,
    frames: Mapping[str, pl.DataFrame],
    kinds: Mapping[str, NodeKind],
    *,
    only: str | None = None,
    changed: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """The relationships that a mapping row asks for.

    Args:
        row: the control row, one that `join_problems` finds nothing wrong with.
        frames: node rows by label, with at least `joined_columns`.
        kinds: node kinds by label.
        only: an alias whose rows are `changed` in place of those of its label.
        changed: rows for that alias.

    Returns:
        tenant_id and the key columns of both ends, prefixed `from_` and `to_`, each pair once.
    """
    return _joined(row, parse_join(row), frames, kinds, only, changed)


@dataclass(frozen=True)
class JoinCount:
    """How much of two labels a mapping joins.

    Attributes:
        name: of the mapping.
        from_rows: rows of its first label.
        from_joined: of these, in at least one relationship.
        to_rows: rows of its last label.
        to_joined: of these, in at least one.
        by_form: relationships that there would be besides if texts were compared without case, blanks around them and
            invisible characters.
    """

    name: str
    from_rows: int
    from_joined: int
    to_rows: int
    to_joined: int
    by_form: int


def join_count(row: RelationshipRow, frames: Mapping[str, pl.DataFrame], kinds: Mapping[str, NodeKind]) -> JoinCount:
    """Count what a mapping joins, and what it passes over because of spelling.

    Args:
        row: as `join_labels` takes it.
        frames: node rows by label.
        kinds: node kinds by label.
    """
    join = parse_join(row)
    by_alias = labels_by_alias(row, join)

    def folded(term: Term) -> Term:
        is_text = term.is_text or kinds[by_alias[term.alias]].schema.get(term.column) == pl.String()
        return replace(term, functions=(*term.functions, "normalform", "lower")) if is_text else term

    alternatives = tuple(tuple((folded(a), folded(b)) for a, b in equations) for equations in join.alternatives)
    pairs = _joined(row, join, frames, kinds)
    of_form = _joined(row, replace(join, alternatives=alternatives), frames, kinds)
    ends = []
    for prefix, label in (("from_", row.from_label), ("to_", row.to_label)):
        key = ["tenant_id", *(f"{prefix}{name}" for name in kinds[label].key)]
        ends += [frames[label].height, pairs.select(key).n_unique()]
    by_form = of_form.join(pairs, on=pairs.columns, how="anti").height
    return JoinCount(row.name, ends[0], ends[1], ends[2], ends[3], by_form)


def _joined(
    row: RelationshipRow,
    join: Join,
    frames: Mapping[str, pl.DataFrame],
    kinds: Mapping[str, NodeKind],
    only: str | None = None,
    changed: pl.DataFrame | None = None,
) -> pl.DataFrame:
    by_alias = labels_by_alias(row, join)
    sides = {
        alias: _side(alias, changed if alias == only and changed is not None else frames[label])
        for alias, label in by_alias.items()
    }
    kind = relationship_kind(row, kinds)
    first, last = join.aliases[0], join.aliases[-1]
    ends = {f"{first}.{k}": f"from_{k}" for k in kind.source.key} | {f"{last}.{k}": f"to_{k}" for k in kind.target.key}
    parts = [
        _join_alternative(join.aliases, alternative, sides).select(
            pl.col("tenant_id"), *(pl.col(old).alias(new) for old, new in ends.items())
        )
        for alternative in join.alternatives
    ]
    return pl.concat(parts).unique().sort(pl.all())


def relationship_kind(row: RelationshipRow, kinds: Mapping[str, NodeKind]) -> RelationshipKind:
    """The kind of relationship that a mapping row makes."""
    return RelationshipKind(row.relationship_type, kinds[row.from_label], kinds[row.to_label])


def _side(alias: str, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.rename({c: f"{alias}.{c}" for c in frame.columns if c != "tenant_id"})


def _join_alternative(
    aliases: tuple[str, ...], equations: tuple[tuple[Term, Term], ...], sides: Mapping[str, pl.DataFrame]
) -> pl.DataFrame:
    joined = sides[aliases[0]]
    for position, alias in enumerate(aliases[1:], 1):
        pairs = _between(equations, aliases[:position], alias)
        keys = [f"__join{i}" for i in range(len(pairs))]
        left = [_value(here).alias(key) for (here, _), key in zip(pairs, keys, strict=True)]
        right = [_value(there).alias(key) for (_, there), key in zip(pairs, keys, strict=True)]
        joined = joined.with_columns(left).join(sides[alias].with_columns(right), on=["tenant_id", *keys]).drop(keys)
    return joined


def _value(term: Term) -> pl.Expr:
    return term.of(pl.col(f"{term.alias}.{term.column}"))
