"""Stitching: the events of the archive become journeys with ids that stay."""

from collections.abc import Iterator
from typing import Any, Literal

import dagster as dg
import polars as pl

from c360_pipeline.assets.plots import journey_sizes
from c360_pipeline.assets.specs import (
    OWNERS,
    asset_check,
    check_spec,
    column_schema,
    found_none,
    lineage,
    preview,
    rows,
    table_spec,
)
from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import (
    EVENT_JOURNEY,
    EVENT_KEYS,
    EVENTS,
    JOURNEY_ALIASES,
    JOURNEY_CONFLICTS,
    JOURNEY_KEYS,
    JOURNEY_LOG,
    JOURNEY_MERGES,
    JOURNEY_SPLITS,
    JOURNEYS,
    QUARANTINED_KEYS,
)
from c360_pipeline.core.stitching.log import COMMIT, JOURNEY
from c360_pipeline.core.stitching.statuses import REFUSED_UNIQUE
from c360_pipeline.resources import ControlResource, LakeResource, MetricsResource
from c360_pipeline.settings import load_settings
from c360_pipeline.stages.stitching.catch_up import Progress, Stitching, changed_since, stitched_version
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stages.stitching.report import BatchReport
from c360_pipeline.stages.stitching.tables import PUBLISHED, AtOneCommit, JourneyTables
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.local.metrics import Figure, by_tenant

GROUP = "stitching"
TOP_KEYS = 20

CHECKS = {
    "every_event_has_one_journey": (EVENT_JOURNEY, "Each event of the archive stands in event_journey once."),
    "every_key_belongs_to_an_event": (EVENT_KEYS, "No key is of an event that the archive does not hold."),
    "journeys_count_their_events": (JOURNEYS, "The counts of a journey are the numbers of its events and keys."),
    "every_key_leads_to_a_journey": (JOURNEY_KEYS, "The journey of each key is one that lives."),
    "every_loser_is_an_alias": (JOURNEY_MERGES, "Each journey that was merged away lives, or has an alias."),
}


class StitchingConfig(dg.Config):
    """How to stitch.

    `force_rules` lets rules that changed touch more journeys than the removal limit does. `engine` is where the very
    first
    stitching runs: `local`, `spark`, or `auto`, which takes Spark from `spark_from_events` events on. What comes later
    is stitched here, batch by batch.
    """

    force_rules: bool = False
    engine: Literal["auto", "local", "spark"] = "auto"
    spark_from_events: int = 200_000_000


@dg.asset(
    deps=["landed_events"],
    description=JOURNEY_LOG.description,
    owners=OWNERS,
    group_name=GROUP,
    kinds={"deltalake", "s3"},
    metadata={"dagster/column_schema": column_schema(JOURNEY_LOG), "lake_table": JOURNEY_LOG.name},
)
def journey_log(
    context: dg.AssetExecutionContext,
    config: StitchingConfig,
    control: ControlResource,
    lake: LakeResource,
    metrics: MetricsResource,
) -> dg.MaterializeResult[None]:
    """Stitch what came, changed or went in the archive; each batch is one commit."""
    tables = lake.open()

    def log(progress: Progress) -> None:
        context.log.info("stitched %s of %s events: %s", f"{progress.done:,}", f"{progress.total:,}", progress.report)

    journeys, policy = Journeys(tables), control.open().key_rules.policy()
    if _is_for_spark(config, tables, journeys):
        from c360_pipeline.spark.engine import stitch_all_first  # an extra: most installations go without

        stitch_all_first(load_settings(), tables, journeys, policy, context.log.info)
    stitching = Stitching(tables, journeys, policy)
    report = stitching.catch_up(log, force=config.force_rules)
    metrics.open().write("stitching", _figures(report))
    return dg.MaterializeResult(metadata=rows(tables.count(JOURNEY_LOG), **_what_was_done(report)))


def _is_for_spark(config: StitchingConfig, lake: Lake, journeys: Journeys) -> bool:
    """Whether this is the first stitching, and large enough."""
    if config.engine == "local" or journeys.log.states():
        return False
    return config.engine == "spark" or lake.count(EVENTS) >= config.spark_from_events


def _what_was_done(report: BatchReport) -> dict[str, Any]:
    counts = {name: value for name, value in vars(report).items() if not name.endswith("seconds")}
    return {
        **counts,
        "seconds": round(report.seconds, 3),
        "longest_batch_seconds": round(report.longest_seconds, 3),
        "events_per_second": round(report.events_per_second),
    }


def _figures(report: BatchReport) -> list[Figure]:
    return [
        Figure("stitch_events_per_second", "Events stitched per second of the last run.", report.events_per_second),
        Figure("stitch_batch_seconds", "Seconds of the longest batch of the last run.", report.longest_seconds),
        Figure("stitch_events", "Events stitched by the last run.", report.events),
        Figure("stitch_reread_events", "Events of journeys that the last run restitched.", report.reread),
        Figure("stitch_merged_journeys", "Journeys that went into others in the last run.", report.merged),
        Figure("stitch_split_journeys", "Parts that left a journey in the last run.", report.split),
        Figure("stitch_retries", "Commits of the last run that another worker was faster than.", report.retries),
    ]


@dg.multi_asset(
    name="stitching",
    specs=[table_spec(t.name, t, GROUP, deps=["journey_log"]) for t in PUBLISHED],
    check_specs=[
        check_spec(name, asset=table.name, blocking=True, description=description)
        for name, (table, description) in CHECKS.items()
    ],
)
def stitching_assets(
    lake: LakeResource, metrics: MetricsResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Bring the tables of journeys up to the log."""
    tables = lake.open()
    published = JourneyTables(tables)
    # First how far the archive is stitched, then what is published: so that the latter has all of the former.
    stitched = stitched_version(Journeys(tables))
    target = published.target()
    for table in PUBLISHED:
        changed = published.publish(table, target).count
        yield dg.MaterializeResult(asset_key=table.name, metadata=_metadata(tables, table, changed))
    metrics.open().write("journeys", _journey_figures(tables))
    for name, wrong in wrong_rows(published.at_one_commit()).items():
        yield found_none(CHECKS[name][0].name, name, wrong=settled(tables, stitched, wrong.collect(engine="streaming")))


def settled(lake: Lake, stitched: Version | None, wrong: pl.DataFrame) -> pl.DataFrame:
    """Of rows that a check found those that nobody is at work on: what landed or left since is the next run's.

    Args:
        lake: with the archive.
        stitched: version of the archive that the tables have taken up.
        wrong: rows that break what must hold; of an event, where they have an event_id.
    """
    if wrong.is_empty() or "event_id" not in wrong.columns:
        return wrong
    return wrong.join(changed_since(lake, stitched), on=EVENTS.key, how="anti")


def wrong_rows(tables: AtOneCommit) -> dict[str, pl.LazyFrame]:
    """Rows that break what must hold, by check; all empty when all is well."""
    key, identity = ["tenant_id", "event_id"], ["tenant_id", "journey_id"]
    events = tables.lake.scan(EVENTS).select(key)
    assigned, pairs, keys = tables.scan(EVENT_JOURNEY), tables.scan(EVENT_KEYS), tables.scan(JOURNEY_KEYS)
    journeys, aliases = tables.scan(JOURNEYS), tables.scan(JOURNEY_ALIASES)
    repeated = assigned.group_by(key).len().filter(pl.col("len") > 1).select(key)
    counted = assigned.group_by(identity).agg(events=pl.len().cast(pl.Int64))
    linked = keys.group_by(identity).agg(keys=pl.len().cast(pl.Int64))
    counts = journeys.join(counted, on=identity, how="left").join(linked, on=identity, how="left")
    losers = tables.scan(JOURNEY_MERGES).select("tenant_id", journey_id="loser").unique()
    return {
        "every_event_has_one_journey": pl.concat(
            [
                events.join(assigned, on=key, how="anti"),
                assigned.select(key).join(events, on=key, how="anti"),
                repeated,
            ]
        ),
        "every_key_belongs_to_an_event": pairs.join(events, on=key, how="anti"),
        "journeys_count_their_events": counts.filter(
            pl.col("event_count").ne_missing(pl.col("events")) | (pl.col("key_count") != pl.col("keys").fill_null(0))
        ),
        "every_key_leads_to_a_journey": keys.join(journeys, on=identity, how="anti"),
        "every_loser_is_an_alias": losers.join(aliases, on=identity, how="anti").join(
            journeys, on=identity, how="anti"
        ),
    }


def _metadata(lake: Lake, table: Table, changed: int) -> dict[str, Any]:
    metadata = rows(lake.count(table), changed_rows=changed, **lineage(table))
    if table is JOURNEYS:
        metadata |= _of_journeys(lake)
    if table is EVENT_KEYS:
        metadata |= _of_keys(lake)
    return metadata


def _journey_figures(lake: Lake) -> list[Figure]:
    """Sizes of journeys and what guards hold back, by tenant."""
    sizes = lake.scan(JOURNEYS).group_by("tenant_id").agg(
        journeys=pl.len(), largest=pl.col("event_count").max(), p99=pl.col("key_count").quantile(0.99)
    ).collect(engine="streaming")  # fmt: skip
    tenants = sizes["tenant_id"].to_list()
    waiting = dict(lake.count_by(JOURNEY_CONFLICTS, "tenant_id").iter_rows())
    quarantined = dict(lake.count_by(QUARANTINED_KEYS, "tenant_id").iter_rows())
    per_tenant = {
        ("journeys", "Journeys."): dict(zip(tenants, sizes["journeys"], strict=True)),
        ("largest_journey_events", "Events of the largest journey."): dict(zip(tenants, sizes["largest"], strict=True)),
        ("journey_keys_p99", "Keys that 99 % of journeys have at most."): dict(zip(tenants, sizes["p99"], strict=True)),
        ("refused_links", "Links that a guard refuses now."): waiting,
        ("quarantined_keys", "Keys that link nothing, for they met too many others."): quarantined,
    }
    return [figure for (name, text), values in per_tenant.items() for figure in by_tenant(name, text, values)]


def _of_journeys(lake: Lake) -> dict[str, Any]:
    """The largest journeys, and how sizes are spread."""
    sizes = lake.scan(JOURNEYS).select("tenant_id", "journey_id", "event_count", "key_count").collect()
    if sizes.is_empty():
        return {}
    return {
        "largest_journeys": preview(sizes.sort("event_count", descending=True), limit=10),
        "largest_journey_events": int(sizes["event_count"].max() or 0),  # type: ignore[arg-type]  # a number
        "p99_keys_per_journey": float(sizes["key_count"].quantile(0.99) or 0),
        "sizes": journey_sizes(sizes),
    }


def _of_keys(lake: Lake) -> dict[str, Any]:
    """The keys of most events, and what became of keys."""
    pairs = lake.scan(EVENT_KEYS)
    degrees = pairs.group_by("tenant_id", "key_type", "key_hash").agg(events=pl.len())
    top = degrees.top_k(TOP_KEYS, by="events").collect(engine="streaming").sort("events", descending=True)
    by_status = pairs.group_by("status").len().collect(engine="streaming").sort("status")
    counts = dict(by_status.iter_rows())
    refused = sum(number for status, number in counts.items() if status.startswith("refused"))
    total = sum(counts.values())
    return {
        "top_keys": preview(top),
        "keys_by_status": preview(by_status),
        "conflict_rate": refused / total if total else 0.0,
        "events_without_usable_key": lake.count(EVENTS)
        - int(pairs.select(pl.struct("tenant_id", "event_id").n_unique()).collect(engine="streaming").item()),
    }


@asset_check(asset=JOURNEY_ALIASES.name, description="Every id that a journey ever had leads to a journey of today.")
def every_alias_resolves(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for aliases whose target is no journey."""
    tables = JourneyTables(lake.open()).at_one_commit()
    targets = tables.scan(JOURNEYS).select("tenant_id", merged_into="journey_id")
    lost = tables.scan(JOURNEY_ALIASES).join(targets, on=["tenant_id", "merged_into"], how="anti").collect()
    return dg.AssetCheckResult(passed=lost.is_empty(), metadata={"lost": preview(lost)})


@asset_check(
    asset=journey_log,
    blocking=True,
    description="The commits of each tenant are numbered 1, 2, 3, none twice, none left out.",
)
def commits_are_numbered(lake: LakeResource) -> dg.AssetCheckResult:
    """A number that is there twice, or missing: two workers committed on one snapshot, or rows are lost."""
    commits = lake.open().scan(JOURNEY_LOG).filter(pl.col("kind") == COMMIT)
    counted = commits.group_by("tenant_id").agg(
        commits=pl.len(), numbers=pl.col("seq").n_unique(), last=pl.col("seq").max()
    )
    wrong = counted.filter((pl.col("commits") != pl.col("last")) | (pl.col("numbers") != pl.col("last"))).collect()
    return dg.AssetCheckResult(passed=wrong.is_empty(), metadata={"wrong": preview(wrong)})


@asset_check(asset=journey_log, description="Keys are hashed with a secret, so that nobody finds values by trying.")
def keys_have_a_secret(control: ControlResource) -> dg.AssetCheckResult:
    """An archive of an earlier release has hashes without one, until it gets its first."""
    version = control.open().identifiers.current().version
    return dg.AssetCheckResult(
        passed=version > 0, severity=dg.AssetCheckSeverity.WARN, metadata={"version_of_the_secret": version}
    )


@asset_check(asset=JOURNEY_SPLITS.name, description="What was split off is a journey, or went into one later.")
def every_split_leads_to_a_journey(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for parts of journeys that are nowhere."""
    tables = JourneyTables(lake.open()).at_one_commit()
    identity = ["tenant_id", "journey_id"]
    ids = pl.concat([tables.scan(JOURNEYS).select(identity), tables.scan(JOURNEY_ALIASES).select(identity)])
    parts = tables.scan(JOURNEY_SPLITS).select("tenant_id", journey_id="split_off").unique()
    emptied = tables.lake.scan(JOURNEY_LOG).filter((pl.col("kind") == JOURNEY) & (pl.col("event_count") == 0))
    known = pl.concat([ids, emptied.select(identity)])
    return found_none(JOURNEY_SPLITS.name, "every_split_leads_to_a_journey",
                      lost=parts.join(known, on=identity, how="anti").collect())  # fmt: skip


@asset_check(asset=JOURNEYS.name, description="No journey has more keys than the soft limit of its tenant.")
def no_journey_is_too_large(lake: LakeResource, control: ControlResource) -> dg.AssetCheckResult:
    """A journey that grows and grows is most often several customers that share a key."""
    policy = control.open().key_rules.policy()
    sizes = lake.open().scan(JOURNEYS).select("tenant_id", "journey_id", "event_count", "key_count")
    tenants = sizes.select("tenant_id").unique().collect()["tenant_id"]
    limits = {tenant: policy.limit_of(tenant).soft_max_keys for tenant in tenants}
    limit = pl.col("tenant_id").replace_strict(limits, return_dtype=pl.Int64, default=None)
    large = sizes.filter(pl.col("key_count") > limit).sort("key_count", descending=True).collect()
    return dg.AssetCheckResult(
        passed=large.is_empty(), severity=dg.AssetCheckSeverity.WARN, metadata={"large": preview(large)}
    )


@asset_check(asset=JOURNEY_CONFLICTS.name, description="No link waits for review.")
def nothing_waits_for_review(lake: LakeResource) -> dg.AssetCheckResult:
    """Links that the size of a journey refused; a person decides what they mean. Unique keys keep people apart."""
    waiting = lake.open().read(JOURNEY_CONFLICTS)
    by_reason = waiting.group_by("tenant_id", "reason").len().sort("tenant_id", "reason")
    return dg.AssetCheckResult(
        passed=waiting.filter(pl.col("reason") != REFUSED_UNIQUE).is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"by_reason": preview(by_reason), "newest": preview(waiting.sort("found_at", descending=True))},
    )


@asset_check(asset=QUARANTINED_KEYS.name, description="No key is in quarantine for meeting too many others.")
def no_key_is_quarantined(lake: LakeResource) -> dg.AssetCheckResult:
    """Keys that link nothing any more: shared devices, test accounts, values that producers made up."""
    found = lake.open().read(QUARANTINED_KEYS)
    return dg.AssetCheckResult(
        passed=found.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"quarantined": preview(found.sort("partners", descending=True))},
    )
