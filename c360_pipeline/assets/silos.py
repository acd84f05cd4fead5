"""Silos: source tables into the lake, and from there into the graph, as the control database says."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import polars as pl

from c360_pipeline.assets.partitions import SILO_TABLES, named_partitions, note_partitions
from c360_pipeline.assets.specs import (
    NEO4J_WRITES,
    OWNERS,
    all_went,
    asset_check,
    check_spec,
    counts_table,
    described_columns,
    preview,
    refused_rows,
    rows,
)
from c360_pipeline.core.silos.control_rows import LINEAGE, ControlRows, RelationshipRow
from c360_pipeline.core.silos.joins import joined_columns
from c360_pipeline.core.silos.plan import Extract
from c360_pipeline.resources import ControlResource, GraphResource, LakeResource, LandingResource, SilosResource
from c360_pipeline.stages.projection.refused import RefusedRows
from c360_pipeline.stages.projection.silos import LabelTables, SiloGraph, stored_silo_table
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import unmatched
from c360_pipeline.stages.recovery.cypher_script import SCRIPTS_PREFIX, write_script
from c360_pipeline.stages.silos.run import SiloRun, readable_exclusions
from c360_pipeline.stages.sources.tables import export_rows
from c360_pipeline.stores.local.scratch import scratch_folder

GROUP = "silos"
LINEAGE_MEANING = {
    "tenant_id": "whose data it is",
    "…": "the source's columns, less the excluded ones; see tables in the metadata of a run",
    "extracted_at": "when the row was last seen to change",
    "run_id": "the run that saw it change",
}


class SiloConfig(dg.Config):
    """`force_removal` lets more go than the removal limit does: a table that was emptied on purpose."""

    force_removal: bool = False


@dg.asset(
    description="Every active table of every source database, as the control database says, in `lake/silos/`; "
    "excluded columns are never read.",
    owners=OWNERS,
    group_name=GROUP,
    kinds={"postgres", "deltalake"},
    metadata={"dagster/column_schema": described_columns(LINEAGE_MEANING)},
    partitions_def=SILO_TABLES,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[
        check_spec(
            "every_table_was_read",
            asset="silo_tables",
            description="Every table and mapping that the control database asks for could be had; of one that could "
            "not, the lake keeps what it held.",
        )
    ],
)
def silo_tables(  # with checks of its own, Dagster takes the result type without parameters only
    context: dg.AssetExecutionContext,
    config: SiloConfig,
    control: ControlResource,
    silos: SilosResource,
    lake: LakeResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Plan, extract, and keep what changed; all tables when the run names no partition."""
    control_db, tables = control.open(), lake.open()
    chosen = named_partitions(context)
    with control_db.runs.logged_run(context.run.run_id) as log:
        run = SiloRun(
            control_db, tables, silos.open, context.run.run_id, log, context.log.info, force=config.force_removal
        )
        loaded = run.load(chosen)
    loaded_rows = zip(loaded.extracts, loaded.tables.iter_rows(named=True), strict=True)
    note_partitions(
        context, "silo_tables", {extract.name: table_metadata(extract, row) for extract, row in loaded_rows}
    )
    return dg.MaterializeResult(
        metadata=rows(
            int(loaded.tables["rows"].sum()), tables=preview(loaded.tables, limit=100), plan_hash=loaded.plan.hash
        ),
        check_results=[all_went(loaded.failures, "every_table_was_read", asset="silo_tables")],
    )


def table_metadata(extract: Extract, row: Mapping[str, Any]) -> dict[str, Any]:
    """What one table shows in the UI: rows, columns as they were read, and what became of them."""
    columns = [dg.TableColumn(name, str(dtype)) for name, dtype in extract.lake_schema.items()]
    return rows(
        row["rows"],
        rows_read=row["read"],
        rows_changed=row["changed"],
        left_out=dg.MetadataValue.json(dict(extract.left_out)),
        label=extract.label or "none: the table stays in the lake",
        lake_table=extract.lake_table,
        snapshot_mode=extract.table.snapshot_mode,
        **{"dagster/column_schema": dg.TableSchema(columns=columns)},
    )


@dg.asset(
    deps=[silo_tables],
    description="Rows of silo tables that are records of an event source: what came or changed, as files that land.",
    owners=OWNERS,
    group_name="landing",
    kinds={"s3"},
    metadata={"dagster/column_schema": described_columns({"…": "the table's columns, a JSON line each row"})},
    check_specs=[
        check_spec(
            "every_table_of_a_source_was_read",
            asset="table_events",
            description="Every table that an event source names is there, and was read.",
        )
    ],
)
def table_events(  # with checks of its own, Dagster takes the result type without parameters only
    control: ControlResource, lake: LakeResource, landing: LandingResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Write the rows; landing takes them up."""
    control_db = control.open()
    done, left = export_rows(lake.open(), landing.open(), control_db.read(), control_db.sources.rows())
    said = {one.source: f"{one.rows:,} rows" + (f", {one.uri}" if one.uri else "") for one in done}
    return dg.MaterializeResult(
        metadata=rows(sum(one.rows for one in done), sources=dg.MetadataValue.json(said)),
        check_results=[all_went(left, "every_table_of_a_source_was_read", asset="table_events")],
    )


@asset_check(asset=silo_tables, blocking=True, description="Key columns of every silo table are unique and not null.")
def silo_keys_are_unique(control: ControlResource, lake: LakeResource) -> dg.AssetCheckResult:
    """A key that repeats would melt two rows into one node."""
    control_rows, tables = control.open().read(), lake.open()
    wrong: dict[str, int] = {}
    for source in control_rows.tables:
        table = stored_silo_table(tables, control_rows, source)
        if table is not None:
            # One snapshot: between two, another run may have written.
            keys = tables.scan(table).select(table.key)
            counted = pl.collect_all([keys.select(pl.len()), keys.drop_nulls().unique().select(pl.len())])
            repeated = int(counted[0].item() - counted[1].item())
            wrong |= {table.name: repeated} if repeated else {}
    return dg.AssetCheckResult(
        passed=not wrong, metadata={"rows_with_repeated_or_null_keys": counts_table(wrong, "table")}
    )


@asset_check(asset=silo_tables, blocking=True, description="No excluded column is in the lake, in any silo table.")
def no_excluded_column_is_in_the_lake(control: ControlResource, lake: LakeResource) -> dg.AssetCheckResult:
    """What the control database excludes must not go further."""
    control_rows, tables = control.open().read(), lake.open()
    found = {}
    for source in control_rows.tables:
        table = stored_silo_table(tables, control_rows, source)
        excluded = {column for table_id, column in control_rows.excluded if table_id == source.table_id}
        if table is not None and (held := excluded & set(table.columns) - set(LINEAGE)):
            found[table.name] = sorted(held)
    return dg.AssetCheckResult(passed=not found, metadata={"found": dg.MetadataValue.json(found)})


@asset_check(
    asset=silo_tables, description="No login of a silo may read a column that is excluded: `c360 grants` prints how."
)
def no_login_may_read_what_is_excluded(control: ControlResource, silos: SilosResource) -> dg.AssetCheckResult:
    """What the database refuses can't leak by a mistake of ours."""
    readable = readable_exclusions(control.open().read(), silos.open)
    return dg.AssetCheckResult(
        passed=not readable,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"readable": dg.MetadataValue.json(readable)},
    )


@dg.asset(
    deps=[silo_tables, "graph_schema"],
    description="A node for every row of every silo table that has a label.",
    owners=OWNERS,
    group_name="graph",
    kinds={"neo4j"},
    pool=NEO4J_WRITES,
    metadata={
        "dagster/column_schema": described_columns({"tenant_id": "whose data it is", "…": "the lake table's columns"})
    },
    check_specs=[
        check_spec(
            "every_label_was_projected",
            asset="silo_nodes",
            description="No label of a tenant waits because more of its nodes would go than the removal limit lets "
            "pass.",
        )
    ],
)
def silo_nodes(  # with checks of its own, Dagster takes the result type without parameters only
    config: SiloConfig, control: ControlResource, lake: LakeResource, graph: GraphResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Project the rows that changed."""
    control_rows = control.open().read()
    with graph.open() as neo4j:
        silos = SiloGraph(lake.open(), neo4j, control_rows, force=config.force_removal)
        changed = silos.project_nodes()
        total = sum(neo4j.counts.label_count(label) for label in silos.labels)
    lineage = {"dagster/column_lineage": node_lineage(control_rows, silos.labels)}
    said = {**lineage, **refused_rows(neo4j.refusals)}
    return dg.MaterializeResult(
        metadata=rows(total, changed=counts_table(changed, "label"), **said),
        check_results=[all_went(silos.waiting, "every_label_was_projected", asset="silo_nodes")],
    )


def node_lineage(control_rows: ControlRows, labels: Mapping[str, LabelTables]) -> dg.TableColumnLineage:
    """Which columns of which source tables each property of each label comes from."""
    deps: dict[str, list[dg.TableColumnDep]] = {}
    for source in control_rows.tables:
        label = control_rows.labels.get(source.table_id, "")
        found = [
            t for t in (labels[label].tables if label in labels else ()) if t.name == control_rows.lake_table(source)
        ]
        for column in (c for table in found for c in table.columns if c not in LINEAGE):
            dep = dg.TableColumnDep(dg.AssetKey("silo_tables"), f"{control_rows.table_name(source)}.{column}")
            deps.setdefault(f"{label}.{column}", []).append(dep)
    return dg.TableColumnLineage(deps)


def relationship_lineage(silos: SiloGraph, mappings: Iterable[RelationshipRow]) -> dg.TableColumnLineage:
    """Which properties of which labels each relationship is joined by."""
    asset_of = {"User": dg.AssetKey("event_graph")}
    return dg.TableColumnLineage(
        {
            row.name: [
                dg.TableColumnDep(asset_of.get(label, dg.AssetKey("silo_nodes")), f"{label}.{column}")
                for label, columns in joined_columns(row, silos.kinds).items()
                for column in columns
                if column not in LINEAGE
            ]
            for row in mappings
            if silos.has_labels_of(row)
        }
    )


@dg.asset(
    deps=[silo_nodes, "event_graph"],
    description="Relationships between silo nodes, and from users to accounts, as the control rows say.",
    owners=OWNERS,
    group_name="graph",
    kinds={"neo4j"},
    pool=NEO4J_WRITES,
    metadata={
        "dagster/column_schema": described_columns({"from_…": "key of the first node", "to_…": "key of the second"})
    },
    check_specs=[
        check_spec(
            "every_mapping_joins_something",
            asset="mapped_relationships",
            description="Every active relationship mapping joins at least one pair of nodes.",
        ),
        check_spec(
            "every_mapping_was_carried_out",
            asset="mapped_relationships",
            description="No mapping waits because it can't be, or because more of its relationships would go than the "
            "removal limit lets pass.",
        ),
    ],
)
def mapped_relationships(  # with checks of its own, Dagster takes the result type without parameters only
    config: SiloConfig, control: ControlResource, lake: LakeResource, graph: GraphResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Join the rows that changed, and bring what differs into the graph."""
    control_rows = control.open().read()
    with graph.open() as neo4j:
        silos = SiloGraph(lake.open(), neo4j, control_rows, force=config.force_removal)
        done = silos.project_relationships()
    lineage = {"dagster/column_lineage": relationship_lineage(silos, control_rows.relationships)}
    empty = sorted(name for name, (made, _) in done.items() if not made)
    changed = {name: written for name, (_, written) in done.items()}
    said = {**lineage, **refused_rows(neo4j.refusals)}
    return dg.MaterializeResult(
        metadata=rows(sum(made for made, _ in done.values()), changed=counts_table(changed, "relationship"), **said),
        check_results=[
            dg.AssetCheckResult(
                check_name="every_mapping_joins_something",
                passed=not empty,
                # A mapping that joins nothing is a typing error more often than a truth.
                severity=dg.AssetCheckSeverity.WARN,
                metadata={"empty": dg.MetadataValue.json(empty)},
            ),
            all_went(silos.waiting, "every_mapping_was_carried_out", asset="mapped_relationships"),
        ],
    )


class CypherScriptConfig(dg.Config):
    """`max_rows`: beyond so many nodes and relationships no script is written; it would be gigabytes."""

    max_rows: int = 500_000


@dg.asset(
    deps=[mapped_relationships],
    description="The silos' part of the graph as a Cypher script in `cypher/`, which rebuilds it in an empty database.",
    owners=OWNERS,
    group_name="graph",
    kinds={"cypher", "s3"},
    metadata={"dagster/column_schema": described_columns({"statement": "one a line, in the order of running"})},
)
def cypher_script(
    config: CypherScriptConfig, control: ControlResource, lake: LakeResource, landing: LandingResource
) -> dg.MaterializeResult[None]:
    """Write the script when the silo tables changed since the last one, and register it with its hash."""
    control_db, tables = control.open(), lake.open()
    archive = Archive(tables, control_db.read())
    made_from, expected = archive.silo_versions(), archive.silo_rows()
    last = control_db.runs.last_script()
    if last.get("made_from") == made_from:
        return dg.MaterializeResult(metadata=rows(0, file=last["file_name"], sha256=last["sha256"], written=False))
    if expected > config.max_rows:
        why = f"{expected:,} rows of silos are more than max_rows, {config.max_rows:,}"
        return dg.MaterializeResult(metadata=rows(0, written=False, why=why))
    with scratch_folder() as folder:
        path = folder / f"silos-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.cypher"
        script = write_script(archive, path)
        if script.sha256 == last.get("sha256"):
            control_db.runs.note_script(last["script_id"], made_from)
            return dg.MaterializeResult(metadata=rows(script.rows, file=last["file_name"], sha256=script.sha256))
        uri = landing.open().put_file(path, SCRIPTS_PREFIX)
    control_db.runs.add_script(uri, script.sha256, made_from, script.statements)
    return dg.MaterializeResult(
        metadata=rows(script.rows, file=uri, sha256=script.sha256, statements=script.statements, written=True)
    )


@asset_check(asset=cypher_script, description="The registered script is where the control database says, unchanged.")
def the_script_is_what_was_registered(control: ControlResource, landing: LandingResource) -> dg.AssetCheckResult:
    """Hash the file."""
    last = control.open().runs.last_script()
    found = landing.open().sha256_of(last["file_name"]) if last else None
    return dg.AssetCheckResult(passed=found == last.get("sha256"), metadata={"file": last.get("file_name", "none")})


@asset_check(asset=silo_nodes, blocking=True, description="As many nodes of every label as rows in its silo tables.")
def every_silo_row_is_a_node(control: ControlResource, lake: LakeResource, graph: GraphResource) -> dg.AssetCheckResult:
    """Count both sides as of the graph's checkpoints; where they differ, name what nobody is bringing there."""
    with graph.open() as neo4j:
        archive = Archive.as_projected(lake.open(), control.open().read(), neo4j)
        refused = RefusedRows(archive.lake, neo4j.refusals).refused
        wrong = {
            label: count
            for label, rows_of_label in archive.silo_counts().items()
            if (count := neo4j.counts.label_count(label) + len(refused.get(label, ())) - rows_of_label)
        }
        found = {kind.label: unmatched(archive, neo4j, kind, keys) for kind, keys in archive.silo_keys(wrong)}
    differing = {label: rows_of_label for label, rows_of_label in found.items() if rows_of_label.height}
    return dg.AssetCheckResult(
        passed=not differing,
        metadata={
            "nodes_too_many": counts_table({label: wrong[label] for label in differing}, "label"),
            **{label: preview(rows_of_label) for label, rows_of_label in differing.items()},
        },
    )
