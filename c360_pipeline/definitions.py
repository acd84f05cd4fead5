"""Table of contents for Dagster: assets, checks, resources, automation."""

import warnings

import dagster as dg
import structlog

from c360_pipeline import automation, resources
from c360_pipeline.assets import (
    audiences,
    customers,
    features,
    landing,
    paths,
    recommended,
    silos,
    sources,
    stitching,
    visitors,
)
from c360_pipeline.assets import maintenance as lake
from c360_pipeline.assets import projection as graph
from c360_pipeline.assets import reconciliation as reconcile
from c360_pipeline.assets.metadata_links import with_links
from c360_pipeline.logs import configure_logging
from c360_pipeline.settings import logs_are_json

if not structlog.is_configured():  # a command has set up its own
    configure_logging(as_json=logs_are_json())
# Links from assets to their code; Dagster calls them a beta on every import.
warnings.filterwarnings("ignore", "(Class `.*CodeReference|Function `with_source_code)", dg.BetaWarning)
STAGES = [
    landing,
    sources,
    silos,
    visitors,
    graph,
    stitching,
    reconcile,
    audiences,
    features,
    paths,
    customers,
    recommended,
    lake,
]

defs = dg.Definitions(
    assets=dg.with_source_code_references(
        [
            asset.map_asset_specs(lambda spec: with_links(automation.with_freshness(spec)))
            for asset in dg.load_assets_from_modules(STAGES)
            if isinstance(asset, dg.AssetsDefinition)
        ]
    ),
    asset_checks=dg.load_asset_checks_from_modules(STAGES),
    jobs=[automation.landed_files, automation.nightly_rebuild, automation.table_maintenance, reconcile.repair_graph],
    schedules=[automation.nightly, automation.nightly_maintenance],
    sensors=[
        automation.new_landing_files,
        automation.control_rows,
        automation.tenants,
        automation.follow_ups,
        automation.failed_runs,
        automation.found_drift,
    ],
    resources={
        "landing": resources.LandingResource(),
        "lake": resources.LakeResource(),
        "control": resources.ControlResource(),
        "silos": resources.SilosResource(),
        "graph": resources.GraphResource(),
        "metrics": resources.MetricsResource(),
        "stream": resources.StreamResource(),
        "exclusive_lake": resources.ExclusiveLakeResource(),
        "notifier": resources.NotifierResource(),
    },
    loggers={"console": dg.json_console_logger if logs_are_json() else dg.colored_console_logger},
    # Steps are columnar and use all cores by themselves; a process per step would import everything again, 3 s each.
    executor=dg.in_process_executor,
)
