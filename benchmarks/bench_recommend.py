"""Recommendations against popularity, item-kNN and ALS: `make bench-recommend`.

The last product that each user bought for the first time is held out, and must be found from what the user bought
before: recall@10, NDCG@10, and the share of products that are ever recommended. On generated events, whose people have
a taste, and on MovieLens 100k, where a rating of four or five is a purchase. All get the same purchases.
"""

import argparse
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from c360_pipeline.core.features import recommend
from c360_pipeline.core.landing.decode import decode_file
from c360_pipeline.core.landing.lines import Delivery
from c360_pipeline.devstack import movielens
from c360_pipeline.devstack.event_samples import SampleRequest, write_sample
from c360_pipeline.devstack.sample_files import Written

NOTE = Console(stderr=True)
PEERS_PYTHON = Path(__file__).parents[1] / ".venv" / "bench" / "bin" / "python"
PEERS = Path(__file__).with_name("recommend_peers.py")
TOP_K = 10


def purchases_of(written: Written) -> pl.DataFrame:
    """user_id, product_id, ts: when each user first bought each product."""
    import gzip

    now = datetime.now(UTC)
    decoded = [decode_file(Delivery(p.name, ""), gzip.decompress(p.read_bytes()), now) for p in written.event_files]
    events = pl.concat([part.events for part in decoded]).filter(pl.col("action") == "purchase").drop_nulls("item_id")
    return events.group_by("user_id", product_id="item_id").agg(ts=pl.col("ts").min(), count=pl.len().cast(pl.Int64))


def split(purchases: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What users bought before, and the last product of those who bought two at least."""
    newest_first = purchases.sort("user_id", "ts", "product_id", descending=[False, True, False])
    numbered = newest_first.with_columns(n=pl.int_range(pl.len()).over("user_id"), of=pl.len().over("user_id"))
    is_held_out = (pl.col("n") == 0) & (pl.col("of") > 1)
    known = numbered.filter(~is_held_out).select("user_id", "product_id", "count")
    return known, numbered.filter(is_held_out).select("user_id", "product_id")


def ours(known: pl.DataFrame) -> pl.DataFrame:
    """The batch candidates, as the asset makes them."""
    parts = [part.select("user_id", "product_id", "rank") for part in recommend.candidates("bench", known, TOP_K)]
    return pl.concat(parts)


def popularity(known: pl.DataFrame, users: pl.DataFrame) -> pl.DataFrame:
    """The products that most users bought and this one did not."""
    most = int(known.group_by("user_id").len()["len"].max() or 0) + TOP_K  # type: ignore[call-overload]
    popular = known.group_by("product_id").len().sort("len", "product_id", descending=[True, False]).head(most)
    pairs = users.select("user_id").join(popular.with_row_index("place"), how="cross")
    new = pairs.join(known, on=["user_id", "product_id"], how="anti").sort("user_id", "place")
    ranked = new.with_columns(rank=pl.int_range(1, pl.len() + 1).over("user_id"))
    return ranked.filter(pl.col("rank") <= TOP_K).select("user_id", "product_id", "rank")


def measured(found: pl.DataFrame, held_out: pl.DataFrame, products: int) -> tuple[float, float, float]:
    """recall@10, NDCG@10, coverage."""
    mine = found.join(held_out.select("user_id"), on="user_id", how="semi")
    hits = mine.join(held_out, on=["user_id", "product_id"])
    gain = float((1 / (hits["rank"] + 1).cast(pl.Float64).log(2)).sum())
    return hits.height / held_out.height, gain / held_out.height, mine["product_id"].n_unique() / products


def compare(name: str, written: Written) -> None:
    """Print the table of a data set."""
    known, held_out = split(purchases_of(written))
    products = known["product_id"].n_unique()
    table = Table(f"{name}: {held_out.height:,} users, {products:,} products", "recall@10", "NDCG@10", "coverage")
    found = {"ours": ours(known), "popularity": popularity(known, held_out)}
    with tempfile.TemporaryDirectory() as folder:
        known.write_parquet(f"{folder}/known.parquet")
        held_out.write_parquet(f"{folder}/held_out.parquet")
        for peer in ("item_knn", "als"):
            subprocess.run([str(PEERS_PYTHON), str(PEERS), peer, folder], check=True)
            found[f"{peer} (implicit)"] = pl.read_parquet(f"{folder}/{peer}.parquet")
    for title, rows in found.items():
        recall, ndcg, coverage = measured(rows, held_out, products)
        table.add_row(title, f"{recall:.4f}", f"{ndcg:.4f}", f"{coverage:.3f}")
    Console().print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000, help="generated, of one tenant")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        NOTE.print("writing events")
        request = SampleRequest(events=chosen.events, tenants=1, seed=1, malformed_rate=0, duplicate_rate=0)
        compare(f"generated, {chosen.events:,} events", write_sample(request, Path(folder) / "sample", lambda _: None))
        compare("MovieLens 100k", movielens.write_movielens(Path(folder) / "movielens", lambda _: None))


if __name__ == "__main__":
    sys.exit(main())
