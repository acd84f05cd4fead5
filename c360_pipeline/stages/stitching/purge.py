"""Events leave the log of stitching for good, with what only they said."""

import polars as pl

from c360_pipeline.core.catalog.tables import JOURNEY_LOG, JOURNEY_MERGES, JOURNEYS
from c360_pipeline.core.stitching.log import (
    EVENT,
)
from c360_pipeline.core.stitching.unique import key_name
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.stitching.commit import JourneyLog
from c360_pipeline.stores.delta.lake import Lake

PURGED_AT_ONCE = 5_000
"""Events that one statement purges."""
EVENT_COLUMNS = ["tenant_id", "event_id", "ts"]


def purge(lake: Lake, log: JourneyLog, events: pl.DataFrame) -> int:
    """Take events that are gone out of the log, with the keys that only they had; returns how many rows went.

    The tables of journeys must have taken up the log before. Data files of earlier versions are removed by the table's
    maintenance, once they are older than it keeps them.

    Args:
        lake: holds the tables.
        log: of stitching.
        events: tenant_id, event_id.

    Raises:
        ConfigError: one of them is still there.
    """
    _, index = log.refresh()
    if index.known_events(events)["fingerprint"].is_not_null().any():
        raise ConfigError("Events that are still there can't be purged: take them out of the archive and stitch.")
    gone = 0
    for (tenant,), of_tenant in events.partition_by("tenant_id", as_dict=True).items():
        for some in of_tenant.iter_slices(PURGED_AT_ONCE):
            gone += _purge(lake, log, str(tenant), some)
    return gone


def _purge(lake: Lake, log: JourneyLog, tenant: str, events: pl.DataFrame) -> int:
    rows = log.rows([tenant])
    theirs = rows.join(events.lazy(), on=EVENT_COLUMNS[:2], how="semi")
    keys = theirs.select("tenant_id", "key_type", "key_hash").drop_nulls().unique()
    others = rows.filter(pl.col("kind") == EVENT).join(events.lazy(), on=EVENT_COLUMNS[:2], how="anti")
    lonely = keys.join(others.select("tenant_id", "key_hash"), on=["tenant_id", "key_hash"], how="anti").collect()
    ids = events["event_id"].to_list()
    # The tables take up what the log says again, not what it forgets.
    lake.commits.delete_rows(JOURNEY_MERGES, [tenant], {"via_event_id": ids}, blank={})
    lake.commits.delete_rows(JOURNEYS, [tenant], {}, blank={"founding_event_id": ids})
    return lake.commits.delete_rows(
        JOURNEY_LOG, [tenant],
        {"event_id": ids, "key_hash": lonely["key_hash"].to_list()}, blank={"founding_event_id": ids},
        unlisted={"unique_keys": lonely.select(key_name()).to_series().to_list()},
    )  # fmt: skip
