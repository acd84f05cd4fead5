"""From the silo tables of the lake into the graph: nodes and relationships of what changed since its checkpoints.

The cost follows the change. Where a checkpoint does not hold (the first time, another join condition, a version that is
gone) all is compared. What is removed stands behind a removal limit: a mistake in a source or a control row must not
empty the graph over night.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import polars as pl

from c360_pipeline.core.catalog.changes import Changes, Version, difference
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.graph import NodeKind, RelationshipKind
from c360_pipeline.core.projection.removal_limit import REMOVAL_SHARE, is_beyond_removal_limit
from c360_pipeline.core.silos.control_rows import (
    ControlRows,
    RelationshipRow,
    SourceTable,
    node_kind,
    node_rows,
    with_properties_of,
)
from c360_pipeline.core.silos.joins import (
    JOINED_USER,
    join_labels,
    join_problems,
    joined_columns,
    labels_by_alias,
    parse_join,
    relationship_kind,
)
from c360_pipeline.errors import ConfigError, RemovalLimitError
from c360_pipeline.stages.projection.refused import RefusedRows
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph

STAMP = ("extracted_at", "run_id")
OWN_SOURCES = {"shape", "key"}
"""Checkpoints beside those of lake tables: what the rows are made into, and by which key."""
GONE = Version("gone", 0)
NODES, RELATIONSHIPS = "silo nodes ", "silo relationships "
"""How the names of checkpoints begin."""


@dataclass(frozen=True)
class LabelTables:
    """The lake tables of a label, and the kind of its nodes.

    Attributes:
        kind: with the columns of all tables.
        tables: the lake tables that were written already.
    """

    kind: NodeKind
    tables: tuple[Table, ...]


def label_tables(lake: Lake, control: ControlRows) -> dict[str, LabelTables]:
    """By label, the lake tables that hold its rows and the kind of node that they make."""
    found: dict[str, LabelTables] = {}
    for source in control.tables:
        label = control.labels.get(source.table_id)
        table = stored_silo_table(lake, control, source)
        if label and table:
            hidden = {name for table_id, name in control.excluded if table_id == source.table_id}
            # What was excluded since the table was read must not go on into the graph.
            table = replace(table, declared=tuple(column for column in table.declared if column.name not in hidden))
            kind = node_kind(label, source.key_columns, table.empty().schema)
            earlier = found.get(label)
            tables = (*(earlier.tables if earlier else ()), table)
            found[label] = LabelTables(with_properties_of(kind, earlier.kind if earlier else None), tables)
    return found


def stored_silo_table(lake: Lake, control: ControlRows, source: SourceTable) -> Table | None:
    """The lake table of a source table, as its log describes it."""
    return lake.stored_table(control.lake_table(source), ("tenant_id", *source.key_columns))


class SiloGraph:
    """Brings silo tables into the graph.

    Args:
        lake: where the rows are.
        graph: where they go.
        control: labels and relationship mappings.
        force: whether more may be removed than the removal limit lets pass.
    """

    def __init__(self, lake: Lake, graph: Graph, control: ControlRows, *, force: bool = False) -> None:
        self._lake = lake
        self._graph = graph
        self._control = control
        self._force = force
        self.labels = label_tables(lake, control)
        self._refused = RefusedRows(lake, graph.refusals)

    @property
    def kinds(self) -> dict[str, NodeKind]:
        """The kinds of node that a mapping may name, by label."""
        return {"User": model.USER, **{label: found.kind for label, found in self.labels.items()}}

    def has_labels_of(self, row: RelationshipRow) -> bool:
        """Whether there are tables for all labels that a mapping names."""
        return self.kinds.keys() >= set(row.labels)

    def project_nodes(self) -> dict[str, int]:
        """Bring the nodes of every label up to date; returns how many rows were written or removed, by label.

        Raises:
            RemovalLimitError: too much would be removed; nothing of that label was.
        """
        for found in self.labels.values():
            self._clear_when_its_key_is_another(found.kind)
        self._graph.schema.apply([found.kind for found in self.labels.values()])
        done = {label: self._project_label(found) for label, found in self.labels.items()}
        wanted = {f"{NODES}{label}" for label in self._control.labels.values()}
        for projection in self._graph.checkpoints.names(NODES):
            if projection not in wanted:
                label = projection.removeprefix(NODES)
                done[label] = self._clear(label)
        return done

    def _clear(self, label: str) -> int:
        """Remove all nodes of a label and its checkpoint; done again after a crash anywhere in between."""
        count = self._graph.counts.label_count(label)
        self._check_removal_limit(label, count, count)
        self._graph.checkpoints.save(f"{NODES}{label}", "shape", GONE)
        self._graph.writer.clear_label(label)
        self._graph.checkpoints.forget(f"{NODES}{label}")
        return count

    def _clear_when_its_key_is_another(self, kind: NodeKind) -> None:
        """Nodes under another key, or a key of another type, can't be distinguished from those to come."""
        known = self._graph.checkpoints.of(f"{NODES}{kind.label}").get("key")
        if known is not None and known != _key_shape(kind):
            self._clear(kind.label)

    def _project_label(self, found: LabelTables) -> int:
        kind, projection = found.kind, f"{NODES}{found.kind.label}"
        done = self._graph.checkpoints.of(projection)
        shape = _shape(found)
        is_same_shape = done.get("shape") == shape
        since = {
            table.name: self._lake.versions.still_there(table, done.get(table.name)) if is_same_shape else None
            for table in found.tables
        }
        written = 0
        if None in since.values() or set(done) - OWN_SOURCES - set(since):
            # A column that is excluded from now on leaves the nodes that had it.
            self._graph.writer.remove_undeclared_properties(kind)
            written += self._remove_ghosts(found)
        versions: dict[str, Version | None] = {}
        for table in found.tables:
            rows, gone, versions[table.name] = self._lake.versions.changed_since(table, since[table.name], STAMP)
            gone = self._not_elsewhere(found, table, gone)
            self._check_removal_limit(kind.label, gone.height, self._graph.counts.label_count(kind.label))
            self._graph.writer.delete(kind, gone.select(pl.col(k).cast(kind.schema[k]) for k in kind.key_columns))
            written += gone.height
            for batch in rows:
                nodes = node_rows(kind, batch)
                self._graph.writer.merge(kind, nodes)
                written += nodes.height
        self._refused.publish()
        _save(self._graph, projection, done, {**versions, "key": _key_shape(kind), "shape": shape})
        return written

    def _remove_ghosts(self, found: LabelTables) -> int:
        """Remove nodes that no row of the label's tables stands for."""
        kind = found.kind
        in_graph = self._graph.counts.label_count(kind.label)
        if not in_graph:
            return 0
        rows = pl.concat([self._keys(kind, table) for table in found.tables])
        keys = NodeKind(kind.label, kind.key, {k: kind.properties[k] for k in kind.key})
        tenants = sorted(
            {d.tenant_id for d in self._control.databases} | set(self._graph.counts.tenants_of(kind.label))
        )
        held = pl.concat([rows.clear(), *(self._graph.audit.rows(keys, tenant) for tenant in tenants)], how="vertical")
        ghosts = held.join(rows, on=kind.key_columns, how="anti")
        self._check_removal_limit(kind.label, ghosts.height, in_graph)
        self._graph.writer.delete(kind, ghosts)
        return ghosts.height

    def _keys(self, kind: NodeKind, table: Table) -> pl.DataFrame:
        keys = self._lake.scan(table).select(kind.key_columns)
        return keys.select(pl.col(c).cast(kind.schema[c]) for c in kind.key_columns).collect(engine="streaming")

    def _not_elsewhere(self, found: LabelTables, table: Table, gone: pl.DataFrame) -> pl.DataFrame:
        for other in found.tables:
            if other is not table and gone.height:
                held = self._lake.scan(other).select(gone.columns)
                gone = gone.lazy().join(held, on=gone.columns, how="anti").collect(engine="streaming")
        return gone

    def note_projected(self) -> None:
        """Save checkpoints as if nodes and relationships had just been projected: for a graph that was made whole."""
        for found in self.labels.values():
            versions = {table.name: self._lake.versions.version(table.name) for table in found.tables}
            _save(self._graph, f"{NODES}{found.kind.label}", {}, {
                **versions, "key": _key_shape(found.kind), "shape": _shape(found),
            })  # fmt: skip
        for row in self._control.relationships:
            if self.has_labels_of(row):
                _MappedRelationship(self, row, self.kinds).note_projected()

    def project_relationships(self) -> dict[str, tuple[int, int]]:
        """Bring mapped relationships up to date.

        Returns:
            By relationship, how many there are in the graph and how many were written or removed.

        Raises:
            RemovalLimitError: too many would be removed; none of that relationship was.
            ConfigError: a mapping row that can't be carried out.
        """
        kinds = self.kinds
        done: dict[str, tuple[int, int]] = {}
        for row in self._control.relationships:
            if not self.has_labels_of(row):
                continue  # a table that no run has read yet
            if problems := join_problems(row, {**kinds, "User": JOINED_USER}):
                raise ConfigError("\n".join(problems))
            kind = relationship_kind(row, kinds)
            written = _MappedRelationship(self, row, kinds).project()
            done[kind.name] = (self._graph.counts.relationship_count(kind), written)
        self._remove_unmapped()
        return done

    def _remove_unmapped(self) -> None:
        """Remove relationships whose mapping row is gone."""
        mapped = {f"{RELATIONSHIPS}{row.name}" for row in self._control.relationships}
        for projection in self._graph.checkpoints.names(RELATIONSHIPS):
            if projection not in mapped:
                source, relationship_type, target = model.parts_of(projection.removeprefix(RELATIONSHIPS))
                kind = RelationshipKind(relationship_type, NodeKind(source, (), {}), NodeKind(target, (), {}))
                count = self._graph.counts.relationship_count(kind)
                self._check_removal_limit(kind.name, count, count)
                self._graph.checkpoints.save(projection, "shape", GONE)
                self._graph.writer.clear_relationships(kind)
                self._graph.checkpoints.forget(projection)

    def _check_removal_limit(self, name: str, removed: int, held: int) -> None:
        if is_beyond_removal_limit(removed, held) and not self._force:
            raise RemovalLimitError(
                f"{removed:,} of {held:,} {name} would be removed from the graph, more than {REMOVAL_SHARE:.0%}. "
                "If that is right, run again with `c360 run --force-removal`, or in the UI with force_removal: true."
            )


@dataclass
class _MappedRelationship:
    """The relationships of one mapping row."""

    silos: SiloGraph
    row: RelationshipRow
    kinds: Mapping[str, NodeKind]
    columns: dict[str, list[str]] = field(init=False)
    tables: dict[str, tuple[Table, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.columns = joined_columns(self.row, self.kinds)
        self.tables = {
            label: (EVENTS,) if label == "User" else self.silos.labels[label].tables for label in self.columns
        }

    @property
    def _kind(self) -> RelationshipKind:
        return relationship_kind(self.row, self.kinds)

    @property
    def _every(self) -> dict[str, Table]:
        return {table.name: table for tables in self.tables.values() for table in tables}

    def _shape(self) -> Version:
        types = {label: [str(self.kinds[label].schema[c]) for c in names] for label, names in self.columns.items()}
        said = (self.row.join_condition, str(self.row.via_label), str(dict(self._kind.schema)), str(types))
        return Version(_hash(*said), 0)

    def note_projected(self) -> None:
        """Save the checkpoint as if they had just been projected."""
        versions = {name: self.silos._lake.versions.version(name) for name in self._every}
        _save(self.silos._graph, f"{RELATIONSHIPS}{self._kind.name}", {}, {**versions, "shape": self._shape()})

    def project(self) -> int:
        """Bring them up to date; returns how many were written or removed."""
        lake, graph = self.silos._lake, self.silos._graph
        kind, shape, every = self._kind, self._shape(), self._every
        projection = f"{RELATIONSHIPS}{kind.name}"
        done = graph.checkpoints.of(projection)
        versions = {name: lake.versions.version(name) for name in every}
        since = {name: lake.versions.still_there(table, done.get(name)) for name, table in every.items()}
        if done.get("shape") != shape or None in since.values() or set(done) - OWN_SOURCES != set(every):
            changes = self._all(kind)
            removed = changes.deleted.height
        elif since == versions:
            return 0
        else:
            changes, removed = self._touched({name: v for name, v in since.items() if v is not None})
        self.silos._check_removal_limit(kind.name, removed, graph.counts.relationship_count(kind))
        graph.writer.apply(kind, changes)
        self.silos._refused.publish()
        _save(graph, projection, done, {**versions, "shape": shape})
        return changes.count

    def _all(self, kind: RelationshipKind) -> Changes:
        """What differs between the graph and the joined tables."""
        wanted = join_labels(self.row, self._frames(None), self.kinds)
        tenants = set(wanted["tenant_id"]) | set(self.silos._graph.counts.tenants_of(kind.source.label))
        held = [self.silos._graph.audit.rows(kind, tenant) for tenant in sorted(tenants)]
        found = pl.concat([wanted.clear(), *held])
        key = kind.key_columns
        return difference(found, wanted, key)

    def _touched(self, since: Mapping[str, Version]) -> tuple[Changes, int]:
        """What differs because of rows that changed: all pairs that such a row is, or was, in.

        A row that went and came back has another stamp: its node was rebuilt, and its relationships have to be.

        Returns:
            The difference, and how many relationships it takes from nodes that stay: others went with their node.
        """
        now, before = self._frames(None), self._frames(since)
        touched = []
        for alias, label in labels_by_alias(self.row, parse_join(self.row)).items():
            changed_now = difference(before[label], now[label], now[label].columns).inserted
            changed_before = difference(now[label], before[label], now[label].columns).inserted
            touched += [
                join_labels(self.row, now, self.kinds, only=alias, changed=changed_now),
                join_labels(self.row, before, self.kinds, only=alias, changed=changed_before),
            ]
        pairs = pl.concat(touched).unique()
        # A pair may hold by another row too.
        first = parse_join(self.row).aliases[0]
        kind = relationship_kind(self.row, self.kinds)
        source = kind.source
        ends = pairs.select("tenant_id", *(pl.col(f"from_{k}").alias(k) for k in source.key)).unique()
        of_ends = now[source.label].join(ends, on=source.key_columns, how="semi")
        holds = join_labels(self.row, now, self.kinds, only=first, changed=of_ends)
        gone = pairs.join(holds, on=pairs.columns, how="anti")
        of_nodes = gone
        for prefix, end in (("from_", kind.source), ("to_", kind.target)):
            keys = now[end.label].select("tenant_id", *(pl.col(k).alias(f"{prefix}{k}") for k in end.key))
            of_nodes = of_nodes.join(keys, on=keys.columns, how="semi")
        return Changes.of(pairs.join(holds, on=pairs.columns, how="semi"), gone), of_nodes.height

    def _frames(self, at: Mapping[str, Version] | None) -> dict[str, pl.DataFrame]:
        """By label, the columns that the join needs, as they are now or were at earlier versions."""
        lake = self.silos._lake
        frames = {}
        for label, columns in self.columns.items():
            parts = [
                _columns_of(lake.scan(table, at[table.name].number if at else None), self.kinds[label], columns)
                for table in self.tables[label]
            ]
            frames[label] = pl.concat(parts, how="diagonal").unique().collect(engine="streaming")
        return frames


def _columns_of(rows: pl.LazyFrame, kind: NodeKind, columns: Iterable[str]) -> pl.LazyFrame:
    if kind is model.USER:
        return rows.select("tenant_id", id="user_id").unique()
    held = rows.collect_schema().names()
    kept = [pl.col(c).cast(kind.schema[c]) for c in columns if c in held]
    return rows.select(*kept, *(pl.col(c) for c in STAMP))


def silo_node_frames(
    lake: Lake, control: ControlRows, versions: Mapping[str, int]
) -> Iterator[tuple[NodeKind, pl.DataFrame]]:
    """The node rows of every label, whole; of tables that `versions` names, as they were then."""
    for found in label_tables(lake, control).values():
        frames = [node_rows(found.kind, lake.read(table, versions.get(table.name))) for table in found.tables]
        yield found.kind, pl.concat(frames, how="diagonal")


def _save(graph: Graph, projection: str, before: Mapping[str, Version], now: Mapping[str, Version | None]) -> None:
    """Save a projection's checkpoints, the last one last, and forget those of tables that it no longer reads."""
    for name in set(before) - OWN_SOURCES - set(now):
        graph.checkpoints.forget(projection, name)
    for name, version in now.items():
        graph.checkpoints.save(projection, name, version)


def _shape(found: LabelTables) -> Version:
    columns = {table.name: sorted(table.columns) for table in found.tables}
    return Version(_hash(str(dict(found.kind.schema)), str(found.kind.key), str(columns)), 0)


def _key_shape(kind: NodeKind) -> Version:
    return Version(_hash(*(f"{k}: {kind.properties[k]}" for k in kind.key)), 0)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
