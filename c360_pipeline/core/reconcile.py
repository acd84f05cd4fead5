"""Reconciliation: is the graph equal to its archive, and where is it not.

Both sides are frames of the same columns, key first; a row is compared by a hash of its canonical text.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from c360_pipeline.core.keys import hash128


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
    """A column as text, null where it is null.

    Instants count in microseconds of UTC; lists, structs and maps (by key) are JSON.
    """
    column = pl.col(name)
    match dtype:
        case pl.Datetime():
            return column.dt.epoch("us").cast(pl.String)
        case pl.Map():
            entries = pl.List(pl.Struct({"key": dtype.key, "value": dtype.value}))
            return pl.struct(column.cast(entries).list.sort().alias("v")).struct.json_encode()
        case pl.List() | pl.Struct():
            return pl.struct(column.alias("v")).struct.json_encode()
        case pl.Binary():
            return column.bin.encode("hex")
        case _:
            return column.cast(pl.String)


def type_class(dtype: pl.DataType) -> str:
    """What kind of value a column holds; whole numbers are one kind whatever their width."""
    if dtype.is_integer():
        return "integer"
    if isinstance(dtype, pl.Datetime):
        return "instant" if dtype.time_zone else "local time"
    return "float" if dtype.is_float() else type(dtype).__name__.lower()


def row_hashes(frame: pl.DataFrame) -> pl.Series:
    """A 128-bit hash of each row's columns, taken in the order of their names.

    Names and kinds of values count too: 1 is neither "1" nor 1.0, and null is like nothing but null.
    """
    if frame.is_empty():
        return pl.Series("row_hash", [], dtype=pl.String)
    parts = [_encoded(name, frame.schema[name]) for name in sorted(frame.columns)]
    return frame.select(hash128(pl.concat_str(parts)).cast(pl.String).alias("row_hash")).to_series()


def _encoded(name: str, dtype: pl.DataType) -> pl.Expr:
    text = canonical_text(name, dtype)
    length = text.str.len_bytes().cast(pl.String)
    value = pl.concat_str(pl.lit(f"{name} {type_class(dtype)} "), length, pl.lit(":"), text)
    return pl.coalesce(value, pl.lit(f"{name} null;"))


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
    expected, found = _with_comparable_keys(expected, found, key)
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


def _with_comparable_keys(
    expected: pl.DataFrame, found: pl.DataFrame, key: list[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both sides with keys of the same types: text, where somebody wrote a key of another type into the graph."""
    differing = [c for c in key if expected.schema[c] != found.schema[c]]
    sides = (side.with_columns(canonical_text(c, side.schema[c]) for c in differing) for side in (expected, found))
    first, second = sides
    return first, second


def _named(kind: str, rows: pl.DataFrame, key: list[str], difference: pl.Expr) -> pl.DataFrame:
    if rows.is_empty():
        return pl.DataFrame(schema=FINDING_COLUMNS)
    label = pl.concat_str([canonical_text(c, rows.schema[c]).fill_null("nothing") for c in key], separator=" ")
    return rows.select(kind=pl.lit(kind), key=label, difference=difference.cast(pl.String))


def _difference(columns: list[str], schema: pl.Schema) -> pl.Expr:
    """`price: archive 9.5, graph 9.0; name: …` for each column that differs."""
    parts = []
    for name in columns:
        sides = [(n, schema[n]) for n in (name, f"{name}_found")]
        ours, theirs = (_encoded(n, t).str.strip_prefix(n) for n, t in sides)
        shown = (canonical_text(n, t).str.slice(0, 80).fill_null("nothing") for n, t in sides)
        parts.append(pl.when(ours != theirs).then(pl.format("{}: archive {}, graph {}", pl.lit(name), *shown)))
    return pl.concat_str(parts, separator="; ", ignore_nulls=True) if parts else pl.lit("")
