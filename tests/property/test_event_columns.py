"""The fast way over columns and the precise way line by line must be one contract."""

import json
import random
import unicodedata
from datetime import UTC, datetime
from typing import Any

import jsonschema
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from repetition import often

from c360_pipeline.core.contract.columns import parse_block
from c360_pipeline.core.contract.events import ERROR_CLASSES, Event, Rejected, json_schema, parse_event
from c360_pipeline.core.landing.decode import decode
from c360_pipeline.core.landing.lines import Delivery, LineBlock
from c360_pipeline.devstack.event_samples import SampleRequest, generate

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


def precisely(line: bytes) -> Event | None:
    try:
        return parse_event(line, NOW)
    except Rejected:
        return None


def quickly(*lines: bytes) -> dict[int, dict[str, Any]]:
    """Events by line, of lines without newlines in them."""
    content = b"".join(line + b"\n" for line in lines)
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
    parsed = parse_block(content, starts, NOW)
    rows = {row.pop("number"): row for row in parsed.events.iter_rows(named=True)}
    blank = {n for n, line in enumerate(lines) if not line.strip(b" \t\r\x0b\x0c")}
    assert sorted([*rows, *parsed.left, *blank]) == list(range(len(lines)))
    return {n: {**row, "attrs": dict(row["attrs"])} for n, row in rows.items()}


def check_against_the_contract(lines: list[bytes]) -> None:
    for number, row in quickly(*lines).items():
        event = precisely(lines[number])
        assert event is not None, lines[number]
        assert row == event._asdict()
        assert list(row["attrs"]) == list(event.attrs)


GOOD = {"tenantId": "t", "userId": "u", "sessionId": "s", "ts": 1762077600000, "action": "view"}
LINES = st.builds(lines_of, FIELDS, st.lists(MEMBERS, max_size=1), SEPARATORS, st.booleans()).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)


@given(st.lists(LINES, max_size=20))
@example(
    [json.dumps(GOOD | {"attrs": {"b": 1, "a": None, "c": "x", "d": "null"}, "itemId": "", "eventId": None}).encode()]
)
@example([json.dumps(GOOD | {"attrs": {"a b": "1", "a": "2", "a!": "3", "aa": "4"}}).encode()])
@example([json.dumps(GOOD | {"more": None, "_extra.more": 1, "attrs": {"_extra.other": 1}, "other": 2}).encode()])
@example([json.dumps(GOOD | {"attrs": {f"a{n}": "1" for n in range(65)}}).encode()])
@example([json.dumps(GOOD | {"attrs": {f"a{n}": None for n in range(300)}}).encode()])
@example([(json.dumps(GOOD)[:-1] + ', "itemId": null, "itemId": "x"}').encode()])
@example([(json.dumps(GOOD)[:-1] + ', "attrs": {"a": "1", "a": null}}').encode()])
@example([b"", b" ", b"\x0b\r", b"{", b"{}", b"[]", b"\xff", b'"', b'{"'])
@example([json.dumps(GOOD | {"tenantId": "é" * 34}).encode(), json.dumps(GOOD | {"tenantId": "x" * 200}).encode()])
def test_what_the_scanner_accepts_is_what_the_contract_makes_of_it(lines: list[bytes]) -> None:
    check_against_the_contract(lines)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A line in which some bytes were changed, taken out or put in."""
    line = bytearray(draw(LINES))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(line)))
        line[at : at + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"", b'"', b"\\", b"{", b"}", b",", b":", b"0", b"-", b".", b"e", b"null", b"\\u00e9",
                             b"\\ud83d\\ude00", b"\\ud83d", b"\\u0301", b"\xcc\x81", b"\xc3", b"\xa9", b"\xed\xa0\x80",
                             b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xe2\x80\xa8", b" ", b"\t", b"\x00", b"\x1f", b"\r"])
            | st.binary(max_size=3)
        )  # fmt: skip
    return bytes(line).replace(b"\n", b" ")


@given(st.lists(damaged(), max_size=20))
def test_damage_is_seen_by_the_scanner_as_by_the_contract(lines: list[bytes]) -> None:
    check_against_the_contract(lines)


@given(st.text(max_size=30), st.booleans())
@example("\u1100\u1161\u11a8", True)
@example("\u0f71\u0f72", False)
@example("\ufb1d\u2126", True)
def test_texts_in_nfc_take_the_fast_way_and_others_do_not(text: str, escape: bool) -> None:
    text = text.encode("utf-8", "ignore").decode()
    line = json.dumps(GOOD | {"itemId": text, "attrs": {text: text}}, ensure_ascii=escape).encode()
    if text and quickly(line):
        assert quickly(line)[0]["item_id"] == text == precisely(line).item_id  # type: ignore[union-attr]
    elif text:
        assert not all(unicodedata.is_normalized("NFC", c) and not unicodedata.combining(c) for c in text) or any(
            "\u1160" < c < "\u1176" or "\u11a7" < c < "\u11c3" for c in text
        )


@given(
    st.integers(0, 999_999),
    st.sampled_from(["view", "é", "視", "\U0001f600", 'a"b\\c\n', "{a}"]),
    SEPARATORS,
    st.booleans(),
)
def test_events_in_their_usual_form_take_the_fast_way(
    micros: int, action: str, separators: tuple[str, str], escape: bool
) -> None:
    fields = GOOD | {
        "action": action, "itemId": "sku-1", "eventId": "e", "ts": f"2025-11-02T10:00:00.{micros:06}+01:00",
        "attrs": {"deviceId": "d", "price": 19.99, "quantity": 2, "gift": True, "note": None}, "source": "web",
    }  # fmt: skip
    assert len(quickly(json.dumps(fields, ensure_ascii=escape, separators=separators).encode())) == 1


SCHEMA = jsonschema.Draft202012Validator(json_schema())
SEEN_BY_THE_SCHEMA = {"missing_field", "wrong_type", "not_an_object"}


LONG_NAMES = {"tenantId": "t", "userId": "u", "sessionId": "s", "ts": "2025-11-02T10:00:00Z", "action": "view"}


@given(FIELDS | st.sampled_from([[], "x", 1, None]))
@example({**LONG_NAMES, "attrs": {"x" * 1025: None}})
@example({**LONG_NAMES, "attrs": {"x" * 1024 + "\n": "value"}})
def test_the_json_schema_and_the_contract_agree(fields: Any) -> None:
    is_valid = SCHEMA.is_valid(json.loads(json.dumps(fields)))
    error_class = None
    try:
        parse_event(json.dumps(fields).encode(), NOW)
    except Rejected as rejected:
        error_class = rejected.error_class
    assert is_valid if error_class is None else not (is_valid and error_class in SEEN_BY_THE_SCHEMA)


CORPUS = [delivery.line for delivery in generate(SampleRequest(300, 2, 5, malformed_rate=0.2, duplicate_rate=0.2))]
TOKENS = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"NaN", b"-Infinity", b"1e400", b"9" * 25, b"-0",
    b"0.1000", b"\\u0000", b"\\ud800", b"\\udc00", b"\\u0301", b"\xef\xbb\xbf", b"\xc3\x28", b"\xf0\x9f\x98\x80", b"\r",
    b'"attrs":{}', b'"ts":1762077600', b'"ts":"2025-11-02T23:59:60Z"', b'"eventId":""', b"{" * 200, b"\x00", b"\xff",
]  # fmt: skip


def mutated(rng: random.Random) -> bytes:
    """A line of the corpus after a few changes; without newlines, which would make it two."""
    line = bytearray(rng.choice(CORPUS))
    for _ in range(rng.randint(1, 4)):
        at, end = sorted((rng.randint(0, len(line)), rng.randint(0, len(line))))
        match rng.randint(0, 5):
            case 0:
                line[at:at] = rng.choice(TOKENS)
            case 1:
                del line[at : min(end, at + 12)]
            case 2:
                line[at : at + 1] = bytes([rng.randrange(256)])
            case 3:
                line[at:at] = line[at : min(end, at + 60)]
            case 4:
                line[at:] = rng.choice(CORPUS)[at:]
            case _:
                line[at : at + 1] = rng.choice(TOKENS)
    return bytes(line).replace(b"\n", b"")


@settings(max_examples=often(10, 50))
@given(st.integers(0, 2**32))
def test_mutated_lines_are_each_an_event_or_a_reject(seed: int) -> None:
    rng = random.Random(seed)
    lines = [mutated(rng) for _ in range(1000)]
    check_against_the_contract(lines)
    decoded = decode(LineBlock(Delivery("f", "e"), 1, 0, b"".join(line + b"\n" for line in lines)), NOW)
    there = [line for line in lines if line.strip(b" \t\r\x0b\x0c")]
    assert decoded.lines.total() == len(there) == decoded.events.height + decoded.rejected.height
    assert set(decoded.rejected["error_class"]) <= set(ERROR_CLASSES)
    accounted = {*decoded.events["source_line"], *decoded.rejected["source_line"]}
    assert accounted == {number for number, line in enumerate(lines, 1) if line in there}
    assert all(lines[n - 1] == raw for n, raw in decoded.rejected.select("source_line", "raw").iter_rows())
