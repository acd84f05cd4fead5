from datetime import UTC, datetime, timedelta

import polars as pl

from c360_pipeline.core.contract.frames import ITEMS
from c360_pipeline.core.features.account_values import account_values
from c360_pipeline.core.features.communities import interaction_weights, modularity
from c360_pipeline.core.features.similar_products import (
    customers_of_products,
    shared_customers,
    similar_by_customers,
    similar_by_sessions,
)
from c360_pipeline.core.features.trends import trending

NOW = datetime(2025, 11, 1, 12, tzinfo=UTC)


def test_a_trend_counts_people_and_compares_with_the_window_before() -> None:
    rows = [
        ("u1", "view", "lamp", 0), ("u1", "view", "lamp", 1), ("u2", "view", "lamp", 2), ("u2", "purchase", "lamp", 2),
        ("u3", "view", "desk", 3), ("u4", "view", "lamp", 30), ("u5", "search", None, 0),
    ]  # fmt: skip
    events = pl.DataFrame(
        [("acme", str(n), user, action, item, NOW - timedelta(hours=ago), None)
         for n, (user, action, item, ago) in enumerate(rows)],
        schema={"tenant_id": pl.String, "event_id": pl.String, "user_id": pl.String, "action": pl.String,
                "item_id": pl.String, "ts": pl.Datetime("us", "UTC"), "items": ITEMS}, orient="row",
    )  # fmt: skip
    products = pl.DataFrame({"tenant_id": ["acme"], "id": ["lamp"], "category": ["light"]})
    day = trending(events.lazy(), products).filter(pl.col("window_hours") == 24)
    assert day.select("product_id", "rank", "viewers", "buyers", "score", "previous_score", "growth").rows() == [
        ("lamp", 1, 2, 1, 7, 1, 7.0), ("desk", 2, 1, 0, 1, 0, 1.0),
    ]  # fmt: skip


def test_products_of_the_same_sessions_are_similar_and_machines_do_not_count() -> None:
    seen = [("s1", "a"), ("s1", "b"), ("s2", "a"), ("s2", "b"), ("s3", "a"), ("s3", "c")]
    seen += [("machine", item) for item in ["a", "c", *map(str, range(60))]]
    views = pl.LazyFrame([("acme", s, i) for s, i in seen], schema=["tenant_id", "session_id", "item_id"], orient="row")
    found = similar_by_sessions(views)
    # a and b share two sessions of three; a and c share only one that counts.
    pairs = found.select("product_id", "similar_product_id", "shared", "rank").rows()
    assert pairs == [("a", "b", 2, 1), ("b", "a", 2, 1)]
    assert found["similarity"].round(4).to_list() == [0.6667, 0.6667]


def test_shared_customers_follow_from_similarity_and_degrees() -> None:
    links = pl.DataFrame(
        [("acme", u, p, 1) for u, p in [("u1", "a"), ("u2", "a"), ("u3", "a"), ("u2", "b"), ("u3", "b"), ("u4", "b")]],
        schema=["tenant_id", "from_id", "to_id", "count"], orient="row",
    )  # fmt: skip
    members, edges = customers_of_products(interaction_weights(links, links.clear()))
    a, b = (members.filter(pl.col("member") == name)["node_id"][0] for name in "ab")
    pairs = pl.DataFrame({"source": [a, b], "target": [b, a], "similarity": [0.5, 0.5]})
    rows = similar_by_customers("acme", members, shared_customers(pairs, edges))
    assert rows.select("product_id", "similar_product_id", "shared").rows() == [("a", "b", 2), ("b", "a", 2)]


def test_modularity_of_two_cliques_that_touch_nowhere_is_a_half() -> None:
    edges = pl.DataFrame({"source": [0, 2], "target": [1, 3], "weight": [3.0, 3.0]})
    apart = pl.DataFrame({"node_id": [0, 1, 2, 3], "label": [0, 0, 1, 1]})
    assert modularity(edges, apart) == 0.5
    assert modularity(edges, apart.with_columns(label=0)) == 0.0
    assert modularity(edges.clear(), apart) == 0.0


def test_risk_and_value_follow_use_tickets_and_tenure() -> None:
    def account(name: str, active: bool, plays: int, earlier: int, tickets: int, months: int) -> dict[str, object]:
        return {"tenant_id": "acme", "account_id": name, "email": name, "plan": "basic", "is_active": active,
                "monthly_fee": 10.0 * active, "purchases": 60.0, "recent_purchases": 30.0, "months": months,
                "recent_plays": plays, "earlier_plays": earlier, "recent_tickets": tickets}  # fmt: skip

    found = account_values(pl.DataFrame([
        account("left", active=False, plays=9, earlier=9, tickets=0, months=5),
        account("loyal", active=True, plays=10, earlier=30, tickets=0, months=24),
        account("quiet", active=True, plays=0, earlier=30, tickets=3, months=12),
        account("half", active=True, plays=5, earlier=30, tickets=0, months=30),
    ])).select("account_id", "churn_risk", "risk_level", "monthly_value", "value_to_date").rows()  # fmt: skip
    assert found == [
        ("half", 0.3, "medium", 20.0, 360.0), ("left", 1.0, "left", 10.0, 60.0), ("loyal", 0.0, "low", 20.0, 300.0),
        ("quiet", 0.925, "high", 20.0, 180.0),
    ]  # fmt: skip
