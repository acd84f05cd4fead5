import hashlib
import json
from datetime import UTC, datetime
from itertools import chain

import polars as pl
import pytest

from c360_pipeline.assets.landing import read_catalog
from c360_pipeline.core.lake import EVENTS, LANDING_FILES
from c360_pipeline.core.landing import LineBlock, classify, conflict_letters, decode, line_blocks, misbooked, unbalanced
from c360_pipeline.errors import ContractError

NOW = datetime(2025, 11, 3, tzinfo=UTC)
NOTHING_ARCHIVED = EVENTS.empty().select("tenant_id", "event_id", "content_hash", "source_uri", "source_line")


def line(**changes: object) -> bytes:
    fields = {"tenantId": "acme", "userId": "u", "sessionId": "s", "ts": 1762077600000, "action": "view"} | changes
    return json.dumps(fields).encode()


def block(*lines: bytes, uri: str = "f") -> LineBlock:
    return LineBlock(uri, 1, 0, b"\n".join(lines) + b"\n")


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
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_lines_are_numbered_and_placed(content: bytes, expected: list[tuple[int, int, bytes]], size: int) -> None:
    pieces = [content[n : n + size] for n in range(0, len(content), size)]
    found = [b.line(n) for b in line_blocks("f", pieces) for n in b.lines["number"]]
    assert [(one.number, one.offset, one.raw) for one in found] == expected


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory() -> None:
    pieces = (b"x" * 1024 * 1024 for _ in range(1000))
    with pytest.raises(ContractError, match="f: what begins at byte 4 has no newline"):
        list(line_blocks("f", chain([b"{}\n\n"], pieces)))
    assert len(list(pieces)) > 900


def test_catalogues_are_composed_and_name_what_is_wrong() -> None:
    header = "tenant_id,id,name,category,price\n"
    catalog = read_catalog(f"{header}acme,e\u0301,Lamp,,9.5\n".encode(), "f")
    assert catalog.select("id", "category", "price").row(0) == ("é", None, 9.5)
    for wrong in (header + "acme,a,Lamp,,cheap\n", "id,name\n1,2\n", ""):
        with pytest.raises(ContractError, match="f is not a catalogue"):
            read_catalog(wrong.encode(), "f")


def test_carriage_returns_are_harmless() -> None:
    assert decode([block(line() + b"\r")], NOW).events.height == 1


def test_every_line_is_an_event_or_a_dead_letter() -> None:
    bad = [b"{nonsense", b"\xff" + line(), "ünï".encode(), b"\xc3"]
    decoded = decode([block(line(), *bad, line(userId="é"))], NOW)
    assert decoded.events["source_line"].to_list() == [1, 6]
    letter = decoded.dead.row(0, named=True)
    assert (letter["source_line"], letter["byte_offset"], letter["raw"]) == (2, len(line()) + 1, b"{nonsense")
    assert letter["dead_letter_id"] == hashlib.sha256(b"{nonsense").hexdigest()
    assert (letter["error_class"], letter["status"]) == ("invalid_json", "open")
    assert decoded.dead["raw"].to_list() == bad
    assert decoded.dead["error_class"].to_list() == ["invalid_json", "invalid_utf8", "invalid_json", "invalid_utf8"]


def test_the_first_of_equal_events_lands() -> None:
    events = decode([block(line(), line()), block(line(), uri="g")], NOW).events
    classified = classify(events, NOTHING_ARCHIVED)
    assert classified.to_append["source_line"].to_list() == [1]
    assert classified.duplicates.select("source_uri", "source_line").rows() == [("f", 2), ("g", 1)]


def test_an_interrupted_try_counts_as_landed_and_is_not_appended_again() -> None:
    events = decode([block(line(), line(userId="v"))], NOW).events
    archived = events.head(1).select(NOTHING_ARCHIVED.columns)
    classified = classify(events, archived)
    assert classified.landed.height == 2
    assert classified.to_append["user_id"].to_list() == ["v"]
    assert classified.duplicates.is_empty()


def test_a_file_delivered_anew_under_its_name_is_not_landed_twice() -> None:
    first = decode([block(line(), line(userId="v"))], NOW).events
    again = decode([block(line(), line(userId="v"), line(userId="w"))], NOW).events
    classified = classify(again, first.select(NOTHING_ARCHIVED.columns), booked={"f"})
    assert classified.duplicates["source_line"].to_list() == [1, 2]
    assert classified.landed["source_line"].to_list() == [3]


def test_a_changed_line_under_the_same_id_and_place_is_a_conflict() -> None:
    first = decode([block(line(eventId="e"))], NOW).events
    changed = decode([block(line(eventId="e", action="purchase"))], NOW).events
    classified = classify(changed, first.select(NOTHING_ARCHIVED.columns), booked={"f"})
    assert (classified.landed.height, classified.duplicates.height, classified.conflicts.height) == (0, 0, 1)


def test_another_event_under_a_taken_id_is_a_conflict() -> None:
    blocks = [block(line(eventId="e"), line(eventId="e", action="purchase"), line(eventId="e"))]
    events = decode(blocks, NOW).events
    classified = classify(events, NOTHING_ARCHIVED)
    assert classified.duplicates["source_line"].to_list() == [3]
    letters = conflict_letters(classified.conflicts, blocks, NOW)
    letter = letters.row(0, named=True)
    assert letter["error_class"] == "duplicate_id_conflict"
    assert "line 1 of f" in letter["reason"]
    assert letter["raw"] == line(eventId="e", action="purchase")
    assert letter["byte_offset"] == len(line(eventId="e")) + 1


def test_the_same_id_of_two_tenants_is_no_conflict() -> None:
    events = decode([block(line(eventId="e"), line(eventId="e", tenantId="globex"))], NOW).events
    assert classify(events, NOTHING_ARCHIVED).to_append.height == 2


def test_files_whose_rows_are_missing_are_found() -> None:
    books = pl.DataFrame({"source_uri": ["a", "a", "b", "c"], "landed": [2, 1, 5, 0]})
    archived = pl.DataFrame({"source_uri": ["a", "b", "unbooked"], "archived": [3, 4, 9]})
    assert misbooked(books, archived)["source_uri"].to_list() == ["b"]


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
