"""Reconciliation: is the graph equal to its archive, and where is it not.

Both sides are frames of the same columns, key first; a row is compared by a hash of its canonical text.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from c360_pipeline.core.keys import hash128

NULL = "\x00"


@dataclass(frozen=True)
class Comparison:
    """One label or relationship type of one tenant, archive against graph.

    Attributes:
        expected_count: rows in the archive.
        found_count: rows in the graph.
        expected_digest: order-free digest of the archive's rows.
        found_digest: order-free digest of the graph's rows.
        findings: kind (missing, ghost, altered, duplicate), key, difference.
    """

    expected_count: int
    found_count: int
    expected_digest: str
    found_digest: str
    findings: pl.DataFrame

    @property
    def is_equal(self) -> bool:
        """Whether both sides hold the same rows."""
        return self.expected_digest == self.found_digest


FINDING_COLUMNS = {"kind": pl.String, "key": pl.String, "difference": pl.String}


def canonical_text(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column as text that is equal exactly when type and value are.

    Instants count in microseconds of UTC; lists, structs and maps (by key) as JSON; null has a text that no value has.
    """
    column = pl.col(name)
    match dtype:
        case pl.Datetime():
            text = column.dt.epoch("us").cast(pl.String)
        case pl.Map():
            entries = pl.List(pl.Struct({"key": dtype.key, "value": dtype.value}))
            text = pl.struct(column.cast(entries).list.sort()).struct.json_encode()
        case pl.List() | pl.Struct():
            text = pl.struct(column).struct.json_encode()
        case pl.Binary():
            text = column.bin.encode("hex")
        case _:
            text = column.cast(pl.String)
    return text.fill_null(NULL)


def row_hashes(frame: pl.DataFrame) -> pl.Series:
    """A 128-bit hash of each row's columns, taken in the order of their names; the names and types count too."""
    if frame.is_empty():
        return pl.Series("row_hash", [], dtype=pl.String)
    parts: list[pl.Expr] = []
    for name in sorted(frame.columns):
        text = canonical_text(name, frame.schema[name])
        parts += [pl.lit(f"{name}="), text.str.len_bytes().cast(pl.String), pl.lit(":"), text]
    return frame.select(hash128(pl.concat_str(parts)).alias("row_hash")).to_series()


def digest(hashes: pl.Series) -> str:
    """sha256 over the sorted row hashes, in hex: equal for the same set of rows in any order."""
    return hashlib.sha256("\n".join(hashes.sort().to_list()).encode()).hexdigest()


def combined_digest(parts: Mapping[str, str]) -> str:
    """sha256 over named digests, in hex; their order does not matter."""
    return hashlib.sha256("\n".join(f"{name} {part}" for name, part in sorted(parts.items())).encode()).hexdigest()


def compare(expected: pl.DataFrame, found: pl.DataFrame, key: list[str]) -> Comparison:
    """Compare archive and graph; rows are looked at only when the digests differ.

    Args:
        expected: rows as the archive has them.
        found: rows as the graph has them, the same columns.
        key: columns that name a row.
    """
    expected_hashes, found_hashes = row_hashes(expected), row_hashes(found)
    expected_digest, found_digest = digest(expected_hashes), digest(found_hashes)
    findings = pl.DataFrame(schema=FINDING_COLUMNS)
    if expected_digest != found_digest:
        findings = _findings(
            expected.with_columns(expected_hashes), found.with_columns(found_hashes), key, expected.columns
        )
    return Comparison(expected.height, found.height, expected_digest, found_digest, findings)


def _findings(expected: pl.DataFrame, found: pl.DataFrame, key: list[str], columns: list[str]) -> pl.DataFrame:
    duplicated = found.group_by(key).len().filter(pl.col("len") > 1)
    both = expected.join(found, on=key, suffix="_found", nulls_equal=True).filter(
        pl.col("row_hash") != pl.col("row_hash_found")
    )
    parts = [
        _named("missing", expected.join(found, on=key, how="anti", nulls_equal=True), key, pl.lit("")),
        _named("ghost", found.join(expected, on=key, how="anti", nulls_equal=True), key, pl.lit("")),
        _named("altered", both, key, _difference([c for c in columns if c not in key], both.schema)),
        _named("duplicate", duplicated, key, pl.format("{} times", pl.col("len")) if duplicated.height else pl.lit("")),
    ]
    return pl.concat(parts)


def _named(kind: str, rows: pl.DataFrame, key: list[str], difference: pl.Expr) -> pl.DataFrame:
    if rows.is_empty():
        return pl.DataFrame(schema=FINDING_COLUMNS)
    label = pl.concat_str([canonical_text(c, rows.schema[c]) for c in key], separator=" ")
    return rows.select(kind=pl.lit(kind), key=label, difference=difference.cast(pl.String))


def _difference(columns: list[str], schema: pl.Schema) -> pl.Expr:
    """`price: archive 9.5, graph 9.0; name: …` for each column that differs."""
    parts = []
    for name in columns:
        ours = canonical_text(name, schema[name])
        theirs = canonical_text(f"{name}_found", schema[f"{name}_found"])
        parts.append(
            pl.when(ours != theirs).then(
                pl.format("{}: archive {}, graph {}", pl.lit(name), _shown(ours), _shown(theirs))
            )
        )
    return pl.concat_str(parts, separator="; ", ignore_nulls=True) if parts else pl.lit("")


def _shown(text: pl.Expr) -> pl.Expr:
    return pl.when(text == NULL).then(pl.lit("nothing")).otherwise(text.str.slice(0, 80))
