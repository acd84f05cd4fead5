"""What other rules make of all events of a tenant."""

from dataclasses import replace

import numpy as np
import polars as pl

from c360_pipeline.core.catalog.changes import difference
from c360_pipeline.core.stitching.batch import Known, Stitched, prepare
from c360_pipeline.core.stitching.journey_ids import id_words
from c360_pipeline.core.stitching.keys import KeyPolicy, extract_keys
from c360_pipeline.core.stitching.log import (
    Gone,
    aliases,
    conflicts_now,
    ended_journeys,
    event_keys_now,
    events_now,
    last_event_rows,
    living_journeys,
)
from c360_pipeline.core.stitching.stitch import stitch
from c360_pipeline.stages.stitching.commit import JourneyLog
from c360_pipeline.stages.stitching.report import Change, Rebase, report_of
from c360_pipeline.stages.stitching.restitching import with_former, without_emptied

EVENT_COLUMNS = ["tenant_id", "event_id", "ts"]


def rebase(log: JourneyLog, tenant_id: str, events: pl.DataFrame, policy: KeyPolicy) -> Rebase:
    """What rules make of all events of a tenant; nothing is changed.

    Args:
        log: of stitching.
        tenant_id: whose.
        events: all rows of the archive of this tenant.
        policy: the rules.
    """
    _, index = log.refresh()
    rows = log.rows([tenant_id])
    merged = aliases(rows)
    now = events_now(rows, merged).collect(engine="streaming")
    held_keys = event_keys_now(rows).collect(engine="streaming")
    out = now.select(EVENT_COLUMNS[:2]).join(events, on=EVENT_COLUMNS[:2], how="anti")
    was = now.select(*EVENT_COLUMNS[:2], was="journey_id")
    batch = prepare(
        events.select(EVENT_COLUMNS).join(was, on=EVENT_COLUMNS[:2], how="left", maintain_order="left"),
        extract_keys(events, policy.rules, policy.nobody, policy.identifiers), policy,
    )  # fmt: skip
    living = living_journeys(rows, ended_journeys(rows, merged)).select("journey_id").collect()
    former = merged.drop_nulls("merged_into")
    known = with_former(
        Known.nothing(batch), index.journeys(*id_words(living["journey_id"])),
        index.journeys(*id_words(former["journey_id"])), former,
    )  # fmt: skip
    known = replace(known, is_new_pair=np.ones(len(batch.pairs[0]), np.bool_))
    stitched = stitch(batch, known, policy, are_taken=index.are_taken)
    raw = last_event_rows(rows).select("tenant_id", "event_id", "journey_id").unique().collect(engine="streaming")
    found = _difference(tenant_id, index.tenant(tenant_id).seq, stitched, known, now, held_keys, raw, out, rows, merged)
    return found.counting(stitched, index.known(batch).partners)


def _difference(
    tenant_id: str,
    seq: int,
    stitched: Stitched,
    known: Known,
    now: pl.DataFrame,
    held_keys: pl.DataFrame,
    raw: pl.DataFrame,
    out: pl.DataFrame,
    rows: pl.LazyFrame,
    merged: pl.DataFrame,
) -> Rebase:
    """Of all that was decided again, what differs from what is."""
    event, key = ["tenant_id", "event_id"], ["tenant_id", "event_id", "key_type", "key_hash"]
    before = held_keys.join(now, on=event).with_columns(pl.col("key_hash").cast(pl.UInt128))
    said = [*key, "status", "journey_id"]
    moved = stitched.events.join(now.rename({"journey_id": "before"}), on=event, how="left").filter(
        pl.col("journey_id").ne_missing(pl.col("before"))
    )
    key_changes = difference(before.select(said), stitched.event_keys.select(said), key)
    altered = pl.concat(
        [
            key_changes.upserted.select(event),
            key_changes.deleted.select(event),
            _refused_by_others(rows, merged, stitched.conflicts),
            moved.select(event),
            # Rows that speak of an id which leads elsewhere now would lead there too.
            raw.join(stitched.aliases, on="journey_id", how="semi").select(event),
        ]
    ).unique()
    journeys = _changed_states(stitched.journeys, known.journeys.filter("was_active"), merged)
    event_keys = stitched.event_keys.join(altered, on=event, how="semi")
    touched_keys = pl.concat([event_keys.select(key[2:]), before.join(altered, on=event, how="semi").select(key[2:])])
    gone_keys = before.select("tenant_id", "key_type", "key_hash").unique().join(
        stitched.key_journey, on=["tenant_id", "key_type", "key_hash"], how="anti"
    )  # fmt: skip
    stitched, gone_journeys = without_emptied(known, stitched)
    kept = replace(
        stitched,
        events=stitched.events.join(altered, on=event, how="semi"),
        event_keys=event_keys,
        journeys=journeys,
        key_journey=stitched.key_journey.join(touched_keys.unique(), on=["key_type", "key_hash"], how="semi"),
        conflicts=stitched.conflicts.join(altered, on=event, how="semi"),
        quarantines=stitched.quarantines.join(touched_keys.unique(), on=["key_type", "key_hash"], how="semi"),
    )
    is_same = altered.is_empty() and journeys.is_empty() and kept.aliases.is_empty() and out.is_empty()
    report = replace(
        report_of(kept, known), events=0, reread=kept.events.height, removed=out.height,
        founded=kept.journeys.join(known.journeys, on="journey_id", how="anti").height,
    )  # fmt: skip
    change = None if is_same else Change(kept, Gone(out, gone_keys, gone_journeys), report, cause="rules changed")
    otherwise = event_keys.join(before.select(*key, before="status"), on=key, how="left").filter(
        pl.col("status").ne_missing(pl.col("before"))
    )
    by_type = otherwise.group_by("tenant_id", "key_type", "status", "before").len().sort("key_type", "status")
    return Rebase(tenant_id, seq, change, int(known.journeys["was_active"].sum()), moved, by_type)


def _refused_by_others(rows: pl.LazyFrame, merged: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """tenant_id, event_id of events with a tie that another journey refuses than before."""
    tie = ["tenant_id", "event_id", "key_type", "key_hash"]
    before = conflicts_now(rows, merged).select(*tie, "refused_journey_id").collect(engine="streaming")
    after = now.select(*tie, "refused_journey_id").with_columns(pl.col("key_hash").cast(pl.String))
    changes = difference(before, after, tie)
    return pl.concat([changes.upserted.select(tie[:2]), changes.deleted.select(tie[:2])])


def _changed_states(now: pl.DataFrame, before: pl.DataFrame, merged: pl.DataFrame) -> pl.DataFrame:
    leads = dict(merged.drop_nulls("merged_into").select("journey_id", "merged_into").iter_rows())
    apart = pl.col("apart_from").list.eval(pl.element().replace(leads)).list.unique().list.sort()
    listed = {"unique": pl.col("unique_keys").list.sort(), "apart": apart}
    texts = {name: value.list.join(" ").fill_null("") for name, value in listed.items()}
    states = ["journey_id", "event_count", "key_count", "first_event_ts", "last_event_ts", *texts]
    held = before.with_columns(**texts).select(states)
    return now.with_columns(**texts).join(held, on=states, how="anti").drop(*texts)
