"""The Dagster UI and the API as processes in the background, for `c360 demo --keep`; `c360 down` ends them."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import psutil

from c360_pipeline.devstack.service import LOOPBACK, free_port
from c360_pipeline.errors import UnavailableError

START_SECONDS = 90.0


@dataclass(frozen=True)
class WebServer:
    """A server that people look at.

    Attributes:
        name: of its log and of the file that says where it runs.
        command: of `c360`.
        preferred_port: taken where it is free.
        ready: path that answers as soon as it serves.
    """

    name: str
    command: str
    preferred_port: int
    ready: str


UI = WebServer("ui", "dev", 3000, "/server_info")
API = WebServer("api", "api", 8000, "/health/live")
SERVERS = (UI, API)


def start(server: WebServer, home: Path) -> str:
    """Start a server and wait until it answers; returns its address. One that runs already is kept."""
    known = _running(server, home)
    if known:
        return str(known["address"])
    port = free_port(server.preferred_port)
    address = f"http://{LOOPBACK}:{port}"
    with (home / "logs" / f"{server.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "c360_pipeline.cli", server.command, "--port", str(port)],
            env={**os.environ, "C360_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    facts = {"address": address, "pid": process.pid, "started": psutil.Process(process.pid).create_time()}
    _file(server, home).write_text(json.dumps(facts), encoding="utf-8")
    _wait_until_it_answers(server, address, process, home)
    return address


def stop(server: WebServer, home: Path) -> bool:
    """End a server and what it started; returns False when it does not run."""
    known = _running(server, home)
    if known is None:
        return False
    process = psutil.Process(known["pid"])
    family = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=20)
    for left in alive:
        left.kill()
    _file(server, home).unlink(missing_ok=True)
    return True


def _file(server: WebServer, home: Path) -> Path:
    return home / f"{server.name}.json"


def _running(server: WebServer, home: Path) -> dict[str, Any] | None:
    try:
        known: dict[str, Any] = json.loads(_file(server, home).read_text(encoding="utf-8"))
        return known if psutil.Process(known["pid"]).create_time() == known["started"] else None
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None


def _wait_until_it_answers(server: WebServer, address: str, process: subprocess.Popen[bytes], home: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}{server.ready}", timeout=5):  # noqa: S310 - http on loopback
                return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    stop(server, home)
    log = home / "logs" / f"{server.name}.log"
    raise UnavailableError(f"`c360 {server.command}` did not start at {address}, see {log}.")
