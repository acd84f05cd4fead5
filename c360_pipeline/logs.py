"""Logs: one JSON object a line for machines, text for people; no personal value is in any of them."""

import json
import sys
from pathlib import Path
from typing import Any

import structlog

SLOW_STATEMENT = "slow_statement"


class _SlowStatements:
    """Keeps statements that took long out of what a person reads: they go to a file, and a count to the end."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.count = 0

    def __call__(self, logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        if event.get("event") != SLOW_STATEMENT:
            return event
        self.count += 1
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(event, default=str) + "\n")
        raise structlog.DropEvent


_kept: list[_SlowStatements] = []


def configure_logging(*, as_json: bool, slow_statements: Path | None = None) -> None:
    """Set up what this process logs itself, on stderr.

    Args:
        as_json: one object a line, with level, time in UTC and the values of an event by name.
        slow_statements: of text for people, the file that statements which took long go to instead.
    """
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    _kept.clear()
    if as_json:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        if slow_statements is not None:
            _kept.append(_SlowStatements(slow_statements))
        processors += [
            *_kept,
            structlog.dev.ConsoleRenderer(
                # The other one prints the values of variables: keys, passwords, people.
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    # Looked up at each event: whoever calls a command in this process may have another stderr by then.
    structlog.configure(processors=processors, logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


def slow_statements_told() -> str | None:
    """How many statements took long, and where they are named; None where none did."""
    found = [kept for kept in _kept if kept.count]
    return f"{found[0].count} statements took more than a second: see {found[0].file}." if found else None
