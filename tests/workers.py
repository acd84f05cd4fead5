"""Processes that wait for a command, so that they can be killed without waiting for their imports."""

import subprocess
import sys
from pathlib import Path


class Workers:
    """Some are started ahead, for their imports take longer than their work.

    Args:
        script: says `ready` on stdout, then reads its command from stdin.
    """

    def __init__(self, script: Path) -> None:
        self._script = script
        self._waiting = [self._start() for _ in range(3)]

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(self._script)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, command: str, kill_after: float | None = None) -> int:
        """Exit code of a worker, which is killed after so many seconds if it is still there."""
        self._waiting.append(self._start())
        with self._waiting.pop(0) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
            worker.stdin.write(command + "\n")
            worker.stdin.flush()
            try:
                return worker.wait(kill_after)
            except subprocess.TimeoutExpired:
                worker.kill()
                return worker.wait()

    def stop(self) -> None:
        """Kill those that wait."""
        for worker in self._waiting:
            with worker:
                worker.kill()
