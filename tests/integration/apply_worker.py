"""Waits for a line of stdin, then applies a mapping; killed by itself right before or after its Nth write."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from c360_pipeline.cli import app
from c360_pipeline.stores.delta.commits import Commits
from c360_pipeline.stores.postgres.event_sources import EventSources
from c360_pipeline.stores.s3.landing import Landing

WRITES = {
    Commits: ("append", "append_exclusive", "insert_new", "merge", "apply", "replace", "delete_rows"),
    Landing: ("put_dead_letters", "put_dead_letter"),
    EventSources: ("apply",),
}
moments = 0


def killed_at(moment: int) -> None:
    """Have every write count before and after itself, and nobody see the end of the one that is told."""

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def with_moments(*given: Any, **named: Any) -> Any:
            passed(moment)
            done = write(*given, **named)
            passed(moment)
            return done

        return with_moments

    for owner, names in WRITES.items():
        for name in names:
            setattr(owner, name, counted(getattr(owner, name)))


def passed(moment: int) -> None:
    """Another moment."""
    global moments
    moments += 1
    if moments == moment:
        os.kill(os.getpid(), signal.SIGKILL)


sys.stdout.write("ready\n")
sys.stdout.flush()
at, *arguments = sys.stdin.readline().split()
killed_at(int(at))
app(["sources", "apply", *arguments], standalone_mode=False)
