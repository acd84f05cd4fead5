"""Values of the graph's driver as Python and JSON have them."""

from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import neo4j.time

from c360_pipeline.core.contract.events import EPOCH
from c360_pipeline.core.projection.statement import Statement

TEMPORAL = (neo4j.time.DateTime, neo4j.time.Date, neo4j.time.Time, neo4j.time.Duration)


class Read(Protocol):
    """Runs a statement with its parameters and returns its records."""

    def __call__(self, statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
        """The records of a statement."""


def plain(value: Any) -> Any:
    """A value, or all within it, as JSON has it: dates and instants as ISO 8601 text."""
    match value:
        case dict():
            return {name: plain(part) for name, part in value.items()}
        case list() | tuple():
            return [plain(part) for part in value]
        case datetime():
            return value.isoformat()
        case _:
            return value.iso_format() if isinstance(value, TEMPORAL) else value


def instant(value: Any) -> datetime:
    """An instant in UTC, to the microsecond; one without a zone is taken to be in UTC.

    Args:
        value: the driver's, Python's, or microseconds since 1970, which cost a hundredth of the driver's.
    """
    if isinstance(value, int):
        return EPOCH + timedelta(microseconds=value)
    native: datetime = value.to_native() if isinstance(value, neo4j.time.DateTime) else value
    return native.replace(tzinfo=UTC) if native.tzinfo is None else native.astimezone(UTC)
