"""A large archive in parts, as rows of the graph: no more than some hundred thousand events are in memory at once.

A part is some tenants, or of a large tenant the rows whose node, or whose source, has an id between two others: the
graph reads the same by its index. What is divided is on disk meanwhile (docs/adr/0064).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import polars as pl

from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.graph import DAY, Kind, NodeKind
from c360_pipeline.core.projection.user_properties import property_kinds, values
from c360_pipeline.stages.projection.events import SIMILARITIES
from c360_pipeline.stages.reconciliation.expected import Archive, JourneyRows, SiloNodes, ends_of
from c360_pipeline.stages.visitors.counted import PROJECTED

PART_ROWS = 500_000
"""Rows of a part: of events, or of tables of journeys."""
SAMPLED = 20_000
"""Ids of a tenant by which it is divided."""
_PART = "part_number"
_Slices = Callable[[], Iterator["Slice"]]
"""Makes the slices of some kinds, when they are asked for."""
_NOT_ONLY_EVENTS = ("attrs",)
"""Columns that only the nodes of events need."""


@dataclass(frozen=True)
class Part:
    """Some rows of a kind.

    Attributes:
        tenants: whose.
        start: the id of the node, or the source, is this or greater; None for from the first on.
        end: and less than this; None for to the last.
    """

    tenants: tuple[str, ...]
    start: str | None = None
    end: str | None = None


@dataclass(frozen=True)
class Parts:
    """How rows are divided.

    Attributes:
        parts: all of them; those of one tenant in the order of ids.
        column: that divides large tenants.
        rows: of a part, as is aimed at.
    """

    parts: tuple[Part, ...]
    column: str

    @classmethod
    def of(cls, rows: pl.LazyFrame, column: str, part_rows: int) -> "Parts":
        """Divide rows with tenant_id and a column of text, so that each part has about so many of them."""
        counts = rows.group_by("tenant_id").len().sort("tenant_id").collect(engine="streaming")
        parts: list[Part] = []
        together: list[str] = []
        size = 0
        for tenant, count in counts.iter_rows():
            if count > part_rows:
                bounds = _bounds(rows, tenant, column, count, part_rows)
                ends = [None, *bounds, None]
                parts += [Part((tenant,), *pair) for pair in pairwise(ends)]
                continue
            if size + count > part_rows:
                parts.append(Part(tuple(together)))
                together, size = [], 0
            together.append(tenant)
            size += count
        parts += [Part(tuple(together))] if together else []
        # Where there are no rows, the graph may have some.
        return cls(tuple(parts) or (Part(()),), column)

    @property
    def number(self) -> pl.Expr:
        """Of each row the part that it is in."""
        found: pl.Expr = pl.lit(None, pl.Int32)
        whole: dict[str, int] = {}
        first: dict[str, int] = {}
        for number, part in enumerate(self.parts):
            if part.start is None and part.end is None:
                whole |= dict.fromkeys(part.tenants, number)
            else:
                first.setdefault(part.tenants[0], number)
        for tenant, number in first.items():
            starts = [part.start for part in self.parts if part.tenants == (tenant,) and part.start is not None]
            behind = pl.sum_horizontal((pl.col(self.column) >= start).cast(pl.Int32) for start in starts)
            found = pl.when(pl.col("tenant_id") == tenant).then(pl.lit(number, pl.Int32) + behind).otherwise(found)
        if whole:
            of_tenant = pl.col("tenant_id").replace_strict(whole, default=None, return_dtype=pl.Int32)
            found = pl.coalesce(of_tenant, found)
        return found.alias(_PART)


def _bounds(rows: pl.LazyFrame, tenant: str, column: str, count: int, part_rows: int) -> list[str]:
    """Ids between parts of a tenant, ascending; none but of ASCII, which every engine sorts alike before others."""
    ids = rows.filter(pl.col("tenant_id") == tenant).select(column).gather_every(max(count // SAMPLED, 1))
    sample = ids.collect(engine="streaming")[column].drop_nulls()
    plain = sample.filter(sample.str.contains(r"^[\x21-\x7e]+$")).sort()
    wanted = -(-count // part_rows)
    places = [plain.len() * number // wanted for number in range(1, wanted)]
    return sorted(set(plain.gather(places).to_list())) if plain.len() >= wanted else []


@dataclass
class _Divided:
    """Rows on disk, a folder for each part."""

    parts: Parts
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, rows: pl.LazyFrame) -> "_Divided":
        """Put rows there; those without the column are in none."""
        numbered = rows.filter(pl.col(self.parts.column).is_not_null()).with_columns(self.parts.number)
        numbered.sink_parquet(pl.PartitionBy(self.folder, key=_PART, include_key=False), compression="lz4", mkdir=True)
        self._schema = rows.collect_schema()
        return self

    def read(self, number: int) -> pl.DataFrame:
        """The rows of a part."""
        files = sorted((self.folder / f"{_PART}={number}").glob("*"))
        if not files:
            return pl.DataFrame(schema=self._schema)
        return pl.scan_parquet(files, hive_partitioning=False).select(self._schema.names()).collect()


@dataclass(frozen=True)
class Slice:
    """Rows of a kind with `DAY`, as the archive has them.

    Attributes:
        kind: of the rows.
        rows: columns of the kind, `DAY`.
        part: which they are; None for all.
    """

    kind: Kind
    rows: pl.DataFrame
    part: Part | None = None


@dataclass
class ArchiveParts:
    """The rows of a graph, part by part.

    Args:
        archive: what they are made of.
        folder: for what is on disk meanwhile.
        part_rows: as `PART_ROWS`.
    """

    archive: Archive
    folder: Path
    part_rows: int = PART_ROWS
    _divided: dict[str, _Divided] = field(default_factory=dict)
    _days: dict[str, pl.DataFrame] = field(default_factory=dict)

    def slices(self, only: Collection[Kind] | None = None) -> Iterator[Slice]:
        """Every kind in parts; nodes before relationships.

        Args:
            only: kinds that are wanted, and the nodes that they are dated by; every kind where nothing is said.
        """
        at = self.archive.events_at()
        at.counted(at.scan(PROJECTED)).sink_parquet(self._events, compression="lz4")
        silos = self.archive.silo_nodes()
        dating = {end.label for kind in only or () for end in ends_of(kind)}
        for kinds, build in (*self._nodes(), *self._of_silos(silos)):
            dates = any(kind.label in dating and _dates_others(kind) for kind in kinds)
            if only is None or dates or set(kinds) & set(only):
                yield from self._noted(build(), only)
        for of_type, slices in self._relationships():
            if only is None or set(of_type) & set(only):
                yield from (found for found in slices() if only is None or found.kind in only)
        for kind, rows in self.archive.mapped_relationships(silos, only):
            yield Slice(kind, self._dated(kind, rows, {}))

    def _noted(self, slices: Iterator[Slice], only: Collection[Kind] | None) -> Iterator[Slice]:
        """Slices of nodes that are wanted; the days of all are kept."""
        for found in slices:
            if isinstance(found.kind, NodeKind) and _dates_others(found.kind):
                self._note_days(found.kind, found.rows)
            if only is None or found.kind in only:
                yield found

    def _of_silos(self, silos: SiloNodes) -> Iterator[tuple[tuple[NodeKind, ...], _Slices]]:
        for label, rows in silos.frames.items():
            kind = silos.kinds[label]
            yield (kind,), partial(self._one, kind, partial(_itself, rows))

    def _one(self, kind: Kind, build: Callable[[], pl.DataFrame]) -> Iterator[Slice]:
        yield Slice(kind, self._dated(kind, build(), {}))

    @cached_property
    def _journeys(self) -> JourneyRows:
        return self.archive.journeys()

    @property
    def _keys(self) -> pl.LazyFrame:
        """Keys that link, with the `id` of their node."""
        return self._journeys.lazy_keys.with_columns(id=model.correlation_id())

    @property
    def _events(self) -> Path:
        return self.folder / "events.parquet"

    def _note_days(self, kind: NodeKind, rows: pl.DataFrame) -> None:
        days = rows.select(*kind.key_columns, DAY)
        self._days[kind.label] = pl.concat([self._days.get(kind.label, days.clear()), days])

    def _dated(self, kind: Kind, rows: pl.DataFrame, days: dict[str, pl.DataFrame]) -> pl.DataFrame:
        return model.with_days(kind, rows, {**self._days, **days})

    def _of_events(self, start: str) -> _Divided:
        """All events, counted, by a column of theirs."""
        if start not in self._divided:
            events = pl.scan_parquet(self._events)
            if start not in ("event_id", "group_id"):
                events = events.drop(_NOT_ONLY_EVENTS)
            parts = Parts.of(events.select("tenant_id", start).drop_nulls(), start, self.part_rows)
            self._divided[start] = _Divided(parts, self.folder / start).write(events)
        return self._divided[start]

    def _projected(self, projection: model.Projection) -> Iterator[Slice]:
        divided, kind = self._of_events(projection.start), projection.kind
        for number, part in enumerate(divided.parts.parts):
            events = divided.read(number)
            yield Slice(kind, self._dated(kind, projection.build(events), _days_of(events)), part)

    def _nodes(self) -> Iterator[tuple[tuple[NodeKind, ...], _Slices]]:
        for projection in model.EVENT_PROJECTIONS:
            if isinstance(projection.kind, NodeKind):
                yield (projection.kind,), partial(self._projected, projection)
        archive, journeys = self.archive, self._journeys
        yield (model.PRODUCT,), lambda: self._one(model.PRODUCT, lambda: archive.products)
        yield (model.CATEGORY,), lambda: self._one(model.CATEGORY, lambda: model.categories(archive.catalog()))
        yield (model.CORRELATION,), partial(self._of_table, model.CORRELATION, self._keys, "id", model.correlations)
        rows = journeys.lazy_journeys
        yield (model.JOURNEY,), partial(self._of_table, model.JOURNEY, rows, "journey_id", model.journeys)
        yield (model.EVENT_STATUS,), lambda: self._statuses(journeys.lazy_assigned)
        yield (model.AUDIENCE,), lambda: self._one(model.AUDIENCE, lambda: model.audiences(archive.audience_members))
        yield (model.USER_COMMUNITY, *property_kinds(archive.properties)), self._of_users

    def _of_table(
        self, kind: Kind, rows: pl.LazyFrame, column: str, build: Callable[[pl.DataFrame], pl.DataFrame]
    ) -> Iterator[Slice]:
        """Rows of a table of journeys, by a column that no other of these tables is divided by."""
        if column not in self._divided:
            parts = Parts.of(rows.select("tenant_id", column), column, self.part_rows)
            self._divided[column] = _Divided(parts, self.folder / column).write(rows)
        divided = self._divided[column]
        for number, part in enumerate(divided.parts.parts):
            yield Slice(kind, self._dated(kind, build(divided.read(number)), {}), part)

    def _beside_events(self, name: str, rows: pl.LazyFrame) -> _Divided:
        """A table of events, divided as the events are."""
        if name not in self._divided:
            parts = self._of_events("event_id").parts
            self._divided[name] = _Divided(parts, self.folder / name).write(rows)
        return self._divided[name]

    def _statuses(self, assigned: pl.LazyFrame) -> Iterator[Slice]:
        events, theirs = self._of_events("event_id"), self._beside_events("assigned", assigned)
        for number, part in enumerate(events.parts.parts):
            rows = model.event_status(events.read(number).select("tenant_id", "event_id"), theirs.read(number))
            yield Slice(model.EVENT_STATUS, self._dated(model.EVENT_STATUS, rows, {}), part)

    def _of_users(self) -> Iterator[Slice]:
        """Properties of users that other stages own."""
        divided = self._of_events(model.CUSTOMER_ID)
        kinds: Sequence[NodeKind] = property_kinds(self.archive.properties)
        for number, part in enumerate(divided.parts.parts):
            events = divided.read(number)
            users = events.select("tenant_id", id=model.CUSTOMER_ID).unique()
            communities = self.archive.communities(users)
            yield Slice(model.USER_COMMUNITY, self._dated(model.USER_COMMUNITY, communities, {}), part)
            found = values(events, self.archive.properties)
            for kind in kinds:
                yield Slice(kind, self._dated(kind, found.select(list(kind.schema)), {}), part)

    def _relationships(self) -> Iterator[tuple[tuple[Kind, ...], _Slices]]:
        for projection in model.EVENT_PROJECTIONS:
            if not isinstance(projection.kind, NodeKind):
                yield (projection.kind,), partial(self._projected, projection)
        archive, journeys = self.archive, self._journeys
        in_category = model.IN_CATEGORY
        yield (in_category,), lambda: self._one(in_category, lambda: model.product_categories(archive.catalog()))
        for kind, name in SIMILARITIES:
            yield (kind,), partial(self._one, kind, partial(archive.similarities, kind, name))
        yield (model.IN_AUDIENCE,), lambda: self._one(model.IN_AUDIENCE, lambda: archive.audience_members)
        linked = partial(self._linked, journeys.lazy_assigned, journeys.lazy_event_keys)
        yield (model.HAS_KEY, model.IN_JOURNEY), linked
        yield (model.PART_OF,), partial(self._of_table, model.PART_OF, self._keys, "id", model.correlation_journeys)

    def _linked(self, assigned: pl.LazyFrame, event_keys: pl.LazyFrame) -> Iterator[Slice]:
        events = self._of_events("event_id")
        pairs, theirs = self._beside_events("keys", event_keys), self._beside_events("assigned", assigned)
        for number, part in enumerate(events.parts.parts):
            days, keys = _days_of(events.read(number)), pairs.read(number)
            linked = model.event_correlations(keys)
            yield Slice(model.HAS_KEY, self._dated(model.HAS_KEY, linked, days), part)
            unlinked = model.unlinked_events(theirs.read(number), keys)
            yield Slice(model.IN_JOURNEY, self._dated(model.IN_JOURNEY, unlinked, days), part)


def _dates_others(kind: NodeKind) -> bool:
    """Whether relationships look up the day of such a node; that of an event is in each part of events."""
    return kind.day is not None and not kind.is_owned and kind is not model.ACTION


def _itself(rows: pl.DataFrame) -> pl.DataFrame:
    return rows


def _days_of(events: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The days of events, as `with_days` takes them."""
    actions = events.select("tenant_id", pl.col("ts").dt.date().alias(DAY), id="event_id")
    return {model.ACTION.label: actions.select("tenant_id", "id", DAY)}
