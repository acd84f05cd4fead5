"""`dagster dev` as people start it: webserver, daemon, code server and the runs that these start."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import psutil

ROOT = Path(__file__).parents[1]
DAGSTER = str(Path(sys.executable).parent / "dagster")


@contextmanager
def dagster_dev(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """From the repository root, until it answers; everything that it started ends with it."""
    with subprocess.Popen([DAGSTER, "dev", "-p", str(port)], cwd=ROOT, start_new_session=True) as process:
        try:
            wait_until(lambda: answers(port, process), seconds=120)
            yield process
        finally:
            family = descendants(process)
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    kill_all(process)  # it does not hear of signals where whoever started the tests ignores them
            for left in family:
                if left.is_running():
                    left.kill()


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """What a machine that loses its power does."""
    family = descendants(process)
    os.killpg(process.pid, signal.SIGKILL)
    for left in family:
        if left.is_running():
            left.kill()
    process.wait(30)


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All processes below this one, while it lives."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Whether the webserver is up."""
    assert process.poll() is None
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=5).close()
    except (URLError, ConnectionError):
        return False
    return True


def wait_until(is_so: Callable[[], Any], seconds: float) -> None:
    """Look again and again, until it is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.2)


def ask(port: int, query: str) -> dict[str, Any]:
    """The answer of the webserver to a GraphQL query."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", json.dumps({"query": query}).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - http on loopback
        answer: dict[str, Any] = json.load(response)["data"]
    return answer
