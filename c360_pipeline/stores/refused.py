"""The dead letters of rows that the graph refuses."""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property

import polars as pl

from c360_pipeline.core.dead_letters import closed
from c360_pipeline.core.graph import Kind
from c360_pipeline.core.lake import DEAD_LETTERS
from c360_pipeline.core.refused import REFUSED, by_entity, letter, letter_keys, row_keys
from c360_pipeline.errors import InvariantError
from c360_pipeline.stores.lake import Lake

MOST = 1_000
"""Rows of one process: where more are refused, it is not the rows that are wrong."""


class Refusals:
    """Rows that a database refuses: those that are known, and those met by this process. Safe to use from threads.

    Attributes:
        letters: rows of `DEAD_LETTERS`, one frame each, that this process met.
        samples: by the database's code of an error, a statement that met it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, set[str]] = {}
        self._unwritten: dict[str, set[str]] = {}
        self.letters: list[pl.DataFrame] = []
        self.samples: dict[str, str] = {}

    @property
    def keys(self) -> Mapping[str, set[str]]:
        """Key texts by kind's name."""
        return self._keys

    def know(self, kind_name: str, keys: frozenset[str]) -> None:
        """Take up rows that were refused before."""
        self._keys.setdefault(kind_name, set()).update(keys)

    def add(self, kind: Kind, row: pl.DataFrame, code: str, why: str, statement: str) -> None:
        """Take up a row that was refused now.

        Raises:
            InvariantError: it is one of too many.
        """
        with self._lock:
            if len(self.letters) >= MOST:
                raise InvariantError(
                    f"{kind.name}: the graph refuses row after row, {MOST:,} by now. The last answer: {why}"
                )
            self.letters.append(letter(kind, row, f"{code}: {why}", datetime.now(UTC)))
            self.samples.setdefault(code, statement)
            key = row_keys(kind, row)[0]
            for keys in (self._keys, self._unwritten):
                keys.setdefault(kind.name, set()).add(key)

    def wait(self, kind: Kind, rows: pl.DataFrame) -> None:
        """Take up relationships that could not be written because a node of theirs was refused."""
        with self._lock:
            self._unwritten.setdefault(kind.name, set()).update(row_keys(kind, rows))

    def unwritten(self, kind: Kind) -> frozenset[str]:
        """Key texts of rows of a kind that this process could not write."""
        return frozenset(self._unwritten.get(kind.name, ()))


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

    def keep(self) -> int:
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
        return self._lake.merge(DEAD_LETTERS, letters)

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
        return self._lake.merge(DEAD_LETTERS, resolved)
