"""Rows that a graph refuses: those that are known, and those that a process met."""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime

import polars as pl

from c360_pipeline.core.projection.graph import Kind
from c360_pipeline.core.projection.refused import letter, row_keys
from c360_pipeline.errors import InvariantError

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
            self.letters.append(letter(kind, row, f"{code}: {why}", datetime.now(UTC), statement))
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
