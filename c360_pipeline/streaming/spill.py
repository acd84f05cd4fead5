"""Rows on this machine's disk, in parts that fit into memory, so that what is compared may be larger than that."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds

from c360_pipeline.core.arrays.batches import gathered
from c360_pipeline.core.arrays.row_hashes import identity_hash

PART = "part"
GATHERED_ROWS = 100_000
"""Rows that are divided together: each time they become a row group in every part."""


class Spill:
    """Rows in parts; equal keys are in one part.

    Args:
        folder: where the files are to be; made here.
        key: columns by whose hash rows are divided.
        parts: how many.
        schema: of the rows.
    """

    def __init__(self, folder: Path, key: Iterable[str], parts: int, schema: pl.Schema) -> None:
        self._folder = folder
        self._key = list(key)
        self.parts = parts
        self._schema = schema

    def write(self, frames: Iterable[pl.DataFrame]) -> None:
        """Write all rows; once."""
        self._folder.mkdir()
        arrow = pl.DataFrame(schema=self._schema).to_arrow().schema.append(pa.field(PART, pa.int64()))
        reader = pa.RecordBatchReader.from_batches(arrow, self._divided(frames, arrow))
        ds.write_dataset(
            reader, self._folder, format="parquet", partitioning=[PART], max_open_files=self.parts + 1,
            max_partitions=self.parts + 1,
        )  # fmt: skip

    def _divided(self, frames: Iterable[pl.DataFrame], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for rows in gathered(frames, GATHERED_ROWS):
            part = (identity_hash(rows, self._key) % self.parts).cast(pl.Int64).alias(PART)
            yield from rows.with_columns(part).to_arrow().cast(schema).to_batches()

    def read(self, part: int) -> pl.DataFrame:
        """The rows of a part, in any order."""
        files = sorted((self._folder / str(part)).glob("*.parquet"))
        return pl.concat([pl.DataFrame(schema=self._schema), *(pl.read_parquet(file) for file in files)])
