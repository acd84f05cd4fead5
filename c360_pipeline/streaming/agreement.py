"""Whether Kafka, the archive, the graph and Cassandra agree, event by event, and which events do not."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from c360_pipeline.core.events import EPOCH
from c360_pipeline.core.graph import attributes_text
from c360_pipeline.core.lake import EVENTS
from c360_pipeline.core.landing import split_suppressed
from c360_pipeline.core.reconcile import digest, row_hashes
from c360_pipeline.stores.fresh_events import EVENT_SCHEMA, write_fresh
from c360_pipeline.stores.graph import Graph
from c360_pipeline.stores.lake import Lake
from c360_pipeline.stores.user_events import UserEvent, UserEvents, user_event
from c360_pipeline.streaming.operators import sorted_json
from c360_pipeline.streaming.topic import CONTENT

KEY = ["tenant_id", "event_id"]
BATCH_ROWS = 5_000
SHOWN = 20
READ_EVENTS = """
    UNWIND $ids AS id
    MATCH (e:Event {tenant_id: $tenant_id, id: id})
    OPTIONAL MATCH (s:Session)-[:HAS_ACTION]->(e)
    OPTIONAL MATCH (e)-[:ON_PRODUCT]->(p:Product)
    RETURN e.tenant_id AS tenant_id, e.id AS event_id, e.user_id AS user_id, s.id AS session_id,
           e.ts.epochMillis * 1000 + e.ts.microsecond % 1000 AS micros, e.type AS action, p.id AS item_id,
           e.attrs AS attrs
"""


@dataclass(frozen=True)
class Place:
    """What one store holds of the events that were sent.

    Attributes:
        name: archive, graph or cassandra.
        events: that it holds.
        digest: of them: equal stores have equal digests.
        waiting: how many it lacks for now: they are in files that have not landed.
        missing: tenant_id, event_id and is_late of those that it lacks and should hold.
        altered: of those that it holds with other contents.
        extra: of those that it holds and that were never sent.
    """

    name: str
    events: int
    digest: str
    waiting: int
    missing: pl.DataFrame
    altered: pl.DataFrame
    extra: pl.DataFrame

    @property
    def differing(self) -> dict[str, pl.DataFrame]:
        """The events that differ, by how they do."""
        return {"missing": self.missing, "altered": self.altered, "extra": self.extra}

    @property
    def drift(self) -> int:
        """How many events differ."""
        return sum(rows.height for rows in self.differing.values())


@dataclass(frozen=True)
class Agreement:
    """The comparison at a moment.

    Attributes:
        at: the moment up to which messages were read.
        counts: messages, dead_letters, late, duplicates, events, suppressed.
        sent_digest: of the events that were sent, less the late ones.
        places: the stores.
    """

    at: datetime
    counts: Mapping[str, int]
    sent_digest: str
    places: tuple[Place, ...]

    @property
    def is_equal(self) -> bool:
        """Whether no store differs."""
        return not any(place.drift for place in self.places)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of each kind of drift the first events."""
        return {
            "at": self.at.isoformat(), "is_equal": self.is_equal, **self.counts, "sent_digest": self.sent_digest,
            "places": [
                {"name": p.name, "events": p.events, "digest": p.digest, "waiting": p.waiting, **{
                    kind: {"events": rows.height, "first": rows.head(SHOWN).to_dicts()}
                    for kind, rows in p.differing.items()
                }}
                for p in self.places
            ],
        }  # fmt: skip


class Stores:
    """What is compared with the topic.

    Args:
        lake: the archive.
        graph: entered.
        table: of Cassandra, entered.
        suppressed: tenant_id and user_hash of people who are not to be anywhere.
    """

    def __init__(self, lake: Lake, graph: Graph, table: UserEvents, suppressed: pl.DataFrame) -> None:
        self._lake = lake
        self._graph = graph
        self._table = table
        self._suppressed = suppressed

    def compare(self, sent: pl.DataFrame, counts: Mapping[str, int], at: datetime, landing: timedelta) -> Agreement:
        """Compare what was sent with what every store holds.

        The archive should hold all of it once it has landed, the graph what is not late and what has landed, Cassandra
        what is not late.

        Args:
            sent: `topic.SENT` rows, each event once.
            counts: of the reading.
            at: its moment.
            landing: how old a message may be that has not landed.
        """
        kept, hidden = split_suppressed(sent, self._suppressed)
        archived = self._archived(kept)
        fresh = kept.filter(~pl.col("is_late"))
        # What landed and was projected is in the graph, late or not; the batch path proves that by itself.
        places = (
            _place("archive", kept, archived, waiting=pl.col("sent_at") > at - landing),
            _place("graph", fresh, self._in_graph(fresh)),
            _place("cassandra", fresh, self._in_cassandra(kept), tolerated=kept),
        )
        said = {**counts, "events": kept.height, "suppressed": hidden.height}
        return Agreement(at, said, digest(row_hashes(_contents(fresh))), places)

    def repair(self, found: Agreement, sent: pl.DataFrame) -> int:
        """Write what the graph lacks, and what Cassandra lacks or holds otherwise; returns how many events that were.

        The archive is not written: what it lacks is in files that have not landed. What the graph holds otherwise is
        mended by its reconciliation with the archive.
        """
        places = {place.name: place for place in found.places}
        of_graph = sent.join(places["graph"].missing, on=KEY, how="semi")
        write_fresh(self._graph, _fresh_rows(of_graph))
        differing = pl.concat([places["cassandra"].missing, places["cassandra"].altered])
        of_cassandra = sent.join(differing, on=KEY, how="semi")
        self._table.write(_user_events(of_cassandra))
        return of_graph.height + of_cassandra.height

    def _archived(self, sent: pl.DataFrame) -> pl.DataFrame:
        ids = sent.select(KEY).lazy()
        rows = self._lake.scan(EVENTS).filter(pl.col("tenant_id").is_in(sent["tenant_id"].unique().to_list()))
        found = rows.join(ids, on=KEY, how="semi").collect(engine="streaming")
        micros = found.with_columns(attributes_text(found["attrs"]).alias("attrs"), micros=pl.col("ts").dt.epoch("us"))
        return _same_text(micros.select(list(CONTENT)))

    def _in_graph(self, sent: pl.DataFrame) -> pl.DataFrame:
        parts = []
        for (tenant,), rows in sent.partition_by("tenant_id", as_dict=True).items():
            for batch in rows.iter_slices(BATCH_ROWS):
                read = self._graph.query(READ_EVENTS, tenant_id=tenant, ids=batch["event_id"].to_list())
                parts.append(pl.DataFrame(read, schema=CONTENT))
        found = pl.concat([pl.DataFrame(schema=CONTENT), *parts])
        return _same_text(found)

    def _in_cassandra(self, sent: pl.DataFrame) -> pl.DataFrame:
        day = (pl.lit(EPOCH) + pl.duration(microseconds="micros")).dt.date()
        places = sent.select("tenant_id", "user_id", day=day).unique().rows()
        rows = [_content(one) for one in self._table.of_days(places)]
        return pl.DataFrame(rows, schema=CONTENT, orient="row")


def _place(
    name: str, expected: pl.DataFrame, held: pl.DataFrame, tolerated: pl.DataFrame | None = None,
    waiting: pl.Expr | None = None,
) -> Place:  # fmt: skip
    """Compare contents.

    Args:
        name: of the store.
        expected: what it should hold.
        held: what it holds.
        tolerated: what it may hold though it is not expected.
        waiting: which of the events that it lacks it may lack for now.
    """
    mine, theirs = _contents(expected), _contents(held)
    late = expected.select(*KEY, "is_late")
    lacking = expected.join(theirs, on=KEY, how="anti")
    later = lacking.filter(waiting) if waiting is not None else lacking.clear()
    missing = lacking.join(later, on=KEY, how="anti").select(*KEY, "is_late")
    there = mine.join(theirs.select(KEY), on=KEY, how="semi")
    altered = late.join(there.join(theirs, on=list(CONTENT), how="anti", nulls_equal=True), on=KEY, how="semi")
    known = expected if tolerated is None else tolerated
    extra = theirs.join(known, on=KEY, how="anti").select(*KEY, is_late=pl.lit(None, pl.Boolean))
    shown = theirs.join(mine.select(KEY), on=KEY, how="semi")
    return Place(name, shown.height, digest(row_hashes(shown)), later.height, missing, altered, extra)


def _same_text(rows: pl.DataFrame) -> pl.DataFrame:
    """Attributes as Python writes them, whoever wrote the text."""
    texts = [sorted_json(json.loads(text or "{}")) for text in rows["attrs"]]
    return rows.with_columns(pl.Series("attrs", texts, dtype=pl.String))


def _contents(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(list(CONTENT))


def _content(row: UserEvent) -> tuple[Any, ...]:
    return (
        row.tenant_id, row.event_id, row.user_id, row.session_id, row.event_micros, row.event_type, row.item_id,
        sorted_json(row.metadata),
    )  # fmt: skip


def _user_events(rows: pl.DataFrame) -> Iterable[UserEvent]:
    for row in rows.select(list(CONTENT)).iter_rows(named=True):
        ts = EPOCH + timedelta(microseconds=row["micros"])
        yield user_event(
            row["event_id"], row["tenant_id"], row["user_id"], row["session_id"], ts, row["action"], row["item_id"],
            json.loads(row["attrs"]),
        )  # fmt: skip


def _fresh_rows(rows: pl.DataFrame) -> pl.DataFrame:
    attrs = [[{"key": k, "value": v} for k, v in json.loads(text).items()] for text in rows["attrs"]]
    entries = pl.Series("attrs", attrs, dtype=EVENT_SCHEMA["attrs"])
    ts = (pl.lit(EPOCH) + pl.duration(microseconds="micros")).cast(pl.Datetime("us", "UTC"))
    return rows.with_columns(entries, ts=ts)
