"""Maintenance: tables keep the columns of this release, few files, and none that nobody can read; old runs go."""

from dataclasses import asdict

import dagster as dg
import polars as pl

from c360_pipeline.assets.specs import OWNERS, asset_check, described_columns, preview, rows
from c360_pipeline.core.catalog.tables import TABLES
from c360_pipeline.resources import ControlResource, LakeResource, LandingResource
from c360_pipeline.resources.run_retention import overdue, prune

MEANINGS = {
    "table": "name below lake/",
    "rows": "in the table",
    "files_before": "data files before small ones were put together",
    "files": "data files afterwards",
    "bytes": "of the data files afterwards",
    "vacuumed": "data files of older versions that were removed",
    "added_columns": "columns of this release that the table did not have",
}
RUN_MEANINGS = {
    "runs": "that are gone, with their events and compute logs",
    "thinned": "runs of which only what tells the state of assets is left",
    "kept_runs": "that there are now",
    "events": "rows of the event log that there are now",
}


@dg.asset(
    description="Every Delta table: compacted, vacuumed after its retention, with the columns of this release.",
    owners=OWNERS,
    group_name="maintenance",
    kinds={"deltalake", "s3"},
    metadata={"dagster/column_schema": described_columns(MEANINGS)},
)
def lake_tables(
    context: dg.AssetExecutionContext, landing: LandingResource, lake: LakeResource, control: ControlResource
) -> dg.MaterializeResult[None]:
    """Maintain one table after the other."""
    landing.open()  # the bucket is there from now on
    tables, reports = lake.open(), []
    for table in TABLES.values():
        reports.append(tables.maintenance.maintain(table))
        context.log.info("maintained: %s", table.name)
    rows_of_control = control.open().read()
    reports += [
        tables.maintenance.maintain_silo(path)
        for path in sorted({*map(rows_of_control.lake_table, rows_of_control.tables)})
    ]
    done = pl.DataFrame(
        [asdict(report) for report in reports if report],
        schema=dict.fromkeys(MEANINGS, pl.Int64) | {"table": pl.String},
    )
    totals = done.select(pl.col("rows", "files_before", "files", "bytes", "vacuumed").sum()).row(0, named=True)
    return dg.MaterializeResult(metadata=rows(totals.pop("rows"), **totals, tables=preview(done, limit=100)))


@dg.asset(
    description="Runs, events and compute logs of Dagster: what nobody looks for any more is removed.",
    owners=OWNERS,
    group_name="maintenance",
    kinds={"dagster", "postgres"},
    metadata={"dagster/column_schema": described_columns(RUN_MEANINGS)},
)
def dagster_runs(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    """Remove runs after their time; what tells the state of assets stays."""
    done = prune(context.instance, observe=lambda number: context.log.info("%s runs looked at", f"{number:,}"))
    return dg.MaterializeResult(metadata=rows(done.kept_runs, **asdict(done)))


@asset_check(asset=lake_tables, description="Every table has the columns of this release, with their types.")
def every_table_has_its_columns(lake: LakeResource) -> dg.AssetCheckResult:
    """Compare the tables with their declarations."""
    wrong = {name: missing for name, table in TABLES.items() if (missing := lake.open().missing_columns(table))}
    return dg.AssetCheckResult(passed=not wrong, metadata={"missing": dg.MetadataValue.json(wrong)})


@asset_check(asset=dagster_runs, description="No run is kept longer than its time, but for the state of assets.")
def old_runs_are_gone(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Count those that are still there."""
    left = overdue(context.instance)
    return dg.AssetCheckResult(passed=not left, metadata={"runs": left})
