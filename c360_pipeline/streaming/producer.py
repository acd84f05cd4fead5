"""Sends events to Kafka: one message an event, those of a user in their order."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, Message, Producer

from c360_pipeline.core.contract.events import Rejected, parse_event
from c360_pipeline.errors import ContractError, UnavailableError
from c360_pipeline.settings import Settings
from c360_pipeline.streaming.clients import TOPIC, kafka_options

Header = tuple[str, str | bytes | None]
CONTENT_TYPE: Header = ("content-type", b"application/json")
FLUSH_SECONDS = 60.0
PACE_MESSAGES = 50
"""A rate is kept in steps of so many messages."""


class EventProducer:
    """Sends to the topic of events; idempotent, so that what is sent again by the client is there once.

    Args:
        settings: of Kafka.
        headers: of every message, besides the content type.
    """

    def __init__(self, settings: Settings, headers: Sequence[Header] = ()) -> None:
        self._headers = [CONTENT_TYPE, *headers]
        self._failed: list[str] = []
        self._producer = Producer({
            **kafka_options(settings), "enable.idempotence": True, "compression.type": "lz4", "linger.ms": 5,
            "message.max.bytes": 1_100_000, "queue.buffering.max.messages": 100_000,
        })  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def send(self, event: dict[str, Any]) -> None:
        """Send one event, as the contract has it.

        Raises:
            ContractError: it breaks the contract; it was not sent.
        """
        line = json.dumps(event, ensure_ascii=False).encode()
        try:
            parsed = parse_event(line, datetime.now(UTC))
        except Rejected as rejected:
            raise ContractError(f"{rejected.error_class}: {rejected.reason}") from None
        self.send_line(line, message_key(parsed.tenant_id, parsed.user_id or parsed.anonymous_id or ""))

    def send_line(self, line: bytes, key: bytes | None) -> None:
        """Send bytes as they are, whether they are an event or not.

        Args:
            line: the message.
            key: `message_key` of its tenant and user; None where they can't be read.
        """
        while True:
            try:
                self._producer.produce(TOPIC, line, key, headers=self._headers, on_delivery=self._delivered)
                break
            except BufferError:
                self._producer.poll(0.5)
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until all is stored.

        Raises:
            UnavailableError: some of it is not.
        """
        left = self._producer.flush(FLUSH_SECONDS)
        if left or self._failed:
            why = f": {self._failed[0]}" if self._failed else ""
            failed = left + len(self._failed)
            self._failed.clear()
            raise UnavailableError(f"Kafka did not take {failed:,} messages{why}. Send them again: they count once.")

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed.append(str(error))


def message_key(tenant_id: str, visitor: str) -> bytes:
    """By which messages of one user, or of one browser before its login, go to one partition."""
    return f"{tenant_id}/{visitor}".encode()


def key_of(line: bytes) -> bytes | None:
    """The key of a line; None where its tenant and user can't be read."""
    try:
        event = parse_event(line, datetime.now(UTC))
    except Rejected as rejected:
        if rejected.tenant_id is None or rejected.user_id is None:
            return None
        return message_key(rejected.tenant_id, rejected.user_id)
    return message_key(event.tenant_id, event.user_id or event.anonymous_id or "")


def send(
    producer: EventProducer,
    lines: Iterable[tuple[bytes, bytes | None]],
    rate: float | None,
    report: Callable[[int], None],
) -> int:
    """Send lines in their order.

    Args:
        producer: through which.
        lines: without their ends, each with its key.
        rate: messages a second; None for as fast as it goes.
        report: called with how many were sent.

    Returns:
        How many were sent.

    Raises:
        UnavailableError: Kafka did not take all of them.
    """
    began, sent = time.monotonic(), 0
    for line, key in lines:
        producer.send_line(line, key)
        sent += 1
        if sent % PACE_MESSAGES == 0:
            report(sent)
            if rate and (ahead := sent / rate - (time.monotonic() - began)) > 0:
                time.sleep(ahead)
    producer.flush()
    report(sent)
    return sent
