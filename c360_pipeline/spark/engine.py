"""The first stitching of every tenant on Spark."""

from collections.abc import Callable
from datetime import UTC, datetime

from c360_pipeline.core.catalog.tables import EVENTS, VISITOR_DECISIONS
from c360_pipeline.core.stitching.keys import EVERY_TENANT, KeyPolicy
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import Settings
from c360_pipeline.spark.session import S3Login, SparkOptions, end_session, spark_session
from c360_pipeline.spark.stitching import FirstStitching, stitch_first
from c360_pipeline.stages.stitching.catch_up import noted
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stages.visitors.counted import EventsAt
from c360_pipeline.stores.delta.lake import Lake

EVENTS_PER_GROUP = 1_000_000
"""Events that one task folds at once, about."""


def stitch_all_first(
    settings: Settings, lake: Lake, journeys: Journeys, policy: KeyPolicy, report: Callable[[str], None]
) -> None:
    """Stitch the archive as it is now, tenant by tenant; a tenant that has journeys is left alone.

    Args:
        settings: where Spark runs, and its login to S3.
        lake: holds the archive and the log.
        journeys: whose log is written.
        policy: what keys may do.
        report: called with a line per tenant.

    Raises:
        ConfigError: the jars by which Spark reaches S3 are not named.
        ConflictError: another worker stitches the same tenant.
    """
    if settings.spark_jars is None:
        raise ConfigError("C360_SPARK_JARS is not set: `c360 install --spark` fetches the jars and names their folder.")
    version = lake.versions.version(EVENTS.name)
    if version is None:
        return
    decisions = lake.versions.version(VISITOR_DECISIONS.name)
    at = EventsAt.of(lake, version, decisions)
    login = S3Login(
        settings.aws_access_key_id, settings.aws_secret_access_key, settings.aws_region, settings.aws_endpoint_url
    )
    spark = spark_session(SparkOptions(settings.spark_jars, login, settings.spark_master))
    try:
        for tenant, count in lake.count_by(EVENTS, "tenant_id").iter_rows():
            if journeys.log.state(tenant).seq:
                continue
            groups = max(count // EVENTS_PER_GROUP, spark.sparkContext.defaultParallelism)
            those_apart = at.apart(at.visitors_of(tenant))
            first = FirstStitching(tenant, policy, datetime.now(UTC), groups, those_apart)
            rows = stitch_first(spark, lake, journeys, first, version)
            report(f"{tenant}: {count:,} events stitched on {settings.spark_master}, {rows:,} rows of the log")
    finally:
        end_session(spark)
    journeys.log.note(EVERY_TENANT, noted(version, decisions))
