"""The Dagster UI as a process in the background, for `c360 demo --keep`; `c360 down` ends it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import psutil

from c360_pipeline.devstack.services import LOOPBACK, free_port
from c360_pipeline.errors import UnavailableError

PREFERRED_PORT = 3000
START_SECONDS = 90.0


def start_ui(home: Path) -> str:
    """Start `c360 dev` and wait until the UI answers; returns its address. A UI that runs already is kept."""
    known = _running(home)
    if known:
        return str(known["address"])
    port = free_port(PREFERRED_PORT)
    address = f"http://{LOOPBACK}:{port}"
    with (home / "logs" / "ui.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "c360_pipeline.cli", "dev", "--port", str(port)],
            env={**os.environ, "C360_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    facts = {"address": address, "pid": process.pid, "started": psutil.Process(process.pid).create_time()}
    (home / "ui.json").write_text(json.dumps(facts), encoding="utf-8")
    _wait_until_it_answers(address, process, home)
    return address


def stop_ui(home: Path) -> bool:
    """End the UI and its daemon; returns False when none runs."""
    known = _running(home)
    if known is None:
        return False
    process = psutil.Process(known["pid"])
    family = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=20)
    for left in alive:
        left.kill()
    (home / "ui.json").unlink(missing_ok=True)
    return True


def _running(home: Path) -> dict[str, Any] | None:
    try:
        known: dict[str, Any] = json.loads((home / "ui.json").read_text(encoding="utf-8"))
        return known if psutil.Process(known["pid"]).create_time() == known["started"] else None
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None


def _wait_until_it_answers(address: str, process: subprocess.Popen[bytes], home: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/server_info", timeout=5):  # noqa: S310 - http on loopback
                return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    stop_ui(home)
    raise UnavailableError(f"The Dagster UI did not start at {address}, see {home / 'logs' / 'ui.log'}.")
