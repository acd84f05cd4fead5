"""Whatever a record holds, a mapping makes an event of it or says why not."""

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from c360_pipeline.core.contract.events import ERROR_CLASSES, Event, Rejected, load_object, parse_event
from c360_pipeline.core.landing.decode import decode_records
from c360_pipeline.core.landing.lines import Delivery, LineBlock
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
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
    | st.sampled_from(["", " ", "\ud800", "x" * 2_000, "2026-11-20 10:00:00", "1763632800", 1e300, "[1,", '{"a":1}'])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a record with each of its keys."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from places(inner)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(SAMPLES)))
    record = json.loads(json.dumps(draw(st.sampled_from(SAMPLES[name]))))
    for _ in range(draw(st.integers(0, 4))):
        spots = list(places(record))
        container, key = spots[draw(st.integers(0, len(spots) - 1))]
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
