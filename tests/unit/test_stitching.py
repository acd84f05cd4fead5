from datetime import UTC, datetime, timedelta
from itertools import permutations

import polars as pl
import pytest

from c360_pipeline.core.lake import EVENT_JOURNEY, JOURNEY_ALIASES, JOURNEY_KEYS, JOURNEY_MERGES, JOURNEYS
from c360_pipeline.core.stitching import Known, Stitched, journey_id, stitch

NOW = datetime(2025, 11, 3, tzinfo=UTC)
START = datetime(2025, 10, 1, tzinfo=UTC)
NOTHING = Known(
    JOURNEYS.empty(), EVENT_JOURNEY.empty(), JOURNEY_KEYS.empty(), JOURNEY_ALIASES.empty(), JOURNEY_MERGES.empty()
)
Seen = tuple[str, int, list[str]]
"""An event: id, minute, keys written as `type:value`; a tenant other than acme as `tenant/id`."""


def frames(seen: list[Seen]) -> tuple[pl.DataFrame, pl.DataFrame]:
    events, keys = [], []
    for name, minute, found in seen:
        tenant, _, event_id = name.rpartition("/")
        events.append((tenant or "acme", event_id, START + timedelta(minutes=minute)))
        keys += [(tenant or "acme", event_id, *key.split(":")) for key in found]
    ts = pl.Datetime("us", "UTC")
    return (
        pl.DataFrame(events, schema={"tenant_id": pl.String, "event_id": pl.String, "ts": ts}, orient="row"),
        pl.DataFrame(keys, schema=["tenant_id", "event_id", "key_type", "key_hash"], orient="row"),
    )


def stitched(seen: list[Seen], known: Known = NOTHING) -> Stitched:
    events, keys = frames(seen)
    keys = (
        keys if keys.height else JOURNEY_KEYS.empty().select("tenant_id", "key_type", "key_hash", event_id="journey_id")
    )
    return stitch(events, keys.select("tenant_id", "event_id", "key_type", "key_hash"), known, NOW)


def groups(result: Stitched) -> set[frozenset[str]]:
    return {
        frozenset(ids) for ids in result.event_journey.group_by("tenant_id", "journey_id").agg("event_id")["event_id"]
    }


def test_events_that_share_a_key_are_one_journey() -> None:
    result = stitched([("a", 1, ["user:1", "cookie:c"]), ("b", 2, ["cookie:c"]), ("c", 3, ["user:2"])])
    assert groups(result) == {frozenset("ab"), frozenset("c")}
    journey = result.journeys.sort("event_count", descending=True).row(0, named=True)
    assert (journey["founding_event_id"], journey["event_count"], journey["key_count"]) == ("a", 2, 2)
    assert journey["journey_id"] == journey_id("acme", "a")


def test_a_chain_is_one_journey_whatever_its_length() -> None:
    result = stitched([(f"e{n}", n, [f"k:{n}", f"k:{n + 1}"]) for n in range(2000)])
    assert result.journeys.height == 1


def test_tenants_never_meet() -> None:
    result = stitched([("a", 1, ["user:1"]), ("globex/a", 1, ["user:1"])])
    assert result.journeys["journey_id"].n_unique() == 2


def test_types_of_keys_never_meet() -> None:
    assert len(groups(stitched([("a", 1, ["order:123"]), ("b", 2, ["session:123"])]))) == 2


def test_an_event_without_keys_is_a_journey_of_its_own() -> None:
    result = stitched([("a", 1, []), ("b", 2, [])])
    assert groups(result) == {frozenset("a"), frozenset("b")}
    assert result.journeys["key_count"].to_list() == [0, 0]


def test_the_oldest_journey_survives_and_the_other_becomes_its_alias() -> None:
    seen: list[Seen] = [("a", 1, ["user:1"]), ("b", 2, ["user:2"])]
    first = stitched(seen)
    second = stitched([*seen, ("c", 3, ["user:1", "user:2"])], first)
    old, young = journey_id("acme", "a"), journey_id("acme", "b")
    assert second.journeys["journey_id"].to_list() == [old]
    assert second.aliases.rows() == [("acme", young, old)]
    merge = second.merges.row(0, named=True)
    assert (merge["survivor"], merge["loser"], merge["via_event_id"]) == (old, young, "c")
    assert (merge["via_key_type"], merge["merged_at"]) == ("user", NOW)


def test_the_log_names_the_event_that_tied_not_the_first_that_came() -> None:
    seen: list[Seen] = [("a", 1, ["user:1"]), ("b", 2, ["user:2"])]
    second = stitched([*seen, ("c", 3, ["user:2"]), ("x", 4, ["user:1", "user:2"])], stitched(seen))
    assert second.merges["via_event_id"].to_list() == ["x"]


def test_a_bridge_of_three_journeys_leaves_two_aliases() -> None:
    seen: list[Seen] = [("a", 1, ["k:1"]), ("b", 2, ["k:2"]), ("c", 3, ["k:3"])]
    second = stitched([*seen, ("d", 4, ["k:1", "k:2", "k:3"])], stitched(seen))
    assert second.merges["survivor"].unique().to_list() == [journey_id("acme", "a")]
    assert second.merges.height == second.aliases.height == 2


def test_aliases_of_a_merged_journey_follow_the_survivor() -> None:
    one: list[Seen] = [("a", 1, ["k:1"]), ("b", 2, ["k:2"]), ("c", 3, ["k:3"])]
    two = [*one, ("d", 4, ["k:2", "k:3"])]
    three = [*two, ("e", 5, ["k:1", "k:2"])]
    last = stitched(three, stitched(two, stitched(one)))
    assert dict(last.aliases.select("journey_id", "merged_into").rows()) == {
        journey_id("acme", "b"): journey_id("acme", "a"),
        journey_id("acme", "c"): journey_id("acme", "a"),
    }


def test_a_late_event_joins_and_renames_nothing() -> None:
    first = stitched([("b", 5, ["user:1"])])
    second = stitched([("b", 5, ["user:1"]), ("a", 1, ["user:1"])], first)
    journey = second.journeys.row(0, named=True)
    assert (journey["journey_id"], journey["created_at"]) == (journey_id("acme", "b"), START + timedelta(minutes=5))
    assert journey["first_event_ts"] == START + timedelta(minutes=1)


def test_ties_go_to_the_lower_founding_event() -> None:
    seen: list[Seen] = [("b", 1, ["k:2"]), ("a", 1, ["k:1"])]
    assert stitched([*seen, ("c", 2, ["k:1", "k:2"])], stitched(seen)).journeys["founding_event_id"].to_list() == ["a"]


def test_a_second_run_changes_nothing() -> None:
    seen: list[Seen] = [("a", 1, ["k:1"]), ("b", 2, ["k:2"])]
    first = stitched([*seen, ("c", 3, ["k:1", "k:2"])], stitched(seen))
    second = stitched([*seen, ("c", 3, ["k:1", "k:2"])], first)
    for table in ("journeys", "aliases", "merges"):
        assert getattr(second, table).equals(getattr(first, table))


@pytest.mark.parametrize("order", list(permutations(range(5)))[::7])
def test_the_order_of_rows_does_not_matter(order: tuple[int, ...]) -> None:
    seen: list[Seen] = [
        ("a", 1, ["k:1"]), ("b", 2, ["k:2"]), ("c", 3, ["k:3"]), ("d", 4, ["k:1", "k:2"]), ("e", 5, ["k:2", "k:3"]),
    ]  # fmt: skip
    assert stitched([seen[n] for n in order]).journeys.equals(stitched(seen).journeys)
