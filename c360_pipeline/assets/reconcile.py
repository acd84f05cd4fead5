"""Reconciliation: proof that the graph equals its archive."""

from collections.abc import Iterable, Iterator

import dagster as dg
import polars as pl

from c360_pipeline.assets.plots import differences_by_day
from c360_pipeline.assets.specs import preview, rows, table_spec
from c360_pipeline.core.lake import RECONCILIATION_FINDINGS, RECONCILIATIONS
from c360_pipeline.resources import ControlResource, GraphResource, LakeResource
from c360_pipeline.stores.archive import Archive
from c360_pipeline.stores.reconcile import Reconciled, entity_name, keep, reconcile

GROUP = "reconcile"
UPSTREAM = ("journey_graph", "mapped_relationships", "event_graph", "product_graph")


@dg.multi_asset(
    name="reconciliation",
    specs=[
        table_spec(RECONCILIATIONS.name, RECONCILIATIONS, GROUP, deps=UPSTREAM),
        table_spec(RECONCILIATION_FINDINGS.name, RECONCILIATION_FINDINGS, GROUP, deps=UPSTREAM),
    ],
    check_specs=[
        dg.AssetCheckSpec(
            "graph_equals_archive",
            asset=RECONCILIATIONS.name,
            blocking=True,
            description="Every node and relationship of the graph is the one that the archive asks for.",
        ),
        dg.AssetCheckSpec(
            "every_difference_is_named",
            asset=RECONCILIATION_FINDINGS.name,
            description="Where digests differ, findings say which nodes and relationships.",
        ),
    ],
)
def reconciliation_assets(
    context: dg.AssetExecutionContext, control: ControlResource, lake: LakeResource, graph: GraphResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Compare both sides, keep the result of this run, and fail on drift."""
    tables = lake.open()
    with graph.open() as neo4j:
        results = reconcile(Archive(tables, control.open().read()), neo4j)
    buckets, findings = keep(tables, results, context.run.run_id)
    by_kind = buckets.group_by("tenant_id", "entity", maintain_order=True).agg(pl.col("expected", "found").sum())
    differing = [result for result in results if not result.comparison.is_equal]
    yield dg.MaterializeResult(
        asset_key=RECONCILIATIONS.name,
        metadata=rows(buckets.height, both_sides=preview(by_kind, 200), days=differences_by_day(buckets)),
    )
    yield dg.MaterializeResult(
        asset_key=RECONCILIATION_FINDINGS.name, metadata=rows(findings.height, findings=preview(findings))
    )
    unnamed = named_kinds(result for result in differing if result.comparison.findings.is_empty())
    yield dg.AssetCheckResult(
        asset_key=RECONCILIATION_FINDINGS.name,
        check_name="every_difference_is_named",
        passed=unnamed.is_empty(),
        metadata={"unnamed": preview(unnamed)},
    )
    yield dg.AssetCheckResult(
        asset_key=RECONCILIATIONS.name,
        check_name="graph_equals_archive",
        passed=not differing,
        metadata={
            "compared_rows": int(buckets["expected"].sum()),
            "differing": preview(named_kinds(differing)),
            "what_to_do": "c360 reconcile --repair brings the graph back to its archive.",
        },
    )


def named_kinds(results: Iterable[Reconciled]) -> pl.DataFrame:
    """tenant_id, entity, and how many rows differ."""
    found = [(r.tenant_id, entity_name(r.kind), r.comparison.findings.height) for r in results]
    return pl.DataFrame(found, schema={"tenant_id": pl.String, "entity": pl.String, "rows": pl.Int64}, orient="row")
