import polars as pl

from c360_pipeline.core.features.recommend import Candidate, Source, candidates, rank

PURCHASES = pl.DataFrame(
    [
        ("ann", "lamp", 1), ("ann", "desk", 1), ("bea", "lamp", 1), ("bea", "desk", 2), ("bea", "chair", 3),
        ("cy", "lamp", 1), ("cy", "chair", 1), ("cy", "rug", 1), ("dan", "boat", 9),
    ],
    schema=["user_id", "product_id", "count"], orient="row",
)  # fmt: skip


def similar(product: str, users: int, strength: int, **more: object) -> Candidate:
    return Candidate(product, None, None, Source.SIMILAR_USERS, users, strength, **more)  # type: ignore[arg-type]


def test_a_score_is_ten_for_each_similar_user_and_how_often_they_bought_once_for_each_product_shared() -> None:
    (found,) = candidates("acme", PURCHASES)
    # Bea shares two products with Ann and bought the chair three times, Cy shares one and bought it once.
    assert found.filter(pl.col("user_id") == "ann").select("product_id", "rank", "score").rows() == [
        ("chair", 1, 2 * 10 + 2 * 3 + 1), ("rug", 2, 10 + 1),
    ]  # fmt: skip
    assert found.filter(pl.col("user_id") == "dan").is_empty()


def test_candidates_do_not_depend_on_how_many_users_are_taken_at_once(monkeypatch: object) -> None:
    (at_once,) = candidates("acme", PURCHASES)
    import c360_pipeline.core.features.recommend as module

    monkeypatch.setattr(module, "USERS_AT_ONCE", 1)  # type: ignore[attr-defined]
    assert pl.concat(list(candidates("acme", PURCHASES))).equals(at_once)
    assert list(candidates("acme", PURCHASES.clear())) == []


def test_the_best_come_first_and_ties_are_by_id() -> None:
    found = rank([similar("b", 1, 1), similar("a", 1, 1), similar("c", 2, 5)], 3)
    assert [(r.product_id, r.score) for r in found] == [("c", 9.4286), ("a", 9.0476), ("b", 9.0476)]
    assert rank([], 5) == []
    assert len(rank([similar("a", 1, 1), similar("b", 1, 1)], 1)) == 1


def test_sources_follow_each_other_and_a_product_comes_once() -> None:
    others = [
        Candidate("liked", None, None, Source.CATEGORY, 5_000, because_of="Lamps"),
        Candidate("own", None, None, Source.OWN_PRODUCTS, 1, weight=0.0001, share=1, because_of="Lamp"),
        Candidate("viewed", None, None, Source.VIEWED_TOGETHER, 90, because_of="Lamp"),
        Candidate("ours", None, None, Source.COMMUNITY, 900),
        Candidate("ours", None, None, Source.TRENDING, 9_000),
        Candidate("hot", None, None, Source.TRENDING, 9_000),
    ]
    found = rank([*others, similar("known", 1, 1)], 10)
    assert [r.product_id for r in found] == ["own", "known", "viewed", "ours", "liked", "hot"]
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)


def test_of_a_category_come_no_more_than_asked_for() -> None:
    found = [Candidate(f"p{n}", None, "c" if n < 4 else None, Source.TRENDING, 9 - n) for n in range(6)]
    assert [r.product_id for r in rank(found, 4, 1)] == ["p0", "p4", "p5"]
    assert [r.product_id for r in rank(found, 4, 2)] == ["p0", "p1", "p4", "p5"]


def test_reasons_name_the_path() -> None:
    led = Candidate("d", None, None, Source.OWN_PRODUCTS, 2, weight=0.25, share=0.724, because_of="Lamp",
                    because_of_id="l", action="view")  # fmt: skip
    assert led.reason == "because you viewed “Lamp” (72% of the score)"
    (told,) = rank([led], 1)
    assert (told.score, told.because_of, told.share) == (35.0, "l", 0.724)
    alone = Candidate("d", None, None, Source.OWN_PRODUCTS, 1, weight=0.25, share=1.0, because_of="Lamp")
    assert alone.reason == "because you bought “Lamp”"
    liked = Candidate("e", None, "Lamps", Source.CATEGORY, 3, because_of="Lamps")
    assert liked.reason == "3 customers bought this in “Lamps”, which you like"
    one = similar("a", 1, 1, because_of="Lamp")
    many = similar("b", 1_200, 1, because_of="Lamp", other_products=2, in_community=True)
    assert one.reason == "1 customer who bought “Lamp” also bought this"
    assert many.reason == (
        "1,200 customers who bought “Lamp” or 2 other products of yours also bought this; in your community"
    )
    viewed = Candidate("c", None, None, Source.VIEWED_TOGETHER, 2, because_of="Lamp")
    assert viewed.reason == "viewed together with “Lamp” in 2 sessions"
