"""The best rows of each group, numbered: one order for all tables of features."""

from collections.abc import Mapping, Sequence

import polars as pl


def best_of_each(rows: pl.DataFrame, of: Sequence[str], by: Mapping[str, bool], kept: int) -> pl.DataFrame:
    """The first rows of each group with their `rank`, 1 first, sorted by group and rank.

    Args:
        rows: any.
        of: columns of a group.
        by: columns that rows of a group are ordered by, and whether the highest come first; the last tells any two
            rows apart, so that the order is always the same.
        kept: rows of a group at most.
    """
    ordered = rows.sort(*of, *by, descending=[*(False for _ in of), *by.values()])
    ranked = ordered.with_columns(rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over(of))
    return ranked.filter(pl.col("rank") <= kept)
