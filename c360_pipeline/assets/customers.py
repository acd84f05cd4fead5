"""Features of customers: what they bring, whether they leave, and how well both are foreseen."""

from datetime import datetime
from typing import NamedTuple

import dagster as dg
import polars as pl

from c360_pipeline.assets.features import FeatureEvents, Results, feature_spec, kept, scope_of, wrong_rows
from c360_pipeline.assets.plots import foreseen
from c360_pipeline.assets.specs import asset_check, check_spec, preview
from c360_pipeline.core.catalog.feature_tables import CUSTOMER_CHURN, CUSTOMER_MODELS, CUSTOMER_VALUES, feature_of
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import CATALOG
from c360_pipeline.core.features.churn import customer_churn
from c360_pipeline.core.features.customer_days import NEEDED, customer_days, main_currency
from c360_pipeline.core.features.customer_values import customer_values, models_rows
from c360_pipeline.resources import ControlResource, LakeResource
from c360_pipeline.stages.visitors.counted import EventsAt
from c360_pipeline.stores.delta.lake import Lake


@dg.multi_asset(
    # One step: models are tried while values and chances are made.
    specs=[feature_spec(CUSTOMER_VALUES), feature_spec(CUSTOMER_CHURN), feature_spec(CUSTOMER_MODELS)],
    check_specs=[
        check_spec(
            "models_beat_their_rules",
            asset=feature_of(CUSTOMER_MODELS),
            description="On the newest past, each model foresees better than the rule that is told where it does not.",
        ),
    ],
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def customers(context: dg.AssetExecutionContext, control: ControlResource, lake: LakeResource) -> Results:
    """Say of each customer what they bought, may be expected to buy and pay, and whether they will be seen again."""
    tables = lake.open()
    scope = scope_of(context, tables)
    at = EventsAt.now(tables)
    of_values, of_churn = (FeatureEvents.of_table(control, at, table) for table in (CUSTOMER_VALUES, CUSTOMER_CHURN))
    values, churn, models = [], [], []
    for tenant in scope.tenants:
        known = _days(tables, tenant, of_values)
        if known is not None:
            found, expected = customer_values(known.days, known.newest.date(), known.currency)
            values.append(_rows(CUSTOMER_VALUES, tenant, found, known.newest))
            models.append(models_rows(tenant, expected.measures if expected else []))
        # Customers may refuse one of the two: otherwise the events are read once.
        if not of_churn.asked([tenant]).equals(of_values.asked([tenant])):
            known = _days(tables, tenant, of_churn)
        if known is not None:
            found, model = customer_churn(known.days, known.newest.date())
            churn.append(_rows(CUSTOMER_CHURN, tenant, found, known.newest))
            models.append(models_rows(tenant, model.measures if model else []))
            context.log.info("%s: %s customer days", tenant, f"{known.days.height:,}")
    yield kept(context, tables, CUSTOMER_VALUES, values, scope)
    yield kept(context, tables, CUSTOMER_CHURN, churn, scope)
    measured = pl.concat([CUSTOMER_MODELS.empty(), *models])
    yield kept(context, tables, CUSTOMER_MODELS, models, scope, picture=foreseen(measured))
    yield beat_their_rules(measured)


class _Known(NamedTuple):
    """Days of the customers of a tenant, the currency of what they paid, and when the newest event was."""

    days: pl.DataFrame
    currency: str | None
    newest: datetime


def _days(lake: Lake, tenant: str, used: FeatureEvents) -> _Known | None:
    """What a feature may use of the customers of a tenant; None where there is nothing."""
    events = used.of([tenant], *NEEDED)
    newest = events.drop_nulls("user_id").select(pl.col("ts").max()).collect(engine="streaming").item()
    if newest is None:
        return None
    catalog = lake.scan(CATALOG).filter(pl.col("tenant_id") == tenant).select("id", "price")
    currency = main_currency(events)
    return _Known(customer_days(events, catalog, currency), currency, newest)


def _rows(table: Table, tenant: str, found: pl.DataFrame, newest: datetime) -> pl.DataFrame:
    """Rows of a table, of what was found of a tenant."""
    whole = found.with_columns(tenant_id=pl.lit(tenant), as_of=pl.lit(newest))
    return whole.select(list(table.columns)).cast(table.empty().schema)


def beat_their_rules(measured: pl.DataFrame) -> dg.AssetCheckResult:
    """A check that passes where each model that was tried is used; it names tenants where the rule is told instead."""
    worse = measured.filter(~pl.col("is_used"))
    return dg.AssetCheckResult(
        asset_key=feature_of(CUSTOMER_MODELS),
        check_name="models_beat_their_rules",
        passed=worse.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"worse": preview(worse), "tenants": measured["tenant_id"].n_unique()},
    )


@asset_check(
    asset="customer_values",
    description="Classes lie from 1 to 5, chances in [0, 1]; nobody last bought before they first did, or after now.",
)
def customer_values_are_in_range(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for rows that no definition gives."""
    wrong = (
        ~pl.col("recency_class").is_between(1, 5)
        | ~pl.col("frequency_class").is_between(1, 5)
        | ~pl.col("chance_active").is_between(0, 1)
        | (pl.col("purchases_in_a_year") < 0)
        | (pl.col("last_bought") < pl.col("first_bought"))
        | (pl.col("days_since_purchase") < 0)
        | (pl.col("orders") < pl.col("purchases"))
    )
    return wrong_rows(lake, CUSTOMER_VALUES, wrong)


@asset_check(asset="customer_churn", description="Chances lie in [0, 1]; everybody was seen in the last 84 days.")
def chances_to_leave_are_in_range(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for rows that no definition gives."""
    wrong = ~pl.col("chance_to_leave").is_between(0, 1) | ~pl.col("days_silent").is_between(0, 83)
    return wrong_rows(lake, CUSTOMER_CHURN, wrong)
