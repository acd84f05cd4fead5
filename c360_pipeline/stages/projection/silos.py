"""From the silo tables of the lake into the graph: nodes and relationships of what changed since its checkpoints.

The cost follows the change. Where a checkpoint does not hold (the first time, another join condition, a version that is
gone) all is compared. What is removed stands behind a removal limit: a mistake in a source or a control row must not
empty the graph over night.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import polars as pl

from c360_pipeline.core.catalog.changes import Changes, Version, difference
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.graph import NodeKind, RelationshipKind
from c360_pipeline.core.projection.removal_limit import REMOVAL_SHARE, is_beyond_removal_limit
from c360_pipeline.core.silos.control_rows import (
    LINEAGE,
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
from c360_pipeline.core.silos.plan import RESERVED_LABELS
from c360_pipeline.errors import ConfigError, RemovalLimitError
from c360_pipeline.stages.projection.events import EVENT_PROJECTION
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
        # A label that was free in an earlier release is the product's now: nodes of both must not be under one.
        if label and label not in RESERVED_LABELS and table:
            hidden = {name for table_id, name in control.excluded if table_id == source.table_id} - set(LINEAGE)
            # What was excluded since the table was read must not go on into the graph.
            table = replace(table, declared=tuple(column for column in table.declared if column.name not in hidden))
            kind = node_kind(label, source.key_columns, table.empty().schema)
            earlier = found.get(label)
            tables = (*(earlier.tables if earlier else ()), table)
            found[label] = LabelTables(with_properties_of(kind, earlier.kind if earlier else None), tables)
    return found


def kinds_of(labels: Mapping[str, LabelTables]) -> dict[str, NodeKind]:
    """The kinds of node that a mapping may name, by label."""
    return {"User": model.USER, **{label: found.kind for label, found in labels.items()}}


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

    Attributes:
        labels: the tables of each label.
        waiting: by label of a tenant, or mapping, why it stays in the graph as it is; the others go on.
    """

    def __init__(self, lake: Lake, graph: Graph, control: ControlRows, *, force: bool = False) -> None:
        self._lake = lake
        self._graph = graph
        self._control = control
        self._force = force
        self.labels = label_tables(lake, control)
        self.waiting: dict[str, str] = {}
        self._refused = RefusedRows(lake, graph.refusals)

    @property
    def kinds(self) -> dict[str, NodeKind]:
        """The kinds of node that a mapping may name, by label."""
        return kinds_of(self.labels)

    def has_labels_of(self, row: RelationshipRow) -> bool:
        """Whether there are tables for all labels that a mapping names."""
        return self.kinds.keys() >= set(row.labels)

    def project_nodes(self) -> dict[str, int]:
        """Bring the nodes of every label up to date; returns how many rows were written or removed, by label.

        A label of a tenant of which too much would be removed stays as it is, and is among those that wait.
        """
        usable = [found for found in self.labels.values() if self._has_its_key(found.kind)]
        self._graph.schema.apply([found.kind for found in usable])
        done = {found.kind.label: self._project_label(found) for found in usable}
        wanted = {f"{NODES}{label}" for label in self._control.labels.values()}
        for projection in self._graph.checkpoints.names(NODES):
            if projection not in wanted:
                label = projection.removeprefix(NODES)
                with self._may_wait(label):
                    done[label] = self._clear(label)
        return done

    @contextmanager
    def _may_wait(self, name: str) -> Iterator[None]:
        """What can't be, or is stopped by the removal limit, waits alone."""
        try:
            yield
        except (ConfigError, RemovalLimitError) as error:
            self.waiting[name] = str(error)

    def _clear(self, label: str) -> int:
        """Remove all nodes of a label and its checkpoint; done again after a crash anywhere in between."""
        count = self._graph.counts.label_count(label)
        self._check_removal_limit(label, count, count)
        self._graph.checkpoints.save(f"{NODES}{label}", "shape", GONE)
        self._graph.writer.clear_label(label)
        self._graph.checkpoints.forget(f"{NODES}{label}")
        return count

    def _has_its_key(self, kind: NodeKind) -> bool:
        """Whether a label's nodes have its key: nodes under another one, or of another type, are removed before.

        They can't be distinguished from those to come.
        """
        known = self._graph.checkpoints.of(f"{NODES}{kind.label}").get("key")
        if known is None or known == _key_shape(kind):
            return True
        with self._may_wait(kind.label):
            self._clear(kind.label)
        return kind.label not in self.waiting

    def _project_label(self, found: LabelTables) -> int:
        kind, projection = found.kind, f"{NODES}{found.kind.label}"
        done = self._graph.checkpoints.of(projection)
        shape = _shape(found)
        is_same_shape = done.get("shape") == shape
        since = {
            table.name: self._lake.versions.still_there(table, done.get(table.name)) if is_same_shape else None
            for table in found.tables
        }
        written, is_whole = 0, True
        if None in since.values() or set(done) - OWN_SOURCES - set(since):
            # A column that is excluded from now on leaves the nodes that had it.
            self._graph.writer.remove_undeclared_properties(kind)
            removed, is_whole = self._remove_ghosts(found)
            written += removed
        versions: dict[str, Version | None] = {}
        for table in found.tables:
            rows, gone, version = self._lake.versions.changed_since(table, earlier := since[table.name], STAMP)
            gone = self._not_elsewhere(found, table, gone)
            held = self._lake.count(table, earlier.number) if earlier else 0
            if self._must_wait(kind.label, self._tenant_of(table), gone.height, held):
                continue
            versions[table.name] = version
            self._graph.writer.delete(kind, gone.select(pl.col(k).cast(kind.schema[k]) for k in kind.key_columns))
            written += gone.height
            for batch in rows:
                nodes = node_rows(kind, batch)
                self._graph.writer.merge(kind, nodes)
                written += nodes.height
        self._refused.publish()
        if is_whole:
            kept = {name: version for name, version in done.items() if name in since}
            _save(self._graph, projection, done, {**kept, **versions, "key": _key_shape(kind), "shape": shape})
        return written

    def _tenant_of(self, table: Table) -> str:
        sources = (t for t in self._control.tables if self._control.lake_table(t) == table.name)
        return next((self._control.database_of(source).tenant_id for source in sources), "")

    def _must_wait(self, name: str, tenant: str, removed: int, held: int) -> bool:
        with self._may_wait(f"{name} of {tenant}"):
            self._check_removal_limit(f"{name} of {tenant}", removed, held)
        return f"{name} of {tenant}" in self.waiting

    def _remove_ghosts(self, found: LabelTables) -> tuple[int, bool]:
        """Remove nodes that no row of the label's tables stands for; returns how many, and whether none waits."""
        kind = found.kind
        if not self._graph.counts.label_count(kind.label):
            return 0, True
        rows = pl.concat([self._keys(kind, table) for table in found.tables])
        keys = NodeKind(kind.label, kind.key, {k: kind.properties[k] for k in kind.key})
        tenants = sorted(
            {d.tenant_id for d in self._control.databases} | set(self._graph.counts.tenants_of(kind.label))
        )
        removed, is_whole = 0, True
        for tenant in tenants:
            held = self._graph.audit.rows(keys, tenant)
            ghosts = held.join(rows, on=kind.key_columns, how="anti")
            if self._must_wait(kind.label, tenant, ghosts.height, held.height):
                is_whole = False
                continue
            self._graph.writer.delete(kind, ghosts)
            removed += ghosts.height
        return removed, is_whole

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
                mapped = self._mapped(row)
                versions = {name: self._lake.versions.version(name) for name in mapped.every}
                _save(self._graph, f"{RELATIONSHIPS}{mapped.kind.name}", {}, {**versions, "shape": mapped.shape()})

    def project_relationships(self) -> dict[str, tuple[int, int]]:
        """Bring mapped relationships up to date.

        A mapping that can't be carried out, or of which too many relationships would be removed, stays as it is.

        Returns:
            By relationship, how many there are in the graph and how many were written or removed.
        """
        done: dict[str, tuple[int, int]] = {}
        for row in self._control.relationships:
            if not self.has_labels_of(row):
                continue  # a table that no run has read yet
            with self._may_wait(row.name):
                if problems := join_problems(row, {**self.kinds, "User": JOINED_USER}):
                    raise ConfigError("\n".join(problems))
                mapped = self._mapped(row)
                written = self._project_mapped(mapped)
                done[row.name] = (self._graph.counts.relationship_count(mapped.kind), written)
        self._remove_unmapped()
        return done

    def _remove_unmapped(self) -> None:
        """Remove relationships whose mapping row is gone."""
        mapped = {f"{RELATIONSHIPS}{row.name}" for row in self._control.relationships}
        for projection in self._graph.checkpoints.names(RELATIONSHIPS):
            if projection not in mapped:
                source, relationship_type, target = model.parts_of(name := projection.removeprefix(RELATIONSHIPS))
                kind = RelationshipKind(relationship_type, NodeKind(source, (), {}), NodeKind(target, (), {}))
                count = self._graph.counts.relationship_count(kind)
                with self._may_wait(name):
                    self._check_removal_limit(kind.name, count, count)
                    self._graph.checkpoints.save(projection, "shape", GONE)
                    self._graph.writer.clear_relationships(kind)
                    self._graph.checkpoints.forget(projection)

    def _mapped(self, row: RelationshipRow) -> "MappedRelationship":
        return MappedRelationship(self._lake, self.labels, row, self._projected)

    @cached_property
    def _projected(self) -> dict[str, Version]:
        """How far the nodes are that relationships lead to: rows of later versions have none yet."""
        checkpoints = self._graph.checkpoints
        users = checkpoints.of(EVENT_PROJECTION).get(EVENTS.name)
        done = {name: version for found in checkpoints.under(NODES).values() for name, version in found.items()}
        done |= {EVENTS.name: users} if users else {}
        tables = {table.name: table for found in self.labels.values() for table in found.tables} | {EVENTS.name: EVENTS}
        return {
            name: version for name, version in done.items()
            if name in tables and self._lake.versions.still_there(tables[name], version)
        }  # fmt: skip

    def _project_mapped(self, mapped: "MappedRelationship") -> int:
        """Bring the relationships of a mapping row up to date; returns how many were written or removed."""
        lake, graph, kind, shape = self._lake, self._graph, mapped.kind, mapped.shape()
        projection = f"{RELATIONSHIPS}{kind.name}"
        done = graph.checkpoints.of(projection)
        versions = {name: mapped.at.get(name) or lake.versions.version(name) for name in mapped.every}
        since = mapped.since(done)
        if since is None:
            changes = self._differing(mapped)
            removed = changes.deleted
        elif since == versions:
            return 0
        else:
            changes, removed = mapped.changes(since)
        waiting = [tenant for tenant, count in _by_tenant(removed) if self._relationships_wait(kind, tenant, count)]
        if waiting:
            stays = pl.col("tenant_id").is_in(waiting)
            changes = Changes.of(changes.upserted.filter(~stays), changes.deleted.filter(~stays))
        graph.writer.apply(kind, changes)
        self._refused.publish()
        if not waiting:
            _save(graph, projection, done, {**versions, "shape": shape})
        return changes.count

    def _relationships_wait(self, kind: RelationshipKind, tenant: str, removed: int) -> bool:
        if not is_beyond_removal_limit(removed, 0):
            return False
        return self._must_wait(kind.name, tenant, removed, self._graph.audit.rows(kind, tenant).height)

    def _differing(self, mapped: "MappedRelationship") -> Changes:
        """What differs between the graph and the joined tables."""
        kind, wanted = mapped.kind, mapped.joined()
        tenants = set(wanted["tenant_id"]) | set(self._graph.counts.tenants_of(kind.source.label))
        held = [self._graph.audit.rows(kind, tenant) for tenant in sorted(tenants)]
        return difference(pl.concat([wanted.clear(), *held]), wanted, kind.key_columns)

    def _check_removal_limit(self, name: str, removed: int, held: int) -> None:
        if is_beyond_removal_limit(removed, held) and not self._force:
            raise RemovalLimitError(
                f"{removed:,} of {held:,} {name} would be removed from the graph, more than {REMOVAL_SHARE:.0%}. "
                "If that is right, run again with `c360 run --force-removal`, or in the UI with force_removal: true."
            )


@dataclass
class MappedRelationship:
    """The relationships of one mapping row, as the lake's tables make them.

    Args:
        lake: where the tables are.
        labels: the tables of each label, as `label_tables` finds them; those of the row's labels are among them.
        row: the mapping.
        at: versions of tables that count as now; of others the newest does.
    """

    lake: Lake
    labels: Mapping[str, LabelTables]
    row: RelationshipRow
    at: Mapping[str, Version] = field(default_factory=dict)
    kinds: dict[str, NodeKind] = field(init=False)
    columns: dict[str, list[str]] = field(init=False)
    tables: dict[str, tuple[Table, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.kinds = kinds_of(self.labels)
        self.columns = joined_columns(self.row, self.kinds)
        self.tables = {label: (EVENTS,) if label == "User" else self.labels[label].tables for label in self.columns}

    @property
    def kind(self) -> RelationshipKind:
        """With the keys of the labels at its ends."""
        return relationship_kind(self.row, self.kinds)

    @property
    def every(self) -> dict[str, Table]:
        """The tables that are joined, by name."""
        return {table.name: table for tables in self.tables.values() for table in tables}

    def shape(self) -> Version:
        """Differs when the same rows make other relationships."""
        types = {label: [str(self.kinds[label].schema[c]) for c in names] for label, names in self.columns.items()}
        said = (self.row.join_condition, str(self.row.via_label), str(dict(self.kind.schema)), str(types))
        return Version(_hash(*said), 0)

    def since(self, done: Mapping[str, Version]) -> dict[str, Version] | None:
        """The versions of its tables that a projection has taken up; None where its checkpoints do not hold."""
        every = self.every
        since = {name: self.lake.versions.still_there(table, done.get(name)) for name, table in every.items()}
        there = {name: version for name, version in since.items() if version is not None}
        is_whole = len(there) == len(every) and set(done) - OWN_SOURCES == set(every)
        return there if is_whole and done.get("shape") == self.shape() else None

    def joined(self) -> pl.DataFrame:
        """All of them, as the tables are now."""
        return join_labels(self.row, self._frames(None), self.kinds)

    def touched(self, since: Mapping[str, Version]) -> pl.DataFrame:
        """Pairs of keys that a row which changed since some versions is, or was, in.

        A row that went and came back has another stamp: its node was rebuilt, and its relationships have to be.
        """
        return self._touched(self._frames(None), self._frames(since))

    def _touched(self, now: Mapping[str, pl.DataFrame], before: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
        touched = []
        for alias, label in labels_by_alias(self.row, parse_join(self.row)).items():
            changed_now = difference(before[label], now[label], now[label].columns).inserted
            changed_before = difference(now[label], before[label], now[label].columns).inserted
            touched += [
                join_labels(self.row, now, self.kinds, only=alias, changed=changed_now),
                join_labels(self.row, before, self.kinds, only=alias, changed=changed_before),
            ]
        return pl.concat(touched).unique()

    def changes(self, since: Mapping[str, Version]) -> tuple[Changes, pl.DataFrame]:
        """What differs because of rows that changed since some versions.

        Returns:
            The difference, and the relationships that it takes from nodes that stay: others went with their node.
        """
        now, before = self._frames(None), self._frames(since)
        pairs = self._touched(now, before)
        # A pair may hold by another row too.
        first = parse_join(self.row).aliases[0]
        kind = self.kind
        source = kind.source
        ends = pairs.select("tenant_id", *(pl.col(f"from_{k}").alias(k) for k in source.key)).unique()
        of_ends = now[source.label].join(ends, on=source.key_columns, how="semi")
        holds = join_labels(self.row, now, self.kinds, only=first, changed=of_ends)
        gone = pairs.join(holds, on=pairs.columns, how="anti")
        of_nodes = gone
        for prefix, end in (("from_", kind.source), ("to_", kind.target)):
            keys = now[end.label].select("tenant_id", *(pl.col(k).alias(f"{prefix}{k}") for k in end.key))
            of_nodes = of_nodes.join(keys, on=keys.columns, how="semi")
        return Changes.of(pairs.join(holds, on=pairs.columns, how="semi"), gone), of_nodes

    def _frames(self, versions: Mapping[str, Version] | None) -> dict[str, pl.DataFrame]:
        """By label, the columns that the join needs, as they are now or were at earlier versions."""
        at = self.at if versions is None else versions
        frames = {}
        for label, columns in self.columns.items():
            parts = [
                _columns_of(
                    self.lake.scan(table, at[table.name].number if table.name in at else None),
                    self.kinds[label],
                    columns,
                )
                for table in self.tables[label]
            ]
            frames[label] = pl.concat(parts, how="diagonal").unique().collect(engine="streaming")
        return frames


def _columns_of(rows: pl.LazyFrame, kind: NodeKind, columns: Iterable[str]) -> pl.LazyFrame:
    if kind is model.USER:
        return rows.select("tenant_id", id="user_id").drop_nulls().unique()
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


def _by_tenant(rows: pl.DataFrame) -> list[tuple[str, int]]:
    return rows.group_by("tenant_id", maintain_order=True).len().rows()


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
