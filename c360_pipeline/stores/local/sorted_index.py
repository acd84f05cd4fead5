"""Rows by hash in sorted files on this machine: looking rows up costs what is looked for, not what is there.

Writing adds a sorted run; runs are merged so that their sizes grow geometrically, as in a log-structured merge tree.
The newest row of a hash counts. Runs are merged piece by piece, so that memory does not grow with them. A file holds
records of a fixed width one after the other and is mapped into memory; texts that belong to them are in one beside it.
Once written, files never change.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from c360_pipeline.core.kernels.sorted_hashes import copy_texts, find_sorted

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Kind = np.dtype[Any]
HIGH, LOW = "high", "low"
TEXT_START, TEXT_BYTES = "text_start", "text_bytes"
FAN = 8
"""So many runs of about one size become one: a row is rewritten log8 of the number of batches times."""
PIECE_ROWS = 1 << 16
"""About as many rows are merged at once."""
RECORDS, TEXTS = ".records", ".texts"


def record(words: Sequence[str] = (), numbers: Sequence[str] = (), *, texts: bool = False) -> Kind:
    """The layout of a record: columns of 64 bits.

    Args:
        words: unsigned; `low` and, where hashes have 128 bits, `high` are the hash that rows are found by.
        numbers: with a sign.
        texts: whether each has a text.
    """
    signed = [*numbers, *((TEXT_START, TEXT_BYTES) if texts else ())]
    return np.dtype([*((name, np.uint64) for name in words), *((name, np.int64) for name in signed)])


@dataclass(frozen=True)
class Rows:
    """Records, and their texts.

    Attributes:
        records: with `TEXT_START` and `TEXT_BYTES` where they have texts.
        texts: bytes that hold all texts of these, in any order.
    """

    records: npt.NDArray[Any]
    texts: Bytes = field(default_factory=lambda: np.empty(0, np.uint8))

    @classmethod
    def of(cls, kind: Kind, columns: Mapping[str, npt.NDArray[Any]], texts: pl.Series | None = None) -> "Rows":
        """From columns by name, and one text per row."""
        records = np.empty(len(columns[LOW]), kind)
        for name, column in columns.items():
            records[name] = column
        if texts is None:
            return cls(records)
        lengths = texts.str.len_bytes().cast(pl.Int64).to_numpy()
        records[TEXT_BYTES], records[TEXT_START] = lengths, np.cumsum(lengths) - lengths
        return cls(records, np.frombuffer("".join(texts.to_list()).encode(), np.uint8))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return np.asarray(self.records[name])

    def slice(self, start: int, stop: int) -> "Rows":
        """Rows that stand side by side."""
        return Rows(self.records[start:stop], self.texts)

    def text(self) -> pl.Series:
        """The texts, one per row."""
        packed = gathered([(self, None)], self.records.dtype)
        ends = np.append(np.int64(0), np.cumsum(packed[TEXT_BYTES])).astype(np.int64)
        array = pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(ends.data), pa.py_buffer(packed.texts.data))
        return pl.Series("text", array, dtype=pl.String)


def gathered(parts: Sequence[tuple[Rows, Ints | None]], kind: Kind) -> Rows:
    """A copy of rows of several, one after the other; their texts lie in the same order.

    Args:
        parts: of each rows and the places in these, or None for all.
        kind: of all.
    """
    words = [_as_words(rows.records) if at is None else _as_words(rows.records).take(at, 0) for rows, at in parts]
    taken = words[0] if len(words) == 1 and parts[0][1] is not None else np.concatenate(words)
    records = taken.view(kind).reshape(-1)
    if TEXT_BYTES not in (kind.names or ()):
        return Rows(records)
    starts, lengths = records[TEXT_START].copy(), records[TEXT_BYTES]
    ends = np.cumsum(lengths)
    into, first = np.empty(int(lengths.sum()), np.uint8), 0
    for (rows, _), part in zip(parts, words, strict=True):
        here = slice(first, first + len(part))
        copy_texts(rows.texts, starts[here], lengths[here], into, (ends - lengths)[here])
        first += len(part)
    records[TEXT_START] = ends - lengths
    return Rows(records, into)


def _as_words(records: npt.NDArray[Any]) -> Words:
    """Records as rows of 64 bits, which are copied as a whole."""
    words: Words = records.view(np.uint64).reshape(len(records), records.dtype.itemsize // 8)
    return words


@dataclass(frozen=True)
class _Run:
    path: Path
    rows: Rows

    @classmethod
    def open(cls, path: Path, kind: Kind) -> "_Run":
        """Map a run into memory.

        Raises:
            FileNotFoundError: another worker merged it.
            ValueError: it is not whole, as after a crash of the machine.
        """
        records = np.memmap(path, kind, mode="r").view(np.ndarray)
        if f"-{len(records)}" not in path.stem:
            raise ValueError(f"{path} holds {len(records)} records, which is not what its name says")
        if TEXT_BYTES not in (kind.names or ()):
            return cls(path, Rows(records))
        beside = path.with_suffix(TEXTS)
        held, end = beside.stat().st_size, int(records[-1][TEXT_START] + records[-1][TEXT_BYTES])
        if held != end:
            raise ValueError(f"{beside} has {held} bytes instead of {end}")
        return cls(
            path, Rows(records, np.memmap(beside, np.uint8, mode="r").view(np.ndarray)) if end else Rows(records)
        )

    def find(self, high: Words, low: Words) -> Ints:
        """The place of each hash, -1 where it is not; hashes by their lower words."""
        first, count = find_sorted(self.rows[LOW], low)
        place = np.where(count > 0, first, -1)
        if HIGH not in (self.rows.records.dtype.names or ()):
            return place
        held_high = self.rows[HIGH]
        # Hashes of the same lower word are distinguished by the upper one; hardly ever are there several.
        differs = np.flatnonzero(count > 0)
        differs = differs[held_high[place[differs]] != high[differs]]
        for n in differs:
            same = np.flatnonzero(held_high[first[n] : first[n] + count[n]] == high[n])
            place[n] = first[n] + same[0] if len(same) else -1
        return place


class SortedRuns:
    """Rows of one kind.

    Args:
        folder: where the files are.
        kind: as `record` makes it.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        self._folder = folder
        self._kind = kind
        self._runs: list[_Run] = []

    @property
    def names(self) -> list[str]:
        """File names of the runs, the oldest first; texts have the same with another suffix."""
        return [run.path.name for run in self._runs]

    def load(self, names: Sequence[str]) -> None:
        """Take these files as the runs.

        Raises:
            FileNotFoundError: another worker merged one of them.
            ValueError: one is not of whole records.
        """
        held = {run.path.name: run for run in self._runs}
        self._runs = [held.get(name) or _Run.open(self._folder / name, self._kind) for name in names]

    def find(self, high: Words, low: Words) -> tuple[npt.NDArray[np.bool_], Rows]:
        """Look hashes up.

        Returns:
            Of each hash whether it is there, and the rows of those that are, in the order of the hashes.
        """
        order = np.argsort(low)
        left_high, left_low = high[order], low[order]
        parts, asked = [], []
        for run in reversed(self._runs):
            place = run.find(left_high, left_low)
            is_here = place >= 0
            if is_here.any():
                parts.append((run.rows, place[is_here]))
                asked.append(order[is_here])
                order, left_high, left_low = order[~is_here], left_high[~is_here], left_low[~is_here]
        is_found = np.zeros(len(low), np.bool_)
        if not parts:
            return is_found, Rows(np.empty(0, self._kind))
        positions = np.concatenate(asked)
        is_found[positions] = True
        return is_found, gathered([(gathered(parts, self._kind), np.argsort(positions))], self._kind)

    def stage(self, rows: Rows) -> "StagedRun | None":
        """Write what the runs are with some more rows, of which the last of a hash counts; nothing reads it yet."""
        if not len(rows):
            return None
        new = _sorted([rows], self._kind)
        first = _first_merged([len(run.rows) for run in self._runs], len(new))
        kept, parts = self._runs[:first], [*(run.rows for run in self._runs[first:]), new]
        self._folder.mkdir(parents=True, exist_ok=True)
        path = _write(self._folder, self._kind, _merged(parts, self._kind) if len(parts) > 1 else iter(parts))
        return StagedRun(_Run.open(path, self._kind), tuple(kept))

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
        """Do away with the files."""
        for path in (self.run.path, self.run.path.with_suffix(TEXTS)):
            path.unlink(missing_ok=True)


def _first_merged(sizes: Sequence[int], size: int) -> int:
    """From which run on all become one with a new run.

    Runs are smaller towards the end, by levels of `FAN` times the size, with fewer than `FAN` of each level: a merge
    lifts rows by a level, whatever the sizes of batches are.
    """
    first = len(sizes)
    while True:
        level = _level(size)
        lower = first
        while lower and _level(sizes[lower - 1]) < level:
            lower -= 1
        equal = lower
        while equal and _level(sizes[equal - 1]) == level:
            equal -= 1
        taken = equal if lower - equal >= FAN - 1 else lower
        if taken == first:
            return first
        size += sum(sizes[taken:first])
        first = taken


def _level(size: int) -> int:
    return int(math.log(size, FAN))


def _merged(parts: Sequence[Rows], kind: Kind) -> Iterator[Rows]:
    """Sorted rows of several that are sorted; of those of one hash the last."""
    largest = max(parts, key=len)
    step = max(PIECE_ROWS * len(largest) // sum(len(part) for part in parts), 1)
    bounds = np.unique(largest[LOW][step::step])
    cuts = [[0, *np.searchsorted(part[LOW], bounds).tolist(), len(part)] for part in parts]
    for n in range(len(bounds) + 1):
        yield _sorted([part.slice(cut[n], cut[n + 1]) for part, cut in zip(parts, cuts, strict=True)], kind)


def _sorted(parts: Sequence[Rows], kind: Kind) -> Rows:
    """Rows by lower word; of those of one hash the last."""
    low = np.concatenate([part[LOW] for part in parts])
    order = np.argsort(low, kind="stable")
    is_last = np.ones(len(order), np.bool_)
    is_next = low[order][1:] == low[order][:-1]
    is_last[:-1] = ~is_next
    if HIGH in (kind.names or ()) and is_next.any():
        high = np.concatenate([part[HIGH] for part in parts])
        same = is_next & (high[order][1:] == high[order][:-1])
        if (is_next & ~same).any():
            # Hashes that share a lower word stand mixed: their order is that of both words.
            order = np.lexsort((np.arange(len(low)), high, low))
            same = (low[order][1:] == low[order][:-1]) & (high[order][1:] == high[order][:-1])
        is_last[:-1] = ~same
    beside = gathered([(part, None) for part in parts], kind) if len(parts) > 1 else parts[0]
    return gathered([(beside, order[is_last])], kind)


def _write(folder: Path, kind: Kind, pieces: Iterator[Rows]) -> Path:
    """Write rows; the number of records is in the name, by which a file that is not whole shows."""
    rows = text_bytes = 0
    unfinished = folder / f"{uuid4().hex}{RECORDS}"
    with ExitStack() as files:
        records = files.enter_context(unfinished.open("wb"))
        has_texts = TEXT_BYTES in (kind.names or ())
        texts = files.enter_context(unfinished.with_suffix(TEXTS).open("wb")) if has_texts else None
        for piece in pieces:
            if texts:
                piece.records[TEXT_START] += text_bytes
                text_bytes += len(piece.texts)
                texts.write(piece.texts.data)
            records.write(piece.records.data)
            rows += len(piece)
    path = folder / f"{unfinished.stem}-{rows}{RECORDS}"
    if has_texts:
        unfinished.with_suffix(TEXTS).rename(path.with_suffix(TEXTS))
    return unfinished.rename(path)
