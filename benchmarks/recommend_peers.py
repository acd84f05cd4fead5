"""Peers of `bench_recommend.py`, in their own environment: `recommend_peers.py item_knn|als FOLDER`.

Reads known.parquet and held_out.parquet, writes <peer>.parquet: user_id, product_id, rank.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import CosineRecommender
from scipy.sparse import csr_matrix

TOP_K = 10


def main(peer: str, folder: Path) -> None:
    """Fit and recommend."""
    known = pq.read_table(folder / "known.parquet")
    wanted = pq.read_table(folder / "held_out.parquet")["user_id"].to_pylist()
    users, rows = np.unique(known["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    products, columns = np.unique(known["product_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    counts = known["count"].to_numpy().astype(np.float32)
    bought = csr_matrix((counts, (rows, columns)), shape=(len(users), len(products)))
    model = (
        CosineRecommender(K=50)
        if peer == "item_knn"
        else AlternatingLeastSquares(factors=64, iterations=20, random_state=1)
    )
    model.fit(bought, show_progress=False)
    numbers = np.searchsorted(users, wanted)
    ids, scores = model.recommend(numbers, bought[numbers], N=TOP_K, filter_already_liked_items=True)
    found = [
        (user, products[item], rank)
        for user, items, worth in zip(wanted, ids, scores, strict=True)
        for rank, (item, score) in enumerate(zip(items, worth, strict=True), 1)
        if item >= 0 and score > -1e30
    ]
    columns_of = list(zip(*found, strict=True))
    names = ("user_id", "product_id", "rank")
    pq.write_table(pa.table(dict(zip(names, columns_of, strict=True))), folder / f"{peer}.parquet")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
