"""Stitching: which events belong to one journey, and what the journey is called.

Journeys are the connected components of the graph of events and keys, within a tenant. A journey keeps its id for
life: when journeys meet, the oldest survives, the others become its aliases.

Sources: "Apache AGE Journey Stitching" (oldest journey wins by created_at); docs/adr/0004.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from c360_pipeline.core.lake import JOURNEY_ALIASES, JOURNEY_MERGES, JOURNEYS

JOURNEY_NAMESPACE = uuid.UUID("5a0c7f0e-6a3b-5c0e-9f0a-3c360c360c36")


@dataclass(frozen=True)
class Known:
    """What earlier runs decided: rows of the tables of the same names."""

    journeys: pl.DataFrame
    event_journey: pl.DataFrame
    journey_keys: pl.DataFrame
    aliases: pl.DataFrame
    merges: pl.DataFrame


Stitched = Known
"""The same tables after a run."""


def stitch(events: pl.DataFrame, event_keys: pl.DataFrame, known: Known, now: datetime) -> Stitched:
    """Assign every event to its journey.

    Args:
        events: tenant_id, event_id, ts of every event in the archive.
        event_keys: tenant_id, event_id, key_type, key_hash, as `keys.extract_keys` returns them.
        known: the tables as the last run left them.
        now: written to `merged_at` of new merges, UTC.

    Returns:
        The tables as they are now. The same events in any order or split give the same partition; ids change
        only by a logged merge.
    """
    events = events.select("tenant_id", "event_id", "ts").sort("tenant_id", "ts", "event_id")
    labelled = events.with_columns(component=components(events, event_keys))
    named = _name_components(labelled, known.journeys)
    event_journey = labelled.join(named.select("component", "journey_id"), on="component")
    keys = event_keys.join(event_journey, on=["tenant_id", "event_id"])
    journey_keys = keys.select("tenant_id", "key_type", "key_hash", "journey_id").unique()
    merged = _merged_journeys(labelled, named, known.journeys)
    return Stitched(
        journeys=_summarise(named, event_journey, journey_keys),
        event_journey=event_journey.select("tenant_id", "event_id", "journey_id"),
        journey_keys=journey_keys,
        aliases=_extend_aliases(known.aliases, merged),
        merges=_extend_merges(known, merged, keys, now),
    )


def components(events: pl.DataFrame, event_keys: pl.DataFrame) -> pl.Series:
    """The connected component of each event, as a number; cost is linear in events and keys."""
    numbered = events.select("tenant_id", "event_id").with_row_index("event")
    pairs = event_keys.join(numbered, on=["tenant_id", "event_id"], maintain_order="left")
    identity = pl.struct("tenant_id", "key_type", "key_hash")
    key = pairs.select(identity.rank("dense").cast(pl.Int64) - 1).to_series().to_numpy()
    size = events.height + (int(key.max()) + 1 if len(key) else 0)
    edges = coo_array((np.ones(len(key), np.int8), (pairs["event"].to_numpy(), key + events.height)), (size, size))
    _, labels = connected_components(edges, directed=False)
    return pl.Series("component", labels[: events.height].astype(np.int64))


def journey_id(tenant_id: str, founding_event_id: str) -> str:
    """uuid5 of tenant and founding event: the same in every run and on every machine."""
    return str(uuid.uuid5(JOURNEY_NAMESPACE, f"{len(tenant_id)}:{tenant_id}{founding_event_id}"))


def _name_components(labelled: pl.DataFrame, journeys: pl.DataFrame) -> pl.DataFrame:
    """One row per component: tenant_id, component, journey_id, created_at, founding_event_id.

    The oldest journey whose founding event lies in the component gives its name, ties by founding event id;
    a component without one is founded by its first event.
    """
    survivors = (
        _with_component(labelled, journeys)
        .sort("created_at", "founding_event_id")
        .unique("component", keep="first", maintain_order=True)
        .select("tenant_id", "component", "journey_id", "created_at", "founding_event_id")
    )
    founded = (
        labelled.join(survivors, on="component", how="anti")
        .unique("component", keep="first", maintain_order=True)
        .select("tenant_id", "component", created_at="ts", founding_event_id="event_id")
    )
    ids = [journey_id(*pair) for pair in founded.select("tenant_id", "founding_event_id").iter_rows()]
    founded = founded.with_columns(journey_id=pl.Series(ids, dtype=pl.String))
    return pl.concat([survivors, founded.select(survivors.columns)])


def _with_component(labelled: pl.DataFrame, journeys: pl.DataFrame) -> pl.DataFrame:
    founders = labelled.select("tenant_id", "component", founding_event_id="event_id")
    return journeys.join(founders, on=["tenant_id", "founding_event_id"])


def _merged_journeys(labelled: pl.DataFrame, named: pl.DataFrame, journeys: pl.DataFrame) -> pl.DataFrame:
    """Journeys that lost their name in this run: tenant_id, loser, survivor."""
    now_named = named.select("component", survivor="journey_id")
    return (
        _with_component(labelled, journeys)
        .join(now_named, on="component")
        .filter(pl.col("journey_id") != pl.col("survivor"))
        .select("tenant_id", "survivor", loser="journey_id")
    )


def _summarise(named: pl.DataFrame, event_journey: pl.DataFrame, journey_keys: pl.DataFrame) -> pl.DataFrame:
    spans = event_journey.group_by("tenant_id", "journey_id").agg(
        first_event_ts=pl.col("ts").min(), last_event_ts=pl.col("ts").max(), event_count=pl.len().cast(pl.Int64)
    )
    sizes = journey_keys.group_by("tenant_id", "journey_id").agg(key_count=pl.len().cast(pl.Int64))
    return (
        named.drop("component")
        .join(spans, on=["tenant_id", "journey_id"])
        .join(sizes, on=["tenant_id", "journey_id"], how="left")
        .with_columns(pl.col("key_count").fill_null(0))
        .select(list(JOURNEYS.columns))
        .sort(JOURNEYS.key)
    )


def _extend_aliases(aliases: pl.DataFrame, merged: pl.DataFrame) -> pl.DataFrame:
    """Add the losers, and point aliases of a loser at the survivor, so that every alias resolves in one step."""
    targets = merged.select("tenant_id", merged_into="loser", survivor="survivor")
    repointed = aliases.join(targets, on=["tenant_id", "merged_into"], how="left").select(
        "tenant_id", "journey_id", merged_into=pl.coalesce("survivor", "merged_into")
    )
    added = merged.select("tenant_id", journey_id="loser", merged_into="survivor")
    return pl.concat([repointed, added]).unique(JOURNEY_ALIASES.key, keep="last").sort(JOURNEY_ALIASES.key)


def _extend_merges(known: Known, merged: pl.DataFrame, keys: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """One row per journey that was active and lost its name, with the new event that tied it to others.

    Of several new events on its keys, one that reaches keys of two journeys is the tie; the first by time of those.
    """
    if merged.is_empty():
        return known.merges
    new_keys = keys.join(known.event_journey, on=["tenant_id", "event_id"], how="anti")
    reached = new_keys.join(known.journey_keys, on=["tenant_id", "key_type", "key_hash"], suffix="_known")
    ties = reached.group_by("tenant_id", "event_id").agg(journeys=pl.col("journey_id_known").n_unique())
    via = (
        known.journey_keys.join(merged, left_on=["tenant_id", "journey_id"], right_on=["tenant_id", "loser"])
        .select("tenant_id", "key_type", "key_hash", loser="journey_id")
        .join(new_keys, on=["tenant_id", "key_type", "key_hash"])
        .join(ties, on=["tenant_id", "event_id"])
        .sort("journeys", "ts", "event_id", "key_type", descending=[True, False, False, False])
        .unique(["tenant_id", "loser"], keep="first", maintain_order=True)
        .select("tenant_id", "loser", via_event_id="event_id", via_key_type="key_type")
    )
    rows = merged.join(via, on=["tenant_id", "loser"], how="left").with_columns(
        merge_id=pl.concat_str("survivor", pl.lit(">"), "loser"), merged_at=pl.lit(now).cast(pl.Datetime("us", "UTC"))
    )
    added = rows.select(list(JOURNEY_MERGES.columns)).join(known.merges, on=["tenant_id", "merge_id"], how="anti")
    return pl.concat([known.merges, added]).sort(JOURNEY_MERGES.key)
