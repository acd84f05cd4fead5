"""Which visitors and visits are somebody's alone, and who is kept out by them."""

from typing import Any

import polars as pl
import pytest

from c360_pipeline.core.landing.classify import split_suppressed
from c360_pipeline.core.landing.suppressed import Suppressed
from c360_pipeline.core.privacy.erasure import Person, Traces, of_others, theirs, traces_of
from c360_pipeline.stages.privacy.stores import hashed, shared_hashes

ANN = Person("acme", "ann@example.test")
SCHEMA = dict.fromkeys(("tenant_id", "event_id", "user_id", "anonymous_id", "session_id"), pl.String)


def events(*rows: tuple[str, str | None, str | None, str | None], tenant: str = "acme") -> pl.DataFrame:
    """event, user, visitor, session."""
    return pl.DataFrame([(tenant, *row) for row in rows], schema=SCHEMA, orient="row")


def found(rows: pl.DataFrame, journeys: list[str], **known: Any) -> Traces:
    """Of events and journeys, each of these the names of its events with blanks between them."""
    held = [("acme", event, str(n)) for n, named in enumerate(journeys) for event in named.split()]
    schema = dict.fromkeys(("tenant_id", "event_id", "journey_id"), pl.String)
    return traces_of(rows.lazy(), pl.LazyFrame(held, schema=schema, orient="row"), [ANN], **known)


def hers(rows: pl.DataFrame, traces: Traces) -> set[str]:
    people = [Person("acme", one) for one in (ANN.user_id, " Ann@Example.test")]
    mine, rest = (part(rows.lazy(), people, traces).collect() for part in (theirs, of_others))
    assert mine.columns == rest.columns == rows.columns
    assert mine.height + rest.height == rows.height
    return set(mine["event_id"])


def test_what_a_visitor_did_before_login_is_of_the_one_who_logged_in() -> None:
    rows = events(
        ("before", None, "v", "s0"), ("login", " Ann@Example.test", "v", "s1"), ("spelled", None, " v", "s2"),
        ("guest", "guest", "v", "s2"), ("other", None, "w", "s3"), ("bo", "bo", "w", "s4"),
    )  # fmt: skip
    traces = found(rows, [])
    assert traces == Traces((("acme", " v"), ("acme", "v")))
    assert hers(rows, traces) == {"before", "login", "spelled", "guest"}


def test_of_a_shared_device_only_visits_with_nobody_else_are_theirs() -> None:
    rows = events(
        ("a0", None, "tablet", "1"), ("a1", ANN.user_id, "tablet", "1"), ("b0", None, "tablet", "2"),
        ("b1", "bo", "tablet", "2"), ("nobody", None, "tablet", "3"), ("both", ANN.user_id, "x", "4"),
        ("both2", "bo", "y", "4"), ("both3", None, "z", "4"),
        # Bo's own browser counts its visits, too.
        ("bo1", None, "of-bo", "1"), ("bo2", "bo", "of-bo", "5"),
    )  # fmt: skip
    traces = found(rows, [])
    shared = (("acme", "tablet"),)
    assert traces == Traces((("acme", "x"),), (("acme", "1", "tablet"),), shared)
    assert hers(rows, traces) == {"a0", "a1", "both"}
    # When Ann is gone, the tablet is not Bo's alone.
    left = of_others(rows.lazy(), [ANN], traces)
    listed = Suppressed(shared_hashes(traces))
    of_bo = traces_of(left, pl.LazyFrame(schema=dict.fromkeys(("tenant_id", "event_id", "journey_id"), pl.String)),
                      [Person("acme", "bo")], listed=listed)  # fmt: skip
    assert set(of_bo.shared) == set(shared)
    assert {visitor for _, visitor in of_bo.visitors} == {"of-bo", "y"}


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
    assert (found(rows, journeys).visitors == (("acme", "v"),)) == is_hers


@pytest.mark.parametrize("junk", ["0", "unknown", "anonymous", "00000000-0000-0000-0000-000000000000", "kiosk-web"])
def test_an_id_that_names_nobody_is_nobodys(junk: str) -> None:
    rows = events(("login", ANN.user_id, junk, junk), ("x", None, junk, junk))
    assert found(rows, ["login x"], nobody=["kioskweb"]) == Traces()


def test_two_spellings_are_one_visitor() -> None:
    rows = events(("a", ANN.user_id, "95.0", None), ("b", "bo", "95", None), ("c", None, "95", None))
    assert found(rows, []) == Traces((), (), (("acme", "95"), ("acme", "95.0")))


def test_who_is_erased_is_kept_out_as_a_visitor_too_unless_another_logs_in() -> None:
    suppressed = Suppressed(hashed([ANN], Traces((("acme", "v"),), (("acme", "s", "tablet"),))))
    rows = events(
        ("hers", "ANN@example.test", "w", "t"), ("anonymous", None, " v", "t"), ("visit", None, "tablet", "s"),
        ("guest", "guest", "v", None), ("another", "bo", "v", "s"), ("else", None, "w", "s"), ("v", "v", None, None),
        ("tablet", None, "tablet", "t"), ("none", None, None, None),
    )  # fmt: skip
    kept, silent = split_suppressed(pl.concat([rows, events(("there", None, "v", "s"), tenant="other")]), suppressed)
    assert silent["event_id"].to_list() == ["hers", "anonymous", "visit", "guest"]
    assert kept["event_id"].to_list() == ["another", "else", "v", "tablet", "none", "there"]
    assert split_suppressed(rows, Suppressed())[0].height == rows.height
