"""Event sources: what each brought, day by day, whether it comes as it should, and its days read again."""

from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
import polars as pl

from c360_pipeline.assets.partitions import (
    SOURCE_DAYS,
    log_partitions,
    named_partitions,
    note_partitions,
    source_day_key,
    source_day_of,
)
from c360_pipeline.assets.specs import (
    OWNERS,
    WHY,
    all_went,
    asset_check,
    check_spec,
    described_columns,
    preview,
    rows,
)
from c360_pipeline.core.landing.accounting import OUTCOMES
from c360_pipeline.core.landing.volumes import unusual_volumes
from c360_pipeline.errors import ConfigError, UnreadableError
from c360_pipeline.reads.deliveries import by_source
from c360_pipeline.resources import ControlResource, LakeResource, LandingResource
from c360_pipeline.stages.landing.backfill import land
from c360_pipeline.stages.landing.dead_letters import settle_accounting
from c360_pipeline.stages.landing.ingest import Ingest, files_of
from c360_pipeline.stages.sources.active import active_sources
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.event_sources import SourceRow
from c360_pipeline.stores.s3.landing import Landing

GROUP = "sources"
_MEANINGS = {
    "source": "name of the source",
    "landing_date": "day that its records came",
    "files": "files that were read",
    "lines": "records of them",
    **{outcome: f"records that are {outcome}" for outcome in OUTCOMES},
}


@dg.asset(
    description="What every event source brought, a partition for each source and landing date. Landing reads what is "
    "new; a partition that is materialised by itself reads the files of its source and day again, by the version of "
    "the mapping that is active.",
    owners=OWNERS,
    group_name=GROUP,
    kinds={"s3", "deltalake"},
    metadata={"dagster/column_schema": described_columns(_MEANINGS)},
    partitions_def=SOURCE_DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[
        check_spec(
            "every_source_is_right",
            asset="event_sources",
            description="Every active source has a row, a mapping and a place that can be read.",
        )
    ],
)
def event_sources(  # with checks of its own, Dagster takes the result type without parameters only
    context: dg.AssetExecutionContext, landing: LandingResource, lake: LakeResource, control: ControlResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Of named partitions, their files read again; in any case what the accounting says of each source."""
    # It stands beside landing, not behind it: Dagster lets no run without partitions have one behind the other.
    tables = lake.open()
    named = named_partitions(context)
    if named is not None:
        days = {source_day_of(name) for name in named}
        context.log.info("files_read_again: %s", read_again(landing, tables, control, days))
        note_partitions(context, "event_sources", source_days(tables, days))
    counted = by_source(tables)
    return dg.MaterializeResult(
        metadata=rows(counted.height, sources=preview(counted, limit=100)),
        check_results=[
            all_went(wrong_sources(landing.open(), control.open()), "every_source_is_right", asset="event_sources")
        ],
    )


def wrong_sources(landing: Landing, control: ControlDb) -> dict[str, str]:
    """By location, what is wrong with the active sources that can't be read."""
    sources, wrong = active_sources(control)
    for source in sources:
        try:
            landing.look_at(source)
        except UnreadableError as error:
            wrong[source.location.text] = str(error)
    return wrong


def read_again(
    landing: LandingResource, lake: Lake, control: ControlResource, days: Collection[tuple[str, date]]
) -> int:
    """Read the files of sources and days again, by difference; how many there were.

    Raises:
        ConfigError: they have no file.
    """
    area, rules = landing.open(), control.open()
    sources, faulty = active_sources(rules)
    settle_accounting(lake)
    found, unlisted = files_of(area, sources)
    files = [f for f in found.files if f.source is not None and (f.source.name, f.landing_date) in days]
    if not files:
        said = "; ".join([*faulty.values(), *unlisted.values()])
        raise ConfigError(
            f"No file came of {_shown(days)}: nothing was read again. `c360 sources list` shows where each source has "
            f"its files.{' ' + said if said else ''}"
        )
    erasure = rules.privacy.unfinished_erasure()
    held = frozenset() if erasure is None else erasure.files
    ingest = Ingest(area, lake, rules.privacy.suppressed_users(), rules.overwrite_rules(), sources=sources)
    return len(land(ingest, files, {f.landing_date for f in files}, lambda lines: None, held))


def _shown(days: Collection[tuple[str, date]]) -> str:
    """Sources and days, for a message."""
    dates = sorted({day for _, day in days})
    names = ", ".join(sorted({name for name, _ in days}))
    return f"{names} on {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else "")


def source_days(lake: Lake, days: Collection[tuple[str, date]]) -> dict[str, dict[str, Any]]:
    """By partition, what became of the records of each of these sources and days."""
    if not days:
        return {}
    return {
        source_day_key(row["source"], row["landing_date"]): rows(
            row["lines"], **{name: str(said) if isinstance(said, date) else said for name, said in row.items()}
        )
        for row in by_source(lake, "landing_date").iter_rows(named=True)
        if (row["source"], row["landing_date"]) in days
    }


def note_source_days(context: dg.AssetExecutionContext, lake: Lake, days: Collection[tuple[str, date]]) -> None:
    """Landing has read files of these sources and days."""
    log_partitions(context, "event_sources", SOURCE_DAYS, source_days(lake, days))


def late_sources(sources: Collection[SourceRow], newest: Mapping[str, date], today: date) -> dict[str, str]:
    """Of the active sources those of which nothing came for longer than they may, and what to do.

    Args:
        sources: rows of `event_sources`.
        newest: landing date of the newest file of each.
        today: in UTC.
    """
    late = {}
    for row in sources:
        if not row.is_active or row.fresh_within_days is None:
            continue
        last = newest.get(row.name)
        if last is None:
            late[row.name] = (
                f"No file was ever read: is {row.location} where its producer writes? `c360 sources list` shows it."
            )
        elif (today - last).days > row.fresh_within_days:
            late[row.name] = (
                f"The last file came on {last}, {(today - last).days} days ago; it may be {row.fresh_within_days}. Ask "
                f"its producer, or pause it: `c360 sources pause {row.name}`."
            )
    return late


@asset_check(
    asset="landing_files",
    description="Of every active source something came within the days that its `fresh_within_days` says.",
)
def every_source_is_fresh(control: ControlResource, lake: LakeResource) -> dg.AssetCheckResult:
    """A producer that fell silent, while others still send."""
    newest = dict(by_source(lake.open()).select("source", "newest").iter_rows())
    late = late_sources(control.open().sources.rows(), newest, datetime.now(UTC).date())
    return dg.AssetCheckResult(
        passed=not late, severity=dg.AssetCheckSeverity.WARN, metadata={WHY: dg.MetadataValue.json(late)}
    )


@asset_check(
    asset="landing_files",
    description="Of each source as much comes a day as before: not three times as much, nor a third, of its own median "
    "of 14 days.",
)
def source_volumes_are_as_expected(lake: LakeResource) -> dg.AssetCheckResult:
    """One producer that sends everything twice is not seen in the sum of all."""
    days = by_source(lake.open(), "landing_date").select("source", day="landing_date", rows="lines")
    today = datetime.now(UTC).date()
    unusual = [
        unusual_volumes(own.select("day", "rows"), today).select(pl.lit(str(name)).alias("source"), pl.all())
        for (name,), own in days.group_by("source")
    ]
    found = pl.concat(unusual).sort("source", "day") if unusual else days
    return dg.AssetCheckResult(
        passed=found.is_empty(), severity=dg.AssetCheckSeverity.WARN, metadata={"unusual_days": preview(found)}
    )
