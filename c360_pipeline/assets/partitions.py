"""Partitions of assets, and the run tags that name them.

A run that names partitions is about these: their files are reread, these tables are loaded. A run that names none
takes whatever is new, and says itself of which partitions that was (docs/adr/0032).
"""

import warnings
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from c360_pipeline.settings import first_landing_date

# One run over many partitions is what the schedule is for; Dagster calls the parameter a beta on every import.
warnings.filterwarnings("ignore", "Parameter `backfill_policy`", dg.BetaWarning)

SILO_TABLES = dg.DynamicPartitionsDefinition(name="silo_table")
"""One partition per active row of `source_tables`, by its name `database.schema.table`; a sensor keeps them in step."""

TENANTS = dg.DynamicPartitionsDefinition(name="tenant")
"""One partition per tenant that has events; a sensor keeps them in step."""
LANDING_DATES = dg.DailyPartitionsDefinition(start_date=first_landing_date(), end_offset=1, timezone="UTC")
"""One partition per landing date, today's among them."""

EVENT_SOURCES = dg.DynamicPartitionsDefinition(name="event_source")
"""One partition per active row of `event_sources`; landing and its sensor keep them in step."""
SOURCE_DAYS = dg.MultiPartitionsDefinition({"source": EVENT_SOURCES, "landing_date": LANDING_DATES})
"""One partition per event source and landing date."""


def source_day_key(source: str, day: date) -> dg.MultiPartitionKey:
    """The partition of a source's day."""
    return dg.MultiPartitionKey({"source": source, "landing_date": day.isoformat()})


def source_day_of(key: str) -> tuple[str, date]:
    """The source and the day of a partition."""
    named = SOURCE_DAYS.get_partition_key_from_str(key).keys_by_dimension
    return named["source"], date.fromisoformat(named["landing_date"])


def named_partitions(context: dg.AssetExecutionContext) -> list[str] | None:
    """The partitions that a run is about; None when it takes whatever is new."""
    is_about_some = context.has_partition_key or context.has_partition_key_range
    return list(context.partition_keys) if is_about_some else None


def named_dates(context: dg.AssetExecutionContext) -> set[date] | None:
    """The same as dates."""
    names = named_partitions(context)
    return None if names is None else {date.fromisoformat(name) for name in names}


def note_partitions(context: dg.AssetExecutionContext, asset: str, metadata: Mapping[str, Mapping[str, Any]]) -> None:
    """Say what became of each partition; where the run names none, this is what marks them as materialised.

    Args:
        context: of the run.
        asset: which.
        metadata: by partition. Those that the calendar does not have are left out.
    """
    named = named_partitions(context)
    if named is None:
        definition = context.assets_def.specs_by_key[dg.AssetKey(asset)].partitions_def
        log_partitions(context, asset, definition, metadata)
        return
    for name, said in metadata.items():
        if name in named:
            context.add_asset_metadata(dict(said), asset_key=asset, partition_key=name)


def log_partitions(
    context: dg.AssetExecutionContext,
    asset: str,
    definition: dg.PartitionsDefinition[str] | None,
    metadata: Mapping[str, Mapping[str, Any]],
) -> None:
    """Mark partitions as materialised, of this asset or another.

    Args:
        context: of the run.
        asset: which.
        definition: its partitions.
        metadata: by partition. Those that the calendar does not have are left out.
    """
    for name, said in metadata.items():
        if _is_in(definition, name):
            context.log_event(dg.AssetMaterialization(asset, metadata=dict(said), partition=name))


def _is_in(definition: dg.PartitionsDefinition[str] | None, name: str) -> bool:
    """Whether the calendar has a partition; tables, tenants and sources come and go."""
    if definition is SOURCE_DAYS:
        name = source_day_of(name)[1].isoformat()
    return definition not in (SOURCE_DAYS, LANDING_DATES) or LANDING_DATES.has_partition_key(name)


def range_tags(keys: Iterable[str]) -> dict[str, str]:
    """Tags of one run over all partitions from the first to the last of these, which are in the order of Dagster."""
    keys = list(keys)
    if not keys:
        return {}
    return {ASSET_PARTITION_RANGE_START_TAG: keys[0], ASSET_PARTITION_RANGE_END_TAG: keys[-1]}


def keep_partitions(
    instance: dg.DagsterInstance, partitions: dg.DynamicPartitionsDefinition, names: Iterable[str]
) -> list[str]:
    """Make the partitions these; returns them in the order of Dagster, which is that of their coming."""
    wanted = list(dict.fromkeys(names))
    known = list(instance.get_dynamic_partitions(str(partitions.name)))
    for name in known:
        if name not in wanted:
            instance.delete_dynamic_partition(str(partitions.name), name)
    instance.add_dynamic_partitions(str(partitions.name), [name for name in wanted if name not in known])
    return list(instance.get_dynamic_partitions(str(partitions.name)))
