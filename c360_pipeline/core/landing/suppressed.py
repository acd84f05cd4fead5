"""The lists of the suppressed: hashes, covered by the secrets of the installation."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl

from c360_pipeline.core.arrays.row_hashes import row_name_hash
from c360_pipeline.core.contract.identifier_keys import IdentifierKeys

PEOPLE = {"tenant_id": pl.String, "user_hash": pl.String}
ROWS = {"lake_table": pl.String, "row_hash": pl.String}


@dataclass(frozen=True)
class Suppressed:
    """Who never lands.

    Attributes:
        listed: `PEOPLE`: `user_hash` and `trace_hash` of the normal form, covered.
        identifiers: the secrets that cover them.
    """

    listed: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=PEOPLE))
    identifiers: IdentifierKeys = field(default=IdentifierKeys())

    @property
    def is_empty(self) -> bool:
        """Whether nobody is."""
        return self.listed.is_empty()

    def covered(self, digest: pl.Expr) -> pl.Expr:
        """A hash as the list has it."""
        return self.identifiers.covered_digests(digest, 0)


@dataclass(frozen=True)
class SuppressedRows:
    """Which rows of silos are never read again.

    Attributes:
        listed: `ROWS`: `row_name_hash`, covered.
        identifiers: the secrets that cover them.
    """

    listed: pl.DataFrame
    identifiers: IdentifierKeys

    def of(self, table: str) -> "SuppressedRows":
        """Those of one table of the lake."""
        return SuppressedRows(self.listed.filter(pl.col("lake_table") == table), self.identifiers)

    @property
    def is_empty(self) -> bool:
        """Whether there are none."""
        return self.listed.is_empty()

    def among(self, table: str, rows: pl.DataFrame, key: Iterable[str]) -> pl.Series:
        """Of each row of a table whether it is on the list."""
        names = row_name_hash(table, rows, key).to_frame("row_hash")
        covered = names.select(self.identifiers.covered_digests(pl.col("row_hash"), 0)).to_series()
        return covered.is_in(self.listed["row_hash"].implode())
