"""Paths of customers: funnels that lose sessions, what comes before a ticket, and checks of odd sessions."""

from collections.abc import Iterable

import dagster as dg
import polars as pl
from pydantic import Field

from c360_pipeline.assets.features import (
    FeatureEvents,
    feature,
    of_each_tenant,
    wrong_rows,
)
from c360_pipeline.assets.specs import asset_check, preview
from c360_pipeline.core.catalog.feature_tables import DROP_OFFS, PATH_ANOMALIES, SUPPORT_INSIGHTS, USUAL_STEPS
from c360_pipeline.core.features import paths
from c360_pipeline.reads.accounts import read_tickets
from c360_pipeline.resources import ControlResource, GraphResource, LakeResource
from c360_pipeline.stages.visitors.counted import EventsAt


@asset_check(
    asset="usual_steps", description="Steps are among those from where they begin; sessions of a tenant's past differ."
)
def usual_steps_are_counts(lake: LakeResource) -> dg.AssetCheckResult:
    """A check that passes when no row has another value."""
    is_count = (pl.col("steps") > 0) & (pl.col("steps") <= pl.col("starts")) & (pl.col("actions") > 0)
    return wrong_rows(lake, USUAL_STEPS, ~(is_count & (pl.col("usual_surprise") >= 0) & (pl.col("spread") > 0)))


@asset_check(
    asset="path_anomalies", description="Probabilities lie in (0, 1); sessions are three deviations above the usual."
)
def anomalies_are_beyond_the_usual(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for rows that no definition gives."""
    wrong = ~pl.col("probability").is_between(0, 1, closed="none") | (pl.col("deviations") < paths.LEAST_DEVIATIONS)
    return wrong_rows(lake, PATH_ANOMALIES, wrong)


class FunnelConfig(dg.Config):
    """A funnel: its name, and the actions that a session takes in order."""

    name: str = "purchase"
    steps: list[str] = Field(list(paths.PURCHASE_FUNNEL), min_length=2)


@feature(DROP_OFFS)
def drop_offs(
    context: dg.AssetExecutionContext, config: FunnelConfig, control: ControlResource, lake: LakeResource
) -> dg.MaterializeResult[None]:
    """Count the sessions that reach each step of the funnel, this week and the four weeks before."""
    tables = lake.open()
    used = FeatureEvents.of_table(control, EventsAt(tables), DROP_OFFS)

    def of_tenant(tenant: str) -> Iterable[pl.DataFrame]:
        events = used.steps(tenant)
        yield paths.drop_offs(events, config.steps, config.name)

    return of_each_tenant(context, tables, DROP_OFFS, of_tenant)


@asset_check(asset="drop_offs", description="No step is continued by more sessions than reached it.")
def funnels_narrow(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for rows that no definition gives."""
    wrong = (pl.col("continued") > pl.col("sessions")) | ~pl.col("drop_off_rate").is_between(0, 1)
    return wrong_rows(lake, DROP_OFFS, wrong)


@asset_check(
    asset="drop_offs",
    description="No step of a funnel lost more sessions this week than before by more than chance explains.",
)
def funnels_hold(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for steps at which more sessions leave than usual."""
    broken = lake.open().scan(DROP_OFFS).filter(paths.IS_BROKEN).collect()
    named = ", ".join(
        f"{row['tenant_id']}: {row['action']} to {row['next_action']}, {row['previous_rate']:.0%} before, "
        f"{row['drop_off_rate']:.0%} now"
        for row in broken.head(5).to_dicts()
    )
    return dg.AssetCheckResult(
        passed=broken.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        description=f"More sessions leave than usual: {named}." if named else "",
        metadata={"broken": preview(broken)},
    )


@feature(SUPPORT_INSIGHTS, kinds={"neo4j"})
def support_insights(
    context: dg.AssetExecutionContext, control: ControlResource, lake: LakeResource, graph: GraphResource
) -> dg.MaterializeResult[None]:
    """Compare what users did in the 30 minutes before a ticket or a call for support with other sessions."""
    tables = lake.open()
    used = FeatureEvents.of_table(control, EventsAt(tables), SUPPORT_INSIGHTS)
    with graph.open() as neo4j:

        def of_tenant(tenant: str) -> Iterable[pl.DataFrame]:
            events = used.steps(tenant)
            yield paths.support_insights(events, paths.calls_for_support(events, read_tickets(neo4j.run, tenant)))

        return of_each_tenant(context, tables, SUPPORT_INSIGHTS, of_tenant)


@asset_check(
    asset="support_insights", description="Shares lie in [0, 1], and each path is more frequent before tickets."
)
def insights_are_more_frequent_before_tickets(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for rows that no definition gives."""
    shares = [~pl.col(name).is_between(0, 1) for name in ("share_before_tickets", "share_elsewhere")]
    wrong = pl.any_horizontal(*shares, pl.col("lift_at_least") <= paths.LEAST_LIFT)
    return wrong_rows(lake, SUPPORT_INSIGHTS, wrong)
