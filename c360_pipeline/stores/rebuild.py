"""The graph made anew from its archive, on a server that goes on running."""

from collections.abc import Callable

from c360_pipeline.core.silos import ControlRows
from c360_pipeline.stores.event_graph import EventGraph, ProductGraph
from c360_pipeline.stores.graph import Graph
from c360_pipeline.stores.journey_graph import JourneyGraph
from c360_pipeline.stores.lake import Lake
from c360_pipeline.stores.silo_graph import SiloGraph


def rebuild(lake: Lake, control: ControlRows, graph: Graph, observe: Callable[[str], None] = lambda what: None) -> int:
    """Remove all nodes and project the archive again; returns how many nodes there were before.

    Broken off anywhere, it is begun again, or what is missing is projected by the next run: the checkpoints that say
    what the graph holds are removed first.

    Args:
        lake: the archive.
        control: labels and relationships of silo tables.
        graph: what is made anew.
        observe: told what comes next.
    """
    observe("removing what is there")
    graph.forget_all_checkpoints()
    removed = graph.clear()
    observe("constraints and indexes")
    graph.apply_schema()
    silos = SiloGraph(lake, graph, control, force=True)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("products", ProductGraph(lake, graph).project),
        ("events", EventGraph(lake, graph).project),
        ("journeys", JourneyGraph(lake, graph).project),
        ("nodes of silos", silos.project_nodes),
        ("relationships of silos", silos.project_relationships),
    ]
    for what, project in steps:
        observe(what)
        project()
    return removed
