"""Features: communities of users, computed by GDS, kept in the lake and written to the users."""

import dagster as dg
import polars as pl

from c360_pipeline.assets.partitions import TENANTS, named_partitions, note_partitions
from c360_pipeline.assets.reconcile import reconciliation_assets
from c360_pipeline.assets.specs import NEO4J_WRITES, OWNERS, asset_check, column_schema, preview, rows
from c360_pipeline.core import graph as model
from c360_pipeline.core.features import canonical_communities, interaction_weights, number_members
from c360_pipeline.core.lake import USER_COMMUNITIES
from c360_pipeline.resources import GdsResource, GraphResource, LakeResource

NIGHTLY_FEATURES = (
    dg.AutomationCondition.on_cron("0 2 * * *") & dg.AutomationCondition.all_deps_blocking_checks_passed()
).with_label("once a night, when the graph was proved to equal its archive")


@dg.asset(
    deps=list(reconciliation_assets.keys),
    description=USER_COMMUNITIES.description,
    owners=OWNERS,
    group_name="features",
    kinds={"neo4j", "deltalake"},
    metadata={"dagster/column_schema": column_schema(USER_COMMUNITIES), "lake_table": USER_COMMUNITIES.name},
    partitions_def=TENANTS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    automation_condition=NIGHTLY_FEATURES,
    pool=NEO4J_WRITES,
)
def user_communities(
    context: dg.AssetExecutionContext, lake: LakeResource, graph: GraphResource, gds: GdsResource
) -> dg.MaterializeResult[None]:
    """Project users and products, run Louvain per tenant, keep and write what changed."""
    tables, algorithms, named = lake.open(), gds.open(), named_partitions(context)
    with graph.open() as neo4j:
        parts, tenants = [USER_COMMUNITIES.empty()], neo4j.tenants() if named is None else named
        for tenant in tenants:
            weights = interaction_weights(neo4j.read(model.VIEWED, tenant), neo4j.read(model.PURCHASED, tenant))
            if weights.height:
                members, edges = number_members(weights)
                labels = algorithms.louvain(f"c360_communities_{context.run.run_id}_{len(parts)}", members, edges)
                parts.append(canonical_communities(tenant, members, labels))
        communities = pl.concat(parts)
        changes = tables.replace(USER_COMMUNITIES, communities, tenants=named)
        neo4j.update(model.USER_COMMUNITY, model.user_communities(communities))
    context.instance.add_dynamic_partitions(str(TENANTS.name), tenants)
    members_of = dict(communities.group_by("tenant_id").len().iter_rows())
    note_partitions(context, "user_communities", {tenant: rows(members_of.get(tenant, 0)) for tenant in tenants})
    sizes = communities.unique(["tenant_id", "community"]).sort("tenant_id", "community")
    return dg.MaterializeResult(
        metadata=rows(communities.height, changed_rows=changes.count, sizes=preview(sizes.drop("user_id"), 50))
    )


@asset_check(asset=user_communities, description="Every user with a view or purchase has one community.")
def every_active_user_has_a_community(graph: GraphResource) -> dg.AssetCheckResult:
    """Look for users that the algorithm left out."""
    with graph.open() as neo4j:
        left_out = neo4j.active_users_without_community()
    return dg.AssetCheckResult(passed=left_out == 0, metadata={"left_out": left_out})
