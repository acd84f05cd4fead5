from dataclasses import replace
from datetime import UTC, datetime

import polars as pl
import pytest

from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.stitching.keys import KeyRule, extract_keys, normalised

RULES = [
    KeyRule("*", "user", "userId"),
    KeyRule("*", "device", "attrs.deviceId"),
    KeyRule("*", "ip", "attrs.ip", "ignore"),
]


def event(event_id: str, tenant_id: str = "acme", user_id: str = "u", **attrs: str) -> dict[str, object]:
    return {"event_id": event_id, "tenant_id": tenant_id, "user_id": user_id, "session_id": "s", "attrs": attrs}


def keys_of(*events: dict[str, object], rules: list[KeyRule] = RULES) -> pl.DataFrame:
    schema = {c: t for c, t in EVENTS.empty().schema.items() if c in events[0]}
    rows = pl.DataFrame(list(events), schema=schema)
    keys = extract_keys(rows, rules)
    return keys.with_columns(tenant_id=rows["tenant_id"].gather(keys["row"]))


def normal_form(value: str, key_type: str = "user") -> str | None:
    return pl.DataFrame({"v": [value]}).select(normalised(pl.col("v"), key_type)).item()


def test_only_linking_rules_make_keys() -> None:
    keys = keys_of(event("e", deviceId="d", ip="10.0.0.1"))
    assert sorted(keys["key_type"]) == ["device", "user"]


def test_a_value_has_one_key_per_type_and_tenant() -> None:
    keys = keys_of(event("1", user_id="x", deviceId="x"), event("2", "globex", user_id="x"))
    assert keys["key_hash"].n_unique() == 3


def test_a_separator_inside_a_value_does_not_collide() -> None:
    rules = [KeyRule("*", "a", "userId"), KeyRule("*", "a:1", "sessionId")]
    keys = keys_of({**event("1", user_id="1:x"), "session_id": "x"}, rules=rules)
    assert keys["key_hash"].n_unique() == 2


def test_hashes_stay_the_same_for_ever() -> None:
    # Stored in every lake: another hash would cut every journey in two.
    assert keys_of(event("e")).row(0) == (0, "user", 165823153819798511253776154622492827277, "acme")


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (" a ", "a"),
        ("\uff41", "a"),
        ("a\u200bb", "ab"),
        ("e\u0301", "é"),
        ("123.0", "123"),
        ("0123", "0123"),
        ("A", "A"),
    ],
)
def test_spellings_of_one_value_are_one_key(value: str, form: str) -> None:
    assert normal_form(value) == form


@pytest.mark.parametrize(
    "value", ["", "  ", "\u200b", "NULL", "undefined", "N/A", "-1", "0", "anonymous", "x" * 1025,
              "00000000-0000-0000-0000-000000000000"],
)  # fmt: skip
def test_values_that_name_nobody_are_no_keys(value: str) -> None:
    assert normal_form(value) is None


def test_the_hash_of_an_empty_address_names_nobody() -> None:
    empty = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855"
    assert normal_form(empty, "email_hash") is None


def test_case_counts_but_in_hexadecimal() -> None:
    assert normal_form("AB", "email_hash") == "ab"
    assert normal_form("AB", "session") == "AB"


def test_a_tenants_own_rule_replaces_the_general_one() -> None:
    rules = [*RULES, KeyRule("acme", "device", "attrs.deviceId", "ignore")]
    keys = keys_of(event("1", deviceId="d"), event("2", "globex", deviceId="d"), rules=rules)
    assert keys.filter(pl.col("key_type") == "device")["tenant_id"].to_list() == ["globex"]


def test_a_pattern_takes_its_values_from_the_other_rules_of_the_source() -> None:
    made_up = KeyRule("*", "visitor", "userId", pattern="^(anon|guest)[-_]")
    rules = [*RULES, made_up, KeyRule("globex", "visitor", "sessionId")]
    events = [event("1", user_id=" anon-7"), event("2", user_id="ana"), event("3", "globex", user_id="anon-7")]
    keys = keys_of(*events, rules=rules)
    assert sorted(keys.select("row", "key_type").rows()) == [(0, "visitor"), (1, "user"), (2, "user"), (2, "visitor")]
    windowed = replace(made_up, window_seconds=60, pattern="^anon-7$")
    at = [{**one, "ts": datetime(2026, 3, 2, tzinfo=UTC)} for one in events]
    assert keys_of(*at, rules=[windowed])["row"].to_list() == [0, 2]


def test_a_rule_without_a_pattern_is_what_it_was_to_earlier_releases() -> None:
    assert "pattern" not in KeyRule("*", "user", "userId").as_said()
    assert KeyRule("*", "user", "userId", pattern="^a").as_said()["pattern"] == "^a"
