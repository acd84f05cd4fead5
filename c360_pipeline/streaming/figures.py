"""What Prometheus gets of the stream."""

from collections.abc import Mapping

from c360_pipeline.stores.local.metrics import Figure, by_tenant
from c360_pipeline.streaming.cluster import StreamStatus


def stream_figures(status: StreamStatus) -> list[Figure]:
    """Lag of each partition, age of the newest checkpoint, and what the operators counted since the job began."""
    figures = [
        Figure("stream_running", "Whether the job runs.", float(status.state == "RUNNING"), {}),
        *(
            Figure("stream_lag_messages", "Messages that no checkpoint has taken in.", lag, _labels(place))
            for place, lag in status.lag.items()
        ),
    ]
    if status.checkpoint_age_seconds is not None:
        said = "Since the newest checkpoint was complete."
        figures.append(Figure("stream_checkpoint_age_seconds", said, status.checkpoint_age_seconds, {}))
    for sink, ratio in status.success_ratio.items():
        said = "Share of events that a store took, of those that were tried since the job began."
        figures.append(Figure("stream_write_success_ratio", said, ratio, {"sink": sink}))
    for sink, milliseconds in status.batch_ms.items():
        said = "The newest micro-batch of the slowest writer."
        figures.append(Figure("stream_batch_seconds", said, milliseconds / 1000, {"sink": sink}))
    for name, count in status.counts.items():
        operator, _, outcome = name.partition(".")
        said = "What operators did since the job began."
        figures.append(Figure("stream_operator_events", said, count, {"operator": operator, "outcome": outcome}))
    return figures


def _labels(place: str) -> dict[str, str]:
    topic, _, partition = place.rpartition("/")
    return {"topic": topic, "partition": partition}


def lag_figures(lags: Mapping[str, float]) -> list[Figure]:
    """Lag by tenant."""
    said = "Since the oldest event was sent that the graph lacks, of the newest of each partition."
    return by_tenant("stream_tenant_lag_seconds", said, lags)
