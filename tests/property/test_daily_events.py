"""Laws of days: what is kept by the days that changed is what a plain reading of all events says."""

import tempfile
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from repetition import often

from c360_pipeline.core.catalog.tables import DAILY_EVENTS, EVENTS
from c360_pipeline.stages.monitoring.daily_events import publish_daily_events
from c360_pipeline.stores.delta.lake import Lake

START = datetime(2026, 3, 2, tzinfo=UTC)
ITEM = st.fixed_dictionaries(
    {"id": st.just("p"), "quantity": st.sampled_from([None, 2.0]), "price": st.sampled_from([None, 0.1, 7.5]),
     "currency": st.sampled_from([None, "EUR", "USD"])}
)  # fmt: skip
EVENT = st.fixed_dictionaries(
    {
        "tenant_id": st.sampled_from(["t", "u/1"]), "hours": st.integers(0, 71),
        "source": st.sampled_from([None, "shop"]), "action": st.sampled_from(["view", "purchase"]),
        "items": st.none() | st.lists(ITEM, max_size=3),
    }
)  # fmt: skip
STEP = st.tuples(st.lists(EVENT, max_size=6), st.sets(st.integers(0, 12), max_size=4))
Row = dict[str, Any]


def archived(events: dict[str, Row]) -> pl.DataFrame:
    rows = [
        {**event, "event_id": name, "ts": START + timedelta(hours=event["hours"]), "landed_at": START,
         "event_date": (START + timedelta(hours=event["hours"])).date()}
        for name, event in events.items()
    ]  # fmt: skip
    return pl.DataFrame([{k: v for k, v in row.items() if k != "hours"} for row in rows], schema=EVENTS.empty().schema)


def plainly(events: list[Row]) -> dict[tuple[Any, ...], tuple[int, list[int], float | None]]:
    found: dict[tuple[Any, ...], tuple[int, list[int], list[float]]] = defaultdict(lambda: (0, [0] * 24, []))
    for event in events:
        items = (event["items"] or []) if event["action"] == "purchase" else []
        paid = [(item["quantity"] or 1) * item["price"] for item in items if item["price"] is not None]
        currency = next((item["currency"] for item in items if item["currency"]), "") if paid else ""
        day = (START + timedelta(hours=event["hours"])).date()
        key = (event["tenant_id"], day, event["source"] or "", event["action"], currency)
        count, hours, amounts = found[key]
        hours[event["hours"] % 24] += 1
        found[key] = (count + 1, hours, [*amounts, *([sum(paid)] if paid else [])])
    return {key: (n, hours, round(sum(paid), 6) if paid else None) for key, (n, hours, paid) in found.items()}


@settings(max_examples=often(6, 300), deadline=None)
@given(st.lists(STEP, min_size=1, max_size=4))
def test_days_are_counted_by_what_changed(steps: list[tuple[list[Row], set[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(f"{folder}/lake", {}, Path(folder) / "cache")
        lake.commits.append(EVENTS, EVENTS.empty())
        there: dict[str, Row] = {}
        count = 0
        for came, gone in steps:
            new = {f"e{count + number:02}": event for number, event in enumerate(came)}
            leaving = [f"e{number:02}" for number in gone if f"e{number:02}" in there]
            count += len(came)
            keys = pl.DataFrame(
                [(there[name]["tenant_id"], name) for name in leaving],
                schema={"tenant_id": pl.String, "event_id": pl.String}, orient="row",
            )  # fmt: skip
            there = {name: event for name, event in {**there, **new}.items() if name not in leaving}
            lake.commits.merge(EVENTS, archived(new), keys)
            publish_daily_events(lake)
            assert publish_daily_events(lake).count == 0
            rows = lake.read(DAILY_EVENTS).iter_rows()
            held = {row[:5]: (row[5], row[6], None if row[7] is None else round(row[7], 6)) for row in rows}
            assert held == plainly(list(there.values()))
