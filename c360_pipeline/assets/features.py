"""Features: communities of users, computed by GDS, kept in the lake and written to the users."""

import dagster as dg
import polars as pl

from c360_pipeline.assets.reconcile import reconciliation_assets
from c360_pipeline.assets.specs import OWNERS, column_schema, preview, rows
from c360_pipeline.core import graph as model
from c360_pipeline.core.features import canonical_communities, interaction_weights, number_members
from c360_pipeline.core.lake import USER_COMMUNITIES
from c360_pipeline.resources import GdsResource, GraphResource, LakeResource


@dg.asset(
    deps=list(reconciliation_assets.keys),
    description=USER_COMMUNITIES.description,
    owners=OWNERS,
    group_name="features",
    kinds={"neo4j", "deltalake"},
    metadata={"dagster/column_schema": column_schema(USER_COMMUNITIES), "lake_table": USER_COMMUNITIES.name},
)
def user_communities(
    context: dg.AssetExecutionContext, lake: LakeResource, graph: GraphResource, gds: GdsResource
) -> dg.MaterializeResult[None]:
    """Project users and products, run Louvain per tenant, keep and write what changed."""
    tables, algorithms = lake.open(), gds.open()
    with graph.open() as neo4j:
        parts = [USER_COMMUNITIES.empty()]
        for tenant in neo4j.tenants():
            weights = interaction_weights(neo4j.read(model.VIEWED, tenant), neo4j.read(model.PURCHASED, tenant))
            if weights.height:
                members, edges = number_members(weights)
                labels = algorithms.louvain(f"c360_communities_{context.run.run_id}_{len(parts)}", members, edges)
                parts.append(canonical_communities(tenant, members, labels))
        communities = pl.concat(parts)
        changes = tables.replace(USER_COMMUNITIES, communities)
        neo4j.update(model.USER_COMMUNITY, model.user_communities(communities))
    sizes = communities.unique(["tenant_id", "community"]).sort("tenant_id", "community")
    return dg.MaterializeResult(
        metadata=rows(communities.height, changed_rows=changes.count, sizes=preview(sizes.drop("user_id"), 50))
    )


@dg.asset_check(asset=user_communities, description="Every user with a view or purchase has one community.")
def every_active_user_has_a_community(graph: GraphResource) -> dg.AssetCheckResult:
    """Look for users that the algorithm left out."""
    with graph.open() as neo4j:
        left_out = neo4j.active_users_without_community()
    return dg.AssetCheckResult(passed=left_out == 0, metadata={"left_out": left_out})
