"""Connections of the API's server, over real sockets."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from c360_pipeline.serving import connections
from c360_pipeline.serving.connections import MOST_HEAD_BYTES, limited_to

HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n"
LARGE = 20 * 1024 * 1024
MOST = 20


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers once the body is there: /large with megabytes, /never not at all."""
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/never":
        await asyncio.sleep(60)
    body = b"x" * LARGE if scope["path"] == "/large" else b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[uvicorn.Server]:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.8)
    monkeypatch.setattr(connections, "READ_SECONDS", 0.3)
    config = uvicorn.Config(app, port=0, http=limited_to(MOST), ws="none", lifespan="off", log_level="critical",
                            timeout_graceful_shutdown=1)  # fmt: skip
    made = uvicorn.Server(config)
    thread = threading.Thread(target=made.run)
    thread.start()
    wait_for(lambda: made.started)
    yield made
    made.should_exit = True
    thread.join()


@pytest.fixture
def connect(server: uvicorn.Server) -> Iterator[Callable[[], socket.socket]]:
    address = server.servers[0].sockets[0].getsockname()
    opened: list[socket.socket] = []

    def one() -> socket.socket:
        opened.append(socket.create_connection(address, timeout=10))
        return opened[-1]

    yield one
    for connection in opened:
        connection.close()


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            received += piece
    return received


@pytest.mark.parametrize("begun", [b"", b"GET", HEAD, POST, POST + b"12345"])
def test_a_request_that_does_not_come_whole_is_ended(connect: Callable[[], socket.socket], begun: bytes) -> None:
    with closing(connect()) as connection:
        connection.sendall(begun)
        assert answer(connection).startswith(b"HTTP/1.1 408")


def status_of(connection: socket.socket, begun: bytes, piece: bytes, times: int, seconds: float) -> bytes:
    """What the server ends a request with whose head comes in pieces; nothing where it reads on for ever."""
    connection.sendall(begun)
    connection.settimeout(seconds)
    for _ in range(times):
        connection.sendall(piece)
        with suppress(TimeoutError):
            return connection.recv(1 << 16)[:12]
    return b""


def test_trickling_does_not_prolong_it(connect: Callable[[], socket.socket]) -> None:
    with closing(connect()) as connection:
        assert status_of(connection, HEAD + b"x-slow: ", b"y", 200, 0.05) == b"HTTP/1.1 408"


def test_the_second_request_of_a_connection_has_its_time_too(connect: Callable[[], socket.socket]) -> None:
    with closing(connect()) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        time.sleep(1.0)
        connection.sendall(HEAD + b"\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.sendall(HEAD)
        assert answer(connection).startswith(b"HTTP/1.1 408")


def test_a_head_without_end_is_refused(connect: Callable[[], socket.socket]) -> None:
    with closing(connect()) as connection:
        line = b"x-long: " + b"y" * 1_000 + b"\r\n"
        assert status_of(connection, HEAD, line, 3 * MOST_HEAD_BYTES // 1_000, 0.005) == b"HTTP/1.1 431"


def test_an_answer_that_nobody_reads_is_given_up(connect: Callable[[], socket.socket], server: uvicorn.Server) -> None:
    connection = connect()
    connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
    wait_for(lambda: len(server.server_state.connections) == 1)
    wait_for(lambda: not server.server_state.connections)
    assert len(answer(connection)) < LARGE


def test_an_answer_that_is_read_slowly_comes_whole(connect: Callable[[], socket.socket]) -> None:
    with closing(connect()) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        received = 0
        while piece := connection.recv(1 << 20):
            received += len(piece)
            time.sleep(0.02)
        assert received > LARGE


def test_who_waits_longest_without_asking_makes_room_for_who_asks(
    connect: Callable[[], socket.socket], server: uvicorn.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 60.0)
    for connection in [connect() for _ in range(10 * MOST)]:
        with suppress(OSError):  # driven out meanwhile
            connection.sendall(HEAD)
    with closing(connect()) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert len(server.server_state.connections) <= MOST + 1


def test_who_is_being_served_is_not_driven_out(connect: Callable[[], socket.socket], server: uvicorn.Server) -> None:
    busy = [connect() for _ in range(MOST)]
    for connection in busy:
        connection.sendall(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n")
    wait_for(lambda: len(server.server_state.tasks) == MOST)
    with closing(connect()) as connection:
        assert answer(connection) == b""
    assert len(server.server_state.tasks) == MOST
