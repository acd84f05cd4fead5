"""Stops one embedded server for as long as something is done to its files.

Whoever wants it holds a lock on the server's file in `pause/`. The supervisor sees that, stops the server, and starts
it again once the lock is free, which it also is after a kill -9.
"""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from c360_pipeline.errors import UnavailableError

WAIT_SECONDS = 180.0
POLL_SECONDS = 0.05


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock on a file."""
    if not path.exists():
        return False
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def published(home: Path) -> dict[str, Any] | None:
    """What the supervisor says of its servers; None when there is none."""
    try:
        state: dict[str, Any] = json.loads((home / "services.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return state


def is_pause_wanted(home: Path, service: str) -> bool:
    """Whether somebody wants a server to be paused."""
    return is_held(_file(home, service))


@contextmanager
def paused(home: Path, service: str) -> Iterator[None]:
    """The server is stopped while the block runs, and answers again afterwards.

    Raises:
        UnavailableError: no embedded server of this name runs here, or it does not start again; the message holds the
            end of its log.
    """
    _entry(home, service)
    path = _file(home, service)
    path.parent.mkdir(exist_ok=True)
    try:
        with path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _wait(home, service, "paused")
            yield
    finally:
        _wait(home, service, "ready")


def _file(home: Path, service: str) -> Path:
    return home / "pause" / service


def _entry(home: Path, service: str) -> dict[str, Any]:
    state = published(home) or {"services": []}
    for entry in state["services"]:
        if entry["service"] == service:
            found: dict[str, Any] = entry
            return found
    raise UnavailableError(f"No embedded {service} runs in {home}. Start it with `c360 up`.")


def _wait(home: Path, service: str, state: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while (entry := _entry(home, service))["state"] != state:
        if entry["state"] == "failed" and state == "ready":
            raise UnavailableError(entry["message"])
        if time.monotonic() > deadline:
            raise UnavailableError(f"{service} is {entry['state']} after {WAIT_SECONDS:.0f} s, see {home / 'logs'}.")
        time.sleep(POLL_SECONDS)
