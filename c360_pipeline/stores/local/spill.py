"""Rows in memory or on this machine's disk, in parts by key, so that what is compared may be larger than memory."""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import polars as pl

from c360_pipeline.core.arrays.row_hashes import identity_hash

PARTS = 32
FLUSHED_BYTES = 12 * 1024 * 1024
"""Rows on their way to disk are put there when they have so many bytes."""
_PART = "__c360_part"


class Spill:
    """Rows in parts; equal keys are in one part, and rows keep their order within it.

    Attributes:
        on_disk: whether the rows are, or are to be, on disk.
        rows: how many.
        bytes: of them in memory.

    Args:
        folder: where the files are to be.
        key: columns by whose hash rows are divided.
        schema: of the rows.
        parts: on disk; in memory there is one.
        memory_bytes: rows up to this size stay in memory; 0 for rows that go to disk at once.
    """

    def __init__(
        self, folder: Path, key: Iterable[str], schema: pl.Schema, *, parts: int = PARTS, memory_bytes: int = 0
    ) -> None:
        self._folder = folder
        self._key = list(key)
        self._schema = schema
        self._parts = parts
        self._memory_bytes = memory_bytes
        self._frames: list[pl.DataFrame] = []
        self._waiting_bytes = 0
        self._files = 0
        self.on_disk = memory_bytes == 0
        self.rows = 0
        self.bytes = 0

    @property
    def parts(self) -> int:
        """How many there are."""
        return self._parts if self.on_disk else 1

    def add(self, rows: pl.DataFrame) -> None:
        """Put rows away."""
        if rows.is_empty():
            return
        size = int(rows.estimated_size())
        self.rows += rows.height
        self.bytes += size
        self._waiting_bytes += size
        self._frames.append(rows)
        if self._waiting_bytes > (FLUSHED_BYTES if self.on_disk else self._memory_bytes):
            self.to_disk()

    def filled(self, frames: Iterable[pl.DataFrame]) -> Self:
        """With all of some frames."""
        for rows in frames:
            self.add(rows)
        return self

    def to_disk(self) -> None:
        """Put what is in memory on disk."""
        self.on_disk = True
        if not self._frames:
            return
        rows = pl.concat(self._frames)
        part = (identity_hash(rows, self._key) % self._parts).alias(_PART)
        groups = rows.with_columns(part).partition_by(_PART, as_dict=True, include_key=False)
        for (number,), group in groups.items():
            folder = self._folder / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            group.write_ipc(folder / f"{self._files:06}.arrow", compression="lz4")
        self._files += 1
        self._frames, self._waiting_bytes = [], 0

    def part(self, number: int) -> pl.DataFrame:
        """The rows of a part, in the order in which they came."""
        if not self.on_disk:
            return pl.concat([pl.DataFrame(schema=self._schema), *self._frames])
        self.to_disk()
        files = sorted((self._folder / str(number)).glob("*.arrow"))
        return pl.concat([pl.DataFrame(schema=self._schema), *(pl.read_ipc(file) for file in files)])
