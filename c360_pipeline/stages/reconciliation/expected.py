"""What the lake says the graph holds, at the versions that the graph has been brought to.

A graph follows its archive: what was committed after the checkpoints that it carries is not its drift. So the archive
is read as of these, and what later commits touch, of which a writer may have written a part, is left out on both sides
(docs/adr/0027).
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain

import polars as pl

from c360_pipeline.core.catalog.audience_tables import AUDIENCE_MEMBERS
from c360_pipeline.core.catalog.feature_tables import PRODUCT_SIMILARITIES, USER_COMMUNITIES
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import (
    CATALOG,
    EVENT_JOURNEY,
    EVENT_KEYS,
    EVENTS,
    JOURNEY_KEYS,
    JOURNEY_LOG,
    JOURNEYS,
    VISITOR_DECISIONS,
)
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.graph import DAY, Kind, NodeKind
from c360_pipeline.core.projection.user_properties import UserProperty, property_kinds, values
from c360_pipeline.core.silos.control_rows import ControlRows
from c360_pipeline.core.silos.joins import JoinCount, join_count, join_labels, relationship_kind
from c360_pipeline.core.stitching import log as log
from c360_pipeline.stages.projection.audiences import AUDIENCE_PROJECTION, touched_members
from c360_pipeline.stages.projection.events import (
    EVENT_PROJECTION,
    PRODUCT_PROJECTION,
    SIMILARITIES,
    items_of,
    rows_around,
)
from c360_pipeline.stages.projection.silos import (
    STAMP,
    MappedRelationship,
    kinds_of,
    label_tables,
    silo_node_frames,
)
from c360_pipeline.stages.realtime.unlanded_events import customers_of_visitors
from c360_pipeline.stages.reconciliation.pinned import PROJECTED_TABLES, PinnedVersions
from c360_pipeline.stages.stitching.commit import log_name
from c360_pipeline.stages.stitching.tables import JourneyTables, News
from c360_pipeline.stages.visitors.around import events_around
from c360_pipeline.stages.visitors.counted import PROJECTED, EventsAt
from c360_pipeline.stages.visitors.tables import made_of
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph

_Build = Callable[[], pl.DataFrame]
"""Makes the rows of a kind, when they are asked for."""


@dataclass(frozen=True)
class SiloNodes:
    """The node rows of all silo tables, by label."""

    kinds: dict[str, NodeKind]
    frames: dict[str, pl.DataFrame]


@dataclass(frozen=True)
class InFlight:
    """Keys of rows that archive and graph may differ in for a moment, because somebody is bringing them there.

    These are what was committed after the snapshot that an archive is read at, and what events touch that the graph
    shows before they land. Every check and comparison leaves them out; what is left must be equal, whoever writes.

    Attributes:
        keys: by kind, frames of columns that name rows of the kind, or some of these columns.
    """

    keys: Mapping[Kind, tuple[pl.DataFrame, ...]]

    def and_of(self, events: pl.DataFrame, visitors: pl.DataFrame) -> "InFlight":
        """These, and what events touch that are in the graph before they are in the archive.

        Args:
            events: as `core.projection.graph.unlanded_keys` takes them.
            visitors: the same.
        """
        ahead = model.unlanded_keys(events, visitors)
        return InFlight({kind: (*self.keys.get(kind, ()), *ahead.get(kind, ())) for kind in {**self.keys, **ahead}})

    @property
    def tenants(self) -> set[str]:
        """Whose rows these are."""
        frames = chain.from_iterable(self.keys.values())
        return {tenant for frame in frames for tenant in frame["tenant_id"].unique()}

    def left_out(self, kind: Kind, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows without those that later commits touch."""
        # What is on its way to one property of users is on its way to all.
        named = model.USER_COMMUNITY if model.is_of_users(kind) else kind
        for keys in self.keys.get(named, ()):
            rows = rows.join(keys, on=keys.columns, how="anti")
        return rows


class Archive:
    """What the lake says the graph holds.

    Args:
        lake: the Delta tables.
        control: the control rows, for labels and relationships of silo tables.
        pinned: the snapshot; the newest where nothing is said.
    """

    def __init__(self, lake: Lake, control: ControlRows, pinned: PinnedVersions | None = None) -> None:
        self._lake = lake
        self._control = control
        self._pinned = pinned or PinnedVersions()
        self._newer: tuple[object, InFlight] | None = None

    @classmethod
    def as_projected(cls, lake: Lake, control: ControlRows, graph: Graph) -> "Archive":
        """As of a graph's checkpoints: what writers commit meanwhile is not held against the graph."""
        return cls(lake, control, PinnedVersions.of(graph, lake))

    @property
    def lake(self) -> Lake:
        """The Delta tables."""
        return self._lake

    def at(self, pinned: PinnedVersions) -> "Archive":
        """The same archive at another snapshot."""
        return Archive(self._lake, self._control, pinned)

    @property
    def snapshot_id(self) -> str:
        """sha256 of all that decides what this archive says: versions, commits and control rows."""
        pinned, control = self._pinned, self._control
        versions = sorted((*name, str(version)) for name, version in pinned.versions.items())
        silos = sorted((name, str(version)) for name, version in pinned.silos.items())
        said = (versions, sorted((pinned.commits or {}).items()), silos, sorted(control.labels.items()),
                sorted(control.excluded), control.relationships, self.properties)  # fmt: skip
        return hashlib.sha256(repr(said).encode()).hexdigest()

    @property
    def control_id(self) -> str:
        """sha256 of the control rows that decide what the graph holds, and of the log of stitching by its name."""
        control, log_id = self._control, log_name(self._lake.commits.snapshot(JOURNEY_LOG))
        keys = sorted((table.table_id, table.key_columns) for table in control.tables)
        said = (sorted(control.labels.items()), sorted(control.excluded), control.relationships, keys,
                self.properties, log_id)  # fmt: skip
        return hashlib.sha256(repr(said).encode()).hexdigest()

    def still_knows(self, pinned: PinnedVersions) -> bool:
        """Whether the tables are kept as they were at an earlier moment."""
        versions = self._lake.versions
        tables = {table.name: table for table in PROJECTED_TABLES}
        silos = {name: self._lake.stored_table(name, ()) for name in pinned.silos}
        return all(
            versions.still_there(tables[name], version) for (_, name), version in pinned.versions.items()
        ) and all(
            (table := silos[name]) is not None and versions.still_there(table, version)
            for name, version in pinned.silos.items()
        )

    @property
    def control(self) -> ControlRows:
        """The control rows."""
        return self._control

    @property
    def pinned(self) -> PinnedVersions:
        """The snapshot."""
        return self._pinned

    def silo_versions(self) -> str:
        """sha256 of the control rows, and of the versions of the tables that silo nodes and relationships come from."""
        tables = [self._control.lake_table(table) for table in self._control.tables]
        versions = {name: str(self._lake.versions.version(name)) for name in (*tables, EVENTS.name)}
        keys = [(table.table_id, table.key_columns) for table in self._control.tables]
        labels = sorted(self._control.labels.items())
        said = repr((labels, keys, self._control.relationships, sorted(versions.items())))
        return hashlib.sha256(said.encode()).hexdigest()

    def silo_rows(self) -> int:
        """Rows of all silo tables that have a label."""
        found = label_tables(self._lake, self._control).values()
        return sum(self._lake.count(table) for label in found for table in label.tables)

    @property
    def has_events(self) -> bool:
        """Whether any event was ever archived."""
        return self._lake.versions.version(EVENTS.name) is not None

    def event_count(self) -> int:
        """Events that the graph has been brought to, from the log of the archive."""
        version = self._pinned.version(EVENT_PROJECTION, EVENTS)
        return self._lake.count(EVENTS, version.number if version else None)

    def counted_events(self) -> pl.DataFrame:
        """These events with whom they count for, as `core.visitors.counting.counted` gives them."""
        return self._events

    def event_keys(self) -> pl.DataFrame:
        """tenant_id, id of these events."""
        return self._scan(EVENTS).select("tenant_id", id="event_id").collect(engine="streaming")

    def product_keys(self) -> pl.DataFrame:
        """tenant_id, id of every item of an event and of the catalogue that the graph has been brought to."""
        return self.products.select("tenant_id", "id")

    @property
    def _silo_versions(self) -> dict[str, int]:
        """Numbers of the versions of silo tables that are pinned."""
        return {name: version.number for name, version in self._pinned.silos.items()}

    def silo_counts(self) -> dict[str, int]:
        """Rows of the silo tables by label, as the graph has been brought to them."""
        return {
            label: sum(self._lake.count(table, self._silo_versions.get(table.name)) for table in found.tables)
            for label, found in label_tables(self._lake, self._control).items()
        }

    def silo_keys(self, labels: Collection[str]) -> Iterator[tuple[NodeKind, pl.DataFrame]]:
        """Key columns of every row of some labels."""
        for label, found in label_tables(self._lake, self._control).items():
            if label in labels:
                key = found.kind.key_columns
                rows = pl.concat(self._lake.scan(t, self._silo_versions.get(t.name)).select(key) for t in found.tables)
                typed = rows.select(pl.col(name).cast(found.kind.schema[name]) for name in key)
                yield found.kind, typed.collect(engine="streaming")

    def silo_nodes(self) -> SiloNodes:
        """The node rows of every silo table that has a label; tables of one label are put together."""
        pairs = list(silo_node_frames(self._lake, self._control, self._silo_versions))
        return SiloNodes({kind.label: kind for kind, _ in pairs}, {kind.label: frame for kind, frame in pairs})

    def mapped_relationships(
        self, silos: SiloNodes, only: Collection[Kind] | None = None
    ) -> Iterator[tuple[Kind, pl.DataFrame]]:
        """Relationships as the control rows' join conditions make them; mappings of absent labels are passed over."""
        if not self._control.relationships:
            return
        with_users = self._with_users(silos)
        for row in self._control.relationships:
            if with_users.frames.keys() >= set(row.labels):
                kind = relationship_kind(row, with_users.kinds)
                if only is None or kind in only:
                    yield kind, join_labels(row, with_users.frames, with_users.kinds)

    def join_counts(self) -> list[JoinCount]:
        """How much each mapping joins of what the archive holds; mappings of absent labels are passed over."""
        silos = self._with_users(self.silo_nodes())
        there = [row for row in self._control.relationships if silos.frames.keys() >= set(row.labels)]
        return [join_count(row, silos.frames, silos.kinds) for row in there]

    def _with_users(self, silos: SiloNodes) -> SiloNodes:
        return SiloNodes({"User": model.USER, **silos.kinds}, {"User": self._users(), **silos.frames})

    def _scan(self, table: Table, projection: str = EVENT_PROJECTION) -> pl.LazyFrame:
        version = self._pinned.version(projection, table)
        return self._lake.scan(table, version.number if version else None)

    @cached_property
    def _events(self) -> pl.DataFrame:
        at = self.events_at()
        return at.counted(at.scan(PROJECTED)).collect(engine="streaming")

    def events_at(self) -> EventsAt:
        """The events that the graph has been brought to, counted by the decisions of then."""
        events = self._pinned.version(EVENT_PROJECTION, EVENTS)
        # Where the events are pinned and decisions are not, there were none then.
        decisions = self._pinned.version(EVENT_PROJECTION, VISITOR_DECISIONS)
        return EventsAt.of(self._lake, events, decisions) if events else EventsAt(self._lake)

    def expected(self, only: Collection[Kind] | None = None) -> Iterator[tuple[Kind, pl.DataFrame]]:
        """Every kind with all its rows and `DAY`; nodes come before relationships, which a repair can stand on them.

        Args:
            only: kinds that are wanted, and all that they stand on; every kind where nothing is said.
        """
        days: dict[str, pl.DataFrame] = {}
        silos = self.silo_nodes()
        journeys = self.journeys()
        labels = None if only is None else {end.label for kind in only for end in ends_of(kind)}
        of_silos: list[tuple[NodeKind, _Build]] = [
            (silos.kinds[name], partial(_itself, frame)) for name, frame in silos.frames.items()
        ]
        for node, build in (*self._nodes(journeys), *of_silos):
            if labels is not None and node not in (only or ()) and (node.is_owned or node.label not in labels):
                continue
            dated = model.with_days(node, build(), days)
            if node.day:
                days[node.label] = dated.select(*node.key_columns, DAY)
            yield node, dated
        for kind, build in self._relationships(journeys):
            if only is None or kind in only:
                yield kind, model.with_days(kind, build(), days)
        for mapped, frame in self.mapped_relationships(silos, only):
            yield mapped, model.with_days(mapped, frame, days)

    def _nodes(self, journeys: "JourneyRows") -> Iterator[tuple[NodeKind, _Build]]:
        for projection in model.EVENT_PROJECTIONS:
            if isinstance(projection.kind, NodeKind):
                yield projection.kind, partial(self._built, projection)
        yield model.PRODUCT, lambda: self.products
        yield model.CATEGORY, lambda: model.categories(self.catalog())
        yield model.CORRELATION, lambda: model.correlations(journeys.keys)
        yield model.JOURNEY, lambda: model.journeys(journeys.journeys)
        yield model.EVENT_STATUS, lambda: model.event_status(self._events, journeys.assigned)
        yield model.USER_COMMUNITY, self.communities
        yield model.AUDIENCE, lambda: model.audiences(self.audience_members)
        for kind in property_kinds(self.properties):
            yield kind, partial(self._of_property, kind)

    def _built(self, projection: model.Projection) -> pl.DataFrame:
        return projection.build(self._events)

    def _of_property(self, kind: Kind) -> pl.DataFrame:
        return values(self._events, self.properties).select(list(kind.schema))

    @property
    def properties(self) -> tuple[UserProperty, ...]:
        """The traits that are properties of users."""
        pinned = self._pinned.properties
        return tuple(sorted(self._control.properties)) if pinned is None else pinned

    def catalog(self) -> pl.DataFrame:
        """The catalogue that the graph has been brought to."""
        return self._scan(CATALOG, PRODUCT_PROJECTION).collect()

    @cached_property
    def products(self) -> pl.DataFrame:
        """`PRODUCT` rows."""
        items = items_of(self._scan(EVENTS, PRODUCT_PROJECTION)).unique().collect(engine="streaming")
        return model.products(items, self.catalog())

    def _relationships(self, journeys: "JourneyRows") -> Iterator[tuple[Kind, _Build]]:
        for projection in model.EVENT_PROJECTIONS:
            if not isinstance(projection.kind, NodeKind):
                yield projection.kind, partial(self._built, projection)
        yield model.IN_CATEGORY, lambda: model.product_categories(self.catalog())
        for kind, name in SIMILARITIES:
            yield kind, partial(self.similarities, kind, name)
        yield model.HAS_KEY, lambda: model.event_correlations(journeys.event_keys)
        yield model.IN_JOURNEY, lambda: model.unlinked_events(journeys.assigned, journeys.event_keys)
        yield model.PART_OF, lambda: model.correlation_journeys(journeys.keys)
        yield model.IN_AUDIENCE, lambda: self.audience_members

    @cached_property
    def audience_members(self) -> pl.DataFrame:
        """`IN_AUDIENCE` rows."""
        held = self._scan(AUDIENCE_MEMBERS, AUDIENCE_PROJECTION).collect(engine="streaming")
        own = held.select("tenant_id", id="user_id").unique()
        if own.is_empty() or self._are_members_of_its_events():
            return model.audience_members(held, own)
        return model.audience_members(held, self._users())

    def _are_members_of_its_events(self) -> bool:
        """Whether members were worked out by the very events that the graph has: they are users there then."""
        members = self._pinned.version(AUDIENCE_PROJECTION, AUDIENCE_MEMBERS)
        events = self._pinned.version(EVENT_PROJECTION, EVENTS)
        version, at = made_of(self._lake, AUDIENCE_MEMBERS)
        if members is None or events is None:
            return False
        return (members.number, events.number) == (version, at.events)

    def similarities(self, kind: model.RelationshipKind, name: str) -> pl.DataFrame:
        """Rows of a kind of relationship between products, by its name in the lake."""
        rows = self._scan(PRODUCT_SIMILARITIES, PRODUCT_PROJECTION).collect()
        return model.similar_products(kind, rows, self.products, name)

    def communities(self, users: pl.DataFrame | None = None) -> pl.DataFrame:
        """`USER_COMMUNITY` rows of some users (tenant_id, id), of all where nothing is said."""
        if users is None:
            users = self._users()
        known = model.user_communities(self._scan(USER_COMMUNITIES).collect())
        return users.join(known, on=["tenant_id", "id"], how="left")

    def _users(self) -> pl.DataFrame:
        """tenant_id, id of all that events name."""
        return self._scan(EVENTS).select("tenant_id", id="user_id").drop_nulls().unique().collect(engine="streaming")

    def journeys(self) -> "JourneyRows":
        """What stitching says, at the commits that are pinned."""
        tables = JourneyTables(self._lake)
        if self._pinned.commits is None or dict(self._pinned.commits) == tables.published():
            scan = self._lake.scan
            return JourneyRows(scan(JOURNEYS), scan(EVENT_JOURNEY), scan(EVENT_KEYS), scan(JOURNEY_KEYS))
        news = News.of(tables.between({}, self._pinned.commits).rows)
        keys = log.keys_now(news.rows, news.aliases).filter(pl.col("journey_id").is_not_null())
        return JourneyRows(
            log.living_journeys(news.rows, news.ended), log.events_now(news.rows, news.aliases),
            log.event_keys_now(news.rows), keys,
        )  # fmt: skip

    def newer(self, graph: Graph) -> InFlight:
        """What was committed since the snapshot that this archive is read at, as of now.

        Args:
            graph: may let events of visitors count for further users, until it is brought up.
        """
        names = [*(table.name for table in (*PROJECTED_TABLES, JOURNEY_LOG)), *sorted(self._pinned.silos)]
        now = tuple(str(self._lake.versions.version(name)) for name in names)
        if self._newer is not None and self._newer[0] == now:
            return self._newer[1]
        parts = [
            self._newer_events(graph), self._newer_products(), self._newer_communities(), self._newer_similarities(),
            self._newer_journeys(), self._newer_silo_rows(), self._newer_mapped(), self._newer_audiences(),
        ]  # fmt: skip
        keys: dict[Kind, tuple[pl.DataFrame, ...]] = {}
        for kind, frame in chain.from_iterable(parts):
            keys[kind] = (*keys.get(kind, ()), frame)
        found = InFlight(keys)
        self._newer = (now, found)
        return found

    def _newer_events(self, graph: Graph) -> Iterator[tuple[Kind, pl.DataFrame]]:
        since = self._pinned.version(EVENT_PROJECTION, EVENTS)
        if since is None:
            return
        pinned = self._pinned.version(EVENT_PROJECTION, VISITOR_DECISIONS)
        changed, version = self._lake.versions.changes(EVENTS, since, PROJECTED)
        decided, decisions = self._lake.versions.changes(VISITOR_DECISIONS, pinned)
        if not changed.count and not decided.count:
            return
        now = EventsAt.of(self._lake, version, decisions)
        further = partial(customers_of_visitors, graph)
        around = events_around(changed, decided, self.events_at(), now, further)
        for projection in model.EVENT_PROJECTIONS:
            rows = rows_around(projection, around)
            yield projection.kind, pl.concat(rows).select(projection.kind.key_columns).unique()
        if around.visitors.height:
            people = around.users.rename({"user_id": "id"})
            yield model.USER, people
            for kind in model.OF_CUSTOMERS:
                yield kind, people.rename({"id": "from_id"})
            visitors = around.visitors.rename({"anonymous_id": "id"})
            yield model.VISITOR, visitors
            for kind in (model.VISITOR_SESSION, model.IS_USER):
                yield kind, visitors.rename({"id": "from_id"})
            theirs = around.now.join(
                visitors, left_on=["tenant_id", "visitor_id"], right_on=visitors.columns, how="semi"
            )
            yield model.ACTION, theirs.select("tenant_id", id="event_id")
        touched = around.touched
        yield model.EVENT_STATUS, touched.select("tenant_id", id="event_id").unique()
        yield model.USER_COMMUNITY, touched.select("tenant_id", id="customer_id").drop_nulls().unique()
        # An event that comes makes the product that it is about.
        yield model.PRODUCT, items_of(touched.lazy()).select("tenant_id", id="item_id").unique().collect()

    def _newer_products(self) -> Iterator[tuple[Kind, pl.DataFrame]]:
        since = self._pinned.version(PRODUCT_PROJECTION, CATALOG)
        changed, _ = self._lake.versions.changes(CATALOG, since) if since else (None, None)
        if since is None or changed is None or not changed.count:
            return
        ids = pl.concat(
            [changed.upserted.select("tenant_id", "id"), changed.deleted.select("tenant_id", "id")]
        ).unique()
        both = pl.concat([self._lake.read(CATALOG, since.number), changed.upserted])
        names = both.join(ids, on=["tenant_id", "id"], how="semi").select("tenant_id", name="category").drop_nulls()
        yield model.PRODUCT, ids
        yield model.IN_CATEGORY, ids.rename({"id": "from_id"})
        yield model.CATEGORY, names.unique()

    def _newer_communities(self) -> Iterator[tuple[Kind, pl.DataFrame]]:
        since = self._pinned.version(EVENT_PROJECTION, USER_COMMUNITIES)
        changed, _ = self._lake.versions.changes(USER_COMMUNITIES, since) if since else (None, None)
        if changed is None or not changed.count:
            return
        ids = [rows.select("tenant_id", id="user_id") for rows in (changed.upserted, changed.deleted)]
        yield model.USER_COMMUNITY, pl.concat(ids).unique()

    def _newer_similarities(self) -> Iterator[tuple[Kind, pl.DataFrame]]:
        since = self._pinned.version(PRODUCT_PROJECTION, PRODUCT_SIMILARITIES)
        changed, _ = self._lake.versions.changes(PRODUCT_SIMILARITIES, since) if since else (None, None)
        if changed is None or not changed.count:
            return
        ends = {"from_id": "product_id", "to_id": "similar_product_id"}
        pairs = [rows.select("tenant_id", **ends) for rows in (changed.upserted, changed.deleted)]
        for kind, _ in SIMILARITIES:
            yield kind, pl.concat(pairs).unique()

    def _newer_audiences(self) -> Iterator[tuple[Kind, pl.DataFrame]]:
        since = self._pinned.version(AUDIENCE_PROJECTION, AUDIENCE_MEMBERS)
        if since is None or since == self._lake.versions.version(AUDIENCE_MEMBERS.name):
            return
        touched = touched_members(self._lake.versions.changes(AUDIENCE_MEMBERS, since)[0])
        yield model.IN_AUDIENCE, touched
        yield model.AUDIENCE, touched.select("tenant_id", id="to_id").unique()

    def _newer_silo_rows(self) -> Iterator[tuple[Kind, pl.DataFrame]]:
        for found in label_tables(self._lake, self._control).values():
            key = found.kind.key_columns
            for table in found.tables:
                since = self._pinned.silos.get(table.name)
                if since is None or since == self._lake.versions.version(table.name):
                    continue
                changed, _ = self._lake.versions.changes(table, since, [*table.key, *STAMP])
                keys = pl.concat([changed.upserted.select(key), changed.deleted.select(key)]).unique()
                yield found.kind, keys.select(pl.col(name).cast(found.kind.schema[name]) for name in key)

    def _newer_mapped(self) -> Iterator[tuple[Kind, pl.DataFrame]]:
        labels = label_tables(self._lake, self._control)
        for row in self._control.relationships:
            done = self._pinned.mapped.get(row.name)
            if done is None or not kinds_of(labels).keys() >= set(row.labels):
                continue
            mapped = MappedRelationship(self._lake, labels, row)
            since = mapped.since(done)
            if since and since != {name: self._lake.versions.version(name) for name in mapped.every}:
                yield mapped.kind, mapped.touched(since).select(mapped.kind.key_columns)

    def _newer_journeys(self) -> Iterator[tuple[Kind, pl.DataFrame]]:
        tables = JourneyTables(self._lake)
        found = tables.between(self._pinned.commits or {}, tables.target())
        if self._pinned.commits is None or not found.seqs:
            return
        rows = found.rows.select("tenant_id", "event_id", "key_type", "key_hash", "journey_id", "other_journey_id")
        said = rows.collect(engine="streaming")
        events = said.select("tenant_id", id="event_id").drop_nulls().unique()
        keys = said.drop_nulls("key_type").select("tenant_id", id=model.correlation_id()).unique()
        ids = [said.select("tenant_id", id=name) for name in ("journey_id", "other_journey_id")]
        journeys = pl.concat(ids).drop_nulls().unique()
        yield model.EVENT_STATUS, events
        yield model.CORRELATION, keys
        yield model.JOURNEY, journeys
        for kind in (model.HAS_KEY, model.IN_JOURNEY):
            yield kind, events.rename({"id": "from_id"})
        yield model.PART_OF, keys.rename({"id": "from_id"})
        # What a journey absorbs moves with it.
        for kind in (model.IN_JOURNEY, model.PART_OF):
            yield kind, journeys.rename({"id": "to_id"})


def ends_of(kind: Kind) -> tuple[NodeKind, ...]:
    """The nodes that rows of a kind stand on."""
    if isinstance(kind, NodeKind):
        return (kind,) if kind.is_owned else ()
    return kind.source, kind.target


def _itself(frame: pl.DataFrame) -> pl.DataFrame:
    return frame


@dataclass(frozen=True)
class JourneyRows:
    """What stitching says, each part read when it is asked for and not kept.

    Attributes:
        lazy_journeys: columns of `JOURNEYS`.
        lazy_assigned: columns of `EVENT_JOURNEY`.
        lazy_event_keys: columns of `EVENT_KEYS`.
        lazy_keys: tenant_id, key_type, key_hash, journey_id of keys that link.
    """

    lazy_journeys: pl.LazyFrame
    lazy_assigned: pl.LazyFrame
    lazy_event_keys: pl.LazyFrame
    lazy_keys: pl.LazyFrame

    @property
    def journeys(self) -> pl.DataFrame:
        """Columns of `JOURNEYS`."""
        return self.lazy_journeys.collect(engine="streaming")

    @property
    def assigned(self) -> pl.DataFrame:
        """Columns of `EVENT_JOURNEY`."""
        return self.lazy_assigned.collect(engine="streaming")

    @property
    def event_keys(self) -> pl.DataFrame:
        """Columns of `EVENT_KEYS`."""
        return self.lazy_event_keys.collect(engine="streaming")

    @property
    def keys(self) -> pl.DataFrame:
        """As `lazy_keys`."""
        return self.lazy_keys.collect(engine="streaming")
