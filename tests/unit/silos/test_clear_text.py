"""A server that asks for the password in clear text, as a thief's would."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydantic import SecretStr

from c360_pipeline.core.silos.control_rows import SourceDatabase, SourceTable
from c360_pipeline.errors import UnavailableError
from c360_pipeline.stores.postgres.silo import Silo

SSL_REQUEST, ASKS_CLEAR_TEXT = 80877103, b"R" + struct.pack("!ii", 8, 3)


@contextmanager
def thief() -> Iterator[tuple[int, list[bytes]]]:
    """Its port, and everything that clients sent after they were asked."""
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    while len(begin := client.recv(8)) == 8:
                        length, code = struct.unpack("!ii", begin)
                        if code != SSL_REQUEST:
                            client.recv(length - 8)
                            client.sendall(ASKS_CLEAR_TEXT)
                            got.append(client.recv(1024))
                            break
                        client.sendall(b"N")

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], got
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-full"])
def test_no_server_gets_the_password_in_clear_text_without_tls(mode: str) -> None:
    with thief() as (port, got):
        database = SourceDatabase(1, "acme", "crm", "127.0.0.1", port, "reader", "env:C360_SOURCE_CRM", mode)
        silo = Silo(database, SecretStr("hunter2"))
        with pytest.raises(UnavailableError):
            silo.found([SourceTable(1, 1, "public", "t", ("id",))])
        with pytest.raises(UnavailableError), silo.snapshot():
            pass
    assert all(b"hunter2" not in sent for sent in got)
