"""The archive of Neo4j's classes, made by a server that starts and stops once."""

import os
import tempfile
from pathlib import Path

from c360_pipeline.devstack import stack
from c360_pipeline.devstack.distributions import Report, neo4j_class_archive


def make_class_archive(report: Report) -> None:
    """Make the archive where it is missing; a JVM that can't use it starts without it.

    Args:
        report: told one line of progress at a time.
    """
    archive = neo4j_class_archive()
    if archive.exists():
        return
    report("Neo4j: its classes as they lie in memory, once, some 30 s")
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".classes-") as scratch:
        made = Path(scratch) / archive.name
        # The server inherits it, and so does the tool that sets the password, whose archive the server's replaces.
        before = os.environ.get("JAVA_TOOL_OPTIONS")
        os.environ["JAVA_TOOL_OPTIONS"] = f"{before or ''} -XX:ArchiveClassesAtExit={made}".strip()
        try:
            with stack.attached(Path(scratch) / "home", lambda _: None, ports={"neo4j": 0}):
                pass
        finally:
            if before is None:
                del os.environ["JAVA_TOOL_OPTIONS"]
            else:
                os.environ["JAVA_TOOL_OPTIONS"] = before
        if made.exists():
            made.rename(archive)
