"""Visitors and sessions: whom what was done before a login counts for, and how long a visit was."""

from collections.abc import Iterator

import dagster as dg
import polars as pl

from c360_pipeline.assets.specs import asset_check, lineage, preview, rows, table_spec
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import SESSIONS, USER_CONSENTS, USER_TRAITS, VISITOR_USER
from c360_pipeline.core.visitors.counting import NEEDED
from c360_pipeline.core.visitors.said import broken_histories
from c360_pipeline.resources import LakeResource
from c360_pipeline.stages.visitors.tables import BUILDERS, VisitorTables, made_of

GROUP = "visitors"


@dg.multi_asset(
    specs=[table_spec(table.name, table, GROUP, deps=["landed_events"]) for table in BUILDERS],
    can_subset=False,
)
def visitor_tables(context: dg.AssetExecutionContext, lake: LakeResource) -> Iterator[dg.MaterializeResult[None]]:
    """Bring the tables of visitors, sessions, traits and consents up to the archive, by difference."""
    tables = lake.open()
    changed = VisitorTables(tables).publish_all()
    for table in BUILDERS:
        context.log.info("%s: %s rows changed", table.name, f"{changed[table.name]:,}")
        said = rows(tables.count(table), changed_rows=changed[table.name], **lineage(table))
        yield dg.MaterializeResult(asset_key=table.name, metadata=said)


@asset_check(
    asset=SESSIONS.name,
    description="Sessions hold each event that is in one once, at the version that they are made of.",
)
def sessions_count_their_events(lake: LakeResource) -> dg.AssetCheckResult:
    """Count the events of the archive that are in a session."""
    tables = lake.open()
    version, at = made_of(tables, SESSIONS)
    in_one = at.counted(at.scan(NEEDED)).select(pl.col("session_id").count()).collect(engine="streaming").item()
    counted = tables.scan(SESSIONS, version).select(pl.col("event_count").sum()).collect().item()
    return dg.AssetCheckResult(passed=in_one == counted, metadata={"events": in_one, "counted": counted})


@asset_check(
    asset=VISITOR_USER.name, description="Each visitor with one known user has a row, at the version it is made of."
)
def every_known_visitor_has_a_row(lake: LakeResource) -> dg.AssetCheckResult:
    """Count the visitors of the archive that are known."""
    tables = lake.open()
    version, at = made_of(tables, VISITOR_USER)
    known = at.counted(at.scan(NEEDED)).select("tenant_id", "visitor_id", "visitor_user").drop_nulls().unique()
    visitors = known.select(pl.len()).collect(engine="streaming").item()
    held = tables.scan(VISITOR_USER, version).select(pl.len()).collect().item()
    return dg.AssetCheckResult(passed=visitors == held, metadata={"visitors": visitors, "rows": held})


@asset_check(asset=USER_TRAITS.name, description="The history of each trait is without gaps, up to one value of today.")
def traits_have_one_value_at_a_time(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for traits whose values lie over each other, or leave a time out."""
    return _one_value_at_a_time(lake, USER_TRAITS)


@asset_check(asset=USER_CONSENTS.name, description="The history of each consent is without gaps, up to one of today.")
def consents_have_one_state_at_a_time(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for consents whose states lie over each other, or leave a time out."""
    return _one_value_at_a_time(lake, USER_CONSENTS)


def _one_value_at_a_time(lake: LakeResource, table: Table) -> dg.AssetCheckResult:
    broken = broken_histories(lake.open().scan(table), table.key[:3]).collect(engine="streaming")
    return dg.AssetCheckResult(
        passed=broken.is_empty(), metadata={"broken": broken.height, "first": preview(broken.drop("user_id"))}
    )
