"""Retention: what is older than its rule leaves the archive, and with it journeys and graph."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import polars as pl

from c360_pipeline.core.catalog.tables import DEAD_LETTERS, EVENTS, JOURNEY_LOG
from c360_pipeline.core.landing.dead_letters import emptied
from c360_pipeline.core.privacy.retention import ACTION, DEAD_LETTER, expired, oldest_kept
from c360_pipeline.core.stitching.log import removed_events
from c360_pipeline.stages.landing.event_removal import remove_events
from c360_pipeline.stages.projection.everything import project_all, stitch_all
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.bucket import Bucket
from c360_pipeline.stores.s3.landing import dead_letter_key

if TYPE_CHECKING:
    from c360_pipeline.stores.cassandra.user_events import UserEvents

Observe = Callable[[str], None]
EXPIRED = "expired"


@dataclass(frozen=True)
class Expired:
    """What is older than it may be.

    Attributes:
        events: tenant_id, action, `len`.
        letters: error_class, `len`.
    """

    events: pl.DataFrame
    letters: pl.DataFrame


def find_expired(lake: Lake, rules: pl.DataFrame, now: datetime) -> Expired:
    """What retention would remove now."""
    events = _events(lake, rules, now).group_by("tenant_id", "action").len().sort("tenant_id", "action")
    letters = _letters(lake, rules, now).group_by("error_class").len().sort("error_class")
    return Expired(events.collect(engine="streaming"), letters.collect(engine="streaming"))


def retain(
    lake: Lake,
    bucket: Bucket,
    control: ControlDb,
    graph: Graph,
    now: datetime,
    observe: Observe = lambda what: None,
    open_user_events: "Callable[[], UserEvents] | None" = None,
) -> Expired:
    """Remove what is older than its rule; returns what that was. Done again after a crash, it goes on.

    The landing files stay: they are the producers', and a lifecycle rule of the bucket is the place for their age.
    Earlier versions of the tables hold what was removed until maintenance of the tables removes them.

    Args:
        lake: archive, journeys, dead letters.
        bucket: holds the bytes of dead letters.
        control: the rules.
        graph: is brought up.
        now: UTC.
        observe: called with what comes next.
        open_user_events: opens Cassandra's table; None where there is none.
    """
    rules = control.privacy.retention_rules()
    found = find_expired(lake, rules, now)
    if found.events.height:
        observe("events")
        gone = _events(lake, rules, now).collect(engine="streaming")
        if open_user_events is not None:
            # Before the archive, which alone says which they are.
            with open_user_events() as table:
                table.delete(gone)
        remove_events(lake, gone)
    observe("journeys")
    stitch_all(lake, control.key_rules.policy())
    project_all(lake, control.read(), graph, observe)
    # What has left the archive, now or in a run that was broken off, leaves the log of stitching too.
    removed = removed_events(lake.scan(JOURNEY_LOG)).filter(~pl.col("is_back")).select("tenant_id", "event_id")
    if removed.height:
        Journeys(lake).purge(removed)
    letters = _letters(lake, rules, now).collect(engine="streaming")
    if letters.height:
        observe("dead letters")
        lake.commits.merge(DEAD_LETTERS, emptied(letters.select(list(DEAD_LETTERS.columns)), EXPIRED, now))
        bucket.delete(key for key in map(dead_letter_key, letters["dead_letter_id"]) if bucket.has(key))
    return found


def _events(lake: Lake, rules: pl.DataFrame, now: datetime) -> pl.LazyFrame:
    oldest = oldest_kept(rules, ACTION, now)
    if oldest is None:
        return EVENTS.empty().lazy()
    # Partitions of days that nothing can have expired of are not read.
    old = lake.scan(EVENTS).filter(pl.col("event_date") <= oldest.date())
    return expired(old, rules, ACTION, now, "action", "ts")


def _letters(lake: Lake, rules: pl.DataFrame, now: datetime) -> pl.LazyFrame:
    letters = lake.scan(DEAD_LETTERS).filter(pl.col("resolution").is_null() | (pl.col("resolution") != EXPIRED))
    return expired(letters, rules, DEAD_LETTER, now, "error_class", "first_seen_at")
