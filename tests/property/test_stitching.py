"""Laws of stitching over random events, splits, orders and replays; an oracle merges sets, the slow and obvious way."""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from repetition import often

from c360_pipeline.core.catalog.tables import EVENT_JOURNEY, EVENT_KEYS, JOURNEY_ALIASES, JOURNEY_KEYS, JOURNEYS
from c360_pipeline.core.stitching.batch import Known, prepare
from c360_pipeline.core.stitching.keys import KeyPolicy, KeyRule, extract_keys
from c360_pipeline.core.stitching.log import Gone, aliases, events_now, log_rows
from c360_pipeline.core.stitching.stitch import stitch
from c360_pipeline.stages.stitching.index import JourneyIndex
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stages.stitching.tables import JourneyTables
from c360_pipeline.stores.delta.lake import Lake

NOW = datetime(2025, 11, 3, tzinfo=UTC)
KINDS = ("a", "b", "c")
POLICY = KeyPolicy(tuple(KeyRule("*", kind, f"attrs.{kind}", max_partners=None) for kind in KINDS))
Numbered = tuple[int, dict[str, str]]
"""An event: its number, which is its id and its minute, and its keys by type."""
Journeyed = dict[str, str]
"""The journey of each event."""
KEYS = st.dictionaries(st.sampled_from(KINDS), st.integers(1, 6).map(lambda n: f"v{n}"), max_size=3)
EVENTS = st.lists(KEYS, min_size=1, max_size=24).map(lambda found: list(enumerate(found)))
CUTS = st.lists(st.integers(1, 23), max_size=4)
RANDOM = st.randoms(use_true_random=False)


def archive(events: list[Numbered]) -> pl.DataFrame:
    entries = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
    schema = {"tenant_id": pl.String, "event_id": pl.String, "ts": pl.Datetime("us", "UTC"), "attrs": entries}
    rows = [
        ("t", f"{n:03}", NOW + timedelta(minutes=n - 1000), [{"key": k, "value": v} for k, v in keys.items()])
        for n, keys in events
    ]
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        pl.col("attrs").cast(pl.Map(pl.String, pl.String))
    )


def oracle(events: list[Numbered], ignored: Iterable[tuple[str, str]] = ()) -> set[frozenset[str]]:
    """Components by merging sets."""
    groups: list[tuple[set[str], set[tuple[str, str]]]] = []
    for n, keys in events:
        names, all_keys = {f"{n:03}"}, {pair for pair in keys.items() if pair not in ignored}
        for group in [g for g in groups if g[1] & all_keys]:
            groups.remove(group)
            names |= group[0]
            all_keys |= group[1]
        groups.append((names, all_keys))
    return {frozenset(names) for names, _ in groups}


def partition(found: Journeyed) -> set[frozenset[str]]:
    groups: dict[str, set[str]] = {}
    for event, journey in found.items():
        groups.setdefault(journey, set()).add(event)
    return {frozenset(group) for group in groups.values()}


def at_once(events: list[Numbered], policy: KeyPolicy = POLICY) -> Journeyed:
    rows = archive(events)
    batch = prepare(rows, extract_keys(rows, policy.rules), policy)
    return dict(stitch(batch, Known.nothing(batch), policy).events.select("event_id", "journey_id").iter_rows())


def batches(events: list[Numbered], cuts: list[int]) -> list[list[Numbered]]:
    places = [0, *sorted({cut for cut in cuts if cut < len(events)}), len(events)]
    return [events[low:high] for low, high in pairwise(places)]


class Log:
    """The log of stitching in memory, with the index that batches look into."""

    def __init__(self, folder: Path) -> None:
        self.index = JourneyIndex(folder)
        self.rows: list[pl.DataFrame] = []

    def add(self, events: list[Numbered]) -> None:
        rows = archive(events)
        known = self.index.known_events(rows)["fingerprint"].is_not_null()
        fresh = [event for event, is_known in zip(events, known, strict=True) if not is_known]
        if not fresh:
            return
        rows = archive(fresh)
        batch = prepare(rows, extract_keys(rows, POLICY.rules), POLICY)
        decided = stitch(batch, self.index.known(batch), POLICY)
        self.rows.append(log_rows(decided, Gone.nothing(), {"t": len(self.rows) + 1}, {}, NOW, ""))
        self.index.absorb(self.rows[-1], set())

    def now(self) -> Journeyed:
        rows = pl.concat(self.rows).lazy()
        found = events_now(rows, aliases(rows)).select("event_id", "journey_id").collect()
        return dict(found.iter_rows())


# An example writes some thirty commits, half a second.
ON_DISK = settings(max_examples=often(10, 250))


@given(EVENTS)
def test_journeys_are_the_connected_components(events: list[Numbered]) -> None:
    assert partition(at_once(events)) == oracle(events)


@ON_DISK
@given(EVENTS, CUTS, RANDOM)
def test_case_45_and_46_any_split_order_and_replay_gives_the_same_partition(
    events: list[Numbered], cuts: list[int], rng: Random
) -> None:
    shuffled = list(events)
    rng.shuffle(shuffled)
    given_out: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder))
        for batch in batches(shuffled, cuts):
            log.add(batch + rng.sample(shuffled, rng.randint(0, len(shuffled))) if rng.random() < 0.3 else batch)
            for event, journey in log.now().items():
                given_out.setdefault(event, set()).add(journey)
        found = log.now()
        merged = dict(aliases(pl.concat(log.rows).lazy()).select("journey_id", "merged_into").iter_rows())
    assert partition(found) == oracle(events)
    for event, names in given_out.items():
        assert {merged.get(name, name) for name in names} == {found[event]}, "an id resolves to the journey of today"


@ON_DISK
@given(EVENTS, CUTS)
def test_case_45_in_the_order_of_time_ids_do_not_depend_on_the_split(events: list[Numbered], cuts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder))
        for batch in batches(events, cuts):
            log.add(batch)
        assert log.now() == at_once(events)


class Store:
    """The store of journeys over a lake in a folder."""

    def __init__(self, folder: str, policy: KeyPolicy) -> None:
        (Path(folder) / "lake").mkdir()
        self.folder, self.policy = folder, policy
        self.lake = Lake(f"{folder}/lake", {}, Path(folder) / "cache")
        self.journeys = Journeys(self.lake)

    def add(self, events: list[Numbered], gone: Iterable[int] = ()) -> None:
        out = pl.DataFrame([("t", f"{n:03}") for n in gone], schema={"tenant_id": pl.String, "event_id": pl.String},
                           orient="row")  # fmt: skip
        self.journeys.add(archive(events), self.policy, out)

    def feed(self, parts: list[list[Numbered]], rng: Random) -> None:
        """Add batches, sometimes going on without the cache."""
        for batch in parts:
            self.add(batch)
            if rng.random() < 0.3:
                self.forget_cache()

    def now(self) -> Journeyed:
        """The journey of each event, once the tables are found to agree with each other."""
        JourneyTables(self.lake).publish_all()
        found = self.lake.read(EVENT_JOURNEY)
        counted = found.group_by("journey_id").len("events")
        linked = self.lake.read(EVENT_KEYS).filter(pl.col("status") == "linked")
        held = linked.join(found, on="event_id").select("key_type", "key_hash", "journey_id").unique()
        keys = self.lake.read(JOURNEY_KEYS).select("key_type", "key_hash", "journey_id")
        assert held.sort(pl.all()).equals(keys.sort(pl.all()))
        counts = counted.join(keys.group_by("journey_id").len("keys"), on="journey_id", how="left")
        journeys = self.lake.read(JOURNEYS).select("journey_id", "event_count", "key_count").sort("journey_id")
        expected = counts.select("journey_id", pl.col("events", "keys").fill_null(0).cast(pl.Int64)).sort("journey_id")
        assert journeys.rows() == expected.rows()
        ids, gone = set(self.lake.read(JOURNEYS)["journey_id"]), self.lake.read(JOURNEY_ALIASES)
        assert set(found["journey_id"]) == ids
        assert not set(gone["journey_id"]) & ids, "an id is a journey or leads to one"
        assert set(gone["merged_into"]) <= ids
        return dict(found.select("event_id", "journey_id").iter_rows())

    def forget_cache(self) -> None:
        """Go on as another machine would, that has only the log."""
        self.lake = Lake(f"{self.folder}/lake", {}, Path(tempfile.mkdtemp(dir=self.folder)))
        self.journeys = Journeys(self.lake)


@ON_DISK
@given(EVENTS, CUTS, RANDOM, st.integers(1, 4))
def test_quarantine_does_not_depend_on_order_or_split(
    events: list[Numbered], cuts: list[int], rng: Random, limit: int
) -> None:
    partners: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for _, keys in events:
        for pair in keys.items():
            partners.setdefault(pair, set()).update(set(keys.items()) - {pair})
    over = [pair for pair, met in partners.items() if len(met) > limit]
    policy = KeyPolicy(tuple(KeyRule("*", kind, f"attrs.{kind}", max_partners=limit) for kind in KINDS))
    shuffled = list(events)
    rng.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, policy)
        store.feed(batches(shuffled, cuts), rng)
        assert partition(store.now()) == oracle(events, over)


@ON_DISK
@given(EVENTS, CUTS, RANDOM)
def test_events_that_go_or_change_leave_nothing_behind(events: list[Numbered], cuts: list[int], rng: Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, POLICY)
        there: dict[int, dict[str, str]] = {}
        for batch in batches(events, cuts):
            gone = [n for n in there if rng.random() < 0.2]
            other = [(n, {"a": f"v{rng.randint(1, 6)}"}) for n in there if n not in gone and rng.random() < 0.2]
            there = {n: keys for n, keys in there.items() if n not in gone} | dict(other) | dict(batch)
            store.add(batch + other, gone)
            if rng.random() < 0.3:
                store.forget_cache()
            assert partition(store.now()) == oracle(sorted(there.items()))
        again = store.journeys.rebase("t", archive(sorted(there.items())), POLICY)
        assert again.merges.is_empty() and again.splits.is_empty() and again.moved.is_empty()  # noqa: PT018


@ON_DISK
@given(EVENTS, CUTS, RANDOM)
def test_guards_in_the_order_of_time_do_not_depend_on_the_split(
    events: list[Numbered], cuts: list[int], rng: Random
) -> None:
    policy = KeyPolicy(
        (
            KeyRule("*", "a", "attrs.a", is_unique=True, max_partners=None),
            KeyRule("*", "b", "attrs.b", max_partners=None),
            KeyRule("*", "c", "attrs.c", "weak"),
        )
    )
    expected = at_once(events, policy)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, policy)
        store.feed(batches(events, cuts), rng)
        found = store.now()
        assert found == expected
        users: dict[str, set[str]] = {}
        for n, keys in events:
            users.setdefault(found[f"{n:03}"], set()).update(v for k, v in keys.items() if k == "a")
        assert all(len(values) <= 1 for values in users.values()), "two values of a unique type never share a journey"
        again = store.journeys.rebase("t", archive(events), policy)
        assert again.change is None, "all events under the same rules are what they are"


PEOPLE = KeyPolicy(
    (
        KeyRule("*", "a", "attrs.a", is_unique=True, max_partners=None),
        KeyRule("*", "a", "attrs.same_as", max_partners=None),
        KeyRule("*", "b", "attrs.b", max_partners=None),
        KeyRule("*", "c", "attrs.c", max_partners=None),
    )
)
CROWDED = KeyPolicy(tuple(replace(rule, max_partners=3) if rule.key_type == "c" else rule for rule in PEOPLE.rules))
OF_PEOPLE = st.lists(
    st.dictionaries(
        st.sampled_from(("a", "b", "c", "b", "same_as")), st.integers(1, 4).map(lambda n: f"v{n}"), max_size=3
    ),
    min_size=1, max_size=20,
).map(lambda found: list(enumerate(found)))  # fmt: skip


def people_of(events: list[Numbered], found: Journeyed) -> dict[str, set[str]]:
    """The people of each journey, by the smallest name of those that are the same."""
    persons: dict[str, str] = {}

    def person(name: str) -> str:
        while persons.get(name, name) != name:
            name = persons[name]
        return name

    for _, keys in events:
        if {"a", "same_as"} <= set(keys):
            one, other = sorted((person(keys["a"]), person(keys["same_as"])))
            persons[other] = one
    held: dict[str, set[str]] = {}
    for n, keys in events:
        names = {person(keys[kind]) for kind in ("a", "same_as") if kind in keys}
        held.setdefault(found[f"{n:03}"], set()).update(names)
    return held


@ON_DISK
@given(OF_PEOPLE, CUTS, RANDOM, st.booleans())
def test_people_stay_apart_alike_in_any_order_and_only_same_as_makes_two_one(
    events: list[Numbered], cuts: list[int], rng: Random, is_crowded: bool
) -> None:
    # A quarantine is not lifted when events go: there none does.
    policy, share = (CROWDED, 0.0) if is_crowded else (PEOPLE, 0.15)
    shuffled = list(events)
    rng.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, policy)
        there: dict[int, dict[str, str]] = {}
        for batch in batches(shuffled, cuts):
            gone = [n for n in there if rng.random() < share]
            other = [(n, {"a": f"v{rng.randint(1, 4)}"}) for n in there if n not in gone and rng.random() < share]
            there = {n: keys for n, keys in there.items() if n not in gone} | dict(other) | dict(batch)
            store.add(batch + other, gone)
            if rng.random() < 0.3:
                store.forget_cache()
        left = sorted(there.items())
        assert all(len(people) <= 1 for people in people_of(left, store.now()).values())
        again = store.journeys.rebase("t", archive(left), policy)
        assert again.moved.is_empty()
        assert again.keys.is_empty(), "each key of each event links, or is refused, as all events at once would have it"
        assert not again.touched
