"""The endpoint that Prometheus scrapes: figures of the last runs, and what is true now.

What is true now is read from the logs of the lake, the listing of the landing area and the graph's checkpoints; no row
of an event is read. It is kept for some seconds, so that two servers that scrape cost no more than one.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

import structlog
from prometheus_client import Metric
from prometheus_client.registry import Collector

from c360_pipeline.core.catalog.tables import DEAD_LETTERS, EVENTS
from c360_pipeline.errors import C360Error
from c360_pipeline.stages.landing.ingest import files_of, waiting_files
from c360_pipeline.stages.projection.events import graph_lag
from c360_pipeline.stages.reconciliation.proofs import everything_proved_at
from c360_pipeline.stages.sources.active import active_sources
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.local.metrics import Figure, Metrics, by_tenant, families
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.landing import Landing

KEPT_SECONDS = 10.0
Source = Callable[[], list[Figure]]


class Exporter(Collector):
    """Collects on each scrape.

    Args:
        metrics: figures of runs.
        sources: what is true now, by the name of the service that it is asked of.
    """

    def __init__(self, metrics: Metrics, sources: Mapping[str, Source]) -> None:
        self._metrics = metrics
        self._sources = sources
        self._lock = threading.Lock()
        self._kept: list[Figure] = []
        self._kept_at = float("-inf")

    def collect(self) -> Iterator[Metric]:
        """Every figure; of a service that does not answer, that it does not."""
        yield from self._metrics.read()
        yield from families(self._figures())

    def _figures(self) -> list[Figure]:
        with self._lock:
            if time.monotonic() - self._kept_at > KEPT_SECONDS:
                self._kept = [figure for name, source in self._sources.items() for figure in _asked(name, source)]
                self._kept_at = time.monotonic()
            return self._kept


def _asked(name: str, source: Source) -> list[Figure]:
    """What a source says, and whether it could be asked."""
    try:
        figures, up = source(), 1.0
    except (C360Error, OSError) as error:
        structlog.get_logger("c360.exporter").warning("not_answering", service=name, error=str(error))
        figures, up = [], 0.0
    return [*figures, Figure("up", "Whether a service answers.", up, {"service": name})]


def lake_figures(lake: Lake) -> list[Figure]:
    """Events of each tenant, and open dead letters of each class."""
    events = dict(lake.count_by(EVENTS, "tenant_id").iter_rows())
    letters = lake.count_by(DEAD_LETTERS, "error_class", "status")
    is_open = {error_class: count for error_class, status, count in letters.iter_rows() if status == "open"}
    return [
        *by_tenant("archived_events", "Events in the archive.", events),
        *(
            Figure("open_dead_letters", "Dead letters that wait for a decision.", count, {"error_class": error_class})
            for error_class, count in is_open.items()
        ),
    ]


def landing_figures(landing: Landing, lake: Lake, control: ControlDb) -> list[Figure]:
    """Files that wait to be landed, those of sources among them."""
    found, _ = files_of(landing, active_sources(control)[0])
    new, interrupted = waiting_files(lake, found.files)
    return [Figure("waiting_files", "Files that are not in the accounting.", len(new) + len(interrupted))]


def graph_figures_now(lake: Lake, graph: Graph) -> list[Figure]:
    """Seconds that the graph is behind the archive, by tenant, and since every row of both was compared."""
    lags = {lag.tenant_id: lag.seconds for lag in graph_lag(lake, graph)}
    figures = by_tenant("graph_lag_seconds", "Landing of the newest event less that of the newest in the graph.", lags)
    at = everything_proved_at(lake)
    age = (datetime.now(UTC) - at).total_seconds() if at else float("inf")
    return [*figures, Figure("graph_proof_age_seconds", "Since every row of the graph was compared and equal.", age)]
