"""Which rows of silos are a person's, and how their values are found in bytes."""

import polars as pl
import pytest

from c360_pipeline.core.privacy.erasure import (
    Person,
    SearchTerms,
    is_distinctive,
    is_overwritable,
    own_rows,
    own_values,
)
from c360_pipeline.core.projection.graph import NodeKind
from c360_pipeline.core.silos.control_rows import RelationshipRow

TEXT, WHOLE = pl.String(), pl.Int64()


def kind(label: str, key: tuple[str, ...], **columns: pl.DataType) -> NodeKind:
    return NodeKind(label, key, columns)


KINDS = {
    "Account": kind("Account", ("account_id",), account_id=WHOLE, email=TEXT),
    "Subscription": kind("Subscription", ("id",), id=WHOLE, account_id=WHOLE, plan_id=WHOLE),
    "Plan": kind("Plan", ("plan_id",), plan_id=WHOLE, name=TEXT),
    "Ticket": kind("Ticket", ("no", "year"), no=WHOLE, year=WHOLE, account_id=WHOLE),
    "Letter": kind("Letter", ("id",), id=WHOLE, sender=TEXT),
    "Note": kind("Note", ("id",), id=WHOLE, ticket_no=WHOLE, ticket_year=WHOLE),
}
TENANTS = ["a", "a", "b"]
FRAMES = {
    "Account": pl.DataFrame(
        {"tenant_id": TENANTS, "account_id": [1, 2, 1], "email": ["x@y.de", "z@y.de", "x@y.de"]}
    ),
    "Subscription": pl.DataFrame(
        {"tenant_id": TENANTS, "id": [10, 11, 10], "account_id": [1, 2, 1], "plan_id": [5, 5, 5]}
    ),
    "Letter": pl.DataFrame({"tenant_id": TENANTS, "id": [1, 2, 3], "sender": ["x@y.de", "z@y.de", "x@y.de"]}),
    "Plan": pl.DataFrame({"tenant_id": ["a"], "plan_id": [5], "name": ["basic"]}),
    "Ticket": pl.DataFrame({"tenant_id": ["a"] * 3, "no": [1, 1, 2], "year": [24, 25, 25], "account_id": [1, 2, 1]}),
    "Note": pl.DataFrame(
        {"tenant_id": ["a"] * 3, "id": [7, 8, 9], "ticket_no": [1, 1, 2], "ticket_year": [24, 25, 25]}
    ),
}  # fmt: skip
MAPPINGS = [
    RelationshipRow(1, "User", "Account", "IS_ACCOUNT", "u.id = a.email OR u.id = toString(a.account_id)", None),
    RelationshipRow(2, "Account", "Subscription", "HAS", "a.account_id = s.account_id", None),
    RelationshipRow(3, "Subscription", "Plan", "TO", "s.plan_id = p.plan_id", None),
    RelationshipRow(4, "Account", "Ticket", "SENT", "t.account_id = a.account_id", None),
    RelationshipRow(5, "Ticket", "Note", "HAS", "t.no = n.ticket_no AND t.year = n.ticket_year", None),
    RelationshipRow(7, "Account", "Letter", "WROTE", "a.email = l.sender", None),
    RelationshipRow(6, "Account", "Media", "SAW", "a.account_id = m.account_id", None),
]


@pytest.mark.parametrize("user", ["x@y.de", "1"])
def test_rows_that_name_a_persons_row_are_theirs_and_what_these_name_is_not(user: str) -> None:
    found = own_rows([Person("a", user)], MAPPINGS, FRAMES, KINDS)
    assert {label: sorted(rows.drop("tenant_id").rows()) for label, rows in found.items()} == {
        "Account": [(1,)], "Subscription": [(10,)], "Ticket": [(1, 24), (2, 25)], "Note": [(7,), (9,)],
        "Letter": [(1,)],
    }  # fmt: skip
    assert {tenant for rows in found.values() for tenant in rows["tenant_id"]} == {"a"}


def test_a_value_that_several_rows_have_names_none_of_them() -> None:
    shared = {**FRAMES, "Account": FRAMES["Account"].with_columns(email=pl.lit("family@y.de")),
              "Letter": FRAMES["Letter"].with_columns(sender=pl.lit("family@y.de"))}  # fmt: skip
    found = own_rows([Person("a", "1")], MAPPINGS, shared, KINDS)
    assert found["Account"].height == 1
    assert "Letter" not in found


def test_what_lies_behind_a_table_between_belongs_to_nobody() -> None:
    kinds = {
        "Media": kind("Media", ("media_id",), media_id=WHOLE),
        "Watch": kind("Watch", ("id",), id=WHOLE, user=TEXT, media_id=WHOLE),
    }
    frames = {
        "Media": pl.DataFrame({"tenant_id": ["a"], "media_id": [5]}),
        "Watch": pl.DataFrame({"tenant_id": ["a", "a"], "id": [1, 2], "user": ["alice", "bob"], "media_id": [5, 5]}),
    }
    watched = RelationshipRow(1, "User", "Media", "WATCHED", "u.id = w.user AND w.media_id = m.media_id", "Watch")
    found = own_rows([Person("a", "alice")], [watched], frames, kinds)
    assert {label: rows.rows() for label, rows in found.items()} == {"Watch": [("a", 1)]}


def test_a_plan_that_one_subscription_alone_names_is_not_theirs() -> None:
    named = {**FRAMES, "Subscription": FRAMES["Subscription"].with_columns(plan=pl.Series(["gold", "basic", "basic"])),
             "Plan": pl.DataFrame({"tenant_id": ["a"], "plan_id": [5], "name": ["gold"]})}  # fmt: skip
    more = pl.DataFrame({"tenant_id": ["a"], "id": [12], "account_id": [2], "plan_id": [5], "plan": ["basic"]})
    named["Subscription"] = pl.concat([named["Subscription"], more])
    kinds = {
        **KINDS,
        "Subscription": kind("Subscription", ("id",), id=WHOLE, account_id=WHOLE, plan_id=WHOLE, plan=TEXT),
    }
    by_name = RelationshipRow(3, "Subscription", "Plan", "TO", "s.plan = p.name", None)
    found = own_rows([Person("a", "1")], [*MAPPINGS[:2], by_name], named, kinds)
    assert set(found) == {"Account", "Subscription"}


def test_nobody_has_nothing() -> None:
    found = own_rows([Person("a", "nobody")], MAPPINGS, FRAMES, KINDS)
    assert sum(rows.height for rows in found.values()) == 0


def test_values_are_theirs_when_no_other_row_has_them() -> None:
    rows = pl.DataFrame(
        {"tenant_id": ["acme-corp"], "email": ["x@y.de"], "plan": ["premium"], "no": [1], "city": [None]}
    )
    others = pl.DataFrame({"email": ["z@y.de"], "plan": ["premium"]})
    assert own_values(rows, others) == ["x@y.de"]


@pytest.mark.parametrize(
    ("value", "is_it"), [("x@y.de", True), ("short", False), ("123456789", False), ("a23456", True)]
)
def test_short_values_and_numbers_are_everywhere(value: str, *, is_it: bool) -> None:
    assert is_distinctive(value) is is_it


USER = "user-1@mail.de"


@pytest.mark.parametrize(
    ("content", "hits"),
    [
        (f'{{"userId":"{USER}"}}', 1), (USER, 1), (f"{USER} {USER}", 2), (f"mail to {USER}.", 1), (f"<{USER}>", 1),
        (f"key=user={USER}&", 1), (f"x{USER}", 0), (f"x.{USER}", 0), (f"{USER}2", 0), (f"{USER}.eu", 0),
        (f"{USER}-3", 0), ("user-1@mail", 0), ("", 0), ("b\u00fcrger-m\u00fcnchen", 1),
        ("b\\u00fcrger-m\\u00fcnchen", 1), ("ÜBER " + USER, 1),
        (f"Hi\\n{USER}", 1), (f"\\u00fc{USER}\\t", 1), (f"un{USER}", 0),
    ],
)  # fmt: skip
def test_values_are_found_as_words(content: str, hits: int) -> None:
    terms = SearchTerms([USER, "bürger-münchen"])
    assert terms.count(content.encode()) == hits
    assert terms.hits(pl.Series([content, None])) == min(hits, 1)


def test_values_are_overwritten_where_they_stand() -> None:
    assert (
        SearchTerms([USER]).replaced(f"a {USER} b {USER}2".encode(), b"x") == f"a {'x' * len(USER)} b {USER}2".encode()
    )


@pytest.mark.parametrize(
    ("value", "may_be"),
    [
        ("person-to-erase", True), ("user-erased", True), ("john.smith@email.com", True), ("auth0|ab-cd", True),
        ("user_4711", True), ("Anna Schmidt", True), ("landed_events", False), ("RUN_SUCCESS", False),
        ("AssetMaterialization", False), ("x-1", False),
    ],
)  # fmt: skip
def test_what_may_be_overwritten_in_logs_is_no_name_that_logs_need(value: str, *, may_be: bool) -> None:
    assert is_overwritable(value) == may_be


def test_without_values_nothing_is_found() -> None:
    terms = SearchTerms([])
    assert (terms.count(b"anything"), terms.hits(pl.Series(["anything"]))) == (0, 0)
