"""One idea of the same identifier, and values that name nobody as a kind."""

import json
from pathlib import Path

import polars as pl
import pytest

from c360_pipeline.core.arrays.row_hashes import user_hash
from c360_pipeline.core.contract.identifiers import names_nobody, normal_form, normal_text, word_of
from c360_pipeline.core.landing.classify import split_suppressed
from c360_pipeline.core.landing.suppressed import Suppressed
from c360_pipeline.core.stitching.keys import KeyRule, extract_keys

CASES = Path(__file__).parents[2] / "fixtures" / "cases"


def users_of(name: str) -> list[str]:
    return [json.loads(line)["userId"] for line in (CASES / name).read_text(encoding="utf-8").splitlines()]


def test_spellings_of_an_address_are_one_identifier() -> None:
    forms = [normal_text(user) for user in users_of("ids-spellings.jsonl")]
    assert forms.count("ana.lopez@example.test") == 6
    # Another mailbox at many providers: who is meant is for a mapping to say.
    assert forms[5] == "ana.lopez+news@example.test"


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("\uff21\uff22", "AB"), ("  x\u00a0", "x"), ("a\u200db", "ab"), ("42.0", "42"), ("4.2", "4.2"), ("0.0", "0.0"),
        ("U1", "U1"), ("MAILTO: A@B.test", "a@b.test"), ("A@localhost", "A@localhost"), ("a@b@c.test", "a@b@c.test"),
        ("Straße@Ä.test", "straße@ä.test"), ("e\u0301", "é"),
    ],
)  # fmt: skip
def test_a_normal_form_keeps_what_may_mean_something(value: str, form: str) -> None:
    assert normal_text(value) == form
    assert normal_text(form) == form


def of_users(*users: str) -> pl.DataFrame:
    nothing = pl.lit(None, pl.String)
    rows = pl.DataFrame({"tenant_id": ["acme"] * len(users), "user_id": list(users)})
    return rows.with_columns(anonymous_id=nothing, session_id=nothing)


def test_a_suppressed_person_does_not_come_back_in_another_spelling() -> None:
    users = [*users_of("ids-spellings.jsonl"), "somebody@else.test"]
    rows = of_users(*users)
    listed = rows.head(1).select("tenant_id", user_hash=user_hash(normal_form(pl.col("user_id"))))
    kept, silent = split_suppressed(rows, Suppressed(listed))
    assert silent.height == 6
    assert kept["user_id"].to_list() == [users[5], users[-1]]


def test_an_entry_of_before_there_was_a_normal_form_still_counts() -> None:
    rows = of_users("Ana@Example.test")
    listed = rows.select("tenant_id", user_hash=user_hash())
    assert split_suppressed(rows, Suppressed(listed))[0].is_empty()


NOBODY = [
    "", " ", "null", "NULL", '"undefined"', "(not set)", "not_authenticated", "Not-Set", "N/A", "guest", "GUEST ",
    "[object Object]", "00000000-0000-0000-0000-000000000000", "0", "000", "-1", "--", "xxxxx", "<none>", "{null}",
    "ffffffff-ffff-ffff-ffff-ffffffffffff", "#N/A", "'anonymous'", "d41d8cd98f00b204e9800998ecf8427e",
    "\uff08not set\uff09",
]  # fmt: skip
SOMEBODY = ["1", "7", "u1", "guest42", "ana", "none@x.test", "x", "f", "ff", "fff", "00001", "10", "\u674e",
            "null-island", "a-1"]  # fmt: skip


def named(values: list[str], more: tuple[str, ...] = ()) -> list[str]:
    frame = pl.DataFrame({"v": values}, schema={"v": pl.String})
    return frame.filter(~names_nobody(normal_form(pl.col("v")), more))["v"].to_list()


def test_values_that_name_nobody_are_a_kind() -> None:
    assert named(NOBODY) == []
    assert named(SOMEBODY) == SOMEBODY


def test_the_list_can_be_extended_by_tenant() -> None:
    assert named(["Walk-In Customer", "ana"], (word_of("walk in customer"),)) == ["ana"]
    rows = pl.DataFrame({"tenant_id": ["acme", "globex"], "user_id": ["Walk-In", "walk-in"]}).with_columns(
        session_id="user_id", attrs=pl.lit(None), item_id="user_id", action="user_id"
    )
    rules = [KeyRule("*", "user", "userId")]
    assert extract_keys(rows, rules)["row"].to_list() == [0, 1]
    assert extract_keys(rows, rules, {("acme", word_of("walk-in"))})["row"].to_list() == [1]
    assert extract_keys(rows, rules, {("*", word_of("walk-in"))}).is_empty()


def test_strangers_with_words_for_nobody_share_no_key() -> None:
    lines = [json.loads(line) for line in (CASES / "words-that-name-nobody.jsonl").read_text().splitlines()]
    values = {line["attrs"]["deviceId"] for line in lines[:14]} | {line["userId"] for line in lines[14:]}
    assert named(sorted(values)) == sorted(v for v in values if v.startswith("d") and v[1].isdigit())
