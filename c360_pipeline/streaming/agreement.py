"""Whether Kafka, the archive, the graph and Cassandra agree, event by event, and which events do not.

Events are divided by a hash of their users, and compared part by part: what is in memory does not grow with the topic.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from c360_pipeline.core.catalog.changes import difference
from c360_pipeline.core.catalog.tables import DEAD_LETTERS, EVENTS
from c360_pipeline.core.contract.events import EPOCH
from c360_pipeline.core.contract.frames import CONTENT, EVENT_SCHEMA, TEXT_COLUMNS
from c360_pipeline.core.contract.layout import GRAPH_PROPERTIES
from c360_pipeline.core.landing.classify import split_suppressed
from c360_pipeline.core.landing.decode import decode, decode_records
from c360_pipeline.core.landing.lines import Delivery, LineBlock
from c360_pipeline.core.landing.suppressed import Suppressed
from c360_pipeline.core.projection.graph import attributes_text
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.reconciliation.compare import NO_ROWS, digest, row_hashes, sum_of_digests
from c360_pipeline.core.sources.source import NO_SOURCES, Sources
from c360_pipeline.core.visitors.counting import BY_GAP
from c360_pipeline.stages.realtime.unlanded_events import write_unlanded
from c360_pipeline.stores.cassandra.user_events import RENAMED, UserEvent, UserEvents, user_event
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.local.spill import Spill
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.streaming.topic import SENT, Reading, Validated, each_once

KEY = ["tenant_id", "event_id"]
USER = ["tenant_id", "user_id"]
HAS_USER = pl.col("user_id").is_not_null()
BATCH_ROWS = 5_000
PART_ROWS = 100_000
"""About as many events are compared at once."""
SHOWN = 20
CONFLICT = "duplicate_id_conflict"
COUNTED = ("messages", "dead_letters", "late", "duplicates", "events", "suppressed", "conflicts")
DIFFERING = {"tenant_id": pl.String, "event_id": pl.String, "is_late": pl.Boolean}
_IN_THE_GRAPH = {
    "tenant_id": "e.tenant_id", "event_id": "e.id", "item_id": "p.id",
    "micros": "e.ts.epochMillis * 1000 + e.ts.microsecond % 1000",
    "session_id": f"CASE WHEN NOT s.id STARTS WITH '{BY_GAP}' THEN s.id END",
}  # fmt: skip
"""Where the graph has what is no property of an event's own node, or has it in another form."""
_RETURNED = ", ".join(
    f"{_IN_THE_GRAPH.get(column) or f'e.{GRAPH_PROPERTIES[column]}'} AS {column}"
    for column in CONTENT
    if column in _IN_THE_GRAPH or column in GRAPH_PROPERTIES
)
READ_EVENTS = Statement(f"""
    UNWIND $ids AS id
    MATCH (e:Event {{tenant_id: $tenant_id, id: id}})
    OPTIONAL MATCH (s:Session {{tenant_id: $tenant_id}})-[:HAS_ACTION]->(e)
    OPTIONAL MATCH (e)-[of:ON_PRODUCT]->(p:Product {{tenant_id: $tenant_id}}) WHERE of.quantity IS NULL
    RETURN {_RETURNED}
""")


@dataclass(frozen=True)
class Drift:
    """Events that differ in one way.

    Attributes:
        events: how many.
        first: tenant_id, event_id and is_late of up to `SHOWN` of them.
    """

    events: int = 0
    first: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=DIFFERING))

    def and_of(self, rows: pl.DataFrame) -> "Drift":
        """With more of them."""
        return Drift(self.events + rows.height, pl.concat([self.first, rows]).head(SHOWN))


@dataclass(frozen=True)
class Place:
    """What one store holds of the events that were sent.

    Attributes:
        name: archive, graph or cassandra.
        events: that it holds.
        digest: of them: equal stores have equal digests.
        waiting: how many it lacks for now: they are in files that have not landed.
        missing: those that it lacks and should hold.
        altered: those that it holds with other contents.
        extra: those that it holds and that were never sent.
    """

    name: str
    events: int = 0
    digest: str = NO_ROWS
    waiting: int = 0
    missing: Drift = field(default_factory=Drift)
    altered: Drift = field(default_factory=Drift)
    extra: Drift = field(default_factory=Drift)

    @property
    def differing(self) -> dict[str, Drift]:
        """The events that differ, by how they do."""
        return {"missing": self.missing, "altered": self.altered, "extra": self.extra}

    @property
    def drift(self) -> int:
        """How many events differ."""
        return sum(kind.events for kind in self.differing.values())

    def and_of(self, part: "_Part") -> "Place":
        """With a part of the events."""
        return Place(
            self.name, self.events + part.shown.height,
            sum_of_digests([self.digest, digest(row_hashes(part.shown))]), self.waiting + part.waiting,
            self.missing.and_of(part.missing), self.altered.and_of(part.altered), self.extra.and_of(part.extra),
        )  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """The comparison at a moment.

    Attributes:
        at: the moment up to which messages were read.
        counts: messages, dead_letters, late, duplicates, events, suppressed; conflicts: events whose id the archive had
            given to other content already. They are dead letters there, and no store holds them.
        sent_digest: of the events that were sent, less the late ones.
        places: the stores.
        repaired: how many events were written to the graph and Cassandra before this was found.
    """

    at: datetime
    counts: Mapping[str, int]
    sent_digest: str
    places: tuple[Place, ...]
    repaired: int = 0

    @property
    def is_equal(self) -> bool:
        """Whether no store differs."""
        return not any(place.drift for place in self.places)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of each kind of drift the first events."""
        return {
            "at": self.at.isoformat(), "is_equal": self.is_equal, **self.counts, "sent_digest": self.sent_digest,
            "repaired": self.repaired,
            "places": [
                {"name": p.name, "events": p.events, "digest": p.digest, "waiting": p.waiting, **{
                    name: {"events": drift.events, "first": drift.first.to_dicts()}
                    for name, drift in p.differing.items()
                }}
                for p in self.places
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """A part of the events in one store.

    Attributes:
        shown: `CONTENT` of those that it holds and should.
        waiting: as `Place` has it.
        missing: `DIFFERING` rows, as altered and extra.
    """

    shown: pl.DataFrame
    waiting: int
    missing: pl.DataFrame
    altered: pl.DataFrame
    extra: pl.DataFrame

    @property
    def differs(self) -> bool:
        """Whether there is drift."""
        return not (self.missing.is_empty() and self.altered.is_empty() and self.extra.is_empty())


class Stores:
    """What is compared with the topic.

    Args:
        lake: the archive.
        graph: entered.
        table: of Cassandra, entered.
        suppressed: people who are not to be anywhere.
        sources: by which records of their topics are read.
    """

    def __init__(
        self, lake: Lake, graph: Graph, table: UserEvents, suppressed: Suppressed, sources: Sources = NO_SOURCES
    ) -> None:
        self._lake = lake
        self._graph = graph
        self._table = table
        self._suppressed = suppressed
        self._sources = sources

    def compare(
        self, reading: Reading, at: datetime, landing: timedelta, folder: Path, *, repair: bool = False
    ) -> Agreement:
        """Compare what was sent with what every store holds.

        The archive should hold all of it once it has landed, the graph what is not late and what has landed, Cassandra
        what is not late; none of them an event under an id that the archive gave to another one. A repair writes what
        the graph lacks, and what Cassandra lacks or holds otherwise. The archive is not written: what it lacks is in
        files that have not landed. What the graph holds otherwise is mended by its reconciliation with the archive.

        Args:
            reading: of the topic.
            at: its moment.
            landing: how old a message may be that has not landed.
            folder: an empty one, for about 200 bytes of each message.
            repair: whether to repair what differs, and to compare that again.
        """
        parts = reading.at_most // PART_ROWS + 1
        counts = dict.fromkeys(COUNTED, 0)
        conflicts = self._conflicts()
        by_id = Spill(folder / "sent", KEY, pl.Schema(SENT), parts=parts)
        by_id.filled(_counted(reading.validated, counts))
        by_user = Spill(folder / "events", USER, pl.Schema(SENT), parts=parts)
        by_user.filled(_distinct(by_id, counts))
        archived = Spill(folder / "archived", USER, pl.Schema(CONTENT), parts=parts)
        archived.filled(self._archived(by_user, folder / "archive.parquet"))
        places = [Place(name) for name in ("archive", "graph", "cassandra")]
        sent_digest, repaired = NO_ROWS, 0
        for number in range(parts):
            kept, hidden = split_suppressed(by_user.part(number), self._suppressed)
            held = archived.part(number).join(kept, on=KEY, how="semi")
            counts["events"] += kept.height
            counts["suppressed"] += hidden.height
            rejected = kept.join(conflicts, on=list(CONTENT), how="semi", nulls_equal=True)
            counts["conflicts"] += rejected.height
            sent_digest = sum_of_digests([sent_digest, digest(row_hashes(_contents(_in_time(kept))))])
            found = self._compared(kept, rejected, held, at - landing)
            if repair and any(part.differs for part in found):
                written = self._repair(kept, rejected, found[1], found[2])
                repaired += written
                found = self._compared(kept, rejected, held, at - landing) if written else found
            places = [place.and_of(part) for place, part in zip(places, found, strict=True)]
        return Agreement(at, counts, sent_digest, tuple(places), repaired)

    def _compared(
        self, kept: pl.DataFrame, rejected: pl.DataFrame, archived: pl.DataFrame, landed_by: datetime
    ) -> list[_Part]:
        """The same events in each store."""
        expected = kept.join(rejected, on=KEY, how="anti")
        fresh = _in_time(expected)
        # What landed and was projected is in the graph, late or not; the batch path proves that by itself.
        # There it lies by user: what nobody known did is not there.
        in_cassandra = self._in_cassandra(kept.filter(HAS_USER))
        cassandra = _part(fresh.filter(HAS_USER), in_cassandra, tolerated=kept)
        held = rejected.join(in_cassandra, on=list(CONTENT), how="semi", nulls_equal=True)
        wrong = held.select(list(DIFFERING))
        return [
            _part(expected, archived.join(rejected, on=KEY, how="anti"), waiting=pl.col("sent_at") > landed_by),
            _part(fresh, self._in_graph(fresh)),
            replace(cassandra, altered=pl.concat([cassandra.altered, wrong])),
        ]

    def _conflicts(self) -> pl.DataFrame:
        """`CONTENT` of the events that landing rejected because their id was taken."""
        letters = self._lake.scan(DEAD_LETTERS).filter(
            pl.col("error_class") == CONFLICT, pl.col("status") != "replayed", pl.col("raw").is_not_null()
        )
        now, parts = datetime.now(UTC), [EVENTS.empty()]
        for (uri,), rows in (
            letters.select("source_uri", "raw").collect().partition_by("source_uri", as_dict=True).items()
        ):
            lines = LineBlock(Delivery(uri, ""), 0, 0, b"".join(raw + b"\n" for raw in rows["raw"]))
            source = self._sources.of(uri)
            parts.append((decode(lines, now) if source is None else decode_records(lines, now, source)).events)
        return _content_of(pl.concat(parts))

    def _repair(self, sent: pl.DataFrame, rejected: pl.DataFrame, graph: _Part, cassandra: _Part) -> int:
        """Write what the graph lacks, and what Cassandra lacks or holds otherwise; returns how many events that are.

        In the place of what the archive rejected, Cassandra gets what the archive holds.
        """
        of_graph = sent.join(graph.missing, on=KEY, how="semi")
        write_unlanded(self._graph, _unlanded_rows(of_graph))
        wrong = rejected.join(cassandra.altered, on=KEY, how="semi")
        self._table.delete(_unlanded_rows(wrong))
        taken = self._lake.held(EVENTS, wrong.select(KEY), [*TEXT_COLUMNS, "ts", "attrs"])
        self._table.write(_user_events(_content_of(taken).filter(HAS_USER)))
        lacking = sent.join(pl.concat([cassandra.missing, cassandra.altered]), on=KEY, how="semi")
        of_cassandra = lacking.join(rejected, on=KEY, how="anti")
        self._table.write(_user_events(of_cassandra))
        return of_graph.height + of_cassandra.height + wrong.height

    def _archived(self, sent: Spill, file: Path) -> Iterator[pl.DataFrame]:
        """What the archive holds of the days and tenants of what was sent."""
        places = _places(sent)
        rows = self._lake.scan(EVENTS).filter(
            pl.col("tenant_id").is_in(places["tenant_id"].unique().to_list()),
            pl.col("event_date").is_in(places["day"].unique().to_list()),
        )
        rows.select(
            *TEXT_COLUMNS, pl.col("attrs").cast(EVENT_SCHEMA["attrs"]),
            micros=pl.col("ts").dt.epoch("us"),
        ).sink_parquet(file, engine="streaming")  # fmt: skip
        for batch in pq.ParquetFile(file).iter_batches(PART_ROWS):
            found = pl.DataFrame(pl.from_arrow(batch))
            yield found.with_columns(attributes_text(found["attrs"])).select(list(CONTENT))

    def _in_graph(self, sent: pl.DataFrame) -> pl.DataFrame:
        parts = []
        for (tenant,), rows in sent.partition_by("tenant_id", as_dict=True).items():
            for batch in rows.iter_slices(BATCH_ROWS):
                read = self._graph.query(READ_EVENTS, tenant_id=tenant, ids=batch["event_id"].to_list())
                parts.append(pl.DataFrame(read, schema=CONTENT))
        return pl.concat([pl.DataFrame(schema=CONTENT), *parts]).with_columns(pl.col("attrs").fill_null("{}"))

    def _in_cassandra(self, sent: pl.DataFrame) -> pl.DataFrame:
        days = sent.select(*USER, _day()).unique().rows()
        rows = [_content(one) for one in self._table.of_days(days)]
        found = pl.DataFrame(rows, schema=CONTENT | {"attrs": EVENT_SCHEMA["attrs"]})
        return found.with_columns(attributes_text(found["attrs"]).alias("attrs"))


def _counted(validated: Iterable[Validated], counts: dict[str, int]) -> Iterator[pl.DataFrame]:
    for some in validated:
        counts["messages"] += some.messages
        counts["dead_letters"] += some.dead_letters
        yield some.events


def _distinct(sent: Spill, counts: dict[str, int]) -> Iterator[pl.DataFrame]:
    for number in range(sent.parts):
        rows = sent.part(number)
        first = each_once(rows)
        counts["duplicates"] += rows.height - first.height
        counts["late"] += int(first["is_late"].sum())
        yield first


def _places(sent: Spill) -> pl.DataFrame:
    """The tenants and days of events: tenant_id, day."""
    found = [sent.part(number).select("tenant_id", _day()).unique() for number in range(sent.parts)]
    return pl.concat(found).unique()


def _day() -> pl.Expr:
    return (pl.lit(EPOCH) + pl.duration(microseconds="micros")).dt.date().alias("day")


def _in_time(sent: pl.DataFrame) -> pl.DataFrame:
    return sent.filter(~pl.col("is_late"))


def _part(
    expected: pl.DataFrame, held: pl.DataFrame, tolerated: pl.DataFrame | None = None, waiting: pl.Expr | None = None,
) -> _Part:  # fmt: skip
    """Compare contents.

    Args:
        expected: what the store should hold.
        held: what it holds.
        tolerated: what it may hold though it is not expected.
        waiting: which of the events that it lacks it may lack for now.
    """
    mine, theirs = _contents(expected), _contents(held)
    late = expected.select(list(DIFFERING))
    found = difference(theirs, mine, KEY)
    lacking = expected.join(found.inserted.select(KEY), on=KEY, how="semi")
    later = lacking.filter(waiting) if waiting is not None else lacking.clear()
    missing = difference(later.select(KEY), lacking.select(KEY), KEY).inserted.join(late, on=KEY)
    differing = expected.join(found.updated.select(KEY), on=KEY, how="semi")
    # Under a taken id, an event is what the archive holds until the one that was sent has landed, and been rejected.
    altered = (differing.filter(~waiting) if waiting is not None else differing).select(list(DIFFERING))
    known = expected if tolerated is None else tolerated
    extra = found.deleted.join(known, on=KEY, how="anti").select(*KEY, is_late=pl.lit(None, pl.Boolean))
    return _Part(theirs.join(mine.select(KEY), on=KEY, how="semi"), later.height, missing, altered, extra)


def _contents(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(list(CONTENT))


def _content(row: UserEvent) -> dict[str, Any]:
    """A row of Cassandra as `CONTENT` has it, but for the attributes, which are entries."""
    named = {"micros": row.event_micros, "attrs": [{"key": k, "value": v} for k, v in (row.metadata or {}).items()]}
    return {**{column: getattr(row, RENAMED.get(column, column)) for column in TEXT_COLUMNS}, **named}


def _user_events(rows: pl.DataFrame) -> Iterable[UserEvent]:
    for row in rows.select(list(CONTENT)).iter_rows(named=True):
        ts = EPOCH + timedelta(microseconds=row["micros"])
        yield user_event({**row, "ts": ts, "attrs": json.loads(row["attrs"])})


def _content_of(events: pl.DataFrame) -> pl.DataFrame:
    """`CONTENT` of rows of `EVENTS`."""
    attrs = attributes_text(events["attrs"].cast(EVENT_SCHEMA["attrs"]))
    return events.select(*TEXT_COLUMNS, attrs.alias("attrs"), micros=pl.col("ts").dt.epoch("us")).select(list(CONTENT))


def _unlanded_rows(rows: pl.DataFrame) -> pl.DataFrame:
    attrs = [[{"key": k, "value": v} for k, v in json.loads(text).items()] for text in rows["attrs"]]
    entries = pl.Series("attrs", attrs, dtype=EVENT_SCHEMA["attrs"])
    ts = (pl.lit(EPOCH) + pl.duration(microseconds="micros")).cast(pl.Datetime("us", "UTC"))
    return rows.with_columns(entries, ts=ts)
