"""Rows as Cypher literals, column by column: for scripts that people run by hand, where values can't be parameters."""

import polars as pl

from c360_pipeline.errors import ContractError

_ESCAPES = (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"), ("\x85", "\\u0085"),
            ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))  # fmt: skip
"""Characters that end a string or a line; without line ends inside, every statement of a script is one line."""
_MICROS = "%Y-%m-%dT%H:%M:%S%.6f"


def row_literals(rows: pl.DataFrame, quoted_names: dict[str, str]) -> pl.Series:
    """Each row as a map such as `{`id`: 1, `name`: 'Ann'}`; nulls are left out, they are no properties.

    Args:
        rows: text, whole numbers, floats, booleans, dates, times with or without zone; bytes are left out.
        quoted_names: how each column is written, by name.

    Raises:
        ContractError: a column of another type.
    """
    parts = [
        pl.lit(f", {quoted_names[name]}: ") + _literal(name, dtype)
        for name, dtype in rows.schema.items()
        if dtype != pl.Binary()
    ]
    joined = pl.concat_str([part.fill_null("") for part in parts]).str.strip_prefix(", ")
    return rows.select((pl.lit("{") + joined + pl.lit("}")).alias("literal")).to_series()


def _literal(name: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.col(name)
    if dtype == pl.String():
        for character, escape in _ESCAPES:
            value = value.str.replace_all(character, escape, literal=True)
        return pl.lit("'") + value + pl.lit("'")
    if dtype.is_float():
        return _float_literal(value)
    if dtype.is_integer() or dtype == pl.Boolean():
        return value.cast(pl.String)
    if dtype == pl.Date():
        return pl.lit("date('") + value.dt.strftime("%Y-%m-%d").str.zfill(10) + pl.lit("')")
    if isinstance(dtype, pl.Datetime):
        moment = value.dt.replace_time_zone(None).dt.strftime(_MICROS).str.zfill(26)
        if dtype.time_zone:
            return pl.lit("datetime('") + moment + pl.lit("+00:00')")
        return pl.lit("localdatetime('") + moment + pl.lit("')")
    raise ContractError(f"Column {name!r} is {dtype}, which has no literal in Cypher.")


def _float_literal(value: pl.Expr) -> pl.Expr:
    infinity = pl.when(value > 0).then(pl.lit("Infinity")).otherwise(pl.lit("-Infinity"))
    special = pl.when(value.is_nan()).then(pl.lit("NaN")).otherwise(infinity)
    text = pl.lit("toFloat('") + special + pl.lit("')")
    return pl.when(value.is_finite()).then(value.cast(pl.String)).when(value.is_not_null()).then(text)
