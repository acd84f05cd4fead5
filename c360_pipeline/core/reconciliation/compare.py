"""Reconciliation: is the graph equal to its archive, and where is it not.

Both sides are frames of the same columns. A row is identified by a hash of its canonical text, many rows by how many
they are and the sum of their hashes: in any order the same, and of two sets together the sum of both (docs/adr/0027).
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

import polars as pl

from c360_pipeline.core.arrays.row_hashes import hash128, words
from c360_pipeline.core.catalog.changes import difference
from c360_pipeline.core.projection.graph import DAY
from c360_pipeline.core.projection.rows import canonical_text, key_text, type_class


@dataclass(frozen=True)
class Comparison:
    """One label or relationship type of one tenant, archive against graph.

    Attributes:
        buckets: day, expected, found (rows), expected_digest, found_digest: of each day, null for rows without one.
        expected_count: rows in the archive.
        found_count: rows in the graph.
        expected_digest: of the archive's rows.
        found_digest: of the graph's rows.
        findings: `FINDING_COLUMNS`.
        content_digest: of the graph's rows without the hashes of identifiers, which other secrets make others.
    """

    buckets: pl.DataFrame
    expected_count: int
    found_count: int
    expected_digest: str
    found_digest: str
    findings: pl.DataFrame
    content_digest: str

    @property
    def is_equal(self) -> bool:
        """Whether both sides hold the same rows."""
        return self.expected_digest == self.found_digest


FINDING_COLUMNS = {"kind": pl.String, "key": pl.String, "difference": pl.String, "day": pl.Date}
"""kind is missing, ghost, altered or duplicate."""
FROM, TO = "from_", "to_"
"""How key columns of the two ends of a relationship begin."""
_STRANGE, _FOUND, _HASH = " (strange)", " (found)", "(hash)"
HASHED_ROWS = 200_000
"""Rows that are text at once."""
NO_ROWS = "0-0"
"""The digest of no rows."""


def strange(name: str) -> str:
    """The column that says what is at a place where no value of a column's type is."""
    return name + _STRANGE


def row_hashes(frame: pl.DataFrame, later: Collection[str] = ()) -> pl.Series:
    """A 128-bit hash of each row's columns, taken in the order of their names; UInt128.

    Names and kinds of values count too: 1 is neither "1" nor 1.0, and null is like nothing but null.

    Args:
        frame: rows.
        later: columns that a later release added: a row that has nothing there has the hash that it had without them.
    """
    if frame.is_empty():
        return pl.Series(_HASH, [], dtype=pl.UInt128)
    text = pl.concat_str([_encoded(name, frame.schema[name], later) for name in sorted(frame.columns)])
    # The texts are several times what they stand for: some rows at a time.
    parts = [part.select(hash128(text).alias(_HASH)) for part in frame.iter_slices(HASHED_ROWS)]
    return pl.concat(parts).to_series()


def _encoded(name: str, dtype: pl.DataType, later: Collection[str] = ()) -> pl.Expr:
    text = canonical_text(name, dtype)
    length = text.str.len_bytes().cast(pl.String)
    value = pl.concat_str(pl.lit(f"{name} {type_class(dtype)} "), length, pl.lit(":"), text)
    return pl.coalesce(value, pl.lit("" if name in later else f"{name} null;"))


def digest(hashes: pl.Series) -> str:
    """Of rows by their hashes: how many, and the sum of the hashes modulo 2^128, in hex."""
    return digests_by_bucket(_no_days(len(hashes)), hashes).total


def _no_days(rows: int) -> pl.Series:
    return pl.Series(DAY, [None], dtype=pl.Date).new_from_index(0, rows)


@dataclass(frozen=True)
class BucketDigests:
    """The digests of the buckets of one side.

    Attributes:
        buckets: day, rows, digest.
        total: the digest of all rows.
        rows: of all buckets.
    """

    buckets: pl.DataFrame
    total: str
    rows: int


def digests_by_bucket(days: pl.Series, hashes: pl.Series) -> BucketDigests:
    """The digest of the rows of each day."""
    high, low = words(hashes)
    # Sums of 64 bits wrap, so 128 bits are added in four parts: 2^32 rows fit.
    quarters = {"a": high >> 32, "b": high & 0xFFFFFFFF, "c": low >> 32, "d": low & 0xFFFFFFFF}
    frame = pl.DataFrame({DAY: days, **quarters})
    sums = frame.group_by(DAY).agg(pl.len().alias("rows"), pl.col(*quarters).sum()).sort(DAY)
    rows = sums.select("rows", *quarters).rows()
    each = pl.Series("digest", [_digest_text(row) for row in rows], dtype=pl.String)
    totals = [sum(column) for column in zip(*rows, strict=True)] or [0] * 5
    return BucketDigests(sums.select(DAY, "rows", each), _digest_text(totals), totals[0])


def sum_of_digests(digests: Iterable[str]) -> str:
    """The digest of all rows of some parts, by the digests of the parts."""
    parts = [(int(count), int(total, 16)) for count, _, total in (d.partition("-") for d in digests)]
    return f"{sum(c for c, _ in parts)}-{sum(t for _, t in parts) % (1 << 128):x}"


def _digest_text(sums: Sequence[int]) -> str:
    count, a, b, c, d = sums
    return f"{count}-{((a << 96) + (b << 64) + (c << 32) + d) % (1 << 128):x}"


def combined_digest(parts: Mapping[str, str]) -> str:
    """sha256 over named digests, in hex; their order does not matter."""
    return hashlib.sha256("\n".join(f"{name} {part}" for name, part in sorted(parts.items())).encode()).hexdigest()


SIDES = ("archive", "graph")
"""What findings call the two sides."""


def compare(
    expected: pl.DataFrame,
    found: pl.DataFrame,
    key: list[str],
    sides: tuple[str, str] = SIDES,
    later: Collection[str] = (),
    identifiers: Collection[str] = (),
) -> Comparison:
    """Compare archive and graph; only rows of days whose digests differ are looked at one by one.

    Args:
        expected: rows as the archive has them; with a column `DAY` they are distinguished by day.
        found: rows as the graph has them, the same columns.
        key: columns that name a row.
        sides: what the differences call the two.
        later: as in `row_hashes`.
        identifiers: columns that hold a key as `type:hash`.
    """
    columns = [c for c in found.columns if c != DAY]
    expected = expected.with_columns(pl.lit(None, pl.String).alias(c) for c in columns if c not in expected.columns)
    (ours, expected_sums), (theirs, found_sums) = (_hashed(side, columns, later) for side in (expected, found))
    buckets = _side_by_side(expected_sums.buckets, found_sums.buckets)
    differing = buckets.filter(pl.col("expected_digest") != pl.col("found_digest")).select(pl.col("day").alias(DAY))
    findings = pl.DataFrame(schema=FINDING_COLUMNS)
    if differing.height:
        ours, theirs = (side.join(differing, on=DAY, how="semi", nulls_equal=True) for side in (ours, theirs))
        findings = _findings(ours, theirs, key, columns, sides)
    content = found_sums.total
    if identifiers:
        content = digest(row_hashes(found.select(columns).with_columns(map(_key_type, identifiers)), later))
    return Comparison(
        buckets, expected_sums.rows, found_sums.rows, expected_sums.total, found_sums.total, findings, content
    )  # fmt: skip


def without_days(comparison: Comparison) -> Comparison:
    """The same with all rows in one bucket."""
    row = (None, comparison.expected_count, comparison.found_count, comparison.expected_digest, comparison.found_digest)
    buckets = pl.DataFrame([row], schema=comparison.buckets.schema, orient="row")
    return replace(comparison, buckets=buckets)


def together(parts: Sequence[Comparison]) -> Comparison:
    """The comparison of all rows of a kind, by those of parts that have none in common."""
    if len(parts) == 1:
        return parts[0]
    days: dict[date | None, list[tuple[int, int, str, str]]] = {}
    for part in parts:
        for day, *sums in part.buckets.iter_rows():
            days.setdefault(day, []).append((sums[0], sums[1], sums[2], sums[3]))
    rows = [
        (day, sum(ours), sum(theirs), sum_of_digests(expected), sum_of_digests(found))
        for day, (ours, theirs, expected, found) in sorted(
            ((day, tuple(zip(*sums, strict=True))) for day, sums in days.items()),
            key=lambda one: (one[0] is not None, one[0]),
        )
    ]
    return Comparison(
        pl.DataFrame(rows, schema=parts[0].buckets.schema, orient="row"),
        sum(part.expected_count for part in parts),
        sum(part.found_count for part in parts),
        sum_of_digests(part.expected_digest for part in parts),
        sum_of_digests(part.found_digest for part in parts),
        pl.concat(part.findings for part in parts),
        sum_of_digests(part.content_digest for part in parts),
    )


def _key_type(column: str) -> pl.Expr:
    """Of `type:hash` the type."""
    return pl.col(column).str.replace(r":\d+$", "")


def only_ghosts(keys: Sequence[str]) -> Comparison:
    """Of rows that the archive does not have, by what they are called."""
    findings = pl.DataFrame(
        {"kind": "ghost", "key": pl.Series(keys, dtype=pl.String), "difference": "", "day": None},
        schema=FINDING_COLUMNS,
    )
    found = digests_by_bucket(findings["day"], row_hashes(findings.select("key")))
    buckets = _side_by_side(found.buckets.clear(), found.buckets)
    return Comparison(buckets, 0, found.rows, NO_ROWS, found.total, findings, found.total)


def _hashed(rows: pl.DataFrame, columns: list[str], later: Collection[str]) -> tuple[pl.DataFrame, BucketDigests]:
    said = rows.select(columns)
    day = rows[DAY] if DAY in rows.columns else _no_days(rows.height)
    hashes = row_hashes(said, later)
    return said.with_columns(hashes, day), digests_by_bucket(day, hashes)


def _side_by_side(expected: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    both = expected.join(found, on=DAY, how="full", coalesce=True, nulls_equal=True, suffix="_found").sort(DAY)
    return both.select(
        day=DAY,
        expected=pl.col("rows").fill_null(0).cast(pl.Int64),
        found=pl.col("rows_found").fill_null(0).cast(pl.Int64),
        expected_digest=pl.col("digest").fill_null(NO_ROWS),
        found_digest=pl.col("digest_found").fill_null(NO_ROWS),
    )


def _findings(
    expected: pl.DataFrame, found: pl.DataFrame, key: list[str], columns: list[str], sides: tuple[str, str]
) -> pl.DataFrame:
    expected, found = _with_comparable_keys(expected, found, key)
    duplicated = found.group_by(key).agg(pl.len().alias("(times)"), pl.col(DAY).first()).filter(pl.col("(times)") > 1)
    both = expected.join(found, on=key, suffix=_FOUND, nulls_equal=True).filter(pl.col(_HASH) != pl.col(_HASH + _FOUND))
    keys = difference(found.select(key), expected.select(key), key)
    missing = expected.join(keys.inserted, on=key, how="semi", nulls_equal=True)
    ghosts = found.join(keys.deleted, on=key, how="semi", nulls_equal=True)
    parts = [
        _named("missing", missing, key, _redirected(missing, ghosts, key, f"the {sides[1]} has {{}} instead")),
        _named("ghost", ghosts, key, _redirected(ghosts, missing, key, f"the {sides[0]} has {{}} instead")),
        _named("altered", both, key, _difference([c for c in columns if c not in key], both.schema, sides)),
        _named(
            "duplicate", duplicated, key, pl.format("{} times", pl.col("(times)")) if duplicated.height else pl.lit("")
        ),
    ]
    return pl.concat(parts)


def _redirected(rows: pl.DataFrame, others: pl.DataFrame, key: list[str], text: str) -> pl.Expr:
    """What stands in place of a relationship that leads from, or to, another node than it should; empty where nothing.

    Such a one is missing where it should be and a ghost where it is.
    """
    sources = [name for name in key if name.startswith(FROM)]
    if not sources or rows.is_empty() or others.is_empty():
        return pl.lit("")
    said = []
    for shared, other in ((FROM, TO), (TO, FROM)):
        same = ["tenant_id", *(name for name in key if name.startswith(shared))]
        ends = [name for name in key if name.startswith(other)]
        once = others.filter(pl.struct(same).is_unique())
        named = once.select(*same, instead=key_text(ends, once.schema))
        met = rows.select(same).join(named, on=same, how="left", maintain_order="left", nulls_equal=True)
        alone = rows.select(pl.struct(same).is_unique()).to_series()
        said.append(pl.select(pl.when(alone).then(met["instead"])).to_series())
    return pl.format(text, pl.coalesce(*map(pl.lit, said))).fill_null("")


def _with_comparable_keys(
    expected: pl.DataFrame, found: pl.DataFrame, key: list[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both sides with keys as text, where somebody wrote a key of another type into the graph."""
    odd = [c for c in key if strange(c) in found.columns]
    sides = (
        side.with_columns(pl.coalesce(strange(c), canonical_text(c, side.schema[c])).alias(c) for c in odd)
        for side in (expected, found)
    )
    first, second = sides
    return first, second


def _named(kind: str, rows: pl.DataFrame, key: list[str], difference: pl.Expr) -> pl.DataFrame:
    if rows.is_empty():
        return pl.DataFrame(schema=FINDING_COLUMNS)
    label = key_text(key, rows.schema)
    return rows.select(kind=pl.lit(kind), key=label, difference=difference.cast(pl.String), day=DAY)


def _difference(columns: list[str], schema: pl.Schema, names: tuple[str, str]) -> pl.Expr:
    """`price: archive 9.5, graph 9.0; name: …` for each column that differs."""
    parts = []
    for name in columns:
        if name.endswith(_STRANGE):
            if (base := name.removesuffix(_STRANGE)) not in columns:
                parts.append(pl.when(pl.col(name + _FOUND).is_not_null()).then(
                    pl.format("{}: {}", pl.lit(base), name + _FOUND)))  # fmt: skip
            continue
        sides = [(n, schema[n]) for n in (name, name + _FOUND)]
        ours, theirs = (_encoded(n, t).str.strip_prefix(n) for n, t in sides)
        archived, found = (canonical_text(n, t).str.slice(0, 80) for n, t in sides)
        differs = ours != theirs
        if strange(name) in columns:
            odd = pl.col(strange(name) + _FOUND)
            differs, found = differs | odd.is_not_null(), pl.coalesce(odd.str.slice(0, 80), found)
        said = pl.format(
            f"{{}}: {names[0]} {{}}, {names[1]} {{}}",
            pl.lit(name),
            archived.fill_null("nothing"),
            found.fill_null("nothing"),
        )
        parts.append(pl.when(differs).then(said))
    return pl.concat_str(parts, separator="; ", ignore_nulls=True) if parts else pl.lit("")
