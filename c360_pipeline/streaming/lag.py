"""How far the graph is behind the topic, tenant by tenant, seen from outside the job."""

from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from c360_pipeline.connections import open_control, open_graph
from c360_pipeline.core.landing.classify import split_suppressed
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.settings import Settings
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.streaming.cluster import StreamCluster
from c360_pipeline.streaming.topic import TopicReader
from c360_pipeline.streaming.topic_sources import sources_of_topics

NEWEST = 500
"""Messages of each partition that are looked for."""
READ_PRESENT = Statement("""
    UNWIND $ids AS id
    MATCH (e:Event {tenant_id: $tenant_id, id: id})
    RETURN e.tenant_id AS tenant_id, e.id AS event_id
""")


@dataclass(frozen=True)
class StreamSeen:
    """The real-time path as one tenant sees it.

    Attributes:
        state: of the job, such as RUNNING or stopped.
        lag_seconds: since the oldest event was sent that the graph lacks; 0 where it lacks none.
        checkpoint_age_seconds: since the newest checkpoint was complete; None before the first.
    """

    state: str
    lag_seconds: float
    checkpoint_age_seconds: float | None


def seen_by(settings: Settings, tenant_id: str) -> StreamSeen:
    """The real-time path as a tenant sees it.

    Raises:
        UnavailableError: Kafka, Flink or the control database does not answer.
    """
    status = StreamCluster(settings).status()
    lag = tenant_lag(settings).get(tenant_id, 0.0)
    return StreamSeen(status.state, lag, status.checkpoint_age_seconds)


def tenant_lag(settings: Settings) -> dict[str, float]:
    """By tenant: seconds since the oldest of its newest events was sent that the graph lacks; 0 where it lacks none.

    Late events and those of suppressed people are not waited for.

    Raises:
        UnavailableError: Kafka or the control database does not answer.
    """
    now = datetime.now(UTC)
    sources, _ = sources_of_topics(settings)
    sent = TopicReader(settings, sources).newest(NEWEST, now)
    awaited, _ = split_suppressed(sent.filter(~pl.col("is_late")), open_control(settings).privacy.suppressed_users())
    with open_graph(settings) as graph:
        return {
            tenant: _lag(graph, rows, now)
            for (tenant,), rows in awaited.partition_by("tenant_id", as_dict=True).items()
        }


def _lag(graph: Graph, events: pl.DataFrame, now: datetime) -> float:
    key = ["tenant_id", "event_id"]
    present = graph.read_only(READ_PRESENT, tenant_id=events["tenant_id"][0], ids=events["event_id"].to_list())
    lacking = events.join(pl.DataFrame(present, schema=dict.fromkeys(key, pl.String)), on=key, how="anti")
    oldest = lacking["sent_at"].min()
    return max((now - oldest).total_seconds(), 0.0) if isinstance(oldest, datetime) else 0.0
