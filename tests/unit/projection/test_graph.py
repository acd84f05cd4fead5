from datetime import UTC, datetime, timedelta

import polars as pl

from c360_pipeline.core.catalog.tables import CATALOG, EVENTS
from c360_pipeline.core.projection import graph as model

START = datetime(2025, 11, 1, tzinfo=UTC)


def events(*rows: tuple[str, str, str | None, int]) -> pl.DataFrame:
    """Rows of (event_id, action, item_id, minute) of one user and session."""
    return pl.DataFrame(
        [
            {
                "event_id": event_id, "tenant_id": "acme", "user_id": "u", "session_id": "s", "action": action,
                "item_id": item, "ts": START + timedelta(minutes=minute), "attrs": {"b": "2", "a": "1"},
            }
            for event_id, action, item, minute in rows
        ],
        schema={c: t for c, t in EVENTS.empty().schema.items()
                if c in ("event_id", "tenant_id", "user_id", "session_id", "action", "item_id", "ts", "attrs")},
    )  # fmt: skip


def test_every_projection_makes_the_columns_of_its_kind() -> None:
    frame = events(("e", "view", "p", 0), ("f", "purchase", "p", 1))
    for projection in model.EVENT_PROJECTIONS:
        built = projection.build(frame)
        assert dict(built.select(list(projection.kind.schema)).schema) == dict(projection.kind.schema), (
            projection.kind.name
        )


def test_interactions_count_events_so_that_a_replay_can_not_count_twice() -> None:
    frame = events(("e", "view", "p", 0), ("f", "view", "p", 9), ("g", "view", None, 1), ("h", "search", "p", 1))
    row = model.views(frame).row(0, named=True)
    assert (row["count"], row["first_interaction"]) == (2, START)
    assert row["last_interaction"] == START + timedelta(minutes=9)
    assert model.purchases(frame).is_empty()


def test_attributes_are_text_with_sorted_names() -> None:
    assert model.actions(events(("e", "view", None, 0)))["attrs"].to_list() == ['{"a": "1", "b": "2"}']


def test_a_product_that_only_events_know_is_bare() -> None:
    catalog = pl.DataFrame([("acme", "p", "Lamp", "lighting", 9.5, "f")], schema=CATALOG.empty().schema, orient="row")
    rows = model.products(events(("e", "view", "p", 0), ("f", "view", "q", 0)), catalog).sort("id")
    assert rows.select("id", "name", "price").rows() == [("p", "Lamp", 9.5), ("q", None, None)]


def test_events_wait_until_they_have_a_journey() -> None:
    frame = events(("e", "view", None, 0), ("f", "view", None, 0))
    assigned = pl.DataFrame({"tenant_id": ["acme"], "event_id": ["e"], "journey_id": ["j"]})
    status = dict(model.event_status(frame, assigned).select("id", "status").rows())
    assert status == {"e": "PROCESSED", "f": "NEW"}
