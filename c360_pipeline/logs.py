"""Logs: one JSON object a line for machines, text for people; no personal value is in any of them."""

import sys
from typing import Any

import structlog


def configure_logging(*, as_json: bool) -> None:
    """Set up what this process logs itself, on stderr.

    Args:
        as_json: one object a line, with level, time in UTC and the values of an event by name.
    """
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        processors += [
            structlog.dev.ConsoleRenderer(
                # The other one prints the values of variables: keys, passwords, people.
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    structlog.configure(processors=processors, logger_factory=structlog.PrintLoggerFactory(sys.stderr))
