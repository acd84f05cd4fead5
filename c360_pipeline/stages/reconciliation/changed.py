"""What the archive gained, lost or changed between two moments, as rows of the graph: what a run has to prove.

Each kind says which rows may differ, and what these are at the later moment. Nothing is read that did not change, but
what stands around it: the other events of a customer, a session or a visitor (docs/adr/0064).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import polars as pl

from c360_pipeline.core.catalog.audience_tables import AUDIENCE_MEMBERS
from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.feature_tables import PRODUCT_SIMILARITIES, USER_COMMUNITIES
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import CATALOG, EVENTS, JOURNEY_KEYS, JOURNEYS, VISITOR_DECISIONS
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.graph import Kind, NodeKind
from c360_pipeline.core.projection.user_properties import property_kinds, values
from c360_pipeline.core.silos.control_rows import RelationshipRow, node_rows
from c360_pipeline.core.stitching import log
from c360_pipeline.core.visitors.groups import GROUP
from c360_pipeline.stages.projection.audiences import AUDIENCE_PROJECTION, touched_members
from c360_pipeline.stages.projection.events import (
    ABOUT,
    EVENT_PROJECTION,
    PRODUCT_PROJECTION,
    SIMILARITIES,
    items_of,
    rows_around,
)
from c360_pipeline.stages.projection.silos import LabelTables, MappedRelationship, kinds_of, label_tables
from c360_pipeline.stages.realtime.unlanded_events import customers_of_visitors
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.stitching.tables import JourneyTables, News
from c360_pipeline.stages.visitors.around import Around, events_around
from c360_pipeline.stages.visitors.counted import PROJECTED
from c360_pipeline.stores.neo4j.graph import Graph

JOURNEY_KINDS: tuple[Kind, ...] = (model.CORRELATION, model.JOURNEY, model.HAS_KEY, model.IN_JOURNEY, model.PART_OF)


@dataclass(frozen=True)
class ChangedRows:
    """Rows of a kind that may differ since a moment.

    Attributes:
        kind: of the rows.
        named: columns that name them: those of the key, or the first two of these; None where it is all rows.
        rows: those of them that the archive has, columns of the kind; null where all rows are meant.
        gained: how many more rows of the kind there are than at that moment; None where nobody knows without counting.
        total: how many there are, where that is known.
    """

    kind: Kind
    named: pl.DataFrame | None
    rows: pl.DataFrame | None
    gained: int | None = None
    total: int | None = None


class ChangesOfArchive:
    """What differs between an archive at two moments.

    Args:
        then: at the earlier one.
        now: at the later one, to which the graph has been brought.
        graph: may let events of visitors count for further users, which are looked at too.
    """

    def __init__(self, then: Archive, now: Archive, graph: Graph) -> None:
        self._then = then
        self._now = now
        self._graph = graph
        self._lake = now.lake

    def kinds(self) -> Iterator[ChangedRows]:
        """Every kind with what may differ; nodes come before relationships."""
        found = [*self._of_events(), *self.of_products(), *self._of_journeys(), *self._of_silos(), *self._mapped(),
                 *self._of_audiences()]  # fmt: skip
        yield from sorted(found, key=lambda one: not isinstance(one.kind, NodeKind))

    def _is_same(self, table: Table, projection: str = EVENT_PROJECTION) -> bool:
        return self._then.pinned.version(projection, table) == self._now.pinned.version(projection, table)

    @cached_property
    def _changed(self) -> tuple[pl.DataFrame, Around] | None:
        """tenant_id, event_id of the events that differ, and all around them; None where none does."""
        if self._is_same(EVENTS) and self._is_same(VISITOR_DECISIONS):
            return None
        then = self._then.pinned
        changed, _ = self._lake.versions.changes(EVENTS, then.version(EVENT_PROJECTION, EVENTS), PROJECTED)
        decided, _ = self._lake.versions.changes(VISITOR_DECISIONS, then.version(EVENT_PROJECTION, VISITOR_DECISIONS))
        if not changed.count and not decided.count:
            return None
        further = partial(customers_of_visitors, self._graph)
        around = events_around(changed, decided, self._then.events_at(), self._now.events_at(), further)
        return pl.concat([changed.upserted.select(EVENTS.key), changed.deleted]), around

    @cached_property
    def _customers(self) -> pl.DataFrame:
        """tenant_id, id of the customers of whom all events are around."""
        if self._changed is None:
            return pl.DataFrame(schema={"tenant_id": pl.String, "id": pl.String})
        keys, around = self._changed
        own = _among(around.touched, keys).select("tenant_id", id=model.CUSTOMER_ID).drop_nulls()
        return pl.concat([own, around.users.select("tenant_id", id="user_id")]).unique()

    def _of_events(self) -> Iterator[ChangedRows]:
        if self._changed is None:
            for projection in model.EVENT_PROJECTIONS:
                yield _nothing(projection.kind)
            yield from map(_nothing, property_kinds(self._now.properties))
            is_same, every = self._is_same(USER_COMMUNITIES), ChangedRows(model.USER_COMMUNITY, None, None)
            yield _nothing(model.USER_COMMUNITY) if is_same else every
            yield self._statuses(self._stitched)
            return
        keys, around = self._changed
        sessions = _among(around.touched, keys).select("tenant_id", id="session_id").drop_nulls().unique()
        groups = around.touched.select(GROUP).drop_nulls().unique().rename({"group_id": "id"})
        named = {
            model.CUSTOMER_ID: self._customers,
            "visitor_id": around.visitors.rename({"anonymous_id": "id"}),
            "session_id": sessions,
            # A login gives earlier events to a customer.
            "event_id": pl.concat([keys, around.touched.select(EVENTS.key)]).unique().rename({"event_id": "id"}),
            "group_id": groups.rename({"group_type": "type"}),
        }
        decided = not self._is_same(VISITOR_DECISIONS)
        for projection in model.EVENT_PROJECTIONS:
            if decided and "session_id" in (*projection.scope, projection.start):
                yield ChangedRows(projection.kind, None, None)  # which sessions are divided anew, nobody knows
                continue
            before, now = (rows.height for rows in rows_around(projection, around))
            events = around.of_groups[1] if projection.kind is model.GROUP else around.now
            who = named[projection.start].select("tenant_id", "id").unique()
            theirs = events.join(who.rename({"id": projection.start}), on=["tenant_id", projection.start], how="semi")
            yield _rows_of(projection.kind, named[projection.start], projection.build(theirs), now - before)
        yield from self._owned_by_others(around)

    def _owned_by_others(self, around: Around) -> Iterator[ChangedRows]:
        """Properties of users and events that other stages own."""
        customers = self._customers
        if self._is_same(USER_COMMUNITIES):
            users = around.now.select("tenant_id", id="user_id").join(customers, on=customers.columns, how="semi")
            yield ChangedRows(model.USER_COMMUNITY, customers, self._now.communities(users.unique()))
        else:
            yield ChangedRows(model.USER_COMMUNITY, None, None)
        theirs = around.now.join(customers.rename({"id": model.CUSTOMER_ID}), on=_CUSTOMER, how="semi")
        found = values(theirs, self._now.properties)
        for kind in property_kinds(self._now.properties):
            yield ChangedRows(kind, customers, found.select(list(kind.schema)))
        new = around.now.join(around.before, on=EVENTS.key, how="anti")
        yield self._statuses(pl.concat([self._stitched, new.select(EVENTS.key)]).unique())

    def _statuses(self, events: pl.DataFrame) -> ChangedRows:
        """Of events that came or were stitched since."""
        named = events.rename({"event_id": "id"})
        return ChangedRows(model.EVENT_STATUS, named, model.event_status(events, self._stitched))

    @cached_property
    def _news(self) -> News | None:
        """What stitching has decided in between; None for nothing."""
        then, now = self._then.pinned.commits or {}, self._now.pinned.commits or {}
        found = JourneyTables(self._lake).between(then, now)
        return News.of(found.rows) if found.seqs else None

    @cached_property
    def _stitched(self) -> pl.DataFrame:
        """tenant_id, event_id of the events that it decided about and left in."""
        if self._news is None:
            return EVENTS.empty().select(EVENTS.key)
        return log.events_now(self._news.rows, self._news.aliases).select(EVENTS.key).unique().collect()

    def _of_journeys(self) -> Iterator[ChangedRows]:
        totals = self._journey_totals()
        news = self._news
        if news is None:
            for kind in JOURNEY_KINDS:
                yield _nothing(kind, totals.get(kind))
            return
        living = model.journeys(log.living_journeys(news.rows, news.ended).collect(engine="streaming"))
        ids = pl.concat([living.select("tenant_id", "id"), news.ended.select("tenant_id", id="journey_id")]).unique()
        yield ChangedRows(model.JOURNEY, ids, living, total=totals.get(model.JOURNEY))
        keys = log.keys_now(news.rows, news.aliases).collect(engine="streaming")
        held, named = keys.drop_nulls("journey_id"), keys.select("tenant_id", id=model.correlation_id()).unique()
        yield ChangedRows(model.CORRELATION, named, model.correlations(held), total=totals.get(model.CORRELATION))
        rows = model.correlation_journeys(held)
        yield ChangedRows(model.PART_OF, named.rename({"id": "from_id"}), rows, total=totals.get(model.PART_OF))
        events = log.events_now(news.rows, news.aliases).collect(engine="streaming")
        pairs = log.event_keys_now(news.rows).collect(engine="streaming")
        again = log.reread_events(news.rows)
        of_events = pl.concat([events.select(EVENTS.key), again]).unique().rename({"event_id": "from_id"})
        for kind, found in (
            (model.HAS_KEY, model.event_correlations(pairs)), (model.IN_JOURNEY, model.unlinked_events(events, pairs))
        ):  # fmt: skip
            yield ChangedRows(kind, of_events, found, found.height if again.is_empty() else None)

    def _journey_totals(self) -> dict[Kind, int]:
        """How many rows there are, from the log of the tables; nothing where these are at another commit."""
        tables = JourneyTables(self._lake)
        if dict(self._now.pinned.commits or {}) != tables.published():
            return {}
        keys = self._lake.count(JOURNEY_KEYS)
        return {model.JOURNEY: self._lake.count(JOURNEYS), model.CORRELATION: keys, model.PART_OF: keys}

    def of_products(self) -> Iterator[ChangedRows]:
        """Products, their categories and what is similar to them; products first."""
        since = self._then.pinned.version(PRODUCT_PROJECTION, EVENTS)
        changed, _ = self._lake.versions.changes(EVENTS, since, [*EVENTS.key, *ABOUT])
        catalog, is_same = self._now.catalog(), self._is_same(CATALOG, PRODUCT_PROJECTION)
        came = items_of(changed.upserted.lazy()).select("tenant_id", id="item_id").unique().collect()
        bare = came.join(catalog, on=["tenant_id", "id"], how="anti")
        if not is_same or changed.deleted.height or changed.updated.height:
            # A product goes with the last event that is about it: all events say whether there is one.
            yield ChangedRows(model.PRODUCT, None, None)
        elif came.height:
            gained = None if bare.height else 0
            yield ChangedRows(model.PRODUCT, came, model.products(_as_items(came), _among(catalog, came)), gained)
        else:
            yield _nothing(model.PRODUCT)
        for kind in (model.CATEGORY, model.IN_CATEGORY):
            yield _nothing(kind) if is_same else ChangedRows(kind, None, None)
        for kind, _ in SIMILARITIES:
            is_same = is_same and self._is_same(PRODUCT_SIMILARITIES, PRODUCT_PROJECTION)
            yield _nothing(kind, is_known=bare.is_empty()) if is_same else ChangedRows(kind, None, None)

    def _of_audiences(self) -> Iterator[ChangedRows]:
        rows, then = self._now.audience_members, self._then.pinned.version(AUDIENCE_PROJECTION, AUDIENCE_MEMBERS)
        if then is None and rows.is_empty():
            yield from (_nothing(kind, 0) for kind in (model.AUDIENCE, model.IN_AUDIENCE))
            return
        if then is None:
            yield ChangedRows(model.AUDIENCE, None, None)
            yield ChangedRows(model.IN_AUDIENCE, None, None)
            return
        now = self._now.pinned.version(AUDIENCE_PROJECTION, AUDIENCE_MEMBERS)
        touched = touched_members(self._lake.versions.changes(AUDIENCE_MEMBERS, then, until=now)[0])
        names, audiences = touched.select("tenant_id", id="to_id").unique(), model.audiences(rows)
        yield ChangedRows(model.AUDIENCE, names, _among(audiences, names), total=audiences.height)
        yield ChangedRows(model.IN_AUDIENCE, touched, _among(rows, touched), total=rows.height)

    def _of_silos(self) -> Iterator[ChangedRows]:
        counts = self._now.silo_counts()
        for label, found in label_tables(self._lake, self._now.control).items():
            differing = [t for t in found.tables if self._silo(self._then, t) != self._silo(self._now, t)]
            if not differing:
                yield _nothing(found.kind, counts[label])
            elif len(found.tables) > 1 or self._silo(self._then, differing[0]) is None:
                yield ChangedRows(found.kind, None, None)
            else:
                yield self._of_silo(found, differing[0], counts[label])

    @staticmethod
    def _silo(archive: Archive, table: Table) -> Version | None:
        return archive.pinned.silos.get(table.name)

    def _of_silo(self, found: LabelTables, table: Table, total: int) -> ChangedRows:
        changed, version = self._lake.versions.changes(table, self._silo(self._then, table))
        if version != self._silo(self._now, table):
            return ChangedRows(found.kind, None, None)  # read again meanwhile: all rows as of then
        rows = node_rows(found.kind, changed.upserted)
        key = found.kind.key_columns
        gone = changed.deleted.select(pl.col(name).cast(found.kind.schema[name]) for name in key)
        return ChangedRows(found.kind, pl.concat([rows.select(key), gone]).unique(), rows, total=total)

    def _mapped(self) -> Iterator[ChangedRows]:
        labels = label_tables(self._lake, self._now.control)
        for row in self._now.control.relationships:
            if kinds_of(labels).keys() >= set(row.labels):
                yield self._of_mapping(row, labels)

    def _of_mapping(self, row: RelationshipRow, labels: dict[str, LabelTables]) -> ChangedRows:
        then, now = (archive.pinned.mapped.get(row.name) for archive in (self._then, self._now))
        mapped = MappedRelationship(self._lake, labels, row, dict(now or {}))
        if then is not None and then == now:
            return _nothing(mapped.kind)
        since = mapped.since(then or {})
        if since is None:
            return ChangedRows(mapped.kind, None, None)
        changes, _ = mapped.changes(since)
        key = mapped.kind.key_columns
        return ChangedRows(
            mapped.kind, pl.concat([changes.upserted.select(key), changes.deleted.select(key)]), changes.upserted
        )


_CUSTOMER = ["tenant_id", model.CUSTOMER_ID]


def _nothing(kind: Kind, total: int | None = None, *, is_known: bool = True) -> ChangedRows:
    """Nothing of a kind differs."""
    rows = pl.DataFrame(schema=kind.schema)
    return ChangedRows(kind, rows.select(kind.key_columns), rows, 0 if is_known else None, total)


def _among(rows: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    return rows.join(keys, on=keys.columns, how="semi")


def _as_items(ids: pl.DataFrame) -> pl.DataFrame:
    return ids.rename({"id": "item_id"})


def _rows_of(kind: Kind, named: pl.DataFrame, rows: pl.DataFrame, gained: int) -> ChangedRows:
    """Rows by the nodes that they are, or start from."""
    names = named if isinstance(kind, NodeKind) else named.rename({n: f"from_{n}" for n in named.columns[1:]})
    return ChangedRows(kind, names, _among(rows, names), gained)
