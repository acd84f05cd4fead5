"""All projections, in their order: from the archive to journeys and graph."""

from collections.abc import Callable

from c360_pipeline.core.silos.control_rows import ControlRows
from c360_pipeline.core.stitching.keys import KeyPolicy
from c360_pipeline.stages.projection.audiences import AudienceGraph
from c360_pipeline.stages.projection.events import EventGraph, ProductGraph
from c360_pipeline.stages.projection.journeys import JourneyGraph
from c360_pipeline.stages.projection.silos import SiloGraph
from c360_pipeline.stages.stitching.catch_up import Stitching
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stages.stitching.tables import JourneyTables
from c360_pipeline.stages.visitors.tables import VisitorTables
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph

Observe = Callable[[str], None]


def project_all(
    lake: Lake, control: ControlRows, graph: Graph, observe: Observe = lambda what: None, *, force: bool = False
) -> None:
    """Bring a graph up to its archive.

    Args:
        lake: the archive.
        control: labels and relationships of silo tables.
        graph: what is brought up.
        observe: called with what comes next.
        force: whether more rows of silos may be removed than the removal limit lets pass.
    """
    graph.schema.apply()
    graph.schema.apply_indexes(control.indexes)
    silos = SiloGraph(lake, graph, control, force=force)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("products", ProductGraph(lake, graph).project),
        ("events", EventGraph(lake, graph, control.properties).project),
        ("journeys", JourneyGraph(lake, graph).project),
        ("audiences", AudienceGraph(lake, graph).project),
        ("nodes of silos", silos.project_nodes),
        ("relationships of silos", silos.project_relationships),
    ]
    for what, project in steps:
        observe(what)
        project()


def stitch_all(lake: Lake, policy: KeyPolicy) -> None:
    """Bring journeys and their tables up to the archive."""
    Stitching(lake, Journeys(lake), policy).catch_up()
    JourneyTables(lake).publish_all()


def bring_up_visitors(lake: Lake, graph: Graph, policy: KeyPolicy, control: ControlRows) -> dict[str, int]:
    """Bring tables, journeys and graph up to what was decided about visitors.

    Returns:
        How many rows changed, by table or kind.
    """
    graph.schema.apply()
    changed = VisitorTables(lake).publish_all()
    stitch_all(lake, policy)
    ProductGraph(lake, graph).project()
    changed |= EventGraph(lake, graph, control.properties).project()
    return changed | JourneyGraph(lake, graph).project()
