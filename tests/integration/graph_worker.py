"""Projects; to be killed meanwhile."""

from workers import serve

from c360_pipeline.connections import open_graph, open_lake
from c360_pipeline.settings import load_settings
from c360_pipeline.stores import graph as writing
from c360_pipeline.stores.event_graph import EventGraph, ProductGraph
from c360_pipeline.stores.journey_care import bring_up


def work(_: str) -> None:
    """Bring the graph up."""
    settings = load_settings()
    lake = open_lake(settings)
    with open_graph(settings) as graph:
        ProductGraph(lake, graph).project()
        EventGraph(lake, graph).project()
        bring_up(lake, graph)


# Many statements, so that a kill has many places to hit.
writing.BATCH_ROWS = 50
serve(work)
