"""What a batch of events is before it is folded, and what is known of its keys."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from c360_pipeline.core.arrays.row_hashes import Words, words
from c360_pipeline.core.kernels import journeys as kernel
from c360_pipeline.core.stitching.keys import KeyPolicy

_INSTANT = pl.Datetime("us", "UTC")
JOURNEY_STATE = pl.Schema(
    {
        "tenant_id": pl.String(),
        "journey_id": pl.String(),
        "created_at": _INSTANT,
        "founding_event_id": pl.String(),
        "first_event_ts": _INSTANT,
        "last_event_ts": _INSTANT,
        "event_count": pl.Int64(),
        "key_count": pl.Int64(),
        "unique_keys": pl.List(pl.String()),
        "apart_from": pl.List(pl.String()),
    }
)
"""A journey: its name for life, and what it holds; unique keys as `type:hash`, and journeys that these keep apart."""

MAX_KEYS_PER_EVENT = 64
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
KNOWN_JOURNEY = pl.Schema(
    {**JOURNEY_STATE, "is_open": pl.Boolean(), "was_active": pl.Boolean(), "merged_into": pl.String()}
)
"""Journeys that a batch may touch. Those that are not open are to be restitched from their events."""
_NO_UNKNOWN = pl.DataFrame(schema={"tenant_id": pl.String, "key_type": pl.String, "len": pl.UInt32})


@dataclass(frozen=True)
class Batch:
    """Events and their keys, numbered and in order.

    Attributes:
        events: tenant_id, event_id, ts, was (id of the journey that it is read again from, or null), by time.
        keys: one row per different key: tenant_id, key_type, key_hash, is_weak, unique_slot, max_partners.
        high: upper 64 bits of each key.
        low: lower 64 bits of each key.
        starts: place of each event's first key, and the number of places.
        key: number of the key at each place.
        excess: events with more keys than an event may have; these are left out of `key`.
        unknown_types: key types that no rule of the tenant names, with the number of their keys.
    """

    events: pl.DataFrame
    keys: pl.DataFrame
    high: Words
    low: Words
    starts: Ints
    key: Ints
    excess: pl.DataFrame
    unknown_types: pl.DataFrame

    @cached_property
    def pairs(self) -> tuple[Ints, Ints, Words]:
        """The different pairs of keys that meet in an event: their numbers, and 64 bits that stand for the pair."""
        left, right = kernel.different_pairs(*kernel.partner_pairs(self.starts, self.key))
        return left, right, kernel.pair_hashes(left, right, self.high, self.low)


@dataclass(frozen=True)
class Known:
    """What earlier batches decided about the keys of a batch.

    Attributes:
        journeys: `KNOWN_JOURNEY` rows, from the oldest to the youngest.
        key_journey: for each key of the batch the place of its journey in `journeys`, -1 for none.
        is_quarantined: for each key.
        partners: for each key, how many others it has met.
        is_new_pair: for each pair of `Batch.pairs`; None when it is not to be counted.
    """

    journeys: pl.DataFrame
    key_journey: Ints
    is_quarantined: Flags
    partners: Ints
    is_new_pair: Flags | None

    @classmethod
    def nothing(cls, batch: Batch) -> "Known":
        """Before the first batch."""
        size = batch.keys.height
        none = np.full(size, -1, np.int64)
        journeys = pl.DataFrame(schema=KNOWN_JOURNEY)
        return cls(journeys, none, np.zeros(size, np.bool_), np.zeros(size, np.int64), None)


@dataclass(frozen=True)
class Stitched:
    """What a batch decided.

    Attributes:
        events: tenant_id, event_id, ts, was (journey that it was read again from), journey_id of each event.
        event_keys: the same with key_type, key_hash, status: one row per event and key.
        journeys: `JOURNEY_STATE` of every journey that the batch touched and that lives.
        key_journey: tenant_id, key_type, key_hash, journey_id (null: held by none), is_weak, partners, is_quarantined:
            every key of the batch.
        aliases: tenant_id, journey_id, merged_into (null: a journey again): ids that resolve otherwise than before.
        merges: tenant_id, survivor, loser, via_event_id, via_key_type, via_key_hash, event_count, key_count of the
            loser.
        splits: tenant_id, journey_id, split_off, event_count.
        conflicts: tenant_id, event_id, key_type, key_hash, reason, journey_id, refused_journey_id.
        quarantines: tenant_id, key_type, key_hash, partners.
        new_pairs: `Batch.pairs` hashes that were met for the first time.
        ids: ids of journeys by number.
        number_of_event: number of the journey of each event.
        number_of_key: number of the journey of each key, -1 for none.
    """

    events: pl.DataFrame
    event_keys: pl.DataFrame
    journeys: pl.DataFrame
    key_journey: pl.DataFrame
    aliases: pl.DataFrame
    merges: pl.DataFrame
    splits: pl.DataFrame
    conflicts: pl.DataFrame
    quarantines: pl.DataFrame
    new_pairs: Words
    ids: pl.Series
    number_of_event: Ints
    number_of_key: Ints


def prepare(events: pl.DataFrame, keys: pl.DataFrame, policy: KeyPolicy) -> Batch:
    """Number and order a batch.

    Args:
        events: tenant_id, event_id, ts, and, of events that are read again, was; unique by tenant and event id.
        keys: `keys.KEY_COLUMNS`, row being the place in `events`.
        policy: what keys may do.
    """
    ordered = events.with_row_index("row").sort("ts", "tenant_id", "event_id")
    if "was" not in ordered.columns:
        ordered = ordered.with_columns(was=pl.lit(None, pl.String))
    place = np.empty(ordered.height, np.int64)
    place[ordered["row"].to_numpy()] = np.arange(ordered.height)
    tenants = events["tenant_id"].unique().to_list()
    held = _with_policy(events, keys, policy.by_type(tenants))
    unknown = held.filter(pl.col("strength").is_null())
    if unknown.height:
        held = held.filter(pl.col("strength").is_not_null())
    high, low = words(held["key_hash"])
    event = place[held["row"].to_numpy()]
    starts, order = kernel.order_by_event(event, held["strength"].to_numpy(), high, low, ordered.height)
    excess = np.flatnonzero(np.diff(starts) > MAX_KEYS_PER_EVENT)
    left_out = pl.DataFrame(schema={"event": pl.Int64, "key_type": pl.String, "key_hash": pl.UInt128})
    if len(excess):
        is_excess = np.isin(event[order], excess)
        left_out = held[order[is_excess]].select(
            pl.Series("event", event[order[is_excess]], dtype=pl.Int64), "key_type", "key_hash"
        )
        order = order[~is_excess]
        counts = np.diff(starts)
        counts[excess] = 0
        starts = np.concatenate([[0], np.cumsum(counts)])
    numbers, first = kernel.dense_ids(high[order], low[order])
    different = held[order[first]]
    keys_seen = different.select(
        tenant_id=events["tenant_id"].gather(different["row"]),
        key_type="key_type", key_hash="key_hash", is_weak="is_weak", unique_slot="unique_slot",
        max_partners="max_partners",
    )  # fmt: skip
    reported = unknown.group_by("tenant_id", "key_type").len() if unknown.height else _NO_UNKNOWN
    return Batch(
        ordered.drop("row"), keys_seen, high[order[first]], low[order[first]], starts, numbers.astype(np.int64),
        left_out, reported,
    )  # fmt: skip


def _with_policy(events: pl.DataFrame, keys: pl.DataFrame, by_type: pl.DataFrame) -> pl.DataFrame:
    """Keys with what their type may do; null where no rule names it."""
    if by_type["tenant_id"].n_unique() == 1:
        one = by_type["tenant_id"][0]
        return keys.with_columns(tenant_id=pl.lit(one)).join(
            by_type.drop("tenant_id"), on="key_type", how="left", maintain_order="left"
        )
    tenant = events["tenant_id"].gather(keys["row"])
    return keys.with_columns(tenant).join(by_type, on=["tenant_id", "key_type"], how="left", maintain_order="left")


def quarantines(batch: Batch, known: Known, policy: KeyPolicy) -> tuple[Ints, Flags]:
    """How many partners each key has met with this batch, and which keys are in quarantine for it.

    The count is that of all different keys that a key stood beside in any event, blocked ones aside, so that the order
    of events does not matter.
    """
    is_aside = batch.keys["is_weak"].to_numpy() | blocked_keys(batch, policy)
    limit = batch.keys["max_partners"].to_numpy()
    partners = known.partners.copy()
    left, right, _ = batch.pairs if known.is_new_pair is not None else _pairs_near_limits(batch, limit)
    counts = ~(is_aside[left] | is_aside[right])
    if known.is_new_pair is not None:
        counts &= known.is_new_pair
    partners += np.bincount(left[counts], minlength=len(partners))
    partners += np.bincount(right[counts], minlength=len(partners))
    return partners, known.is_quarantined | ((limit >= 0) & (partners > limit) & ~is_aside)


def _new_pairs(batch: Batch, known: Known, is_blocked: Flags) -> Words:
    """Pairs that count from now on: those that no event before had, of keys that may link."""
    if known.is_new_pair is None:
        return np.empty(0, np.uint64)
    left, right, hashes = batch.pairs
    is_aside = batch.keys["is_weak"].to_numpy() | is_blocked
    return hashes[known.is_new_pair & ~(is_aside[left] | is_aside[right])]


def _pairs_near_limits(batch: Batch, limit: Ints) -> tuple[Ints, Ints, Words]:
    """Pairs, as long as any key has so many that a limit could be passed: with repetitions they are an upper bound."""
    sizes = np.diff(batch.starts)
    upper = np.bincount(batch.key, weights=np.repeat(sizes - 1, sizes), minlength=len(limit))
    if ((limit >= 0) & (upper > limit)).any():
        return batch.pairs
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64)


def blocked_keys(batch: Batch, policy: KeyPolicy) -> Flags:
    """For each key of a batch whether it is on the list of those that never link."""
    if not policy.blocked:
        return np.zeros(batch.keys.height, np.bool_)
    listed = pl.DataFrame(
        list(policy.blocked), schema={"tenant_id": pl.String, "key_type": pl.String, "key": pl.String}, orient="row"
    ).select("tenant_id", "key_type", key_hash=pl.col("key").cast(pl.UInt128), blocked=pl.lit(value=True))
    found = batch.keys.join(listed, on=["tenant_id", "key_type", "key_hash"], how="left", maintain_order="left")
    return found["blocked"].fill_null(value=False).to_numpy()
