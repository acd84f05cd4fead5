"""The graph projection of events, catalogue and journeys."""

import dagster as dg
import polars as pl

from c360_pipeline.assets.landing import product_catalog
from c360_pipeline.assets.specs import (
    NEO4J_WRITES,
    OWNERS,
    asset_check,
    counts_table,
    described_columns,
    kind_schema,
    preview,
    refused_rows,
    rows,
)
from c360_pipeline.core.projection import graph as model
from c360_pipeline.resources import ControlResource, GraphResource, LakeResource, MetricsResource
from c360_pipeline.stages.projection.events import EventGraph, ProductGraph, graph_lag
from c360_pipeline.stages.projection.journeys import JourneyGraph
from c360_pipeline.stages.projection.refused import RefusedRows
from c360_pipeline.stages.realtime.unlanded_events import overdue_events
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.proofs import Proof
from c360_pipeline.stages.reconciliation.prove import missing_products
from c360_pipeline.stages.reconciliation.reconcile import in_flight, unmatched
from c360_pipeline.stages.stitching.catch_up import unstitched_events
from c360_pipeline.stores.local.metrics import Figure
from c360_pipeline.stores.neo4j.cypher import is_of_control_rows
from c360_pipeline.stores.neo4j.graph_statistics import GraphStatistics

GROUP = "graph"
NEO4J = {"neo4j"}


@dg.asset(
    description="Uniqueness constraints and indexes of the graph, as ddl/graph.cypher and `graph_indexes` have them.",
    owners=OWNERS,
    group_name=GROUP,
    kinds=NEO4J,
    pool=NEO4J_WRITES,
    metadata={"dagster/column_schema": described_columns({"name": "of the constraint", "state": "ONLINE when usable"})},
)
def graph_schema(control: ControlResource, graph: GraphResource) -> dg.MaterializeResult[None]:
    """Apply the script and the control rows; what exists stays."""
    indexes = control.open().read().indexes
    with graph.open() as neo4j:
        neo4j.schema.apply()
        changed = neo4j.schema.apply_indexes(indexes)
        constraints = neo4j.schema.constraint_count()
    said = {"indexes_of_control_rows": len(indexes), "indexes_made_or_dropped": changed}
    return dg.MaterializeResult(metadata=rows(constraints, **said))


@asset_check(asset=graph_schema, description="Each index that a control row names is online, and of a label that is.")
def indexes_of_control_rows_are_of_use(control: ControlResource, graph: GraphResource) -> dg.AssetCheckResult:
    """One that failed, or of a label that no node has, speeds nothing up; no key rests on it, so that this warns."""
    indexes = control.open().read().indexes
    with graph.open() as neo4j:
        counts = neo4j.counts.label_counts()
        waiting = neo4j.schema.unusable_indexes(indexes)
    unused = sorted({row.label for row in indexes if not counts.get(row.label)})
    return dg.AssetCheckResult(
        passed=not (unused or waiting),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "labels_that_no_node_has": dg.MetadataValue.json(unused),
            "not_online": dg.MetadataValue.json(waiting),
        },
    )


@asset_check(asset=graph_schema, blocking=True, description="Every constraint has an index that is online.")
def every_index_is_online(graph: GraphResource) -> dg.AssetCheckResult:
    """An index that failed or still builds would let a key in twice, or make each write a scan."""
    with graph.open() as neo4j:
        waiting = [found for found in neo4j.schema.indexes_not_online() if not is_of_control_rows(found["name"])]
    return dg.AssetCheckResult(passed=not waiting, metadata={"not_online": dg.MetadataValue.json(waiting)})


@dg.asset(
    deps=[product_catalog, "landed_events", graph_schema],
    description="Product and Category nodes: the catalogue's, and a bare Product for every item that only events know.",
    owners=OWNERS,
    group_name=GROUP,
    kinds=NEO4J,
    pool=NEO4J_WRITES,
    metadata={"dagster/column_schema": kind_schema(model.PRODUCT)},
)
def product_graph(lake: LakeResource, graph: GraphResource) -> dg.MaterializeResult[None]:
    """Project the products that changed."""
    with graph.open() as neo4j:
        ProductGraph(lake.open(), neo4j).project()
        counts = neo4j.counts.label_counts()
    said = {"categories": counts.get("Category", 0), **refused_rows(neo4j.refusals)}
    return dg.MaterializeResult(metadata=rows(counts.get("Product", 0), **said))


@asset_check(
    asset=product_graph, blocking=True, description="Every item of an event and of the catalogue is a Product."
)
def every_item_is_a_product(control: ControlResource, lake: LakeResource, graph: GraphResource) -> dg.AssetCheckResult:
    """Look for items that no event could be linked to, among what changed since the last comparison."""
    with graph.open() as neo4j:
        archive = Archive.as_projected(lake.open(), control.open().read(), neo4j)
        lost = missing_products(archive, neo4j, Proof.newest(archive.lake))
    return dg.AssetCheckResult(passed=lost.is_empty(), metadata={"missing": preview(lost)})


@dg.asset(
    deps=["landed_events", product_graph],
    description="User, Session and Action:Event nodes, HAS_SESSION, HAS_ACTION, ON_PRODUCT, VIEWED and PURCHASED.",
    owners=OWNERS,
    group_name=GROUP,
    kinds=NEO4J,
    pool=NEO4J_WRITES,
    metadata={"dagster/column_schema": kind_schema(model.ACTION)},
)
def event_graph(
    context: dg.AssetExecutionContext,
    control: ControlResource,
    lake: LakeResource,
    graph: GraphResource,
    metrics: MetricsResource,
) -> dg.MaterializeResult[None]:
    """Project the events that came, changed or went since this graph's checkpoint."""
    properties = control.open().read().properties
    with graph.open() as neo4j:
        changed = EventGraph(lake.open(), neo4j, properties).project()
        counts = neo4j.counts.label_counts()
    metrics.open().write("event_graph", graph_figures("event_graph", neo4j.statistics, sum(changed.values())))
    context.log.info("projected: %s", ", ".join(f"{count:,} rows of {kind}" for kind, count in changed.items()))
    said = {"changed": counts_table(changed, "kind"), **refused_rows(neo4j.refusals)}
    return dg.MaterializeResult(metadata=rows(counts.get("Action", 0), **said))


@asset_check(
    asset=event_graph,
    blocking=True,
    description="As many Action nodes as events in the archive, less those in the dead-letter queue.",
)
def every_event_is_a_node(control: ControlResource, lake: LakeResource, graph: GraphResource) -> dg.AssetCheckResult:
    """Count both sides as of the graph's checkpoint; where they differ, name what nobody is bringing there."""
    with graph.open() as neo4j:
        archive = Archive.as_projected(lake.open(), control.open().read(), neo4j)
        archived = archive.event_count()
        nodes, unlanded = (neo4j.counts.label_count(label) for label in (model.ACTION.label, model.UNLANDED))
        refused = len(RefusedRows(archive.lake, neo4j.refusals).refused.get(model.ACTION.name, ()))
        differing = pl.DataFrame()
        if archived - refused != nodes - unlanded:
            differing = unmatched(archive, neo4j, model.ACTION, archive.event_keys())
    return dg.AssetCheckResult(
        passed=differing.is_empty(),
        metadata={
            "archive_rows": archived, "nodes": nodes, "not_landed_yet": unlanded, "refused_by_graph": refused,
            "differing": preview(differing),
        },
    )  # fmt: skip


@asset_check(asset=event_graph, description="No event that the API or the stream wrote waits for an hour to land.")
def unlanded_events_land_within_an_hour(graph: GraphResource) -> dg.AssetCheckResult:
    """Look for events that are in the graph and not in the archive."""
    with graph.open() as neo4j:
        overdue = overdue_events(neo4j)
    return dg.AssetCheckResult(
        passed=overdue.is_empty(), severity=dg.AssetCheckSeverity.WARN, metadata={"overdue": preview(overdue)}
    )


@asset_check(asset=event_graph, description="The newest event of every tenant is in the graph.")
def newest_events_are_in_the_graph(lake: LakeResource, graph: GraphResource) -> dg.AssetCheckResult:
    """Compare what the archive holds with how far the graph's checkpoint is."""
    with graph.open() as neo4j:
        lags = graph_lag(lake.open(), neo4j)
    columns = ["tenant_id", "newest", "newest_in_graph", "seconds"]
    found = pl.DataFrame([(x.tenant_id, x.newest, x.newest_in_graph, x.seconds) for x in lags], columns, orient="row")
    return dg.AssetCheckResult(
        passed=all(lag.seconds == 0 for lag in lags),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"lag": preview(found, 100)},
    )


@dg.asset(
    deps=["journeys", "event_journey", "journey_keys", "event_keys", event_graph],
    description="Correlation and Journey nodes, HAS_KEY, PART_OF, IN_JOURNEY; stitched events become PROCESSED.",
    owners=OWNERS,
    group_name=GROUP,
    kinds=NEO4J,
    pool=NEO4J_WRITES,
    metadata={"dagster/column_schema": kind_schema(model.JOURNEY)},
)
def journey_graph(lake: LakeResource, graph: GraphResource, metrics: MetricsResource) -> dg.MaterializeResult[None]:
    """Project the commits of stitching that this graph does not have yet."""
    tables = lake.open()
    with graph.open() as neo4j:
        projected = JourneyGraph(tables, neo4j).project()
        counts = neo4j.counts.all()
        written = neo4j.statistics
    metrics.open().write("journey_graph", graph_figures("journey_graph", written, sum(projected.values())))
    return dg.MaterializeResult(
        metadata=rows(
            counts.get("Journey", 0),
            keys=counts.get("HAS_KEY", 0),
            changed=counts_table(projected, "kind"),
            writing=dg.MetadataValue.json(written.as_dict()),
        )
    )


def graph_figures(stage: str, written: GraphStatistics, changed: int) -> list[Figure]:
    """How a stage's last writing to the graph went."""
    of = {"stage": stage}
    totals = {
        "graph_written_rows": ("Rows written to the graph.", changed),
        "graph_run_statements": ("Statements that wrote to the graph.", written.statements),
        "graph_statement_seconds": ("Seconds that they took.", written.seconds),
        "graph_statements_failed": ("Of these, statements that failed.", written.failed),
        "graph_statements_retried": ("Of these, attempts after the first.", written.retries),
        "graph_statements_slow": ("Of these, statements over one second.", sum(written.slow.values())),
    }
    rate = changed / written.seconds if written.seconds else 0.0
    success = 1 - written.failed / written.statements if written.statements else 1.0
    return [
        Figure("graph_rows_per_second", "Rows written per second of statements in the last run.", rate, of),
        Figure("graph_slowest_statement_seconds", "The slowest statement of the last run.", written.slowest, of),
        Figure("graph_statements", "Statements of the last run.", written.statements, of),
        Figure("graph_success_ratio", "Statements of the last run that succeeded, of all.", success, of),
        Figure("graph_retries", "Statements of the last run that were tried again.", written.retries, of),
        Figure("graph_failed_statements", "Statements of the last run that failed.", written.failed, of),
        Figure("graph_connections_in_use", "Connections that the last run used at once.", written.most_in_use, of),
        Figure("graph_connections", "Connections that a run may use at once.", written.pool_size, of),
        *(
            Figure(
                "graph_failures",
                "Statements that failed, by the error and how they begin.",
                count,
                {"error": error, "statement": name, **of},
                is_total=True,
            )
            for (error, name), count in written.failures.items()
        ),
        *(Figure(name, text, value, of, is_total=True) for name, (text, value) in totals.items()),
        *(
            Figure(
                "graph_slow_statements", "Statements over one second in the last run.", count, {"statement": name, **of}
            )
            for name, count in written.slow.items()
        ),
    ]


@asset_check(asset=journey_graph, description="No event in the graph waits for its journey (status NEW).")
def every_event_is_processed(control: ControlResource, lake: LakeResource, graph: GraphResource) -> dg.AssetCheckResult:
    """Look for events that should have been stitched; those that landed since then are not waited for."""
    with graph.open() as neo4j:
        archive = Archive.as_projected(lake.open(), control.open().read(), neo4j)
        waiting = neo4j.counts.waiting_events()
        late = waiting
        if waiting.height:
            late = in_flight(archive, neo4j).left_out(model.EVENT_STATUS, waiting)
            late = late.join(unstitched_events(archive.lake), on=["tenant_id", "id"], how="anti")
    return dg.AssetCheckResult(passed=late.is_empty(), metadata={"waiting": waiting.height, "late": preview(late)})
