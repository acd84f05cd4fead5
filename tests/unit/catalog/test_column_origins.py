"""What derived columns are made of, as the UI shows it."""

import dagster as dg
import pytest

from c360_pipeline.assets.specs import ASSET_OF, lineage
from c360_pipeline.core.catalog.feature_tables import ACCOUNT_VALUES, FEATURES
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import CATALOG, EVENTS, TABLES
from c360_pipeline.definitions import defs
from c360_pipeline.stages.stitching.tables import PUBLISHED


@pytest.mark.parametrize("table", [*PUBLISHED, *FEATURES], ids=lambda table: table.name)
def test_every_derived_table_says_where_its_columns_come_from(table: Table) -> None:
    found = lineage(table)
    if table is ACCOUNT_VALUES:
        assert found == {}
        return
    told = found["dagster/column_lineage"].deps_by_column
    assert "tenant_id" in told
    assets = defs.resolve_all_asset_keys()
    for column, deps in told.items():
        assert column in table.columns
        assert {dep.asset_key for dep in deps} <= set(assets)


def test_origins_are_columns_that_there_are() -> None:
    made_of = {origin for table in TABLES.values() for origins in table.origins.values() for origin in origins}
    assert made_of <= {(table.name, column) for table in (EVENTS, CATALOG) for column in table.columns}
    assert {dg.AssetKey(name) for name in ASSET_OF.values()} <= set(defs.resolve_all_asset_keys())
    trending = next(table for table in TABLES.values() if table.name == "features/trending_products")
    assert trending.origins["category"] == ((CATALOG.name, "category"),)
