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
from c360_pipeline.core.catalog.tables import CATALOG, EVENTS
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.refused import stands_on
from c360_pipeline.resources import GraphResource, LakeResource, MetricsResource
from c360_pipeline.stages.projection.events import EventGraph, ProductGraph, graph_lag
from c360_pipeline.stages.projection.journeys import JourneyGraph
from c360_pipeline.stages.projection.refused import RefusedRows
from c360_pipeline.stages.realtime.unlanded_events import overdue_events
from c360_pipeline.stores.local.metrics import Figure
from c360_pipeline.stores.neo4j.graph_statistics import GraphStatistics

GROUP = "graph"
NEO4J = {"neo4j"}


@dg.asset(
    description="Uniqueness constraints and indexes of the graph, as ddl/graph.cypher has them.",
    owners=OWNERS,
    group_name=GROUP,
    kinds=NEO4J,
    pool=NEO4J_WRITES,
    metadata={"dagster/column_schema": described_columns({"name": "of the constraint", "state": "ONLINE when usable"})},
)
def graph_schema(graph: GraphResource) -> dg.MaterializeResult[None]:
    """Apply the script; what exists stays."""
    with graph.open() as neo4j:
        neo4j.schema.apply()
        constraints = neo4j.schema.constraint_count()
    return dg.MaterializeResult(metadata=rows(constraints))


@asset_check(asset=graph_schema, blocking=True, description="Every constraint has an index that is online.")
def every_index_is_online(graph: GraphResource) -> dg.AssetCheckResult:
    """An index that failed or still builds would let a key in twice, or make each write a scan."""
    with graph.open() as neo4j:
        waiting = neo4j.schema.indexes_not_online()
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
def every_item_is_a_product(lake: LakeResource, graph: GraphResource) -> dg.AssetCheckResult:
    """Look for items that no event could be linked to."""
    tables = lake.open()
    items = tables.scan(EVENTS).select("tenant_id", "item_id").unique().collect()
    wanted = model.products(items, tables.read(CATALOG)).select("tenant_id", "id")
    with graph.open() as neo4j:
        held = [
            neo4j.audit.rows(model.PRODUCT, tenant).select("tenant_id", "id") for tenant in wanted["tenant_id"].unique()
        ]
    missing = wanted.join(pl.concat([wanted.clear(), *held]), on=["tenant_id", "id"], how="anti")
    missing = missing.filter(~stands_on(model.PRODUCT, missing, RefusedRows(tables, neo4j.refusals).refused))
    return dg.AssetCheckResult(passed=missing.is_empty(), metadata={"missing": preview(missing)})


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
    context: dg.AssetExecutionContext, lake: LakeResource, graph: GraphResource, metrics: MetricsResource
) -> dg.MaterializeResult[None]:
    """Project the events that came, changed or went since this graph's checkpoint."""
    with graph.open() as neo4j:
        changed = EventGraph(lake.open(), neo4j).project()
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
def every_event_is_a_node(lake: LakeResource, graph: GraphResource) -> dg.AssetCheckResult:
    """Count both sides."""
    tables = lake.open()
    archived = tables.count(EVENTS)
    with graph.open() as neo4j:
        nodes = neo4j.counts.label_counts().get("Action", 0)
        refused = len(RefusedRows(tables, neo4j.refusals).refused.get("Action", ()))
    return dg.AssetCheckResult(
        passed=archived - refused == nodes,
        metadata={"archive_rows": archived, "nodes": nodes, "refused_by_graph": refused},
    )


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
        *(
            Figure(
                "graph_slow_statements", "Statements over one second in the last run.", count, {"statement": name, **of}
            )
            for name, count in written.slow.items()
        ),
    ]


@asset_check(asset=journey_graph, description="No event in the graph waits for its journey (status NEW).")
def every_event_is_processed(graph: GraphResource) -> dg.AssetCheckResult:
    """Count the events that stitching has not reached."""
    with graph.open() as neo4j:
        waiting = neo4j.counts.waiting_events()
    return dg.AssetCheckResult(passed=waiting == 0, metadata={"waiting": waiting})
