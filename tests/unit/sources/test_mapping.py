"""What a mapping makes of odd records, and what its document may say."""

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest

from c360_pipeline.core.contract.events import ERROR_CLASSES, Event, Rejected, load_object
from c360_pipeline.core.sources.decode import event_from
from c360_pipeline.core.sources.location import Location
from c360_pipeline.core.sources.mapping import Skipped, SourceMapping, resolved
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.sources.presets import compiled, presets

NOW = datetime(2026, 11, 29, tzinfo=UTC)
PLAIN = {"tenant": {"const": "acme"}, "user": "u", "time": "t", "action": "a"}
RECORD = {"u": "ann", "t": "2026-11-20T10:00:00Z", "a": "view"}
SEGMENT = {"extends": "segment@1", "tenant": {"const": "acme"}}
TRACK = {
    "type": "track", "event": "Product Viewed", "userId": "ann", "messageId": "m", "timestamp": "2026-11-20T10:00:00Z",
}  # fmt: skip


def event(document: dict[str, Any], **fields: Any) -> Event:
    mapping = SourceMapping({**PLAIN, **document}, "shop", 1)
    return event_from(load_object(json.dumps(RECORD | fields).encode()), mapping, NOW)


def of_segment(line: bytes | None = None, **fields: Any) -> Event:
    return event_from(load_object(line or json.dumps(TRACK | fields).encode()), compiled(SEGMENT, "shop", 1), NOW)


def outcome(line: bytes) -> Event | Rejected:
    try:
        return of_segment(line)
    except Rejected as rejected:
        assert rejected.error_class in ERROR_CLASSES  # noqa: PT017 - either outcome is right
        return rejected


@pytest.mark.parametrize(
    ("time", "sent"),
    [
        ("rfc3339", "2026-11-20T11:00:00+01:00"), ("rfc3339", 1795168800000), ("utc", "2026-11-20 10:00:00"),
        ("utc", "2026-11-20T10:00:00.000Z"), ("epoch_s", 1795168800), ("epoch_s", "1795168800.000"),
        ("epoch_ms", "1795168800000"), ("epoch_us", "1795168800000000"), ("epoch_ns", 1795168800000000000),
    ],
)  # fmt: skip
def test_an_instant_is_read_in_the_form_that_the_mapping_says(time: str, sent: object) -> None:
    assert event({"time": {"path": "t", "as": time}}, t=sent).ts == datetime(2026, 11, 20, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("sent", "hint"),
    [("2026-11-20 10:00", "say as: utc"), (1795168800, "as: epoch_s"), ("1795168800000000", "as: epoch_us")],
)
def test_a_wrong_form_is_named_with_the_right_one_and_the_path(sent: object, hint: str) -> None:
    with pytest.raises(Rejected) as caught:
        event({}, t=sent)
    assert hint in str(caught.value)
    assert "from t (shop v1)" in str(caught.value)


def test_all_faults_of_a_record_are_in_one_reason() -> None:
    with pytest.raises(Rejected) as caught:
        event({"user": ["u", "v"]}, u=None, t=None, a=[])
    said = ("nobody acted: none of u, v", "no time: none of t", "action holds a list")
    assert [part for part in said if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"traits": {"email": "\ud800@x"}, "type": "identify"}, {"properties": {"a": "\ud800"}},
        {"context": {"consent": {"categoryPreferences": {"Analytics": "\ud800"}}}}, {"timestamp": 10**310},
        {"userId": ["a"]}, {"properties": [1, 2]}, {"properties": '{"product_id": "p"}'}, {"messageId": {"a": 1}},
    ],
)  # fmt: skip
def test_no_value_of_a_record_takes_its_neighbours_along(fields: dict[str, Any]) -> None:
    assert isinstance(outcome(json.dumps(TRACK | fields).encode()), Event | Rejected)


@pytest.mark.parametrize("depth", [50, 400, 900])
@pytest.mark.parametrize("place", ["zzz", "properties", "traits"])
def test_no_depth_of_a_record_takes_its_neighbours_along(depth: int, place: str) -> None:
    nested = '{"a":' * depth + "1" + "}" * depth
    line = json.dumps(TRACK | {"messageId": None, "type": "identify"})[:-1] + f', "{place}": {nested}}}'
    found = outcome(line.encode())
    assert isinstance(found, Event) or found.error_class == "invalid_json"


def test_digits_of_ids_are_those_that_were_sent() -> None:
    ids = [of_segment(json.dumps(TRACK).replace('"ann"', text).encode()).user_id for text in
           ("9007199254740993.0", "9007199254740992.0", "12345678901234567890.0", "7")]  # fmt: skip
    assert ids == ["9007199254740993", "9007199254740992", "12345678901234567890", "7"]


def test_long_ids_that_differ_at_their_end_stay_two() -> None:
    one, other = (of_segment(properties={"order_id": "x" * 1_100 + end}).attrs["keys.order"] for end in "ab")
    assert one != other
    assert len(one) == 1_024


def test_an_amount_that_can_not_be_read_leaves_its_event_alone() -> None:
    products = [
        {"product_id": "a", "price": "$12.00", "quantity": 2}, {"product_id": " "}, {"product_id": "b", "price": 1e33}
    ]  # fmt: skip
    found = of_segment(event="Order Completed", receivedAt="soon", properties={"products": products})
    assert [(item["id"], item["price"]) for item in found.items or ()] == [("a", None), ("b", None)]
    assert found.received_at is None
    assert found.attrs["_left_out"] == "3"


def test_too_many_items_and_attributes_are_counted_and_the_rest_is_kept() -> None:
    products = [{"product_id": str(n)} for n in range(250)]
    found = of_segment(properties={"products": products, **{f"p{n}": n for n in range(100)}})
    assert len(found.items or ()) == 200
    assert len(found.attrs) <= 64
    assert int(found.attrs["_left_out"]) == 50 + 100 - (len(found.attrs) - 1)


@pytest.mark.parametrize(
    "said", ["Declined", "deny", "off", "opt-out", False, 0, "No", ["x"], {"analytics": "yes"}, "?"]
)
def test_consent_that_is_no_yes_withholds(said: object) -> None:
    document = {"consent": {"analytics": "c"}, "require": ["analytics"]}
    with pytest.raises(Skipped) as caught:
        event(document, c=said)
    assert caught.value.outcome == "withheld"
    assert event(document, c="Yes").consent == {"analytics": "granted"}
    assert event(document).consent is None  # nobody asked them


def test_what_is_laid_over_a_preset_keeps_the_rest_whatever_its_names_are() -> None:
    known = {name: preset.document for name, preset in presets().items()}
    own = {
        "attrs": {"path": "context.page.url", "ip": None},
        "action": {"map": {"join": "signup"}},
        "id": {"path": "x"},
    }
    merged = resolved({"extends": "rudderstack@1", **own}, known)
    assert merged["attrs"]["path"] == "context.page.url"
    assert "ip" not in merged["attrs"]
    assert "userAgent" in merged["attrs"]
    assert merged["action"]["map"]["join"] == "signup"
    assert merged["action"]["map"]["Product Viewed"] == "view"
    assert merged["id"] == {"path": "x"}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"action": {"path": "a", "regex": "x"}}, "at action: unknown: regex"), ({"user": 7}, "at user: 7 is no value"),
        ({"time": {"path": "t", "as": "epoch"}}, "at time.as"), ({"user": "a..b"}, "at user: 'a..b' is no path"),
        ({"items": {"each": "x"}}, "at items"), ({"require": ["ads"]}, "at require"), ({"tenantt": "x"}, "tenantt"),
        ({"skip": {"path": "a"}}, "at skip"), ({"skip": {"path": "a", "values": [["x"]]}}, "at skip.a"),
        ({"action": {"path": "a", "map": {"x": 1}}}, "at action.map"), ({"extends": "segment@9"}, "no preset"),
    ],
)  # fmt: skip
def test_a_document_that_is_no_mapping_says_where(document: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match="mapping") as caught:
        compiled({**PLAIN, **document}, "shop", 1)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("location", "uri", "tenant", "day"),
    [
        ("s3://bkt/{date}/{hour}/*", "s3://bkt/2026/11/20/07/stream-1", None, date(2026, 11, 20)),
        ("s3://bkt/*.gz", "s3://bkt/a.gz", None, None),
        ("s3://bkt/x/**/*.gz", "s3://bkt/x/a.gz", None, None),
        ("s3://bkt/x/**/*.gz", "s3://bkt/x/y/z/a.gz", None, None),
        ("s3://bkt/{tenant}/dt={date}/**", "s3://bkt/acme/dt=20261120/h/a", "acme", date(2026, 11, 20)),
        ("s3://bkt/s/{any}/{received:epoch_ms}/*", "s3://bkt/s/src/1795168800000/a", None, date(2026, 11, 20)),
        ("s3://bkt/a+b/(c)/*.json", "s3://bkt/a+b/(c)/x.json", None, None),
    ],
)  # fmt: skip
def test_a_path_says_whose_and_when(location: str, uri: str, tenant: str | None, day: date | None) -> None:
    found = Location(location).match(uri)
    assert found is not None
    assert (found.tenant_id, found.landing_date) == (tenant, day)
    assert Location(location).match(uri.replace("bkt", "other")) is None


@pytest.mark.parametrize(
    "location", ["bkt/x/*", "s3://bkt", "s3://bkt/{when}/*", "s3://bkt/{date}/{date}/*", "s3://B/x/*",
                 "s3://bkt/{received:epoch_ms}/{received:epoch_ms}/*"]
)  # fmt: skip
def test_what_is_no_location_is_refused(location: str) -> None:
    with pytest.raises(ConfigError, match="location"):
        Location(location)
