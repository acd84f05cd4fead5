"""Stitching: which events belong to one journey, and what the journey is called.

A batch of events is folded, in the order of time, into the journeys that are there: an event joins the journeys that
hold its keys, and these become one. Without guards that gives the connected components of events and keys, whatever the
order; guards (unique types of keys, limits of size) refuse single links. The cost is that of the batch and of the
journeys that it touches.

Sources: "Apache AGE Journey Stitching" (oldest journey wins by created_at); docs/adr/0004 for names, 0023 for guards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from c360_pipeline.core.kernels import journeys as kernel
from c360_pipeline.core.stitching.batch import (
    _INSTANT,
    JOURNEY_STATE,
    Batch,
    Flags,
    Ints,
    Known,
    Stitched,
    _new_pairs,
    blocked_keys,
    quarantines,
)
from c360_pipeline.core.stitching.journey_ids import journey_ids
from c360_pipeline.core.stitching.keys import KeyPolicy
from c360_pipeline.core.stitching.statuses import BLOCKED, EXCESS, QUARANTINED, STATUSES
from c360_pipeline.core.stitching.unique import UniqueKeys

AreTaken = Callable[[Sequence[str]], Flags]


def stitch(
    batch: Batch,
    known: Known,
    policy: KeyPolicy,
    quarantine: tuple[Ints, Flags] | None = None,
    are_taken: AreTaken = lambda ids: np.zeros(len(ids), np.bool_),
) -> Stitched:
    """Decide the journey of each event of a batch.

    Args:
        batch: as `prepare` makes it.
        known: about its keys.
        policy: what keys may do.
        quarantine: what `quarantines` said of these, where the caller knows.
        are_taken: of ids whether another journey has or had them; one that is founded gets an id of its own.
    """
    partners, is_quarantined = quarantine or quarantines(batch, known, policy)
    is_blocked = blocked_keys(batch, policy)
    fold = _fold(batch, known, policy, is_quarantined | is_blocked)
    named = _named(batch, known, fold, are_taken)
    status = _statuses(batch, fold, is_quarantined, is_blocked)
    number = named.of_group[fold.event_group]
    ids = named.journeys["journey_id"]
    events = batch.events.select("tenant_id", "event_id", "ts", "was", journey_id=ids.gather(number))
    # The place -1, of a key without a group, is the last of these.
    key_number = np.append(named.of_group, -1)[fold.key_group]
    final = _final_numbers(batch, known, fold, named)
    now_quarantined = batch.keys.filter(pl.Series(is_quarantined & ~known.is_quarantined))
    return Stitched(
        events=events,
        event_keys=_event_keys(batch, events, status),
        journeys=_states(batch, known, fold, named),
        key_journey=batch.keys.select(
            "tenant_id", "key_type", "key_hash", "is_weak",
            journey_id=_gathered(ids, key_number, key_number >= 0),
            partners=pl.Series(partners), is_quarantined=pl.Series(is_quarantined),
        ),
        aliases=_aliases(known, named, final),
        merges=_merges(batch, known, fold, named, final),
        splits=_splits(batch, known, named, number, final),
        conflicts=_conflicts(batch, fold, named, number, status),
        quarantines=now_quarantined.select(
            "tenant_id", "key_type", "key_hash",
            partners=pl.Series(partners[is_quarantined & ~known.is_quarantined], dtype=pl.Int64),
        ),
        new_pairs=_new_pairs(batch, known, is_blocked),
        ids=ids,
        number_of_event=number,
        number_of_key=key_number,
    )  # fmt: skip


@dataclass(frozen=True)
class _Fold:
    """The arrays after the fold; groups are numbered as `kernel.fold_events` numbers them.

    Attributes:
        open: numbers of the journeys that were there as groups.
        event_group: of each event.
        key_group: of each key, -1 for none.
        is_linked: for each place of `Batch.key`, whether its key took part.
        outcome: for each place, what became of it.
        refuser: for each place, the group that refused it, -1 for none.
        parent: of each group the one that it is in.
        oldest: of each group the number of its oldest journey, -1 for none.
        founder: of each group the event that founded it.
        met_event: of each journey the event where it met an older one, -1 for none.
        met_key: of each journey the key by which, -1 for none.
        group_keys: number of linking keys of each group.
        unique: keys that are of one person only.
    """

    open: Ints
    event_group: Ints
    key_group: Ints
    is_linked: Flags
    outcome: npt.NDArray[np.int8]
    refuser: Ints
    parent: Ints
    oldest: Ints
    founder: Ints
    met_event: Ints
    met_key: Ints
    group_keys: Ints
    unique: UniqueKeys

    @cached_property
    def roots(self) -> Ints:
        """Groups that have an event of the batch."""
        is_root = np.zeros(len(self.parent), np.bool_)
        is_root[self.event_group] = True
        return np.flatnonzero(is_root)


def _fold(batch: Batch, known: Known, policy: KeyPolicy, is_out: Flags) -> _Fold:
    events = batch.events.height
    is_linked = ~is_out[batch.key]
    event_of_place = np.repeat(np.arange(events), np.diff(batch.starts))
    counts = np.bincount(event_of_place[is_linked], minlength=events)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    key = batch.key[is_linked]
    open_ = np.flatnonzero(known.journeys["is_open"].to_numpy()).astype(np.int64)
    group_of = np.full(known.journeys.height + 1, -1, np.int64)
    group_of[open_] = np.arange(len(open_))
    # The place -1, of a key without a journey, is the last of `group_of`.
    key_group = np.where(is_out, -1, group_of[known.key_journey])
    room = np.zeros(events, np.int64)
    group_keys = np.concatenate([known.journeys["key_count"].to_numpy()[open_], room]).astype(np.int64)
    unique = UniqueKeys.of(batch, known.journeys, is_out, policy)
    group_unique = unique.of_groups(open_, len(group_keys), len(policy.unique_types))
    event_group, outcome, refuser, parent, oldest, founder, met_event, met_place = kernel.fold_events(
        starts, key, batch.keys["is_weak"].to_numpy()[key], key_group,
        unique.slot, unique.same, open_, group_keys, group_unique,
        _formers(batch, known), _caps(batch, policy), known.journeys.height,
    )  # fmt: skip
    met_key = np.where(met_place >= 0, key[met_place], -1) if len(key) else met_place
    return _Fold(
        open_, event_group, key_group, is_linked, outcome, refuser, parent, oldest, founder, met_event, met_key,
        group_keys, unique,
    )  # fmt: skip


def _caps(batch: Batch, policy: KeyPolicy) -> Ints:
    """Keys that a merge at each event may make, -1 for any number."""
    limits = {tenant: policy.limit_of(tenant).hard_max_keys for tenant in batch.events["tenant_id"].unique()}
    if not any(limits.values()):
        return np.full(batch.events.height, -1, np.int64)
    caps = {tenant: -1 if limit is None else limit for tenant, limit in limits.items()}
    return batch.events["tenant_id"].replace_strict(caps, return_dtype=pl.Int64).to_numpy()


def _founders(batch: Batch, known: Known) -> tuple[Ints, Ints]:
    """The places of events by which journeys without a group are found again, and the numbers of these journeys.

    Where the founding event of an active journey is gone, the earliest of its events stands for it.
    """
    closed = known.journeys.with_row_index("number").filter(~pl.col("is_open"))
    if closed.is_empty():
        return np.empty(0, np.int64), np.empty(0, np.int64)
    places = batch.events.with_row_index("place")
    founder = places.rename({"event_id": "founding_event_id"})
    found = closed.join(founder, on=["tenant_id", "founding_event_id"]).select("place", "number")
    orphans = closed.filter("was_active").join(founder, on=["tenant_id", "founding_event_id"], how="anti")
    firsts = places.drop_nulls("was").unique("was", keep="first", maintain_order=True)
    heirs = orphans.join(firsts, left_on=["tenant_id", "journey_id"], right_on=["tenant_id", "was"])
    both = pl.concat([found, heirs.select("place", "number")]).cast(pl.Int64)
    return both["place"].to_numpy(), both["number"].to_numpy()


def _formers(batch: Batch, known: Known) -> Ints:
    """For each event the oldest journey that is found again by it, -1 for none."""
    former = np.full(batch.events.height, known.journeys.height, np.int64)
    np.minimum.at(former, *_founders(batch, known))
    return np.where(former < known.journeys.height, former, -1)


@dataclass(frozen=True)
class _Named:
    """Journeys of a batch by number: those that were known, then those that are new.

    Attributes:
        of_group: number of the journey of each group; of groups that went into another, its.
        journeys: tenant_id, journey_id, created_at, founding_event_id.
    """

    of_group: Ints
    journeys: pl.DataFrame


def _named(batch: Batch, known: Known, fold: _Fold, are_taken: AreTaken) -> _Named:
    """The oldest journey of a group gives its name; a group without one is founded by its first event."""
    roots = fold.roots
    new = roots[fold.oldest[roots] < 0]
    of_group = fold.oldest.copy()
    of_group[new] = known.journeys.height + np.arange(len(new))
    founders = batch.events[fold.founder[new]].select(
        "tenant_id", created_at=pl.col("ts"), founding_event_id="event_id"
    )
    ids = _free_ids(founders["tenant_id"].to_list(), founders["founding_event_id"].to_list(), are_taken)
    columns = ["tenant_id", "journey_id", "created_at", "founding_event_id"]
    founded = founders.with_columns(journey_id=pl.Series(ids, dtype=pl.String)).select(columns)
    return _Named(of_group[fold.parent], pl.concat([known.journeys.select(columns), founded]))


def _free_ids(tenants: list[str], founders: list[str], are_taken: AreTaken) -> list[str]:
    """Ids of journeys that are founded.

    An event that was taken out and comes back may have left a journey that goes on under its name, or went into
    another: what it founds now is the next of that event.
    """
    ids = journey_ids(tenants, founders)
    taken, turn = np.flatnonzero(are_taken(ids)), 1
    while len(taken):
        turn += 1
        names = [f"{founders[n]}\x1f{turn}" for n in taken]
        for n, name in zip(taken, journey_ids([tenants[n] for n in taken], names), strict=True):
            ids[n] = name
        taken = taken[are_taken([ids[n] for n in taken])]
    return ids


def _statuses(batch: Batch, fold: _Fold, is_quarantined: Flags, is_blocked: Flags) -> pl.Series:
    """What became of the key at each place of `Batch.key`."""
    code = np.empty(len(batch.key), np.uint8)
    code[fold.is_linked] = fold.outcome
    out = batch.key[~fold.is_linked]
    code[~fold.is_linked] = np.where(is_blocked[out], STATUSES.index(BLOCKED), STATUSES.index(QUARANTINED))
    return pl.Series("status", list(STATUSES), dtype=pl.String).gather(code)


def _event_keys(batch: Batch, events: pl.DataFrame, status: pl.Series) -> pl.DataFrame:
    event = np.repeat(np.arange(batch.events.height), np.diff(batch.starts))
    rows = events[event].with_columns(
        batch.keys["key_type"].gather(batch.key), batch.keys["key_hash"].gather(batch.key), status
    )
    if batch.excess.height:
        excess = events[batch.excess["event"]].with_columns(
            batch.excess["key_type"], batch.excess["key_hash"], status=pl.lit(EXCESS)
        )
        rows = pl.concat([rows, excess.select(rows.columns)])
    return rows


def _gathered(values: pl.Series, places: Ints, is_there: Flags) -> pl.Series:
    """Values at places, null where there is none."""
    if values.is_empty():
        return pl.Series(values.name, [None] * len(places), dtype=values.dtype)
    frame = pl.DataFrame({"value": values.gather(places), "is_there": is_there})
    return frame.select(pl.when("is_there").then("value")).to_series().alias(values.name)


def _states(batch: Batch, known: Known, fold: _Fold, named: _Named) -> pl.DataFrame:
    """`JOURNEY_STATE` of the journeys that a batch touched."""
    size = named.journeys.height
    number = named.of_group[fold.event_group]
    ts = batch.events["ts"].dt.epoch("us").to_numpy()
    events = np.bincount(number, minlength=size)
    first, last = np.full(size, np.iinfo(np.int64).max), np.full(size, np.iinfo(np.int64).min)
    np.minimum.at(first, number, ts)
    np.maximum.at(last, number, ts)
    # What the journeys that were there bring along.
    before = known.journeys[fold.open]
    into = named.of_group[: len(fold.open)]
    np.add.at(events, into, before["event_count"].to_numpy())
    np.minimum.at(first, into, before["first_event_ts"].dt.epoch("us").to_numpy())
    np.maximum.at(last, into, before["last_event_ts"].dt.epoch("us").to_numpy())
    # A journey that refused a tie without an event of the batch knows of it from now on.
    roots = np.union1d(fold.roots, fold.refuser[fold.refuser >= 0])
    touched = named.of_group[roots]
    rows = named.journeys[touched].with_columns(
        first_event_ts=pl.Series(first[touched]).cast(_INSTANT), last_event_ts=pl.Series(last[touched]).cast(_INSTANT),
        event_count=pl.Series(events[touched], dtype=pl.Int64),
        key_count=pl.Series(fold.group_keys[roots], dtype=pl.Int64),
        unique_keys=fold.unique.names(batch, fold.key_group, fold.open, fold.parent, roots),
        apart_from=_apart_from(batch, before, fold, named, roots),
    )  # fmt: skip
    return rows.select(list(JOURNEY_STATE))


def _apart_from(batch: Batch, before: pl.DataFrame, fold: _Fold, named: _Named, roots: Ints) -> pl.Series:
    """Of each root the ids of journeys that unique keys keep apart from it, sorted."""
    ids, kind = named.journeys["journey_id"], pl.List(pl.String)
    place = np.flatnonzero(fold.outcome == kernel.REFUSED_UNIQUE)
    event = np.repeat(np.arange(batch.events.height), np.diff(batch.starts))[np.flatnonzero(fold.is_linked)[place]]
    one, other = named.of_group[fold.event_group[event]], named.of_group[fold.refuser[place]]
    refused = pl.DataFrame(
        {
            "journey_id": ids.gather(np.concatenate([one, other])),
            "apart_from": ids.gather(np.concatenate([other, one])),
        }
    )
    there = before.select(
        pl.Series("journey_id", ids.gather(named.of_group[: len(fold.open)]), dtype=pl.String), "apart_from"
    )
    both = pl.concat([refused, there.explode("apart_from").drop_nulls()]).unique()
    both = both.filter(pl.col("journey_id") != pl.col("apart_from"))
    by_journey = both.group_by("journey_id").agg(pl.col("apart_from").sort())
    asked = named.journeys[named.of_group[roots]].select("journey_id")
    found = asked.join(by_journey, on="journey_id", how="left", maintain_order="left")["apart_from"]
    return found.cast(kind).fill_null(pl.lit([], kind))


def _final_numbers(batch: Batch, known: Known, fold: _Fold, named: _Named) -> Ints:
    """Of each known journey the number of the one that it is in now; -1 where nothing of it was in the batch."""
    final = np.full(known.journeys.height, -1, np.int64)
    final[fold.open] = named.of_group[: len(fold.open)]
    places, numbers = _founders(batch, known)
    final[numbers] = named.of_group[fold.event_group[places]]
    return final


def _aliases(known: Known, named: _Named, final: Ints) -> pl.DataFrame:
    """Ids that lead elsewhere than before; `final` as `_final_numbers` makes it."""
    number = np.arange(len(final))
    ids = named.journeys["journey_id"]
    target = _gathered(ids, np.maximum(final, 0), (final >= 0) & (final != number))
    rows = known.journeys.select("tenant_id", "journey_id", before="merged_into").with_columns(
        merged_into=target, found=pl.Series(final >= 0)
    )
    changed = rows.filter(pl.col("found") & pl.col("before").ne_missing(pl.col("merged_into")))
    return changed.select("tenant_id", "journey_id", "merged_into")


def _merges(batch: Batch, known: Known, fold: _Fold, named: _Named, final: Ints) -> pl.DataFrame:
    """One row per journey that was active and is in another now."""
    number = np.arange(len(final))
    lost = np.flatnonzero((final >= 0) & (final != number) & known.journeys["was_active"].to_numpy())
    event, key = fold.met_event[lost], fold.met_key[lost]
    losers = known.journeys[lost]
    return losers.select(
        "tenant_id", survivor=named.journeys["journey_id"].gather(final[lost]), loser="journey_id",
        via_event_id=_gathered(batch.events["event_id"], np.maximum(event, 0), event >= 0),
        via_key_type=_gathered(batch.keys["key_type"], np.maximum(key, 0), key >= 0),
        via_key_hash=_gathered(batch.keys["key_hash"], np.maximum(key, 0), key >= 0),
        event_count="event_count", key_count="key_count",
    )  # fmt: skip


def _splits(batch: Batch, known: Known, named: _Named, number: Ints, final: Ints) -> pl.DataFrame:
    """Parts of a journey that are not where its id leads now, with the number of their events."""
    if batch.events["was"].null_count() == batch.events.height:
        return pl.DataFrame(schema=_SPLIT)
    ids = named.journeys["journey_id"]
    moved = batch.events.select("tenant_id", journey_id="was", split_off=ids.gather(number)).drop_nulls("journey_id")
    parts = moved.group_by("tenant_id", "journey_id", "split_off").agg(event_count=pl.len().cast(pl.Int64))
    leads = known.journeys.select("journey_id", leads_to=_gathered(ids, np.maximum(final, 0), final >= 0))
    off = parts.join(leads, on="journey_id", how="left").filter(pl.col("split_off").ne_missing(pl.col("leads_to")))
    return off.sort("tenant_id", "journey_id", "split_off").select(list(_SPLIT))


_SPLIT = {"tenant_id": pl.String, "journey_id": pl.String, "split_off": pl.String, "event_count": pl.Int64}


def _conflicts(batch: Batch, fold: _Fold, named: _Named, number: Ints, status: pl.Series) -> pl.DataFrame:
    """Links that a guard refused."""
    refused = np.flatnonzero(fold.refuser >= 0)
    place = np.flatnonzero(fold.is_linked)[refused]
    event = np.repeat(np.arange(batch.events.height), np.diff(batch.starts))[place]
    ids = named.journeys["journey_id"]
    keys = batch.keys[batch.key[place]]
    return pl.DataFrame(
        {
            "tenant_id": batch.events["tenant_id"].gather(event),
            "event_id": batch.events["event_id"].gather(event),
            "key_type": keys["key_type"],
            "key_hash": keys["key_hash"],
            "reason": status.gather(place),
            "journey_id": ids.gather(number[event]),
            "refused_journey_id": ids.gather(named.of_group[fold.refuser[refused]]),
        }
    )
