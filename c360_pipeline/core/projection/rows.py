"""Rows of a kind: what each value and each key is as text."""

from collections.abc import Sequence

import polars as pl


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


def key_text(columns: Sequence[str], schema: pl.Schema) -> pl.Expr:
    """A key as people read it; a text that holds a blank stands in quotes, so that two keys are never alike."""
    parts = [canonical_text(c, schema[c]) for c in columns]
    shown = [pl.when(p.str.contains(r'[\s"]') | (p == "")).then(_in_quotes(p)).otherwise(p) for p in parts]
    return pl.concat_str([p.fill_null("nothing") for p in shown], separator=" ")


def _in_quotes(text: pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit('"'), text.str.replace_all('"', '""', literal=True), pl.lit('"'))
