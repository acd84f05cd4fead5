"""The process that owns the embedded servers: `python -m c360_pipeline.devstack.supervisor HOME CHANNEL PORTS`.

It starts them, waits until each answers, and stops them in reverse order. It ends, and every server with it, when
- it gets SIGTERM or SIGINT,
- whoever started it goes away before saying `detach` on the channel (a socket pair, so kill -9 counts), or
- it is killed itself: the kernel then signals the servers (see `services.with_parent`).

A single server is stopped while somebody holds its file in `pause/` (see `pause.paused`), and started again after.
"""

import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import structlog

from c360_pipeline.devstack.pause import is_pause_wanted
from c360_pipeline.devstack.service import NOT_READY, Service, free_port
from c360_pipeline.devstack.services import services_at
from c360_pipeline.errors import C360Error, UnavailableError
from c360_pipeline.settings import connection_file, write_private

START_SECONDS = 900.0
"""A server that lives is waited for, on a busy machine for minutes; one that ends while it starts is known at once."""
STOP_SECONDS = 120.0
"""Before a server that does not stop is killed: it writes what it holds, and on a busy machine that takes its time."""
POLL_SECONDS = 0.1
LEAST_FREE_BYTES = 64 * 2**20
"""With less room than that a server can't start."""
WATCH_SECONDS = 0.25
PORTS_FILE = "ports.json"

log = structlog.get_logger()


class StopRequested(Exception):  # noqa: N818 - not an error: the way out of a wait
    """A signal came, or the owner went away."""


class Owner:
    """The channel to the process that wants the services, and the signals sent to this one."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel: socket.socket | None = channel
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ, "owner")
        self._woken, waker = socket.socketpair()
        waker.setblocking(False)
        self._waker = waker
        self._selector.register(self._woken, selectors.EVENT_READ, "signal")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(waker.fileno())

    def tell(self, **event: object) -> None:
        """Send one JSON line; raises StopRequested when nobody is there to read it."""
        if self._channel:
            try:
                self._channel.sendall(json.dumps(event).encode() + b"\n")
            except OSError as error:
                raise StopRequested from error

    def wait(self, seconds: float) -> None:
        """Wait; raises StopRequested as soon as the services are no longer wanted."""
        for key, _ in self._selector.select(seconds):
            if key.data == "signal":
                raise StopRequested
            self._hear()

    def _hear(self) -> None:
        if self._channel is None:
            return
        message = self._channel.recv(64)
        if b"detach" in message:
            self._selector.unregister(self._channel)
            self._channel.close()
            self._channel = None
        elif not message:
            raise StopRequested


@dataclass
class Running:
    """A started server.

    Attributes:
        service: what it is.
        process: its process.
        started_at: of the monotonic clock, seconds.
        version: what it says; empty while it does not answer.
        state: ready, paused, or failed.
        message: why it failed.
    """

    service: Service
    process: subprocess.Popen[bytes]
    started_at: float
    version: str = ""
    state: str = "ready"
    message: str = ""


def main(arguments: list[str]) -> int:
    """Own the services of one state folder until they are no longer wanted."""
    home, channel, ports = Path(arguments[0]), socket.socket(fileno=int(arguments[1])), json.loads(arguments[2])
    owner = Owner(channel)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner.tell(state="taken")
            return 0
        running: list[Running] = []
        try:
            supervise(home, ports, owner, running)
        except StopRequested:
            log.info("stop_requested")
        except C360Error as error:
            log.exception("start_failed")
            owner.tell(state="failed", message=str(error))
            return 1
        finally:
            stop_all(home, running)
    return 0


def supervise(home: Path, ports: dict[str, int], owner: Owner, running: list[Running]) -> None:
    """Start every service, publish the connections, then watch until StopRequested."""
    # Control rows, dashboards and shells of people hold the ports of the last time.
    last = _last_ports(home)
    services = services_at(home, {name: free_port(last.get(name, port)) for name, port in ports.items()})
    for service in services:
        owner.tell(service=service.name, state="starting", port=service.port)
        _prepare(home, service, owner)
        running.append(_start(home, service))
    for server in running:
        server.version = _wait_until_ready(home, server, owner)
        owner.tell(
            service=server.service.name,
            state="ready",
            port=server.service.port,
            version=server.version,
            seconds=round(time.monotonic() - server.started_at, 1),
        )
    publish(home, running)
    taken = {server.service.name: server.service.port for server in running}
    (home / PORTS_FILE).write_text(json.dumps(last | taken), encoding="utf-8")
    owner.tell(state="ready")
    while True:
        owner.wait(WATCH_SECONDS)
        for server in running:
            if _keep_paused(home, server, owner, lambda: publish(home, running)):
                publish(home, running)
            elif server.state == "ready" and server.process.poll() is not None and server.version:
                log.error("service_died", service=server.service.name, exit_code=server.process.returncode)
                server.version = ""


def _last_ports(home: Path) -> dict[str, int]:
    """Where each server listened when all were ready the last time."""
    try:
        found: dict[str, int] = json.loads((home / PORTS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _keep_paused(home: Path, server: Running, owner: Owner, tell: Callable[[], None]) -> bool:
    """Stop a server that somebody wants to pause, start one that nobody wants to any more; whether that changed it."""
    wanted = is_pause_wanted(home, server.service.name)
    if wanted == (server.state == "paused"):
        return False
    if wanted:
        _stop(server)
        server.state, server.version = "paused", ""
        return True
    # Who holds the file from now on waits until it is stopped again.
    server.state = "starting"
    tell()
    try:
        _prepare(home, server.service, owner)
        again = _start(home, server.service)
        server.process, server.started_at = again.process, again.started_at
        server.version = _wait_until_ready(home, server, owner)
        server.state, server.message = "ready", ""
    except UnavailableError as error:
        log.exception("start_failed", service=server.service.name)
        server.state, server.message = "failed", str(error)
    return True


def _prepare(home: Path, service: Service, owner: Owner) -> None:
    try:
        commands = service.prepare()
    except OSError as error:
        raise UnavailableError(f"Preparing {service.name} failed: {error}") from error
    for command, environment in commands:
        _complete(home, service, command, environment, owner)


def publish(home: Path, running: list[Running]) -> None:
    """Write the connection settings (mode 600) and the list of servers for `c360 status`."""
    connection = {k: v for server in running for k, v in server.service.connection.items()}
    write_private(connection_file(home), "".join(f"{k}={v}\n" for k, v in connection.items()))
    servers = [
        {
            "service": s.service.name, "port": s.service.port, "pid": s.process.pid, "version": s.version,
            "state": s.state, "message": s.message,
        }
        for s in running
    ]  # fmt: skip
    write_private(home / "services.json", json.dumps({"supervisor": os.getpid(), "services": servers}))


def stop_all(home: Path, running: list[Running]) -> None:
    """Stop in reverse order; a server that does not stop within `STOP_SECONDS` is killed."""
    for name in ("services.json", "connection.env"):
        (home / name).unlink(missing_ok=True)
    for server in reversed(running):
        if server.process.poll() is None:
            server.process.send_signal(server.service.stop_signal)
    for server in reversed(running):
        _stop(server)


def _stop(server: Running) -> None:
    """Stop a server in order; one that does not stop within `STOP_SECONDS` is killed."""
    if server.process.poll() is None:
        server.process.send_signal(server.service.stop_signal)
    try:
        server.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("service_killed", service=server.service.name)
        server.process.kill()
        server.process.wait()
    if conf := server.service.environment.get("FLINK_CONF_DIR"):
        end_orphans("FLINK_CONF_DIR", conf)
    log.info("service_stopped", service=server.service.name, exit_code=server.process.returncode)


def end_orphans(variable: str, value: str) -> int:
    """Kill processes without a parent that have a variable; returns how many: workers outlive a killed Flink."""
    ended = 0
    for process in psutil.process_iter():
        try:
            if process.ppid() == 1 and process.pid != os.getpid() and process.environ().get(variable) == value:
                for child in process.children(recursive=True):
                    child.kill()
                process.kill()
                ended += 1
        except psutil.Error:
            continue  # it ended by itself, or is somebody else's
    return ended


@contextmanager
def _log_file(home: Path, service: Service) -> Iterator[IO[bytes]]:
    folder = home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{service.name}.log").open("ab") as file:
        yield file


def _spawn(home: Path, service: Service, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with _log_file(home, service) as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=service.variables(environment),
            cwd="/",
            # A Ctrl-C in the terminal goes to the command line, which tells us; servers are stopped in order.
            start_new_session=True,
        )


def _start(home: Path, service: Service) -> Running:
    process = _spawn(home, service, service.command, service.environment)
    log.info("service_started", service=service.name, port=service.port, pid=process.pid)
    return Running(service, process, time.monotonic())


def _complete(home: Path, service: Service, command: list[str], environment: dict[str, str], owner: Owner) -> None:
    process = _spawn(home, service, command, environment)
    try:
        while process.poll() is None:
            owner.wait(POLL_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise UnavailableError(f"Preparing {service.name} failed.\n{_log_tail(home, service)}")


def _wait_until_ready(home: Path, server: Running, owner: Owner) -> str:
    deadline = server.started_at + START_SECONDS
    while True:
        if server.process.poll() is not None:
            raise UnavailableError(
                f"{server.service.name} ended with exit code {server.process.returncode} while starting.\n"
                + _log_tail(home, server.service)
            )
        try:
            return server.service.probe()
        except NOT_READY as error:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"{server.service.name} did not answer within {START_SECONDS:.0f} s: {error}\n"
                    + _log_tail(home, server.service)
                ) from error
        owner.wait(POLL_SECONDS)


def _log_tail(home: Path, service: Service, lines: int = 12) -> str:
    path = home / "logs" / f"{service.name}.log"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    tail = f"The end of {path}:\n" + "\n".join(text.splitlines()[-lines:])
    if service.logs is not None:
        tail += f"\nMore is in {service.logs}."
    free = shutil.disk_usage(home).free
    if free < LEAST_FREE_BYTES:
        return f"The disk of {home} is full: {free / 2**20:,.0f} MiB are free. Make room, then start again.\n{tail}"
    return tail


def configure_logging() -> None:
    """One JSON object a line on stdout, which is `.c360/logs/supervisor.log`."""
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(processors=processors)


def leave_parent() -> None:
    """Go on in a child of init's: whoever started us need not wait for us, the channel tells each of the other."""
    if os.fork():
        os._exit(0)


if __name__ == "__main__":
    leave_parent()
    os.umask(0o077)
    configure_logging()
    sys.exit(main(sys.argv[1:]))
