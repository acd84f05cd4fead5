import hashlib
import json
from datetime import UTC, datetime

import polars as pl
import pytest

from c360_pipeline.core.lake import EVENTS, LANDING_FILES
from c360_pipeline.core.landing import Line, classify, conflict_letters, decode, split_lines, unbalanced

NOW = datetime(2025, 11, 3, tzinfo=UTC)
NOTHING_ARCHIVED = EVENTS.empty().select("tenant_id", "event_id", "content_hash", "source_uri", "source_line")


def line(number: int, uri: str = "f", **changes: object) -> Line:
    fields = {"tenantId": "acme", "userId": "u", "sessionId": "s", "ts": 1762077600000, "action": "view"} | changes
    return Line(uri, number, 0, json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\n", [(1, 0, b"a"), (2, 2, b"b")]),
        (b"a\nb", [(1, 0, b"a"), (2, 2, b"b")]),
        (b"a\r\n\r\n \nb\n", [(1, 0, b"a\r"), (4, 7, b"b")]),
        (b"\xef\xbb\xbfa\n", [(1, 3, b"a")]),
        (b"", []),
        (b"\n\n", []),
    ],
)
def test_lines_are_numbered_and_placed(content: bytes, expected: list[tuple[int, int, bytes]]) -> None:
    found = split_lines("f", content.splitlines(keepends=True))
    assert [(one.number, one.offset, one.raw) for one in found] == expected


def test_carriage_returns_are_harmless() -> None:
    one = line(1)
    assert decode([one._replace(raw=one.raw + b"\r")], NOW).events.height == 1


def test_every_line_is_an_event_or_a_dead_letter() -> None:
    bad = Line("f", 2, 40, b"{nonsense")
    decoded = decode([line(1), bad], NOW)
    assert decoded.events["source_line"].to_list() == [1]
    letter = decoded.dead.row(0, named=True)
    assert (letter["source_line"], letter["byte_offset"], letter["raw"]) == (2, 40, b"{nonsense")
    assert letter["dead_letter_id"] == hashlib.sha256(b"{nonsense").hexdigest()
    assert (letter["error_class"], letter["status"]) == ("invalid_json", "open")


def test_the_first_of_equal_events_lands() -> None:
    events = decode([line(1), line(2), line(1, uri="g")], NOW).events
    classified = classify(events, NOTHING_ARCHIVED)
    assert classified.to_append["source_line"].to_list() == [1]
    assert classified.duplicates.select("source_uri", "source_line").rows() == [("f", 2), ("g", 1)]


def test_an_interrupted_try_counts_as_landed_and_is_not_appended_again() -> None:
    events = decode([line(1), line(2, userId="v")], NOW).events
    archived = events.head(1).select(NOTHING_ARCHIVED.columns)
    classified = classify(events, archived)
    assert classified.landed.height == 2
    assert classified.to_append["user_id"].to_list() == ["v"]
    assert classified.duplicates.is_empty()


def test_another_event_under_a_taken_id_is_a_conflict() -> None:
    lines = [line(1, eventId="e"), line(2, eventId="e", action="purchase"), line(3, eventId="e")]
    events = decode(lines, NOW).events
    classified = classify(events, NOTHING_ARCHIVED)
    assert classified.duplicates["source_line"].to_list() == [3]
    letters = conflict_letters(classified.conflicts, {("f", n.number): n.raw for n in lines}, NOW)
    letter = letters.row(0, named=True)
    assert letter["error_class"] == "duplicate_id_conflict"
    assert "line 1 of f" in letter["reason"]
    assert letter["raw"] == lines[1].raw


def test_the_same_id_of_two_tenants_is_no_conflict() -> None:
    events = decode([line(1, eventId="e"), line(2, eventId="e", tenantId="globex")], NOW).events
    assert classify(events, NOTHING_ARCHIVED).to_append.height == 2


def test_a_file_that_lost_a_line_is_found() -> None:
    books = pl.DataFrame(
        {
            "source_uri": ["a", "b"],
            "lines": [3, 3],
            "landed": [1, 1],
            "duplicates": [1, 0],
            "dead": [1, 1],
            "suppressed": 0,
        }
    )
    assert unbalanced(books)["source_uri"].to_list() == ["b"]
    assert unbalanced(LANDING_FILES.empty()).is_empty()
