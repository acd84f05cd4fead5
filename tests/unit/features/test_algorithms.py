"""Communities and similarities against counting by hand."""

import random

import polars as pl
import pytest

from c360_pipeline.core.features import algorithms
from c360_pipeline.core.features.communities import modularity


def shop(users: int, products: int, seed: int) -> pl.DataFrame:
    """Edges of users, numbered first, to products; users like the products of their remainder."""
    rng = random.Random(seed)
    pairs = {
        (user, users + rng.randrange(products // 4) * 4 + (user % 4 if rng.random() < 0.9 else rng.randrange(4)))
        for user in range(users) for _ in range(5)
    }  # fmt: skip
    rows = [(source, target, float(rng.randrange(1, 9))) for source, target in sorted(pairs)]
    return pl.DataFrame(rows, schema=["source", "target", "weight"], orient="row")


def test_communities_are_those_of_taste_and_the_same_in_each_run() -> None:
    edges = shop(80, 40, 1)
    members = pl.DataFrame({"node_id": range(120)})
    found = algorithms.louvain(members, edges)
    assert algorithms.louvain(members, edges.sample(fraction=1, shuffle=True, seed=2)).equals(found)
    users = found.filter(pl.col("node_id") < 80).with_columns(taste=pl.col("node_id") % 4)
    of_taste = users.group_by("label", "taste").len().group_by("label").agg(pl.col("len").max())["len"]
    assert (len(of_taste), int(of_taste.sum()) > 70) == (4, True)
    tastes = members.select("node_id", label=pl.when(pl.col("node_id") < 80).then("node_id").otherwise(
        pl.col("node_id") - 80) % 4)  # fmt: skip
    assert modularity(edges, found) > modularity(edges, tastes) - 0.01


@pytest.mark.parametrize("at_once", [512, 7])
def test_similarities_are_those_that_are_counted(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(algorithms, "AT_ONCE", at_once)
    edges = shop(60, 24, 3).select(source="target", target="source")
    people: dict[int, set[int]] = {}
    for source, target in edges.iter_rows():
        people.setdefault(source, set()).add(target)
    wanted = []
    for source in sorted(people):
        likeness = {o: len(people[source] & people[o]) / len(people[source] | people[o]) for o in people if o != source}
        best = sorted((o for o in likeness if likeness[o]), key=lambda o: (-likeness[o], o))[:5]
        wanted += [(source, other, likeness[other]) for other in best]
    found = algorithms.node_similarity(edges.sample(fraction=1, shuffle=True, seed=4), 5)
    assert found.rows() == [(a, b, pytest.approx(s)) for a, b, s in wanted]
    assert algorithms.node_similarity(edges.clear(), 5).is_empty()
