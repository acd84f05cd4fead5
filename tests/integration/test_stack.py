"""The embedded services: found again, closed to others, and gone with their parent."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from repetition import representatives

from c360_pipeline.devstack import stack
from c360_pipeline.devstack.service import passwords
from c360_pipeline.devstack.services import PREFERRED_PORTS
from c360_pipeline.errors import UnavailableError
from c360_pipeline.settings import connection_file

HOLD = """
import sys, time
from pathlib import Path
from c360_pipeline.devstack import stack
with stack.attached(Path(sys.argv[1]), lambda _: None, ports={"postgres": int(sys.argv[2]), "s3": 0, "neo4j": 0}):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_every_service_answers_and_says_what_it_is(home: Path) -> None:
    found = {s.service: s for s in stack.status(home)}
    assert set(found) == set(PREFERRED_PORTS)
    for service in found.values():
        assert service.state == "ready"
        assert service.memory_bytes > 10 * 2**20
        assert psutil.pid_exists(service.pid)
    assert found["neo4j"].version.startswith("5.26")
    assert "GDS" in found["neo4j"].version
    assert found["postgres"].version.startswith("18")


def test_a_second_up_finds_what_runs(home: Path) -> None:
    pids = [s.pid for s in stack.status(home)]
    assert stack.up(home, lambda _: None) is False
    assert [s.pid for s in stack.status(home)] == pids


def test_state_is_for_the_owner_only(home: Path) -> None:
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for path in (connection_file(home), home / "passwords.json", home / "services.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_services_listen_on_the_loopback_interface_only(home: Path) -> None:
    listening = {}
    for service in stack.status(home):
        process = psutil.Process(service.pid)
        for each in (process, *process.children(recursive=True)):
            listening |= {
                (c.laddr.ip, c.laddr.port): service.service for c in each.net_connections() if c.status == "LISTEN"
            }
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert set(listening.values()) == set(PREFERRED_PORTS)


def test_there_is_nothing_to_stop_where_nothing_runs(tmp_path: Path) -> None:
    assert stack.down(tmp_path) is False
    assert stack.status(tmp_path) == []


def gone_within(pids: list[int], seconds: float) -> list[int]:
    """The processes of these that still live after the time."""
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]:
        if time.monotonic() > deadline:
            return alive
        time.sleep(0.1)
    return []


def watch(command: list[str], secret: list[bytes], home: Path) -> tuple[subprocess.Popen[str], set[bytes], set[str]]:
    """Start a parent of services, and look at all processes until it is ready.

    Returns:
        The parent; arguments of processes in which a secret stood, or beside which a canary was in the environment; and
        what was seen at all.
    """
    found: set[bytes] = set()
    seen: set[str] = set()
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    os.set_blocking(parent.stdout.fileno(), False)
    while not parent.stdout.readline():
        assert parent.poll() is None
        for process in Path("/proc").glob("[0-9]*"):
            try:
                arguments, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            except OSError:
                continue  # it has ended
            is_server = str(home).encode() in arguments and b"c360_pipeline" not in arguments
            if any(value in arguments for value in secret) or (is_server and b"canary-of" in environment):
                found.add(arguments)
            seen |= {name for name in ("first-password", "initdb", "versitygw") if name.encode() in arguments}
    return parent, found, seen


@pytest.mark.parametrize("stop", representatives([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], signal.SIGKILL))
def test_servers_show_no_secret_leave_a_taken_port_alone_and_do_not_outlive_their_parent(
    tmp_path: Path, stop: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEO4J_PASSWORD", "canary-of-another-server")
    monkeypatch.setenv("SOME_API_TOKEN", "canary-of-something-else")
    home = tmp_path / "home"
    home.mkdir()
    secret = [value.encode() for value in passwords(home).values()]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        parent, found, seen = watch([sys.executable, "-c", HOLD, str(home), str(port)], secret, home)
        with parent:
            running = stack.status(home)
            assert port not in {s.port for s in running}
            supervisor = psutil.Process(running[0].pid).ppid()
            parent.send_signal(stop)
    assert gone_within([supervisor, *(s.pid for s in running)], 30) == []
    assert not stack.is_supervised(home)
    # Every user of the machine reads the arguments of processes.
    assert (found, seen) == (set(), {"first-password", "initdb", "versitygw"})
    assert not [path for path in home.rglob("*") if path.name in ("first-password", "pwfile")]
    loose = [path for path in home.rglob("*") if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert not loose


def test_no_service_outlives_its_supervisor_and_up_starts_what_stopped_at_its_port(tmp_path: Path) -> None:
    ports = dict.fromkeys(PREFERRED_PORTS, 0)
    stack.up(tmp_path, lambda _: None, ports=ports)
    before = stack.status(tmp_path)
    supervisor = psutil.Process(before[0].pid).parent()
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    assert gone_within([s.pid for s in before], 30) == []
    assert stack.status(tmp_path) == []
    assert stack.up(tmp_path, lambda _: None, ports=ports) is True
    assert {s.service: s.port for s in stack.status(tmp_path)} == {s.service: s.port for s in before}
    dies = next(s for s in stack.status(tmp_path) if s.service == "postgres")
    os.kill(dies.pid, signal.SIGKILL)
    assert gone_within([dies.pid], 30) == []
    assert stack.up(tmp_path, lambda _: None, ports=ports) is True
    assert {(s.state, s.port) for s in stack.status(tmp_path)} == {("ready", s.port) for s in before}
    assert stack.down(tmp_path) is True
    assert stack.is_supervised(tmp_path) is False


def test_a_server_that_can_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "s3").mkdir()
    (tmp_path / "s3" / "data").write_text("a file where a folder must be")
    with pytest.raises(UnavailableError, match="s3"):
        stack.up(tmp_path, lambda _: None, ports=dict.fromkeys(PREFERRED_PORTS, 0))
    assert not stack.is_supervised(tmp_path)
