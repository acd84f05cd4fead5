"""Features: what the graph and its archive say of users, products, paths and accounts, kept in the lake, per tenant."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import dagster as dg
import polars as pl

from c360_pipeline.assets.partitions import TENANTS, named_partitions, note_partitions
from c360_pipeline.assets.plots import community_sizes
from c360_pipeline.assets.reconciliation import reconciliation_assets
from c360_pipeline.assets.specs import (
    NEO4J_WRITES,
    OWNERS,
    asset_check,
    check_spec,
    column_schema,
    found_none,
    lineage,
    preview,
    rows,
)
from c360_pipeline.core.catalog.changes import Changes
from c360_pipeline.core.catalog.feature_tables import (
    ACCOUNT_VALUES,
    PATH_ANOMALIES,
    PRODUCT_CANDIDATES,
    PRODUCT_SIMILARITIES,
    RECOMMENDATION_SETTINGS,
    TRENDING_PRODUCTS,
    USER_COMMUNITIES,
    USUAL_STEPS,
    feature_of,
)
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import CATALOG, EVENTS
from c360_pipeline.core.features import algorithms, leads, paths, similar_products
from c360_pipeline.core.features import communities as features
from c360_pipeline.core.features.account_values import account_values as values_of_accounts
from c360_pipeline.core.features.recommend import SIMILAR_USER_WEIGHT, candidates
from c360_pipeline.core.features.surprises import usual_steps
from c360_pipeline.core.features.trends import FEATURED, score, trending
from c360_pipeline.core.privacy.purposes import RECOMMENDATIONS, Purpose, purposes_of
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.items import each_item
from c360_pipeline.reads.accounts import newest_of, read_accounts
from c360_pipeline.resources import ControlResource, GraphResource, LakeResource
from c360_pipeline.stages.projection.events import (
    EVENT_PROJECTION,
    PRODUCT_PROJECTION,
    ProductGraph,
    decisions_before,
    events_in,
)
from c360_pipeline.stages.realtime.surprises import forget_surprises
from c360_pipeline.stages.visitors.counted import EventsAt
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph

NIGHTLY_FEATURES = (
    dg.AutomationCondition.on_cron("0 2 * * *") & dg.AutomationCondition.all_deps_blocking_checks_passed()
).with_label("once a night, when the graph was proved to equal its archive")
TIES_KEPT = 20
"""Of the most similar products so many are asked for, so that links at the tenth are decided by id."""
PERSONAL = ("user_id", "session_id", "email", "account_id")
"""Columns that a preview does not show: the log of runs is read by people who need not know them."""
INTERACTING = ("tenant_id", "event_id", "user_id", "item_id", "items", "ts", "action")
"""What views and purchases are counted from."""
PATH_COLUMNS = ("tenant_id", "user_id", "session_id", "event_id", "ts", "action")

Results = Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]
Asset = Callable[[Callable[..., dg.MaterializeResult[None] | Results]], dg.AssetsDefinition]


def feature_spec(table: Table, *, deps: Sequence[str] = (), kinds: Iterable[str] = ()) -> dg.AssetSpec:
    """The spec of a table of features: partitioned by tenant, made at night, with the table's columns."""
    return dg.AssetSpec(
        feature_of(table),
        deps=[*reconciliation_assets.keys, *deps],
        description=table.description,
        owners=OWNERS,
        group_name="features",
        kinds={"deltalake", *kinds},
        metadata={"dagster/column_schema": column_schema(table), "lake_table": table.name},
        partitions_def=TENANTS,
        automation_condition=NIGHTLY_FEATURES,
    )


def feature(
    table: Table, *, kinds: Iterable[str] = (), pool: str | None = None, checks: Mapping[str, str] | None = None
) -> Asset:
    """An asset that is one table of features, with checks, by name, of what it read itself."""
    return dg.multi_asset(
        name=feature_of(table),
        specs=[feature_spec(table, kinds=kinds)],
        check_specs=[
            check_spec(name, asset=feature_of(table), description=description)
            for name, description in (checks or {}).items()
        ],
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=pool,
    )


class Scope(NamedTuple):
    """What a run is about.

    Attributes:
        tenants: whose features are made.
        named: the same where the run names partitions, None where it takes all.
    """

    tenants: list[str]
    named: list[str] | None


def scope_of(context: dg.AssetExecutionContext, lake: Lake) -> Scope:
    """The tenants that a run names, else all that have events."""
    named = named_partitions(context)
    return Scope(lake.count_by(EVENTS, "tenant_id")["tenant_id"].to_list() if named is None else named, named)


@dataclass(frozen=True)
class FeatureEvents:
    """The events that a feature may use.

    Attributes:
        at: which moment of the archive.
        features: the tables that are made of them, or `recommendations`; the purposes of all count.
        purposes: rows of `feature_purposes`.
    """

    at: EventsAt
    features: tuple[str, ...]
    purposes: Sequence[Purpose]

    @classmethod
    def of_table(cls, control: ControlResource, at: EventsAt, table: Table) -> "FeatureEvents":
        """Those that a table of features may use."""
        return cls(at, (feature_of(table),), control.open().privacy.purposes())

    def asked(self, tenants: Sequence[str]) -> pl.DataFrame:
        """tenant_id, purpose: what customers must not have refused; sorted."""
        asked = [purposes_of(self.purposes, feature, tenants) for feature in self.features]
        return pl.concat(asked).unique().sort(pl.all())

    def of(self, tenants: Sequence[str], *columns: str) -> pl.LazyFrame:
        """Columns of the events of tenants; `user_id` is the customer; who refused a purpose is left out."""
        return self.at.of_tenants(tenants, columns, self.asked(tenants))

    def steps(self, tenant: str) -> pl.DataFrame:
        """`PATH_COLUMNS` of the events of a tenant that are in a session."""
        return self.of([tenant], *PATH_COLUMNS).drop_nulls("session_id").collect()


def publish(
    context: dg.AssetExecutionContext, lake: Lake, table: Table, found: Sequence[pl.DataFrame], scope: Scope
) -> tuple[pl.DataFrame, Changes]:
    """Replace the rows of the tenants in the lake, and say of each tenant how many there are."""
    frame = pl.concat([table.empty(), *found])
    changes = lake.commits.replace(table, frame, tenants=scope.named)
    context.instance.add_dynamic_partitions(str(TENANTS.name), scope.tenants)
    of_tenant = dict(frame.group_by("tenant_id").len().iter_rows())
    note_partitions(context, feature_of(table), {t: rows(of_tenant.get(t, 0)) for t in scope.tenants})
    return frame, changes


def kept(
    context: dg.AssetExecutionContext, lake: Lake, table: Table, found: Sequence[pl.DataFrame], scope: Scope,
    **metadata: dg.MetadataValue[str | None],
) -> dg.MaterializeResult[None]:  # fmt: skip
    """The same as the result of an asset, with the first rows, less who they are about."""
    frame, changes = publish(context, lake, table, found, scope)
    shown = preview(frame.drop(PERSONAL, strict=False))
    said = rows(frame.height, changed_rows=changes.count, preview=shown, **metadata, **lineage(table))
    return dg.MaterializeResult(asset_key=feature_of(table), metadata=said)


def of_each_tenant(
    context: dg.AssetExecutionContext, lake: Lake, table: Table, compute: Callable[[str], Iterable[pl.DataFrame]]
) -> dg.MaterializeResult[None]:
    """The same of rows that are computed tenant by tenant."""
    scope = scope_of(context, lake)
    return kept(context, lake, table, [part for tenant in scope.tenants for part in compute(tenant)], scope)


def events_in_graph(neo4j: Graph, lake: Lake, projection: str) -> EventsAt:
    """The archived events as a projection has brought them to the graph; the newest where that is not known.

    What is made of it has its users and products in the graph, whatever lands meanwhile; events that were tracked and
    have not landed are not in it.
    """
    known = events_in(neo4j, lake, projection)
    decisions = decisions_before(lake, neo4j.checkpoints.of(EVENT_PROJECTION))
    return EventsAt.of(lake, known, decisions) if known else EventsAt(lake)


def featureless(at: EventsAt, tenants: Sequence[str]) -> dg.AssetCheckResult:
    """A check that passes when every one of some tenants with events has views or purchases; it names other actions."""
    events = at.scan(["tenant_id", "action"]).filter(pl.col("tenant_id").is_in(list(tenants)))
    counts = events.group_by("tenant_id", "action").agg(events=pl.len()).collect(engine="streaming")
    made = counts.filter(pl.col("action").is_in(FEATURED)).select("tenant_id").unique()
    others = counts.join(made, on="tenant_id", how="anti").sort("tenant_id", -pl.col("events").cast(pl.Int64), "action")
    whose = ", ".join(others["tenant_id"].unique(maintain_order=True).head(5))
    return dg.AssetCheckResult(
        asset_key="user_communities",
        check_name="every_tenant_has_views_or_purchases",
        passed=others.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        description="" if others.is_empty() else (
            f"No event of {whose} is a view or a purchase, "
            "so there are no recommendations, communities and trends. Name those that are in the mapping (`action`, "
            "`map`), and apply it to old files: docs/mappings.md."
        ),
        metadata={"actions": preview(others)},
    )  # fmt: skip


def weights_of(used: FeatureEvents, tenant: str) -> pl.DataFrame:
    """How customers and products of a tenant are linked."""
    events = used.of([tenant], *INTERACTING)
    found = events.filter(pl.col("action").is_in(FEATURED)).collect(engine="streaming")
    counted = found.rename({"user_id": model.CUSTOMER_ID})
    return features.interaction_weights(model.views(counted), model.purchases(counted))


@dg.multi_asset(
    # One step: a run that names no partition can't have a partitioned asset that waits for another one.
    specs=[
        feature_spec(USER_COMMUNITIES, kinds={"neo4j"}),
        feature_spec(PATH_ANOMALIES, deps=["user_communities"]),
        feature_spec(USUAL_STEPS),
    ],
    check_specs=[
        check_spec(
            "every_active_user_has_a_community",
            asset="user_communities",
            description="Every user whose views and purchases were read has one community in the graph.",
        ),
        check_spec(
            "every_tenant_has_views_or_purchases",
            asset="user_communities",
            description="Every tenant with events has some that are a view or a purchase, which features are made of.",
        ),
    ],
    backfill_policy=dg.BackfillPolicy.single_run(),
    pool=NEO4J_WRITES,
)
def communities(
    context: dg.AssetExecutionContext,
    control: ControlResource,
    lake: LakeResource,
    graph: GraphResource,
) -> Results:
    """Run Louvain per tenant, keep and write what changed; then rate the last week's sessions by their community.

    And learn what is usual, by which sessions are rated while they go on.
    """
    tables = lake.open()
    scope, modularity, parts = scope_of(context, tables), dict[str, float](), list[pl.DataFrame]()
    active = [USER_COMMUNITIES.empty().select("tenant_id", "user_id")]
    with graph.open() as neo4j:
        at = events_in_graph(neo4j, tables, EVENT_PROJECTION)
        used = FeatureEvents.of_table(control, at, USER_COMMUNITIES)
        for tenant in scope.tenants:
            weights = weights_of(used, tenant)
            if weights.height:
                active.append(weights.select("tenant_id", "user_id").unique())
                members, edges = features.number_members(weights)
                labels = algorithms.louvain(members, edges)
                parts.append(features.canonical_communities(tenant, members, labels))
                modularity[tenant] = round(features.modularity(edges, labels), 4)
        found, changes = publish(context, tables, USER_COMMUNITIES, parts, scope)
        neo4j.writer.update(model.USER_COMMUNITY, model.user_communities(found))
        neo4j.writer.update(model.USER_COMMUNITY, model.users_without_community(changes.deleted))
        # Who became active since the weights were read is left to the next run.
        without = [neo4j.counts.active_users_without_community(tenant) for tenant in scope.tenants]
        left_out = pl.concat(active).join(pl.concat([active[0], *without]), on=["tenant_id", "user_id"], how="semi")
    sizes = found.unique(["tenant_id", "community"]).sort("tenant_id", "community").drop("user_id")
    yield dg.MaterializeResult(
        asset_key="user_communities",
        metadata=rows(
            found.height,
            changed_rows=changes.count,
            modularity=dg.MetadataValue.json(modularity),
            picture=community_sizes(sizes),
            sizes=preview(sizes, 50),
            **lineage(USER_COMMUNITIES),
        ),
    )
    # Who has a community has views or purchases: only of the others the archive is asked.
    yield featureless(at, [tenant for tenant in scope.tenants if tenant not in modularity])
    yield dg.AssetCheckResult(
        asset_key="user_communities",
        check_name="every_active_user_has_a_community",
        passed=left_out.is_empty(),
        metadata={"left_out": left_out.height},
    )
    walked = FeatureEvents.of_table(control, EventsAt(tables), PATH_ANOMALIES)
    odd, usual = [], []
    with graph.open() as neo4j:
        for tenant in scope.tenants:
            steps = walked.steps(tenant)
            odd.append(paths.path_anomalies(steps.drop_nulls("user_id"), found))
            usual.append(usual_steps(steps))
            # Of all events: those of who refused are in no steps.
            whole = tables.scan(EVENTS).filter(pl.col("tenant_id") == tenant)
            newest = whole.select(pl.col("ts").max()).collect(engine="streaming").item()
            if isinstance(newest, datetime):
                forget_surprises(neo4j, tenant, newest, walked.purposes)
    yield kept(context, tables, PATH_ANOMALIES, odd, scope)
    yield kept(context, tables, USUAL_STEPS, usual, scope)


@dg.multi_asset(
    # One step, as above; both are made of the same purchases.
    specs=[feature_spec(RECOMMENDATION_SETTINGS), feature_spec(PRODUCT_SIMILARITIES, kinds={"neo4j"})],
    check_specs=[
        check_spec(
            "recommendations_beat_popularity",
            asset="recommendation_settings",
            description="Of held-out purchases, more are among ten recommended products than among the ten that most "
            "customers bought.",
        ),
    ],
    backfill_policy=dg.BackfillPolicy.single_run(),
    pool=NEO4J_WRITES,
)
def product_links(
    context: dg.AssetExecutionContext,
    control: ControlResource,
    lake: LakeResource,
    graph: GraphResource,
) -> Results:
    """Products with the same customers, of the same sessions, and those that one leads to; all become edges."""
    tables = lake.open()
    scope = scope_of(context, tables)
    with graph.open() as neo4j:
        at = events_in_graph(neo4j, tables, PRODUCT_PROJECTION)
        used = FeatureEvents.of_table(control, at, PRODUCT_SIMILARITIES)
        made = (RECOMMENDATIONS, feature_of(RECOMMENDATION_SETTINGS), feature_of(PRODUCT_SIMILARITIES))
        recommended = FeatureEvents(at, made, used.purposes)
        views = used.of(scope.tenants, *INTERACTING, "session_id")
        viewed = each_item(views.filter(pl.col("action") == "view").drop_nulls("session_id"))
        parts, settings = [similar_products.similar_by_sessions(viewed)], []
        for tenant in scope.tenants:
            weights = weights_of(used, tenant)
            if weights.height:
                members, edges = similar_products.customers_of_products(weights)
                pairs = algorithms.node_similarity(edges, TIES_KEPT)
                parts.append(
                    similar_products.similar_by_customers(
                        tenant, members, similar_products.shared_customers(pairs, edges)
                    )
                )
            met = leads.interactions(recommended.of([tenant], *INTERACTING))
            if met.height:
                chosen = leads.chosen(met)
                settings.append(leads.settings_row(tenant, chosen))
                learned = leads.learned(leads.interests(met), [chosen.regularisation])
                parts.append(leads.lead_rows(tenant, learned[chosen.regularisation]))
        yield kept(context, tables, RECOMMENDATION_SETTINGS, settings, scope)
        yield beats_popularity(pl.concat([RECOMMENDATION_SETTINGS.empty(), *settings]))
        result = kept(context, tables, PRODUCT_SIMILARITIES, parts, scope)
        ProductGraph(tables, neo4j).project_similarities()
    yield result


def beats_popularity(settings: pl.DataFrame) -> dg.AssetCheckResult:
    """A check that passes where recommendations find more than what is popular does; it names tenants where not."""
    worse = settings.filter(pl.col("recall") <= pl.col("popular_recall"))
    return dg.AssetCheckResult(
        asset_key="recommendation_settings",
        check_name="recommendations_beat_popularity",
        passed=worse.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"worse": preview(worse), "tenants": settings.height},
    )


@asset_check(
    asset="product_similarities",
    description="Similarities lie in (0, 1], ranks from 1 to 10, of weights from 1 to 50; none leads to itself.",
)
def similarities_are_in_range(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for rows that no definition gives."""
    is_weight = pl.col("kind") == leads.LEADS_TO
    most = pl.when(is_weight).then(leads.KEPT).otherwise(features.SIMILAR_PRODUCTS)
    wrong = (
        (pl.col("similarity") <= 0)
        | (~is_weight & (pl.col("similarity") > 1))
        | ~pl.col("rank").is_between(1, most)
        | (pl.col("product_id") == pl.col("similar_product_id"))
    )
    return wrong_rows(lake, PRODUCT_SIMILARITIES, wrong)


@feature(
    PRODUCT_CANDIDATES,
    checks={
        "candidates_are_new_to_their_users": "Scores are ten for each similar user and their strength; none is bought."
    },
)
def product_candidates(context: dg.AssetExecutionContext, control: ControlResource, lake: LakeResource) -> Results:
    """Score for every user what customers with the same purchases bought besides."""
    tables = lake.open()
    # What is bought meanwhile is left to the next run, by the check, too.
    used = FeatureEvents.of_table(control, EventsAt.now(tables), PRODUCT_CANDIDATES)

    def purchases_of(tenant: str) -> pl.LazyFrame:
        bought = used.of([tenant], *INTERACTING)
        return bought.filter(pl.col("action") == "purchase")

    def of_tenant(tenant: str) -> Iterable[pl.DataFrame]:
        bought = purchases_of(tenant).rename({"user_id": model.CUSTOMER_ID})
        purchases = model.purchases(bought.collect(engine="streaming"))
        return candidates(tenant, purchases.select("count", user_id="from_id", product_id="to_id"))

    scope = scope_of(context, tables)
    found = [part for tenant in scope.tenants for part in of_tenant(tenant)]
    yield kept(context, tables, PRODUCT_CANDIDATES, found, scope)
    rows_found = pl.concat([PRODUCT_CANDIDATES.empty(), *found])
    bought = [
        each_item(purchases_of(one)).select("tenant_id", "user_id", product_id="item_id") for one in scope.tenants
    ]
    key = ["tenant_id", "user_id", "product_id"]
    owned = [rows_found.lazy().join(one, on=key, how="semi").collect(engine="streaming") for one in bought]
    odd = rows_found.filter(
        (pl.col("score") != SIMILAR_USER_WEIGHT * pl.col("similar_users") + pl.col("strength"))
        | (pl.col("similar_users") < 1)
    )
    yield found_none("product_candidates", "candidates_are_new_to_their_users",
                     owned=pl.concat([rows_found.clear(), *owned]), odd=odd)  # fmt: skip


@feature(TRENDING_PRODUCTS)
def trending_products(
    context: dg.AssetExecutionContext, control: ControlResource, lake: LakeResource
) -> dg.MaterializeResult[None]:
    """Rank products by the people who viewed and bought them in the last day, week and month."""
    tables = lake.open()
    scope = scope_of(context, tables)
    events = FeatureEvents.of_table(control, EventsAt(tables), TRENDING_PRODUCTS).of(scope.tenants, *INTERACTING)
    return kept(context, tables, TRENDING_PRODUCTS, [trending(events, tables.read(CATALOG))], scope)


@asset_check(
    asset="trending_products", description="Scores are viewers and five times buyers; ranks begin with 1 in a window."
)
def trends_add_up(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for rows that no definition gives."""
    trend = score(pl.col("viewers"), pl.col("buyers"))
    is_ranked = pl.col("rank") == pl.col("rank").min().over("tenant_id", "window_hours")
    wrong_first = is_ranked & (pl.col("rank") != 1)
    return wrong_rows(lake, TRENDING_PRODUCTS, (pl.col("score") != trend) | (trend < 1) | wrong_first)


@feature(
    ACCOUNT_VALUES,
    kinds={"neo4j"},
    checks={
        "every_account_has_a_value": "Risks lie in [0, 1], values are not negative, every account that was read has "
        "one row."
    },
)
def account_values(context: dg.AssetExecutionContext, lake: LakeResource, graph: GraphResource) -> Results:
    """Say of every account what it is worth and how likely it leaves, counted to the tenant's newest event."""
    tables = lake.open()
    scope = scope_of(context, tables)
    with graph.open() as neo4j:
        newest = {tenant: newest_of(neo4j.run, tenant) for tenant in scope.tenants}
        accounts = [read_accounts(neo4j.run, tenant, now) for tenant, now in newest.items() if now is not None]
    found = [values_of_accounts(part) for part in accounts]
    yield kept(context, tables, ACCOUNT_VALUES, found, scope)
    values = pl.concat([ACCOUNT_VALUES.empty(), *found])
    read = sum(part.height for part in accounts)
    wrong = ~pl.col("churn_risk").is_between(0, 1) | (pl.col("value_to_date") < 0) | (pl.col("monthly_value") < 0)
    odd = values.filter(wrong)
    yield dg.AssetCheckResult(
        asset_key="account_values",
        check_name="every_account_has_a_value",
        passed=odd.is_empty() and values.n_unique(ACCOUNT_VALUES.key) == read,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"odd": preview(odd), "accounts": read, "rows": values.height},
    )


def wrong_rows(lake: LakeResource, table: Table, wrong: pl.Expr) -> dg.AssetCheckResult:
    """A check that passes when no row of a table is wrong."""
    found = lake.open().scan(table).filter(wrong).collect()
    return dg.AssetCheckResult(passed=found.is_empty(), metadata={"wrong": preview(found), "rows": found.height})
