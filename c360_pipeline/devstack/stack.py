"""Starts, finds and stops the embedded services: what `c360 up`, `status` and `down`, the demo and the tests use."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from c360_pipeline.devstack.distributions import install, install_streaming
from c360_pipeline.devstack.pause import is_held, paused, published
from c360_pipeline.devstack.service import NOT_READY
from c360_pipeline.devstack.services import PREFERRED_PORTS, STREAMING_PORTS, services_at
from c360_pipeline.errors import UnavailableError

STOPPED = ("stopped", "failed")
Report = Callable[[dict[str, Any]], None]
"""Told what happens, as {service, state, port, seconds, version}; `state` alone speaks of all of them."""


@dataclass(frozen=True)
class ServiceStatus:
    """A server as `c360 status` shows it; `memory_bytes` is the resident size of its process tree."""

    service: str
    state: str
    port: int
    pid: int
    memory_bytes: int
    version: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def up(home: Path, report: Report, *, ports: dict[str, int] | None = None) -> bool:
    """Start the services and leave them running; where they run already, start again what has stopped.

    Returns:
        False when all were running already.

    Raises:
        ConfigError: a tool that the downloads need is missing.
        UnavailableError: a service did not start; the message holds the end of its log.
    """
    channel = _start(home, report, ports or PREFERRED_PORTS)
    if channel is None:
        return _start_stopped(home, report)
    channel.sendall(b"detach")
    channel.close()
    return True


def _start_stopped(home: Path, report: Report) -> bool:
    """Start servers again that died since; whether there was one."""
    dead = [found for found in status(home) if found.state in STOPPED]
    for found in dead:
        report({"service": found.service, "state": "starting", "port": found.port})
        # The supervisor starts what nobody wants to be paused any more.
        with paused(home, found.service):
            pass
        report({"service": found.service, "state": "ready", "port": found.port, "version": found.version, "seconds": 0})
    return bool(dead)


@contextmanager
def attached(home: Path, report: Report, *, ports: dict[str, int] | None = None) -> Iterator[None]:
    """The services for as long as the block runs; they also end when this process is killed.

    Services that run already are used and left running.
    """
    channel = _start(home, report, ports or PREFERRED_PORTS)
    try:
        yield
    finally:
        if channel is not None:
            channel.close()
            _wait_until_released(home)


def is_supervised(home: Path) -> bool:
    """Whether a supervisor holds the state folder."""
    return is_held(home / "lock")


def down(home: Path) -> bool:
    """Stop what runs; returns False when nothing did."""
    state = published(home)
    if not is_supervised(home):
        return False
    if state is None:
        raise UnavailableError(f"Services are starting in {home}. Wait until they are up, then stop them.")
    os.kill(state["supervisor"], signal.SIGTERM)
    _wait_until_released(home)
    return True


def status(home: Path) -> list[ServiceStatus]:
    """What runs in this state folder, each server asked by its own protocol; empty when nothing does."""
    state = published(home)
    if state is None or not is_supervised(home):
        return []
    ports = {entry["service"]: entry["port"] for entry in state["services"]}
    probes = {service.name: service.probe for service in services_at(home, ports)}
    return [_service_status(entry, probes[entry["service"]]) for entry in state["services"]]


def _service_status(entry: dict[str, Any], probe: Callable[[], str]) -> ServiceStatus:
    try:
        process = psutil.Process(entry["pid"])
        memory = sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))
        version, state = probe(), "ready"
    except psutil.Error:
        memory, version, state = 0, entry["version"], "stopped" if entry["state"] == "ready" else entry["state"]
    except NOT_READY as error:
        version, state = entry["version"], f"not ready: {type(error).__name__}"
    return ServiceStatus(entry["service"], state, entry["port"], entry["pid"], memory, version)


def _start(home: Path, report: Report, ports: dict[str, int]) -> socket.socket | None:
    install(lambda line: report({"state": "fetching", "message": line}))
    if STREAMING_PORTS.keys() & ports.keys():
        install_streaming(lambda line: report({"state": "fetching", "message": line}))
    home.mkdir(parents=True, exist_ok=True)
    # All customers are below it; other users of the machine have no business there.
    home.chmod(0o700)
    (home / "logs").mkdir(exist_ok=True)
    ours, theirs = socket.socketpair()
    log = os.open(home / "logs" / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(log, "ab") as output, theirs:
        subprocess.run(
            [sys.executable, "-m", "c360_pipeline.devstack.supervisor", str(home.absolute()),
             str(theirs.fileno()), json.dumps(ports)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            check=True,
        )  # fmt: skip
    try:
        if _follow(home, ours, report):
            return ours
    except BaseException:
        # Also on Ctrl-C: closing the channel is what stops the half-started services.
        ours.close()
        _wait_until_released(home)
        raise
    ours.close()
    return None


def _follow(home: Path, channel: socket.socket, report: Report) -> bool:
    """Pass events on until all is ready (True) or another supervisor is found to run (False)."""
    with channel.makefile("r", encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            report(event)
            if "service" in event:
                continue
            if event["state"] == "ready":
                return True
            if event["state"] == "taken":
                _wait_until_published(home)
                return False
            raise UnavailableError(event["message"])
    raise UnavailableError(f"The supervisor of the services ended early, see {home / 'logs' / 'supervisor.log'}.")


def _wait_until_published(home: Path, seconds: float = 900.0) -> None:
    deadline = time.monotonic() + seconds
    while published(home) is None:
        if time.monotonic() > deadline or not is_supervised(home):
            raise UnavailableError(f"Another `c360 up` in {home} did not finish, see {home / 'logs'}.")
        time.sleep(0.1)


def _wait_until_released(home: Path, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while is_supervised(home):
        if time.monotonic() > deadline:
            raise UnavailableError(f"The services did not stop, see {home / 'logs' / 'supervisor.log'}.")
        time.sleep(0.05)
