"""Files of a dozen producers tell one story; each preset finds the same events in them."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from c360_pipeline.core.contract.events import Event, load_object
from c360_pipeline.core.sources.decode import event_from
from c360_pipeline.stages.sources.presets import compiled, presets
from c360_pipeline.stages.sources.reading import record_lines

FILES = Path(__file__).parents[2] / "fixtures" / "sources"
NOW = datetime(2026, 11, 29, tzinfo=UTC)
STORY = {
    (None, "10:00:00", "page_view", ()),
    (None, "10:02:00", "view", ("sku-1",)),
    (None, "10:05:00", "add_to_cart", ("sku-1",)),
    ("u-1001", "10:09:00", "identify", ()),
    ("u-1001", "10:10:00", "group", ()),
    ("u-1001", "10:12:00", "view", ("sku-2",)),
    ("u-1001", "10:20:00", "purchase", ("sku-1", "sku-2", "sku-3")),
    ("u-1001", "13:20:00", "view", ("sku-3",)),
    (None, "09:15:00", "view", ("sku-2",)),
    (None, "10:30:00", "view", ("sku-1",)),
}


def events_in(file: str, preset: str, **own: Any) -> Iterator[Event]:
    mapping = compiled({"extends": preset, "tenant": {"const": "acme"}, **own}, "shop", 1)
    for line in record_lines(FILES / file, presets()[preset].framing):
        yield event_from(load_object(line), mapping, NOW)


def told(event: Event) -> tuple[str | None, str, str, tuple[str, ...]]:
    return (event.user_id, f"{event.ts:%H:%M:%S}", event.action, tuple(item["id"] for item in event.items or ()))


@pytest.mark.parametrize(
    ("file", "preset", "records", "distinct"),
    [
        ("segment.jsonl", "segment@1", 12, 11), ("segment.gz", "segment@1", 12, 11),
        ("firehose.jsonl", "segment@1", 12, 11), ("rudderstack.jsonl", "rudderstack@1", 12, 11),
        ("posthog.jsonl", "posthog@1", 11, 10), ("posthog.parquet", "posthog-parquet@1", 11, 10),
        ("ga4.jsonl", "ga4@1", 11, 10), ("snowplow-enriched.tsv", "snowplow-tsv@1", 11, 10),
        ("snowplow-sdk.jsonl", "snowplow-sdk@1", 11, 10),
    ],
)  # fmt: skip
def test_every_source_tells_the_same_story(file: str, preset: str, records: int, distinct: int) -> None:
    events = list(events_in(file, preset))
    assert {told(event) for event in events} == STORY
    ids = Counter(event.event_id for event in events)
    assert (len(events), len(ids)) == (records, distinct)
    # The order that was sent twice is one event, by what tells it from others.
    assert len({event.content_hash for event in events}) == distinct
    assert all(event.tenant_id == "acme" and event.source == "shop" for event in events)
    (order,) = {event.event_id: event for event in events if event.action == "purchase"}.values()
    assert [(one["quantity"], one["price"]) for one in order.items or ()] == [(1.0, 79.0), (2.0, 9.5), (1.0, 24.9)]
    assert order.attrs["keys.order"] == "o-555"
    visitors = {event.anonymous_id for event in events if event.anonymous_id}
    assert len(visitors) == 2
    assert all(event.anonymous_id for event in events)
    sessions = {event.session_id for event in events if event.session_id}
    assert len(sessions) == (0 if preset == "segment@1" else 3)
