"""Keys that are of one person only: which of them are the same person, and which journeys they keep apart.

An event that names two keys of one unique type says that they are one person (`same_as` of an alias or merge call):
nothing else brings two of them into one journey. Which ties that refuses depends on who came first. So that the answer
is one for any order, events that such keys keep apart are read again in the order of time when one comes late
(docs/adr/0023).
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from c360_pipeline.core.kernels import journeys as kernel
from c360_pipeline.core.stitching.batch import Batch, Flags, Ints, Known
from c360_pipeline.core.stitching.keys import KeyPolicy

HELD = pl.Schema({"journey": pl.Int64(), "slot": pl.Int64(), "number": pl.Int64(), "name": pl.String()})


def key_name() -> pl.Expr:
    """A key as `type:hash`."""
    return pl.concat_str("key_type", pl.lit(":"), pl.col("key_hash").cast(pl.String))


@dataclass(frozen=True)
class UniqueKeys:
    """Keys of unique types by number: those of a batch, then those that only journeys know.

    Attributes:
        slot: for each key of the batch the place of its type among the unique types, -1 for others.
        same: for each number the lowest of those that are the same person.
        held: `HELD` rows, those of journeys by their number.
    """

    slot: Ints
    same: Ints
    held: pl.DataFrame

    @classmethod
    def of(cls, batch: Batch, journeys: pl.DataFrame, is_out: Flags, policy: KeyPolicy) -> "UniqueKeys":
        """The unique keys of a batch and of journeys.

        Args:
            batch: as `prepare` makes it.
            journeys: unique_keys, is_open. Of those that are open it counts what events said of the same person.
            is_out: for each key of the batch whether it links nothing.
            policy: what keys may do.
        """
        slot = batch.keys["unique_slot"].to_numpy().astype(np.int64)
        size = batch.keys.height
        if not policy.unique_types:
            return cls(slot, np.arange(size), pl.DataFrame(schema=HELD))
        held = _held(batch, journeys, policy)
        total = size + held.filter(pl.col("number") >= size)["number"].n_unique()
        holds_several = journeys.select(pl.col("is_open") & (pl.col("unique_keys").list.len() > 1)).to_series()
        ordered = held.filter(holds_several.gather(held["journey"])).sort("journey", "slot", "number")
        beside = ordered.select(
            "number", after=pl.col("number").shift(-1).over("journey", "slot", order_by="number")
        ).drop_nulls()
        left, right = _said_to_be_one(batch, slot, is_out, policy)
        same = kernel.union_edges(
            np.concatenate([left, beside["number"].to_numpy()]), np.concatenate([right, beside["after"].to_numpy()]),
            total,
        )  # fmt: skip
        return cls(slot, same, held)

    def of_groups(self, open_: Ints, groups: int, types: int) -> Ints:
        """The unique key of each type of each group, -1 for none.

        Args:
            open_: numbers of the journeys that the first groups are.
            groups: how many there are.
            types: unique ones.
        """
        found = np.full((groups, types), -1, np.int64)
        rows = self._of_open(open_)
        found[rows["group"].to_numpy(), rows["slot"].to_numpy()] = self.same[rows["number"].to_numpy()]
        return found

    def names(self, batch: Batch, key_group: Ints, open_: Ints, parent: Ints, groups: Ints) -> pl.Series:
        """The names of the unique keys of groups, sorted.

        Args:
            batch: whose keys were folded.
            key_group: group that holds each key, -1 for none.
            open_: numbers of the journeys that the first groups are.
            parent: of each group the one that it is in.
            groups: which are asked for.
        """
        kind = pl.List(pl.String)
        is_held = (self.slot >= 0) & (key_group >= 0)
        came = batch.keys.filter(pl.Series(is_held)).select(name=key_name())
        came = came.select(pl.Series("group", key_group[is_held], dtype=pl.Int64), "name")
        rows = self._of_open(open_)
        there = rows.select(pl.Series("group", parent[rows["group"].to_numpy()], dtype=pl.Int64), "name")
        by_group = pl.concat([came, there]).unique().group_by("group").agg(pl.col("name").sort())
        asked = pl.DataFrame({"group": groups}, schema={"group": pl.Int64})
        found = asked.join(by_group, on="group", how="left", maintain_order="left")["name"]
        return found.fill_null(pl.lit([], kind)) if found.dtype == kind else found.cast(kind)

    def _of_open(self, open_: Ints) -> pl.DataFrame:
        """`HELD` rows of journeys that are groups, with the group."""
        group = pl.DataFrame({"journey": open_}, schema={"journey": pl.Int64}).with_row_index("group")
        return self.held.join(group, on="journey")


def _said_to_be_one(batch: Batch, slot: Ints, is_out: Flags, policy: KeyPolicy) -> tuple[Ints, Ints]:
    """Numbers of each two unique keys of which an event of a batch says that they are one person."""
    left, right = kernel.same_pairs(batch.starts, batch.key, np.where(is_out, -1, slot))
    if not policy.parted or not len(left):
        return left, right
    names = dict.fromkeys(("tenant_id", "key_type", "one", "two"), pl.String)
    listed = pl.DataFrame([*policy.parted, *((t, k, b, a) for t, k, a, b in policy.parted)], schema=names, orient="row")
    one, two = batch.keys[left], batch.keys[right]["key_hash"]
    pairs = one.select("tenant_id", "key_type", pl.col("key_hash").cast(pl.String).alias("one"))
    pairs = pairs.with_columns(two.cast(pl.String).alias("two")).with_row_index("place")
    kept = pairs.join(listed, on=list(names), how="anti")["place"].to_numpy()
    return left[kept], right[kept]


def _held(batch: Batch, journeys: pl.DataFrame, policy: KeyPolicy) -> pl.DataFrame:
    """`HELD` rows: keys of the batch have their numbers, others the numbers behind these."""
    slots = {name: slot for slot, name in enumerate(policy.unique_types)}
    named = journeys.select(name="unique_keys").with_row_index("journey").explode("name").drop_nulls()
    kind, digits = pl.col("name").str.replace(r":[^:]*$", ""), pl.col("name").str.extract(r"([^:]*)$")
    rows = named.select(
        pl.col("journey").cast(pl.Int64), "name", key_hash=digits.cast(pl.UInt128),
        slot=kind.replace_strict(slots, default=None, return_dtype=pl.Int64),
    ).drop_nulls("slot")  # fmt: skip
    known = batch.keys.with_row_index("number").filter(pl.col("unique_slot") >= 0).select("key_hash", "number")
    others = rows.select("key_hash").unique(maintain_order=True).join(known, on="key_hash", how="anti")
    numbers = pl.concat([known, others.with_row_index("number", batch.keys.height).select("key_hash", "number")])
    return rows.join(numbers, on="key_hash").select(pl.col(name).cast(kind) for name, kind in HELD.items())


def contested(
    batch: Batch,
    known: Known,
    around: pl.DataFrame,
    is_out: Flags,
    policy: KeyPolicy,
    conflicts: pl.DataFrame | None,
) -> pl.Series:
    """Journeys that are to be read again in the order of time, because a unique key keeps some of them apart.

    Those that a batch brings together, directly or over others, when two people are among them and an event of the
    batch is not later than all of theirs, or says that two are the same, or when one of them is taken apart anyway.

    Args:
        batch: what comes.
        known: about its keys.
        around: `JOURNEY_STATE` of the known journeys, these first and in their order, of those that are taken apart,
            and of all that these are kept apart from; and is_open, false where a journey is taken apart anyway.
        is_out: for each key of the batch whether it links nothing.
        policy: what keys may do.
        conflicts: ties that unique keys refuse where the batch is folded into what is there; None where that can't be.

    Returns:
        Ids of journeys.
    """
    size, slot = batch.keys.height, batch.keys["unique_slot"].to_numpy().astype(np.int64)
    component, is_linked = _components(batch, known, around, is_out)
    of_journey = component[size:]
    is_apart = around["apart_from"].list.len().fill_null(0).to_numpy() > 0
    if conflicts is None:
        several = _with_several_people(batch, around, is_out, policy, component)
    else:
        refused = batch.keys.with_row_index("number").join(conflicts, on=["key_type", "key_hash"], how="semi")
        several = component[refused["number"].to_numpy()]
    said, _ = _said_to_be_one(batch, slot, is_out, policy)
    event = np.repeat(np.arange(batch.events.height), np.diff(batch.starts))[is_linked]
    disputed = pl.DataFrame({"component": np.union1d(several, of_journey[is_apart])})
    first = pl.DataFrame({"component": component[batch.key[is_linked]], "event": event})
    first = first.join(disputed, on="component", how="semi").group_by("component").agg(pl.col("event").min())
    again = (
        around.select("journey_id", "is_open", "last_event_ts", component=pl.Series(of_journey))
        .join(disputed, on="component", how="semi")
        .group_by("component")
        .agg(pl.col("last_event_ts").max(), pl.col("journey_id"), is_dirty=~pl.col("is_open").all())
        # Events are in the order of time.
        .join(first.select("component", ts=batch.events["ts"].gather(first["event"])), on="component", how="left")
        .join(
            pl.DataFrame({"component": np.unique(component[said])}).with_columns(says_same=True),
            on="component", how="left",
        )
        .filter(pl.col("is_dirty") | (pl.col("ts") <= pl.col("last_event_ts")) | pl.col("says_same"))
    )  # fmt: skip
    return again["journey_id"].explode()


def _with_several_people(batch: Batch, around: pl.DataFrame, is_out: Flags, policy: KeyPolicy, component: Ints) -> Ints:
    """Components with two values of a unique type that are not the same person."""
    unique, size = UniqueKeys.of(batch, around, is_out, policy), batch.keys.height
    keys, held = np.flatnonzero((unique.slot >= 0) & ~is_out), unique.held
    people = pl.DataFrame(
        {
            "component": np.concatenate([component[keys], component[size + held["journey"].to_numpy()]]),
            "slot": np.concatenate([unique.slot[keys], held["slot"].to_numpy()]),
            "person": unique.same[np.concatenate([keys, held["number"].to_numpy()])],
        }
    )
    counts = people.group_by("component", "slot").agg(pl.col("person").n_unique())
    return counts.filter(pl.col("person") > 1)["component"].to_numpy()


def _components(batch: Batch, known: Known, around: pl.DataFrame, is_out: Flags) -> tuple[Ints, Flags]:
    """What would be one without unique keys, for each key of the batch, then for each journey; and the linking places.

    Each is the number of the first of them.
    """
    size = batch.keys.height
    is_linked = ~is_out[batch.key]
    event = np.repeat(np.arange(batch.events.height), np.diff(batch.starts))[is_linked]
    key = batch.key[is_linked]
    is_next = event[1:] == event[:-1]
    is_held = ~is_out & (known.key_journey >= 0)
    place = around.select("journey_id", number=pl.int_range(size, size + pl.len()))
    apart = around.select("apart_from", number=pl.int_range(size, size + pl.len()))
    apart = apart.filter(pl.col("apart_from").list.len() > 0).explode("apart_from")
    apart = apart.join(place, left_on="apart_from", right_on="journey_id", suffix="_of_other")
    left = (key[:-1][is_next], np.flatnonzero(is_held), apart["number"].to_numpy())
    right = (key[1:][is_next], size + known.key_journey[is_held], apart["number_of_other"].to_numpy())
    edges = (np.concatenate(side).astype(np.int64) for side in (left, right))
    return kernel.union_edges(*edges, size + around.height), is_linked
