import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from c360_pipeline.core.contract.events import ERROR_CLASSES, Rejected, parse_event

NOW = datetime(2025, 11, 3, tzinfo=UTC)
TEXT = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
"""Never blank: neither separators nor controls."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
GOOD = st.fixed_dictionaries(
    {
        "tenantId": TEXT, "userId": TEXT, "sessionId": TEXT, "action": TEXT,
        "ts": st.datetimes(datetime(2000, 1, 2), datetime(2025, 11, 3), timezones=st.just(UTC)).map(datetime.isoformat),  # noqa: DTZ001
    },
    optional={
        "itemId": TEXT, "eventId": TEXT,
        "attrs": st.dictionaries(TEXT, TEXT | st.integers() | st.booleans(), max_size=5),
    },
)  # fmt: skip


def check_outcome(line: bytes) -> None:
    rejected = None
    try:
        parse_event(line, NOW)
    except Rejected as caught:
        rejected = caught
    assert rejected is None or (rejected.error_class in ERROR_CLASSES and rejected.reason)


NAMES = st.sampled_from(["tenantId", "userId", "ts", "action", "itemId", "attrs", "eventId", "more"])


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_event_or_a_reject_with_a_class(line: bytes) -> None:
    check_outcome(line)


@given(
    GOOD,
    st.dictionaries(NAMES, JSON),
)
def test_any_change_of_a_good_event_is_an_event_or_a_reject(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    check_outcome(json.dumps(fields | changes).encode())


@given(GOOD, st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_matter(fields: dict[str, Any], rng: Any) -> None:
    names = list(fields)
    rng.shuffle(names)
    one = parse_event(json.dumps(fields).encode(), NOW)
    assert parse_event(json.dumps({n: fields[n] for n in names}, ensure_ascii=False, indent=None).encode(), NOW) == one


@given(GOOD)
def test_an_event_written_out_again_is_the_same_event(fields: dict[str, Any]) -> None:
    one = parse_event(json.dumps(fields).encode(), NOW)
    again = {
        "tenantId": one.tenant_id, "userId": one.user_id, "sessionId": one.session_id, "ts": one.ts.isoformat(),
        "action": one.action, "itemId": one.item_id, "attrs": one.attrs, "eventId": fields.get("eventId"),
    }  # fmt: skip
    assert parse_event(json.dumps(again).encode(), NOW) == one


@given(GOOD, GOOD)
def test_other_content_has_another_hash(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = (parse_event(json.dumps(f).encode(), NOW) for f in (one, other))
    same = first._replace(event_id="") == second._replace(event_id="", content_hash=first.content_hash)
    assert (first.content_hash == second.content_hash) is same
