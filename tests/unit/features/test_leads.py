"""Weights between products, what they recommend, and how their settings are chosen."""

import math
import random
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from c360_pipeline.core.features import leads

AT = datetime(2025, 11, 1, tzinfo=UTC)


def made_of(users: int, products: int, seed: int) -> pl.DataFrame:
    """Interactions of people who like products whose number leaves the same remainder."""
    rng = random.Random(seed)
    rows = {}
    for user in range(users):
        taste = rng.randrange(3)
        for n in range(rng.randrange(2, 9)):
            product = rng.randrange(products // 3) * 3 + (taste if rng.random() < 0.9 else rng.randrange(3))
            at = AT + timedelta(hours=n, seconds=user)
            rows[user, product, rng.choice(list(leads.INTEREST))] = (at, at + timedelta(minutes=rng.randrange(90)))
    met = [(f"u{u:03}", f"p{p:02}", action, *times) for (u, p, action), times in sorted(rows.items())]
    return pl.DataFrame(met, schema=["user_id", "product_id", "action", "first_ts", "last_ts"], orient="row")


MET = made_of(200, 30, 1)


def by_equations(pairs: pl.DataFrame, ridge: float) -> dict[tuple[str, str], float]:
    """The same weights, each product's equations by themselves."""
    users, products = (sorted(set(pairs[name])) for name in ("user_id", "product_id"))
    cared = np.zeros((len(users), len(products)))
    for user, product, strength, _ in pairs.iter_rows():
        cared[users.index(user), products.index(product)] = strength
    found = {}
    for target, product in enumerate(products):
        cosine = {
            other: cared[:, target] @ cared[:, other]
            / math.sqrt((cared[:, target] @ cared[:, target]) * (cared[:, other] @ cared[:, other]))
            for other in range(len(products)) if other != target
        }  # fmt: skip
        near = sorted((other for other in cosine if cosine[other] > 0), key=lambda o: (-cosine[o], o))[
            : leads.NEIGHBOURS
        ]
        known = cared[:, near]
        weights = np.linalg.inv(known.T @ known + ridge * np.eye(len(near))) @ known.T @ cared[:, target]
        found.update({(products[other], product): w for other, w in zip(near, weights, strict=True)})
    return found


@pytest.mark.parametrize("neighbours", [50, 4])
def test_weights_are_those_of_the_equations(monkeypatch: pytest.MonkeyPatch, neighbours: int) -> None:
    monkeypatch.setattr(leads, "NEIGHBOURS", neighbours)
    pairs = leads.interests(MET)
    wanted = by_equations(pairs, 20.0)
    found = leads.learned(pairs, [20.0, 90.0])[20.0]
    told = {(a, b): weight for a, b, weight in found.select("product_id", "similar_product_id", "similarity").rows()}
    assert told == {pair: pytest.approx(weight, abs=2e-6) for pair, weight in wanted.items() if weight > 5e-7}
    assert len(told) > 50
    met = {user: set(part["product_id"]) for (user,), part in pairs.partition_by("user_id", as_dict=True).items()}
    for a, b, shared in found.select("product_id", "similar_product_id", "shared").rows():
        assert shared == sum(a in products and b in products for products in met.values())


def test_equal_interactions_give_equal_weights_in_any_order_and_number_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = leads.interests(MET)
    found = leads.learned(pairs, [50.0])[50.0]
    assert leads.learned(leads.interests(MET.sample(fraction=1, shuffle=True, seed=3)), [50.0])[50.0].equals(found)
    monkeypatch.setattr(leads, "AT_ONCE", 7)
    again = leads.learned(pairs, [50.0])[50.0]
    assert again.equals(found)
    ranks = found.group_by("product_id", maintain_order=True).agg("rank", "similarity")
    assert all(one == list(range(1, len(one) + 1)) for one in ranks["rank"].to_list())
    assert all(one == sorted(one, reverse=True) for one in ranks["similarity"].to_list())
    monkeypatch.setattr(leads, "KEPT", 2)
    assert leads.learned(pairs, [50.0])[50.0].equals(found.filter(pl.col("rank") <= 2))


def test_products_that_nobody_met_together_lead_nowhere() -> None:
    alone = MET.filter(pl.int_range(pl.len()).over("user_id") == 0)
    assert leads.learned(leads.interests(alone), [1.0])[1.0].is_empty()
    assert leads.learned(leads.interests(MET.clear()), [1.0])[1.0].is_empty()


def recounted(
    met: pl.DataFrame, found: pl.DataFrame, user: str, half_life: float
) -> dict[str, tuple[float, str, float]]:
    """Scores of a user with the product that adds most and what it adds, counted one by one."""
    own: dict[str, tuple[datetime, float]] = {}
    for _, product, action, _, last in met.filter(user_id=user).iter_rows():
        at, strength = own.get(product, (last, 0.0))
        own[product] = max(at, last), max(strength, leads.INTEREST[action])
    bought = set(met.filter(user_id=user, action="purchase")["product_id"])
    newest = sorted(own, key=lambda p: (-own[p][0].timestamp(), -own[p][1], p))
    adds: dict[str, list[tuple[float, str]]] = {}
    for place, product in enumerate(newest[: leads.RECENT]):
        for to, weight in found.filter(product_id=product).select("similar_product_id", "similarity").rows():
            if to not in bought:
                adds.setdefault(to, []).append((own[product][1] * 0.5 ** (place / half_life) * weight, product))
    return {to: (sum(a for a, _ in parts), max(parts)[1], max(parts)[0]) for to, parts in adds.items()}


def test_scores_and_reasons_can_be_recounted(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = leads.interests(MET)
    found = leads.learned(pairs, [20.0])[20.0]
    bought = MET.filter(action="purchase").select("user_id", "product_id")
    monkeypatch.setattr(leads, "CUSTOMERS_AT_ONCE", 33)
    best = pl.concat(leads.ranked(pairs, bought, found, 3.0, 100))
    counted = 0
    for user in sorted(set(MET["user_id"]))[:60]:
        wanted = recounted(MET, found, user, 3.0)
        told = best.filter(user_id=user)
        assert set(told["product_id"]) == set(wanted)
        for product, score, because, share in told.select("product_id", "score", "because_of", "share").rows():
            total, strongest, most = wanted[product]
            assert score == pytest.approx(total, abs=2e-6)
            assert share == pytest.approx(most / total, abs=1e-3)
            assert because == strongest
            counted += 1
        assert told["score"].to_list() == sorted(told["score"], reverse=True)
    assert counted > 500


def test_the_last_new_purchase_is_held_out_with_all_that_came_after() -> None:
    hour = [AT + timedelta(hours=n) for n in range(6)]
    met = pl.DataFrame(
        [
            ("ann", "lamp", "purchase", hour[0], hour[5]), ("ann", "desk", "view", hour[1], hour[1]),
            ("ann", "desk", "purchase", hour[2], hour[2]), ("ann", "rug", "view", hour[3], hour[4]),
            ("bea", "lamp", "purchase", hour[0], hour[0]), ("bea", "rug", "view", hour[4], hour[4]),
        ],
        schema=MET.schema, orient="row",
    )  # fmt: skip
    known, hidden = leads.held_out(met)
    assert hidden.rows() == [("ann", "desk")]
    assert known.sort(known.columns).rows() == [
        # That she bought the lamp again came later.
        ("ann", "lamp", "purchase", hour[0], hour[0]),
        ("bea", "lamp", "purchase", hour[0], hour[0]), ("bea", "rug", "view", hour[4], hour[4]),
    ]  # fmt: skip


def test_settings_are_chosen_where_enough_people_bought_again() -> None:
    assert leads.chosen(MET.filter(pl.col("user_id") < "u020")) == leads.Settings()
    found = leads.chosen(MET)
    assert found.validated >= leads.LEAST_VALIDATED
    assert found.recall is not None
    assert found.popular_recall is not None
    assert found.recall > found.popular_recall
    assert leads.chosen(MET.sample(fraction=1, shuffle=True, seed=5)) == found
