"""The archive of Neo4j's classes, made by a server that starts and stops once: the next ones start in half the time."""

import os
import tempfile
from pathlib import Path

import structlog

from c360_pipeline.devstack import stack
from c360_pipeline.devstack.distributions import Report, file_lock, is_class_archive, neo4j_class_archive
from c360_pipeline.devstack.services import ARCHIVE_CLASSES
from c360_pipeline.errors import C360Error


def make_class_archive(report: Report) -> bool:
    """Make the archive where it is missing; whether it is there. Nothing fails where it is not: it saves some seconds.

    Args:
        report: given one line of progress at a time.
    """
    archive = neo4j_class_archive()
    if is_class_archive(archive):
        return True
    with file_lock(archive.with_suffix(".lock"), report):
        if is_class_archive(archive):
            return True
        archive.unlink(missing_ok=True)
        report("Neo4j: its classes as they lie in memory, once, some 30 s")
        try:
            _make(archive)
        except (C360Error, OSError) as error:
            structlog.get_logger().info("class_archive_not_made", error=str(error).partition("\n")[0])
    return is_class_archive(archive)


def _make(archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".classes-") as scratch:
        made = Path(scratch) / archive.name
        # The supervisor gives it to the server alone: the tool that sets the password would write one of its own.
        os.environ[ARCHIVE_CLASSES] = str(made)
        try:
            with stack.attached(Path(scratch) / "home", lambda _: None, ports={"neo4j": 0}):
                pass
        finally:
            del os.environ[ARCHIVE_CLASSES]
        if is_class_archive(made):
            made.rename(archive)
