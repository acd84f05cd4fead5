from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from c360_pipeline.serving.pages.timeline import LONG_PAUSE, WEEKS, days_of, weeks_of

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


def entry(hours_ago: float, session: str | None = None, kind: str = "event") -> dict[str, Any]:
    said = {"kind": kind, "at": NOON - timedelta(hours=hours_ago), "title": "x"}
    return said if kind == "ticket" else said | {"session_id": session}


def test_a_session_is_shown_together_and_what_comes_between_beside_it() -> None:
    (day,) = days_of([entry(0, "b"), entry(1, "a"), entry(2, kind="ticket"), entry(3, "a"), entry(4)])
    assert [(part.session_id, len(part.entries)) for part in day.parts] == [("b", 1), ("a", 2), (None, 1), (None, 1)]
    assert (day.parts[1].began, day.parts[1].ended) == (NOON - timedelta(hours=3), NOON - timedelta(hours=1))


def test_a_session_over_midnight_is_on_both_days() -> None:
    first, second = days_of([entry(10, "a"), entry(14, "a")])
    assert (first.day, second.day) == (NOON.date(), (NOON - timedelta(days=1)).date())
    assert [part.session_id for day in (first, second) for part in day.parts] == ["a", "a"]


def test_long_pauses_are_said_also_to_what_is_shown_above() -> None:
    week, more = 7 * 24, 8 * 24
    assert [day.pause for day in days_of([entry(0), entry(week)])] == [None, None]
    assert [day.pause for day in days_of([entry(0), entry(more)])] == [None, 7]
    assert days_of([entry(more)], NOON)[0].pause == 7
    assert days_of([entry(more)])[0].pause is None
    assert days_of([]) == []


@given(st.lists(st.tuples(st.integers(0, 2_000), st.sampled_from(["a", "b", None])), max_size=40))
def test_every_entry_is_shown_once_and_days_are_in_order(told: list[tuple[int, str | None]]) -> None:
    entries = sorted((entry(hours, session) for hours, session in told), key=lambda e: e["at"], reverse=True)
    days = days_of(entries)
    shown = [one for day in days for part in day.parts for one in part.entries]
    assert Counter(map(id, shown)) == Counter(map(id, entries))
    assert [day.day for day in days] == sorted({one["at"].date() for one in entries}, reverse=True)
    for day in days:
        named = [part.session_id for part in day.parts if part.session_id]
        assert len(named) == len(set(named))
    for above, below in pairwise(days):
        assert (below.pause is None) == (above.day - below.day <= LONG_PAUSE)


@given(st.dictionaries(st.dates(date(2023, 1, 1), date(2026, 12, 31)), st.integers(1, 9), max_size=30))
def test_weeks_hold_every_event_of_the_year_before_the_newest(days: dict[date, int]) -> None:
    weeks = weeks_of(days)
    if not days:
        assert weeks == []
        return
    assert len(weeks) == WEEKS
    assert {monday.weekday() for monday, _ in weeks} == {0}
    assert weeks[-1][1] > 0
    assert sum(events for _, events in weeks) == sum(n for day, n in days.items() if day >= weeks[0][0])
