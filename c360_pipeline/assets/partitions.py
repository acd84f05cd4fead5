"""Partitions of assets, and the run tags that name them."""

import warnings
from collections.abc import Iterable

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

# One run over many partitions is what the schedule is for; Dagster calls the parameter a beta on every import.
warnings.filterwarnings("ignore", "Parameter `backfill_policy`", dg.BetaWarning)

SILO_TABLES = dg.DynamicPartitionsDefinition(name="silo_table")
"""One partition per active row of `source_tables`, by its name `database.schema.table`; a sensor keeps them in step."""


def range_tags(keys: Iterable[str]) -> dict[str, str]:
    """Tags of one run over all partitions from the first to the last of these, which are in the order of Dagster."""
    keys = list(keys)
    if not keys:
        return {}
    return {ASSET_PARTITION_RANGE_START_TAG: keys[0], ASSET_PARTITION_RANGE_END_TAG: keys[-1]}


def keep_silo_partitions(instance: dg.DagsterInstance, names: Iterable[str]) -> list[str]:
    """Make the partitions of silo tables those of the control database; returns them in the order of Dagster."""
    wanted = list(dict.fromkeys(names))
    known = list(instance.get_dynamic_partitions(str(SILO_TABLES.name)))
    for name in known:
        if name not in wanted:
            instance.delete_dynamic_partition(str(SILO_TABLES.name), name)
    instance.add_dynamic_partitions(str(SILO_TABLES.name), [name for name in wanted if name not in known])
    return list(instance.get_dynamic_partitions(str(SILO_TABLES.name)))
