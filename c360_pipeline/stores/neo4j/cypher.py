"""Statements made from kinds: the identifiers come from the model or from checked control rows, values are parameters.

Every statement names the tenant of every node that it matches.
"""

import re
from enum import Enum
from functools import lru_cache

import polars as pl

from c360_pipeline.core.projection.graph import Kind, NodeKind, RelationshipKind, day_source
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.errors import ConfigError

INDEX_OF_CONTROL_ROWS = "_of_control_rows"
"""What the names of indexes end with that control rows name."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CYPHER_TYPES: dict[type[pl.DataType], str] = {
    pl.String: "STRING", pl.Int64: "INTEGER", pl.Float64: "FLOAT", pl.Boolean: "BOOLEAN", pl.Date: "DATE",
}  # fmt: skip


def quoted(name: str) -> str:
    """An identifier between backticks.

    Raises:
        ConfigError: it is not a letter or underscore followed by letters, digits and underscores.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} can't be a label, type or property: {_NAME.pattern} is right.")
    return f"`{name}`"


def quoted_property(name: str) -> str:
    """A property name between backticks; source columns may have any name, so backticks inside are doubled.

    Raises:
        ConfigError: it holds a backslash: the server reads an escaped backtick as a backtick before anything else.
    """
    if "\\" in name:
        raise ConfigError(f"{name!r} can't be a property: it holds a backslash.")
    return "`" + name.replace("`", "``") + "`"


def _node(variable: str, kind: NodeKind, prefix: str = "") -> str:
    key = ", ".join(f"{quoted_property(k)}: row.{quoted_property(prefix + k)}" for k in kind.key)
    return f"({variable}:{quoted(kind.label)} {{tenant_id: $tenant_id, {key}}})"


@lru_cache
def merge_statement(kind: Kind) -> Statement:
    """Write rows of a kind; returns the number of rows that found their place."""
    if isinstance(kind, NodeKind):
        labels = "".join(f" SET n:{quoted(label)}" for label in kind.extra_labels)
        labels += "".join(f" REMOVE n{mark[0]}{quoted(mark[1:])}" for mark in kind.removed)
        return Statement(
            f"UNWIND $rows AS row MERGE {_node('n', kind)}{labels} SET n += row RETURN count(*) AS written"
        )
    ends = f"MATCH {_node('a', kind.source, 'from_')} MATCH {_node('b', kind.target, 'to_')}"
    properties = "".join(f", r.{quoted_property(p)} = row.{quoted_property(p)}" for p in kind.properties)
    update = f" SET {properties.removeprefix(', ')}" if properties else ""
    return Statement(
        f"UNWIND $rows AS row {ends} MERGE (a)-[r:{quoted(kind.type)}]->(b){update} RETURN count(*) AS written"
    )


@lru_cache
def scripted_merge_statement(kind: Kind) -> str:
    """Write rows of a kind that bring their tenant with them; what follows `UNWIND [ … ] AS row` in a script."""
    statement = merge_statement(kind).removeprefix("UNWIND $rows AS row ").removesuffix(" RETURN count(*) AS written")
    return statement.replace("$tenant_id", "row.tenant_id")


@lru_cache
def update_statement(kind: NodeKind) -> Statement:
    """Set properties of nodes that another projection makes; rows without a node are passed over."""
    return Statement(f"UNWIND $rows AS row MATCH {_node('n', kind)} SET n += row RETURN count(*) AS written")


@lru_cache
def property_names_statement(kind: NodeKind) -> Statement:
    """The names of all properties that nodes of a label have, of any tenant."""
    return Statement(f"MATCH (n:{quoted(kind.label)}) UNWIND keys(n) AS name RETURN DISTINCT name")


@lru_cache
def clear_statement(kind: NodeKind) -> Statement:
    """Remove the properties that `$nulls` names from all nodes of a label, of any tenant."""
    return Statement(f"MATCH (n:{quoted(kind.label)}) SET n += $nulls")


@lru_cache
def clear_property_statement(kind: NodeKind) -> Statement:
    """Remove a property that a kind owns from all nodes of its label, of any tenant, some in a transaction."""
    held = f"n.{quoted(kind.owned_property)}"
    return Statement(
        f"MATCH (n:{quoted(kind.label)}) WHERE {held} IS NOT NULL "
        f"CALL (n) {{ REMOVE {held} }} IN TRANSACTIONS OF $batch_rows ROWS"
    )


@lru_cache
def move_statement(kind: RelationshipKind) -> Statement:
    """Point the only relationship of this kind at another target, in one transaction for all rows of a batch."""
    return Statement(
        f"UNWIND $rows AS row MATCH {_node('a', kind.source, 'from_')} MATCH {_node('b', kind.target, 'to_')} "
        f"OPTIONAL MATCH (a)-[old:{quoted(kind.type)}]->(other) WHERE other <> b DELETE old "
        f"WITH DISTINCT a, b MERGE (a)-[:{quoted(kind.type)}]->(b) RETURN count(*) AS written"
    )


@lru_cache
def without_ends_statement(kind: RelationshipKind) -> Statement:
    """The numbers of rows, from 0, that lack a node at one of their ends."""
    return Statement(
        "UNWIND range(0, size($rows) - 1) AS number WITH number, $rows[number] AS row "
        f"WHERE NOT EXISTS {{ MATCH {_node('a', kind.source, 'from_')} }} "
        f"OR NOT EXISTS {{ MATCH {_node('b', kind.target, 'to_')} }} RETURN number ORDER BY number"
    )


@lru_cache
def delete_statement(kind: Kind) -> Statement:
    """Remove rows of a kind by key; rows that are gone already are passed over."""
    if isinstance(kind, NodeKind):
        return Statement(f"UNWIND $rows AS row MATCH {_node('n', kind)} DETACH DELETE n RETURN count(*) AS written")
    return Statement(
        f"UNWIND $rows AS row MATCH {_node('a', kind.source, 'from_')}-[r:{quoted(kind.type)}]->"
        f"{_node('b', kind.target, 'to_')} DELETE r RETURN count(*) AS written"
    )


PAGED = (pl.String, pl.Int64, pl.Date)
"""Types of a first key column by which rows are read page by page."""


class Pages(Enum):
    """Which rows of a kind of a tenant a statement reads."""

    ALL = "all"
    FROM = "those whose source, or node, has a first key column from $from on"
    BETWEEN = "from $from on and before $to"
    OTHERS = "those whose first key column has a value of another type"
    NAMED = "those whose first key column is one of $named"


def paged_by(kind: Kind) -> tuple[str, pl.DataType]:
    """The column that pages are distinguished by: the first of the key, of relationships that of the source."""
    node = kind if isinstance(kind, NodeKind) else kind.source
    return node.key[0], node.properties[node.key[0]]


def is_paged(kind: Kind) -> bool:
    """Whether rows of a kind are read page by page."""
    return isinstance(paged_by(kind)[1], PAGED)


@lru_cache
def page_end_statement(kind: Kind) -> Statement:
    """The first key column of the node that comes `$page_nodes` nodes after `$from`; no row when there is none.

    Where so many nodes have `$from` itself, the next greater value.
    """
    node = kind if isinstance(kind, NodeKind) else kind.source
    value = f"n.{quoted_property(node.key[0])}"
    nodes = f"MATCH (n:{quoted(node.label)}) WHERE n.tenant_id = $tenant_id AND {_page('n', node, Pages.FROM)}"
    return Statement(
        f"CALL () {{ {nodes} WITH {value} AS next ORDER BY next SKIP $page_nodes LIMIT 1 RETURN next }} "
        f"CALL (next) {{ WITH next WHERE next > $from RETURN next AS end UNION WITH next WHERE next = $from "
        f"{nodes} AND {value} > $from RETURN min({value}) AS end }} WITH end WHERE end IS NOT NULL RETURN end"
    )


def _page(variable: str, node: NodeKind, pages: Pages) -> str:
    # The index is on tenant and key: it serves a statement that speaks of all their columns.
    values = [f"{variable}.{quoted_property(k)}" for k in node.key]
    first, dtype = values[0], node.properties[node.key[0]]
    rest = "".join(f" AND {value} IS NOT NULL" for value in values[1:])
    match pages:
        case Pages.ALL:
            return f"{first} IS NOT NULL{rest}"
        case Pages.FROM:
            return f"{first} >= $from{rest}"
        case Pages.BETWEEN:
            return f"{first} >= $from AND {first} < $to{rest}"
        case Pages.NAMED:
            return f"{first} IN $named{rest}"
        case Pages.OTHERS:
            return f"{first} IS NOT NULL{rest} AND NOT {first} IS :: {_CYPHER_TYPES[type(dtype)]} NOT NULL"


@lru_cache
def read_statement(kind: Kind, *, audited: bool = False, pages: Pages = Pages.ALL) -> Statement:
    """Rows of a kind of one tenant, columns in the order of the kind's schema.

    For an audit, further columns: the day since 1970 by which a row is counted, null where that is not an instant, and
    whether a node has each of its extra labels.

    Rows come as lists of `$batch_rows`, instants as microseconds since 1970: a record and a temporal object per row
    would cost several times the rest. A value that should be an instant and is not comes inside a list.
    """
    if isinstance(kind, NodeKind):
        columns = [_read_value("n", name, kind.properties[name]) for name in kind.properties]
        rows = f"MATCH (n:{quoted(kind.label)}) WHERE n.tenant_id = $tenant_id AND {_page('n', kind, pages)}"
    else:
        columns = [_read_value("a", k, kind.source.properties[k]) for k in kind.source.key]
        columns += [_read_value("b", k, kind.target.properties[k]) for k in kind.target.key]
        columns += [_read_value("r", name, kind.properties[name]) for name in kind.properties]
        rows = (
            f"MATCH (a:{quoted(kind.source.label)} {{tenant_id: $tenant_id}})-[r:{quoted(kind.type)}]->"
            f"(b:{quoted(kind.target.label)} {{tenant_id: $tenant_id}}) WHERE {_page('a', kind.source, pages)}"
        )
    if audited:
        columns += [_read_day(kind), *(f"n:{quoted(label)}" for label in extra_labels(kind))]
    return Statement(
        f"{rows} WITH collect([{', '.join(columns)}]) AS found WHERE size(found) > 0 "
        "UNWIND range(0, size(found) - 1, $batch_rows) AS first RETURN found[first..first + $batch_rows] AS rows"
    )


def _read_value(variable: str, name: str, dtype: pl.DataType) -> str:
    value = f"{variable}.{quoted_property(name)}"
    if not (isinstance(dtype, pl.Datetime) and dtype.time_zone):
        return value
    # Before 1970 `epochSeconds` is rounded up, `epochMillis` is not.
    micros = f"{value}.epochMillis * 1000 + {value}.microsecond % 1000"
    is_instant = f"{value} IS :: ZONED DATETIME NOT NULL AND {value}.nanosecond % 1000 = 0"
    return f"CASE WHEN {value} IS NULL THEN null WHEN {is_instant} THEN {micros} ELSE [{value}] END"


def extra_labels(kind: Kind) -> tuple[str, ...]:
    """Labels that rows of a kind have beside the kind's own."""
    return kind.extra_labels if isinstance(kind, NodeKind) else ()


def _read_day(kind: Kind) -> str:
    at = day_source(kind)
    if at is None:
        return "null"
    value = f"{at[0]}.{quoted_property(at[1])}"
    return (
        f"CASE WHEN {value} IS :: ZONED DATETIME NOT NULL THEN toInteger(floor({value}.epochMillis / 86400000.0)) END"
    )


@lru_cache
def delete_mistyped_statement(kind: NodeKind, name: str) -> Statement:
    """Remove the nodes of a tenant whose key column holds a value of another type."""
    value, dtype = f"n.{quoted_property(name)}", kind.properties[name]
    if isinstance(dtype, pl.Binary):
        is_other = f"{value} IS :: STRING | INTEGER | FLOAT | BOOLEAN"  # Cypher has no name for bytes
    elif isinstance(dtype, pl.Datetime):
        is_other = f"NOT {value} IS :: {'ZONED' if dtype.time_zone else 'LOCAL'} DATETIME"
    else:
        is_other = f"NOT {value} IS :: {_CYPHER_TYPES[type(dtype)]}"
    return Statement(
        f"MATCH (n:{quoted(kind.label)}) WHERE n.tenant_id = $tenant_id AND {value} IS NOT NULL "
        f"AND {is_other} DETACH DELETE n"
    )


@lru_cache
def orphan_nodes_statement(kind: NodeKind) -> Statement:
    """Element id and text of nodes of a label that have none of `$tenants`, or no key, or an extra label only."""
    keyless = " OR ".join(f"n.{quoted_property(k)} IS NULL" for k in kind.key)
    shown = ", ".join(f"n.{quoted_property(k)}" for k in kind.key_columns)
    text = f"reduce(t = '', v IN [{shown}, elementId(n)] | t + coalesce(toStringOrNull(v), 'nothing') + ' ') AS text"
    lonely = [
        f"UNION MATCH (n:{quoted(label)}) WHERE NOT n:{quoted(kind.label)} RETURN elementId(n) AS element_id, {text}"
        for label in kind.extra_labels
    ]
    return Statement(
        f"MATCH (n:{quoted(kind.label)}) WHERE n.tenant_id IS NULL OR NOT n.tenant_id IN $tenants OR {keyless} "
        f"RETURN elementId(n) AS element_id, {text} {' '.join(lonely)}"
    )


@lru_cache
def orphan_relationships_statement(kinds: tuple[RelationshipKind, ...]) -> Statement:
    """Element id and text of relationships of a type that are of no such kind, or not within one of `$tenants`."""
    ends = " OR ".join(f"(a:{quoted(k.source.label)} AND b:{quoted(k.target.label)})" for k in kinds)
    return Statement(
        f"MATCH (a)-[r:{quoted(kinds[0].type)}]->(b) WHERE NOT ({ends}) OR a.tenant_id IS NULL OR b.tenant_id IS NULL "
        "OR a.tenant_id <> b.tenant_id OR NOT a.tenant_id IN $tenants "
        "RETURN elementId(r) AS element_id, reduce(t = '', v IN labels(a) + [a.tenant_id, 'to'] + labels(b) + "
        "[b.tenant_id, elementId(r)] | t + coalesce(toStringOrNull(v), 'nothing') + ' ') AS text"
    )


def type_count_statement(name: str) -> Statement:
    """How many relationships a type has, from the database's own count."""
    return Statement(f"MATCH ()-[r:{quoted(name)}]->() RETURN count(r) AS number")


def label_count_statement(label: str) -> Statement:
    """How many nodes a label has, from the database's own count."""
    return Statement(f"MATCH (n:{quoted(label)}) RETURN count(n) AS number")


@lru_cache
def counts_statement(labels: tuple[str, ...], types: tuple[str, ...]) -> Statement:
    """How many nodes each label and relationships each type has, from the database's own counts.

    Rows of `place`, counted through labels and then types, and `number`. A label as a parameter would be a scan.
    """
    counted = [("(n", label, ")", "n") for label in labels] + [("()-[r", name, "]->()", "r") for name in types]
    return Statement(
        " UNION ALL ".join(
            f"MATCH {begin}:{quoted_property(name)}{end} RETURN {place} AS place, count({what}) AS number"
            for place, (begin, name, end, what) in enumerate(counted)
        )
    )


def relationship_count_statements(kind: RelationshipKind) -> tuple[Statement, Statement]:
    """How many relationships of a type leave a label, and how many come to one, from the database's own counts."""
    of_type = f"[r:{quoted(kind.type)}]"
    return (
        Statement(f"MATCH (:{quoted(kind.source.label)})-{of_type}->() RETURN count(r) AS number"),
        Statement(f"MATCH ()-{of_type}->(:{quoted(kind.target.label)}) RETURN count(r) AS number"),
    )


def tenants_statement(label: str) -> Statement:
    """The tenants that have nodes of a label."""
    return Statement(f"MATCH (n:{quoted(label)}) RETURN DISTINCT n.tenant_id AS tenant_id ORDER BY tenant_id")


def scripted(line: str) -> Statement:
    """A line of a script that `write_script` wrote, and whose hash was looked at."""
    return Statement(line.rstrip("\n").removesuffix(";"))


def complete_statement(label: str, stand_in: str, name: str) -> Statement:
    """Bring some nodes' values from a stand-in to the property that they belong to; returns how many nodes `done`.

    The value is that of `$empty` where there is one.
    """
    held, wanted = quoted_property(stand_in), quoted_property(name)
    return Statement(
        f"MATCH (n:{quoted(label)}) WHERE n.{held} IS NOT NULL WITH n LIMIT $limit "
        f"SET n.{wanted} = coalesce($empty, n.{held}) REMOVE n.{held} RETURN count(n) AS done"
    )


def node_texts_statement(label: str) -> Statement:
    """The properties of each node of a label as texts."""
    return Statement(f"MATCH (n:{quoted(label)}) RETURN [name IN keys(n) | toStringOrNull(n[name])] AS texts")


def relationship_texts_statement(name: str) -> Statement:
    """The properties of each relationship of a type as texts."""
    return Statement(
        f"MATCH ()-[n:{quoted(name)}]->() WHERE size(keys(n)) > 0 RETURN [k IN keys(n) | toStringOrNull(n[k])] AS texts"
    )


def clear_label_statement(label: str) -> Statement:
    """Remove every node of a label, some at a time; needs a transaction of its own."""
    return Statement(f"MATCH (n:{quoted(label)}) CALL (n) {{ DETACH DELETE n }} IN TRANSACTIONS OF $batch_rows ROWS")


def clear_relationships_statement(kind: RelationshipKind) -> Statement:
    """Remove every relationship between two labels, some at a time; needs a transaction of its own."""
    return Statement(
        f"MATCH (:{quoted(kind.source.label)})-[r:{quoted(kind.type)}]->(:{quoted(kind.target.label)}) "
        "CALL (r) { DELETE r } IN TRANSACTIONS OF $batch_rows ROWS"
    )


@lru_cache
def key_constraint(kind: NodeKind) -> Statement:
    """The composite uniqueness constraint of a label that control rows name."""
    key = ", ".join(f"n.{quoted_property(k)}" for k in kind.key_columns)
    return Statement(
        f"CREATE CONSTRAINT {quoted(key_constraint_name(kind))} IF NOT EXISTS "
        f"FOR (n:{quoted(kind.label)}) REQUIRE ({key}) IS UNIQUE"
    )


def key_constraint_name(kind: NodeKind) -> str:
    """The name of that constraint."""
    return f"{kind.label}_key_of_control_rows"


def index(label: str, properties: tuple[str, ...]) -> Statement:
    """An index that control rows name; it begins with the tenant, as every statement does."""
    named = ", ".join(f"n.{quoted_property(name)}" for name in ("tenant_id", *properties))
    return Statement(
        f"CREATE INDEX {quoted_property(index_name(label, properties))} IF NOT EXISTS "
        f"FOR (n:{quoted(label)}) ON ({named})"
    )


def index_name(label: str, properties: tuple[str, ...]) -> str:
    """The name of that index; no two labels and lists of properties have one name."""
    return f"{label}({','.join(properties)}){INDEX_OF_CONTROL_ROWS}"


def is_of_control_rows(name: str) -> bool:
    """Whether an index is one that a control row named; no key rests on it."""
    return name.endswith(f"){INDEX_OF_CONTROL_ROWS}")


def drop_index(name: str) -> Statement:
    """Drop an index."""
    return Statement(f"DROP INDEX {quoted_property(name)} IF EXISTS")


def drop_constraint(name: str) -> Statement:
    """Drop a constraint."""
    return Statement(f"DROP CONSTRAINT {quoted(name)} IF EXISTS")


@lru_cache
def linked_users_statement(label: str) -> Statement:
    """Users that nodes of a label are linked to, with a property of these as text, null where it is not there."""
    return Statement(
        f"MATCH (n:{quoted(label)} {{tenant_id: $tenant_id}})--(u:User {{tenant_id: $tenant_id}}) "
        "RETURN DISTINCT u.id AS user_id, toStringOrNull(n[$property]) AS value ORDER BY user_id, value"
    )
