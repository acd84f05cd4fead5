"""Trending products of the graph, as the API asks for them, are those of the table that is made of the archive."""

from datetime import timedelta

import polars as pl
import pytest
from event_world import TENANTS, World

from c360_pipeline.core.catalog.tables import CATALOG, EVENTS
from c360_pipeline.core.features.trends import WINDOWS, trending
from c360_pipeline.reads.recommend import Recommender


@pytest.mark.leaves_world
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_the_graph_and_the_archive_name_the_same_products(world: World, window: timedelta) -> None:
    products = world.graph.query(
        "MATCH (p:Product) RETURN p.tenant_id AS tenant_id, p.id AS id, p.category AS category"
    )
    known = pl.DataFrame(products, schema=dict.fromkeys(("tenant_id", "id", "category"), pl.String))
    table = trending(world.lake.scan(EVENTS), known).filter(pl.col("window_hours") == window.total_seconds() // 3600)
    assert world.lake.count(CATALOG) > 0
    for tenant in TENANTS:
        as_of, found = Recommender(world.graph, tenant).trending(window, None, 20)
        rows = table.filter(pl.col("tenant_id") == tenant).sort("rank").head(20)
        assert [(p["product_id"], p["viewers"], p["buyers"], p["score"]) for p in found] == rows.select(
            "product_id", "viewers", "buyers", "score"
        ).rows()
        assert rows["as_of"].unique().to_list() == [as_of]
