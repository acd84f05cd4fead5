"""Peers of `bench_recommend.py`, in their own environment: `recommend_peers.py FOLDER`.

Reads validation/ and test/ in the folder: known.parquet (user_id, product_id, strength, count), hidden.parquet
(user_id, product_id). Each peer is tuned on the first, fitted again on the second, and writes <peer>.parquet (user_id,
product_id, rank) and <peer>.json, its settings. What is not bought may be recommended, what is bought is not.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import CosineRecommender, TFIDFRecommender
from scipy import sparse

TOP_K = 10
MOST_DENSE = 6_000
"""Products up to which the matrix of EASE is inverted."""
BOUGHT = 1.0


class Split(NamedTuple):
    """What is known and what is hidden, by number.

    Attributes:
        users: their ids.
        products: their ids.
        bought: users by products, how often.
        cared: the same with views and carts, by how much they say.
        asked: users with a hidden product.
        hidden: their product; -1 where nobody knows it.
    """

    users: np.ndarray
    products: np.ndarray
    bought: sparse.csr_matrix
    cared: sparse.csr_matrix
    asked: np.ndarray
    hidden: np.ndarray


Peer = Callable[[sparse.csr_matrix, Split, Any], tuple[np.ndarray, np.ndarray]]
"""Gives numbers of the best products for those who are asked, and their scores."""


def read(folder: Path) -> Split:
    """A split from its files."""
    known, hidden = (pq.read_table(folder / f"{name}.parquet") for name in ("known", "hidden"))
    users, rows = np.unique(known["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    products, columns = np.unique(known["product_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    shape = (len(users), len(products))
    strength = known["strength"].to_numpy().astype(np.float32)
    counts = np.where(strength == BOUGHT, known["count"].to_numpy(), 0).astype(np.float32)
    bought = sparse.csr_matrix((counts, (rows, columns)), shape=shape)
    bought.eliminate_zeros()
    wanted = hidden["product_id"].to_numpy(zero_copy_only=False)
    places = np.minimum(np.searchsorted(products, wanted), len(products) - 1)
    return Split(
        users, products, bought, sparse.csr_matrix((strength, (rows, columns)), shape=shape),
        np.searchsorted(users, hidden["user_id"].to_numpy(zero_copy_only=False)),
        np.where(products[places] == wanted, places, -1),
    )  # fmt: skip


def best(scores: np.ndarray, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The ten best products by scores of those who are asked, less what they bought."""
    scores[split.bought[split.asked].toarray() > 0] = -np.inf
    numbers = np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]
    return numbers, np.take_along_axis(scores, numbers, axis=1)


def of_library(model: Any, used: sparse.csr_matrix, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """What a model of `implicit` recommends."""
    model.fit(used, show_progress=False)
    return best(_scores(model, split.asked, used[split.asked]), split)


def _scores(model: Any, asked: np.ndarray, own: sparse.csr_matrix) -> np.ndarray:
    if hasattr(model, "similarity"):
        return np.asarray((own @ model.similarity).todense(), dtype=np.float32)
    factors = model.user_factors[asked] @ model.item_factors.T
    return np.asarray(factors, dtype=np.float32)


def item_knn(used: sparse.csr_matrix, split: Split, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of products."""
    kind = {"cosine": CosineRecommender, "tf-idf": TFIDFRecommender}[settings["likeness"]]
    return of_library(kind(K=settings["neighbours"]), used, split)


def user_knn(used: sparse.csr_matrix, split: Split, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of users, by cosine."""
    length = np.sqrt(used.multiply(used).sum(axis=1)).A1
    unit = sparse.diags(1 / np.maximum(length, 1e-9)) @ used
    near = np.asarray((unit[split.asked] @ unit.T).todense())
    near[np.arange(len(split.asked)), split.asked] = 0
    least = -np.partition(-near, min(settings["neighbours"], near.shape[1] - 1), axis=1)[:, settings["neighbours"] - 1]
    near[near < least[:, None]] = 0
    return best(np.asarray(near @ used, dtype=np.float32), split)


def als(used: sparse.csr_matrix, split: Split, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Alternating least squares."""
    model = AlternatingLeastSquares(
        factors=settings["factors"], alpha=settings["alpha"], regularization=0.05, iterations=20, random_state=1
    )
    return of_library(model, used, split)


def bpr(used: sparse.csr_matrix, split: Split, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bayesian personalised ranking."""
    model = BayesianPersonalizedRanking(
        factors=settings["factors"], learning_rate=settings["rate"], iterations=150, random_state=1, num_threads=1
    )
    return of_library(model, used, split)


def ease(used: sparse.csr_matrix, split: Split, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """The closed form of Steck 2019; the weights of one matrix serve all users."""
    ones = used.copy()
    if settings["of"] == "purchases":
        ones.data[:] = 1
    together = (ones.T @ ones).toarray().astype(np.float32)
    together[np.diag_indices_from(together)] += settings["ridge"]
    inverse = np.linalg.inv(together)
    weights = -inverse / np.diag(inverse)
    weights[np.diag_indices_from(weights)] = 0
    return best(np.asarray(ones[split.asked] @ weights, dtype=np.float32), split)


PEERS: dict[str, tuple[Peer, dict[str, Iterable[Any]]]] = {
    "item-kNN": (item_knn, {"neighbours": (20, 50, 100, 200), "likeness": ("cosine", "tf-idf")}),
    "user-kNN": (user_knn, {"neighbours": (50, 100, 200, 400)}),
    "ALS": (als, {"factors": (32, 64, 128), "alpha": (1, 5, 20)}),
    "BPR": (bpr, {"factors": (32, 64), "rate": (0.01, 0.05)}),
    "EASE": (ease, {"ridge": (50, 100, 200, 400, 800)}),
}


def gain(numbers: np.ndarray, split: Split) -> float:
    """NDCG@10."""
    rows, places = np.nonzero(numbers == split.hidden[:, None])
    return float((1 / np.log2(places + 2)).sum() / max(len(split.hidden), 1)) if len(rows) else 0.0


def tuned(name: str, folder: Path) -> None:
    """Choose the settings of a peer, and write what it recommends with them."""
    fit, grid = PEERS[name]
    validation, test = read(folder / "validation"), read(folder / "test")
    if name == "EASE" and len(test.products) > MOST_DENSE:
        return

    def used(split: Split, of: str) -> sparse.csr_matrix:
        return split.bought if of == "purchases" else split.cared

    options = [
        dict(zip(("of", *grid), values, strict=True)) for values in product(("purchases", "everything"), *grid.values())
    ]
    chosen = max(options, key=lambda one: gain(fit(used(validation, one["of"]), validation, one)[0], validation))
    numbers, _ = fit(used(test, chosen["of"]), test, chosen)
    found = {
        "user_id": np.repeat(test.users[test.asked], numbers.shape[1]),
        "product_id": test.products[numbers].ravel(),
        "rank": np.tile(np.arange(1, numbers.shape[1] + 1), len(numbers)),
    }
    pq.write_table(pa.table(found), folder / f"{name}.parquet")
    (folder / f"{name}.json").write_text(json.dumps(chosen))


if __name__ == "__main__":
    for one in PEERS:
        tuned(one, Path(sys.argv[1]))
