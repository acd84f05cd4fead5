"""Processes that can be killed at any point of their work, without waiting for their imports first.

A worker's script is imported once, by a process that does nothing else; each piece of work is a fork of it.
"""

import os
import selectors
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def serve(work: Callable[..., None]) -> None:
    """Do what each line of stdin says in a fork; say its process, and how it ended."""
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _end_with(work, line.split())
        _say(process)
        _say(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _end_with(work: Callable[..., None], words: list[str]) -> None:
    code = 1
    try:
        work(*words)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Workers:
    """One piece of work after the other.

    Args:
        script: calls `serve`.
    """

    def __init__(self, script: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        self._server = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def do(self, command: str, kill_after: float | None = None) -> int:
        """Exit code of a worker, which is killed after so many seconds if it is still there."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(command + "\n")
        self._server.stdin.flush()
        process = int(self._server.stdout.readline())
        with selectors.DefaultSelector() as selector:
            selector.register(self._server.stdout, selectors.EVENT_READ)
            if not selector.select(kill_after):
                # It may have ended meanwhile, but is not waited for before its end is said.
                os.kill(process, signal.SIGKILL)
        return int(self._server.stdout.readline())

    def stop(self) -> None:
        """End the process that was waiting for commands."""
        with self._server:
            self._server.kill()
