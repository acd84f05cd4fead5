"""What the stream decides of messages, one partition after the other."""

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from c360_pipeline.core.arrays.bisection import bisected
from c360_pipeline.core.contract.events import Event
from c360_pipeline.streaming.operators import (
    LATENESS,
    DeadLetter,
    Message,
    decode,
    encode,
    seen_name,
    shard_of,
    validate,
)

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
NEWEST = NOW - timedelta(hours=1)


def message(ts: datetime = NEWEST, **other: Any) -> Message:
    event = {"tenantId": "acme", "userId": "u1", "sessionId": "s1", "ts": ts.isoformat(), "action": "view", **other}
    return Message(json.dumps(event).encode(), 3, 17)


@pytest.mark.parametrize(
    ("behind", "is_late"), [(0, False), (1, False), (119, False), (120, False), (120.000001, True), (121, True)]
)
def test_an_event_is_late_when_it_lies_more_than_two_minutes_behind_the_newest_of_its_partition(
    behind: float, is_late: bool
) -> None:
    found, clock = validate(message(NEWEST - timedelta(seconds=behind)), NEWEST, NOW)
    assert isinstance(found, DeadLetter) == is_late
    assert clock == NEWEST
    if isinstance(found, DeadLetter):
        assert (found.error_class, found.late_event is not None) == ("late", True)
        assert f"{behind:,.3f} s behind" in found.reason
    assert timedelta(minutes=2) == LATENESS


def test_the_clock_follows_the_newest_event_but_never_passes_the_present() -> None:
    _, first = validate(message(NEWEST), None, NOW)
    assert first == NEWEST
    _, later = validate(message(NEWEST + timedelta(seconds=30)), first, NOW)
    assert later == NEWEST + timedelta(seconds=30)
    ahead, clock = validate(message(NOW + timedelta(hours=20)), later, NOW)
    assert isinstance(ahead, Event)
    assert clock == NOW
    nobody_is_late, _ = validate(message(NOW - timedelta(seconds=119)), clock, NOW)
    assert isinstance(nobody_is_late, Event)


def test_events_of_one_id_have_one_name_and_others_another() -> None:
    def name(**fields: Any) -> str:
        event, _ = validate(message(NEWEST, **fields), None, NOW)
        assert isinstance(event, Event)
        return seen_name(event)

    assert name(eventId="e1") == name(eventId="e1", userId="u2")
    assert len({name(eventId="e1"), name(eventId="e2"), name(eventId="e1", tenantId="acme2"), name()}) == 4
    assert "e1" not in name(eventId="e1")


def test_a_replayed_event_is_never_late_and_leaves_the_clock() -> None:
    old = message(NEWEST - timedelta(days=30))
    found, clock = validate(old, NEWEST, NOW, is_replay=True)
    assert isinstance(found, Event)
    assert clock == NEWEST


@pytest.mark.parametrize(
    ("value", "error_class"),
    [(b"", "invalid_json"), (b"\xff", "invalid_utf8"), (b"[]", "not_an_object"), (b"{}", "missing_field"),
     (b"x" * 1_048_577, "too_large")],
)  # fmt: skip
def test_what_breaks_the_contract_is_a_dead_letter_with_its_bytes(value: bytes, error_class: str) -> None:
    found, clock = validate(Message(value, 1, 5), NEWEST, NOW)
    assert isinstance(found, DeadLetter)
    assert found.error_class == error_class
    assert clock == NEWEST
    told = json.loads(found.as_json())
    assert base64.b64decode(told["value"]) == value
    assert told["dead_letter_id"] == hashlib.sha256(value).hexdigest()
    assert (told["partition"], told["offset"]) == (1, 5)


def test_an_event_survives_the_way_between_operators() -> None:
    sent = message(NEWEST + timedelta(microseconds=7), itemId="p", attrs={"a\u2028": "b\x00 \U0001f600"}, eventId="e")
    event, _ = validate(sent, None, NOW)
    assert isinstance(event, Event)
    assert decode(encode(event)) == event
    assert shard_of(event, 1) == '["acme", 0]'
    assert {shard_of(event._replace(user_id=str(n)), 4) for n in range(50)} == {f'["acme", {n}]' for n in range(4)}


class PoisonError(Exception):
    """A store that does not take a batch with a poisoned event."""


def an_event(event_id: str) -> Event:
    event, _ = validate(message(NEWEST, eventId=event_id), None, NOW)
    assert isinstance(event, Event)
    return event


@pytest.mark.parametrize("poisoned", [set(), {0}, {6}, {2, 3}, set(range(7))])
def test_a_batch_is_halved_until_only_the_events_are_left_that_a_store_refuses(poisoned: set[int]) -> None:
    events = [an_event(str(n)) for n in range(7)]
    written: list[str] = []

    def write(batch: list[Event]) -> None:
        if any(int(event.event_id) in poisoned for event in batch):
            raise PoisonError
        written.extend(event.event_id for event in batch)

    refused = bisected(events, write, lambda error: isinstance(error, PoisonError))
    assert {int(events[0].event_id) for events, _ in refused} == poisoned
    assert sorted(written) == sorted(str(n) for n in range(7) if n not in poisoned)


def test_an_error_that_is_nobodys_fault_is_passed_on() -> None:
    def away(batch: list[Event]) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        list(bisected([an_event("1")], away, lambda error: False))
