"""Audiences in the graph: who entered and left since its checkpoint."""

from datetime import datetime

import polars as pl

from c360_pipeline.core.catalog.audience_tables import AUDIENCE_MEMBERS, IS_MEMBER
from c360_pipeline.core.catalog.changes import Changes
from c360_pipeline.core.projection import graph as model
from c360_pipeline.stages.audiences.facts import FactsOfTenants
from c360_pipeline.stages.audiences.refresh import Members, Refreshed
from c360_pipeline.stages.projection.events import EVENT_PROJECTION, decisions_before, events_in
from c360_pipeline.stages.visitors.counted import EventsAt
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb

AUDIENCE_PROJECTION = "audience_graph"


class AudienceGraph:
    """Brings members of audiences into a graph.

    Args:
        lake: where they are.
        graph: where they go; it keeps how far it is.
    """

    def __init__(self, lake: Lake, graph: Graph) -> None:
        self._lake = lake
        self._graph = graph

    def project(self) -> int:
        """Project who entered and left since the graph's checkpoint; returns how many relationships that were."""
        lake, graph = self._lake, self._graph
        done = graph.checkpoints.of(AUDIENCE_PROJECTION)
        changed, version = lake.versions.changes(AUDIENCE_MEMBERS, done.get(AUDIENCE_MEMBERS.name))
        touched = touched_members(changed)
        if touched.height:
            who = touched.select("tenant_id", user_id="from_id").unique().lazy()
            held = lake.scan(AUDIENCE_MEMBERS, version.number if version else None)
            theirs = held.join(who, on=["tenant_id", "user_id"], how="semi").collect(engine="streaming")
            rows = model.audience_members(theirs, self._users(touched))
            rows = rows.join(touched, on=touched.columns, how="semi")
            gone = touched.join(rows, on=touched.columns, how="anti")
            graph.writer.merge(model.AUDIENCE, model.audiences(rows))
            graph.writer.apply(model.IN_AUDIENCE, Changes.of(rows, gone))
            graph.writer.delete(model.AUDIENCE, self._empty(gone, version.number if version else None))
        graph.checkpoints.save(AUDIENCE_PROJECTION, AUDIENCE_MEMBERS.name, version)
        return touched.height

    def _users(self, touched: pl.DataFrame) -> pl.DataFrame:
        """tenant_id, id of those of some members that are in the graph."""
        parts = [
            self._graph.audit.named_rows(model.USER, str(tenant), rows["from_id"].unique().to_list())
            for (tenant,), rows in touched.partition_by("tenant_id", as_dict=True).items()
        ]
        return pl.concat(part.select("tenant_id", "id") for part in parts)

    def _empty(self, gone: pl.DataFrame, version: int | None) -> pl.DataFrame:
        """tenant_id, id of audiences that somebody left and nobody is in."""
        left = gone.select("tenant_id", id="to_id").unique()
        inside = self._lake.scan(AUDIENCE_MEMBERS, version).filter(IS_MEMBER)
        some = inside.select("tenant_id", id="audience").unique().collect(engine="streaming")
        return left.join(some, on=left.columns, how="anti")


def touched_members(changed: Changes) -> pl.DataFrame:
    """Keys of `IN_AUDIENCE` of the rows of `AUDIENCE_MEMBERS` that came, changed or went."""
    rows = pl.concat([changed.upserted.select(AUDIENCE_MEMBERS.key), changed.deleted.select(AUDIENCE_MEMBERS.key)])
    return rows.select("tenant_id", from_id="user_id", to_id="audience").unique()


def bring_up_audiences(lake: Lake, control: ControlDb, graph: Graph, now: datetime) -> tuple[Refreshed, dict[str, str]]:
    """Work out who is in all audiences by the events that a graph has, and write that to lake and graph.

    Returns:
        Who entered and left; and of audiences whose documents can't be read, by tenant/name, why: these stay.
    """
    active, faults = control.audiences.active()
    unread = [(tenant, name) for tenant, _, name in (named.rpartition("/") for named in faults)]
    known = events_in(graph, lake, EVENT_PROJECTION)
    # As the graph has them: each member is a node there.
    decisions = decisions_before(lake, graph.checkpoints.of(EVENT_PROJECTION))
    at = EventsAt.of(lake, known, decisions) if known else EventsAt.now(lake)
    table = Members(lake, FactsOfTenants(lake, graph.run))
    done = table.refresh(active, control.privacy.purposes(), now, at, unread)
    AudienceGraph(lake, graph).project()
    return done, faults
