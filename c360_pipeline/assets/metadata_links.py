"""Where to look at what an asset holds: its Delta table, its nodes, the pages that show them."""

import dagster as dg

from c360_pipeline.settings import lake_address, serving_address

NODES = {
    "product_graph": "(:Product {tenant_id: $tenant})",
    "event_graph": "(:User {tenant_id: $tenant, id: $user})-[:HAS_SESSION]->()-[:HAS_ACTION]->()",
    "journey_graph": "(:Journey {tenant_id: $tenant})<-[:PART_OF]-()<-[:HAS_KEY]-(:Event)",
    "audience_members": "(:User {tenant_id: $tenant})-[:IN_AUDIENCE]->(:Audience)",
    "silo_nodes": "(:Account {tenant_id: $tenant})-->()",
    "mapped_relationships": "(:User {tenant_id: $tenant})-[:IS_ACCOUNT]->(:Account)-->()",
}
"""By asset: the pattern that shows some of it as a picture in Neo4j Browser."""
PAGES = {
    "event_graph": "customers",
    "journey_graph": "explore",
    "user_communities": "customers",
    "daily_events": "overview",
    "audience_members": "audiences",
    "audience_deliveries": "audiences",
    "path_anomalies": "insights",
    "usual_steps": "insights",
    "drop_offs": "insights",
    "support_insights": "insights",
    "account_values": "insights",
    "customer_values": "insights",
    "customer_churn": "insights",
    "customer_models": "insights",
    "recommendation_hits": "insights",
    "landing_files": "delivery",
    "dead_letters": "delivery",
    "reconciliations": "reconciliation",
    "reconciliation_findings": "reconciliation",
    "graph_proofs": "reconciliation",
}
"""By asset: the page that shows it to people."""


def with_links(spec: dg.AssetSpec) -> dg.AssetSpec:
    """An asset that says where its rows lie, how to see its nodes, and which page shows it."""
    name, said = spec.key.path[-1], dict(spec.metadata)
    if "lake_table" in said:
        said["dagster/uri"] = f"{lake_address()}/{said['lake_table']}"
    if name in NODES:
        said["cypher"] = f"MATCH path = {NODES[name]} RETURN path LIMIT 25"
    if name in PAGES:
        said["page"] = dg.MetadataValue.url(f"{serving_address()}/app/{PAGES[name]}")
    return spec.replace_attributes(metadata=said)
