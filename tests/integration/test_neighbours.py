"""A quiet tenant beside one that floods, and beside strangers, over a real server."""

import http.client
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psutil
import pytest
from event_world import World
from repetition import Trials

from c360_pipeline.devstack.service import free_port
from c360_pipeline.stores.postgres.api_keys import ApiKeys
from c360_pipeline.stores.postgres.control import ControlDb

pytestmark = pytest.mark.soak
ASKED = 300
MOST = 2.0
"""Times as long as alone a quiet tenant's 95th percentile may be."""
SLOW_CLIENTS = 1_000
HEAVY = ["/app/delivery", "/app/reconciliation", "/app/queries/power_users", "/app/customers?q=u", "/customers/u1"]
FLOOD = """
import http.client, json, os, sys, threading
os.nice(19)  # it stands for other machines
port, connections, paths, keys = json.loads(sys.argv[1])
asked = threading.Semaphore(0)
def ask(number):
    connection, n = None, number
    while True:
        try:
            connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            key = keys[0] if keys else f"c360_{number}_{n}"
            connection.request("GET", paths[n % len(paths)], headers={"authorization": f"Bearer {key}"})
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection = None
        n += 1
        asked.release()
for number in range(connections):
    threading.Thread(target=ask, args=(number,), daemon=True).start()
for _ in range(2 * connections):
    asked.acquire()
print("ready", flush=True)
sys.stdin.read()
"""


class Server:
    """An API process.

    Attributes:
        port: where it listens.
        process: it.
        keys: by tenant.
    """

    def __init__(self, port: int, process: psutil.Process, keys: dict[str, str]) -> None:
        self.port, self.process, self.keys = port, process, keys

    def seconds(self, tenant: str, count: int = ASKED) -> list[float]:
        """How long requests for customers took, one after the other."""
        found = []
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            for number in range(count):
                began = time.perf_counter()
                headers = {"authorization": f"Bearer {self.keys[tenant]}"}
                connection.request("GET", f"/customers/u{number % 60}", headers=headers)
                answer = connection.getresponse()
                answer.read()
                assert answer.status in (200, 404)
                found.append(time.perf_counter() - began)
        return found


def p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


@pytest.fixture
def server(world: World, control: ControlDb) -> Iterator[Server]:
    keys = {tenant: ApiKeys(control.login).add(tenant, "read")[0] for tenant in ("acme", "globex")}
    port = free_port(0)
    command = [sys.executable, "-m", "c360_pipeline.cli", "api", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()
        made = Server(port, psutil.Process(process.pid), keys)
        deadline = time.monotonic() + 60
        while True:
            try:
                made.seconds("globex", 50)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield made
        process.terminate()


@contextmanager
def flooded(server: Server, connections: int, paths: list[str], key: str | None) -> Iterator[None]:
    asked = json.dumps([server.port, connections, paths, [key] if key else []])
    command = [sys.executable, "-c", FLOOD, asked]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as flood:
        assert flood.stdout is not None
        assert flood.stdout.readline()
        yield
        flood.kill()


@contextmanager
def slow_clients(server: Server) -> Iterator[None]:
    """Half requests, which stay half."""
    opened: list[socket.socket] = []
    for _ in range(SLOW_CLIENTS):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        connection.sendall(b"POST /graph/track HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n" + b"x" * 30_000)
        opened.append(connection)
    yield
    for connection in opened:
        connection.close()


@pytest.mark.parametrize(
    ("connections", "paths", "has_key"),
    [(40, ["/app/delivery"], True), (40, HEAVY, True), (60, ["/health"], False), (400, ["/customers/u1"], False)],
    ids=["one heavy page", "all that is heavy", "health", "unknown keys"],
)
def test_a_quiet_tenant_waits_at_most_twice_as_long_while_another_floods(
    server: Server, trials: Trials, connections: int, paths: list[str], has_key: bool,
) -> None:  # fmt: skip
    trials(ASKED)
    alone = p95(server.seconds("globex"))
    with flooded(server, connections, paths, server.keys["acme"] if has_key else None):
        beside = p95(server.seconds("globex"))
    assert beside <= MOST * alone, f"p95 {1_000 * alone:.1f} ms alone, {1_000 * beside:.1f} ms beside"


def test_a_thousand_slow_clients_take_little_memory_and_nobodys_place(server: Server, trials: Trials) -> None:
    trials(SLOW_CLIENTS)
    before = server.process.memory_info().rss
    alone = p95(server.seconds("globex"))
    with slow_clients(server):
        beside = p95(server.seconds("globex"))
        grown = server.process.memory_info().rss - before
    assert beside <= MOST * alone, f"p95 {1_000 * alone:.1f} ms alone, {1_000 * beside:.1f} ms beside"
    assert grown < 128 * 2**20
    assert server.process.is_running()
