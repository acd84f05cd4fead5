"""The embedded graph rebuilt by import, and graphs of earlier instants beside it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values

from c360_pipeline.devstack import stack
from c360_pipeline.devstack.graph_store import Observe, StagedStore, completions_of, import_archive
from c360_pipeline.errors import InvariantError
from c360_pipeline.settings import Settings, connection_file
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import Reconciled, reconcile
from c360_pipeline.stages.reconciliation.results import drift
from c360_pipeline.stages.recovery.rebuild import complete, note_made
from c360_pipeline.stores.neo4j.graph import Graph

INSTANTS = "as-of"


def is_embedded(settings: Settings, home: Path) -> bool:
    """Whether the settings' graph is the one of the services in a state folder."""
    ours = dotenv_values(connection_file(home)).get("NEO4J_URI")
    return ours == settings.neo4j_uri and stack.is_supervised(home)


def rebuild_by_import(
    home: Path, archive: Archive, open_embedded: Callable[[], Graph], observe: Observe = lambda what: None
) -> list[Reconciled]:
    """Make a new store from the archive, swap it in, prove it, and only then remove the old one.

    Broken off anywhere, it goes on where it was when it is called for the same snapshot again. A store that does not
    prove equal is taken out again.

    Args:
        home: state folder of the embedded services.
        archive: at the snapshot that is to be shown; nobody may project anything meanwhile.
        open_embedded: opens the embedded graph, on whichever store it runs.
        observe: called with what comes next.

    Returns:
        The comparison of the new graph with the archive.

    Raises:
        InvariantError: the new store differs from the archive; the old one is in use again.
        UnavailableError: the server did not start on the new store; the old one is in use again.
    """
    staged = StagedStore(home)
    plan = staged.make(archive, archive.snapshot_id, observe)
    try:
        observe("swapping the store in")
        plan = staged.swap_in(plan)
        observe("constraints, indexes, checkpoints")
        with open_embedded() as graph:
            complete(graph, staged.completions(plan))
            note_made(archive, graph)
            observe("comparing with the archive")
            results = reconcile(archive, graph, pinned=archive.pinned)
        _require_equal(results)
    except Exception:
        # Whatever it was: a store that is not proved does not stay in use.
        staged.swap_back(plan)
        raise
    staged.accept(plan)
    return results


def _require_equal(results: list[Reconciled]) -> None:
    if findings := drift(results):
        raise InvariantError(
            f"The new store differs from the archive in {len(findings):,} rows, such as {findings[0]}. "
            "The old one is in use again. `c360 rebuild --online` rebuilds the graph by statements."
        )


@dataclass(frozen=True)
class Instant:
    """A graph of an earlier instant that runs.

    Attributes:
        home: its state folder.
        uri: its bolt address.
        results: its comparison with the archive of that instant.
    """

    home: Path
    uri: str
    results: list[Reconciled]


def start_instant(home: Path, archive: Archive, observe: Observe = lambda what: None) -> Instant:
    """Start a second embedded server with the graph that an archive of an earlier instant asks for.

    One that was made for the same snapshot before is used again.

    Args:
        home: state folder beside whose services it lives.
        archive: at that snapshot.
        observe: called with what comes next.
    """
    folder = home / INSTANTS / archive.snapshot_id[:16]
    made = folder / "made.json"
    if not made.exists():
        stack.down(folder)
        shutil.rmtree(folder, ignore_errors=True)
        counts = import_archive(archive, folder / "neo4j" / "data", folder / "work", observe)
    observe("starting a second server")
    stack.up(folder, lambda _: None, ports={"neo4j": 0})
    connection = dotenv_values(connection_file(folder))
    uri = str(connection["NEO4J_URI"])
    with Graph(uri, str(connection["NEO4J_USER"]), str(connection["NEO4J_PASSWORD"]), "neo4j") as graph:
        if not made.exists():
            observe("constraints and indexes")
            complete(graph, completions_of(folder / "neo4j" / "data"))
            note_made(archive, graph)
            made.write_text(json.dumps({"moment": archive.snapshot_id, "rows": counts}), encoding="utf-8")
        observe("comparing with the archive")
        return Instant(folder, uri, reconcile(archive, graph, pinned=archive.pinned))


def remove_instants(home: Path) -> bool:
    """Stop and remove all graphs of earlier instants; returns whether there were any."""
    folders = sorted((home / INSTANTS).iterdir()) if (home / INSTANTS).is_dir() else []
    for folder in folders:
        stack.down(folder)
        shutil.rmtree(folder)
    return bool(folders)
