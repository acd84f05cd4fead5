"""What the stream decides one by one and in columns, and rows that are divided on disk."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from c360_pipeline.core.contract.events import Event
from c360_pipeline.stores.local.spill import Spill
from c360_pipeline.streaming.operators import BYTES, DeadLetter, Message, messages_of, validate, validate_all

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
BROKEN = [b"", b" ", b"\n", b"\xff", b"[]", b"{}", b"{\n", b'{"a": "b"}\n{"a": "b"}', b"\xef\xbb\xbf{}"]


def event_bytes(seconds: float, user: str, indent: int | None, broken_text: bool) -> bytes:
    """An event so long before the present; of many lines where indented, with a line break within a text if asked."""
    ts = (NOW - timedelta(seconds=seconds)).isoformat()
    fields = {"tenantId": "acme", "userId": user, "sessionId": "s", "ts": ts, "action": "view", "attrs": {"a": "b"}}
    line = json.dumps(fields, indent=indent)
    return (line.replace('"b"', '"b\n"') if broken_text else line).encode()


events = st.builds(
    event_bytes,
    st.sampled_from([0.0, 1.0, 119.0, 120.0, 120.000001, 121.0, 600.0, -3_600.0]) | st.floats(-90_000, 900),
    st.sampled_from(["u", "\u00e9", "v\\n"]), st.sampled_from([None, 1]), st.sampled_from([False] * 9 + [True]),
)  # fmt: skip
messages = st.lists(st.tuples(events | st.sampled_from(BROKEN), st.sampled_from([False, False, False, True])))


@given(messages, st.none() | st.floats(0, 1_000), st.integers(0, 20))
def test_messages_validated_together_are_validated_as_one_by_one(
    given_messages: list[tuple[bytes, bool]], clock_behind: float | None, cut: int
) -> None:
    clock = None if clock_behind is None else NOW - timedelta(seconds=clock_behind)
    one_by_one, last = [], clock
    for number, (value, is_replay) in enumerate(given_messages):
        found, last = validate(Message(value, 0, number), last, NOW, is_replay=is_replay)
        event = found.late_event if isinstance(found, DeadLetter) else found
        if event is not None:
            one_by_one.append((number, event, isinstance(found, DeadLetter)))
    together = []
    for start, part in ((0, given_messages[:cut]), (cut, given_messages[cut:])):
        judged = validate_all([value for value, _ in part], [is_replay for _, is_replay in part], clock, NOW)
        rows = judged.events.iter_rows(named=True)
        together += [(start + row["number"], as_event(row), row["is_late"]) for row in rows]
        assert judged.dead_letters == len(part) - judged.events.height
        clock = judged.clock
    assert together == one_by_one
    assert clock == last


def as_event(row: dict[str, object]) -> Event:
    """A row of the archive as an event."""
    return Event(*(dict(row[name] or ()) if name == "attrs" else row[name] for name in Event._fields))  # type: ignore[call-overload]


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 2**63), st.booleans(), st.binary())))
def test_messages_are_read_out_of_a_block_byte_by_byte(sent: list[tuple[int, int, bool, bytes]]) -> None:
    block = "".join(
        f"web.clicks-1 {partition} {offset} {'replay' if is_replay else ''} {len(value)} {value.decode(BYTES)}"
        for partition, offset, is_replay, value in sent
    )
    wanted = [
        (Message(value, partition, offset, "web.clicks-1"), is_replay) for partition, offset, is_replay, value in sent
    ]
    assert list(messages_of(block)) == wanted


@given(st.lists(st.tuples(st.text(), st.none() | st.integers(0, 3))), st.integers(1, 5), st.integers(1, 7))
def test_rows_that_are_divided_are_all_there_and_equal_keys_together(
    rows: list[tuple[str, int | None]], parts: int, size: int
) -> None:
    schema = pl.Schema({"text": pl.String, "number": pl.Int64})
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    with TemporaryDirectory() as folder:
        spill = Spill(Path(folder) / "rows", ["number"], schema, parts=parts)
        spill.filled(frame.iter_slices(size))
        read = [spill.part(part) for part in range(parts)]
    assert_frame_equal(pl.concat(read), frame, check_row_order=False)
    held = [set(part["number"]) for part in read]
    assert sum(map(len, held)) == len(set().union(*held))
