"""The event contract over columns: whole batches of lines at once, for the lines that are plainly good.

A grammar accepts lines in their usual form: known fields, each once, strings without escapes or braces, plain numbers.
What it accepts becomes exactly the events that `events.parse_event` makes of the same lines; everything else, good or
bad, is left to that function, which also has the reasons. A property in the tests holds the two together.
"""

from datetime import datetime

import polars as pl
import polars_hash  # noqa: F401 - registers the `chash` expressions

from c360_pipeline.core.events import (
    EARLIEST,
    LATEST_AHEAD,
    MAX_ATTRS,
    MAX_LINE_BYTES,
    MAX_STRING_CHARACTERS,
    MAX_TENANT_BYTES,
    NO_TENANT,
    REQUIRED_STRINGS,
)

_SPACE = r"[ \t\n\r]*"
_STRING = r'"[^"\\{}\x00-\x1f]*"'
# Sorting whole attributes by text sorts them by name as long as names hold nothing that sorts before a quotation mark.
_ATTR_NAME = r'"[^"\\{}\x00-\x21]*"'
# Numbers whose text is what Python makes of their value: no exponent, no trailing zero, at most four decimals.
_NUMBER = r"(?:-?(?:0|[1-9]\d{0,8})\.\d{0,3}[1-9]|-?[1-9]\d{0,14}|0)"
_ATTR = rf"{_ATTR_NAME}:{_SPACE}(?:{_STRING}|{_NUMBER}|true|false|null)"
_ATTRS = rf'"attrs":{_SPACE}\{{{_SPACE}(?:{_ATTR}(?:,{_SPACE}{_ATTR})*)?{_SPACE}\}}'
_OPTIONAL = ("itemId", "eventId")
_NULLABLE = (*_OPTIONAL, "attrs")
_STRINGS = (*(f.name for f in REQUIRED_STRINGS), *_OPTIONAL)
_MEMBER = "|".join(
    (
        rf'"(?:{"|".join(_STRINGS)})":{_SPACE}{_STRING}',
        rf'"(?:{"|".join(_NULLABLE)})":{_SPACE}null',
        rf'"ts":{_SPACE}(?:{_STRING}|\d{{12,13}})',
        _ATTRS,
    )
)
_LINE = rf"^{_SPACE}\{{{_SPACE}(?:{_MEMBER})(?:,{_SPACE}(?:{_MEMBER}))*{_SPACE}\}}{_SPACE}$"
_NAME = rf'"(?:{"|".join((*_STRINGS, "ts", "attrs"))})":'
_RFC3339 = r"^\d{4}-\d\d-\d\dT\d\d:[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)$"
_NO_PAIRS = pl.lit([], dtype=pl.List(pl.Struct({"key": pl.String, "value": pl.String})))


def parse_columns(lines: pl.DataFrame, now: datetime, *, is_ascii: bool) -> pl.DataFrame:
    """The events of the lines that the grammar accepts.

    Args:
        lines: `number` (unique, ascending) and `line` (text of a line; whitespace at its ends does not matter).
        now: the moment of landing, UTC.
        is_ascii: whether all lines are; then nothing needs to be composed.

    Returns:
        `number` and the fields of `events.Event`, in the order of the lines; attributes are sorted by name. A line
        whose number is not among them is not plainly good.
    """
    line = pl.col("line")
    usual = lines.filter(line.str.len_bytes() <= MAX_LINE_BYTES, line.str.contains(_LINE))
    if not is_ascii:
        # Composing the whole line composes its strings: nothing combines with the quotation marks around them.
        usual = usual.with_columns(line.str.normalize("NFC"))
    fields = _fields(usual)
    good = fields.join(_attrs(fields), on="number", how="left", maintain_order="left").filter(_is_plainly_good(now))
    hashed = good.with_columns(content_hash=_content_hash())
    return hashed.select(
        "number",
        event_id=pl.coalesce("eventId", "content_hash"),
        tenant_id="tenantId",
        user_id="userId",
        session_id="sessionId",
        ts="ts",
        action="action",
        item_id=_item(),
        attrs=pl.col("attr_pairs").fill_null(_NO_PAIRS).cast(pl.Map(pl.String, pl.String)),
        content_hash="content_hash",
    )


def _fields(usual: pl.DataFrame) -> pl.DataFrame:
    """One column per field as it stands in the line, and how often names occur outside its attributes."""
    # The grammar leaves two objects at most: the event and its attributes.
    opened = pl.col("line").str.splitn("{", 3).struct
    closed = opened.field("field_2").str.splitn("}", 2).struct
    split = usual.select(
        "number",
        attr_text=closed.field("field_0"),
        rest=pl.concat_str(opened.field("field_1"), closed.field("field_1").fill_null("")),
    )
    rest = pl.col("rest")
    return (
        split.with_columns(
            **{name: rest.str.extract(rf'"{name}":{_SPACE}"([^"]*)"') for name in _STRINGS},
            **{f"{name}_is_null": rest.str.contains(rf'"{name}":{_SPACE}null') for name in _NULLABLE},
            ts_text=rest.str.extract(rf'"ts":{_SPACE}"([^"]*)"'),
            ts_ms=rest.str.extract(rf'"ts":{_SPACE}(\d+)').cast(pl.Int64),
            names=rest.str.count_matches(_NAME),
        )
        .drop("rest")
        .with_columns(
            ts=pl.coalesce(_from_rfc3339(), pl.from_epoch("ts_ms", "ms").dt.cast_time_unit("us")).dt.replace_time_zone(
                "UTC"
            )
        )
    )


def _from_rfc3339() -> pl.Expr:
    """`ts_text` as an instant of UTC without zone; null where it has another form or is no date."""
    text = pl.when(pl.col("ts_text").str.contains(_RFC3339)).then(pl.col("ts_text"))
    second = text.str.head(19).str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False)
    micros = text.str.extract(r"\.(\d{1,6})").str.pad_end(6, "0").cast(pl.Int64).fill_null(0)
    hours, minutes = (text.str.extract(r"[+-](\d\d):(\d\d)$", n).cast(pl.Int64).fill_null(0) for n in (1, 2))
    sign = pl.when(text.str.contains(r"-\d\d:\d\d$")).then(-1).otherwise(1)
    return second + pl.duration(microseconds=micros) - pl.duration(minutes=sign * (hours * 60 + minutes))


def _attrs(fields: pl.DataFrame) -> pl.DataFrame:
    """One row per line with attributes.

    Returns:
        number; attr_pairs (list of key and value) and attr_json, both sorted by name; attr_repeats, whether a name
        occurs twice; attr_longest, in characters.
    """
    entries = (
        fields.select("number", entry=pl.col("attr_text").str.extract_all(_ATTR).list.sort())
        .explode("entry", empty_as_null=False, keep_nulls=False)
        .select("number", pl.col("entry").str.splitn('":', 2).struct.unnest())
        .select("number", key=pl.col("field_0").str.slice(1), text=pl.col("field_1").str.strip_chars_start(" \t\n\r"))
        .with_columns(
            value=pl.col("text").str.strip_chars('"'),
            repeats=(pl.col("number") == pl.col("number").shift()) & (pl.col("key") == pl.col("key").shift()),
        )
        .with_columns(
            json=pl.concat_str(pl.lit('["'), "key", pl.lit('","'), "value", pl.lit('"]')),
            longest=pl.max_horizontal(pl.col("key", "value").str.len_chars()),
        )
    )
    kept = pl.col("text") != "null"
    return entries.group_by("number", maintain_order=True).agg(
        attr_pairs=pl.struct("key", "value").filter(kept),
        attr_json=pl.col("json").filter(kept).str.join(","),
        attr_repeats=pl.col("repeats").any(),
        attr_longest=pl.col("longest").max(),
    )


def _is_plainly_good(now: datetime) -> pl.Expr:
    """Whether each field is there once and within its limits."""
    values = [*(pl.col(name).is_not_null() for name in _STRINGS), pl.col("attr_text").is_not_null()]
    nulls = [pl.col(f"{name}_is_null") for name in _NULLABLE]
    ts_forms = [pl.col("ts_text").is_not_null(), pl.col("ts_ms").is_not_null()]
    found = pl.sum_horizontal(present.cast(pl.UInt32) for present in (*values, *nulls, *ts_forms))
    both = [
        pl.col(f"{n}_is_null") & pl.col(c).is_not_null() for n, c in zip(_NULLABLE, _VALUE_OF_NULLABLE, strict=True)
    ]
    earliest, latest = (pl.lit(at).cast(pl.Datetime("us", "UTC")) for at in (EARLIEST, now + LATEST_AHEAD))
    return pl.all_horizontal(
        *(pl.col(f.name).str.strip_chars() != "" for f in REQUIRED_STRINGS),
        *(pl.col(name).fill_null("").str.len_chars() <= MAX_STRING_CHARACTERS for name in _STRINGS),
        pl.col("eventId").fill_null("-").str.strip_chars() != "",
        pl.col("tenantId").str.len_bytes() <= MAX_TENANT_BYTES // 3,
        pl.col("tenantId") != NO_TENANT,
        pl.col("ts").is_between(earliest, latest),
        pl.col("names") == found,
        *(~pair for pair in both),
        ~pl.all_horizontal(ts_forms),
        ~pl.col("attr_repeats").fill_null(value=False),
        pl.col("attr_longest").fill_null(0) <= MAX_STRING_CHARACTERS,
        pl.col("attr_pairs").list.len().fill_null(0) <= MAX_ATTRS,
    ).fill_null(value=False)


_VALUE_OF_NULLABLE = (*_OPTIONAL, "attr_text")


def _content_hash() -> pl.Expr:
    """`events.canonical_hash`: strings of the grammar hold nothing that JSON escapes."""
    comma = pl.lit('","')
    item = pl.concat_str(pl.lit('"'), _item(), pl.lit('"')).fill_null("null")
    form = pl.concat_str(
        pl.lit('["'), "tenantId", comma, "userId", comma, "sessionId", pl.lit('",'), pl.col("ts").dt.epoch("us"),
        pl.lit(',"'), "action", pl.lit('",'), item, pl.lit(",["), pl.col("attr_json").fill_null(""), pl.lit("]]"),
    )  # fmt: skip
    digest: pl.Expr = form.chash.sha2_256()  # type: ignore[attr-defined]  # registered by polars_hash
    return digest


def _item() -> pl.Expr:
    """An empty item counts as none."""
    return pl.when(pl.col("itemId") != "").then(pl.col("itemId"))
