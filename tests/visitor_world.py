"""Events of the visitors of one shop, in archive and graph: what tests of visitors and audiences begin with."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from event_world import World

from c360_pipeline.core.catalog.tables import EVENTS, VISITOR_USER
from c360_pipeline.core.contract.events import Event
from c360_pipeline.core.contract.frames import event_frame
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.projection.user_properties import UserProperty
from c360_pipeline.stages.projection.events import EventGraph, ProductGraph
from c360_pipeline.stages.visitors.tables import VisitorTables
from c360_pipeline.stores.delta.lake import Lake

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
KNOWN = Statement("MATCH (v:Visitor {tenant_id: 'acme'})-[:IS_USER]->(u:User) RETURN v.id AS visitor, u.id AS user")


def event(number: int, user: str | None, visitor: str | None, session: str | None = "s", **fields: Any) -> Event:
    values = dict.fromkeys(Event._fields)
    given = {
        "tenant_id": "acme", "event_id": f"e{number}", "user_id": user, "anonymous_id": visitor, "session_id": session,
        "ts": START + timedelta(minutes=number), "action": "view", "item_id": "lamp", "attrs": {}, "content_hash": "",
    }  # fmt: skip
    return Event(**{**values, **given, **fields})  # type: ignore[arg-type]


def archived(lake: Lake, events: Iterable[Event]) -> None:
    """Put events into the archive."""
    frame = event_frame(events)
    kinds = EVENTS.empty().schema
    texts = [name for name in frame.columns if frame.schema[name] != kinds[name]]
    whole = frame.with_columns(
        *(pl.col(name).cast(kinds[name]) for name in texts),
        *(pl.lit(None, kinds[name]).alias(name) for name in kinds if name not in frame.columns),
    ).with_columns(event_date=pl.col("ts").dt.date(), landed_at=pl.lit(START).cast(kinds["landed_at"]))
    lake.commits.insert_new(EVENTS, whole.select(list(kinds)))


class Shop(World):
    """The visitors of one shop; what is there is what a test puts there."""

    properties: tuple[UserProperty, ...] = ()

    def project(self) -> None:
        ProductGraph(self.lake, self.graph).project()
        EventGraph(self.lake, self.graph, self.properties).project()
        VisitorTables(self.lake).publish_all()

    def known(self) -> dict[str, str]:
        return dict(self.lake.read(VISITOR_USER).select("anonymous_id", "user_id").iter_rows())

    def known_in_graph(self) -> dict[str, str]:
        return {row["visitor"]: row["user"] for row in self.graph.query(KNOWN)}
