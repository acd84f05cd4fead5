"""Reconciliation: proof that the graph equals its archive."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg
import polars as pl

from c360_pipeline.assets.specs import preview, rows, table_spec
from c360_pipeline.core.lake import RECONCILIATION_FINDINGS, RECONCILIATIONS
from c360_pipeline.resources import ControlResource, GraphResource, LakeResource
from c360_pipeline.stores.reconcile import Archive, Reconciled, entity_name, reconcile

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
    summary, findings = summary_rows(results, context.run.run_id), finding_rows(results, context.run.run_id)
    tables.insert_new(RECONCILIATIONS, summary)
    tables.insert_new(RECONCILIATION_FINDINGS, findings)
    differing = summary.filter(pl.col("expected_digest") != pl.col("found_digest"))
    shown = summary.select("tenant_id", "entity", "expected", "found")
    yield dg.MaterializeResult(
        asset_key=RECONCILIATIONS.name, metadata=rows(summary.height, both_sides=preview(shown, 200))
    )
    yield dg.MaterializeResult(
        asset_key=RECONCILIATION_FINDINGS.name, metadata=rows(findings.height, findings=preview(findings))
    )
    unnamed = differing.join(findings, left_on=["tenant_id", "entity"], right_on=["tenant_id", "label"], how="anti")
    yield dg.AssetCheckResult(
        asset_key=RECONCILIATION_FINDINGS.name,
        check_name="every_difference_is_named",
        passed=unnamed.is_empty(),
        metadata={"unnamed": preview(unnamed)},
    )
    yield dg.AssetCheckResult(
        asset_key=RECONCILIATIONS.name,
        check_name="graph_equals_archive",
        passed=differing.is_empty(),
        metadata={
            "compared_rows": int(summary["expected"].sum()),
            "differing": preview(differing),
            "what_to_do": "c360 reconcile --repair brings the graph back to its archive.",
        },
    )


def summary_rows(results: list[Reconciled], run_id: str) -> pl.DataFrame:
    """Rows of `RECONCILIATIONS`."""
    now = datetime.now(UTC)
    records = [
        (
            run_id, r.tenant_id, now.date(), entity_name(r.kind), r.comparison.expected_count,
            r.comparison.found_count, r.comparison.expected_digest, r.comparison.found_digest, now,
        )
        for r in results
    ]  # fmt: skip
    return pl.DataFrame(records, schema=RECONCILIATIONS.empty().schema, orient="row")


def finding_rows(results: list[Reconciled], run_id: str) -> pl.DataFrame:
    """Rows of `RECONCILIATION_FINDINGS`."""
    parts = [
        r.comparison.findings.select(
            run_id=pl.lit(run_id),
            tenant_id=pl.lit(r.tenant_id),
            kind="kind",
            label=pl.lit(entity_name(r.kind)),
            key="key",
            difference="difference",
            repaired=pl.lit(value=False),
        )
        for r in results
        if r.comparison.findings.height
    ]
    return pl.concat([RECONCILIATION_FINDINGS.empty(), *parts])
