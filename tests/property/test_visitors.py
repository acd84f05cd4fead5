"""Laws of visitors: whom events count for, and that what is written by difference is what all events say."""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from repetition import often

from c360_pipeline.core.catalog.changes import difference
from c360_pipeline.core.catalog.tables import EVENT_JOURNEY, EVENTS, VISITOR_DECISIONS
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.stitching.keys import KeyPolicy, KeyRule
from c360_pipeline.core.visitors.counting import GAP_MINUTES, SESSION_GAP, SPLIT, counted
from c360_pipeline.stages.projection.events import project_touched
from c360_pipeline.stages.projection.everything import stitch_all
from c360_pipeline.stages.visitors.around import events_around
from c360_pipeline.stages.visitors.counted import PROJECTED, EventsAt
from c360_pipeline.stages.visitors.tables import BUILDERS, VisitorTables
from c360_pipeline.stores.delta.lake import Lake

NOW = datetime(2026, 3, 2, tzinfo=UTC)
POLICY = KeyPolicy(
    (KeyRule("*", "user", "userId"), KeyRule("*", "session", "sessionId"), KeyRule("*", "visitor", "anonymousId"))
)
USERS = (None, None, "ana", "Ana@x.test", "ana@X.test", "bo", "guest")
ANA = {"Ana@x.test": "ana@x.test", "ana@X.test": "ana@x.test"}
"""The normal form where it is another text."""
EVENT = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(USERS),
        "anonymous_id": st.sampled_from([None, "a", "b", "null"]),
        "session_id": st.sampled_from([None, None, "s", "t"]),
        "minute": st.integers(0, 150),
        "action": st.sampled_from(["view", "purchase", "page"]),
        "item_id": st.sampled_from([None, "p", "q"]),
        "traits": st.sampled_from([None, None, {"plan": "pro"}, {"plan": "free", "email": "a@x.test"}]),
        "attrs": st.sampled_from(
            [None, None, {"group.id": "g"}, {"group.id": "g", "group.type": "team", "group.name": "G"}]
        ),
        "consent": st.sampled_from([None, None, {"ads": "granted"}, {"ads": "denied", "mail": "granted"}]),
    }
).filter(lambda event: event["user_id"] or event["anonymous_id"])
NAMES = ("user_id", "anonymous_id", "session_id", "action", "item_id", "traits", "consent", "attrs")
SPLITS = st.sets(st.sampled_from(["a", "b"]))
GAPS = st.sampled_from([None, 5, 60])


def rows(events: list[dict[str, Any]]) -> pl.DataFrame:
    schema = EVENTS.empty().schema
    made = [
        {
            **{name: event.get(name) for name in NAMES},
            "tenant_id": "t", "event_id": event["event_id"], "ts": NOW + timedelta(minutes=event["minute"]),
            "event_date": NOW.date(), "landed_at": NOW, "content_hash": repr(sorted(event.items(), key=str)),
        }
        for event in events
    ]  # fmt: skip
    return pl.DataFrame(made, schema=schema)


def decisions(splits: set[str], gap: int | None) -> pl.DataFrame:
    found = [("t", SPLIT, name, None, "", NOW) for name in sorted(splits)]
    found += [("t", SESSION_GAP, "", gap, "", NOW)] if gap else []
    return pl.DataFrame(found, schema=VISITOR_DECISIONS.empty().schema, orient="row")


def plainly(events: list[dict[str, Any]], splits: set[str], gap: int | None) -> dict[str, tuple[Any, Any]]:
    """Customer and session of each event, the slow and obvious way."""
    ordered = sorted(events, key=lambda e: (e["minute"], e["event_id"]))
    visitor_of = {e["event_id"]: e["anonymous_id"] if e["anonymous_id"] != "null" else None for e in ordered}
    user_of = {e["event_id"]: e["user_id"] if e["user_id"] != "guest" else None for e in ordered}
    session: dict[str, str | None] = {}
    last: dict[tuple[bool, str], tuple[int, str]] = {}
    for e in ordered:
        name, visitor = e["event_id"], visitor_of[e["event_id"]]
        owner = visitor or user_of[name]
        session[name] = e["session_id"]
        if session[name] is None and owner is not None:
            before = last.get((visitor is not None, owner))
            goes_on = before is not None and e["minute"] - before[0] <= (gap or GAP_MINUTES)
            session[name] = before[1] if before and goes_on else f"gap:{name}"
            last[visitor is not None, owner] = (e["minute"], str(session[name]))
    found = {}
    for e in ordered:
        name, visitor = e["event_id"], visitor_of[e["event_id"]]
        customer = e["user_id"] if user_of[name] or not visitor else None
        if visitor and user_of[name] is None and visitor not in splits:
            logins = [o for o in ordered if visitor_of[o["event_id"]] == visitor and user_of[o["event_id"]]]
            people = {ANA.get(o["user_id"], o["user_id"]) for o in logins}
            later = [o for o in logins if (o["minute"], o["event_id"]) > (e["minute"], name)
                     and session[o["event_id"]] == session[name]]  # fmt: skip
            if len(people) == 1:
                customer = min(logins, key=lambda o: (o["minute"], o["user_id"]))["user_id"]
            elif len(people) > 1 and later:
                customer = later[0]["user_id"]
        found[name] = (customer, session[name])
    return found


@settings(max_examples=often(60, 2000), deadline=None)
@given(st.lists(EVENT, min_size=1, max_size=14), SPLITS, GAPS, st.randoms(use_true_random=False))
def test_whom_events_count_for_is_what_a_plain_reading_says(
    events: list[dict[str, Any]], splits: set[str], gap: int | None, random: Any
) -> None:
    named = [{**event, "event_id": f"e{n:02}"} for n, event in enumerate(events)]
    shuffled = random.sample(named, len(named))
    found = counted(rows(shuffled).lazy(), decisions(splits, gap).lazy()).collect()
    said = {name: (customer, session) for name, customer, session in found.select(
        "event_id", "customer_id", "session_id").iter_rows()}  # fmt: skip
    assert said == plainly(named, splits, gap)


ALTERED = st.dictionaries(st.integers(0, 12), EVENT, max_size=2)
STEP = st.tuples(st.lists(EVENT, max_size=5), ALTERED, st.sets(st.integers(0, 20), max_size=3), SPLITS, GAPS)
Step = tuple[list[dict[str, Any]], dict[int, dict[str, Any]], set[int], set[str], int | None]
"""Events that come, events that come again otherwise, events that go, visitors that are split, and a gap."""


class Archive:
    """An archive to which steps happen."""

    def __init__(self, folder: str) -> None:
        self.lake = Lake(f"{folder}/lake", {}, Path(folder) / "cache")
        self.lake.commits.append(EVENTS, EVENTS.empty())
        self.lake.commits.append(VISITOR_DECISIONS, VISITOR_DECISIONS.empty())
        self._there: set[str] = set()
        self._count = 0

    def take(self, step: Step) -> None:
        """Commit a step."""
        came, altered, gone, splits, gap = step
        new = [{**event, "event_id": f"e{self._count + n:02}"} for n, event in enumerate(came)]
        again = [{**event, "event_id": f"e{n:02}"} for n, event in altered.items() if f"e{n:02}" in self._there]
        self._count += len(came)
        leaving = [f"e{n:02}" for n in gone if n not in altered and f"e{n:02}" in self._there]
        self._there = (self._there | {event["event_id"] for event in new}) - set(leaving)
        keys = pl.DataFrame({"tenant_id": ["t"] * len(leaving), "event_id": leaving},
                            schema={"tenant_id": pl.String, "event_id": pl.String})  # fmt: skip
        self.lake.commits.merge(EVENTS, rows([*new, *again]), keys)
        self.lake.commits.replace(VISITOR_DECISIONS, decisions(splits, gap))


@settings(max_examples=often(3, 300), deadline=None)
@given(st.lists(STEP, min_size=1, max_size=5))
def test_what_is_written_by_difference_is_what_all_events_say(steps: list[Step]) -> None:
    """Landings, corrections, removals and decisions one after the other; a graph of frames takes up each difference."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(folder)
        lake = archive.lake
        graph = {p.kind: pl.DataFrame(schema=p.kind.schema) for p in model.EVENT_PROJECTIONS}
        at = EventsAt.now(lake)
        since = [lake.versions.version(table.name) for table in (EVENTS, VISITOR_DECISIONS)]
        for step in steps:
            archive.take(step)
            changed, events_version = lake.versions.changes(EVENTS, since[0], PROJECTED)
            decided, decisions_version = lake.versions.changes(VISITOR_DECISIONS, since[1])
            now = EventsAt.now(lake)
            around = events_around(changed, decided, at, now)
            for projection in model.EVENT_PROJECTIONS:
                kind, key = projection.kind, projection.kind.key_columns
                changes = project_touched(projection, around)
                gone_keys = pl.concat([changes.deleted.select(key), changes.upserted.select(key)])
                kept = graph[kind].join(gone_keys, on=key, how="anti")
                graph[kind] = pl.concat([kept, changes.upserted.select(kept.columns)])
            at, since = now, [events_version, decisions_version]
            VisitorTables(lake).publish_all()
            whole = now.counted(now.scan(PROJECTED)).collect()
            for table, (_, build) in BUILDERS.items():
                assert not difference(lake.read(table), build(whole), table.key).count, table.name
            for projection in model.EVENT_PROJECTIONS:
                kind = projection.kind
                wanted = projection.build(whole).select(list(kind.schema))
                assert not difference(graph[kind], wanted, kind.key_columns).count, kind.name


def partition(lake: Lake) -> set[frozenset[str]]:
    """Ids of the events of each journey."""
    groups = lake.read(EVENT_JOURNEY).group_by("journey_id").agg("event_id")["event_id"].to_list()
    return {frozenset(names) for names in groups}


@settings(max_examples=often(3, 300), deadline=None)
@given(st.lists(STEP, min_size=1, max_size=4))
def test_journeys_of_visitors_are_those_of_a_stitching_of_everything(steps: list[Step]) -> None:
    """After landings, corrections, removals and decisions in turn, journeys are what one stitching of all makes."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(folder)
        for step in steps:
            archive.take(step)
            stitch_all(archive.lake, POLICY)
        other = Lake(f"{folder}/other", {}, Path(folder) / "other-cache")
        for table in (EVENTS, VISITOR_DECISIONS):
            other.commits.append(table, archive.lake.read(table))
        stitch_all(other, POLICY)
        assert partition(archive.lake) == partition(other)


FAMILY = [
    {"event_id": f"e{n:02}", "minute": n, "user_id": user, "session_id": session, "anonymous_id": "tablet",
     "action": "view", "item_id": None}
    for n, (user, session) in enumerate([
        (None, "s"), ("ana", "s"), (None, "s"), (None, "t"), ("bo", "t"), ("cy", "t"), (None, "u"), ("ana", "u"),
    ])
]  # fmt: skip


def test_a_family_of_three_on_one_tablet_stays_three_and_an_earlier_id_comes_back() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(f"{folder}/lake", {}, Path(folder) / "cache")

        def land(*numbers: int) -> None:
            lake.commits.merge(EVENTS, rows([FAMILY[n] for n in numbers]))
            stitch_all(lake, POLICY)

        def ids() -> dict[str, str]:
            return dict(lake.read(EVENT_JOURNEY).select("event_id", "journey_id").iter_rows())

        land(0, 1, 2, 3)  # all of Ana's: the only user of the tablet
        alone = ids()
        assert len(set(alone.values())) == 1
        land(4, 5, 6, 7)
        assert partition(lake) == {
            frozenset({"e00", "e01", "e06", "e07"}), frozenset({"e03", "e04"}), frozenset({"e05"}), frozenset({"e02"})
        }  # fmt: skip
        assert ids()["e00"] == alone["e00"]
        gone = pl.DataFrame({"tenant_id": "t", "event_id": [f"e{n:02}" for n in (4, 5, 6, 7)]})
        lake.commits.merge(EVENTS, EVENTS.empty(), gone)
        stitch_all(lake, POLICY)
        assert ids() == alone
