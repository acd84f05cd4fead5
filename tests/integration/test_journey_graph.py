"""Journeys in the graph: readers see a journey before or after a merge, and what a killed run left is healed."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from c360_pipeline.core.catalog.tables import EVENT_JOURNEY, EVENT_KEYS, JOURNEY_KEYS, JOURNEYS
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.stitching.keys import UNKEYED, KeyPolicy, KeyRule, value_hash
from c360_pipeline.errors import ConfigError
from c360_pipeline.reads.journeys import explanation, journey_of_event
from c360_pipeline.settings import Settings
from c360_pipeline.stages.projection.corrections import BlockedKey, block_key, bring_up, part_keys
from c360_pipeline.stages.projection.journeys import JourneyGraph
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stages.stitching.tables import JourneyTables
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.client import Client
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb

CASES = Path(__file__).parent.parent / "fixtures" / "cases"
START = datetime(2025, 10, 1, tzinfo=UTC)
KINDS = ("user", "device", "cookie")
POLICY = KeyPolicy(tuple(KeyRule("*", kind, f"attrs.{kind}") for kind in KINDS))
Event = tuple[str, int, dict[str, str]]


class World:
    """Stitching over a lake in S3, and the graph."""

    def __init__(self, lake: Lake, graph: Graph) -> None:
        self.lake, self.graph, self.policy = lake, graph, POLICY
        self.journeys = Journeys(lake)

    def stitch(self, *events: Event, gone: tuple[str, ...] = ()) -> None:
        """Stitch events, whose nodes the projection of events has made."""
        entries = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
        rows = pl.DataFrame(
            [("acme", e, START + timedelta(minutes=m), [{"key": k, "value": v} for k, v in keys.items()])
             for e, m, keys in events],
            schema={"tenant_id": pl.String, "event_id": pl.String, "ts": pl.Datetime("us", "UTC"), "attrs": entries},
            orient="row",
        ).with_columns(pl.col("attrs").cast(pl.Map(pl.String, pl.String)))  # fmt: skip
        nodes = rows.select("tenant_id", id="event_id", type=pl.lit("view"), ts="ts", user_id=pl.lit("u"),
                            attrs=pl.lit("{}"))  # fmt: skip
        self.graph.writer.merge(model.ACTION, nodes)
        out = pl.DataFrame([("acme", e) for e in gone], schema={"tenant_id": pl.String, "event_id": pl.String},
                           orient="row")  # fmt: skip
        self.graph.writer.delete(model.ACTION, out.select("tenant_id", id="event_id"))
        self.journeys.add(rows, self.policy, out)

    def project(self) -> None:
        bring_up(self.lake, self.graph)

    def assert_graph_is_what_the_tables_say(self) -> None:
        pairs, assigned = self.lake.read(EVENT_KEYS), self.lake.read(EVENT_JOURNEY)
        keys = self.lake.read(JOURNEY_KEYS)
        for kind, expected in (
            (model.JOURNEY, model.journeys(self.lake.read(JOURNEYS))),
            (model.CORRELATION, model.correlations(keys)),
            (model.HAS_KEY, model.event_correlations(pairs)),
            (model.PART_OF, model.correlation_journeys(keys)),
            (model.IN_JOURNEY, model.unlinked_events(assigned, pairs)),
        ):
            found = self.graph.audit.rows(kind, "acme").select(expected.columns)
            assert sorted(found.rows()) == sorted(expected.rows()), kind.name
        for event, journey in assigned.select("event_id", "journey_id").iter_rows():
            assert {e["journey_id"] for e in journey_of_event(self.graph, "acme", event)} == {journey}


@pytest.fixture
def world(lake: Lake, graph: Graph) -> World:
    return World(lake, graph)


def random_events(count: int, seed: int) -> list[Event]:
    rng = np.random.default_rng(seed)
    return [
        (f"e{n:03}", n, {kind: f"v{rng.integers(0, 12)}" for kind in KINDS if rng.random() < 0.4}) for n in range(count)
    ]


def test_the_graph_follows_every_batch(world: World) -> None:
    events = random_events(60, 3)
    for start in range(0, 60, 12):
        gone = tuple(e for e, *_ in events[max(start - 12, 0) : max(start - 10, 0)])
        world.stitch(*events[start : start + 12], gone=gone)
        world.project()
        world.assert_graph_is_what_the_tables_say()


def test_guards_show_in_the_graph(world: World) -> None:
    world.policy = KeyPolicy(
        (KeyRule("*", "user", "attrs.user", is_unique=True), KeyRule("*", "device", "attrs.device", max_partners=3),
         KeyRule("*", "cookie", "attrs.cookie", "weak"))
    )  # fmt: skip
    events = random_events(60, 4)
    for start in range(0, 60, 7):
        world.stitch(*events[start : start + 7])
        world.project()
    world.assert_graph_is_what_the_tables_say()
    assert not world.graph.audit.rows(model.IN_JOURNEY, "acme").is_empty()


def test_a_projection_that_was_killed_anywhere_is_healed_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.stitch(("a", 1, {"user": "1"}), ("b", 2, {"device": "2"}), ("w", 3, {}))
    world.project()
    world.stitch(("c", 4, {"user": "1", "device": "2"}), ("d", 5, {"cookie": "3"}), gone=("w",))
    run = Client.run
    for kills_at in range(1, 40):
        calls = 0

        def dies(self: Client, statement: str, **parameters: Any) -> list[dict[str, Any]]:
            nonlocal calls
            calls += 1
            if calls == kills_at:  # noqa: B023 - called within this turn only
                raise ConnectionError("killed")
            return run(self, statement, **parameters)

        with monkeypatch.context() as patch:
            patch.setattr(Client, "run", dies)
            try:
                world.project()
                break
            except ConnectionError:
                continue
    assert kills_at > 5, "it was killed at several places before it came through"
    world.assert_graph_is_what_the_tables_say()


def test_no_reader_sees_half_a_merge(world: World) -> None:
    many = 400
    world.stitch(*((f"a{n}", n, {"user": "1", "device": f"a{n}"}) for n in range(many)))
    world.stitch(*((f"b{n}", n, {"user": "2", "device": f"b{n}"}) for n in range(many)))
    world.project()
    sizes: set[int] = set()
    names: set[int] = set()
    stop, has_read = threading.Event(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            events = journey_of_event(world.graph, "acme", "b7")
            sizes.add(len(events))
            names.add(len({e["journey_id"] for e in events}))
            has_read.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert has_read.wait(60)
    world.stitch(("c", 999, {"user": "1", "cookie": "x"}), ("d", 999, {"user": "2", "cookie": "x"}))
    world.project()
    stop.set()
    reader.join()
    assert names == {1}
    # The journey alone, the merged one, and that with the two events that linked it.
    assert sizes <= {many, 2 * many, 2 * many + 1, 2 * many + 2}
    assert many in sizes


def test_case_40_the_shortest_chain_between_two_events(world: World) -> None:
    world.stitch(
        ("a", 1, {"user": "1", "cookie": "x"}), ("b", 2, {"cookie": "x", "device": "d"}), ("c", 3, {"device": "d"}),
        ("z", 4, {"user": "9"}), ("w", 5, {}),
    )  # fmt: skip
    world.project()
    chain = explanation(world.graph, "acme", "a", "c")
    assert chain is not None
    keys = {kind: value_hash("acme", kind, value, UNKEYED) for kind, value in (("cookie", "x"), ("device", "d"))}
    assert [node.get("event_id") or node["key"] for node in chain] == [
        "a", f"cookie:{keys['cookie']}", "b", f"device:{keys['device']}", "c",
    ]  # fmt: skip
    assert [node["event_id"] for node in explanation(world.graph, "acme", "a", "a") or ()] == ["a"]
    assert explanation(world.graph, "acme", "a", "z") is None
    assert explanation(world.graph, "acme", "a", "w") is None
    assert explanation(world.graph, "globex", "a", "c") is None


def seeded(control: ControlDb, world: World) -> None:
    """Control rows that say what the policy of these tests says."""
    rows = (
        "INSERT INTO correlation_key_rules (tenant_id, key_type, source_attribute) VALUES ('*', %(kind)s, %(source)s)"
    )
    control.execute("DELETE FROM correlation_key_rules")
    for kind in KINDS:
        control.execute(rows, kind=kind, source=f"attrs.{kind}")
    world.policy = control.key_rules.policy()


@pytest.mark.parametrize("written", ["cookie=x", "cookie:{hash}"])
def test_unmerging_brings_old_ids_back_everywhere(
    world: World, control: ControlDb, settings: Settings, written: str
) -> None:
    seeded(control, world)
    world.stitch(("a", 1, {"user": "1"}), ("b", 2, {"device": "2"}))
    world.project()
    before = world.lake.read(EVENT_JOURNEY).sort("event_id")["journey_id"].to_list()
    world.stitch(("c", 3, {"user": "1", "cookie": "x"}), ("d", 4, {"device": "2", "cookie": "x"}))
    world.project()
    key = written.format(hash=value_hash("acme", "cookie", "x", world.policy.identifiers))
    done = block_key(control, world.lake, world.graph, key, None, "shared", undo=False)
    assert done.splits.select("journey_id", "split_off", "event_count").rows() == [(before[0], before[1], 2)]
    world.assert_graph_is_what_the_tables_say()
    found = dict(world.lake.read(EVENT_JOURNEY).select("event_id", "journey_id").iter_rows())
    assert found == {"a": before[0], "c": before[0], "b": before[1], "d": before[1]}
    done = block_key(control, world.lake, world.graph, key, None, "", undo=True)
    assert done.merges.select("survivor", "loser").rows() == [(before[0], before[1])]
    world.assert_graph_is_what_the_tables_say()


def test_a_key_that_no_event_has_can_not_be_unmerged(world: World, control: ControlDb) -> None:
    seeded(control, world)
    world.stitch(("a", 1, {"user": "1"}))
    refuse: Callable[[str], object] = lambda key: block_key(  # noqa: E731 - one call, twice
        control, world.lake, world.graph, key, None, "", undo=False
    )
    for key in ("user=7", "user:123", "fax=1", "user=null"):
        with pytest.raises(ConfigError, match="No event has the key"):
            refuse(key)
    assert control.key_rules.policy().blocked == frozenset()


def test_checkpoints_of_another_log_count_as_none(world: World) -> None:
    world.stitch(("a", 1, {"user": "1"}))
    world.project()
    assert JourneyGraph(world.lake, world.graph).project() == {}
    world.graph.writer.clear()
    world.stitch(("a", 1, {"user": "1"}))
    assert JourneyGraph(world.lake, world.graph).project()["Journey"] == 1


@pytest.mark.parametrize(
    ("case", "journeys"),
    [
        # The visit before a login is of who logged in next in its session; who came later to the device is another.
        ("ids-shared-device.jsonl", [{0, 1}, {2, 3}]),
        ("ids-ga4.jsonl", [{0, 1}, {2}, {3}]),
    ],
)
def test_users_who_are_kept_apart_share_a_device_or_a_session_and_are_two(
    control: ControlDb, lake: Lake, case: str, journeys: list[set[int]]
) -> None:
    assert control.key_rules.keep_users_apart("acme")
    assert not control.key_rules.keep_users_apart("acme"), "rules of its own stay as they are"
    lines = [json.loads(line) for line in (CASES / case).read_text().splitlines()]
    entries = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
    rows = pl.DataFrame(
        {
            "tenant_id": ["acme"] * len(lines), "event_id": [f"{n}" for n in range(len(lines))],
            "ts": [datetime.fromtimestamp(line["ts"] / 1_000, UTC) for line in lines],
            "user_id": [line["userId"] for line in lines], "session_id": [line["sessionId"] for line in lines],
            "anonymous_id": [None] * len(lines),
            "attrs": [[{"key": k, "value": v} for k, v in line["attrs"].items()] for line in lines],
        },
        schema_overrides={"attrs": entries, "anonymous_id": pl.String},
    ).with_columns(pl.col("attrs").cast(pl.Map(pl.String, pl.String)))  # fmt: skip
    for late_first in (False, True):
        stitched = Journeys(lake)
        policy = control.key_rules.policy()
        for n in reversed(range(len(lines))) if late_first else range(len(lines)):
            stitched.add(rows[n], policy)
        JourneyTables(lake).publish_all()
        found = lake.read(EVENT_JOURNEY).group_by("journey_id").agg("event_id")["event_id"].to_list()
        assert sorted(({int(event) for event in events} for events in found), key=min) == journeys
        stitched.add(rows.clear(), policy, rows)


def test_a_pattern_that_is_none_is_refused_with_its_row(control: ControlDb) -> None:
    control.execute("UPDATE correlation_key_rules SET pattern = '(' WHERE key_type = 'cookie'")
    with pytest.raises(ConfigError, match=r"pattern '\(' of \*, cookie, attrs.cookieId is no regular expression"):
        control.key_rules.policy()


def test_two_users_whom_an_alias_made_one_are_parted_by_name(control: ControlDb, world: World) -> None:
    world.policy = control.key_rules.policy()
    control.execute("DELETE FROM correlation_key_rules")
    for source in ("attrs.user", "attrs.same_as"):
        control.execute(
            "INSERT INTO correlation_key_rules (tenant_id, key_type, source_attribute, is_unique) "
            "VALUES ('*', 'user', %(source)s, true), ('*', 'device', 'attrs.device', false) ON CONFLICT DO NOTHING",
            source=source,
        )
    world.policy = control.key_rules.policy()
    world.stitch(("a", 1, {"user": "ann", "device": "d"}), ("b", 2, {"user": "bob"}))
    world.project()
    before = world.lake.read(EVENT_JOURNEY).sort("event_id").rows()
    world.stitch(("c", 3, {"user": "bob", "same_as": "ann"}))
    world.project()
    assert world.lake.read(JOURNEYS).height == 1
    part: Callable[..., BlockedKey] = lambda *keys, undo=False: part_keys(  # noqa: E731 - one call, often
        control, world.lake, world.graph, *keys, None, "two people", undo=undo
    )
    done = part("user=ann", "user=bob")
    assert done.splits["event_count"].sum() >= 1
    assert world.lake.read(EVENT_JOURNEY).filter(pl.col("event_id") != "c").sort("event_id").rows() == before
    world.assert_graph_is_what_the_tables_say()
    assert part("user=bob", "user=ann", undo=True).merges.height == 1
    assert not control.key_rules.policy().parted
    world.assert_graph_is_what_the_tables_say()
    for keys, wrong in (
        (("user=ann", "user= ann"), "are one key"),
        (("user=ann", "device=d"), "two keys of one unique type"),
        (("user=ann", "user=nobody-knows"), "No event has the key"),
    ):
        with pytest.raises(ConfigError, match=wrong):
            part(*keys)
