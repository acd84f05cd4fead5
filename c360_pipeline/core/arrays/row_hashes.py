"""Hashes that stand for rows: of a key, so that it is found fast, and of a user, for the list of the suppressed."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_hash  # noqa: F401 - registers the `chash` and `nchash` expressions

Words = npt.NDArray[np.uint64]
WORD = 1 << 64


def user_hash(user: pl.Expr | None = None) -> pl.Expr:
    """What stands for a user in the list of the suppressed, before secrets cover it: sha256 of tenant and user.

    Args:
        user: the user's id in its normal form; the column `user_id` as it is where it is not given.
    """
    tenant, user = pl.col("tenant_id"), pl.col("user_id") if user is None else user
    text = pl.concat_str(tenant.str.len_bytes(), pl.lit(":"), tenant, user)
    digest: pl.Expr = text.chash.sha2_256()  # type: ignore[attr-defined]  # registered by polars_hash
    return digest


def trace_hash(kind: str, *values: pl.Expr) -> pl.Expr:
    """What stands on that list for a visitor or a visit that is somebody's alone; never what stands for a user.

    Args:
        kind: `visitor`, `visit`, or `shared` for a visitor that was not.
        values: ids in their normal form: the visitor's, of a visit that of its session before.
    """
    tenant = pl.col("tenant_id")
    parts = [part for value in values for part in (value.str.len_bytes(), pl.lit(":"), value)]
    text = pl.concat_str(pl.lit(f"{kind} "), tenant.str.len_bytes(), pl.lit(":"), tenant, *parts)
    digest: pl.Expr = text.chash.sha2_256()  # type: ignore[attr-defined]  # registered by polars_hash
    return digest


def row_name_hash(table: str, rows: pl.DataFrame, key: Iterable[str]) -> pl.Series:
    """What stands for rows in the list of the suppressed: sha256 of the table's name and the key, tenant first."""
    columns = [_as_text(name, rows.schema[name]).fill_null("") for name in key]
    parts = [part for column in columns for part in (column.str.len_bytes(), pl.lit(":"), column)]
    digest: pl.Expr = pl.concat_str(pl.lit(f"{table} "), *parts).chash.sha2_256()  # type: ignore[attr-defined]  # registered by polars_hash
    return rows.select(digest.alias("row_hash")).to_series()


def identity_hash(rows: pl.DataFrame, key: Iterable[str]) -> pl.Series:
    """64 bits per row: equal keys have equal hashes, and other keys hardly ever."""
    columns = [_as_text(name, rows.schema[name]).fill_null("") for name in key]
    parts = [part for column in columns for part in (column.str.len_bytes(), pl.lit(":"), column)]
    hashed: pl.Expr = pl.concat_str(parts).nchash.xxh3_64()  # type: ignore[attr-defined]  # registered by polars_hash
    return rows.select(hashed).to_series()


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    return pl.col(name).bin.encode("hex") if dtype == pl.Binary() else pl.col(name).cast(pl.String)


def hash128(text: pl.Expr) -> pl.Expr:
    """A stable 128-bit hash (xxh3) of text; the same in every process and version."""
    namespace = text.nchash  # type: ignore[attr-defined]  # registered by polars_hash
    digest: pl.Expr = namespace.xxh3_128()
    return digest


def words(hashes: pl.Series) -> tuple[Words, Words]:
    """The upper and the lower 64 bits of 128-bit hashes."""
    word = pl.lit(WORD, dtype=pl.UInt128)
    parts = pl.DataFrame({"hash": hashes}).select(
        high=(pl.col("hash") // word).cast(pl.UInt64), low=(pl.col("hash") % word).cast(pl.UInt64)
    )
    return parts["high"].to_numpy(), parts["low"].to_numpy()
