"""Runs of sorted rows, against a dictionary."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c360_pipeline.stores.local import sorted_index as sorted_runs
from c360_pipeline.stores.local.sorted_index import FAN, Rows, SortedRuns, record

WITH_TEXT = record(["low", "high", "word"], ["number"], texts=True)
BARE = record(["low"])
# Few hashes, so that they repeat and share their lower words.
HASHES = st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, 5, 1 << 63, (1 << 64) - 1]))
Row = tuple[tuple[int, int], int, int, str]
BATCHES = st.lists(
    st.lists(st.tuples(HASHES, st.integers(0, (1 << 64) - 1), st.integers(-9, 9), st.text(max_size=4)), max_size=9),
    min_size=1, max_size=3 * FAN,
)  # fmt: skip


@given(BATCHES, st.sampled_from([1, 3, 1000]))
def test_the_last_row_of_a_hash_is_found(
    batches: list[list[tuple[tuple[int, int], int, int, str]]], piece: int
) -> None:
    held: dict[tuple[int, int], tuple[int, int, str]] = {}
    with TemporaryDirectory() as where, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_runs, "PIECE_ROWS", piece)
        runs, other = SortedRuns(Path(where), WITH_TEXT), SortedRuns(Path(where), WITH_TEXT)
        for batch in batches:
            columns = {
                "high": np.array([h for (h, _), *_ in batch], np.uint64),
                "low": np.array([low for (_, low), *_ in batch], np.uint64),
                "word": np.array([word for _, word, *_ in batch], np.uint64),
                "number": np.array([number for *_, number, _ in batch], np.int64),
            }
            texts = pl.Series([text for *_, text in batch], dtype=pl.String)
            runs.adopt(runs.stage(Rows.of(WITH_TEXT, columns, texts)))
            held.update({key: (word, number, text) for key, word, number, text in batch})
            other.load(runs.names)
            for seen in (runs, other):
                _look(seen, held)


def _look(runs: SortedRuns, held: dict[tuple[int, int], tuple[int, int, str]]) -> None:
    asked = [*held, (7, 1), (2, 77)][::-1]
    is_found, rows = runs.find(
        np.array([h for h, _ in asked], np.uint64), np.array([low for _, low in asked], np.uint64)
    )
    assert is_found.tolist() == [key in held for key in asked]
    found = zip(rows["word"].tolist(), rows["number"].tolist(), rows.text().to_list(), strict=True)
    assert list(found) == [held[key] for key in asked if key in held]


@given(st.lists(st.lists(st.integers(0, 40), max_size=20), min_size=1, max_size=2 * FAN))
def test_a_hash_of_one_word_is_there_once(batches: list[list[int]]) -> None:
    with TemporaryDirectory() as where:
        runs = SortedRuns(Path(where), BARE)
        for batch in batches:
            runs.adopt(runs.stage(Rows.of(BARE, {"low": np.array(batch, np.uint64)})))
        asked = np.arange(50, dtype=np.uint64)
        is_found, rows = runs.find(np.zeros_like(asked), asked)
        assert set(asked[is_found].tolist()) == {n for batch in batches for n in batch}
        assert rows["low"].tolist() == asked[is_found].tolist()


@given(st.lists(st.integers(1, 5_000) | st.integers(1, 9), max_size=400))
def test_runs_stay_few_whatever_the_sizes_of_batches(batches: list[int]) -> None:
    sizes: list[int] = []
    written = 0
    for size in batches:
        first = sorted_runs._first_merged(sizes, size)
        sizes = [*sizes[:first], sum(sizes[first:]) + size]
        written += sizes[-1]
    levels = int(math.log(max(sum(sizes), 1), FAN)) + 1
    assert len(sizes) <= (FAN - 1) * levels
    assert written <= sum(batches) * (levels + 1)
    assert sum(sizes) == sum(batches)


def test_merged_runs_are_sorted_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_runs, "PIECE_ROWS", 1 << 10)
    runs, rng = SortedRuns(tmp_path, BARE), np.random.default_rng(1)
    numbers = np.unique(rng.integers(0, 1 << 63, FAN**2 * 1_000, np.uint64))
    rng.shuffle(numbers)
    for batch in np.array_split(numbers, FAN**2):
        runs.adopt(runs.stage(Rows.of(BARE, {"low": batch})))
    (merged,) = runs.names
    assert np.fromfile(tmp_path / merged, np.uint64).tolist() == np.sort(numbers).tolist()
