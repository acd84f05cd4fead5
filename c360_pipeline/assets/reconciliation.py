"""Reconciliation: proof that the graph equals its archive."""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import polars as pl

from c360_pipeline.assets.plots import differences_by_day
from c360_pipeline.assets.specs import NEO4J_WRITES, asset_check, check_spec, preview, rows, table_spec
from c360_pipeline.core.catalog.tables import GRAPH_PROOFS, RECONCILIATION_FINDINGS, RECONCILIATIONS
from c360_pipeline.errors import ConflictError, InvariantError
from c360_pipeline.resources import ControlResource, ExclusiveLakeResource, GraphResource, LakeResource, StreamResource
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.proofs import Proof, everything_proved_at
from c360_pipeline.stages.reconciliation.prove import EVERYTHING_WITHIN, prove, summary
from c360_pipeline.stages.reconciliation.reconcile import Reconciled, reconcile
from c360_pipeline.stages.reconciliation.results import drift, publish
from c360_pipeline.stores.delta.lake import Lake

GROUP = "reconcile"
NIGHTLY = "nightly_rebuild"
AT_NIGHT = timedelta(hours=12)
"""The nightly run compares everything, so that runs of the day need not."""
OVERDUE = EVERYTHING_WITHIN + timedelta(hours=2)
STREAM_HOURS = 25.0
"""Messages that the nightly comparison of the real-time path reads: those of a day, and of the hour between two."""
STREAM_LANDS_WITHIN = timedelta(hours=1)
UPSTREAM = ("journey_graph", "mapped_relationships", "event_graph", "product_graph", "audience_members")


@dg.multi_asset(
    name="reconciliation",
    specs=[
        table_spec(RECONCILIATIONS.name, RECONCILIATIONS, GROUP, deps=UPSTREAM),
        table_spec(RECONCILIATION_FINDINGS.name, RECONCILIATION_FINDINGS, GROUP, deps=UPSTREAM),
        table_spec(GRAPH_PROOFS.name, GRAPH_PROOFS, GROUP, deps=UPSTREAM),
    ],
    check_specs=[
        check_spec(
            "graph_equals_archive",
            asset=RECONCILIATIONS.name,
            blocking=True,
            description="Every node and relationship of the graph is the one that the archive asks for.",
        ),
        check_spec(
            "every_difference_is_named",
            asset=RECONCILIATION_FINDINGS.name,
            description="Where digests differ, findings say which nodes and relationships.",
        ),
        check_spec(
            "everything_is_compared_daily",
            asset=GRAPH_PROOFS.name,
            description="Every node and relationship was compared with the archive, and was equal, within a day.",
        ),
    ],
)
def reconciliation_assets(
    context: dg.AssetExecutionContext, control: ControlResource, lake: LakeResource, graph: GraphResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Compare what changed, or everything where that was not done for a day; keep the result, and fail on drift."""
    tables, rules = lake.open(), control.open()
    rules.identifiers.require_no_rotation()
    with graph.open() as neo4j:
        # This run is one of those at work.
        beside = rules.locks.runs_at_work() > 1
        proved = prove(
            Archive(tables, rules.read()),
            neo4j,
            Proof.newest(tables),
            beside_others=beside,
            within=AT_NIGHT if context.run.job_name == NIGHTLY else EVERYTHING_WITHIN,
            observe=_logged(context),
        )
    buckets, findings = publish(tables, proved.results, context.run.run_id)
    by_kind = buckets.group_by("tenant_id", "entity", maintain_order=True).agg(pl.col("expected", "found").sum())
    differing = proved.differing
    if not differing:
        proved.proof.keep(tables, context.run.run_id)
    yield dg.MaterializeResult(
        asset_key=RECONCILIATIONS.name,
        metadata=rows(buckets.height, both_sides=preview(by_kind, 200), days=differences_by_day(buckets)),
    )
    # What differs is what people said or did: it stays in the table.
    shown = preview(findings.drop("difference"))
    yield dg.MaterializeResult(asset_key=RECONCILIATION_FINDINGS.name, metadata=rows(findings.height, findings=shown))
    yield dg.MaterializeResult(asset_key=GRAPH_PROOFS.name, metadata=rows(int(not differing), **summary(proved)))
    yield _compared_daily(tables)
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
            **summary(proved),
            "differing": preview(named_kinds(differing)),
            "what_to_do": "c360 reconcile --repair brings the graph back to its archive.",
        },
    )


def _logged(context: dg.AssetExecutionContext) -> Callable[[str, str], None]:
    """Say of each kind once that it is compared."""
    said: set[str] = set()

    def observe(kind: str, tenant: str) -> None:
        if kind not in said:
            context.log.info("comparing %s", kind)
        said.add(kind)

    return observe


def _compared_daily(lake: Lake) -> dg.AssetCheckResult:
    at = everything_proved_at(lake)
    return dg.AssetCheckResult(
        asset_key=GRAPH_PROOFS.name,
        check_name="everything_is_compared_daily",
        passed=at is not None and datetime.now(UTC) - at < OVERDUE,
        metadata={
            "everything_was_equal_at": f"{at:%Y-%m-%d %H:%M} UTC" if at else "never",
            "what_to_do": "Repair what differs with c360 reconcile --repair, then run again: the run compares all.",
        },
    )


@asset_check(
    asset=RECONCILIATIONS.name,
    description="What was sent to Kafka within a day is in the archive, the graph and Cassandra, event by event.",
)
def stream_agrees(stream: StreamResource) -> dg.AssetCheckResult:
    """Compare the real-time path with its stores; says so where there is none."""
    found = stream.compare(STREAM_HOURS, STREAM_LANDS_WITHIN)
    if found is None:
        return dg.AssetCheckResult(passed=True, metadata={"real_time_path": "none is set up"})
    places = [
        (p.name, p.events, p.waiting, *(drift.events for drift in p.differing.values()), p.digest) for p in found.places
    ]
    columns = ["store", "events", "waiting_to_land", "missing", "altered", "extra", "digest"]
    events = pl.concat(
        drift.first.select("tenant_id", "event_id", store=pl.lit(p.name), drift=pl.lit(kind))
        for p in found.places
        for kind, drift in p.differing.items()
    )
    return dg.AssetCheckResult(
        passed=found.is_equal,
        metadata={
            **found.counts, "hours": STREAM_HOURS, "places": preview(pl.DataFrame(places, columns, orient="row")),
            "drift": preview(events),
            "what_to_do": "c360 stream verify --repair writes what the graph and Cassandra lack.",
        },
    )  # fmt: skip


def named_kinds(results: Iterable[Reconciled]) -> pl.DataFrame:
    """tenant_id, entity, and how many rows differ."""
    found = [(r.tenant_id, r.kind.name, r.comparison.findings.height) for r in results]
    return pl.DataFrame(found, schema={"tenant_id": pl.String, "entity": pl.String, "rows": pl.Int64}, orient="row")


class RepairConfig(dg.Config):
    """What was approved: the run whose findings a person has looked at; `force` passes the removal limit."""

    approved_run: str
    force: bool = False


@dg.op(pool=NEO4J_WRITES, description="Bring the graph back to its archive, as the findings of a run say.")
def repair_findings(
    context: dg.OpExecutionContext,
    config: RepairConfig,
    control: ControlResource,
    exclusive_lake: ExclusiveLakeResource,
    graph: GraphResource,
) -> None:
    """Compare again, repair what differs, compare once more.

    Raises:
        ConflictError: the findings that were approved are not the newest.
        InvariantError: the removal limit holds, or the graph still differs.
    """
    tables = exclusive_lake.open()
    newest = newest_reconciliation(tables)
    if newest != config.approved_run:
        raise ConflictError(
            f"Run {config.approved_run} was approved, but the newest comparison is {newest}. Look at its findings "
            "and approve that one."
        )
    archive = Archive(tables, control.open().read())
    with graph.open() as neo4j:
        repaired = reconcile(archive, neo4j, repair=True, force=config.force)
        _, findings = publish(tables, repaired, context.run_id)
        left = drift(reconcile(archive, neo4j))
    context.log.info("repaired %s differences", f"{findings.height:,}")
    context.add_output_metadata({"repaired": preview(findings), "rows": findings.height})
    if left:
        raise InvariantError(f"The graph still differs from its archive in {len(left):,} rows, such as {left[0]}.")


@dg.job(
    description="Approve a repair: launched by a person, with the run whose findings are to be repaired. "
    "Nothing else writes to the stores meanwhile.",
)
def repair_graph() -> None:
    """One step."""
    repair_findings()


def newest_reconciliation(lake: Lake) -> str | None:
    """The run that compared last."""
    runs = lake.scan(RECONCILIATIONS).select("run_id", "reconciled_at")
    newest = runs.top_k(1, by="reconciled_at").collect(engine="streaming")
    return str(newest["run_id"][0]) if newest.height else None
