"""Files of a dozen producers tell one story; each preset finds the same events in them."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from c360_pipeline.core.catalog.tables import VISITOR_DECISIONS
from c360_pipeline.core.contract.events import Event, load_object
from c360_pipeline.core.contract.frames import event_frame
from c360_pipeline.core.sources.decode import event_from
from c360_pipeline.core.sources.mapping import Skipped
from c360_pipeline.core.sources.records import Framing
from c360_pipeline.core.visitors.counting import counted
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
    customers = counted(event_frame(events).unique("event_id").lazy(), VISITOR_DECISIONS.empty().lazy()).collect()
    theirs = customers.filter(customer_id="u-1001")
    # One customer with the four visits before the login, the order and two sessions (three by gaps of half an hour,
    # for the first visit was 45 minutes before the next), and one visitor of nobody.
    assert theirs.filter(pl.col("user_id").is_null()).height == 4
    assert theirs.filter(action="purchase").height == 1
    assert theirs["session_id"].n_unique() == (3 if preset == "segment@1" else 2)
    assert customers["customer_id"].null_count() == 1
    assert (theirs["visitor_id"].n_unique(), customers["visitor_id"].n_unique()) == (1, 2)


def example(name: str) -> dict[str, Any]:
    """A document of docs/mappings.md."""
    text = (Path(__file__).parents[3] / "docs" / "mappings.md").read_text(encoding="utf-8")
    section = text.split(f"### {name}\n")[1]
    document: dict[str, Any] = json.loads(section.split("```json\n")[1].split("```")[0])
    return document


def events_by(document: dict[str, Any], file: str, framing: Framing) -> tuple[list[Event], list[str]]:
    """The events of a file by an example, and the records that it leaves out."""
    mapping, events, left = compiled(document, "shop", 1), list[Event](), list[str]()
    for line in record_lines(FILES / file, framing):
        try:
            events.append(event_from(load_object(line), mapping, NOW))
        except Skipped as skipped:
            left.append(skipped.outcome)
    return events, left


ADOBE = ("exclude_hit", "hitid_high", "hitid_low", "hit_time_gmt", "post_visid_high", "post_visid_low", "post_evar1",
         "visit_num", "visit_start_time_gmt", "post_event_list", "post_product_list", "post_pagename",
         "post_currency")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "file", "framing"),
    [
        ("OTLP", "otlp.jsonl", Framing("lines", None, "resourceLogs[resource].scopeLogs[].logRecords[]")),
        ("Adobe", "adobe.tsv", Framing("tsv", ADOBE)),
    ],
)
def test_examples_of_the_documentation_tell_the_same_story(name: str, file: str, framing: Framing) -> None:
    events, left = events_by(example(name), file, framing)
    assert {told(event) for event in events} == STORY
    assert (len(events), len({event.event_id for event in events}), left) == (12, 11, [])
    assert {event.tenant_id for event in events} == {"acme"}
    assert len({event.anonymous_id for event in events}) == 2


def test_an_order_of_adobe_is_worth_what_was_paid() -> None:
    events, _ = events_by(example("Adobe"), "adobe.tsv", Framing("tsv", ADOBE))
    order = next(event for event in events if event.action == "purchase")
    assert [(item["id"], item["price"], item["currency"]) for item in order.items or ()] == [
        ("sku-1", 79.0, "EUR"), ("sku-2", 19.0, "EUR"), ("sku-3", 24.9, "EUR")
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "file"), [("Shopify", "shopify.jsonl"), ("Stripe", "stripe.jsonl")])
def test_examples_of_states_find_the_order_and_lose_no_record(name: str, file: str) -> None:
    events, left = events_by(example(name), file, Framing())
    assert len(events) + len(left) == len((FILES / file).read_bytes().splitlines())
    orders = [event for event in events if event.action == "purchase"]
    assert orders
    assert all(event.items for event in orders)
