"""Messages of Kafka's topics as records of sources.

The real-time path puts every message of such a topic into files, a line each, which land as any others: mapped,
accounted for, replayed and read again. Meanwhile it maps each message itself, by the same mapping, so that its event is
in the graph within its second; when the file lands, the event is there already.
"""

import re
from collections.abc import Iterator

from c360_pipeline.core.sources.records import Framing, message_lines
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.sources.reading import lines_of

FOLDER = "topic-events/"
"""Under which the messages of topics lie, by topic and day."""
OWN_TOPICS = "user_events"
"""What the names of the product's own topics begin with."""
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
LINE_BREAKS = bytes.maketrans(b"\r\n", b"\t\t")
"""Makes a line of a message: between the parts of a JSON document a tab says the same; within a text both are wrong."""


def require_topic_of_producer(topic: str) -> None:
    """Whether a topic can be one of a producer.

    Raises:
        ConfigError: it is no name of a topic, or one of the product's own.
    """
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ConfigError(f"{topic!r} is no name of a topic: letters, digits, points, hyphens and underscores are.")
    if topic.startswith(OWN_TOPICS):
        raise ConfigError(f"{topic} is a topic of the product's own: what is sent there is an event already.")


def location_of_topic(bucket: str, topic: str) -> str:
    """Where the files with the messages of a topic lie."""
    return f"s3://{bucket}/{FOLDER}topic={topic}/date={{date}}/*"


def message_line(value: bytes) -> bytes:
    """A message as the line that it is in its file, without the end."""
    return value.rstrip(b"\r\n").translate(LINE_BREAKS)


def records_of(value: bytes, framing: Framing) -> Iterator[bytes]:
    """The records of a message, a JSON line each, as landing finds them in the file with the message."""
    yield from lines_of(message_lines([message_line(value) + b"\n"], framing))
