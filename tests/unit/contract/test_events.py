import ast
import inspect
import json
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest

from c360_pipeline.core.contract import events as events_module
from c360_pipeline.core.contract.events import ERROR_CLASSES, Event, Rejected, parse_event
from c360_pipeline.stores.cassandra import user_events as user_events_module

NOW = datetime(2025, 11, 3, 12, tzinfo=UTC)
GOOD = {
    "tenantId": "acme", "userId": "u1", "sessionId": "s1", "ts": "2025-11-02T10:00:00Z", "action": "view",
    "itemId": "sku-1", "attrs": {"ref": "email"},
}  # fmt: skip


def parse(**changes: Any) -> Event:
    fields = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    return parse_event(json.dumps(fields).encode(), NOW)


def rejected(line: bytes) -> Rejected:
    with pytest.raises(Rejected) as caught:
        parse_event(line, NOW)
    return caught.value


def test_a_good_line_becomes_an_event() -> None:
    event = parse()
    assert (event.tenant_id, event.user_id, event.session_id, event.action) == ("acme", "u1", "s1", "view")
    assert event.ts == datetime(2025, 11, 2, 10, tzinfo=UTC)
    assert event.item_id == "sku-1"
    assert event.attrs == {"ref": "email"}
    assert event.event_id == event.content_hash


@pytest.mark.parametrize(
    "ts",
    [
        "2025-11-02T11:00:00+01:00", "2025-11-02t10:00:00z", "2025-11-02 10:00:00.000000000Z", 1762077600000,
        1762077600000.0, "2025-11-02T09:59:60Z",
    ],
)  # fmt: skip
def test_spellings_of_one_instant_are_one_event(ts: object) -> None:
    assert parse(ts=ts) == parse()


def test_order_of_names_unicode_form_and_number_form_do_not_matter() -> None:
    one = parse_event(json.dumps(GOOD | {"attrs": {"a": "é", "b": 1.0}}).encode(), NOW)
    other = dict(reversed((GOOD | {"attrs": {"b": 1, "a": "e\u0301"}}).items()))
    assert parse_event(json.dumps(other).encode(), NOW) == one


def test_unknown_fields_are_kept() -> None:
    assert parse(colour={"hue": 3}).attrs == {"ref": "email", "_extra.colour": '{"hue":3}'}


def test_the_producers_id_wins() -> None:
    event = parse(eventId="e-7")
    assert event.event_id == "e-7"
    assert event.content_hash == parse().content_hash


@pytest.mark.parametrize(
    ("changes", "error_class", "says"),
    [
        ({"userId": ...}, "missing_field", "`userId`"),
        ({"userId": None}, "missing_field", "`userId`"),
        ({"ts": ...}, "missing_field", "`ts`"),
        ({"sessionId": True}, "wrong_type", "`sessionId` holds a boolean"),
        ({"attrs": ["a"]}, "wrong_type", "`attrs` holds an array"),
        ({"action": " "}, "empty_value", "`action`"),
        ({"eventId": ""}, "empty_value", "`eventId`"),
        ({"userId": "x" * 1025}, "too_large", "1,025 characters"),
        ({"attrs": {"a" * 1025: "x"}}, "too_large", "attrs"),
        ({"ts": "yesterday"}, "bad_timestamp", "'yesterday' is not RFC 3339"),
        ({"ts": "2025-11-02T10:00:00"}, "bad_timestamp", "RFC 3339"),
        ({"ts": "2025-02-30T10:00:00Z"}, "bad_timestamp", "exists"),
        ({"ts": "2025-11-02T10:00:00+24:00"}, "bad_timestamp", "exists"),
        ({"ts": True}, "bad_timestamp", "True"),
        ({"ts": 1762077600}, "timestamp_out_of_range", "epoch seconds"),
        ({"ts": "1999-12-31T23:59:59Z"}, "timestamp_out_of_range", "1999"),
        ({"ts": 10**30}, "timestamp_out_of_range", "calendar"),
        ({"attrs": {f"a{n}": "1" for n in range(65)}}, "too_many_attrs", "65"),
        ({"items": {"id": "a"}}, "wrong_type", "`items` holds an object"),
        ({"items": [{"sku": "a"}]}, "missing_field", "`items[0].id`"),
        ({"items": [{"id": "a"}, {"id": "b", "price": "free"}]}, "wrong_type", "`items[1].price` holds 'free'"),
        ({"items": [{"id": "a", "quantity": "1e999"}]}, "wrong_type", "`items[0].quantity` holds '1e999'"),
        ({"traits": ["a"]}, "wrong_type", "`traits` holds an array"),
        ({"receivedAt": "now"}, "bad_timestamp", "`receivedAt`"),
        ({"mappingVersion": 1.5}, "wrong_type", "`mappingVersion` holds 1.5"),
        ({"userId": "a\ud800"}, "invalid_utf8", "surrogate"),
    ],
)
def test_a_broken_field_is_named(changes: dict[str, Any], error_class: str, says: str) -> None:
    fields = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    reject = rejected(json.dumps(fields).encode())
    assert reject.error_class == error_class
    assert says in reject.reason
    assert reject.tenant_id == "acme"


@pytest.mark.parametrize(
    ("line", "error_class"),
    [
        (b"\xff\xfe", "invalid_utf8"),
        (b'{"tenantId": "acme"', "invalid_json"),
        (b'{"ts": NaN}', "invalid_json"),
        (b'{"a": 1, "a": 2}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"tenantId": "\\ud800"}', "invalid_utf8"),
        (json.dumps(GOOD).encode()[:-1] + b', "\\ud800": 1}', "invalid_utf8"),
        (json.dumps(GOOD | {"attrs": {"\ud800": {}}}).encode(), "invalid_utf8"),
        (json.dumps(GOOD | {"tenantId": "é" * 100}).encode(), "too_large"),
        (json.dumps(GOOD | {"tenantId": "__HIVE_DEFAULT_PARTITION__"}).encode(), "empty_value"),
        (json.dumps(GOOD | {"eventId": "  "}).encode(), "empty_value"),
        (b"[1]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'"' + b"x" * 1024 * 1024 + b'"', "too_large"),
    ],
)
def test_a_line_that_is_no_object_is_rejected(line: bytes, error_class: str) -> None:
    reject = rejected(line)
    assert reject.error_class == error_class
    assert f"{reject.reason} {reject.tenant_id}".encode()


def test_any_depth_is_an_event_or_a_reject() -> None:
    for depth in range(900, 1100, 3):
        line = json.dumps(GOOD).encode()[:-1] + b', "x": ' + b"[" * depth + b"]" * depth + b"}"
        assert rejected(line).error_class in ("invalid_json", "too_large")


def test_the_future_is_one_day_long() -> None:
    assert parse(ts=(NOW + timedelta(days=1)).isoformat()).ts == NOW + timedelta(days=1)
    late = json.dumps(GOOD | {"ts": (NOW + timedelta(days=1, microseconds=1)).isoformat()})
    assert rejected(late.encode()).error_class == "timestamp_out_of_range"


def test_the_classes_of_errors_are_those_of_the_contract() -> None:
    assert len(set(ERROR_CLASSES)) == 12


@pytest.mark.parametrize(("module", "name"), [(events_module, "Event"), (user_events_module, "UserEvent")])
def test_what_a_type_checker_knows_of_an_event_is_what_is_declared(module: ModuleType, name: str) -> None:
    tree = ast.parse(inspect.getsource(module))
    (typed,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    names = [
        part.target.id for part in typed.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    ]
    assert names == list(getattr(module, name)._fields)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("8389765929445198309.0", "8389765929445198309"), ("8389765929445198309", "8389765929445198309"),
        ("1e400", "1e400"), ("1E+400", "1e+400"), ("0.1234567890123456789", "0.1234567890123456789"), ("1.50", "1.5"),
        ("1e23", "100000000000000000000000"), ("-0.0", "0"), ("1e99999999999999999999", "1e99999999999999999999"),
        ("123456789.123456789123456789", "123456789.123456789123456789"), ("5e-324", "5e-324"), ("1e-400", "1e-400"),
    ],
)  # fmt: skip
def test_numbers_keep_their_digits(sent: str, kept: str) -> None:
    line = json.dumps({**GOOD, "attrs": {"orderId": 0}, "extra": {"a": [0]}}).replace(": 0}", f": {sent}}}")
    line = line.replace("[0]", f"[{sent}]")
    event = parse_event(line.encode(), NOW)
    assert event.attrs["orderId"] == kept
    nested = json.loads(event.attrs["_extra.extra"], parse_float=str, parse_int=str)["a"][0]
    assert nested in (kept, sent, repr(float(sent)))


def test_events_that_differ_in_the_last_digit_are_two() -> None:
    lines = [
        json.dumps(GOOD).replace('"email"', number) for number in ("0.1234567890123456781", "0.1234567890123456782")
    ]
    assert len({parse_event(line.encode(), NOW).event_id for line in lines}) == 2


@pytest.mark.parametrize(
    "ts",
    [
        "1762077600000", "2025-11-02 10:00:00 UTC", "2025-11-02T10:00:00+0000", "2025-11-02 11:00:00+01",
        " 2025-11-02T10:00Z ",
        "2025-11-02T10:00:00,000Z", "2025-11-02T11:00:00+01:00[Europe/Berlin]", "2025-11-02T10:00:00-00:00",
    ],
)  # fmt: skip
def test_forms_that_engines_write_are_times(ts: str) -> None:
    assert parse(ts=ts) == parse()


@pytest.mark.parametrize(
    ("ts", "hint"),
    [
        (1762077600, "epoch seconds, send milliseconds"), (1762077600000000, "epoch microseconds, send milliseconds"),
        (1762077600000000000, "epoch nanoseconds, send milliseconds"), ("2025-11-02T10:00:00", "it has no time zone"),
        ("2025-11-02 10:00", "it has no time zone"),
    ],
)  # fmt: skip
def test_a_time_that_is_none_says_what_it_looks_like(ts: object, hint: str) -> None:
    assert hint in str(rejected(json.dumps({**GOOD, "ts": ts}).encode()))


def test_all_faults_of_a_line_are_named_at_once() -> None:
    fault = rejected(json.dumps({"tenantId": "acme", "sessionId": [], "ts": "soon", "attrs": {"a" * 1025: 1}}).encode())
    assert fault.error_class == "missing_field"
    said = (
        "`userId` or `anonymousId` is required", "`sessionId` holds an array", "`action` is required", "`ts`",
        "`attrs` has 1,025 characters",
    )  # fmt: skip
    assert [part for part in said if part not in str(fault)] == []
    assert str(fault).index("`sessionId`") < str(fault).index("`ts`") < str(fault).index("`attrs`")


def test_a_visitor_without_a_login_and_without_a_session_is_somebody() -> None:
    event = parse(userId=..., sessionId=..., anonymousId="browser-1")
    assert (event.user_id, event.session_id, event.anonymous_id) == (None, None, "browser-1")
    assert event.event_id != parse(userId="browser-1", sessionId=...).event_id


def test_numbers_are_ids_by_their_text() -> None:
    assert parse(userId=1001, sessionId=1763632800, itemId=7.0).user_id == parse(userId="1001").user_id == "1001"
    assert parse(itemId=7.0).item_id == "7"
    # More digits than a float holds.
    line = json.dumps(GOOD).replace('"u1"', "9007199254740993.0")
    assert parse_event(line.encode(), NOW).user_id == "9007199254740993"


def test_an_event_may_be_about_several_items() -> None:
    items = [{"id": 5, "quantity": "2", "price": 9.5, "currency": "EUR", "name": "Cable"}, {"id": "b"}]
    event = parse(items=items)
    assert event.items == [
        {"id": "5", "quantity": 2.0, "price": 9.5, "currency": "EUR"},
        {"id": "b", "quantity": None, "price": None, "currency": None},
    ]
    assert event.event_id not in {parse().event_id, parse(items=items[:1]).event_id}
    assert parse(items=[]) == parse()


def test_objects_in_attributes_are_taken_apart_by_path() -> None:
    attrs = parse(
        attrs={"page": {"path": "/x", "query": {"a": 1, "b": None}}, "tags": ["a", {"b": 1}], "none": {}}
    ).attrs
    assert attrs == {"page.path": "/x", "page.query.a": "1", "tags": '["a",{"b":1}]', "none": "{}"}
    assert "twice" in rejected(json.dumps(GOOD | {"attrs": {"a.b": 1, "a": {"b": 2}}}).encode()).reason


def test_a_text_that_is_too_long_is_cut_and_stays_another_than_its_like() -> None:
    one, other = (parse(attrs={"url": "x" * 5_000 + end}).attrs["url"] for end in "ab")
    assert len(one) == len(other) == 1_024
    assert one != other
    assert one.startswith("x" * 1_000)
    assert one[-17] == "…"
    assert len(parse(traits={"bio": "é" * 2_000}).traits["bio"]) == 1_024  # type: ignore[index]


def test_events_of_a_source_are_told_apart_by_id_visitor_and_action() -> None:
    one = parse(mappingSource="shop", mappingVersion=3, eventId="m1", receivedAt="2025-11-02T10:00:05Z")
    assert one.received_at == datetime(2025, 11, 2, 10, 0, 5, tzinfo=UTC)
    retry = parse(
        mappingSource="shop", mappingVersion=4, eventId="m1", ts="2025-11-02T10:00:00.4Z", attrs={"more": "1"}
    )
    assert one.content_hash == retry.content_hash
    for change in ({"action": "purchase"}, {"userId": "u2"}, {"anonymousId": "a"}, {"eventId": "m2"}):
        assert (
            parse(**{"mappingSource": "shop", "mappingVersion": 3, "eventId": "m1", **change}).content_hash
            != one.content_hash
        )
    assert parse(eventId="m1").content_hash != parse(eventId="m1", ts="2025-11-02T10:00:01Z").content_hash


def test_who_only_names_a_source_has_events_as_any_others() -> None:
    """`source` is a usual name of a producer's own."""
    ids = {parse(source="web", mappingSource="web", itemId=item).event_id for item in ("a", "b")}
    assert len(ids) == 2
    assert parse(source="web").attrs["_extra.source"] == "web"


@pytest.mark.parametrize(
    "line",
    [
        b'{"tenantId":"a","userId":"u","action":"view","ts":"2025-11-02T10:00:00Z","traits":{"a":"\\ud800"}}',
        b'{"tenantId":"a","userId":"u","action":"view","ts":' + b"1" * 400 + b"}",
        b'{"tenantId":"a","userId":"u","action":"view","ts":1e400}',
        b'{"tenantId":"a","userId":"u","action":"view","ts":"2025-11-02T10:00:00Z","items":[{"id":"p","price":1e33}]}',
    ],
)
def test_a_value_beyond_all_bounds_is_a_reject(line: bytes) -> None:
    assert rejected(line).error_class in ERROR_CLASSES


def test_ids_of_events_without_what_came_later_are_what_they_were() -> None:
    """As of the first version of the contract; these are in archives."""
    assert parse().event_id == "25f6f857dc03f3f33a250f769115597a0d813562e990d59b364faa151a492527"
