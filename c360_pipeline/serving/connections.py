"""Connections of the API's server: none holds a place without asking for something, or without reading its answer.

uvicorn ends connections that are idle after an answer; this is the rest: requests that trickle in, answers that nobody
reads, and more connections than there are places (docs/adr/0052).
"""

from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_SECONDS = 15.0
"""For a request to come whole, head and body."""
READ_SECONDS = 10.0
LEAST_READ_BYTES = 16 * 1024
"""Of an answer that waits, a client takes as much in `READ_SECONDS`, or loses it."""
MOST_HEAD_BYTES = 32 * 1024
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Connection(HttpToolsProtocol):
    """A connection with deadlines.

    The class is that of one server: `limited_to` makes it.
    """

    most = 0
    waiting: "dict[Connection, None]"
    """Those that wait for a request or for the rest of one, the longest first."""
    _deadline: TimerHandle | None = None
    _reading: TimerHandle | None = None
    _head_bytes = 0
    _has_head = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Take a place: where there is none, that of who has waited longest without a whole request."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            longest = next(iter(self.waiting), self)
            longest.give_up()
            if longest is self:
                return
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_waiting()
        if self._reading is not None:
            self._reading.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse a head without end: the parser would keep all of it."""
        if not self._has_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES + len(data):
                self._refuse(TOO_LARGE)
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._has_head = False
        if self._deadline is None:
            self._await_request()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._has_head, self._head_bytes = True, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """It is whole."""
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is answered: the place is free for others until the next request begins."""
        super().on_response_complete()
        if not self.pipeline and not self.transport.is_closing():
            self.waiting[self] = None

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        super().pause_writing()
        if self._reading is None:
            self._watch_reading(None)

    def timeout_keep_alive_handler(self) -> None:
        """Idle: end it, in time even where the rest of an answer is never read."""
        super().timeout_keep_alive_handler()
        if self._reading is None:
            self._watch_reading(None)

    def give_up(self) -> None:
        """End it at once."""
        self._stop_waiting()
        self.transport.abort()

    def _await_request(self) -> None:
        self.waiting[self] = None
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._refuse, TOO_SLOW)

    def _stop_waiting(self) -> None:
        self.waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, answer: bytes) -> None:
        """End it; where nothing of an answer has been sent, say why."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(answer)
        self.transport.close()

    def _watch_reading(self, left_before: int | None) -> None:
        """End it where what waits for the client gets no less."""
        left = self.transport.get_write_buffer_size()
        self._reading = None
        if left == 0:
            return
        if left_before is not None and left > left_before - LEAST_READ_BYTES:
            self.give_up()
            return
        self._reading = self.loop.call_later(READ_SECONDS, self._watch_reading, left)


def limited_to(most: int) -> type[Connection]:
    """The protocol of a server.

    Args:
        most: connections at a time.
    """
    members: dict[str, Any] = {"most": most, "waiting": {}}
    return type("LimitedConnection", (Connection,), members)
