"""How much arrives a day, against the days before."""

from datetime import date, timedelta

import polars as pl

DAYS = 14
"""Days before that say what is usual."""
FEWEST_DAYS = 5
"""With fewer of them nothing is usual yet."""
FACTOR = 3.0
"""How many times more or less than the median is unusual."""


def unusual_volumes(volumes: pl.DataFrame, today: date) -> pl.DataFrame:
    """Days whose volume is far from the median of the days before.

    Args:
        volumes: day and rows; a day without a row had none.
        today: is not over, so that too little says nothing yet; too much does.

    Returns:
        day, rows, usual (the median), of the last `DAYS` days that are unusual.
    """
    if volumes.is_empty():
        return volumes.select("day", "rows", usual=pl.col("rows").cast(pl.Float64))
    calendar = volumes.select(day=pl.date_range(pl.col("day").min(), pl.lit(today)))
    counted = calendar.join(volumes, on="day", how="left").with_columns(pl.col("rows").fill_null(0)).sort("day")
    before = pl.col("rows").shift(1)
    usual = counted.with_columns(
        usual=before.rolling_median(DAYS, min_samples=FEWEST_DAYS).cast(pl.Float64)
    ).drop_nulls("usual")
    is_low = (pl.col("rows") * FACTOR < pl.col("usual")) & (pl.col("day") < today)
    recent = pl.col("day") > today - timedelta(days=DAYS)
    return usual.filter(recent & (is_low | (pl.col("rows") > pl.col("usual") * FACTOR)) & (pl.col("usual") > 0))
