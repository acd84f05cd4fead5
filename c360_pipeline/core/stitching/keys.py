"""Identifiers: which values of an event are keys, their normal form, their hash, and what they may do.

Source: "Apache AGE Journey Stitching" for the correlation keys; the normal form and the length-prefixed hash
follow docs/adr/0009, what a rule may say docs/adr/0023.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from c360_pipeline.core.contract.fields import FIELDS, FieldType
from c360_pipeline.core.contract.identifier_keys import IdentifierKeys
from c360_pipeline.core.contract.identifiers import (
    DIGESTS_OF_NOBODY,
    FILLER,
    NOBODY,
    NORMAL_FORM,
    names_nobody,
    normal_form,
)

MAX_KEY_CHARACTERS = 1024
LINK, WEAK, IGNORE = "link", "weak", "ignore"
EVERY_TENANT = "*"
APART = "2"
"""Version of what unique keys do; journeys of an earlier one do not say which others they are kept apart from."""
CASE_FOLDED = ("email_hash",)
"""Key types whose values are hexadecimal digests: their case carries no meaning."""


UNKEYED = IdentifierKeys()
"""Hashes without a secret, as archives of before there were any have them."""


@dataclass(frozen=True)
class KeyRule:
    """A control row of `correlation_key_rules`: the attribute that holds a type of key, and what it may do.

    Attributes:
        tenant_id: whose rule; `*` speaks for every tenant that has no rule of its own for the type.
        key_type: what the value identifies.
        source: a column of the event by its contract name (`userId`) or one of its attributes (`attrs.deviceId`).
        mode: `link` links events, `weak` attaches an event that nothing stronger links, `ignore` makes no key.
        is_unique: two values share a journey only where one event has both.
        max_partners: other keys that one value may meet before it is quarantined; None for any number.
        window_seconds: a value links only events of the same window of time; None for ever.
        pattern: regular expression; such values of the source alone, which other rules of the source then leave out.
    """

    tenant_id: str
    key_type: str
    source: str
    mode: str = LINK
    is_unique: bool = False
    max_partners: int | None = 1000
    window_seconds: int | None = None
    pattern: str | None = None

    def as_said(self) -> dict[str, Any]:
        """What is said of it, so that rules of earlier releases are what they were."""
        said = asdict(self)
        return said if self.pattern is not None else {name: value for name, value in said.items() if name != "pattern"}


@dataclass(frozen=True)
class JourneyLimit:
    """A control row of `journey_limits`: how many keys a journey may have, by tenant; `*` speaks for all others.

    Attributes:
        tenant_id: whose limit.
        soft_max_keys: larger journeys are reported.
        hard_max_keys: a merge that would make a larger one waits for review; None for no limit.
    """

    tenant_id: str = EVERY_TENANT
    soft_max_keys: int | None = 1000
    hard_max_keys: int | None = None


@dataclass(frozen=True)
class KeyPolicy:
    """All that control rows say about stitching.

    Attributes:
        rules: in the order of their strength within unique and others: the first decides where an event goes.
        limits: of journeys.
        blocked: tenant, key type and hash of keys that never link, hash as decimal text.
        parted: tenant, key type and hashes of two unique keys that are not one person, whatever events say.
        nobody: tenant (`*` for all) and further words that name nobody, as `word_of` makes them.
        identifiers: secrets that keys are hashed with.
    """

    rules: tuple[KeyRule, ...]
    limits: tuple[JourneyLimit, ...] = (JourneyLimit(),)
    blocked: frozenset[tuple[str, str, str]] = field(default=frozenset())
    parted: frozenset[tuple[str, str, str, str]] = field(default=frozenset())
    nobody: frozenset[tuple[str, str]] = field(default=frozenset())
    identifiers: IdentifierKeys = field(default=UNKEYED)

    def rules_of(self, tenant_id: str) -> tuple[KeyRule, ...]:
        """The rules that hold for a tenant, the strongest first."""
        own = {rule.key_type for rule in self.rules if rule.tenant_id == tenant_id}
        held = [
            rule
            for rule in self.rules
            if rule.tenant_id == tenant_id or (rule.tenant_id == EVERY_TENANT and rule.key_type not in own)
        ]
        return tuple(sorted(held, key=lambda rule: not rule.is_unique))

    def limit_of(self, tenant_id: str) -> JourneyLimit:
        """The limit that holds for a tenant."""
        by_tenant = {limit.tenant_id: limit for limit in self.limits}
        return by_tenant.get(tenant_id) or by_tenant.get(EVERY_TENANT) or JourneyLimit(tenant_id, None, None)

    @property
    def unique_types(self) -> tuple[str, ...]:
        """Key types that are unique for some tenant, sorted."""
        return tuple(sorted({rule.key_type for rule in self.rules if rule.is_unique and rule.mode == LINK}))

    def fingerprint(self, tenant_id: str) -> str:
        """sha256 of the rules and limits of a tenant, in hex; blocked keys have a fingerprint of their own."""
        said = [*(rule.as_said() for rule in self.rules_of(tenant_id)), asdict(self.limit_of(tenant_id))]
        known = [NORMAL_FORM, NOBODY, FILLER, DIGESTS_OF_NOBODY, self.nobody_of(tenant_id)]
        if any(rule.is_unique and rule.mode == LINK for rule in self.rules_of(tenant_id)):
            known.append(APART)
        return hashlib.sha256(json.dumps([known, said], sort_keys=True).encode()).hexdigest()

    def nobody_of(self, tenant_id: str) -> list[str]:
        """The words that name nobody for a tenant beside those that do for all, sorted."""
        return sorted({word for tenant, word in self.nobody if tenant in (tenant_id, EVERY_TENANT)})

    def blocked_of(self, tenant_id: str) -> list[str]:
        """The blocked keys of a tenant as `type:hash`, and its parted ones as two of them with a blank; sorted."""
        blocked = [f"{kind}:{key}" for tenant, kind, key in self.blocked if tenant == tenant_id]
        parted = [" ".join(sorted((f"{k}:{one}", f"{k}:{two}"))) for t, k, one, two in self.parted if t == tenant_id]
        return sorted([*blocked, *parted])

    def by_type(self, tenants: Iterable[str]) -> pl.DataFrame:
        """One row per tenant and key type that makes keys.

        Returns:
            tenant_id, key_type, is_weak, unique_slot (place in `unique_types`, -1 for others), max_partners (-1 for
            any number), strength (0 is the strongest).
        """
        slots = {name: n for n, name in enumerate(self.unique_types)}
        rows: dict[tuple[str, str], tuple[bool, int, int, int]] = {}
        for tenant in tenants:
            for strength, rule in enumerate(self.rules_of(tenant)):
                if rule.mode != IGNORE and (tenant, rule.key_type) not in rows:
                    slot = slots[rule.key_type] if rule.is_unique and rule.mode == LINK else -1
                    partners = -1 if rule.max_partners is None else rule.max_partners
                    rows[tenant, rule.key_type] = (rule.mode == WEAK, slot, partners, strength)
        return pl.DataFrame([(*key, *row) for key, row in rows.items()], schema=_BY_TYPE, orient="row")


_BY_TYPE = {
    "tenant_id": pl.String, "key_type": pl.String, "is_weak": pl.Boolean, "unique_slot": pl.Int8,
    "max_partners": pl.Int64, "strength": pl.Int16,
}  # fmt: skip
COLUMN_OF = {
    field.name: field.column
    for field in FIELDS
    if field.type is FieldType.TEXT and field.column not in ("event_id", "tenant_id")
}
"""Fields of an event that a rule may name as a key."""
KEY_COLUMNS = {"row": pl.UInt32, "key_type": pl.String, "key_hash": pl.UInt128}


def extract_keys(
    events: pl.DataFrame,
    rules: Sequence[KeyRule],
    nobody: Iterable[tuple[str, str]] = (),
    identifiers: IdentifierKeys = UNKEYED,
) -> pl.DataFrame:
    """The keys of each event that take part in stitching.

    Args:
        events: rows with tenant_id, the source columns, attrs, and ts where a rule has a window.
        rules: rules of all tenants; `tenant_id` `*` speaks for every tenant that has no rule of its own for the type.
        nobody: tenant (`*` for all) and further words that name nobody.
        identifiers: secrets that keys are hashed with.

    Returns:
        row (place of the event), key_type, key_hash: one row per event and key, without repetitions.
    """
    events = events.with_row_index("row")
    words: dict[str, list[str]] = {}
    for tenant, word in sorted(nobody):
        words.setdefault(tenant, []).append(word)
    asked = [rule for rule in rules if rule.mode != IGNORE]
    if not asked:
        return pl.DataFrame(schema=KEY_COLUMNS)
    # Where several rules read one attribute, its normal form is made once.
    forms = list(dict.fromkeys(_form_of(rule) for rule in asked))
    made = pl.collect_all([_values(events, source, kind, words) for source, kind in forms])
    values = dict(zip(forms, made, strict=True))
    parts = pl.collect_all([_keys_of_rule(values[_form_of(rule)], rule, rules, identifiers) for rule in asked])
    of_type: dict[str, list[pl.DataFrame]] = {}
    for rule, part in zip(asked, parts, strict=True):
        of_type.setdefault(rule.key_type, []).append(part)
    return pl.concat([_of_one_type([part for part in some if part.height] or some[:1]) for some in of_type.values()])


def _of_one_type(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """An event has one value per source: repetitions need two sources of one type."""
    return parts[0] if len(parts) == 1 else pl.concat(parts).unique(maintain_order=True)


def _form_of(rule: KeyRule) -> tuple[str, str]:
    """The attribute that a rule reads, and the type whose normal form it has: one for all but a few."""
    return rule.source, rule.key_type if rule.key_type in CASE_FOLDED else ""


def _values(events: pl.DataFrame, source: str, kind: str, words: Mapping[str, list[str]]) -> pl.LazyFrame:
    """tenant_id, row, value, and ts where there is one, of events that have a value which makes a key."""
    times = ["ts"] if "ts" in events.columns else []
    return (
        events.lazy()
        .select("tenant_id", "row", *times, normalised(source_value(source), kind, words))
        .filter(pl.col("value").is_not_null())
    )


def _keys_of_rule(
    values: pl.DataFrame, rule: KeyRule, rules: Sequence[KeyRule], identifiers: IdentifierKeys
) -> pl.LazyFrame:
    found = (
        values.lazy().filter(_scope(rule, rules) & _is_meant(rule, rules)).with_columns(key_type=pl.lit(rule.key_type))
    )
    if rule.window_seconds:
        window = pl.col("ts").dt.epoch("us") // (rule.window_seconds * 1_000_000)
        found = found.with_columns(value=pl.concat_str("value", pl.lit("\x1f"), window.cast(pl.String)))
    return found.select("row", "key_type", key_hash(identifiers).alias("key_hash"))


def _scope(rule: KeyRule, rules: Sequence[KeyRule]) -> pl.Expr:
    """Rows of tenants that a rule speaks for."""
    if rule.tenant_id != EVERY_TENANT:
        return pl.col("tenant_id") == rule.tenant_id
    own = [r.tenant_id for r in rules if r.key_type == rule.key_type and r.tenant_id != EVERY_TENANT]
    return ~pl.col("tenant_id").is_in(own) if own else pl.lit(True)


def _is_meant(rule: KeyRule, rules: Sequence[KeyRule]) -> pl.Expr:
    """Rows whose value is one for the rule: those of its pattern, or of no pattern of the same source."""
    if rule.pattern is not None:
        return pl.col("value").str.contains(rule.pattern)
    meant = pl.lit(value=True)
    for other in rules:
        if other.source == rule.source and other.pattern is not None:
            meant &= ~(_scope(other, rules) & pl.col("value").str.contains(other.pattern))
    return meant


def source_value(source: str) -> pl.Expr:
    """The expression that reads a rule's source from an event row."""
    if source.startswith("attrs."):
        return pl.col("attrs").map.get(source.removeprefix("attrs."))
    return pl.col(COLUMN_OF[source])


def normalised(value: pl.Expr, key_type: str, words: Mapping[str, list[str]] | None = None) -> pl.Expr:
    """The normal form; null for what names nobody and for more than 1,024 characters.

    Args:
        value: of a key, on rows with `tenant_id` where `words` has any.
        key_type: of the key.
        words: by tenant (`*` for all), further words that name nobody.
    """
    text = normal_form(value)
    if key_type in CASE_FOLDED:
        text = text.str.to_lowercase()
    of_all = (words or {}).get(EVERY_TENANT, [])
    is_nobody = names_nobody(text, of_all)
    for tenant, own in (words or {}).items():
        if tenant != EVERY_TENANT:
            is_nobody |= (pl.col("tenant_id") == tenant) & names_nobody(text, own)
    usable = ~is_nobody & (text.str.len_chars() <= MAX_KEY_CHARACTERS)
    return pl.when(usable).then(text).otherwise(None).alias("value")


def key_hash(identifiers: IdentifierKeys) -> pl.Expr:
    """128 bits over the length-prefixed tenant, type and value: an HMAC, or xxh3 without a secret.

    Length prefixes instead of a separator: a value that holds the separator can't collide with another.
    """
    parts = [
        pl.concat_str(pl.col(name).str.len_bytes().cast(pl.String), pl.lit(":"), pl.col(name))
        for name in ("tenant_id", "key_type", "value")
    ]
    return identifiers.hashed(pl.concat_str(parts))


def value_hash(tenant_id: str, key_type: str, value: str, identifiers: IdentifierKeys) -> str | None:
    """The hash of one value as decimal text, as tables and the graph hold it; None for a value that makes no key."""
    row = pl.LazyFrame({"tenant_id": [tenant_id], "key_type": [key_type], "value": [value]})
    normal = row.with_columns(normalised(pl.col("value"), key_type)).drop_nulls("value")
    found = normal.select(key_hash(identifiers)).collect()
    return str(found.item()) if found.height else None
