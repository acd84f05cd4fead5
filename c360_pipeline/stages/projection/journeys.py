"""Journeys in the graph: what commits of stitching changed, in an order in which no reader sees half of it."""

from collections import Counter

import polars as pl

from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.tables import JOURNEY_LOG
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.stitching import log as log
from c360_pipeline.stages.projection.refused import RefusedRows
from c360_pipeline.stages.stitching.commit import log_name
from c360_pipeline.stages.stitching.tables import JourneyTables, News
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph

LOG_ROWS = 1_000_000
"""Rows of the log that are projected at once; a commit is not divided."""
PROJECTION = "journey_graph"


class JourneyGraph:
    """Brings the log of stitching into a graph.

    Args:
        lake: holds the log.
        graph: where to; it keeps how far it is.
    """

    def __init__(self, lake: Lake, graph: Graph) -> None:
        self._lake = lake
        self._graph = graph

    def project(self) -> dict[str, int]:
        """Project the commits that the tables of journeys have and the graph does not; returns rows by kind.

        It can be killed at any point and done again: every write has one result, and the graph says last how far it is.
        """
        tables = JourneyTables(self._lake)
        log_id = log_name(self._lake.commits.snapshot(JOURNEY_LOG))
        done = {
            source: version.number
            for source, version in self._graph.checkpoints.of(PROJECTION).items()
            if version.table_id == log_id
        }
        changed: Counter[str] = Counter()
        for upto in tables.steps(done, tables.published(), LOG_ROWS):
            found = tables.between(done, upto)
            refused = RefusedRows(self._lake, self._graph.refusals)
            changed.update(self._write(News.of(found.rows)))
            refused.publish()
            for tenant, seq in found.seqs.items():
                self._graph.checkpoints.save(PROJECTION, tenant, Version(log_id, seq))
            done |= found.seqs
        return dict(changed)

    def _write(self, news: News) -> dict[str, int]:
        graph = self._graph
        journeys = model.journeys(log.living_journeys(news.rows, news.ended).collect(engine="streaming"))
        keys = log.keys_now(news.rows, news.aliases).collect(engine="streaming")
        held, freed = keys.drop_nulls("journey_id"), keys.filter(pl.col("journey_id").is_null())
        absorbing = journeys.join(news.absorbed, left_on=["tenant_id", "id"], right_on=["tenant_id", "merged_into"],
                                  how="semi")  # fmt: skip
        graph.writer.merge(model.JOURNEY, journeys.join(absorbing, on=["tenant_id", "id"], how="anti"))
        graph.writer.merge(model.CORRELATION, model.correlations(held))
        # Journeys meet before the event that links them shows: from it, a reader would reach both.
        graph.writer.absorb(absorbing, news.absorbed)
        graph.writer.move(model.PART_OF, model.correlation_journeys(held))
        graph.writer.unlink(log.reread_events(news.rows).select("tenant_id", id="event_id"))
        # Read when they are needed: of all rows, these are the most.
        pairs = log.event_keys_now(news.rows).collect(engine="streaming")
        graph.writer.merge(model.HAS_KEY, model.event_correlations(pairs))
        events = log.events_now(news.rows, news.aliases).collect(engine="streaming")
        unlinked = model.unlinked_events(events, pairs)
        graph.writer.merge(model.IN_JOURNEY, unlinked)
        graph.writer.delete(model.CORRELATION, freed.select("tenant_id", id=model.correlation_id()))
        graph.writer.delete(model.JOURNEY, news.ended.select("tenant_id", id="journey_id"))
        graph.writer.update(model.EVENT_STATUS, model.event_status(events, events))
        return {
            "Journey": journeys.height, "Correlation": held.height, "HAS_KEY": pairs.height, "Event": events.height,
            "merged": news.absorbed.height,
        }  # fmt: skip
