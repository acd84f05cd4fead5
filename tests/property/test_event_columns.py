"""The fast way over columns and the precise way line by line must be one contract."""

import json
from datetime import UTC, datetime
from typing import Any

import polars as pl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from c360_pipeline.core.event_columns import parse_columns
from c360_pipeline.core.events import Event, Rejected, parse_event

NOW = datetime(2025, 11, 3, tzinfo=UTC)
TEXTS = st.sampled_from(
    ["u", "", " ", "\u00a0", "é", "e\u0301", "\u0338x", "a:b,c", "a{b}", "null", "userId", 'q"', "b\\", "x" * 1024,
     "x" * 1025, "\u2028", "\x7f", "\x01", "\u1fef", "attrs", "é" * 30]
)  # fmt: skip
NUMBERS = st.sampled_from(
    [0, 1, -1, 1.5, -0.5, 0.0001, 0.00001, 1e3, 12.50, 103.49, 10**15, 10**14, 2**63, 1e300, -0.0]
)
VALUES = TEXTS | NUMBERS | st.none() | st.booleans() | st.lists(st.integers(), max_size=1)
TIMES = st.sampled_from(
    ["2025-11-02T10:00:00Z", "2025-11-02T10:00:00.123456789+01:00", "2025-11-02T10:00:00.1-11:30",
     "2025-11-02t10:00:00z",
     "2025-11-02 10:00:00Z", "2025-11-02T23:59:60Z", "2025-11-02T24:00:00Z", "2025-02-30T10:00:00Z", "yesterday", "",
     "2025-11-04T00:00:00Z", "2025-11-04T00:00:00.000001Z", "2000-01-01T00:00:00Z", "1999-12-31T23:59:59.999Z",
     "2025-11-02T10:00:00+24:00", "2025-11-02T10:00:00", 1762077600000, 1762077600, 946684800000, 946684799999,
     1762077600000.0, True, None]
)  # fmt: skip
FIELDS = st.fixed_dictionaries(
    {"tenantId": TEXTS, "userId": TEXTS, "sessionId": TEXTS, "ts": TIMES, "action": TEXTS},
    optional={
        "itemId": TEXTS | st.none(), "eventId": TEXTS | st.none(), "more": VALUES,
        "attrs": st.none() | st.dictionaries(TEXTS, VALUES, max_size=4),
    },
)  # fmt: skip
MEMBERS = st.tuples(st.sampled_from(["tenantId", "userId", "itemId", "attrs", "ts", "eventId"]), TEXTS | st.none())
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : "), (",\t", ":\r")])


def lines_of(fields: dict[str, Any], repeated: list[tuple[str, Any]], separators: tuple[str, str], escape: bool) -> str:
    """The event as text, with members again at its end."""
    text = json.dumps(fields, ensure_ascii=escape, separators=separators)
    more = "".join(f"{separators[0]}{json.dumps({name: value})[1:-1]}" for name, value in repeated)
    return text[:-1] + more + "}"


def precisely(line: str) -> Event | None:
    try:
        return parse_event(line.encode("utf-8", "surrogatepass"), NOW)
    except Rejected:
        return None


def quickly(*lines: str) -> dict[int, dict[str, Any]]:
    frame = pl.DataFrame({"number": range(len(lines)), "line": lines}, schema={"number": pl.Int64, "line": pl.String})
    found = parse_columns(frame, NOW, is_ascii=all(line.isascii() for line in lines))
    rows = {row.pop("number"): row for row in found.iter_rows(named=True)}
    return {n: {**row, "attrs": dict(row["attrs"])} for n, row in rows.items()}


GOOD = {"tenantId": "t", "userId": "u", "sessionId": "s", "ts": 1762077600000, "action": "view"}


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.builds(lines_of, FIELDS, st.lists(MEMBERS, max_size=1), SEPARATORS, st.booleans()), max_size=20))
@example([json.dumps(GOOD | {"attrs": {"b": 1, "a": None, "c": "x", "d": "null"}, "itemId": "", "eventId": None})])
@example([json.dumps(GOOD | {"attrs": {"a b": "1", "a": "2", "a!": "3", "aa": "4"}})])
@example([json.dumps(GOOD)[:-1] + ', "itemId": null, "itemId": "x"}'])
@example([json.dumps(GOOD)[:-1] + ', "attrs": {"a": "1", "a": null}}'])
def test_what_the_grammar_accepts_is_what_the_contract_makes_of_it(lines: list[str]) -> None:
    for number, row in quickly(*lines).items():
        event = precisely(lines[number])
        assert event is not None, lines[number]
        assert row == event._asdict()


@given(st.integers(0, 999_999), st.sampled_from(["view", "é"]), SEPARATORS.filter(lambda s: s[1] != " : "))
def test_events_in_their_usual_form_take_the_fast_way(micros: int, action: str, separators: tuple[str, str]) -> None:
    fields = GOOD | {
        "action": action, "itemId": "sku-1", "eventId": "e", "ts": f"2025-11-02T10:00:00.{micros:06}+01:00",
        "attrs": {"deviceId": "d", "price": 19.99, "quantity": 2, "gift": True, "note": None},
    }  # fmt: skip
    assert len(quickly(json.dumps(fields, ensure_ascii=False, separators=separators))) == 1
