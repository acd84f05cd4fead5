"""`c360 metrics`: the endpoint for Prometheus."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c360_pipeline.cli.output import err
from c360_pipeline.settings import Settings, c360_home, load_settings

if TYPE_CHECKING:
    from c360_pipeline.stages.monitoring.exporter import Exporter


def metrics(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port; 0 takes a free one")] = 9464,
) -> None:
    """Serve metrics for Prometheus at /metrics, until Ctrl-C."""
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(exporter(c360_home(), load_settings()))
    server, thread = start_http_server(port, host, registry)
    err.print(f"http://{host}:{server.server_port}/metrics")
    try:
        threading.Event().wait()
    finally:
        server.shutdown()
        thread.join()


def exporter(home: Path, settings: Settings) -> "Exporter":
    """The collector over the settings' stores; each scrape opens them again, so that one that comes back is seen."""
    from c360_pipeline.connections import open_control, open_graph, open_lake, open_landing
    from c360_pipeline.stages.monitoring import exporter as exporting
    from c360_pipeline.stages.monitoring.exporter import Exporter
    from c360_pipeline.stores.local.metrics import Figure, Metrics

    def of_graph() -> list[Figure]:
        with open_graph(settings) as graph:
            return exporting.graph_figures_now(open_lake(settings), graph)

    def of_stream() -> list[Figure]:
        from c360_pipeline.streaming.cluster import StreamCluster
        from c360_pipeline.streaming.figures import lag_figures, stream_figures
        from c360_pipeline.streaming.lag import tenant_lag

        return stream_figures(StreamCluster(settings).status()) + lag_figures(tenant_lag(settings))

    sources = {
        "lake": lambda: exporting.lake_figures(open_lake(settings)),
        "landing": lambda: exporting.landing_figures(
            open_landing(settings), open_lake(settings), open_control(settings)
        ),
        "neo4j": of_graph,
    }
    if settings.flink_rest_url is not None:
        sources["stream"] = of_stream
    return Exporter(Metrics(home / "metrics"), sources)
