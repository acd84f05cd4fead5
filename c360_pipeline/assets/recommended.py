"""What came of recommendations: the online measure."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import polars as pl

from c360_pipeline.assets.features import INTERACTING, FeatureEvents, feature, kept, scope_of, wrong_rows
from c360_pipeline.assets.plots import hit_rates
from c360_pipeline.assets.specs import asset_check
from c360_pipeline.core.catalog.feature_tables import feature_of
from c360_pipeline.core.catalog.recommendation_tables import RECOMMENDATION_HITS, RECOMMENDATIONS_GIVEN
from c360_pipeline.core.catalog.tables import VISITOR_USER
from c360_pipeline.core.features import hits
from c360_pipeline.core.privacy.purposes import RECOMMENDATIONS
from c360_pipeline.core.projection.items import each_item
from c360_pipeline.resources import ControlResource, LakeResource
from c360_pipeline.stages.visitors.counted import EventsAt
from c360_pipeline.stores.delta.lake import Lake

KEPT_FOR = timedelta(days=30)
"""How long it is known what was recommended to whom; what came of it stays, and names nobody."""


@feature(RECOMMENDATION_HITS)
def recommendation_hits(
    context: dg.AssetExecutionContext, control: ControlResource, lake: LakeResource
) -> dg.MaterializeResult[None]:
    """Join what the API recommended with what was viewed and bought within a day; forget who it was after 30 days."""
    tables = lake.open()
    scope, since = scope_of(context, tables), datetime.now(UTC) - KEPT_FOR
    forget(tables, since)
    made = (feature_of(RECOMMENDATION_HITS), RECOMMENDATIONS)
    used = FeatureEvents(EventsAt.now(tables), made, control.open().privacy.purposes())
    # Days of which a part is forgotten stay as they are.
    first_day = (since + timedelta(days=1)).date()
    found = [tables.scan(RECOMMENDATION_HITS).filter(pl.col("day") < first_day).collect()]
    if scope.named is not None:
        found = [part.filter(pl.col("tenant_id").is_in(scope.named)) for part in found]
    for tenant in scope.tenants:
        given = given_to(tables, tenant).filter(pl.col("given_at").dt.date() >= first_day)
        if given.height:
            events = used.of([tenant], *INTERACTING, "anonymous_id")
            newest = events.select(pl.col("ts").max()).collect(engine="streaming").item()
            recent = each_item(events.filter(pl.col("ts") > given["given_at"].min()))
            acted = recent.select("ts", "action", who=hits.who("user_id", "anonymous_id"), product_id="item_id")
            rows = hits.recommendation_hits(given, acted, newest or since)
            found.append(rows.with_columns(tenant_id=pl.lit(tenant)))
    told = pl.concat([RECOMMENDATION_HITS.empty(), *(part.select(list(RECOMMENDATION_HITS.columns)) for part in found)])
    return kept(context, tables, RECOMMENDATION_HITS, [told], scope, picture=hit_rates(told))


def given_to(lake: Lake, tenant: str) -> pl.DataFrame:
    """What was recommended to whom of a tenant, with `who`: visitors that have logged in since are their users."""
    users = lake.scan(VISITOR_USER).select("tenant_id", "anonymous_id", known="user_id")
    given = lake.scan(RECOMMENDATIONS_GIVEN).filter(pl.col("tenant_id") == tenant)
    named = given.join(users, on=["tenant_id", "anonymous_id"], how="left")
    by_now = named.with_columns(user_id=pl.coalesce("user_id", "known"))
    return by_now.with_columns(who=hits.who("user_id", "anonymous_id")).collect(engine="streaming")


def forget(lake: Lake, since: datetime) -> None:
    """Remove what was recommended before a moment."""
    old = lake.scan(RECOMMENDATIONS_GIVEN).filter(pl.col("given_at") < since).select(RECOMMENDATIONS_GIVEN.key)
    lake.commits.merge(RECOMMENDATIONS_GIVEN, RECOMMENDATIONS_GIVEN.empty(), old.collect(engine="streaming"))


@asset_check(
    asset="recommendation_hits", description="Of no day more products were viewed or bought than were recommended."
)
def hits_are_of_what_was_given(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for rows that no definition gives."""
    wrong = (
        (pl.col("clicked") > pl.col("products"))
        | (pl.col("bought") > pl.col("products"))
        | (pl.col("customers_with_hit") > pl.col("customers"))
        | ~pl.col("hit_rate").is_between(0, 1)
    )
    return wrong_rows(lake, RECOMMENDATION_HITS, wrong)
