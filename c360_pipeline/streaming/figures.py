"""What Prometheus is told of the stream."""

from c360_pipeline.stores.metrics import Figure
from c360_pipeline.streaming.cluster import StreamStatus


def stream_figures(status: StreamStatus) -> list[Figure]:
    """Lag of each partition, age of the newest checkpoint, and what the operators counted since the job began."""
    figures = [
        Figure("stream_running", "Whether the job runs.", float(status.state == "RUNNING"), {}),
        *(
            Figure(
                "stream_lag_messages", "Messages that no checkpoint has taken in.", lag, {"partition": str(partition)}
            )
            for partition, lag in status.lag.items()
        ),
    ]
    if status.checkpoint_age_seconds is not None:
        said = "Since the newest checkpoint was complete."
        figures.append(Figure("stream_checkpoint_age_seconds", said, status.checkpoint_age_seconds, {}))
    for name, count in status.counts.items():
        operator, _, outcome = name.partition(".")
        said = "What operators did since the job began."
        figures.append(Figure("stream_operator_events", said, count, {"operator": operator, "outcome": outcome}))
    return figures
