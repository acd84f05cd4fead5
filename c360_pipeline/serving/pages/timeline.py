"""A customer's timeline as people read it: by day, what was done in a session together, and when nothing was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

LONG_PAUSE = timedelta(days=7)
"""From so long on it is said that nothing happened."""
MOST_OPEN = 5
"""Events of a session that are shown without being asked for."""

WEEKS = 53
"""That are counted: a year, whatever day it is."""

Entry = dict[str, Any]


@dataclass(frozen=True)
class Together:
    """Entries of one session on one day, or one that is of no session.

    Attributes:
        session_id: None of what is of no session: plays, tickets, events without one.
        entries: newest first.
    """

    session_id: str | None
    entries: list[Entry] = field(default_factory=list)

    @property
    def began(self) -> datetime:
        """Of the first that is shown."""
        at: datetime = self.entries[-1]["at"]
        return at

    @property
    def ended(self) -> datetime:
        """Of the last."""
        at: datetime = self.entries[0]["at"]
        return at

    @property
    def is_short(self) -> bool:
        """Whether all of it is shown at once."""
        return len(self.entries) <= MOST_OPEN


@dataclass(frozen=True)
class Day:
    """A UTC day.

    Attributes:
        day: which.
        pause: days without anything between it and the next day that is shown; None where these are few.
        parts: newest first.
    """

    day: date
    pause: int | None
    parts: list[Together]


def days_of(entries: Sequence[Entry], until: datetime | None = None) -> list[Day]:
    """A timeline by day and session.

    Args:
        entries: newest first, with `at`, and `session_id` of what is of a session.
        until: the oldest that is shown above these; None where nothing is.
    """
    days: list[Day] = []
    above = until.date() if until else None
    for entry in entries:
        day = entry["at"].date()
        if not days or days[-1].day != day:
            days.append(Day(day, _pause(day, days[-1].day if days else above), []))
        parts, session = days[-1].parts, entry.get("session_id")
        held = next((part for part in parts if session is not None and part.session_id == session), None)
        if held is None:
            parts.append(held := Together(session))
        held.entries.append(entry)
    return days


def weeks_of(days: Mapping[date, int]) -> list[tuple[date, int]]:
    """Mondays of the year up to the newest day, with how many events fell in the week; empty where there is none.

    Args:
        days: events by UTC day.
    """
    if not days:
        return []
    newest = max(days)
    last = newest - timedelta(days=newest.weekday())
    counts = dict.fromkeys((last - timedelta(weeks=back) for back in range(WEEKS - 1, -1, -1)), 0)
    for day, events in days.items():
        monday = day - timedelta(days=day.weekday())
        if monday in counts:
            counts[monday] += events
    return list(counts.items())


def _pause(day: date, above: date | None) -> int | None:
    """Whole days between two days, where these are many."""
    if above is None or above - day <= LONG_PAUSE:
        return None
    return (above - day).days - 1
