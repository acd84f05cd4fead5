"""Both sides of reconciliation: what the archive says the graph holds, and what the graph holds."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from c360_pipeline.core import graph as model
from c360_pipeline.core.graph import Kind, NodeKind
from c360_pipeline.core.lake import (
    CATALOG,
    EVENT_JOURNEY,
    EVENT_KEYS,
    EVENTS,
    JOURNEY_KEYS,
    JOURNEYS,
    TABLES,
    USER_COMMUNITIES,
)
from c360_pipeline.core.reconcile import Comparison, compare, digest, row_hashes
from c360_pipeline.core.relationship_joins import join_labels, relationship_kind
from c360_pipeline.core.silos import ControlRows
from c360_pipeline.stores.graph import Graph
from c360_pipeline.stores.lake import Lake
from c360_pipeline.stores.silo_graph import label_tables, silo_node_frames

OWNED_PROPERTIES = (model.EVENT_STATUS, model.USER_COMMUNITY)
"""Kinds that are properties of nodes that another projection makes."""

BOOKKEEPING = ("landed_at", "source_uri", "source_line", "etag", "landing_date", "first_seen_at", "merged_at",
               "extracted_at", "run_id", "reconciled_at", "reason", "committed_at",
               "split_at", "found_at", "quarantined_at", "split_id")  # fmt: skip
"""Columns that say when, whence and why a row came, not what it says: two runs differ in them and are equal."""

NOT_IN_DIGEST = ("reconciliations", "reconciliation_findings", "landing_files", "journey_log")


@dataclass(frozen=True)
class SiloNodes:
    """The node rows of all silo tables, by label."""

    kinds: dict[str, NodeKind]
    frames: dict[str, pl.DataFrame]


class Archive:
    """What the lake says the graph holds.

    Args:
        lake: the Delta tables.
        control: the control rows, for labels and relationships of silo tables.
    """

    def __init__(self, lake: Lake, control: ControlRows) -> None:
        self._lake = lake
        self._control = control

    @property
    def lake(self) -> Lake:
        """The Delta tables."""
        return self._lake

    def silo_versions(self) -> str:
        """sha256 of the control rows, and of the versions of the tables that silo nodes and relationships come from."""
        tables = [self._control.lake_table(table) for table in self._control.tables]
        versions = {name: str(self._lake.version(name)) for name in (*tables, EVENTS.name)}
        keys = [(table.table_id, table.key_columns) for table in self._control.tables]
        labels = sorted(self._control.labels.items())
        said = repr((labels, keys, self._control.relationships, sorted(versions.items())))
        return hashlib.sha256(said.encode()).hexdigest()

    def silo_rows(self) -> int:
        """Rows of all silo tables that have a label."""
        found = label_tables(self._lake, self._control).values()
        return sum(self._lake.count(table) for label in found for table in label.tables)

    def silo_nodes(self) -> SiloNodes:
        """The node rows of every silo table that has a label; tables of one label are put together."""
        pairs = list(silo_node_frames(self._lake, self._control))
        return SiloNodes({kind.label: kind for kind, _ in pairs}, {kind.label: frame for kind, frame in pairs})

    def mapped_relationships(self, silos: SiloNodes) -> Iterator[tuple[Kind, pl.DataFrame]]:
        """Relationships as the control rows' join conditions make them; mappings of absent labels are passed over."""
        users = self._lake.scan(EVENTS).select("tenant_id", id="user_id").unique().collect(engine="streaming")
        kinds = {"User": model.USER, **silos.kinds}
        frames = {"User": users, **silos.frames}
        for row in self._control.relationships:
            if frames.keys() >= set(row.labels):
                yield relationship_kind(row, kinds), join_labels(row, frames, kinds)

    def expected(self) -> list[tuple[Kind, pl.DataFrame]]:
        """Every kind with all its rows; nodes before relationships, which a repair can stand on them."""
        return sorted(self._expected(), key=lambda pair: not isinstance(pair[0], NodeKind))

    def _expected(self) -> Iterator[tuple[Kind, pl.DataFrame]]:
        events, catalog = self._lake.read(EVENTS), self._lake.read(CATALOG)
        for projection in model.EVENT_PROJECTIONS:
            yield projection.kind, projection.build(events)
        yield model.PRODUCT, model.products(events, catalog)
        yield model.CATEGORY, model.categories(catalog)
        yield model.IN_CATEGORY, model.product_categories(catalog)
        assigned, event_keys = self._lake.read(EVENT_JOURNEY), self._lake.read(EVENT_KEYS)
        yield model.EVENT_STATUS, model.event_status(events, assigned)
        yield model.USER_COMMUNITY, self._communities(events)
        keys = self._lake.read(JOURNEY_KEYS)
        yield model.CORRELATION, model.correlations(keys)
        yield model.JOURNEY, model.journeys(self._lake.read(JOURNEYS))
        yield model.HAS_KEY, model.event_correlations(event_keys)
        yield model.IN_JOURNEY, model.untied_events(assigned, event_keys)
        yield model.PART_OF, model.correlation_journeys(keys)
        silos = self.silo_nodes()
        yield from ((silos.kinds[label], frame) for label, frame in silos.frames.items())
        yield from self.mapped_relationships(silos)

    def _communities(self, events: pl.DataFrame) -> pl.DataFrame:
        users = events.select("tenant_id", id="user_id").unique()
        known = model.user_communities(self._lake.read(USER_COMMUNITIES))
        return users.join(known, on=["tenant_id", "id"], how="left")


@dataclass(frozen=True)
class Reconciled:
    """The comparison of one kind of one tenant."""

    tenant_id: str
    kind: Kind
    comparison: Comparison


def reconcile(archive: Archive, graph: Graph, *, repair: bool = False) -> list[Reconciled]:
    """Compare every kind, tenant by tenant; repairs what differs when asked to.

    Returns:
        What was found before the repair.
    """
    expected = archive.expected()
    in_archive = {t for _, frame in expected for t in frame["tenant_id"].unique()}
    tenants = sorted(in_archive | set(graph.tenants()))
    results = []
    for kind, frame in expected:
        for tenant in tenants:
            ours = frame.filter(pl.col("tenant_id") == tenant).select(list(kind.schema))
            theirs = graph.read(kind, tenant)
            comparison = compare(ours, theirs, kind.key_columns)
            results.append(Reconciled(tenant, kind, comparison))
            if repair and not comparison.is_equal:
                _repair(graph, kind, ours, theirs)
    return results


def _repair(graph: Graph, kind: Kind, ours: pl.DataFrame, theirs: pl.DataFrame) -> None:
    """Make the graph hold our rows; only rows that differ are written."""
    if kind in OWNED_PROPERTIES and isinstance(kind, NodeKind):
        graph.update(kind, _differing(ours, theirs))
        return
    key = kind.key_columns
    strange_keys = any(theirs.schema[c] != ours.schema[c] for c in key)
    repeated = theirs.filter(pl.struct(key).is_duplicated()).select(key)
    ghosts = theirs.select(key).join(ours, on=key, how="anti") if not strange_keys else theirs.select(key)
    # Of a row that is there twice, both go and one comes back.
    graph.delete(kind, pl.concat([ghosts, repeated]).unique())
    graph.merge(
        kind, ours if strange_keys else pl.concat([_differing(ours, theirs), _rows_of(ours, repeated)]).unique()
    )


def _differing(ours: pl.DataFrame, theirs: pl.DataFrame) -> pl.DataFrame:
    same_types = theirs.schema == ours.schema
    return ours.join(theirs, on=ours.columns, how="anti", nulls_equal=True) if same_types else ours


def _rows_of(rows: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    return rows.join(keys, on=keys.columns, how="semi")


def digests(lake: Lake, results: list[Reconciled]) -> dict[str, str]:
    """The canonical digest of every table of the lake and, as reconciled, every kind of the graph, by name.

    Columns that only say when a row came are left out, so that two runs over the same input are equal.
    """
    result = {}
    for name, table in TABLES.items():
        if name not in NOT_IN_DIGEST:
            rows = lake.read(table)
            result[f"lake {name}"] = digest(row_hashes(rows.select(c for c in rows.columns if c not in BOOKKEEPING)))
    for reconciled in results:
        result[f"graph {reconciled.tenant_id} {entity_name(reconciled.kind)}"] = reconciled.comparison.found_digest
    return result


def _property_suffix(kind: Kind) -> str:
    return f".{list(kind.properties)[-1]}" if kind in OWNED_PROPERTIES else ""


def entity_name(kind: Kind) -> str:
    """How reconciliations call a kind."""
    return kind.name + _property_suffix(kind)


def summarise(results: list[Reconciled]) -> dict[str, Any]:
    """Plain values for people and JSON: rows compared, and every finding with its tenant and kind."""
    findings = [
        {"tenant_id": r.tenant_id, "entity": entity_name(r.kind), **finding}
        for r in results
        for finding in r.comparison.findings.iter_rows(named=True)
    ]
    return {"rows": sum(r.comparison.expected_count for r in results), "findings": findings}
