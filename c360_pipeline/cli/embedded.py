"""What commands do where the graph is that of the embedded services, and where it is a server of one's own.

The embedded services are a wheel of their own: nothing here needs it to be installed.
"""

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import Settings

if TYPE_CHECKING:
    from c360_pipeline.stages.reconciliation.expected import Archive
    from c360_pipeline.stages.reconciliation.reconcile import Reconciled

HAS_EMBEDDED = find_spec("c360_pipeline.devstack") is not None
"""Whether the wheel of the embedded services is installed."""


def is_embedded(settings: Settings, home: Path) -> bool:
    """Whether the settings' graph is the one of the embedded services in a state folder."""
    if not HAS_EMBEDDED:
        return False
    from c360_pipeline.devstack.rebuild import is_embedded as is_of

    return is_of(settings, home)


def rebuild_graph(
    settings: Settings, home: Path, archive: "Archive", observe: Callable[[str], None], *, online: bool = False
) -> "list[Reconciled]":
    """Rebuild the settings' graph: by import where it is the embedded one, else by statements.

    Args:
        settings: whose graph.
        home: state folder of the embedded services.
        archive: what it is made from, as it is now; nobody may project anything meanwhile.
        observe: called with what comes next.
        online: by statements in any case.

    Returns:
        The comparison of the new graph with the archive.
    """
    from c360_pipeline.connections import open_graph
    from c360_pipeline.stages.reconciliation.reconcile import reconcile
    from c360_pipeline.stages.recovery.rebuild import rebuild

    if is_embedded(settings, home) and not online:
        return _rebuild_by_import(settings, home, archive, observe)
    with open_graph(settings) as graph:
        rebuild(archive.lake, archive.control, graph, observe)
        observe("comparing with the archive")
        return reconcile(archive, graph)


def _rebuild_by_import(
    settings: Settings, home: Path, archive: "Archive", observe: Callable[[str], None]
) -> "list[Reconciled]":
    from c360_pipeline.connections import open_graph
    from c360_pipeline.devstack.rebuild import rebuild_by_import
    from c360_pipeline.stages.reconciliation.pinned import PinnedVersions

    pinned = archive.at(PinnedVersions.now(archive.lake, archive.control))
    return rebuild_by_import(home, pinned, lambda: open_graph(settings), observe)


def remake_embedded(settings: Settings, home: Path, archive: "Callable[[], Archive]") -> Callable[[], None] | None:
    """What makes the embedded graph again from the archive as it is then; None where it is not embedded."""
    if not is_embedded(settings, home):
        return None

    def remake() -> None:
        # Never by statements: removed nodes would stay on the disk of the old store.
        _rebuild_by_import(settings, home, archive(), lambda what: None)

    return remake


def remove_instants(home: Path) -> None:
    """Stop and remove the graphs of earlier instants; they are embedded always."""
    if HAS_EMBEDDED:
        from c360_pipeline.devstack.rebuild import remove_instants as remove

        remove(home)


def postgres_tools() -> Path:
    """The folder of pg_dump and pg_restore: those of the embedded server, or on the PATH.

    Raises:
        ConfigError: neither is installed.
    """
    if HAS_EMBEDDED:
        from c360_pipeline.devstack.services import postgres_binaries

        try:
            return postgres_binaries()
        except ConfigError:
            pass  # of another system: those on the PATH may be there
    found = shutil.which("pg_dump")
    if found is None:
        raise ConfigError(
            "pg_dump is not installed: install the client programs: apt-get install -y postgresql-client."
        )
    return Path(found).parent
