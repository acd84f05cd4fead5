"""Table of contents for Dagster: assets, checks, resources, automation."""

import dagster as dg

from c360_pipeline import automation, resources
from c360_pipeline.assets import features, graph, lake, landing, reconcile, silos, stitching

defs = dg.Definitions(
    assets=dg.load_assets_from_modules([landing, silos, graph, stitching, reconcile, features, lake]),
    asset_checks=dg.load_asset_checks_from_modules([landing, silos, graph, stitching, reconcile, features, lake]),
    jobs=[automation.everything, automation.table_care],
    schedules=[automation.nightly, automation.nightly_care],
    sensors=[automation.new_landing_files, automation.control_rows],
    resources={
        "landing": resources.LandingResource(),
        "lake": resources.LakeResource(),
        "control": resources.ControlResource(),
        "silos": resources.SilosResource(),
        "graph": resources.GraphResource(),
        "gds": resources.GdsResource(),
        "metrics": resources.MetricsResource(),
    },
    # Steps are columnar and use all cores by themselves; a process per step would import everything again, 3 s each.
    executor=dg.in_process_executor,
)
