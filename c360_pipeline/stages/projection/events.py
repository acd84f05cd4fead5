"""Events and the catalogue in the graph: what changed since its checkpoints, from both sides of the change."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from c360_pipeline.core.catalog.changes import Changes, Version, difference
from c360_pipeline.core.catalog.feature_tables import PRODUCT_SIMILARITIES, USER_COMMUNITIES
from c360_pipeline.core.catalog.tables import CATALOG, EVENT_JOURNEY, EVENTS, VISITOR_DECISIONS
from c360_pipeline.core.contract.frames import ENTRIES
from c360_pipeline.core.features.leads import LEADS_TO
from c360_pipeline.core.features.similar_products import SAME_CUSTOMERS, VIEWED_TOGETHER
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.items import each_item
from c360_pipeline.core.projection.user_properties import (
    UserProperty,
    as_text,
    from_text,
    property_kinds,
    values,
)
from c360_pipeline.core.visitors.counting import NEEDED, uncounted
from c360_pipeline.core.visitors.groups import says_group, with_groups
from c360_pipeline.stages.projection.refused import RefusedRows
from c360_pipeline.stages.realtime.said import tell_again
from c360_pipeline.stages.realtime.unlanded_events import (
    customers_of_visitors,
    events_of_visitors,
    unlanded_events,
    visitors_ahead,
)
from c360_pipeline.stages.visitors.around import Around, events_around
from c360_pipeline.stages.visitors.counted import PROJECTED, EventsAt
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.local.scratch import scratch_folder
from c360_pipeline.stores.neo4j.graph import Graph

ABOUT = ("item_id", "items")
"""Columns that say which products an event is about."""
SLICE_ROWS = 250_000
"""Events that are in memory at once when a graph is made from all of them."""
EVENT_PROJECTION, PRODUCT_PROJECTION = "event_graph", "product_graph"
COUNTING, COUNTED_BY = "counting", Version("counting", 2)
"""Checkpoint of the rules by which events were counted for customers; a graph of an earlier release has none."""
PROPERTIES, INTENDED = "user_properties", "user_properties_intended"
"""Checkpoints of the traits that are properties, and of those that may be there already, which say them."""
MENDED = tuple(
    projection
    for projection in model.EVENT_PROJECTIONS
    if projection.kind
    in (
        model.USER,
        model.HAS_SESSION,
        model.VIEWED,
        model.PURCHASED,
        model.VISITOR,
        model.VISITOR_SESSION,
        model.IS_USER,
    )
)
"""What a login before its landing may have written."""
SIMILARITIES = (
    (model.SIMILAR_TO, SAME_CUSTOMERS), (model.ALSO_VIEWED, VIEWED_TOGETHER), (model.LEADS_TO, LEADS_TO),
)  # fmt: skip
"""Kinds of relationships between products, with their name in the lake."""


class EventGraph:
    """Brings events into a graph.

    Args:
        lake: where they are.
        graph: where they go; it keeps how far it is.
        properties: traits that are properties of users.
    """

    def __init__(self, lake: Lake, graph: Graph, properties: Sequence[UserProperty]) -> None:
        self._lake = lake
        self._graph = graph
        self._properties = tuple(sorted(properties))

    def project(self) -> dict[str, int]:
        """Project what came, changed or went since the graph's checkpoint; returns rows by kind."""
        lake, graph = self._lake, self._graph
        refused = RefusedRows(lake, graph.refusals)
        done = graph.checkpoints.of(EVENT_PROJECTION)
        since = lake.versions.still_there(EVENTS, done.get(EVENTS.name))
        decided, decisions = lake.versions.changes(VISITOR_DECISIONS, done.get(VISITOR_DECISIONS.name))
        is_old = since is not None and done.get(COUNTING) != COUNTED_BY and self._counts_otherwise(since)
        is_lost = VISITOR_DECISIONS.name in done and decisions_before(lake, done) is None
        is_whole = since is None or is_old or is_lost
        known = intended_properties(graph)
        if known != self._properties:
            # Said before anything is written: a run that is killed leaves properties that the next one knows of.
            graph.checkpoints.save(EVENT_PROJECTION, INTENDED, Version(as_text({*known, *self._properties}), 1))
            for kind in property_kinds({*known} - {*self._properties}):
                graph.writer.clear_property(kind)
        if since is None or is_whole:
            version = lake.versions.version(EVENTS.name)
            at = EventsAt.of(lake, version, decisions)
            changed_rows = self._project_all(at, since if is_old else None) if version else {}
        else:
            before = EventsAt.of(lake, since, decisions_before(lake, done))
            changed_rows, version = self._project_changes(since, before, decided, decisions)
        # Communities that an interrupted run has kept in the lake and not written here.
        late, late_version = lake.versions.changes(USER_COMMUNITIES, done.get(USER_COMMUNITIES.name))
        graph.writer.update(model.USER_COMMUNITY, model.user_communities(late.upserted))
        graph.writer.update(model.USER_COMMUNITY, model.users_without_community(late.deleted))
        if version and self._properties and known != self._properties and not is_whole:
            with self._counted(EventsAt.of(lake, version, decisions), [*NEEDED, "traits"]) as events:
                self._write_properties(events)
        tell_again(graph)
        refused.publish()
        graph.checkpoints.save(EVENT_PROJECTION, USER_COMMUNITIES.name, late_version)
        note_counting(graph, decisions, self._properties)
        graph.checkpoints.save(EVENT_PROJECTION, EVENTS.name, version)
        return changed_rows

    def _counts_otherwise(self, since: Version) -> bool:
        """Whether an earlier release has projected events that count for others now, are in sessions or say groups."""
        odd = pl.col("anonymous_id").is_not_null() | pl.col("session_id").is_null() | says_group()
        found = self._lake.scan(EVENTS, since.number).select("anonymous_id", "session_id", "attrs").filter(odd).head(1)
        return not found.collect().is_empty()

    def _project_all(self, at: EventsAt, by_old_rules: Version | None = None) -> dict[str, int]:
        """Write every row of every kind, a slice of the archive at a time; what is counted is on disk meanwhile.

        Args:
            at: which moment.
            by_old_rules: what an earlier release has written without counting, which is removed where it is no more.
        """
        lake, graph = self._lake, self._graph
        slices = -(-lake.count(EVENTS) // SLICE_ROWS)
        changed_rows: dict[str, int] = {}
        with self._counted(at, PROJECTED) as events:
            old = with_groups(uncounted(EventsAt.of(lake, by_old_rules, None).scan(PROJECTED)))
            ahead = visitors_ahead(graph)
            around = self._ahead(at, events, ahead)
            marked = _of_visitors(around.now, ahead)
            for projection in model.EVENT_PROJECTIONS:
                kind, key = projection.kind, projection.kind.key_columns
                for part in range(slices):
                    was, rows = (
                        projection.build(_slice(frame, projection.scope, slices, part).collect(engine="streaming"))
                        for frame in (old, events)
                    )
                    gone = was.select(key).join(rows.select(key), on=key, how="anti")
                    self._apply(kind, Changes.of(rows, gone), marked)
                    changed_rows[kind.name] = changed_rows.get(kind.name, 0) + rows.height
            self._mend(around, ahead)
            assigned, own = lake.scan(EVENT_JOURNEY), EVENTS.key
            for part in range(slices):
                mine, theirs = (_slice(frame.select(own), own, slices, part) for frame in (events, assigned))
                graph.writer.update(model.EVENT_STATUS, model.event_status(mine.collect(), theirs.collect()))
            if self._properties:
                self._write_properties(events)
        self._write_communities(at.scan(PROJECTED))
        return changed_rows

    def _ahead(self, at: EventsAt, events: pl.LazyFrame, visitors: pl.DataFrame) -> Around:
        """The events of some visitors, and of all whom the graph lets them count for; there was nothing before."""
        theirs = events.join(
            visitors.lazy().rename({"anonymous_id": "visitor_id"}), on=["tenant_id", "visitor_id"], how="semi"
        )  # fmt: skip
        customers = theirs.select("tenant_id", user_id="customer_id").drop_nulls().unique().collect(engine="streaming")
        users = pl.concat([customers, customers_of_visitors(self._graph, visitors)]).unique()
        named = users.lazy().rename({"user_id": "customer_id"})
        of_users = events.join(named, on=["tenant_id", "customer_id"], how="semi")
        now = pl.concat([theirs, of_users]).unique(list(EVENTS.key)).collect(engine="streaming")
        return Around(now, now.clear(), now, visitors, users, (at, at))

    def _apply(self, kind: model.Kind, changes: Changes, marked: pl.DataFrame) -> None:
        """Write a kind; of some events the mark of what has not landed stays until `_mend` is done."""
        if kind is model.ACTION and marked.height:
            ids = marked.select("tenant_id", id="event_id")
            kept = changes.upserted.join(ids, on=["tenant_id", "id"], how="semi")
            self._graph.writer.merge(model.MARKED_ACTION, kept)
            others = changes.upserted.join(ids, on=["tenant_id", "id"], how="anti")
            changes = Changes.of(others, changes.deleted)
        self._graph.writer.apply(kind, changes)

    def _project_changes(
        self, since: Version, before: EventsAt, decided: Changes, decisions: Version | None
    ) -> tuple[dict[str, int], Version | None]:
        lake, graph = self._lake, self._graph
        changed, version = lake.versions.changes(EVENTS, since, PROJECTED)
        changed_rows = {}
        if changed.count or decided.count:
            now = EventsAt.of(lake, version, decisions)
            ahead = visitors_ahead(graph)
            around = events_around(
                changed, decided, before, now, lambda visitors: customers_of_visitors(graph, _both(visitors, ahead))
            )
            mended = _both(around.visitors, ahead)
            marked = _of_visitors(around.now, mended)
            for projection in model.EVENT_PROJECTIONS:
                changes = project_touched(projection, around)
                self._apply(projection.kind, changes, marked)
                changed_rows[projection.kind.name] = changes.count
            self._mend(around, mended)
            self._write_communities(around.touched.lazy())
            self._write_changed_properties(around)
        if changed.upserted.height:
            graph.writer.update(model.EVENT_STATUS, model.event_status(changed.upserted, lake.read(EVENT_JOURNEY)))
        return changed_rows, version

    def _mend(self, around: Around, visitors: pl.DataFrame) -> None:
        """Let the graph hold of some visitors, and of all whom they count for, what the archive says.

        Before events landed, a login may have moved to somebody what the archive gives to another: neither is a
        difference between what the archive said and says.
        """
        graph = self._graph
        if visitors.is_empty():
            return
        of_visitors = [_of_visitors(rows, visitors) for rows in (around.before, around.now)]
        customers = [rows.select("tenant_id", user_id="customer_id").drop_nulls() for rows in of_visitors]
        users = pl.concat([customers_of_visitors(graph, visitors), *customers]).unique()
        read: list[tuple[model.Projection, pl.DataFrame, pl.DataFrame]] = []
        for projection in MENDED:
            column = projection.start
            names = users if column == model.CUSTOMER_ID else visitors
            names = names.rename({names.columns[1]: column})
            events = around.now.join(names, on=["tenant_id", column], how="semi")
            wanted = projection.build(events)
            parts = [
                graph.audit.named_rows(projection.kind, str(tenant), ids[ids.columns[1]].to_list())
                for (tenant,), ids in names.partition_by("tenant_id", as_dict=True).items()
            ]
            read.append((projection, pl.concat([wanted.select(list(projection.kind.schema)).clear(), *parts]), wanted))
        # Asked for when all was read: what came meanwhile is not among it.
        unlanded = unlanded_events(graph).join(around.now.select(EVENTS.key), on=EVENTS.key, how="anti")
        ahead = model.unlanded_keys(unlanded, events_of_visitors(graph, unlanded))
        for projection, found, wanted in read:
            held, asked = found, wanted.select(found.columns)
            for keys in ahead.get(projection.kind, ()):
                held, asked = (rows.join(keys, on=keys.columns, how="anti") for rows in (held, asked))
            graph.writer.apply(projection.kind, difference(held, asked, tuple(projection.kind.key_columns)))
        # The marks of what landed go last: broken off before, all is done again.
        graph.writer.merge(model.ACTION, model.actions(_of_visitors(around.now, visitors)))

    def _write_changed_properties(self, around: Around) -> None:
        """The traits that are properties, where they differ for customers of touched events."""
        if not self._properties:
            return
        touched = around.touched.select("tenant_id", model.CUSTOMER_ID).drop_nulls().unique()
        was, now = (
            values(rows.join(touched, on=touched.columns, how="semi"), self._properties)
            for rows in (around.before, around.now)
        )
        for kind in property_kinds(self._properties):
            columns = list(kind.schema)
            changes = difference(was.select(columns), now.select(columns), kind.key_columns)
            new = changes.inserted.drop_nulls(kind.owned_property)
            self._graph.writer.update(kind, pl.concat([new, changes.updated]))

    def _write_properties(self, events: pl.LazyFrame) -> None:
        """The traits that are properties, of all customers of whom something was said; of counted events on disk."""
        said = events.filter(pl.col("traits").cast(ENTRIES).list.len() > 0)
        slices = -(-int(said.select(pl.len()).collect().item()) // SLICE_ROWS)
        for part in range(slices):
            some = _slice(said, ("tenant_id", model.CUSTOMER_ID), slices, part).collect(engine="streaming")
            found = values(some, self._properties)
            for kind in property_kinds(self._properties):
                self._graph.writer.update(kind, found.select(list(kind.schema)))

    @contextmanager
    def _counted(self, at: EventsAt, columns: Sequence[str]) -> Iterator[pl.LazyFrame]:
        """Columns of all events, counted, on disk meanwhile."""
        with scratch_folder(self._lake.cache) as folder:
            file = folder / "events.parquet"
            at.counted(at.scan(columns)).sink_parquet(file, compression="lz4")
            yield pl.scan_parquet(file)

    def _write_communities(self, events: pl.LazyFrame) -> None:
        """The property that a later stage owns, for users that were rebuilt."""
        users = events.select("tenant_id", "user_id").drop_nulls().unique()
        communities = self._lake.scan(USER_COMMUNITIES).join(users, on=["tenant_id", "user_id"], how="semi")
        self._graph.writer.update(model.USER_COMMUNITY, model.user_communities(communities.collect(engine="streaming")))


def decisions_before(lake: Lake, done: Mapping[str, Version]) -> Version | None:
    """The version of what people decided that a graph with these checkpoints was made by; None for none."""
    return lake.versions.still_there(VISITOR_DECISIONS, done.get(VISITOR_DECISIONS.name))


def properties_of(graph: Graph) -> tuple[UserProperty, ...]:
    """The traits that are properties in a graph; none while others are being written."""
    done = graph.checkpoints.of(EVENT_PROJECTION)
    settled, intended = (_properties_in(done.get(name)) for name in (PROPERTIES, INTENDED))
    return settled if settled == intended else ()


def intended_properties(graph: Graph) -> tuple[UserProperty, ...]:
    """Those that may be there, for a run that was killed has begun to write them."""
    return _properties_in(graph.checkpoints.of(EVENT_PROJECTION).get(INTENDED))


def _properties_in(noted: Version | None) -> tuple[UserProperty, ...]:
    return from_text(noted.table_id) if noted else ()


def note_counting(graph: Graph, decisions: Version | None, properties: Sequence[UserProperty]) -> None:
    """Note in a graph by which rules its events were counted, and which traits are properties."""
    for name in (PROPERTIES, INTENDED):
        graph.checkpoints.save(EVENT_PROJECTION, name, Version(as_text(properties), 1))
    graph.checkpoints.save(EVENT_PROJECTION, VISITOR_DECISIONS.name, decisions)
    graph.checkpoints.save(EVENT_PROJECTION, COUNTING, COUNTED_BY)


def _slice(frame: pl.LazyFrame, columns: Sequence[str], slices: int, part: int) -> pl.LazyFrame:
    """One of so many parts, in which all rows are that agree on some columns; those without the last are in none."""
    named = frame.filter(pl.col(columns[-1]).is_not_null())
    return named.filter(pl.struct(columns).hash() % slices == part)


def _both(visitors: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    return visitors.join(others, on=visitors.columns, how="semi")


def _of_visitors(events: pl.DataFrame, visitors: pl.DataFrame) -> pl.DataFrame:
    return events.join(
        visitors, left_on=["tenant_id", "visitor_id"], right_on=["tenant_id", "anonymous_id"], how="semi"
    )  # fmt: skip


class ProductGraph:
    """Brings products and categories into a graph.

    Args:
        lake: the catalogue, and events with items that it does not know.
        graph: where they go; it keeps how far it is.
    """

    def __init__(self, lake: Lake, graph: Graph) -> None:
        self._lake = lake
        self._graph = graph

    def project(self) -> None:
        """Project the products that changed since the graph's checkpoint."""
        lake, graph = self._lake, self._graph
        done = graph.checkpoints.of(PRODUCT_PROJECTION)
        events, events_version = lake.versions.changes(EVENTS, done.get(EVENTS.name), [*EVENTS.key, *ABOUT])
        catalog, catalog_version = lake.versions.changes(CATALOG, done.get(CATALOG.name))
        refused = RefusedRows(lake, graph.refusals)
        catalog_before = lake.versions.still_there(CATALOG, done.get(CATALOG.name))
        has_catalog = catalog_version is not None or CATALOG.name in done
        is_known = lake.versions.still_there(EVENTS, done.get(EVENTS.name)) is not None
        if (
            is_known
            and (catalog_before or not has_catalog)
            and not catalog.count
            and not events.updated.height
            and not events.deleted.height
        ):
            # Products of the catalogue are there, and none can have gone with its last event.
            graph.writer.merge(model.PRODUCT, self._not_in_catalog(events.inserted))
        elif events.count or catalog.count:
            # A tenant whose last item went has none of the rows that are wanted.
            tenants = {*events.upserted["tenant_id"], *events.deleted["tenant_id"]}
            self._write(catalog_before, tenants)
        refused.publish()
        self.project_similarities(self._came(events, catalog, done))
        graph.checkpoints.save(PRODUCT_PROJECTION, EVENTS.name, events_version)
        graph.checkpoints.save(PRODUCT_PROJECTION, CATALOG.name, catalog_version)

    def _not_in_catalog(self, events: pl.DataFrame) -> pl.DataFrame:
        """`PRODUCT` rows of what events are about and the catalogue does not know."""
        catalog = self._lake.read(CATALOG)
        items = items_of(events.lazy()).unique().collect()
        bare = items.join(catalog, left_on=["tenant_id", "item_id"], right_on=["tenant_id", "id"], how="anti")
        return model.products(bare, catalog.clear()).select(list(model.PRODUCT.schema))

    def _came(self, events: Changes, catalog: Changes, done: Mapping[str, Version]) -> pl.DataFrame:
        """tenant_id, id of products that the graph's checkpoint did not know: similarities may wait for them.

        A product that was in the catalogue was known; and only of those that have similarities is looked for an event
        that the graph knew: most that are new have none.
        """
        lake, key = self._lake, ["tenant_id", "id"]
        bare = self._not_in_catalog(events.upserted).select(key)
        now = pl.concat([bare, catalog.upserted.select(key)]).unique()
        if not now.is_empty():
            now = now.join(self._with_similarities(now), on=key, how="semi")
        for table in (EVENTS, CATALOG):
            since = lake.versions.still_there(table, done.get(table.name))
            if since is not None and not now.is_empty():
                rows = lake.scan(table, since.number)
                known = items_of(rows).rename({"item_id": "id"}) if table is EVENTS else rows.select(key)
                held = known.join(now.lazy(), on=key, how="semi")
                now = now.join(held.unique().collect(engine="streaming"), on=key, how="anti")
        return now

    def _with_similarities(self, products: pl.DataFrame) -> pl.DataFrame:
        """Of products, those that similarities speak of."""
        rows = self._lake.scan(PRODUCT_SIMILARITIES)
        ends = [rows.select("tenant_id", id=end) for end in ("product_id", "similar_product_id")]
        return pl.concat(ends).join(products.lazy(), on=["tenant_id", "id"], how="semi").unique().collect()

    def project_similarities(self, came: pl.DataFrame | None = None) -> int:
        """Project the similarities that changed since the graph's checkpoint; returns how many rows did.

        Args:
            came: tenant_id, id of products that are new in the graph: what they are similar to may be known already.
        """
        lake, graph = self._lake, self._graph
        done = graph.checkpoints.of(PRODUCT_PROJECTION)
        changed, version = lake.versions.changes(PRODUCT_SIMILARITIES, done.get(PRODUCT_SIMILARITIES.name))
        upserted = pl.concat([changed.upserted, self._similar_to(came, changed.upserted)])
        tenants = sorted({*upserted["tenant_id"], *changed.deleted["tenant_id"]})
        if tenants:
            products = pl.concat([graph.audit.rows(model.PRODUCT, tenant) for tenant in tenants])
            for kind, name in SIMILARITIES:
                gone = changed.deleted.filter(pl.col("kind") == name)
                graph.writer.apply(kind, Changes.of(
                    model.similar_products(kind, upserted, products, name),
                    gone.select("tenant_id", from_id="product_id", to_id="similar_product_id"),
                ))  # fmt: skip
        graph.checkpoints.save(PRODUCT_PROJECTION, PRODUCT_SIMILARITIES.name, version)
        return changed.count

    def _similar_to(self, came: pl.DataFrame | None, known: pl.DataFrame) -> pl.DataFrame:
        """Similarities of some products, less those that are known."""
        if came is None or came.is_empty():
            return known.clear()
        rows, key = self._lake.scan(PRODUCT_SIMILARITIES), list(PRODUCT_SIMILARITIES.key)
        of_them = pl.concat(
            rows.join(came.lazy(), left_on=["tenant_id", end], right_on=["tenant_id", "id"], how="semi")
            for end in ("product_id", "similar_product_id")
        )
        found = of_them.unique(key).join(known.lazy(), on=key, how="anti").collect(engine="streaming")
        return found.select(known.columns)

    def _write(self, catalog_before: Version | None, tenants: set[str]) -> None:
        lake, graph = self._lake, self._graph
        now = lake.read(CATALOG)
        items = items_of(lake.scan(EVENTS)).unique().collect()
        before = lake.read(CATALOG, catalog_before.number) if catalog_before else CATALOG.empty()
        wanted = model.products(items, now)
        tenants = tenants | set(wanted["tenant_id"]) | set(before["tenant_id"])
        held = [graph.audit.rows(model.PRODUCT, tenant) for tenant in sorted(tenants)]
        found = pl.concat(held) if held else wanted.head(0)
        graph.writer.apply(model.PRODUCT, difference(found, wanted.select(found.columns), ("tenant_id", "id")))
        for kind, build in ((model.CATEGORY, model.categories), (model.IN_CATEGORY, model.product_categories)):
            graph.writer.apply(kind, difference(build(before), build(now), tuple(kind.key_columns)))


@dataclass(frozen=True)
class Lag:
    """How far the graph is behind the archive for one tenant.

    Attributes:
        tenant_id: whose.
        newest: when its last event landed; by event time, one that comes late would not count.
        newest_in_graph: when the last landed that the graph shows, None when it shows none.
        seconds: between the two.
    """

    tenant_id: str
    newest: datetime
    newest_in_graph: datetime | None

    @property
    def seconds(self) -> float:
        """Zero when the graph is up to date; from the beginning of the tenant when it shows nothing."""
        if self.newest_in_graph is None:
            return float("inf")
        return max((self.newest - self.newest_in_graph).total_seconds(), 0.0)


def events_in(graph: Graph, lake: Lake, projection: str) -> Version | None:
    """The version of the archived events that a projection has brought to the graph; None where that is not known."""
    return lake.versions.still_there(EVENTS, graph.checkpoints.of(projection).get(EVENTS.name))


def items_of(events: pl.LazyFrame) -> pl.LazyFrame:
    """tenant_id, item_id of the products that events are about, with repetitions."""
    return each_item(events.select(*EVENTS.key, *ABOUT)).select("tenant_id", "item_id")


def graph_lag(lake: Lake, graph: Graph) -> list[Lag]:
    """The lag of every tenant, from the log of the archive and the graph's checkpoint; no row is read."""
    newest = lake.newest(EVENTS, "landed_at", "tenant_id")
    since = events_in(graph, lake, EVENT_PROJECTION)
    shown = lake.newest(EVENTS, "landed_at", "tenant_id", since.number) if since else {}
    return [Lag(tenant, at, shown.get(tenant)) for tenant, at in newest.items()]


def rows_around(projection: model.Projection, around: Around) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of a kind of the scopes that touched events lie in, before and now."""
    sides = around.of_groups if projection.kind is model.GROUP else (around.before, around.now)
    scopes = around.touched.select(projection.scope).unique()
    before, now = (projection.build(rows.join(scopes, on=projection.scope, how="semi")) for rows in sides)
    return before, now


def project_touched(projection: model.Projection, around: Around) -> Changes:
    """Rows of a kind that differ because of the touched events: those of the scopes that these lie in."""
    earlier, now = rows_around(projection, around)
    return difference(earlier, now, tuple(projection.kind.key_columns))
