from datetime import timedelta

import polars as pl
import pytest
from session_events import NOW, events, month_ago, session

from c360_pipeline.core.features import paths

NO_COMMUNITIES = pl.DataFrame(schema={"tenant_id": pl.String, "user_id": pl.String, "community": pl.Int64})


def test_steps_do_not_cross_sessions() -> None:
    found = paths.steps(events(session("a", "view cart"), session("b", "view")))
    assert found.select("session_id", "from_action", "to_action").rows() == [("a", "view", "cart")]


def test_a_path_that_nobody_took_before_is_told_of_with_its_oddest_step() -> None:
    usual = month_ago(200, "view view view cart", "view cart view view", "view view cart buy")
    odd, plain = session("odd", "view refund refund refund"), session("plain", "view view view cart")
    found = paths.path_anomalies(events(*usual, odd, plain), NO_COMMUNITIES)
    assert found["session_id"].to_list() == ["odd"]
    row = found.row(0, named=True)
    assert (row["from_action"], row["to_action"]) == ("view", "refund")
    assert row["path"] == "view → refund → refund → refund"
    assert row["probability"] < 0.01
    assert row["deviations"] >= 3


def test_what_is_usual_for_a_user_is_no_anomaly() -> None:
    usual = month_ago(200, "view view view cart", "view cart view view", "view view cart buy")
    habit = [session(f"habit{n}", "view refund refund refund", "odd", timedelta(days=20 + n)) for n in range(40)]
    now = [session("a", "view refund refund refund", "odd"), session("b", "view refund refund refund", "new")]
    found = paths.path_anomalies(events(*usual, *habit, *now), NO_COMMUNITIES)
    assert "a" not in found["session_id"].to_list()


def test_no_past_no_anomalies() -> None:
    assert paths.path_anomalies(events(session("a", "view cart buy view")), NO_COMMUNITIES).is_empty()


def test_a_funnel_counts_sessions_that_reach_its_steps_in_order() -> None:
    found = paths.drop_offs(events(
        session("a", "view add_to_cart purchase"), session("b", "view search add_to_cart"), session("c", "view"),
        session("d", "purchase add_to_cart view"),
        session("old", "view add_to_cart", ago=timedelta(days=10)),
    ))  # fmt: skip
    assert found.select("step", "action", "next_action", "sessions", "continued", "previous_rate").rows() == [
        (1, "view", "add_to_cart", 4, 2, 0.0), (2, "add_to_cart", "purchase", 2, 1, 1.0),
    ]  # fmt: skip
    assert found["drop_off_rate"].to_list() == [0.5, 0.5]


def tickets_of(*users: str) -> pl.DataFrame:
    """Tickets of now, one of each user."""
    schema = {"tenant_id": pl.String, "ticket_id": pl.String, "user_id": pl.String}
    rows = [("acme", str(number), user) for number, user in enumerate(users)]
    at = pl.lit(NOW).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(created_at=at)


def test_paths_before_tickets_are_compared_with_sessions_without() -> None:
    troubled = [session(f"t{n}", "view error error", f"t{n}", timedelta(minutes=10)) for n in range(4)]
    calm = [session(f"c{n}", "view view" if n else "view error error", f"c{n}") for n in range(10)]
    found = paths.support_insights(events(*troubled, *calm), tickets_of("t0", "t1", "t2", "t3"))
    assert found.select("path", "tickets_with_path", "tickets", "sessions_with_path", "sessions", "lift").rows() == [
        ("error → error", 4, 4, 1, 10, 7.0), ("view → error", 4, 4, 1, 10, 7.0),
        ("view → error → error", 4, 4, 1, 10, 7.0),
    ]  # fmt: skip
    assert found["lift_at_least"].is_between(1, 7, closed="none").all()


def test_what_may_be_chance_is_not_told() -> None:
    troubled = [session(f"t{n}", "view error", f"t{n}", timedelta(minutes=10)) for n in range(4)]
    calm = [session(f"c{n}", "view error" if n > 2 else "view view", f"c{n}") for n in range(10)]
    assert paths.support_insights(events(*troubled, *calm), tickets_of("t0", "t1", "t2", "t3")).is_empty()


def test_a_call_for_support_is_no_step_before_a_call_and_a_conversation_is_one() -> None:
    troubled = [session(f"t{n}", "view error support support", f"t{n}", timedelta(minutes=10)) for n in range(6)]
    calm = [session(f"c{n}", "view view", f"c{n}") for n in range(30)]
    known = events(*troubled, *calm)
    calls = paths.calls_for_support(known, tickets_of())
    assert calls["user_id"].to_list() == [f"t{n}" for n in range(6)]
    assert paths.support_insights(known, calls)["path"].to_list() == ["view → error"]


def test_a_funnel_that_breaks_is_told_from_chance() -> None:
    def sessions(name: str, bought: int, of: int, ago: timedelta) -> list[list[dict[str, object]]]:
        paths_of = ["view add_to_cart purchase"] * bought + ["view add_to_cart"] * (of - bought)
        return [session(f"{name}{n}", path, ago=ago) for n, path in enumerate(paths_of)]

    before = sessions("b", 50, 100, timedelta(days=14))
    same = paths.drop_offs(events(*before, *sessions("n", 45, 100, timedelta())))
    worse = paths.drop_offs(events(*before, *sessions("n", 20, 100, timedelta())))
    assert same["deviations"].to_list()[1] == pytest.approx(0.708, abs=0.01)
    assert worse["deviations"].to_list()[1] > paths.LEAST_CHANGE
    assert worse["deviations"].to_list()[0] is None, "nobody left at the first step: there is nothing to compare"


def test_what_lies_more_than_half_an_hour_before_a_ticket_does_not_count() -> None:
    early = [session(f"t{n}", "view error", f"t{n}", timedelta(minutes=31)) for n in range(4)]
    calls = paths.calls_for_support(
        events(*[session(f"s{n}", "support", f"t{n}") for n in range(4)]),
        tickets_of(),
    )
    assert calls.height == 4
    assert paths.support_insights(events(*early), calls).is_empty()
