"""Rows by 128-bit key in sorted files on this machine: looking rows up costs what is looked for, not what is there.

Writing adds a sorted run; runs are merged so that their sizes grow geometrically, as in a log-structured merge tree.
The newest row of a key counts. Files are Arrow IPC, mapped into memory; once written they never change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from c360_pipeline.core.sorted_hashes import find_sorted

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
HIGH, LOW = "high", "low"
FAN = 4
"""So many runs of about one size become one: a row is written anew log4 of the number of batches times."""


@dataclass(frozen=True)
class _Run:
    path: Path
    table: pa.Table

    @classmethod
    def open(cls, path: Path) -> "_Run":
        with pa.memory_map(str(path)) as source:
            return cls(path, pa.ipc.open_file(source).read_all())

    def word(self, name: str) -> Words:
        return np.asarray(self.table[name].chunk(0)) if self.table.num_rows else np.empty(0, np.uint64)

    def find(self, high: Words, low: Words) -> Ints:
        """The place of each key, -1 where it is not; keys by their lower words."""
        held_high = self.word(HIGH)
        first, count = find_sorted(self.word(LOW), low)
        place = np.where(count > 0, first, -1)
        # Keys of the same lower word are told apart by the upper one; hardly ever are there several.
        differs = np.flatnonzero(count > 0)
        differs = differs[held_high[place[differs]] != high[differs]]
        for n in differs:
            same = np.flatnonzero(held_high[first[n] : first[n] + count[n]] == high[n])
            place[n] = first[n] + same[0] if len(same) else -1
        return place


class SortedRuns:
    """Rows of one schema, whose first columns are `high` and `low`.

    Args:
        folder: where the files are.
        schema: of the rows.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder = folder
        self._schema = schema
        self._runs: list[_Run] = []

    @property
    def names(self) -> list[str]:
        """File names of the runs, the oldest first."""
        return [run.path.name for run in self._runs]

    def load(self, names: Sequence[str]) -> None:
        """Take these files as the runs.

        Raises:
            FileNotFoundError: another worker merged one of them.
        """
        held = {run.path.name: run for run in self._runs}
        self._runs = [held.get(name) or _Run.open(self._folder / name) for name in names]

    def find(self, high: Words, low: Words) -> tuple[npt.NDArray[np.bool_], pa.Table]:
        """Look keys up.

        Returns:
            Of each key whether it is there, and the rows of those that are, in the order of the keys.
        """
        run_of = np.full(len(low), -1, np.int64)
        place_of = np.full(len(low), -1, np.int64)
        order = np.argsort(low)
        for number in range(len(self._runs) - 1, -1, -1):
            run = self._runs[number]
            left = order[run_of[order] < 0]
            place_of[left] = run.find(high[left], low[left])
            run_of[left[place_of[left] >= 0]] = number
        is_found = run_of >= 0
        parts, positions = [self._schema.empty_table()], [np.empty(0, np.int64)]
        for number, run in enumerate(self._runs):
            asked = np.flatnonzero(run_of == number)
            if len(asked):
                parts.append(run.table.take(pa.array(place_of[asked], pa.int64())))
                positions.append(asked)
        rows = pa.concat_tables(parts).combine_chunks()
        return is_found, rows.take(pa.array(np.argsort(np.concatenate(positions)), pa.int64()))

    def stage(self, rows: pa.Table) -> "StagedRun | None":
        """Write what the runs would be with some more rows, of which the last of a key counts; nothing reads it yet."""
        if not rows.num_rows:
            return None
        tables = [rows.cast(self._schema)]
        kept = list(self._runs)
        while _are_alike([*(run.table.num_rows for run in kept[-FAN + 1 :]), sum(t.num_rows for t in tables)]):
            tables = [*(run.table for run in kept[-FAN + 1 :]), *tables]
            kept = kept[: -FAN + 1]
        table = _sorted(tables)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{uuid4().hex}.arrow"
        with pa.ipc.new_file(str(path), self._schema) as writer:
            writer.write_table(table)
        return StagedRun(_Run.open(path), tuple(kept))

    def adopt(self, staged: "StagedRun | None") -> None:
        """Take a staged run up."""
        if staged is not None:
            self._runs = [*staged.kept, staged.run]


@dataclass(frozen=True)
class StagedRun:
    """A run that is written and not read yet.

    Attributes:
        run: the new one.
        kept: those before it; others are in it.
    """

    run: _Run
    kept: tuple[_Run, ...]

    def discard(self) -> None:
        """Do away with the file."""
        self.run.path.unlink(missing_ok=True)


def _are_alike(sizes: list[int]) -> bool:
    """Whether these are as many runs as are merged, and none is much larger than the others."""
    return len(sizes) == FAN and max(sizes) <= 2 * (sum(sizes) - max(sizes)) / (FAN - 1)


def _sorted(tables: list[pa.Table]) -> pa.Table:
    """Rows by lower word; of those of one key the last."""
    table = pa.concat_tables(tables).combine_chunks()
    high, low = (np.asarray(table[name].chunk(0)) for name in (HIGH, LOW))
    order = np.argsort(low, kind="stable")
    is_last = np.ones(len(order), np.bool_)
    sorted_high, sorted_low = high[order], low[order]
    same = (sorted_low[1:] == sorted_low[:-1]) & (sorted_high[1:] == sorted_high[:-1])
    is_last[:-1] = ~same
    if (~same & (sorted_low[1:] == sorted_low[:-1])).any():
        # Keys that share a lower word stand mixed: their order is that of both words.
        order = np.lexsort((np.arange(len(low)), high, low))
        is_last[:-1] = (low[order][1:] != low[order][:-1]) | (high[order][1:] != high[order][:-1])
    return table.take(pa.array(order[is_last], pa.int64())).combine_chunks()
