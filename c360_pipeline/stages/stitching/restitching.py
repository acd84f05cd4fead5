"""Journeys taken apart, and their events stitched again together with what came."""

from dataclasses import replace

import numpy as np
import polars as pl

from c360_pipeline.core.stitching.batch import KNOWN_JOURNEY, Known, Stitched, prepare
from c360_pipeline.core.stitching.journey_ids import id_words
from c360_pipeline.core.stitching.keys import KeyPolicy
from c360_pipeline.core.stitching.log import (
    EVENT,
    KEY,
    Gone,
    aliases,
    last_event_rows,
)
from c360_pipeline.core.stitching.stitch import stitch
from c360_pipeline.stages.stitching.commit import JourneyLog
from c360_pipeline.stages.stitching.index import JourneyIndex
from c360_pipeline.stages.stitching.report import Change, report_of

EVENT_COLUMNS = ["tenant_id", "event_id", "ts"]


class Restitching:
    """Stitches events of journeys again.

    Args:
        log: of stitching.
    """

    def __init__(self, log: JourneyLog) -> None:
        self._log = log

    def restitched(
        self,
        index: JourneyIndex,
        rows: pl.DataFrame,
        keys: pl.DataFrame,
        out: pl.DataFrame,
        split_up: pl.DataFrame,
        policy: KeyPolicy,
        cause: str,
    ) -> Change:
        """Stitch events together with those of journeys that are taken apart.

        Args:
            index: as it is now.
            rows: new events.
            keys: theirs.
            out: tenant_id, event_id of events that are taken out, or come with other keys.
            split_up: journeys that are taken apart.
            policy: what keys may do.
            cause: why.
        """
        facts, fact_keys, former = self._facts(split_up, out)
        events = pl.concat([rows.with_columns(was=pl.lit(None, pl.String)), facts])
        moved = fact_keys.with_columns((pl.col("row") + rows.height).cast(pl.UInt32))
        all_keys = pl.concat([keys.select(moved.columns), moved])
        batch = prepare(events, all_keys, policy)
        known = with_former(index.known(batch), split_up, index.journeys(*id_words(former["journey_id"])), former)
        stitched = stitch(batch, known, policy, are_taken=index.are_taken)
        unsaid = self._keys_of(split_up, former).join(
            stitched.key_journey, on=["tenant_id", "key_type", "key_hash"], how="anti"
        )
        gone_keys = unsaid.filter(index.are_held_by(unsaid, split_up))
        stitched, gone_journeys = without_emptied(known, stitched)
        gone = Gone(out, gone_keys, gone_journeys)
        report = replace(
            report_of(stitched, known), events=rows.height, reread=facts.height,
            removed=out.join(rows, on=EVENT_COLUMNS[:2], how="anti").height,
        )  # fmt: skip
        return Change(stitched, gone, report, batch, cause)

    def _members(self, split_up: pl.DataFrame) -> tuple[pl.LazyFrame, pl.DataFrame]:
        """The log of the tenants of some journeys; and the ids that lead to these: tenant_id, journey_id, was."""
        rows = self._log.rows(split_up["tenant_id"].unique().to_list())
        merged = aliases(rows).drop_nulls("merged_into")
        own = split_up.select("tenant_id", "journey_id", was="journey_id")
        former = merged.join(split_up, left_on=["tenant_id", "merged_into"], right_on=["tenant_id", "journey_id"],
                             how="semi")  # fmt: skip
        return rows, pl.concat([own, former.select("tenant_id", "journey_id", was="merged_into")])

    def _facts(self, split_up: pl.DataFrame, out: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """The events of journeys with their keys, less those that are taken out, and the ids that these absorbed.

        Returns:
            tenant_id, event_id, ts, was; row, key_type, key_hash; and tenant_id, journey_id, merged_into.
        """
        rows, members = self._members(split_up)
        said = rows.filter(pl.col("kind") == EVENT)
        touched = said.join(members.lazy(), on=["tenant_id", "journey_id"], how="semi").select("tenant_id", "event_id")
        last = last_event_rows(rows.join(touched.unique(), on=["tenant_id", "event_id"], how="semi"))
        found = (
            last.join(members.lazy(), on=["tenant_id", "journey_id"])
            .join(out.lazy(), on=["tenant_id", "event_id"], how="anti")
            .select("tenant_id", "event_id", "ts", "was", "key_type", "key_hash")
            .collect(engine="streaming")
        )
        events = found.select("tenant_id", "event_id", "ts", "was").unique(["tenant_id", "event_id"])
        numbered = events.select("tenant_id", "event_id").with_row_index("row")
        keys = (
            found.drop_nulls("key_type")
            .join(numbered, on=["tenant_id", "event_id"])
            .select("row", "key_type", pl.col("key_hash").cast(pl.UInt128))
        )
        former = members.filter(pl.col("journey_id") != pl.col("was"))
        return events, keys, former.select("tenant_id", "journey_id", merged_into="was")

    def _keys_of(self, split_up: pl.DataFrame, former: pl.DataFrame) -> pl.DataFrame:
        """tenant_id, key_type, key_hash of the keys that the log ever gave to some journeys."""
        ids = pl.concat([split_up.select("tenant_id", "journey_id"), former.select("tenant_id", "journey_id")])
        rows = self._log.rows(split_up["tenant_id"].unique().to_list()).filter(
            pl.col("kind").is_in([EVENT, KEY]) & pl.col("key_type").is_not_null()
        )
        found = rows.join(ids.lazy(), on=["tenant_id", "journey_id"], how="semi")
        keys = found.select("tenant_id", "key_type", "key_hash").unique().collect(engine="streaming")
        return keys.with_columns(pl.col("key_hash").cast(pl.UInt128))


def with_former(known: Known, split_up: pl.DataFrame, former: pl.DataFrame, leads: pl.DataFrame) -> Known:
    """What is known, when some journeys are taken apart: they and all that they absorbed are to be restitched."""
    closed = pl.concat([split_up, former.select(split_up.columns)]).join(
        leads, on=["tenant_id", "journey_id"], how="left", maintain_order="left"
    )
    closed = closed.with_columns(is_open=pl.lit(value=False), was_active=pl.col("merged_into").is_null())
    open_ = known.journeys.join(split_up, on="journey_id", how="anti", maintain_order="left")
    names = list(KNOWN_JOURNEY)
    journeys = pl.concat([open_.select(names), closed.select(pl.col(n).cast(t) for n, t in KNOWN_JOURNEY.items())])
    journeys = journeys.sort("created_at", "founding_event_id")
    place = dict(zip(journeys["journey_id"], range(journeys.height), strict=True))
    numbers = np.array([*(place[name] for name in known.journeys["journey_id"]), -1], np.int64)
    return replace(known, journeys=journeys, key_journey=numbers[known.key_journey])


def without_emptied(known: Known, stitched: Stitched) -> tuple[Stitched, pl.DataFrame]:
    """What was decided, and tenant_id, journey_id of journeys that were taken apart and of which nothing is left.

    An id that led to such a journey leads nowhere from now on, and its journey has no event either.
    """
    name = ["tenant_id", "journey_id"]
    apart = known.journeys.filter(~pl.col("is_open")).select(*name, "was_active", "merged_into")
    led = stitched.aliases.drop_nulls("merged_into")
    empty = (
        apart.filter("was_active")
        .select(name)
        .join(stitched.journeys, on="journey_id", how="anti")
        .join(led, on="journey_id", how="anti")
    )
    leads = empty.select("tenant_id", merged_into="journey_id")
    freed = (
        apart.filter(~pl.col("was_active"))
        .join(leads, on=["tenant_id", "merged_into"], how="semi")
        .join(stitched.aliases, on="journey_id", how="anti")
        .select(*name, merged_into=pl.lit(None, pl.String))
    )
    decided = replace(stitched, aliases=pl.concat([stitched.aliases, freed]))
    return decided, pl.concat([empty, freed.select(name)])
