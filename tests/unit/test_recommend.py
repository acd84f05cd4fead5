import polars as pl

from c360_pipeline.core.recommend import rank

CANDIDATES = pl.DataFrame(
    [
        ("p1", "Lamp", "lighting", "u1", 3, 2), ("p1", "Lamp", "lighting", "u2", 1, 1),
        ("p2", "Chair", "furniture", "u1", 3, 30), ("p0", "Book", None, "u3", 1, 1), ("p3", "Cable", None, "u3", 1, 1),
    ],
    schema=["product_id", "product_name", "category", "similar_user", "shared_products", "strength"], orient="row",
)  # fmt: skip


def test_the_score_is_ten_per_similar_user_plus_strength() -> None:
    assert [(r.product_id, r.score) for r in rank(CANDIDATES, 10)] == [
        ("p2", 40.0),
        ("p1", 23.0),
        ("p0", 11.0),
        ("p3", 11.0),
    ]


def test_the_reason_counts_people_and_products() -> None:
    best = rank(CANDIDATES, 2)
    assert best[1].similar_users == ["u1", "u2"]
    assert best[1].reason.startswith("2 customers who bought up to 3 products")
    assert rank(CANDIDATES, 10)[2].reason.startswith("1 customer who bought 1 product")


def test_at_most_top_k() -> None:
    assert len(rank(CANDIDATES, 1)) == 1
    assert rank(CANDIDATES.clear(), 5) == []
