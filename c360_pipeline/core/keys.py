"""Identifiers: which values of an event are keys, their normal form, and their hash.

Source: "Apache AGE Journey Stitching" for the correlation keys; the normal form and the length-prefixed hash
follow docs/adr/0009.
"""

from dataclasses import dataclass

import polars as pl
import polars_hash  # noqa: F401 - registers the `nchash` expressions

MAX_KEY_CHARACTERS = 1024
MODES = ("link", "weak", "ignore")
JUNK = (
    "", "null", "none", "nil", "nan", "undefined", "unknown", "anonymous", "n/a", "na", "-", "-1", "0", "(null)",
    "00000000-0000-0000-0000-000000000000",
    # md5, sha1 and sha256 of the empty string: what a producer sends that hashes a missing email.
    "d41d8cd98f00b204e9800998ecf8427e",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
)  # fmt: skip
"""Values that name nobody; compared without regard to case."""

CASE_FOLDED = ("email_hash",)
"""Key types whose values are hexadecimal digests: their case carries no meaning."""


@dataclass(frozen=True)
class KeyRule:
    """A control row of `correlation_key_rules`: the attribute that holds a type of key, and what it may do.

    `source` is a column of the event by its contract name (`userId`) or one of its attributes (`attrs.deviceId`).
    """

    tenant_id: str
    key_type: str
    source: str
    mode: str = "link"


COLUMN_OF = {"userId": "user_id", "sessionId": "session_id", "itemId": "item_id", "action": "action"}


def extract_keys(events: pl.DataFrame, rules: list[KeyRule]) -> pl.DataFrame:
    """The keys of each event that take part in stitching.

    Args:
        events: rows with tenant_id, event_id, the source columns and attrs.
        rules: rules of all tenants; `tenant_id` `*` speaks for every tenant that has no rule of its own for the type.

    Returns:
        tenant_id, event_id, key_type, key_hash: one row per event and key, without repetitions.
    """
    parts = [_keys_of_rule(events, rule, rules) for rule in rules if rule.mode == "link"]
    if not parts:
        return pl.DataFrame(schema=dict.fromkeys(("tenant_id", "event_id", "key_type", "key_hash"), pl.String))
    return pl.concat(parts).unique(maintain_order=True)


def _keys_of_rule(events: pl.DataFrame, rule: KeyRule, rules: list[KeyRule]) -> pl.DataFrame:
    if rule.tenant_id == "*":
        own = [r.tenant_id for r in rules if r.key_type == rule.key_type and r.tenant_id != "*"]
        scope = ~pl.col("tenant_id").is_in(own)
    else:
        scope = pl.col("tenant_id") == rule.tenant_id
    value = source_value(rule.source)
    return (
        events.filter(scope)
        .select("tenant_id", "event_id", pl.lit(rule.key_type).alias("key_type"), normalised(value, rule.key_type))
        .drop_nulls("value")
        .select("tenant_id", "event_id", "key_type", key_hash().alias("key_hash"))
    )


def source_value(source: str) -> pl.Expr:
    """The expression that reads a rule's source from an event row."""
    if source.startswith("attrs."):
        return pl.col("attrs").map.get(source.removeprefix("attrs."))
    return pl.col(COLUMN_OF[source])


def normalised(value: pl.Expr, key_type: str) -> pl.Expr:
    """NFKC without surrounding or zero-width blanks; null for junk and for more than 1,024 characters."""
    text = value.str.normalize("NFKC").str.replace_all("[\u200b\u200c\u200d\u2060\ufeff]", "").str.strip_chars()
    if key_type in CASE_FOLDED:
        text = text.str.to_lowercase()
    text = text.str.replace(r"^(-?[1-9]\d*)\.0+$", "$1")
    usable = ~text.str.to_lowercase().is_in(JUNK) & (text.str.len_chars() <= MAX_KEY_CHARACTERS)
    return pl.when(usable).then(text).otherwise(None).alias("value")


def key_hash() -> pl.Expr:
    """128 bits of xxh3 over the length-prefixed tenant, type and value, as decimal digits.

    Length prefixes instead of a separator: a value that holds the separator can't collide with another.
    """
    parts = [
        pl.concat_str(pl.col(name).str.len_bytes().cast(pl.String), pl.lit(":"), pl.col(name))
        for name in ("tenant_id", "key_type", "value")
    ]
    return hash128(pl.concat_str(parts))


def hash128(text: pl.Expr) -> pl.Expr:
    """A stable 128-bit hash (xxh3) of text, as decimal digits; the same in every process and version."""
    namespace = text.nchash  # type: ignore[attr-defined]  # registered by polars_hash
    digest: pl.Expr = namespace.xxh3_128()
    return digest.cast(pl.String)
