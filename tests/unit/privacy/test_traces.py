"""Which visitors and visits are somebody's alone, and who is kept out by them."""

from typing import Any

import polars as pl
import pytest

from c360_pipeline.core.landing.classify import split_suppressed
from c360_pipeline.core.privacy.erasure import Person, Traces, of_others, theirs, traces_of
from c360_pipeline.stages.privacy.stores import hashed

ANN = Person("acme", "ann@example.test")
SCHEMA = dict.fromkeys(("tenant_id", "event_id", "user_id", "anonymous_id", "session_id"), pl.String)


def events(*rows: tuple[str, str | None, str | None, str | None], tenant: str = "acme") -> pl.DataFrame:
    """event, user, visitor, session."""
    return pl.DataFrame([(tenant, *row) for row in rows], schema=SCHEMA, orient="row")


def found(rows: pl.DataFrame, journeys: list[str]) -> tuple[Traces, list[str]]:
    """Of events and journeys, each of these the names of its events with blanks between them."""
    held = [("acme", event, str(n)) for n, named in enumerate(journeys) for event in named.split()]
    schema = dict.fromkeys(("tenant_id", "event_id", "journey_id"), pl.String)
    traces, shared = traces_of(rows.lazy(), pl.LazyFrame(held, schema=schema, orient="row"), [ANN])
    return traces, [visitor for _, visitor in shared]


def ids(traces: Traces, name: str) -> set[str]:
    return {value for _, value in getattr(traces, name)}


def test_what_a_visitor_did_before_login_is_of_the_one_who_logged_in() -> None:
    rows = events(
        ("before", None, "v", "s0"), ("login", " Ann@Example.test", "v", "visit-1"), ("after", None, "v", "s2"),
        ("other", None, "w", "s3"), ("bo", "bo", "w", "s4"),
    )  # fmt: skip
    traces, shared = found(rows, [])
    assert (ids(traces, "anonymous_id"), ids(traces, "session_id"), shared) == ({"v"}, {"visit-1"}, [])
    people = [Person("acme", " Ann@Example.test")]
    mine, rest = (part(rows.lazy(), people, traces).collect() for part in (theirs, of_others))
    assert (set(mine["event_id"]), set(rest["event_id"])) == ({"before", "login", "after"}, {"other", "bo"})
    assert mine.columns == rest.columns == rows.columns


def test_of_a_shared_device_only_visits_with_nobody_else_are_theirs() -> None:
    rows = events(
        ("a0", None, "tablet", "morning"), ("a1", ANN.user_id, "tablet", "morning"), ("b0", None, "tablet", "evening"),
        ("b1", "bo", "tablet", "evening"), ("nobody", None, "tablet", "night"), ("both", ANN.user_id, "x", "noon"),
        ("both2", "bo", "y", "noon"), ("both3", None, "z", "noon"),
    )  # fmt: skip
    traces, shared = found(rows, [])
    assert (ids(traces, "anonymous_id"), ids(traces, "session_id"), shared) == ({"x"}, {"morning"}, ["tablet"])
    assert set(theirs(rows.lazy(), [ANN], traces).collect()["event_id"]) == {"a0", "a1", "both"}


@pytest.mark.parametrize(
    ("journeys", "is_hers"),
    [
        (["login anonymous again"], True), (["login anonymous again bo"], False), (["login", "anonymous again"], False),
        (["login anonymous", "again"], False), (["login anonymous", "bo again"], False), ([], False),
    ],
)  # fmt: skip
def test_a_visitor_that_was_never_named_with_anybody_is_of_the_journey_that_has_one_user(
    journeys: list[str], is_hers: bool
) -> None:
    rows = events(
        ("login", ANN.user_id, None, "s"), ("anonymous", None, "v", "t"), ("again", None, "v", "u"),
        ("bo", "bo", None, "w"),
    )  # fmt: skip
    assert (ids(found(rows, journeys)[0], "anonymous_id") == {"v"}) == is_hers


@pytest.mark.parametrize("junk", ["0", "unknown", "anonymous", "00000000-0000-0000-0000-000000000000"])
def test_an_id_that_names_nobody_is_nobodys(junk: str) -> None:
    traces, _ = found(events(("login", ANN.user_id, junk, junk), ("x", None, junk, junk)), ["login x"])
    assert traces == Traces()
    # A visit that is named after a second is one of all who came in it.
    assert found(events(("login", ANN.user_id, None, "1762106890")), [])[0] == Traces()


def test_who_is_erased_is_kept_out_as_a_visitor_too_unless_another_logs_in() -> None:
    suppressed = hashed([ANN], Traces((("acme", "v"),), (("acme", "s"),)))
    rows = events(
        ("hers", "ANN@example.test", "w", "t"), ("anonymous", None, " v", "t"), ("visit", None, "w", "s"),
        ("another", "bo", "v", "s"), ("else", None, "w", "t"), ("v", "v", None, None), ("none", None, None, None),
    )  # fmt: skip
    kept, silent = split_suppressed(pl.concat([rows, events(("there", None, "v", "s"), tenant="other")]), suppressed)
    assert silent["event_id"].to_list() == ["hers", "anonymous", "visit"]
    assert kept["event_id"].to_list() == ["another", "else", "v", "none", "there"]
    without: dict[str, Any] = {"anonymous_id": None, "session_id": None}
    assert split_suppressed(rows.drop(*without), suppressed)[1]["event_id"].to_list() == ["hers"]
