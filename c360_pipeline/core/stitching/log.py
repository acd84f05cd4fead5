"""The log of stitching: how decisions become rows, and what rows say today.

Rows of one batch are one commit. Of several rows about one thing the last counts; a journey stands for those that were
merged into it later. The tables of journeys and the graph are made from the same reading of the rows: of all of them,
or of those after some commit.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.tables import EVENT_KEYS, JOURNEY_CONFLICTS, JOURNEY_LOG, JOURNEYS
from c360_pipeline.core.stitching.batch import Stitched
from c360_pipeline.core.stitching.statuses import LINKED

EVENT, KEY, JOURNEY, ALIAS, MERGE, SPLIT, CONFLICT, QUARANTINE, REMOVED, COMMIT = (
    "event", "key", "journey", "alias", "merge", "split", "conflict", "quarantine", "removed", "commit",
)  # fmt: skip
"""Kinds of rows."""
_SCHEMA = JOURNEY_LOG.empty().schema


@dataclass(frozen=True)
class Gone:
    """What was there before a batch, and is not any more.

    Attributes:
        events: tenant_id, event_id of events that are gone from the archive.
        keys: tenant_id, key_type, key_hash of keys that no event has any more.
        journeys: tenant_id, journey_id of journeys that have no event any more.
    """

    events: pl.DataFrame
    keys: pl.DataFrame
    journeys: pl.DataFrame

    @classmethod
    def nothing(cls) -> "Gone":
        """Where events only came."""
        tenant = {"tenant_id": pl.String}
        return cls(
            pl.DataFrame(schema={**tenant, "event_id": pl.String}),
            pl.DataFrame(schema={**tenant, "key_type": pl.String, "key_hash": pl.UInt128}),
            pl.DataFrame(schema={**tenant, "journey_id": pl.String}),
        )


def log_rows(
    stitched: Stitched,
    gone: Gone,
    seqs: Mapping[str, int],
    details: Mapping[str, Mapping[str, Any]],
    now: datetime,
    cause: str,
    *,
    all_keys: bool = False,
) -> pl.DataFrame:
    """The rows of one commit, sorted by tenant and kind.

    Args:
        stitched: what was decided.
        gone: what no event says any more.
        seqs: number of this commit for each tenant that it is of.
        details: what the commit row of each tenant says.
        now: UTC.
        cause: why journeys were split, if any was.
        all_keys: whether the partners of every key are to be noted: those that rows of events don't tell.
    """
    keyless = stitched.events.join(
        stitched.event_keys.select("tenant_id", "event_id"), on=["tenant_id", "event_id"], how="anti"
    )
    moved = stitched.key_journey.filter(
        pl.lit(all_keys) | pl.col("is_weak") | pl.col("is_quarantined") | pl.col("journey_id").is_null()
    ).with_columns(status=pl.when("is_quarantined").then(pl.lit("quarantined")).when("is_weak").then(pl.lit("weak")))
    parts = [
        (EVENT, _as_text(stitched.event_keys).rename({"was": "other_journey_id"})),
        (EVENT, keyless.rename({"was": "other_journey_id"})),
        (KEY, _as_text(moved)),
        (KEY, _as_text(gone.keys)),
        (JOURNEY, stitched.journeys),
        (JOURNEY, gone.journeys.with_columns(event_count=pl.lit(0, pl.Int64), key_count=pl.lit(0, pl.Int64))),
        (ALIAS, stitched.aliases.rename({"merged_into": "other_journey_id"})),
        (MERGE, _as_text(stitched.merges, "via_key_hash").rename(
            {"survivor": "journey_id", "loser": "other_journey_id", "via_event_id": "event_id",
             "via_key_type": "key_type", "via_key_hash": "key_hash"})),
        (SPLIT, stitched.splits.rename({"split_off": "other_journey_id"}).with_columns(detail=pl.lit(cause))),
        (CONFLICT, _as_text(stitched.conflicts).rename({"refused_journey_id": "other_journey_id", "reason": "status"})),
        (QUARANTINE, _as_text(stitched.quarantines)),
        (REMOVED, gone.events),
        (COMMIT, _commits(seqs, details)),
    ]  # fmt: skip
    rows = [
        frame.with_columns(kind=pl.lit(kind)).select(
            pl.col(name).cast(dtype) if name in frame.columns or name == "kind" else pl.lit(None, dtype).alias(name)
            for name, dtype in _SCHEMA.items()
        )
        for kind, frame in parts
        if frame.height
    ]
    seq = pl.col("tenant_id").replace_strict(dict(seqs), return_dtype=pl.Int64)
    return pl.concat(rows).with_columns(seq=seq, committed_at=pl.lit(now).cast(_SCHEMA["committed_at"]))


def remark_rows(seqs: Mapping[str, int], details: Mapping[str, Mapping[str, Any]], now: datetime) -> pl.DataFrame:
    """The rows of a commit that only says something about tenants."""
    frame = _commits(seqs, details).with_columns(
        kind=pl.lit(COMMIT), seq=pl.col("tenant_id").replace_strict(dict(seqs), return_dtype=pl.Int64),
        committed_at=pl.lit(now).cast(_SCHEMA["committed_at"]),
    )  # fmt: skip
    return frame.select(
        pl.col(name) if name in frame.columns else pl.lit(None, dtype).alias(name) for name, dtype in _SCHEMA.items()
    )


def _commits(seqs: Mapping[str, int], details: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    rows = [(tenant, json.dumps(details.get(tenant, {}), sort_keys=True)) for tenant in seqs]
    return pl.DataFrame(rows, schema={"tenant_id": pl.String, "detail": pl.String}, orient="row")


def _as_text(frame: pl.DataFrame, column: str = "key_hash") -> pl.DataFrame:
    return frame.with_columns(pl.col(column).cast(pl.String))


def latest(rows: pl.LazyFrame, identity: list[str]) -> pl.LazyFrame:
    """Of the rows about each thing those of the last commit that speaks of it."""
    newest = rows.group_by(identity).agg(newest=pl.col("seq").max())
    return rows.join(newest, on=identity).filter(pl.col("seq") == pl.col("newest")).drop("newest")


def aliases(rows: pl.LazyFrame) -> pl.DataFrame:
    """Ids that are merged or were: tenant_id, journey_id, merged_into (null where an id is a journey again).

    Every alias resolves in one step.
    """
    said = latest(rows.filter(pl.col("kind") == ALIAS), ["tenant_id", "journey_id"])
    found = said.select("tenant_id", "journey_id", merged_into="other_journey_id").collect()
    return in_one_step(found)


def in_one_step(found: pl.DataFrame) -> pl.DataFrame:
    """Aliases of aliases lead to the last."""
    while True:
        further = found.drop_nulls("merged_into").select("tenant_id", merged_into="journey_id", further="merged_into")
        stepped = found.join(further, on=["tenant_id", "merged_into"], how="left", maintain_order="left")
        if stepped["further"].null_count() == stepped.height:
            return found
        found = stepped.select("tenant_id", "journey_id", merged_into=pl.coalesce("further", "merged_into"))


def resolved(frame: pl.LazyFrame, merged: pl.DataFrame, column: str = "journey_id") -> pl.LazyFrame:
    """Rows with the journeys that their journeys are in now.

    Args:
        frame: tenant_id and the column.
        merged: as `aliases` makes them.
        column: which holds journey ids.
    """
    if merged.is_empty():
        return frame
    targets = merged.lazy().drop_nulls("merged_into").rename({"journey_id": column, "merged_into": "__into"})
    found = frame.join(targets, on=["tenant_id", column], how="left", maintain_order="left")
    return found.with_columns(pl.coalesce("__into", column).alias(column)).drop("__into")


def ended_journeys(rows: pl.LazyFrame, merged: pl.DataFrame) -> pl.DataFrame:
    """tenant_id, journey_id of journeys that are none any more: merged, or without events."""
    empty = latest(rows.filter(pl.col("kind") == JOURNEY), _JOURNEY_ID).filter(pl.col("event_count") == 0)
    gone = merged.drop_nulls("merged_into").select(_JOURNEY_ID)
    return pl.concat([gone, empty.select(_JOURNEY_ID).collect()]).unique()


def living_journeys(rows: pl.LazyFrame, ended: pl.DataFrame) -> pl.LazyFrame:
    """Columns of the table `journeys`, of those that the rows speak of and that live."""
    said = latest(rows.filter(pl.col("kind") == JOURNEY), _JOURNEY_ID)
    return said.join(ended.lazy(), on=_JOURNEY_ID, how="anti").select(list(JOURNEYS.columns))


def removed_events(rows: pl.LazyFrame) -> pl.DataFrame:
    """tenant_id, event_id, is_back: events that were taken out, and whether they came back with other keys."""
    out = rows.filter(pl.col("kind") == REMOVED).group_by(_EVENT_ID).agg(out=pl.col("seq").max())
    back = rows.filter(pl.col("kind") == EVENT).group_by(_EVENT_ID).agg(back=pl.col("seq").max())
    both = out.join(back, on=_EVENT_ID, how="left")
    return both.select(*_EVENT_ID, is_back=(pl.col("back") >= pl.col("out")).fill_null(value=False)).collect()


def reread_events(rows: pl.LazyFrame) -> pl.DataFrame:
    """tenant_id, event_id of events that were stitched before and again, or taken out."""
    again = (pl.col("kind") == EVENT) & pl.col("other_journey_id").is_not_null()
    found = rows.filter(again | (pl.col("kind") == REMOVED)).select(_EVENT_ID)
    return found.unique().collect(engine="streaming")


def last_event_rows(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The event rows of the last commit that speaks of each event; none of events that it took out."""
    said = rows.filter(pl.col("kind").is_in([EVENT, REMOVED]))
    # An event that comes with other keys is taken out and put in by one commit.
    return latest(said, _EVENT_ID).filter(pl.col("kind") == EVENT)


def events_now(rows: pl.LazyFrame, merged: pl.DataFrame) -> pl.LazyFrame:
    """Columns of the table `event_journey`, of events that the rows speak of and that are there."""
    last = last_event_rows(rows.select(*_EVENT_ID, "journey_id", "seq", "kind"))
    return resolved(last.select(*_EVENT_ID, "journey_id").unique(), merged)


def event_keys_now(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Columns of the table `event_keys`, of events that the rows speak of and that are there."""
    last = last_event_rows(rows.select(*_EVENT_ID, "key_type", "key_hash", "status", "seq", "kind"))
    return last.filter(pl.col("key_type").is_not_null()).select(list(EVENT_KEYS.columns))


def keys_now(rows: pl.LazyFrame, merged: pl.DataFrame) -> pl.LazyFrame:
    """tenant_id, key_type, key_hash, journey_id (null: held by none any more) of keys that link or linked."""
    is_link = (pl.col("kind") == EVENT) & (pl.col("status") == LINKED)
    is_end = (pl.col("kind") == KEY) & pl.col("status").ne_missing(pl.lit("weak"))
    said = rows.filter(is_link | is_end).select(*_KEY_ID, "journey_id", "seq", "kind")
    # In one commit a key row, which takes a key away, stands for events that have it still.
    last = said.sort("seq", pl.col("kind") == KEY).group_by(_KEY_ID).agg(pl.col("journey_id").last())
    return resolved(last, merged)


def merges_in(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Columns of the table `journey_merges`."""
    via = pl.col("event_id").fill_null("")
    return rows.filter(pl.col("kind") == MERGE).select(
        merge_id=pl.concat_str("journey_id", pl.lit(">"), "other_journey_id", pl.lit(">"), via),
        tenant_id="tenant_id", survivor="journey_id", loser="other_journey_id", via_event_id="event_id",
        via_key_type="key_type", merged_at="committed_at",
    )  # fmt: skip


def splits_in(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Columns of the table `journey_splits`."""
    at = pl.col("seq").cast(pl.String)
    return rows.filter(pl.col("kind") == SPLIT).select(
        split_id=pl.concat_str("journey_id", pl.lit(">"), "other_journey_id", pl.lit("@"), at),
        tenant_id="tenant_id", journey_id="journey_id", split_off="other_journey_id", event_count="event_count",
        cause="detail", split_at="committed_at",
    )  # fmt: skip


def conflicts_now(rows: pl.LazyFrame, merged: pl.DataFrame) -> pl.LazyFrame:
    """Columns of the table `journey_conflicts`, of events that the rows speak of."""
    found = latest(rows.filter(pl.col("kind") == CONFLICT), [*_EVENT_ID, *_KEY_ID[1:]])
    # An event that was taken out since has none.
    said = rows.filter(pl.col("kind").is_in([EVENT, REMOVED]))
    last_said = said.group_by(_EVENT_ID).agg(last=pl.col("seq").max())
    standing = found.join(last_said, on=_EVENT_ID).filter(pl.col("seq") == pl.col("last"))
    named = resolved(standing.rename({"other_journey_id": "refused_journey_id"}), merged)
    return resolved(named, merged, "refused_journey_id").select(
        *_EVENT_ID, "key_type", "key_hash", "journey_id", "refused_journey_id", reason="status",
        found_at="committed_at",
    ).select(list(JOURNEY_CONFLICTS.columns))  # fmt: skip


def quarantines_now(rows: pl.LazyFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Columns of the table `quarantined_keys`; and tenant_id, key_type, key_hash of keys that are out of quarantine."""
    last = latest(rows.filter(pl.col("kind") == KEY), _KEY_ID).select(*_KEY_ID, "status").collect()
    is_in = pl.col("status").eq_missing(pl.lit("quarantined"))
    found = latest(rows.filter(pl.col("kind") == QUARANTINE), _KEY_ID).collect()
    now = found.join(last.filter(is_in), on=_KEY_ID, how="semi").select(
        *_KEY_ID, "partners", quarantined_at="committed_at"
    )
    return now, last.filter(~is_in).select(_KEY_ID)


_EVENT_ID = ["tenant_id", "event_id"]
_KEY_ID = ["tenant_id", "key_type", "key_hash"]
_JOURNEY_ID = ["tenant_id", "journey_id"]
