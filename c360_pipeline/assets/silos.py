"""Silos: source tables into the lake, and from there into the graph, as the control database says."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime

import dagster as dg
import polars as pl

from c360_pipeline.assets.specs import OWNERS, counts_table, described_columns, preview, rows
from c360_pipeline.core.graph import Kind
from c360_pipeline.core.lake import compare_versions
from c360_pipeline.core.silos import Column, ControlRows, Extract, changed_rows, plan_extracts
from c360_pipeline.resources import ControlResource, GraphResource, LakeResource, SilosResource
from c360_pipeline.stores.control import ControlDb
from c360_pipeline.stores.graph import Graph
from c360_pipeline.stores.lake import Lake
from c360_pipeline.stores.reconcile import Archive

GROUP = "silos"
LINEAGE_MEANING = {
    "tenant_id": "whose data it is",
    "…": "the source's columns, less the excluded ones; see tables in the metadata of a run",
    "extracted_at": "when the row was last seen to change",
    "run_id": "the run that saw it change",
}


@dg.asset(
    description="Every active table of every source database, as the control database says, in `lake/silos/`; "
    "excluded columns are never read.",
    owners=OWNERS,
    group_name=GROUP,
    kinds={"postgres", "deltalake"},
    metadata={"dagster/column_schema": described_columns(LINEAGE_MEANING)},
)
def silo_tables(
    context: dg.AssetExecutionContext, control: ControlResource, silos: SilosResource, lake: LakeResource
) -> dg.MaterializeResult[None]:
    """Plan, extract, and keep what changed."""
    control_db, tables = control.open(), lake.open()
    control_rows = control_db.read()
    with control_db.logged_run(context.run.run_id) as log_id:
        plans = plan_extracts(control_rows, source_columns(control_rows, silos))
        summary = [_load(plan, control_rows, silos, tables, control_db, log_id, context.run.run_id) for plan in plans]
    frame = pl.DataFrame(
        summary, schema={"table": pl.String, "rows": pl.Int64, "changed": pl.Int64, "left_out": pl.String}
    )
    return dg.MaterializeResult(metadata=rows(int(frame["rows"].sum()), tables=preview(frame, limit=100)))


def source_columns(control: ControlRows, silos: SilosResource) -> Mapping[int, Mapping[str, Column]]:
    """What columns the source tables have, by table_id and name."""
    found: dict[int, Mapping[str, Column]] = {}
    for database in control.databases:
        wanted = [t for t in control.tables if t.database_id == database.database_id]
        found |= silos.open(database).columns(wanted)
    return found


def _load(
    plan: Extract,
    control: ControlRows,
    silos: SilosResource,
    lake: Lake,
    control_db: ControlDb,
    log_id: int,
    run_id: str,
) -> dict[str, str | int]:
    started = time.monotonic()
    database = next(d for d in control.databases if d.database_id == plan.table.database_id)
    extracted = (
        silos.open(database)
        .extract(plan)
        .with_columns(
            tenant_id=pl.lit(plan.tenant_id),
            extracted_at=pl.lit(datetime.now(UTC)).cast(pl.Datetime("us", "UTC")),
            run_id=pl.lit(run_id),
        )
    )
    current = lake.read_silo(plan.lake_table)
    table, changed = changed_rows(current, extracted, list(plan.table.key_columns))
    if changed or not current.width:
        lake.replace_silo(plan.lake_table, table, f"{plan.table.schema_name}.{plan.table.table_name} of {plan.db_name}")
    control_db.log_table(
        log_id,
        db_name=plan.db_name,
        table_name=plan.table.table_name,
        rows_read=extracted.height,
        rows_changed=changed,
        seconds=time.monotonic() - started,
    )
    name = f"{plan.db_name}.{plan.table.table_name}"
    return {"table": name, "rows": extracted.height, "changed": changed, "left_out": ", ".join(plan.excluded)}


@dg.asset_check(
    asset=silo_tables, blocking=True, description="Key columns of every silo table are unique and not null."
)
def silo_keys_are_unique(control: ControlResource, lake: LakeResource) -> dg.AssetCheckResult:
    """A key that repeats would melt two rows into one node."""
    control_rows, tables = control.open().read(), lake.open()
    wrong: dict[str, int] = {}
    for table in control_rows.tables:
        name = control_rows.lake_table(table)
        held = tables.read_silo(name)
        if held.is_empty():
            continue
        keys = held.select("tenant_id", *table.key_columns)
        repeated = keys.height - keys.drop_nulls().unique().height
        wrong |= {name: repeated} if repeated else {}
    return dg.AssetCheckResult(
        passed=not wrong, metadata={"rows_with_repeated_or_null_keys": counts_table(wrong, "table")}
    )


@dg.asset(
    deps=[silo_tables, "graph_schema"],
    description="A node for every row of every silo table that has a label.",
    owners=OWNERS,
    group_name="graph",
    kinds={"neo4j"},
    metadata={
        "dagster/column_schema": described_columns({"tenant_id": "whose data it is", "…": "the lake table's columns"})
    },
)
def silo_nodes(control: ControlResource, lake: LakeResource, graph: GraphResource) -> dg.MaterializeResult[None]:
    """Bring what differs between lake and graph into the graph."""
    control_rows = control.open().read()
    silos = Archive(lake.open(), control_rows).silo_nodes()
    with graph.open() as neo4j:
        neo4j.apply_schema(list(silos.kinds.values()))
        for kind in silos.kinds.values():
            # A column that is excluded from now on leaves the nodes that had it.
            neo4j.remove_undeclared_properties(kind)
        tenants = tenants_to_compare(control_rows, neo4j)
        changed = {
            label: bring_into_graph(neo4j, kind, silos.frames[label], tenants) for label, kind in silos.kinds.items()
        }
    total = sum(frame.height for frame in silos.frames.values())
    return dg.MaterializeResult(metadata=rows(total, changed=counts_table(changed, "label")))


@dg.asset(
    deps=[silo_nodes, "event_graph"],
    description="Relationships between silo nodes, and from users to accounts, as the control rows say.",
    owners=OWNERS,
    group_name="graph",
    kinds={"neo4j"},
    metadata={
        "dagster/column_schema": described_columns({"from_…": "key of the first node", "to_…": "key of the second"})
    },
    check_specs=[
        dg.AssetCheckSpec(
            "every_mapping_joins_something",
            asset="mapped_relationships",
            description="Every active relationship mapping joins at least one pair of nodes.",
        )
    ],
)
def mapped_relationships(  # with checks of its own, Dagster takes the result type without parameters only
    control: ControlResource, lake: LakeResource, graph: GraphResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Join the rows, and bring what differs into the graph."""
    control_rows = control.open().read()
    archive = Archive(lake.open(), control_rows)
    made, changed = {}, {}
    with graph.open() as neo4j:
        tenants = tenants_to_compare(control_rows, neo4j)
        for kind, frame in archive.mapped_relationships(archive.silo_nodes()):
            changed[kind.name] = bring_into_graph(neo4j, kind, frame, tenants)
            made[kind.name] = frame.height
    wanted = {f"({r.from_label})-[:{r.relationship_type}]->({r.to_label})" for r in control_rows.relationships}
    empty = sorted(name for name in wanted if not made.get(name))
    return dg.MaterializeResult(
        metadata=rows(sum(made.values()), changed=counts_table(changed, "relationship")),
        check_results=[
            dg.AssetCheckResult(
                check_name="every_mapping_joins_something",
                passed=not empty,
                # A mapping that joins nothing is a typing error more often than a truth.
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"empty": dg.MetadataValue.json(empty)},
            )
        ],
    )


def tenants_to_compare(control: ControlRows, graph: Graph) -> list[str]:
    """Tenants of the silos and of the graph: one whose last row went from a silo must lose its nodes too."""
    return sorted({d.tenant_id for d in control.databases} | set(graph.tenants()))


def bring_into_graph(graph: Graph, kind: Kind, frame: pl.DataFrame, tenants: list[str]) -> int:
    """Make the graph hold these rows of a kind; returns how many differed."""
    differed = 0
    for tenant in tenants:
        wanted = frame.filter(pl.col("tenant_id") == tenant)
        changes = compare_versions(graph.read(kind, tenant), wanted, tuple(kind.key_columns))
        graph.apply(kind, changes)
        differed += changes.count
    return differed


@dg.asset_check(asset=silo_nodes, blocking=True, description="As many nodes of every label as rows in its silo tables.")
def every_silo_row_is_a_node(control: ControlResource, lake: LakeResource, graph: GraphResource) -> dg.AssetCheckResult:
    """Count both sides."""
    silos = Archive(lake.open(), control.open().read()).silo_nodes()
    with graph.open() as neo4j:
        counts = neo4j.label_counts()
    wrong = {
        label: counts.get(label, 0) - frame.height
        for label, frame in silos.frames.items()
        if counts.get(label, 0) != frame.height
    }
    return dg.AssetCheckResult(passed=not wrong, metadata={"nodes_too_many": counts_table(wrong, "label")})
