from datetime import UTC, datetime, timedelta

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from c360_pipeline.core.lake import EVENT_JOURNEY, JOURNEY_ALIASES, JOURNEY_KEYS, JOURNEY_MERGES, JOURNEYS
from c360_pipeline.core.stitching import Known, Stitched, stitch

NOW = datetime(2025, 11, 3, tzinfo=UTC)
NOTHING = Known(
    JOURNEYS.empty(), EVENT_JOURNEY.empty(), JOURNEY_KEYS.empty(), JOURNEY_ALIASES.empty(), JOURNEY_MERGES.empty()
)
Events = list[frozenset[int]]
"""The keys of each event; its place in the list is its id and its minute."""
EVENTS = st.lists(st.frozensets(st.integers(0, 12), max_size=3), max_size=25)


def stitched(events: list[tuple[int, frozenset[int]]], known: Known = NOTHING) -> Stitched:
    rows = [("t", f"{n:03}", NOW - timedelta(days=1) + timedelta(minutes=n)) for n, _ in events]
    pairs = [("t", f"{n:03}", "k", str(key)) for n, keys in events for key in sorted(keys)]
    schema = {"tenant_id": pl.String, "event_id": pl.String, "ts": pl.Datetime("us", "UTC")}
    keys = pl.DataFrame(
        pairs, schema=dict.fromkeys(("tenant_id", "event_id", "key_type", "key_hash"), pl.String), orient="row"
    )
    return stitch(pl.DataFrame(rows, schema=schema, orient="row"), keys, known, NOW)


def oracle(events: Events) -> set[frozenset[str]]:
    """Components by merging sets, the slow and obvious way."""
    groups: list[tuple[set[str], set[int]]] = []
    for n, keys in enumerate(events):
        names, all_keys = {f"{n:03}"}, set(keys)
        for group in [g for g in groups if g[1] & keys]:
            groups.remove(group)
            names |= group[0]
            all_keys |= group[1]
        groups.append((names, all_keys))
    return {frozenset(names) for names, _ in groups}


def partition(result: Stitched) -> set[frozenset[str]]:
    return {frozenset(ids) for ids in result.event_journey.group_by("journey_id").agg("event_id")["event_id"]}


@given(EVENTS)
def test_journeys_are_the_connected_components(events: Events) -> None:
    assert partition(stitched(list(enumerate(events)))) == oracle(events)


@settings(deadline=None)
@given(EVENTS, st.lists(st.integers(0, 24), max_size=4), st.randoms(use_true_random=False))
def test_any_split_and_order_gives_the_same_partition_and_keeps_ids(
    events: Events, cuts: list[int], rng: object
) -> None:
    numbered = list(enumerate(events))
    rng.shuffle(numbered)  # type: ignore[attr-defined]  # a Random
    known: Known = NOTHING
    for cut in sorted({*cuts, len(numbered)}):
        before, known = known, stitched(numbered[:cut], known)
        alive = set(known.journeys["journey_id"])
        aliases = dict(known.aliases.select("journey_id", "merged_into").rows())
        for old in before.journeys["journey_id"]:
            assert (old in alive) != (old in aliases), "an id lives on or is an alias, never both, never neither"
        assert set(aliases.values()) <= alive
    assert partition(known) == oracle(events)


@settings(deadline=None)
@given(EVENTS, st.lists(st.integers(0, 24), max_size=4))
def test_in_the_order_of_time_ids_do_not_depend_on_the_split(events: Events, cuts: list[int]) -> None:
    numbered = list(enumerate(events))
    known: Known = NOTHING
    for cut in sorted({*cuts, len(numbered)}):
        known = stitched(numbered[:cut], known)
    assert known.event_journey.sort("event_id").equals(stitched(numbered).event_journey.sort("event_id"))
