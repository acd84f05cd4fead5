"""Stitching: the events of the archive become journeys with ids that stay."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import polars as pl

from c360_pipeline.assets.specs import preview, rows, table_spec
from c360_pipeline.core.keys import extract_keys
from c360_pipeline.core.lake import (
    EVENT_JOURNEY,
    EVENT_KEYS,
    EVENTS,
    JOURNEY_ALIASES,
    JOURNEY_KEYS,
    JOURNEY_MERGES,
    JOURNEYS,
    Table,
)
from c360_pipeline.core.stitching import Known, stitch
from c360_pipeline.resources import ControlResource, LakeResource
from c360_pipeline.stores.lake import Lake

GROUP = "stitching"
# The memory of stitching is `journeys`: it is written last, after the log and the aliases that say what became of
# journeys that it will no longer name. A crash in between is healed by the next run.
IN_ORDER_OF_WRITING = (EVENT_KEYS, JOURNEY_MERGES, JOURNEY_ALIASES, JOURNEYS, EVENT_JOURNEY, JOURNEY_KEYS)

CHECKS = {
    "every_event_has_one_journey": (EVENT_JOURNEY, "Each event of the archive stands in event_journey once."),
    "every_key_belongs_to_an_event": (EVENT_KEYS, "No key is of an event that the archive does not hold."),
    "journeys_count_their_events": (JOURNEYS, "The event count of a journey is the number of its events."),
    "every_key_leads_to_a_journey": (JOURNEY_KEYS, "The journey of each key is one that lives."),
    "every_loser_is_an_alias": (JOURNEY_MERGES, "Each journey that was merged away has an alias."),
}


@dg.multi_asset(
    name="stitching",
    specs=[table_spec(t.name, t, GROUP, deps=["landed_events"]) for t in IN_ORDER_OF_WRITING],
    check_specs=[
        dg.AssetCheckSpec(name, asset=table.name, blocking=True, description=description)
        for name, (table, description) in CHECKS.items()
    ],
)
def stitching_assets(
    control: ControlResource, lake: LakeResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Read, stitch, write what changed."""
    tables = lake.open()
    events = tables.read(EVENTS)
    keys = extract_keys(events, control.open().key_rules())
    stitched = stitch(events, keys, _known(tables), datetime.now(UTC))
    results = {
        EVENT_KEYS: keys,
        JOURNEY_MERGES: stitched.merges,
        JOURNEY_ALIASES: stitched.aliases,
        JOURNEYS: stitched.journeys,
        EVENT_JOURNEY: stitched.event_journey,
        JOURNEY_KEYS: stitched.journey_keys,
    }
    for table in IN_ORDER_OF_WRITING:
        changed = tables.replace(table, results[table]).count
        yield dg.MaterializeResult(asset_key=table.name, metadata=_metadata(table, results[table], changed))
    for name, wrong in wrong_rows(events, results).items():
        table, _ = CHECKS[name]
        yield dg.AssetCheckResult(
            asset_key=table.name, check_name=name, passed=wrong.is_empty(), metadata={"wrong": preview(wrong)}
        )


def wrong_rows(events: pl.DataFrame, results: dict[Table, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Rows that break what must hold, by check; all empty when all is well."""
    key = ["tenant_id", "event_id"]
    assigned = results[EVENT_JOURNEY]
    journeys, identity = results[JOURNEYS], ["tenant_id", "journey_id"]
    counted = assigned.group_by(identity).agg(found=pl.len().cast(pl.Int64))
    losers = results[JOURNEY_MERGES].select("tenant_id", journey_id="loser")
    return {
        "every_event_has_one_journey": pl.concat(
            [
                events.select(key).join(assigned, on=key, how="anti"),
                assigned.filter(pl.struct(key).is_duplicated()).select(key),
            ]
        ),
        "every_key_belongs_to_an_event": results[EVENT_KEYS].join(events, on=key, how="anti"),
        "journeys_count_their_events": journeys.join(counted, on=identity, how="left").filter(
            pl.col("event_count").ne_missing(pl.col("found"))
        ),
        "every_key_leads_to_a_journey": results[JOURNEY_KEYS].join(journeys, on=identity, how="anti"),
        "every_loser_is_an_alias": losers.join(results[JOURNEY_ALIASES], on=identity, how="anti"),
    }


def _known(lake: Lake) -> Known:
    return Known(
        journeys=lake.read(JOURNEYS),
        event_journey=lake.read(EVENT_JOURNEY),
        journey_keys=lake.read(JOURNEY_KEYS),
        aliases=lake.read(JOURNEY_ALIASES),
        merges=lake.read(JOURNEY_MERGES),
    )


def _metadata(table: Table, frame: pl.DataFrame, changed: int) -> dict[str, Any]:
    metadata = rows(frame.height, changed_rows=changed)
    if table is JOURNEYS and frame.height:
        largest = frame.sort("event_count", descending=True).select(
            "tenant_id", "journey_id", "event_count", "key_count"
        )
        metadata |= {"largest_journeys": preview(largest, limit=10)}
    return metadata


@dg.asset_check(asset=JOURNEY_ALIASES.name, description="Every id that a journey ever had leads to a journey of today.")
def every_alias_resolves(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for aliases whose target is no journey."""
    tables = lake.open()
    targets = tables.read(JOURNEYS).select("tenant_id", merged_into="journey_id")
    lost = tables.read(JOURNEY_ALIASES).join(targets, on=["tenant_id", "merged_into"], how="anti")
    return dg.AssetCheckResult(passed=lost.is_empty(), metadata={"lost": preview(lost)})
