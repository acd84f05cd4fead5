"""The dead letters of rows that the graph refuses."""

from datetime import UTC, datetime
from functools import cached_property

import polars as pl

from c360_pipeline.core.catalog.tables import DEAD_LETTERS
from c360_pipeline.core.landing.dead_letters import closed
from c360_pipeline.core.projection.graph import Kind
from c360_pipeline.core.projection.refused import REFUSED, by_entity, letter_keys, row_keys
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.refusals import Refusals


class RefusedRows:
    """The queue of refused rows.

    Args:
        lake: holds the dead letters.
        refusals: of the graph that is written.
    """

    def __init__(self, lake: Lake, refusals: Refusals) -> None:
        self._lake = lake
        self._refusals = refusals
        for entity, keys in self.refused.items():
            refusals.know(entity, keys)

    @cached_property
    def waiting(self) -> dict[str, frozenset[str]]:
        """Key texts of open letters, by kind's name, when this was first asked."""
        return by_entity(self.letters("open"))

    @cached_property
    def put_aside(self) -> dict[str, frozenset[str]]:
        """Key texts of discarded letters, by kind's name, when this was first asked."""
        return by_entity(self.letters("discarded"))

    @property
    def refused(self) -> dict[str, frozenset[str]]:
        """Both."""
        names = {*self.waiting, *self.put_aside}
        return {n: self.waiting.get(n, frozenset()) | self.put_aside.get(n, frozenset()) for n in names}

    def letters(self, status: str) -> pl.DataFrame:
        """Letters of a status, with `entity` and `key`, without their bytes; none whose bytes were erased."""
        is_refused = (pl.col("error_class") == REFUSED) & (pl.col("status") == status) & pl.col("raw").is_not_null()
        return letter_keys(self._lake.scan(DEAD_LETTERS).filter(is_refused).collect())

    def publish(self) -> int:
        """Put what this process met into the queue, open again if it was replayed; returns how many letters."""
        if not self._refusals.letters:
            return 0
        met = pl.concat(self._refusals.letters).unique("dead_letter_id", keep="first", maintain_order=True)
        held = self._lake.held(DEAD_LETTERS, met, ["dead_letter_id", "status", "first_seen_at"])
        known = held.select("dead_letter_id", was="status", since="first_seen_at")
        letters = (
            met.join(known, on="dead_letter_id", how="left", maintain_order="left")
            .filter(pl.col("was").is_null() | (pl.col("was") == "replayed"))
            .with_columns(first_seen_at=pl.coalesce("since", "first_seen_at"))
            .select(list(DEAD_LETTERS.columns))
        )
        return self._lake.commits.merge(DEAD_LETTERS, letters)

    def resolve(self, kind: Kind, rows: pl.DataFrame, resolution: str) -> int:
        """Close the open letters of rows that were written, or that the archive does not have any more.

        Args:
            kind: of the rows.
            rows: key columns.
            resolution: what became of them.
        """
        letters = self.letters("open").filter(pl.col("entity") == kind.name)
        if letters.is_empty() or rows.is_empty():
            return 0
        done = letters.filter(pl.col("key").is_in(list(set(row_keys(kind, rows)) - self._refusals.unwritten(kind))))
        held = self._lake.held(DEAD_LETTERS, done.select("dead_letter_id"), list(DEAD_LETTERS.columns))
        resolved = closed(held, "replayed", resolution, datetime.now(UTC))
        return self._lake.commits.merge(DEAD_LETTERS, resolved)
