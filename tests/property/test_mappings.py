"""Whatever a record holds, a mapping makes an event of it or says why not."""

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repetition import often

from c360_pipeline.core.contract.events import ERROR_CLASSES, Event, Rejected, load_object, parse_event
from c360_pipeline.core.landing.decode import Decoded, decode_records
from c360_pipeline.core.landing.lines import Delivery, LineBlock
from c360_pipeline.core.sources.columns import map_block
from c360_pipeline.core.sources.decode import event_from
from c360_pipeline.core.sources.location import Location
from c360_pipeline.core.sources.mapping import Skipped
from c360_pipeline.core.sources.records import Framing
from c360_pipeline.core.sources.source import Source
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.sources.presets import compiled, presets
from c360_pipeline.streaming.operators import decode, encode

FILES = Path(__file__).parents[1] / "fixtures" / "sources"
NOW = datetime(2026, 11, 29, tzinfo=UTC)
SAMPLES = {
    name: [json.loads(line) for line in (FILES / file).read_text().splitlines()]
    for name, file in {
        "segment@1": "segment.jsonl", "rudderstack@1": "rudderstack.jsonl", "posthog@1": "posthog.jsonl",
        "ga4@1": "ga4.jsonl", "snowplow-sdk@1": "snowplow-sdk.jsonl", "cloudevents@1": "cloudevents.jsonl",
        "mixpanel@1": "segment.jsonl", "amplitude@1": "posthog.jsonl",
    }.items()
}  # fmt: skip
MAPPINGS = {name: compiled({"extends": name, "tenant": {"const": "acme"}}, "shop", 1) for name in SAMPLES}
VARIED: list[dict[str, Any]] = [
    {},
    {"tenant": "context.library.name"},
    {"user": {"path": "userId", "lower": True}, "session": ["context.sessionId", "messageId"], "too_long": "dead"},
    {"user": {"join": ["type", {"path": "anonymousId", "strip": "a"}, "event"], "with": "/"}},
    {"anonymous": {"path": "traits.email", "hash": "sha256_lower"}},
    {"action": {"path": "type", "map": {"track": "view", "identify": "ident"}, "else": "drop"}},
    {"action": {"const": "seen"}, "only": {"type": ["track", "page"]}, "attrs_rest": ["properties", "context"]},
    {"skip": [{"path": "type", "values": ["identify"]}, {"path": "properties.price", "values": [19.9, True]}]},
    {"consent": {"analytics": "properties.currency", "other": {"path": "type", "map": {"page": "yes", "track": "No"}}},
     "require": "other"},
    {"traits": {"from": "traits", "only": ["email", "address.city"]}, "group": {"id": "type", "from": "properties"}},
    {"traits": {"from": "properties"}, "attrs_rest": "properties"},
    {"traits": {"from": "context"}, "group": {"id": "type", "from": "traits", "only": "plan"}, "attrs_rest": "context"},
    {"time": {"path": ["timestamp", "properties.price"], "as": "utc"}, "received": {"path": "sentAt", "as": "utc"}},
    *({"time": {"path": ["properties.at", "timestamp"], "as": said}, "received": {"path": "context.at", "as": said}}
      for said in ("epoch_s", "epoch_ms", "epoch_us", "epoch_ns", "rfc3339", "utc")),
    {"items": {"each": "properties.products", "item": {"id": {"path": "sku", "when": {"currency": "EUR"}}}}},
    {"items": {"each": "properties.products", "or": "context", "item": {"id": "a.b", "price": "c"},
               "record": {"price": "properties.price", "quantity": {"const": 1}}}},
    {"attrs": {"first": "properties.products[0].sku", "x": [{"path": "a", "lower": True}, {"const": True}],
               "email": {"path": ["traits.email", "userId"], "hash": "sha256_lower"}}},
    {"keys": {"k": [{"join": ["userId", "messageId"]}, "anonymousId"]}, "attrs_rest": "traits"},
]  # fmt: skip
"""What a mapping can say over the preset's, so that each operation of the scanner has its turn."""
VARIED_SOURCES = [
    Source("shop", Location("s3://bucket/x/*"), Framing(), compiled(
        {"extends": "segment@1", "tenant": {"const": "acme"}, **said}, "shop", 1))
    for said in VARIED
]  # fmt: skip
SOURCES = {name: Source("shop", Location("s3://bucket/x/*"), Framing(), mapping) for name, mapping in MAPPINGS.items()}
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
    | st.sampled_from(["", " ", "\ud800", "x" * 2_000, "2026-11-20 10:00:00", "1763632800", 1e300, "[1,", '{"a":1}'])
    | st.sampled_from([1763632800, 1763632800.125, "1763632800123", 1763632800123456, "1763632800123456789", 19.9,
                       "19.90", -0.0, 0.00001, 10**16, 123456789012345.5, "EUR", "track", "page", "Yes", "granted",
                       "2026-11-20T10:00:00.5+01:00", "E\u0301", "\u0301x", "É", "a\\b", '"', "\x7f", "\x01"])
)  # fmt: skip
NAMES = [
    "same_as",
    "group",
    "id",
    "group.id",
    "ip",
    "keys.order",
    "traits",
    "email",
    "a.b",
    "x[0]",
    "products",
    "",
    "é",
]
"""Of members that a mapping could take for its own."""
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a record with each of its keys."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from places(inner)


often_settings = settings(max_examples=often(100, 3_000))


@st.composite
def mutated(draw: st.DrawFn, names: tuple[str, ...] = tuple(sorted(SAMPLES))) -> tuple[str, bytes]:
    name = draw(st.sampled_from(names))
    record = json.loads(json.dumps(draw(st.sampled_from(SAMPLES[name]))))
    for _ in range(draw(st.integers(0, 4))):
        spots = list(places(record))
        container, key = spots[draw(st.integers(0, len(spots) - 1))]
        if isinstance(container, dict) and draw(st.booleans()):
            container[draw(st.sampled_from(NAMES))] = draw(VALUES)
        else:
            container[key] = draw(VALUES)
    return name, json.dumps(record).encode()


def outcome(line: bytes, name: str) -> Event | Rejected | Skipped:
    try:
        return event_from(load_object(line), MAPPINGS[name], NOW)
    except (Rejected, Skipped) as reason:
        return reason


@given(mutated())
def test_any_record_is_an_event_or_has_a_reason(drawn: tuple[str, bytes]) -> None:
    name, line = drawn
    match found := outcome(line, name):
        case Skipped():
            assert found.outcome in ("skipped", "withheld")
        case Rejected():
            assert found.error_class in ERROR_CLASSES
            assert str(found).encode()
        case Event():
            assert found.user_id or found.anonymous_id
            assert found == outcome(line, name) == decode(encode(found))
            assert json.dumps(found.attrs).encode()


@given(st.lists(mutated().map(lambda drawn: drawn[1]), max_size=8))
def test_each_record_of_a_block_is_counted_once(lines: list[bytes]) -> None:
    source = Source("shop", Location("s3://bucket/x/*"), Framing(), MAPPINGS["segment@1"])
    block = LineBlock(Delivery("s3://bucket/x/a", "e"), 1, 0, b"".join(line + b"\n" for line in lines))
    decoded = decode_records(block, NOW, source)
    outcomes = decoded.events.height + decoded.rejected.height + decoded.left_out.total()
    assert outcomes == decoded.lines.total() == len(lines)
    numbers = sorted([*decoded.events["source_line"], *decoded.rejected["source_line"]])
    assert numbers == sorted(set(numbers))


def without_places(decoded: Decoded) -> tuple[Any, ...]:
    events = decoded.events.sort("source_line")
    return events.to_dicts(), decoded.rejected.to_dicts(), decoded.left_out, decoded.lines


def by_reference(block: LineBlock, source: Source) -> Decoded:
    slow = Source(source.name, source.location, source.framing, source.mapping)
    slow.__dict__["program"] = None
    return decode_records(block, NOW, slow)


def one_contract(lines: list[bytes], source: Source) -> None:
    block = LineBlock(Delivery("s3://bucket/x/a", "e"), 1, 0, b"".join(line + b"\n" for line in lines))
    found = decode_records(block, NOW, source)
    assert without_places(found) == without_places(by_reference(block, source))


def damaged(line: bytes, at: int, by: bytes) -> bytes:
    at %= len(line)
    return (line[:at] + by + line[at + 1 :]).replace(b"\n", b" ")


DAMAGE = st.sampled_from([b"", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\xff", b"\xc3", b"0", b" ", b"\x00"])


@often_settings
@given(st.sampled_from(sorted(SOURCES)), st.lists(mutated(), min_size=1, max_size=8))
def test_the_scanner_and_the_reference_are_one_mapping(name: str, drawn: list[tuple[str, bytes]]) -> None:
    one_contract([line for other, line in drawn if other == name] or [drawn[0][1]], SOURCES[name])


@often_settings
@given(st.sampled_from(range(len(VARIED))), st.lists(mutated(("segment@1",)), min_size=1, max_size=8))
def test_every_mapping_is_one_to_the_scanner_and_the_reference(number: int, drawn: list[tuple[str, bytes]]) -> None:
    one_contract([line for _, line in drawn], VARIED_SOURCES[number])


@often_settings
@given(mutated(), st.lists(st.tuples(st.integers(0, 5_000), DAMAGE), min_size=1, max_size=6))
def test_damaged_records_are_one_to_both(drawn: tuple[str, bytes], damage: list[tuple[int, bytes]]) -> None:
    name, line = drawn
    one_contract([line, *(damaged(line, at, by) for at, by in damage)], SOURCES[name])


PLAIN: dict[str, Any] = {"tenant": {"const": "acme"}, "user": "userId", "time": "t", "action": "type", "id": "id"}
RECORD: dict[str, Any] = {"userId": "u", "t": "2026-11-20T10:00:00Z", "type": "track", "id": "m"}
SEGMENT: dict[str, Any] = {"extends": "segment@1", "tenant": {"const": "acme"}}
OF_SEGMENT = {"type": "track", "event": "Boo", "userId": "u", "messageId": "m", "timestamp": "2026-11-20T10:00:00Z"}
DIFFERENCES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (PLAIN | {"attrs": {f"a{n}": {"const": "x"} for n in range(700)}}, RECORD),
    (SEGMENT, OF_SEGMENT | {"properties": {"same_as": "x", "group": {"id": "g", "type": "t"}}}),
    (SEGMENT, OF_SEGMENT | {"type": "alias", "previousId": "p", "properties": {"same_as": "x"}}),
    (PLAIN | {"attrs_rest": "context", "traits": {"from": "context.a.traits"}},
     RECORD | {"context": {"a": {"traits": {"email": "x@y"}, "z": 1}, "b": {"c": {"d": 2}}}}),
    (PLAIN | {"items": {"each": "p", "or": ".", "item": {"id": "sku"}}}, RECORD | {"sku": "s"}),
    (PLAIN | {"attrs": {"x": "p[99999999999999999999999]", "y": "\ud800"}}, RECORD | {"p": [1]}),
    (PLAIN | {"user": {"path": "userId", "strip": "user:"}}, RECORD | {"userId": "user: "}),
    (PLAIN | {"id": {"path": "id", "strip": "x"}}, RECORD | {"id": "x \u2003"}),
    (PLAIN | {"items": {"each": "p", "item": {"id": {"path": "sku", "strip": "x"}}}}, RECORD | {"p": [{"sku": "x "}]}),
    (PLAIN | {"traits": {"from": "traits", "only": None}}, RECORD | {"traits": {"email": "x@y"}}),
    (PLAIN | {"consent": {f"c{n}": {"const": "yes"} for n in range(70)}}, RECORD),
    (PLAIN | {"items": {"each": "p", "or": "q", "item": {"id": "[0]"}}}, RECORD | {"q": {"0": "a"}}),
    (PLAIN | {"attrs": {"x": "p[00].s"}, "attrs_rest": "p[0]"}, RECORD | {"p": [{"s": "a", "t": "b"}]}),
    (PLAIN | {"user": {"join": [{"const": "a"}, "userId"]}}, RECORD | {"userId": "x" * 1024}),
]  # fmt: skip
"""Mappings with records of which the scanner once made something else than the reference."""


@pytest.mark.parametrize("number", range(len(DIFFERENCES)))
def test_what_once_differed_is_one_to_both(number: int) -> None:
    document, record = DIFFERENCES[number]
    source = Source("shop", Location("s3://bucket/x/*"), Framing(), compiled(document, "shop", 1))
    one_contract([json.dumps(record).encode()] * 2, source)


@pytest.mark.parametrize("tenant", ["Cafe\u0301", " ", "acme", "é", "x" * 201, "__HIVE_DEFAULT_PARTITION__"])
def test_a_tenant_of_the_path_is_one_to_both(tenant: str) -> None:
    mapping = compiled({"extends": "segment@1"}, "shop", 1, tenant_is_given=True)
    source = Source("shop", Location("s3://bucket/{tenant}/*"), Framing(), mapping)
    block = LineBlock(Delivery(f"s3://bucket/{tenant}/a", "e"), 1, 0, json.dumps(OF_SEGMENT).encode() + b"\n")
    assert without_places(decode_records(block, NOW, source)) == without_places(by_reference(block, source))


@pytest.mark.parametrize("target", ["id", "received"])
def test_a_list_of_no_values_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=target):
        compiled(PLAIN | {target: []}, "shop", 1)


def test_what_a_mapping_can_say_is_one_to_both_over_every_sample() -> None:
    lines = [json.dumps(record).encode() for record in SAMPLES["segment@1"]]
    for source in VARIED_SOURCES:
        one_contract(lines, source)


def test_the_scanner_takes_what_is_plainly_good() -> None:
    """Of the presets that are JSON by nature every sample; so the properties above compare what they should."""
    for name in ("segment@1", "rudderstack@1", "posthog@1", "snowplow-sdk@1", "cloudevents@1"):
        program, lines = SOURCES[name].program, [json.dumps(record).encode() for record in SAMPLES[name]]
        assert program is not None
        content = b"".join(line + b"\n" for line in lines)
        starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
        mapped = map_block(content, starts, program, ("shop", 1), NOW, None)
        assert mapped.left.tolist() == [], name
    compiled_ones = sum(source.program is not None for source in VARIED_SOURCES)
    assert compiled_ones >= len(VARIED) - 4


@given(mutated())
def test_an_event_of_a_source_written_in_our_own_form_is_the_same_event(drawn: tuple[str, bytes]) -> None:
    """What is replayed from the archive lands as what it was."""
    name, line = drawn
    event = outcome(line, name)
    if not isinstance(event, Event):
        return
    names = {"tenant_id": "tenantId", "user_id": "userId", "session_id": "sessionId", "item_id": "itemId",
             "event_id": "eventId", "anonymous_id": "anonymousId", "received_at": "receivedAt",
             "mapping_version": "mappingVersion", "source": "mappingSource"}  # fmt: skip
    fields = {names.get(key, key): value for key, value in event._asdict().items() if key != "content_hash"}
    fields |= {key: value.isoformat() for key, value in fields.items() if isinstance(value, datetime)}
    again = parse_event(json.dumps(fields).encode(), NOW)
    assert again == event


@given(st.dictionaries(st.sampled_from(["tenant", "user", "time", "action", "items", "session", "attrs", "consent",
                                        "traits", "skip", "id", "keys", "group", "x"]), VALUES))  # fmt: skip
def test_any_document_is_a_mapping_or_says_where_it_is_none(document: dict[str, Any]) -> None:
    try:
        mapping = compiled({"extends": "segment@1", "tenant": {"const": "acme"}, **document}, "shop", 1)
    except ConfigError as error:
        said = str(error)
    else:
        said = "mapping, at"
        for record in SAMPLES["segment@1"][:3]:
            with suppress(Rejected, Skipped):
                assert isinstance(event_from(record, mapping, NOW), Event)
    assert "mapping, at" in said


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_compiles_and_says_what_it_is_known_by(name: str) -> None:
    preset = presets()[name]
    assert preset.title
    assert preset.known_by
    assert compiled({"extends": name, "tenant": {"const": "acme"}}, "shop", 1).paths
