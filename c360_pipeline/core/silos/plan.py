"""The plan of a run over the silos: which columns of which tables are read, what they become, what changed since.

Control rows and what the sources have go in; a plan comes out, or every problem at once, each with the row to correct.
A plan is a value with a hash: `c360 plan` shows it, a run applies it, and the next is compared with it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from c360_pipeline.core.projection.graph import LABELS, NodeKind
from c360_pipeline.core.silos.control_rows import (
    EVOLVE,
    FREEZE,
    HELD_SUFFIX,
    IDENTIFIER,
    INCREMENTAL,
    LINEAGE,
    Column,
    ControlRows,
    FoundTable,
    RelationshipRow,
    SourceTable,
    lake_type,
    node_kind,
    with_properties_of,
)
from c360_pipeline.core.silos.joins import JOINED_USER, join_problems
from c360_pipeline.errors import ConfigError

FOLDER = re.compile(r"(?!\.+$)[^/\\]+")
RESERVED_LABELS = LABELS | {"ProjectionCheckpoint", "C360Script"}
CURSOR_TYPES = ("int2", "int4", "int8", "timestamp", "timestamptz", "date")
FROZEN = "new since the table was frozen"
SYSTEM_SCHEMA = re.compile(r"pg_.*|information_schema", re.IGNORECASE)
ROW_SECURITY = (
    "{}: row level security hides rows of it from its login, so that what would be read is not all there is: give the "
    "login BYPASSRLS, or read a view of an owner that sees all"
)
Document = dict[str, Any]


@dataclass(frozen=True)
class Extract:
    """One read of a source table.

    Attributes:
        name: how people call the table.
        table: the control row.
        tenant_id: whose data it is.
        db_name: the source database.
        columns: what is read; what is left out is not among them.
        left_out: columns that are not read, with the reason.
        label: node label, or None for a table that stays in the lake.
        lake_table: the Delta table that the rows land in.
        rows: about how many rows the source has; None where it does not tell.
        server: host and port of the source.
        is_stored: a table with rows of its own, not a view or a foreign table.
    """

    name: str
    table: SourceTable
    tenant_id: str
    db_name: str
    columns: tuple[Column, ...]
    left_out: Mapping[str, str]
    label: str | None
    lake_table: str
    rows: int | None
    server: str
    is_stored: bool

    @property
    def lake_schema(self) -> pl.Schema:
        """The source's columns with their types in the lake."""
        return pl.Schema({column.name: lake_type(column) for column in self.columns})

    @property
    def document(self) -> Document:
        """The part of the plan's document that is about this table."""
        return {
            "tenant": self.tenant_id,
            "lake_table": self.lake_table,
            "key": list(self.table.key_columns),
            "mode": self.table.snapshot_mode,
            "cursor": self.table.cursor_column,
            "drift": self.table.drift_policy,
            "label": self.label,
            "reads": {column.name: column.declared for column in self.columns},
            "leaves_out": dict(sorted(self.left_out.items())),
        }


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        extracts: the tables that are read.
        relationships: the mappings that are carried out.
        set_aside: by the name of a table or mapping that can't be had as things are, each problem with the row to
            correct; the others go on without it.
    """

    extracts: tuple[Extract, ...]
    relationships: tuple[RelationshipRow, ...]
    set_aside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def document(self) -> Document:
        """The plan as plain values, the same for the same plan; without what is set aside."""
        return {
            "tables": {extract.name: extract.document for extract in sorted(self.extracts, key=lambda e: e.name)},
            "relationships": {
                r.name: {
                    "on": r.join_condition, "via": r.via_label
                }
                for r in sorted(self.relationships, key=lambda r: (r.from_label, r.relationship_type, r.to_label))
            },
        }  # fmt: skip

    @property
    def hash(self) -> str:
        """sha256 of the document's canonical form."""
        return plan_hash(self.document)


def plan_hash(document: Document) -> str:
    """sha256 of a plan document's canonical form."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def make_plan(control: ControlRows, found: Mapping[int, FoundTable], applied: Document | None = None) -> Plan:
    """Decide what to read, and what it becomes, where all of it can be.

    Args:
        control: the control rows.
        found: by table_id, what the source has.
        applied: document of the last plan that a run has carried out: what drift is measured against.

    Raises:
        ConfigError: control rows that ask for what can't be, or columns that changed where that must not be; all
            problems at once, each with the row's id and what to change.
    """
    plan = plan_what_can_be(control, found, applied)
    if plan.set_aside:
        problems = [problem for of_one in plan.set_aside.values() for problem in of_one]
        raise ConfigError("The control database asks for what can't be:\n- " + "\n- ".join(dict.fromkeys(problems)))
    return plan


def plan_what_can_be(
    control: ControlRows,
    found: Mapping[int, FoundTable],
    applied: Document | None = None,
    unreachable: Mapping[int, str] | None = None,
) -> Plan:
    """Decide what to read, and what it becomes; what can't be had is set aside, and the rest goes on.

    Args:
        control: the control rows.
        found: by table_id, what the source has.
        applied: document of the last plan that a run has carried out: what drift is measured against.
        unreachable: by database_id, why a source can't be asked.
    """
    away = unreachable or {}
    problems: dict[str, list[str]] = {}
    extracts: list[Extract] = []
    for table in control.tables:
        name = control.table_name(table)
        if table.database_id in away:
            problems.setdefault(name, []).append(f"{_row(table)}: {away[table.database_id]}")
            continue
        there = found.get(table.table_id, FoundTable({}))
        extract = _extract(control, table, there, applied)
        wrong = _table_problems(control, extract, there) + _drift_problems(extract, applied)
        if wrong:
            problems.setdefault(name, []).extend(wrong)
        extracts.append(extract)
    for names, problem in _labels_apart(extracts):
        for name in names:
            problems.setdefault(name, []).append(problem)
    # Mappings of a label are judged by all of its tables that could be looked at.
    kinds = {"User": JOINED_USER, **label_kinds(extracts)}
    unseen = {control.labels.get(table.table_id) for table in control.tables if table.database_id in away}
    for row in control.relationships:
        if wrong := [] if unseen & set(row.labels) else join_problems(row, kinds):
            problems.setdefault(row.name, []).extend(wrong)
    return Plan(
        tuple(extract for extract in extracts if extract.name not in problems),
        tuple(row for row in control.relationships if row.name not in problems),
        {name: tuple(of_one) for name, of_one in problems.items()},
    )


def label_kinds(extracts: Iterable[Extract]) -> dict[str, NodeKind]:
    """The kind of node of each label; of a label with several tables, with the columns of all."""
    kinds: dict[str, NodeKind] = {}
    for extract in extracts:
        if extract.label:
            kind = node_kind(extract.label, extract.table.key_columns, extract.lake_schema)
            kinds[extract.label] = with_properties_of(kind, kinds.get(extract.label))
    return kinds


def _extract(control: ControlRows, table: SourceTable, found: FoundTable, applied: Document | None) -> Extract:
    database = control.database_of(table)
    left_out = {name: reason for (table_id, name), reason in control.excluded.items() if table_id == table.table_id}
    before = _applied_table(applied, control.table_name(table))
    if before and table.drift_policy == FREEZE:
        left_out |= {name: FROZEN for name in found.columns if name not in before["reads"] and name not in left_out}
    return Extract(
        name=control.table_name(table),
        table=table,
        tenant_id=database.tenant_id,
        db_name=database.db_name,
        columns=tuple(column for name, column in found.columns.items() if name not in left_out),
        left_out=left_out,
        label=control.labels.get(table.table_id),
        lake_table=control.lake_table(table),
        rows=found.rows,
        server=f"{database.host}:{database.port}",
        is_stored=found.is_stored,
    )


def _applied_table(applied: Document | None, name: str) -> Document | None:
    known = applied or {}
    found: Document | None = known.get("tables", {}).get(name) or known.get("paused", {}).get(name)
    return found


def _drift_problems(extract: Extract, applied: Document | None) -> list[str]:
    """Columns that came, went or changed where the table's policy refuses that."""
    table = extract.table
    before = _applied_table(applied, extract.name)
    if before is None or table.drift_policy == EVOLVE:
        return []
    now = {column.name: column.declared for column in extract.columns}
    gone = [c for c in before["reads"] if c not in now and c not in extract.left_out]
    came = [c for c in now if c not in before["reads"]]
    retyped = [c for c, declared in now.items() if before["reads"].get(c, declared) != declared]
    changes = [
        *(f"column {c!r} is gone" for c in gone),
        *(f"column {c!r} is new" for c in came),
        *(f"column {c!r} is {now[c]} and was {before['reads'][c]}" for c in retyped),
    ]
    return [
        f"{_row(table)}: {change} since the last run and drift_policy is {table.drift_policy!r}: "
        "set it to 'evolve' to take the source as it is, or exclude the column"
        for change in changes
    ]


def _labels_apart(extracts: list[Extract]) -> list[tuple[tuple[str, str], str]]:
    """Two tables of one label whose keys, or types of a column, differ: their nodes could not be compared."""
    first: dict[str, Extract] = {}
    types: dict[tuple[str, str], tuple[Extract, pl.DataType]] = {}
    problems = []
    for extract in extracts:
        label = extract.label
        if label is None:
            continue
        other = first.setdefault(label, extract)
        if other.table.key_columns != extract.table.key_columns:
            problems.append((
                (other.name, extract.name),
                f"node_label_mappings: {_two(label, other, extract)} has two keys, {other.table.key_columns} and "
                f"{extract.table.key_columns}",
            ))  # fmt: skip
        for name, dtype in extract.lake_schema.items():
            earlier, known = types.setdefault((label, name), (extract, dtype))
            if known != dtype:
                problems.append((
                    (earlier.name, extract.name),
                    f"node_label_mappings: {_two(label, earlier, extract)} has two types of column {name!r}, {known} "
                    f"and {dtype}",
                ))  # fmt: skip
    return problems


def _two(label: str, one: Extract, other: Extract) -> str:
    return f"label {label!r} of the source_tables rows {one.table.table_id} and {other.table.table_id}"


def _row(table: SourceTable) -> str:
    return f"source_tables row {table.table_id} ({table.schema_name}.{table.table_name})"


def _table_problems(control: ControlRows, extract: Extract, found: FoundTable) -> list[str]:
    table, columns, row = extract.table, found.columns, _row(extract.table)
    if not columns:
        return [f"{row}: there is no such table, or its login may not see it"]
    if SYSTEM_SCHEMA.fullmatch(table.schema_name):
        return [f"{row}: {table.schema_name} is PostgreSQL's own, with its logins and settings, and no source"]
    excluded = sorted(name for table_id, name in control.excluded if table_id == table.table_id)
    problems = [ROW_SECURITY.format(row)] if found.hides_rows else []
    problems += [f"{row}: {said}" for said in found.misnamed]
    problems += [f"{row}: key column {k!r} does not exist" for k in table.key_columns if k not in columns]
    problems += [f"{row}: key column {k!r} is excluded" for k in table.key_columns if k in excluded]
    problems += [f"{row}: excluded column {e!r} does not exist" for e in excluded if e not in columns]
    problems += [
        f"{row}: column {c.name!r} clashes with a column of ours: exclude it, or give it a lake_name in column_names"
        for c in extract.columns
        if c.name in LINEAGE
    ]
    names = [c.name for c in extract.columns]
    folded = [name.casefold() for name in names]
    problems += [
        f"{row}: columns that differ in case only can't be distinguished in the lake: {name!r}; give one of them a "
        "lake_name in column_names"
        for name in names
        if folded.count(name.casefold()) > 1
    ]
    problems += [f"{row}: column {n!r} has a name that is kept for us" for n in names if n.startswith("__c360_")]
    if len(set(table.key_columns)) < len(table.key_columns):
        problems.append(f"{row}: key_columns {table.key_columns} names a column twice")
    problems += [
        f"{row}: the login may not read column {c.name!r}: run what `c360 grants` prints, or exclude the column"
        for c in extract.columns
        if not c.readable
    ]
    problems += [
        f"{row}: {n!r} can't be the name of a folder"
        for n in (extract.db_name, table.table_name)
        if not FOLDER.fullmatch(n)
    ]
    problems += [
        f"{row}: column {c.name!r} holds a backslash, a graph property can't: give it a lake_name in column_names"
        for c in extract.columns
        if "\\" in c.name or HELD_SUFFIX in c.name
    ]
    return problems + _label_problems(extract) + _cursor_problems(extract, columns)


def _label_problems(extract: Extract) -> list[str]:
    row, label = _row(extract.table), extract.label
    if label is None:
        return []
    problems = [] if IDENTIFIER.fullmatch(label) else [f"{row}: label {label!r} must match {IDENTIFIER.pattern}"]
    return [*problems, f"{row}: label {label!r} is one of the graph's own"] if label in RESERVED_LABELS else problems


def _cursor_problems(extract: Extract, columns: Mapping[str, Column]) -> list[str]:
    table, row = extract.table, _row(extract.table)
    if table.snapshot_mode != INCREMENTAL:
        return []
    if table.cursor_column is None:
        return [f"{row}: snapshot_mode 'incremental' needs a cursor_column"]
    cursor = columns.get(table.cursor_column)
    if cursor is None or table.cursor_column in extract.left_out:
        return [f"{row}: cursor_column {table.cursor_column!r} is excluded or does not exist"]
    if cursor.pg_type not in CURSOR_TYPES:
        return [f"{row}: cursor_column {cursor.name!r} is {cursor.pg_type}; {', '.join(CURSOR_TYPES)} are right"]
    return []


@dataclass(frozen=True)
class PlanChange:
    """One difference between two plans: what it is about, and in words what is other now."""

    subject: str
    change: str


def plan_changes(before: Document | None, after: Document) -> list[PlanChange]:
    """How a plan differs from the last one that was carried out, in the order of the plan."""
    before = before or {"tables": {}, "relationships": {}}
    changes: list[PlanChange] = []
    for part, called in (("tables", "table"), ("relationships", "relationship")):
        old, new = before[part], after[part]
        changes += [PlanChange(name, f"{called} is new") for name in new if name not in old]
        changes += [PlanChange(name, f"{called} is not in the plan any more") for name in old if name not in new]
        for name in new:
            if name in old:
                changes += [PlanChange(name, text) for text in _entry_changes(old[name], new[name])]
    return changes


def _entry_changes(old: Document, new: Document) -> list[str]:
    texts = [
        f"{field} was {old.get(field)!r} and is {new[field]!r}"
        for field in new
        if field not in ("reads", "leaves_out") and old.get(field) != new[field]
    ]
    reads, read = new.get("reads", {}), old.get("reads", {})
    texts += [f"column {c} ({t}) is new" for c, t in reads.items() if c not in read]
    texts += [
        f"column {c} is left out now ({new['leaves_out'][c]})"
        if c in new.get("leaves_out", {})
        else f"column {c} is gone from the source"
        for c in read
        if c not in reads
    ]
    texts += [f"column {c} was {read[c]} and is {t}" for c, t in reads.items() if read.get(c, t) != t]
    return texts
