"""The sources whose records are messages of topics, as the control database has them now."""

import time
from collections.abc import Callable, Collection

import psycopg
import structlog
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from c360_pipeline.connections import open_control
from c360_pipeline.core.sources.source import Source, Sources
from c360_pipeline.errors import UnavailableError
from c360_pipeline.settings import Settings, is_allowed_topic
from c360_pipeline.stages.sources.active import active_sources

REMEMBERED_SECONDS = 5.0
"""So long what was read is taken for what is: a mapping that was applied counts from then on."""
PATIENCE_SECONDS = 600.0
AWAY = (psycopg.OperationalError, UnavailableError)


def topics_of_sources(settings: Settings) -> tuple[str, ...]:
    """The topics that sources name and that may be read, whether these are active or not.

    Messages of one that is paused are kept in files, and land when it is active again.
    """
    named = [row.from_topic for row in open_control(settings).sources.rows() if row.from_topic is not None]
    return tuple(sorted(topic for topic in named if is_allowed_topic(topic)))


def sources_of_topics(settings: Settings, topics: Collection[str] | None = None) -> tuple[Sources, dict[str, str]]:
    """The active sources, and by location what is wrong with those that can't be: their messages wait in files.

    Args:
        settings: of the control database.
        topics: that the job was started with; as the operator's settings say now where it is None.
    """
    return active_sources(open_control(settings), topics)


class TopicSources:
    """The sources, read again every few seconds.

    Args:
        read: reads them and what is wrong with others; raises one of `AWAY` where the control database does not answer.
        clock: seconds.
    """

    def __init__(
        self, read: Callable[[], tuple[Sources, dict[str, str]]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._known: Sources | None = None
        self._faulty: dict[str, str] = {}
        self._read_at = 0.0
        self._log = structlog.get_logger("c360.stream")

    def of(self, topic: str) -> Source | None:
        """The active source of a topic; None where there is none.

        While the control database is away, what was known last holds; before anything was known it is waited for.

        Raises:
            UnavailableError: it was away for ten minutes, and nothing was known.
            psycopg.OperationalError: the same.
        """
        if self._known is None:
            trying = Retrying(
                retry=retry_if_exception_type(AWAY), stop=stop_after_delay(PATIENCE_SECONDS), reraise=True,
                wait=wait_exponential_jitter(0.1, 5.0),
            )  # fmt: skip
            self._known = trying(self._read_now)
        elif self._clock() - self._read_at >= REMEMBERED_SECONDS:
            try:
                self._known = self._read_now()
            except AWAY as error:
                self._read_at = self._clock()
                self._log.warning("control_is_away", error=type(error).__name__)
        return self._known.of_topic(topic)

    def _read_now(self) -> Sources:
        found, faulty = self._read()
        self._read_at = self._clock()
        if faulty != self._faulty:
            self._faulty = faulty
            for location, reason in faulty.items():
                self._log.warning("source_waits", location=location, reason=reason)
        return found
