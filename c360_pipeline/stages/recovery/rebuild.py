"""The graph rebuilt from its archive, and the checkpoints that say so."""

from collections.abc import Callable, Iterable

from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.tables import JOURNEY_LOG, VISITOR_DECISIONS
from c360_pipeline.core.silos.control_rows import ControlRows
from c360_pipeline.stages.projection.events import EVENT_PROJECTION, note_counting
from c360_pipeline.stages.projection.everything import project_all
from c360_pipeline.stages.projection.journeys import PROJECTION as JOURNEY_PROJECTION
from c360_pipeline.stages.projection.silos import SiloGraph
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.recovery.import_files import Completion
from c360_pipeline.stages.stitching.commit import log_name
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.cypher import complete_statement
from c360_pipeline.stores.neo4j.graph import Graph

NODES_AT_ONCE = 10_000


def rebuild(lake: Lake, control: ControlRows, graph: Graph, observe: Callable[[str], None] = lambda what: None) -> int:
    """Remove all nodes and project the archive again; returns how many nodes there were before.

    The server goes on running. Broken off anywhere, it is begun again, or what is missing is projected by the next run:
    the checkpoints that say what the graph holds are removed first.

    Args:
        lake: the archive.
        control: labels and relationships of silo tables.
        graph: what is rebuilt.
        observe: called with what comes next.
    """
    observe("removing what is there")
    graph.checkpoints.forget_all()
    removed = graph.writer.clear()
    project_all(lake, control, graph, observe, force=True)
    return removed


def complete(graph: Graph, completions: Iterable[Completion]) -> None:
    """Do what the import files could not; what is done is left alone."""
    for one in completions:
        statement = complete_statement(one.label, one.stand_in, one.name)
        empty = b"" if one.is_empty else None
        while graph.run(statement, limit=NODES_AT_ONCE, empty=empty)[0]["done"]:
            pass


def note_made(archive: Archive, graph: Graph) -> None:
    """Give a graph that was made whole from an archive its constraints, indexes and checkpoints.

    Args:
        archive: at the snapshot that the graph was made from.
        graph: without checkpoints.
    """
    silos = SiloGraph(archive.lake, graph, archive.control)
    graph.schema.apply([found.kind for found in silos.labels.values()])
    graph.schema.apply_indexes(archive.control.indexes)
    silos.note_projected()
    for (projection, source), version in archive.pinned.versions.items():
        graph.checkpoints.save(projection, source, version)
    note_counting(graph, archive.pinned.version(EVENT_PROJECTION, VISITOR_DECISIONS), archive.properties)
    log_id = log_name(archive.lake.commits.snapshot(JOURNEY_LOG))
    for tenant, number in (archive.pinned.commits or {}).items():
        graph.checkpoints.save(JOURNEY_PROJECTION, tenant, Version(log_id, number))
