"""Volumes of days against the days before."""

from datetime import date, timedelta

import polars as pl
import pytest

from c360_pipeline.core.landing.volumes import unusual_volumes

TODAY = date(2025, 11, 20)


def volumes(*rows: int) -> pl.DataFrame:
    """Of the days up to today."""
    days = [TODAY - timedelta(days=n) for n in reversed(range(len(rows)))]
    frame = pl.DataFrame({"day": days, "rows": rows}, schema={"day": pl.Date, "rows": pl.Int64})
    return frame.filter(pl.col("rows") > 0)  # days without files have no row


@pytest.mark.parametrize(
    ("rows", "unusual"),
    [
        ((100,) * 20, {}),
        ((100,) * 18 + (301, 100), {1: 301}),
        ((100,) * 18 + (300, 100), {}),
        ((100,) * 18 + (33, 100), {1: 33}),
        ((100,) * 18 + (34, 100), {}),
        ((100,) * 18 + (0, 100), {1: 0}),  # a producer that fell silent
        ((100,) * 19 + (1,), {}),  # today is not over
        ((100,) * 19 + (400,), {0: 400}),  # but this is too much already
        ((1, 100, 1, 100), {}),  # nothing is usual yet
        ((100,) * 5 + (900,) * 25, {}),  # what was unusual long ago is not told any more
    ],
)
def test_what_is_far_from_the_median_is_unusual(rows: tuple[int, ...], unusual: dict[int, int]) -> None:
    found = unusual_volumes(volumes(*rows), TODAY)
    assert {(TODAY - day).days: count for day, count in found.select("day", "rows").iter_rows()} == unusual


def test_nothing_has_no_unusual_day() -> None:
    assert unusual_volumes(volumes(), TODAY).is_empty()
