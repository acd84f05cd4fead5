from collections import Counter
from itertools import pairwise
from math import log2, sqrt
from statistics import fmean, stdev

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from session_events import events, month_ago, session

from c360_pipeline.core.features import surprises as ours
from c360_pipeline.core.features.paths import RECENT
from c360_pipeline.core.features.surprises import surprises, usual_steps

USUAL = [*month_ago(200, "view view view cart", "view cart view view", "view view cart buy"), session("now", "view")]


def test_a_session_that_goes_on_is_told_by_its_oddest_step() -> None:
    usual = usual_steps(events(*USUAL))
    odd, plain = session("odd", "view refund refund refund"), session("plain", "view view view cart")
    found = {row["session_id"]: row for row in surprises(events(odd, plain), usual).to_dicts()}
    assert found["odd"]["deviations"] > 3 > found["plain"]["deviations"]
    assert (found["odd"]["from_action"], found["odd"]["to_action"]) == ("view", "refund")
    assert found["odd"]["steps"] == 3


def test_short_sessions_and_tenants_without_a_past_are_not_told_of() -> None:
    usual = usual_steps(events(*USUAL))
    assert surprises(events(session("short", "view refund refund")), usual).is_empty()
    now = events(session("a", "view refund refund refund"), session("b", "view cart buy view"))
    assert usual_steps(now).is_empty()
    assert surprises(now, usual_steps(now)).is_empty()
    assert usual_steps(events(*month_ago(9, "view cart buy view"), session("now", "view"))).is_empty(), (
        "sessions that are all alike"
    )


def test_what_is_kept_of_many_steps_are_the_most_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = usual_steps(events(*USUAL))
    monkeypatch.setattr(ours, "MOST_STEPS", 2)
    kept = usual_steps(events(*USUAL))
    assert kept.height == 2
    assert kept["steps"].min() == everything["steps"].top_k(2).min()
    # Where from and of how many is counted before.
    assert kept.join(everything, on=everything.columns, how="anti").is_empty()


def bits(path: list[str], taken: Counter[tuple[str, str]], actions: int, itself: int) -> list[float]:
    starts = Counter[str]()
    for (start, _), number in taken.items():
        starts[start] += number
    each = [((a, b), a) for a, b in pairwise(path)]
    return [-log2((taken[step] - itself + 1) / (starts[a] - itself + actions)) for step, a in each]


@given(st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=8), min_size=2, max_size=12),
       st.lists(st.sampled_from("abcdef"), min_size=4, max_size=8))  # fmt: skip
def test_surprise_is_as_counted_step_by_step(past: list[list[str]], now: list[str]) -> None:
    old = [session(f"old{n}", " ".join(path), ago=RECENT * 2) for n, path in enumerate(past)]
    newest = session("now", " ".join(now))
    usual = usual_steps(events(*old, newest))
    taken = Counter(step for path in past for step in pairwise(path))
    actions = len({b for _, b in taken})
    each = [bits(path, taken, actions, 1) for path in past if len(path) > 3]
    if len(each) < 2:
        assert usual.is_empty()
        return
    mean = fmean(map(fmean, each))
    spread = stdev((fmean(one) - mean) * sqrt(len(one)) for one in each)
    if spread < 1e-6:
        return
    assert usual["usual_surprise"][0] == pytest.approx(mean, abs=1e-6)
    assert usual["spread"][0] == pytest.approx(spread, abs=1e-6)
    mine = bits(now, taken, actions, 0)
    found = surprises(events(newest), usual).row(0, named=True)
    assert found["surprise"] == pytest.approx(fmean(mine), abs=1e-6)
    wanted = (fmean(mine) - mean) * sqrt(len(mine)) / spread
    assert found["deviations"] == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    pairs = list(pairwise(now))
    oddest = pairs.index((found["from_action"], found["to_action"]))
    assert mine[oddest] == pytest.approx(max(mine))
    mixed = events(newest).sample(fraction=1, shuffle=True, seed=1)
    assert surprises(mixed, usual.reverse()).equals(surprises(events(newest), usual))
    assert usual_steps(pl.concat([events(newest), events(*reversed(old))])).equals(usual)
