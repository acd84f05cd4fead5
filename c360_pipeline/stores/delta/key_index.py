"""Which data files of a table may hold a key: a local index, so that looking for keys costs what the batch costs.

The index is a cache. Data files never change, so what it says of a file stays true; files that it has not seen are
read when it is asked, files that are gone are forgotten when runs are merged. It may be lost or deleted at any time.
Hashes of 64 bits can collide: it names files in which a key may be, the rows decide.

A run is one Arrow IPC file, its rows sorted by hash: `hash` (uint64) and `file` (int32, a position in the list of
files in the schema's metadata). Runs are made under a name of their own and then renamed, so that workers can share a
folder.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from c360_pipeline.core.kernels.sorted_hashes import find_sorted

MAX_RUN_ROWS = 1_000_000
"""Rows of a run that is not merged any more: 8 MiB of hashes."""
MAX_SMALL_RUNS = 8
FILES_AT_ONCE = 64
_SUFFIX = ".keys"

Hashes = npt.NDArray[np.uint64]
FileKeys = Iterable[tuple[str, Hashes]]


@dataclass(frozen=True)
class _Run:
    path: Path
    files: tuple[str, ...]
    rows: int

    @classmethod
    def open(cls, path: Path) -> "_Run":
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            files = json.loads(reader.schema.metadata[b"files"])
            return cls(path, tuple(files), sum(reader.get_batch(n).num_rows for n in range(reader.num_record_batches)))

    def columns(self) -> tuple[Hashes, npt.NDArray[np.int32]]:
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_file(source) as reader:
            table = reader.read_all()
            return table["hash"].to_numpy(), table["file"].to_numpy()

    def find(self, sorted_hashes: Hashes) -> tuple[npt.NDArray[np.bool_], set[str]]:
        """Which of the hashes the run holds, and the files that they are in."""
        held, files = self.columns()
        first, counts = find_sorted(held, sorted_hashes)
        # The places first, first + 1, … of every hash that is there.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return counts > 0, {self.files[n] for n in np.unique(files[np.repeat(first, counts) + within])}


class KeyIndex:
    """The index of one table.

    Args:
        folder: where the runs are; created when the first is written.
        read: the key hashes of data files, file by file.
    """

    def __init__(self, folder: Path, read: Callable[[list[str]], FileKeys]) -> None:
        self._folder = folder
        self._read = read
        self._runs: dict[Path, _Run] = {}
        self._lock = threading.Lock()

    def find(self, hashes: Hashes, files: set[str]) -> tuple[npt.NDArray[np.bool_], set[str]]:
        """Look for keys.

        Args:
            hashes: as `identity_hash` makes them.
            files: data files that the table has now.

        Returns:
            Of each hash whether a key with it may be in the table, and the files to look into.
        """
        with self._lock:
            while True:
                try:
                    self._refresh(files)
                    return self._look(hashes, files)
                except FileNotFoundError:
                    continue  # another worker merged a run meanwhile; what it held is looked for again

    def _look(self, hashes: Hashes, files: set[str]) -> tuple[npt.NDArray[np.bool_], set[str]]:
        order = np.argsort(hashes)
        found = np.zeros(len(hashes), np.bool_)
        where: set[str] = set()
        for run in self._runs.values():
            is_found, in_files = run.find(hashes[order])
            if present := in_files & files:
                where |= present
                found[order[is_found]] = True
        return found, where

    def add(self, parts: FileKeys) -> None:
        """Index files whose keys the caller knows, having just written them."""
        with self._lock:
            self._add(list(parts))

    def _add(self, parts: list[tuple[str, Hashes]]) -> None:
        if parts:
            numbers = np.repeat(np.arange(len(parts), dtype=np.int32), [len(hashes) for _, hashes in parts])
            self._write(np.concatenate([hashes for _, hashes in parts]), numbers, [file for file, _ in parts])

    def _refresh(self, files: set[str]) -> None:
        self._load()
        known = {file for run in self._runs.values() for file in run.files}
        missing = sorted(files - known)
        for start in range(0, len(missing), FILES_AT_ONCE):
            self._add(list(self._read(missing[start : start + FILES_AT_ONCE])))
        self._merge(files)

    def _load(self) -> None:
        paths = set(self._folder.glob(f"*{_SUFFIX}"))
        self._runs = {path: run for path, run in self._runs.items() if path in paths}
        for path in sorted(paths - self._runs.keys()):
            try:
                self._runs[path] = _Run.open(path)
            except FileNotFoundError:
                continue  # another worker merged it meanwhile; its files are in the merged run, or are read again

    def _merge(self, files: set[str]) -> None:
        """Keep the number of runs small; rows of files that are gone are dropped."""
        for run in [r for r in self._runs.values() if not files.intersection(r.files)]:
            self._forget(run)
        small = [run for run in self._runs.values() if run.rows < MAX_RUN_ROWS // 2]
        if len(small) <= MAX_SMALL_RUNS:
            return
        for group in _groups(small):
            named: list[str] = []
            hashes, numbers = [], []
            for run in group:
                run_hashes, run_numbers = run.columns()
                is_there = np.array([file in files for file in run.files])[run_numbers]
                hashes.append(run_hashes[is_there])
                numbers.append(run_numbers[is_there] + np.int32(len(named)))
                # A file that is not there now may be one that comes later: of its rows the run says nothing.
                named += [file if file in files else "" for file in run.files]
            self._write(np.concatenate(hashes), np.concatenate(numbers), named)
            for run in group:
                self._forget(run)

    def _forget(self, run: _Run) -> None:
        run.path.unlink(missing_ok=True)
        del self._runs[run.path]

    def _write(self, hashes: Hashes, numbers: npt.NDArray[np.int32], files: list[str]) -> None:
        order = np.argsort(hashes, kind="stable")
        schema = pa.schema([("hash", pa.uint64()), ("file", pa.int32())], metadata={"files": json.dumps(files)})
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{uuid4().hex}{_SUFFIX}"
        unfinished = path.with_suffix(".new")
        with pa.ipc.new_file(str(unfinished), schema) as writer:
            writer.write_table(pa.table([pa.array(hashes[order]), pa.array(numbers[order])], schema=schema))
        unfinished.rename(path)
        self._runs[path] = _Run(path, tuple(files), len(hashes))


def _groups(runs: list[_Run]) -> Iterator[list[_Run]]:
    """Runs to be merged, at most `MAX_RUN_ROWS` together."""
    group: list[_Run] = []
    for run in sorted(runs, key=lambda r: r.rows):
        if group and sum(r.rows for r in group) + run.rows > MAX_RUN_ROWS:
            if len(group) > 1:
                yield group
            group = []
        group.append(run)
    if len(group) > 1:
        yield group
