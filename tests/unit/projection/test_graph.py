from datetime import UTC, datetime, timedelta

import polars as pl

from c360_pipeline.core.catalog.tables import CATALOG, EVENTS, VISITOR_DECISIONS
from c360_pipeline.core.contract.layout import COLUMNS
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.visitors.counting import counted
from c360_pipeline.core.visitors.groups import with_groups

START = datetime(2025, 11, 1, tzinfo=UTC)


def as_counted(rows: pl.DataFrame) -> pl.DataFrame:
    return with_groups(counted(rows.lazy(), VISITOR_DECISIONS.empty().lazy())).collect()


def events(*rows: tuple[str, str, str | None, int]) -> pl.DataFrame:
    """Rows of (event_id, action, item_id, minute) of one user and session."""
    frame = pl.DataFrame(
        [
            {
                "event_id": event_id, "tenant_id": "acme", "user_id": "u", "session_id": "s", "action": action,
                "item_id": item, "ts": START + timedelta(minutes=minute), "attrs": {"b": "2", "a": "1"},
            }
            for event_id, action, item, minute in rows
        ],
        schema={column: EVENTS.empty().schema[column] for column in COLUMNS},
    )  # fmt: skip
    return as_counted(frame)


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


def order(event_id: str, *items: dict[str, object], **fields: object) -> pl.DataFrame:
    """An event about several items."""
    row = {
        "event_id": event_id, "tenant_id": "acme", "user_id": "u", "action": "purchase", "ts": START, "items": items
    }  # fmt: skip
    columns = {column: EVENTS.empty().schema[column] for column in COLUMNS}
    return as_counted(pl.DataFrame([row | fields], schema=columns))


def test_an_order_is_about_each_of_its_items_once() -> None:
    lamp, cable = {"id": "lamp", "price": 79.0, "currency": "EUR"}, {"id": "cable", "quantity": 2.0, "price": 9.95}
    frame = pl.concat(
        [order("o", lamp, cable, {**cable, "quantity": 3.0}), order("p", cable), events(("e", "purchase", "lamp", 5))]
    )
    about = model.action_products(frame).sort("from_id", "to_id")
    assert about.select("from_id", "to_id", "quantity", "price", "currency").rows() == [
        ("e", "lamp", None, None, None), ("o", "cable", 5.0, 9.95, None), ("o", "lamp", 1.0, 79.0, "EUR"),
        ("p", "cable", 2.0, 9.95, None),
    ]  # fmt: skip
    bought = model.purchases(frame).sort("to_id").select("to_id", "count", "quantity", "revenue").rows()
    assert bought == [("cable", 2, 7.0, 69.65), ("lamp", 2, 1.0, 79.0)]
    assert model.views(frame).is_empty()


def test_revenue_does_not_depend_on_the_order_of_events() -> None:
    orders = [order(str(n), {"id": "p", "quantity": 3.0, "price": 0.1 + n / 7}) for n in range(50)]
    sums = {
        model.purchases(pl.concat(frames))["revenue"][0] for frames in (orders, orders[::-1], orders[25:] + orders[:25])
    }
    assert len(sums) == 1


def test_a_visitor_whom_nobody_knows_is_no_user_and_counts_for_none() -> None:
    frame = pl.concat(
        [
            order("a", {"id": "lamp"}, user_id=None, anonymous_id="browser", session_id="s", action="view"),
            order("b", {"id": "lamp"}, user_id=None, anonymous_id="browser"),
        ]
    )
    made = {projection.kind.name: projection.build(frame).height for projection in model.EVENT_PROJECTIONS}
    assert made == {
        "User": 0, "Visitor": 1, "Session": 2, "Action": 2, "(User)-[:HAS_SESSION]->(Session)": 0,
        "(Visitor)-[:HAS_SESSION]->(Session)": 2, "(Visitor)-[:IS_USER]->(User)": 0,
        "Group": 0, "(User)-[:MEMBER_OF]->(Group)": 0,
        "(Session)-[:HAS_ACTION]->(Action)": 2, "(Action)-[:ON_PRODUCT]->(Product)": 2,
        "(User)-[:VIEWED]->(Product)": 0, "(User)-[:PURCHASED]->(Product)": 0,
    }  # fmt: skip
    assert model.actions(frame)["anonymous_id"].to_list() == ["browser", "browser"]


def test_members_of_a_group_are_those_whom_its_events_count_for() -> None:
    said = {"group.id": "c-77", "group.type": "company", "group.name": "Example"}
    frame = pl.concat(
        [
            order("a", attrs=said, action="group"),
            order("b", attrs={"group.id": "c-77", "group.type": "company", "group.name": "Example GmbH"}, user_id="v",
                  ts=START + timedelta(minutes=1)),
            order("c", attrs={"group.id": "g"}, user_id=None, anonymous_id="browser"),
            order("d", attrs={"group.id": "(not set)"}), order("e", attrs={"group.name": "nameless"}),
        ]
    )  # fmt: skip
    assert model.groups(frame).sort("id").select(
        "tenant_id", "type", "id", "first_seen", "last_seen", "facts"
    ).rows() == [
        ("acme", "company", "c-77", START, START + timedelta(minutes=1), '{"name": "Example GmbH"}'),
        ("acme", "", "g", START, START, None),
    ]
    assert model.group_members(frame).sort("from_id").rows() == [
        ("acme", "u", "company", "c-77", START), ("acme", "v", "company", "c-77", START + timedelta(minutes=1)),
    ]  # fmt: skip


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
