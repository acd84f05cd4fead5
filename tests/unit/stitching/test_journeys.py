"""The adversarial cases of stitching, by number, against the store of journeys over a lake in a folder."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import polars as pl
import pytest
from deltalake.exceptions import CommitFailedError

from c360_pipeline.assets.stitching import settled, wrong_rows
from c360_pipeline.core.catalog.tables import (
    EVENT_JOURNEY,
    EVENT_KEYS,
    EVENTS,
    JOURNEY_ALIASES,
    JOURNEY_CONFLICTS,
    JOURNEY_KEYS,
    JOURNEY_LOG,
    JOURNEY_MERGES,
    JOURNEY_SPLITS,
    JOURNEYS,
    QUARANTINED_KEYS,
)
from c360_pipeline.core.contract.identifiers import DIGESTS_OF_NOBODY
from c360_pipeline.core.kernels import journeys as kernel
from c360_pipeline.core.landing.classify import ARCHIVED_FACTS, classify
from c360_pipeline.core.landing.decode import decode
from c360_pipeline.core.landing.lines import Delivery, LineBlock
from c360_pipeline.core.stitching.batch import Known, prepare
from c360_pipeline.core.stitching.journey_ids import journey_id
from c360_pipeline.core.stitching.keys import UNKEYED, JourneyLimit, KeyPolicy, KeyRule, extract_keys, value_hash
from c360_pipeline.core.stitching.stitch import stitch
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.stitching.catch_up import Stitching, stitched_version
from c360_pipeline.stages.stitching.history import JourneyHistory
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stages.stitching.report import BatchReport
from c360_pipeline.stages.stitching.tables import JourneyTables
from c360_pipeline.stages.stitching.why_apart import why_apart
from c360_pipeline.stores.delta.commits import Commits
from c360_pipeline.stores.delta.lake import Lake

START = datetime(2025, 10, 1, tzinfo=UTC)
TYPES = ("user", "session", "device", "cookie", "order", "email_hash")
RULES = tuple(KeyRule("*", kind, f"attrs.{kind}") for kind in TYPES)
POLICY = KeyPolicy(RULES)
Event = tuple[str, int, list[str]]
"""Id (with `tenant/` before it for another than acme), minute, keys as `type:value`."""


def archive(events: list[Event]) -> pl.DataFrame:
    """Rows of the archive."""
    rows: dict[str, list[Any]] = {"tenant_id": [], "event_id": [], "ts": [], "attrs": []}
    for name, minute, keys in events:
        tenant, _, event_id = name.rpartition("/")
        rows["tenant_id"].append(tenant or "acme")
        rows["event_id"].append(event_id)
        rows["ts"].append(START + timedelta(minutes=minute))
        rows["attrs"].append([{"key": k.split(":", 1)[0], "value": k.split(":", 1)[1]} for k in keys])
    entries = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
    frame = pl.DataFrame(rows, schema={"tenant_id": pl.String, "event_id": pl.String,
                                       "ts": pl.Datetime("us", "UTC"), "attrs": entries})  # fmt: skip
    return frame.with_columns(pl.col("attrs").cast(pl.Map(pl.String, pl.String)))


class Stitcher:
    """The store of journeys and its tables."""

    def __init__(self, folder: Path, name: str = "cache") -> None:
        (folder / "lake").mkdir(exist_ok=True)
        self.lake = Lake(str(folder / "lake"), {}, folder / name)
        self.journeys = Journeys(self.lake)
        self.policy = POLICY

    def add(self, *events: Event, gone: list[str] | None = None) -> BatchReport:
        out = pl.DataFrame([("acme", e) for e in gone or []], schema=["tenant_id", "event_id"], orient="row")
        return self.journeys.add(archive(list(events)), self.policy, out.cast(pl.String))

    def table(self, table: Any) -> pl.DataFrame:
        JourneyTables(self.lake).publish_all()
        return self.lake.read(table)

    def assigned(self) -> dict[str, str]:
        rows = self.table(EVENT_JOURNEY)
        return {(f"{t}/" if t != "acme" else "") + e: j for t, e, j in rows.iter_rows()}

    def partition(self) -> set[frozenset[str]]:
        groups: dict[str, set[str]] = {}
        for event, journey in self.assigned().items():
            groups.setdefault(journey, set()).add(event)
        return {frozenset(group) for group in groups.values()}

    def log(self) -> pl.DataFrame:
        return self.lake.read(JOURNEY_LOG)

    def statuses(self, event_id: str) -> dict[str, str]:
        rows = self.table(EVENT_KEYS).filter(pl.col("event_id") == event_id)
        return dict(rows.select("key_type", "status").iter_rows())

    def block(self, key_type: str, value: str, tenant: str = "acme", *, undo: bool = False) -> BatchReport:
        key = (tenant, key_type, value_hash(tenant, key_type, value, UNKEYED) or "")
        blocked = self.policy.blocked - {key} if undo else self.policy.blocked | {key}
        self.policy = KeyPolicy(self.policy.rules, self.policy.limits, blocked)
        touched = self.journeys.with_keys(tenant, [f"{key_type}:{key[2]}"])
        return self.journeys.restitch(touched, self.policy, tenant, "test")

    def unique_user(self) -> None:
        users = (KeyRule("*", "user", f"attrs.{name}", is_unique=True) for name in ("user", "same_as"))
        self.policy = KeyPolicy((*users, *RULES[1:]))

    def part(self, one: str, other: str, *, undo: bool = False) -> BatchReport:
        pair = [value_hash("acme", "user", value, UNKEYED) or "" for value in (one, other)]
        parted = frozenset() if undo else frozenset([("acme", "user", *pair)])
        self.policy = replace(self.policy, parted=parted)
        touched = self.journeys.with_keys("acme", [f"user:{key}" for key in pair])
        return self.journeys.restitch(touched, self.policy, "acme", "test")

    def capped(self, kind: str, partners: int) -> None:
        rules = tuple(KeyRule("*", k, f"attrs.{k}", max_partners=partners if k == kind else None) for k in TYPES)
        self.policy = KeyPolicy(rules)


@pytest.fixture
def stitcher(tmp_path: Path) -> Stitcher:
    return Stitcher(tmp_path)


def name_of(event: str, tenant: str = "acme") -> str:
    return journey_id(tenant, event)


def apart(*events: str) -> set[frozenset[str]]:
    return {frozenset([event]) for event in events}


def in_batches(events: list[Event], size: int) -> Iterator[list[Event]]:
    for start in range(0, len(events), size):
        yield events[start : start + size]


def test_case_01_a_shuffled_chain_of_2000_events_is_one_journey(stitcher: Stitcher) -> None:
    chain: list[Event] = [(f"e{n:04}", n, [f"cookie:c{n}", f"cookie_next:c{n + 1}"]) for n in range(2000)]
    rules = (KeyRule("*", "cookie", "attrs.cookie"), KeyRule("*", "cookie", "attrs.cookie_next"))
    stitcher.policy = KeyPolicy(rules)
    shuffled = [chain[n] for n in np.random.default_rng(1).permutation(2000)]
    founded = sum(stitcher.add(*batch).founded for batch in in_batches(shuffled, 100))
    assert stitcher.table(JOURNEYS)["event_count"].to_list() == [2000]
    assert stitcher.table(JOURNEY_MERGES).height == founded - 1


def test_case_02_a_star_below_the_cap_is_one_journey(stitcher: Stitcher) -> None:
    stitcher.add(*((f"e{n}", n, ["device:d", f"session:s{n}"]) for n in range(500)))
    assert stitcher.table(JOURNEYS).select("event_count", "key_count").rows() == [(500, 501)]


def assert_nothing_ties(stitcher: Stitcher, kind: str, values: list[tuple[str, str]]) -> None:
    """Of each pair of values, one event has the one and one the other: all stay apart."""
    names = [(f"a{n}", f"b{n}") for n in range(len(values))]
    pairs = zip(names, values, strict=True)
    events = [
        (name, n, [f"{kind}:{value}"]) for pair in pairs for n, (name, value) in enumerate(zip(*pair, strict=True))
    ]
    stitcher.add(*events)
    assert stitcher.partition() == apart(*(name for pair in names for name in pair))
    assert stitcher.table(EVENT_KEYS).is_empty()


def test_case_03_blank_keys_tie_nothing(stitcher: Stitcher) -> None:
    assert_nothing_ties(stitcher, "user", [(v, v) for v in ("", " ", "\u200b", "\ufeff \u2060", "\u00a0")])


def test_case_04_words_for_nobody_tie_nothing(stitcher: Stitcher) -> None:
    words = (
        "null",
        "NULL",
        "undefined",
        "00000000-0000-0000-0000-000000000000",
        "-1",
        "N/A",
        "0",
        "anonymous",
        "Unknown",
    )
    assert_nothing_ties(stitcher, "user", [(word, word) for word in words])


def test_case_05_digests_of_nothing_tie_nothing(stitcher: Stitcher) -> None:
    nothing = ("", " ", "null", "NULL", "none", "undefined", "unknown")
    digests = [hashlib.new(kind, value.encode()).hexdigest() for kind in ("md5", "sha1", "sha256") for value in nothing]
    assert_nothing_ties(stitcher, "email_hash", [(digest, digest.upper()) for digest in digests])


def test_case_06_tenants_never_meet(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:u"]), ("globex/a", 1, ["user:u"]))
    assert stitcher.assigned() == {"a": name_of("a"), "globex/a": name_of("a", "globex")}
    assert name_of("a") != name_of("a", "globex")


@pytest.mark.parametrize("tenant", ["", " ", None])
def test_case_07_without_a_tenant_a_line_is_rejected(tenant: str | None) -> None:
    read = decode(LineBlock(Delivery("f", "1"), 1, 0, delivered(tenantId=tenant)), START + timedelta(days=99))
    assert read.events.is_empty()
    assert read.rejected.height == 1


def delivered(**fields: object) -> bytes:
    """A line as a producer sends it; a field that is None is left out."""
    line = {"tenantId": "acme", "userId": "u", "sessionId": "s", "ts": "2025-11-01T00:00:00Z", "action": "view"}
    return json.dumps({k: v for k, v in (line | fields).items() if v is not None}).encode() + b"\n"


def test_case_08_types_never_meet(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["order:123"]), ("b", 2, ["session:123"]))
    assert stitcher.partition() == apart("a", "b")


def test_case_09_separators_do_not_collide(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1:x"]), ("b", 2, ["user:x"]), ("x|y/c", 3, ["user:z"]), ("x/d", 4, ["user:y|z"]))
    assert len(stitcher.partition()) == 4
    assert stitcher.table(JOURNEY_KEYS)["key_hash"].n_unique() == 4


def test_case_10_an_event_given_twice_counts_once(stitcher: Stitcher) -> None:
    event: Event = ("a", 1, ["user:u"])
    stitcher.add(event)
    report = stitcher.add(event, ("b", 2, ["user:u"]))
    assert (report.events, report.known) == (1, 1)
    assert stitcher.table(JOURNEYS)["event_count"].to_list() == [2]


def test_case_11_an_id_with_other_keys_is_set_aside_before_it_can_bridge() -> None:
    lines = delivered(eventId="a", userId="1") + delivered(eventId="a", userId="2")
    read = decode(LineBlock(Delivery("f", "1"), 1, 0, lines), START + timedelta(days=99)).events
    verdict = classify(read, EVENTS.empty().select(ARCHIVED_FACTS))
    assert verdict.to_append["user_id"].to_list() == ["1"]
    assert verdict.conflicts["user_id"].to_list() == ["2"]


def test_case_12_spellings_of_a_key_in_one_event_are_one(stitcher: Stitcher) -> None:
    rules = (KeyRule("*", "email_hash", "attrs.email_hash"), KeyRule("*", "email_hash", "attrs.other"))
    stitcher.policy = KeyPolicy(rules)
    stitcher.add(("a", 1, ["email_hash:ABCDEF", "other: abcdef "]))
    assert stitcher.table(JOURNEYS)["key_count"].to_list() == [1]
    assert stitcher.table(EVENT_KEYS).height == 1


def test_case_13_a_late_event_joins_and_renames_nothing(stitcher: Stitcher) -> None:
    stitcher.add(("b", 5, ["user:u"]))
    stitcher.add(("a", 1, ["user:u"]))
    journey = stitcher.table(JOURNEYS).row(0, named=True)
    assert (journey["journey_id"], journey["created_at"]) == (name_of("b"), START + timedelta(minutes=5))
    assert journey["first_event_ts"] == START + timedelta(minutes=1)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_case_14_a_tie_goes_to_the_lower_founding_event(stitcher: Stitcher, order: tuple[str, str]) -> None:
    for event in order:
        stitcher.add((event, 1, [f"user:{event}"]))
    stitcher.add(("c", 2, ["user:a", "cookie:x"]), ("d", 3, ["user:b", "cookie:x"]))
    assert set(stitcher.assigned().values()) == {name_of("a")}


def test_case_15_a_bridge_of_three_leads_to_the_oldest(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]), ("b", 2, ["device:2"]), ("c", 3, ["cookie:3"]))
    stitcher.add(("d", 4, ["user:1", "device:2", "cookie:3"]))
    merges = stitcher.table(JOURNEY_MERGES)
    assert merges["survivor"].unique().to_list() == [name_of("a")]
    assert set(merges["loser"]) == {name_of("b"), name_of("c")}
    assert merges["via_event_id"].unique().to_list() == ["d"]


BRIDGES: list[Event] = [
    ("a", 1, ["user:1"]), ("b", 2, ["device:2"]), ("c", 3, ["cookie:3"]),
    ("d", 4, ["user:1", "device:2"]), ("e", 5, ["device:2", "cookie:3"]),
]  # fmt: skip


def test_case_16_two_bridges_in_one_batch_in_all_120_orders() -> None:
    def of(events: list[Event]) -> list[tuple[str, str]]:
        rows = archive(events)
        batch = prepare(rows, extract_keys(rows, RULES), POLICY)
        decided = stitch(batch, Known.nothing(batch), POLICY)
        return sorted(decided.events.select("event_id", "journey_id").iter_rows())

    expected = [(event, name_of("a")) for event in "abcde"]
    assert all(of([BRIDGES[n] for n in order]) == expected for order in permutations(range(5)))


def test_case_17_a_bridge_20_batches_later_touches_only_what_it_ties(stitcher: Stitcher) -> None:
    stitcher.add(("a", 0, ["user:1"]), ("b", 0, ["device:2"]))
    for n in range(20):
        stitcher.add((f"x{n}", n + 1, [f"user:x{n}"]))
    report = stitcher.add(("z", 99, ["user:1", "device:2"]))
    assert (report.events, report.merged, report.reread) == (1, 1, 0)
    last = stitcher.log().filter(pl.col("seq") == 22)
    assert set(last["journey_id"].drop_nulls()) <= {name_of("a"), name_of("b")}


def test_case_18_aliases_of_aliases_lead_to_the_oldest(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]), ("b", 2, ["device:2"]), ("c", 3, ["cookie:3"]))
    stitcher.add(("d", 4, ["device:2", "cookie:3"]))
    stitcher.add(("e", 5, ["user:1", "device:2"]))
    aliases = dict(stitcher.table(JOURNEY_ALIASES).select("journey_id", "merged_into").iter_rows())
    assert aliases == {name_of("b"): name_of("a"), name_of("c"): name_of("a")}
    assert stitcher.table(JOURNEY_MERGES).height == 2, "an alias that leads elsewhere now is no merge"


def test_case_19_and_20_a_batch_given_again_changes_nothing(stitcher: Stitcher) -> None:
    events: list[Event] = [("a", 1, ["user:1"]), ("b", 2, ["user:1", "device:2"]), ("c", 3, ["device:2"])]
    stitcher.add(*events)
    before, version = stitcher.log(), stitcher.lake.versions.version(JOURNEY_LOG.name)
    assert stitcher.add(*events).known == 0, "nothing was stitched, so nothing was committed"
    stitcher.add(*events[1:])
    stitcher.add(events[2], events[0])
    assert stitcher.log().equals(before)
    assert stitcher.lake.versions.version(JOURNEY_LOG.name) == version


def test_case_21_a_replayed_batch_does_not_revive_a_merged_journey(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]))
    stitcher.add(("b", 2, ["device:2"]))
    stitcher.add(("c", 3, ["user:1", "device:2"]))
    stitcher.add(("b", 2, ["device:2"]), ("d", 4, ["device:2"]))
    assert set(stitcher.assigned().values()) == {name_of("a")}
    assert stitcher.table(JOURNEYS)["event_count"].to_list() == [4]


def test_case_22_and_43_a_batch_that_died_before_its_commit_left_nothing(
    stitcher: Stitcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    stitcher.add(("a", 1, ["user:1"]))
    before = stitcher.log()
    with monkeypatch.context() as patch:

        def dies(*_: object) -> None:
            raise RuntimeError("killed")

        patch.setattr(Commits, "append_numbered", dies)
        with pytest.raises(RuntimeError, match="killed"):
            stitcher.add(("b", 2, ["user:1"]))
    assert stitcher.log().equals(before)
    stitcher.add(("b", 2, ["user:1"]))
    assert stitcher.partition() == {frozenset("ab")}


def test_case_23_a_key_of_everybody_is_quarantined(stitcher: Stitcher) -> None:
    stitcher.capped("device", 100)
    stitcher.add(*((f"e{n}", n, ["device:kiosk", f"session:s{n}"]) for n in range(300)))
    assert stitcher.table(JOURNEYS).height == 300
    assert stitcher.table(QUARANTINED_KEYS).select("key_type", "partners").rows() == [("device", 300)]
    assert stitcher.statuses("e7") == {"device": "quarantined", "session": "linked"}


def test_case_24_a_key_that_crosses_its_cap_later_lets_go_of_what_it_held(stitcher: Stitcher) -> None:
    stitcher.capped("device", 3)
    stitcher.add(("a", 1, ["device:d", "session:1"]), ("b", 2, ["device:d", "session:2"]))
    stitcher.add(("c", 3, ["device:d", "session:3"]), ("x", 4, ["session:2"]))
    assert stitcher.partition() == {frozenset("abcx")}
    report = stitcher.add(("d", 5, ["device:d", "session:4"]))
    assert stitcher.assigned() == {
        "a": name_of("a"), "b": name_of("b"), "x": name_of("b"), "c": name_of("c"), "d": name_of("d"),
    }  # fmt: skip
    assert (report.quarantined, report.split) == (1, 2)
    assert stitcher.table(JOURNEY_KEYS).filter(pl.col("key_type") == "device").is_empty()


def test_case_25_quarantine_does_not_depend_on_the_order(tmp_path: Path) -> None:
    events: list[Event] = [(f"e{n}", n, ["device:d", f"session:s{n % 5}"]) for n in range(10)]
    events += [(f"f{n}", 20 + n, [f"session:s{n}", "cookie:c"]) for n in range(2)]
    found = []
    for n in range(6):
        (tmp_path / str(n)).mkdir()
        stitcher = Stitcher(tmp_path / str(n))
        stitcher.capped("device", 4)
        shuffled = [events[i] for i in np.random.default_rng(n).permutation(len(events))]
        for batch in in_batches(shuffled, n + 1):
            stitcher.add(*batch)
        found.append(stitcher.partition())
    assert found[0] == {
        frozenset(["e0", "e5", "f0", "e1", "e6", "f1"]), frozenset(["e2", "e7"]), frozenset(["e3", "e8"]),
        frozenset(["e4", "e9"]),
    }  # fmt: skip
    assert all(partition == found[0] for partition in found)


def test_case_26_a_key_of_a_million_events_costs_no_more_than_its_events(stitcher: Stitcher) -> None:
    count = 1_000_000
    ids = pl.Series([f"{n:07}" for n in range(count)])
    rows = pl.DataFrame(
        {"tenant_id": pl.repeat("acme", count, eager=True), "event_id": ids,
         "ts": pl.datetime_range(START, START + timedelta(seconds=count - 1), "1s", time_unit="us", eager=True),
         "user_id": pl.repeat("kiosk", count, eager=True)}
    )  # fmt: skip
    policy = KeyPolicy((KeyRule("*", "user", "userId"),))
    batch = prepare(rows, extract_keys(rows, policy.rules), policy)
    assert len(batch.key) == count, "one key per event, no pair of events"
    decided = stitch(batch, Known.nothing(batch), policy)
    assert decided.journeys.select("event_count", "key_count").rows() == [(count, 1)]


@pytest.mark.parametrize(
    ("one", "other"), [("e\u0301", "é"), ("\uff41\uff42\uff43", "abc"), ("\ufb01n", "fin"), ("Å", "\u212b")]
)
def test_case_27_forms_of_unicode_are_one_key(stitcher: Stitcher, one: str, other: str) -> None:
    stitcher.add(("a", 1, [f"user:{one}"]), ("b", 2, [f"user:{other}"]))
    assert stitcher.partition() == {frozenset("ab")}


def test_case_28_case_counts_but_for_digests(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["email_hash:ABC123"]), ("b", 2, ["email_hash:abc123"]))
    stitcher.add(("c", 3, ["session:ABC123"]), ("d", 4, ["session:abc123"]))
    assert stitcher.partition() == {frozenset("ab"), *apart("c", "d")}


def test_case_29_whole_numbers_are_one_key_and_leading_zeros_another(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:123456"]), ("b", 2, ["user:123456.0"]), ("c", 3, ["user:0123456"]))
    assert stitcher.partition() == {frozenset("ab"), frozenset("c")}


def test_case_30_values_of_other_types_tie_nothing(stitcher: Stitcher) -> None:
    assert_nothing_ties(stitcher, "user", [(v, v) for v in ("NaN", "nan", "true", "False", "[object Object]")])


def test_case_31_an_event_without_a_usable_key_is_a_journey_of_its_own(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, []), ("b", 2, ["user:null"]))
    stitcher.add(("c", 3, ["user:u"]))
    assert stitcher.assigned() == {event: name_of(event) for event in "abc"}
    assert stitcher.table(JOURNEYS).sort("founding_event_id")["key_count"].to_list() == [0, 0, 1]


def test_case_32_a_value_of_6000_characters_ties_nothing(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:" + "x" * 6000]), ("b", 2, ["user:" + "x" * 6000]))
    assert stitcher.partition() == apart("a", "b")


def test_case_33_an_event_of_65_keys_ties_nothing_and_is_named(stitcher: Stitcher) -> None:
    stitcher.policy = KeyPolicy(tuple(KeyRule("*", f"k{n}", f"attrs.k{n}") for n in range(65)))
    stitcher.add(("a", 1, [f"k{n}:v{n}" for n in range(64)]), ("b", 2, [f"k{n}:v{n}" for n in range(65)]))
    stitcher.add(("c", 3, ["k5:v5"]))
    assert stitcher.partition() == {frozenset("ac"), frozenset("b")}
    assert set(stitcher.statuses("b").values()) == {"excess"}


@pytest.mark.parametrize(
    ("ts", "reason"),
    [(None, "missing_field"), (-5, "timestamp_out_of_range"), (1_762_077_600, "timestamp_out_of_range"),
     ("soon", "bad_timestamp")],
)  # fmt: skip
def test_case_34_a_time_that_is_none_is_rejected(ts: object, reason: str) -> None:
    read = decode(LineBlock(Delivery("f", "1"), 1, 0, delivered(ts=ts)), START + timedelta(days=99))
    assert read.rejected["error_class"].to_list() == [reason]


def test_case_35_an_ignored_type_ties_nothing_and_an_unknown_one_is_reported() -> None:
    policy = KeyPolicy((KeyRule("*", "user", "attrs.user"), KeyRule("*", "ip", "attrs.ip", "ignore")))
    rows = archive([("a", 1, ["ip:10.0.0.1"]), ("b", 2, ["ip:10.0.0.1"])])
    assert extract_keys(rows, policy.rules).is_empty()
    keys = extract_keys(rows, [KeyRule("*", "fax", "attrs.ip")])
    batch = prepare(rows, keys, policy)
    assert batch.unknown_types.select("key_type", "len").rows() == [("fax", 2)]
    assert stitch(batch, Known.nothing(batch), policy).journeys.height == 2


def test_case_36_two_users_of_one_device_stay_two(stitcher: Stitcher) -> None:
    stitcher.unique_user()
    stitcher.add(("a", 1, ["user:ann", "device:d"]))
    stitcher.add(("b", 2, ["user:bob", "device:d"]))
    stitcher.add(("c", 3, ["user:bob", "session:s"]), ("d", 4, ["session:s"]), ("e", 5, ["device:d"]))
    assert stitcher.partition() == {frozenset("ae"), frozenset("bcd")}
    conflict = stitcher.table(JOURNEY_CONFLICTS).row(0, named=True)
    assert (conflict["event_id"], conflict["key_type"], conflict["reason"]) == ("b", "device", "refused_unique")
    assert (conflict["journey_id"], conflict["refused_journey_id"]) == (name_of("b"), name_of("a"))


def test_case_36_in_one_batch_or_many_is_the_same(tmp_path: Path) -> None:
    events: list[Event] = [
        ("a", 1, ["user:ann", "device:d"]), ("b", 2, ["user:bob", "device:d"]), ("c", 3, ["user:bob", "session:s"]),
        ("d", 4, ["session:s", "device:d"]), ("e", 5, ["device:d"]), ("f", 6, ["user:cat", "session:s", "cookie:x"]),
    ]  # fmt: skip
    found = []
    for size in (1, 2, 3, 6):
        (tmp_path / str(size)).mkdir()
        stitcher = Stitcher(tmp_path / str(size))
        stitcher.unique_user()
        for batch in in_batches(events, size):
            stitcher.add(*batch)
        found.append(stitcher.assigned())
    assert all(one == found[0] for one in found)


def test_case_37_a_third_event_does_not_tie_two_users(stitcher: Stitcher) -> None:
    stitcher.unique_user()
    stitcher.add(("a", 1, ["user:ann", "device:1"]), ("b", 2, ["user:bob", "cookie:2"]))
    stitcher.add(("c", 3, ["cookie:2", "device:1"]))
    assert stitcher.partition() == {frozenset("ac"), frozenset("b")}, "the device is the stronger key"
    assert stitcher.statuses("c") == {"device": "linked", "cookie": "refused_unique"}


def test_only_same_as_makes_two_users_one(stitcher: Stitcher) -> None:
    stitcher.unique_user()
    stitcher.add(("a", 1, ["user:ann", "device:1"]), ("b", 2, ["user:anna", "device:1"]))
    assert stitcher.partition() == apart("a", "b")
    assert stitcher.statuses("b") == {"user": "linked", "device": "refused_unique"}
    stitcher.add(("c", 3, ["user:anna", "same_as:ann"]))
    assert stitcher.assigned() == dict.fromkeys("abc", name_of("a"))
    assert stitcher.statuses("b") == {"user": "linked", "device": "linked"}, "what was refused is looked at again"
    assert stitcher.table(JOURNEY_CONFLICTS).is_empty()
    stitcher.add(("d", 4, ["user:bob", "same_as:bobby"]), ("e", 5, ["user:bobby"]), ("f", 6, ["user:ann", "device:2"]))
    stitcher.add(("g", 7, ["user:bobby", "device:2"]))
    assert stitcher.partition() == {frozenset("abcf"), frozenset("deg")}


def test_who_is_purged_is_named_by_no_journey_and_keeps_nobody_apart(stitcher: Stitcher) -> None:
    stitcher.unique_user()
    stitcher.add(("a", 1, ["user:ann", "device:1"]), ("b", 2, ["user:bob", "device:1"]))
    stitcher.add(("c", 3, ["user:ann", "device:1"]), gone=["b"])
    assert stitcher.table(JOURNEY_CONFLICTS).is_empty(), "of an event that is gone none waits"
    stitcher.add(("d", 4, ["user:cy", "device:1"]))
    stitcher.add(gone=["a", "c"])
    assert stitcher.statuses("d") == {"user": "linked", "device": "linked"}
    gone = pl.DataFrame({"tenant_id": ["acme"] * 3, "event_id": ["a", "b", "c"]})
    stitcher.journeys.purge(gone)
    named = set(stitcher.log()["unique_keys"].explode().drop_nulls())
    assert named == {f"user:{value_hash('acme', 'user', 'cy', UNKEYED)}"}


def test_a_rule_that_came_keeps_people_apart_for_good(stitcher: Stitcher) -> None:
    stitcher.policy = KeyPolicy((KeyRule("*", "user", "attrs.user", is_unique=True), KeyRule("*", "d", "attrs.d")))
    events = [("a", 1, ["user:x", "d:1"]), ("b", 2, ["user:y", "d2:1", "e:1"])]
    stitcher.add(*events)
    stitcher.policy = KeyPolicy((*stitcher.policy.rules, KeyRule("*", "d", "attrs.d2")))
    stitcher.journeys.apply(stitcher.journeys.rebase("acme", archive(events), stitcher.policy), stitcher.policy)
    assert stitcher.statuses("b") == {"user": "linked", "d": "refused_unique"}
    stitcher.add(gone=["a"])
    assert stitcher.statuses("b") == {"user": "linked", "d": "linked"}
    assert stitcher.table(JOURNEY_CONFLICTS).is_empty()


def test_why_events_are_apart_is_said_in_words(stitcher: Stitcher) -> None:
    stitcher.unique_user()
    stitcher.add(("a", 1, ["user:ann", "device:1"]), ("b", 2, ["user:bob", "device:1"]), ("c", 3, ["user:bob"]))
    stitcher.add(("d", 4, ["order:7", "cookie:1"]), ("e", 5, ["order:7", "cookie:2"]), ("f", 6, ["user:fay"]))
    stitcher.block("order", "7")
    shown = ("user_id", "session_id", "anonymous_id", "action")
    rows = archive([("v", 1, []), ("w", 2, []), ("x", 3, [])]).with_columns(
        pl.lit(None, pl.String).alias(n) for n in shown
    )
    rows = rows.with_columns(user_id=pl.Series(["ann", "bob", None]), anonymous_id=pl.lit("tv"))
    missing = {n: t for n, t in EVENTS.empty().schema.items() if n not in rows.columns}
    archived = rows.with_columns(pl.lit(None, t).alias(n) for n, t in missing.items()).select(list(EVENTS.columns))
    stitcher.lake.commits.append(EVENTS, archived.cast(dict(EVENTS.empty().schema)))
    stitcher.assigned()

    def said(one: str, other: str) -> str:
        return " ".join(why_apart(stitcher.lake, "acme", one, other))

    assert "of event b does not link them: the two journeys are of two people" in said("a", "c")
    assert said("a", "c") == said("b", "a")
    assert "Both have order:" in said("d", "e")
    assert "blocked keys" in said("d", "e")
    assert "the visitor tv, which links nothing: it was seen with several users" in said("v", "x")
    assert not said("a", "f")


def test_users_that_are_parted_are_two_again_with_their_old_ids(stitcher: Stitcher) -> None:
    stitcher.unique_user()
    stitcher.add(("a", 1, ["user:ann", "device:1"]), ("b", 2, ["user:bob", "device:2"]))
    stitcher.add(("c", 3, ["user:bob", "same_as:ann"]), ("d", 4, ["user:bob"]))
    assert set(stitcher.assigned().values()) == {name_of("a")}
    stitcher.part("ann", "bob")
    parted = stitcher.assigned()
    assert (parted["a"], parted["b"], parted["d"]) == (name_of("a"), name_of("b"), name_of("b"))
    stitcher.add(("e", 5, ["user:ann", "same_as:bob"]), ("c", 3, ["user:bob", "same_as:ann"]))
    assert {**parted, "e": stitcher.assigned()["e"]} == stitcher.assigned(), "nor does another event make them one"
    stitcher.part("bob", "ann", undo=True)
    assert set(stitcher.assigned().values()) == {name_of("a")}


@pytest.mark.parametrize("are_late", [False, True])
def test_who_comes_late_is_kept_apart_as_if_in_time(stitcher: Stitcher, tmp_path: Path, are_late: bool) -> None:
    stitcher.unique_user()
    events = [
        ("a", 1, ["user:ann", "device:1"]), ("b", 2, ["user:bob", "device:1", "order:7"]),
        ("c", 3, ["order:7", "cookie:9"]), ("d", 4, ["device:1", "cookie:9"]),
    ]  # fmt: skip
    for event in reversed(events) if are_late else events:
        stitcher.add(event)
        found, stitcher = stitcher, Stitcher(tmp_path, f"cache-{event[0]}")  # on another machine, from the log alone
        stitcher.policy = found.policy
    assert stitcher.partition() == {frozenset("ad"), frozenset("bc")}
    assert stitcher.statuses("b") == {"user": "linked", "device": "refused_unique", "order": "linked"}
    assert stitcher.statuses("d") == {"device": "linked", "cookie": "refused_unique"}
    stitcher.add(gone=["a"])
    assert stitcher.partition() == {frozenset("bcd")}, "who goes keeps nobody apart"


def test_case_38_blocking_the_key_that_tied_brings_both_ids_back(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]), ("b", 2, ["device:2"]))
    stitcher.add(("c", 3, ["user:1", "order:o"]), ("d", 4, ["device:2", "order:o"]))
    assert set(stitcher.assigned().values()) == {name_of("a")}
    stitcher.block("order", "o")
    together = {"a": name_of("a"), "c": name_of("a"), "b": name_of("b"), "d": name_of("b")}
    assert stitcher.assigned() == together
    split = stitcher.table(JOURNEY_SPLITS).row(0, named=True)
    assert (split["journey_id"], split["split_off"], split["event_count"]) == (name_of("a"), name_of("b"), 2)
    assert stitcher.table(JOURNEY_ALIASES).is_empty()
    stitcher.add(("c", 3, ["user:1", "order:o"]), ("d", 4, ["device:2", "order:o"]), ("e", 5, ["order:o"]))
    assert stitcher.assigned() == {**together, "e": name_of("e")}, "a replay does not link again"
    stitcher.block("order", "o", undo=True)
    assert set(stitcher.assigned().values()) == {name_of("a")}


def test_case_39_a_key_blocked_for_one_tenant_ties_for_the_other(stitcher: Stitcher) -> None:
    for tenant in ("", "globex/"):
        stitcher.add((f"{tenant}a", 1, ["order:o"]), (f"{tenant}b", 2, ["order:o"]))
    stitcher.block("order", "o")
    assert stitcher.partition() == {*apart("a", "b"), frozenset(["globex/a", "globex/b"])}


def test_case_41_a_cycle_of_keys_is_one_journey(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1", "device:2"]), ("b", 2, ["device:2", "cookie:3"]), ("c", 3, ["cookie:3", "user:1"]))
    stitcher.add(("d", 4, ["user:1", "device:2", "cookie:3"]))
    assert stitcher.partition() == {frozenset("abcd")}


def test_case_42_two_workers_on_one_tenant_are_as_good_as_one(tmp_path: Path) -> None:
    workers = [Stitcher(tmp_path, f"cache{n}") for n in range(4)]
    events: list[Event] = [(f"e{n:02}", n, [f"user:{n % 7}", f"device:{n % 5}"]) for n in range(40)]

    def work(number: int) -> None:
        for batch in in_batches(events[number::4], 2):
            workers[number].add(*batch)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    (tmp_path / "alone").mkdir()
    alone = Stitcher(tmp_path / "alone")
    alone.add(*events)
    assert workers[0].partition() == alone.partition()
    assert workers[0].table(JOURNEYS)["event_count"].sum() == 40
    seqs = workers[0].log().filter(pl.col("kind") == "commit")["seq"].sort()
    assert seqs.to_list() == list(range(1, seqs.len() + 1)), "each commit has a number of its own"


def test_case_42_two_commits_on_one_snapshot_are_one(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]))
    other = Lake(stitcher.lake.uri("").rstrip("/"), {}, Path("/nowhere"))
    first, second = stitcher.lake.commits.snapshot(JOURNEY_LOG), other.commits.snapshot(JOURNEY_LOG)
    nothing = JOURNEY_LOG.empty()
    stitcher.lake.commits.append_numbered(JOURNEY_LOG, first, nothing, {"stitch:acme": 2})
    with pytest.raises(CommitFailedError):
        other.commits.append_numbered(JOURNEY_LOG, second, nothing, {"stitch:acme": 7})
    other.commits.append_numbered(JOURNEY_LOG, other.commits.snapshot(JOURNEY_LOG), nothing, {"stitch:globex": 1})


def test_case_44_an_empty_batch_commits_nothing(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]))
    version = stitcher.lake.versions.version(JOURNEY_LOG.name)
    assert stitcher.add().events == 0
    assert stitcher.lake.versions.version(JOURNEY_LOG.name) == version


def test_case_47_keys_that_share_64_bits_are_told_apart() -> None:
    low = np.array([7, 7, 7, 9], np.uint64)
    high = np.array([1, 2, 1, 1], np.uint64)
    ids, first = kernel.dense_ids(high, low)
    assert ids.tolist() == [0, 1, 0, 2]
    assert first.tolist() == [0, 1, 3]


def test_case_47_keys_that_share_64_bits_are_told_apart_by_the_index(stitcher: Stitcher) -> None:
    word = 1 << 64

    def rows(event: str, minute: int, key: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        keys = pl.DataFrame({"row": [0], "key_type": ["user"], "key_hash": [key]},
                            schema={"row": pl.UInt32, "key_type": pl.String, "key_hash": pl.UInt128})  # fmt: skip
        return archive([(event, minute, [])]), keys

    found = []
    for minute, (event, key) in enumerate([("a", 5 + word), ("b", 5 + 2 * word), ("c", 5 + word)]):
        events, keys = rows(event, minute, key)
        nothing = events.select("tenant_id", "event_id").clear()
        stitcher.journeys.log.committed(
            lambda index, e=events, k=keys, n=nothing: stitcher.journeys._added(index, e, k, n, POLICY), POLICY, None
        )
        found.append(stitcher.assigned()[event])
    assert found == [name_of("a"), name_of("b"), name_of("a")]


def test_case_48_a_tightened_rule_touches_only_the_journeys_of_its_key(stitcher: Stitcher) -> None:
    events: list[Event] = [
        ("a", 1, ["user:1"]), ("b", 2, ["device:2"]), ("c", 3, ["user:1", "device:2"]),
        ("x", 1, ["user:7"]), ("y", 2, ["user:7"]),
    ]  # fmt: skip
    for event in events:
        stitcher.add(event)
    before = stitcher.assigned()
    tighter = KeyPolicy(tuple(rule for rule in RULES if rule.key_type != "device"))
    plan = stitcher.journeys.rebase("acme", archive(events), tighter)
    assert stitcher.assigned() == before, "a plan changes nothing"
    assert plan.splits.select("journey_id", "split_off").rows() == [(name_of("a"), name_of("b"))]
    assert set(plan.moved["event_id"]) == {"b"}
    before_seq = stitcher.journeys.log.state("acme").seq
    stitcher.journeys.apply(plan, tighter)
    assert stitcher.assigned() == {**before, "b": name_of("b")}
    written = stitcher.log().filter(pl.col("seq") == before_seq + 1)
    assert set(written["event_id"].drop_nulls()) == {"b", "c"}, "x and y are not written again"
    again = stitcher.journeys.rebase("acme", archive(events), tighter)
    assert again.change is None


def test_case_49_of_a_person_that_is_gone_nothing_stays_tied(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]), ("b", 2, ["user:1", "device:2"]), ("c", 3, ["device:2"]))
    stitcher.add(gone=["b"])
    assert stitcher.assigned() == {"a": name_of("a"), "c": name_of("c")}
    stitcher.add(gone=["a"])
    assert stitcher.assigned() == {"c": name_of("c")}
    assert stitcher.table(JOURNEY_KEYS)["key_type"].to_list() == ["device"]
    assert stitcher.table(EVENT_KEYS)["event_id"].to_list() == ["c"]
    assert stitcher.table(JOURNEYS)["journey_id"].to_list() == [name_of("c")]
    gone = pl.DataFrame({"tenant_id": ["acme", "acme"], "event_id": ["a", "b"]})
    hashes = {value_hash("acme", kind, value, UNKEYED) for kind, value in (("user", "1"), ("device", "2"))}
    assert stitcher.journeys.purge(gone) > 0
    left = stitcher.log()
    assert set(left["event_id"].drop_nulls()) == {"c"}
    assert set(left["founding_event_id"].drop_nulls()) == {"c", ""}
    assert set(left["key_hash"].drop_nulls()) == hashes - {value_hash("acme", "user", "1", UNKEYED)}
    fresh = Stitcher(Path(stitcher.lake.uri("")).parent, "fresh")
    fresh.add(("d", 9, ["device:2"]))
    assert fresh.assigned() == {"c": name_of("c"), "d": name_of("c")}
    with pytest.raises(ConfigError, match="still there"):
        stitcher.journeys.purge(pl.DataFrame({"tenant_id": ["acme"], "event_id": ["c"]}))


def test_case_50_care_while_a_batch_commits_changes_no_row(stitcher: Stitcher) -> None:
    for n in range(5):
        stitcher.add((f"e{n}", n, ["user:1", f"device:{n}"]))
    before = stitcher.assigned()
    other = Stitcher(Path(stitcher.lake.uri("")).parent, "other")
    with ThreadPoolExecutor(2) as pool:
        maintained = pool.submit(other.lake.maintenance.maintain, JOURNEY_LOG)
        batch = pool.submit(stitcher.add, ("z", 9, ["device:3"]))
        maintained.result()
        batch.result()
    assert stitcher.assigned() == {**before, "z": name_of("e0")}
    fresh = Stitcher(Path(stitcher.lake.uri("")).parent, "fresh")
    fresh.add(("y", 10, ["device:4"]))
    assert fresh.assigned()["y"] == name_of("e0"), "the index is made from the log as it was arranged again"


def consistent(stitcher: Stitcher) -> dict[str, str]:
    """The journey of each event, once tables, log and a machine with nothing but the log agree."""
    found = stitcher.assigned()
    journeys, aliases = stitcher.table(JOURNEYS), stitcher.table(JOURNEY_ALIASES)
    assert set(found.values()) == set(journeys["journey_id"])
    assert not set(aliases["journey_id"]) & set(journeys["journey_id"]), "an id is a journey or leads to one"
    assert set(aliases["merged_into"]) <= set(journeys["journey_id"])
    assert sorted(journeys["event_count"]) == sorted(Counter(found.values()).values())
    fresh = Stitcher(Path(stitcher.lake.uri("")).parent, f"fresh-{uuid4().hex}")
    for one in (stitcher, fresh):
        _, index = one.journeys.log.refresh()
        keys = one.lake.read(JOURNEY_KEYS)
        held = index.are_held_by(keys.with_columns(pl.col("key_hash").cast(pl.UInt128)), journeys)
        assert held.all()
    return found


def test_commits_of_two_tenants_at_once_lose_nothing(tmp_path: Path) -> None:
    workers = [Stitcher(tmp_path, "shared") for _ in range(3)]
    tenants = ("acme", "globex", "initech")

    def work(number: int) -> None:
        for n in range(12):
            workers[number].add((f"{tenants[number]}/e{n}", n, [f"user:u{n % 4}"]))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert sorted(Counter(workers[0].assigned().values()).values()) == [3] * 12
    commits = workers[0].log().filter(pl.col("kind") == "commit").group_by("tenant_id").agg(pl.col("seq").sort())
    assert all(seqs == list(range(1, 13)) for seqs in commits["seq"].to_list())


def test_a_foreign_commit_in_between_is_read_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Stitcher(tmp_path, "one"), Stitcher(tmp_path, "other")
    one.add(("a", 1, ["user:1"]))
    commit = Commits.append_numbered

    def overtaken(self: Commits, *arguments: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Commits, "append_numbered", commit)
            other.add(("globex/h", 1, ["user:2"]))
        commit(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Commits, "append_numbered", overtaken)
        one.add(("b", 2, ["user:1"]))
    one.add(("globex/i", 2, ["user:2"]))
    assert one.partition() == {frozenset("ab"), frozenset(["globex/h", "globex/i"])}


def _truncate_all(folder: Path, size: int) -> None:
    for path in folder.glob("*.records"):
        os.truncate(path, size)


def test_an_index_whose_files_are_lost_is_made_again(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]))
    (folder,) = (Path(stitcher.lake.uri("")).parent / "cache" / "journeys").iterdir()
    for break_it in (
        lambda: next(folder.glob("*.records")).unlink(),
        lambda: next(path for path in folder.glob("*.texts") if path.stat().st_size).write_bytes(b""),
        *(lambda size=size: _truncate_all(folder, size) for size in (0, 7, 40)),
        lambda: (folder / "index.json").write_text(""),
        lambda: (folder / "index.json").unlink(),
    ):
        break_it()
        again = Stitcher(folder.parents[2])
        again.add((f"x{uuid4().hex}", 2, ["user:1"]))
        assert len(set(again.assigned().values())) == 1


def test_altering_the_only_event_of_a_journey_keeps_its_id(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]))
    stitcher.add(("a", 1, ["user:2"]))
    stitcher.add(("b", 2, ["user:2"]))
    assert consistent(stitcher) == {"a": name_of("a"), "b": name_of("a")}


def test_a_journey_without_its_founder_outlives_those_that_it_absorbed(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]), ("b", 2, ["user:2"]))
    stitcher.add(("c", 3, ["user:1", "device:1"]), ("d", 4, ["user:2", "device:1"]))
    stitcher.add(gone=["a"])
    assert consistent(stitcher) == dict.fromkeys("bcd", name_of("a"))


def test_an_event_that_comes_back_does_not_take_the_id_that_went_on(stitcher: Stitcher) -> None:
    stitcher.add(("b", 0, ["user:2"]), ("a", 1, ["user:1"]), ("c", 2, ["user:1"]))
    stitcher.add(("d", 3, ["user:1", "device:1"]), ("e", 4, ["user:2", "device:1"]))
    stitcher.add(gone=["a"])
    stitcher.add(("a", 1, ["cookie:9"]))
    stitcher.add(("f", 5, ["cookie:9"]))
    found = consistent(stitcher)
    assert {found[event] for event in "bcde"} == {name_of("b")}
    assert found["a"] == found["f"] not in (name_of("a"), name_of("b"))


def test_an_event_that_goes_while_its_journey_merges_is_in_neither(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]), ("b", 2, ["device:2"]), ("c", 3, ["device:2"]))
    stitcher.assigned()
    stitcher.add(("a", 1, ["device:2"]), gone=["c"])
    assert consistent(stitcher) == dict.fromkeys("ab", name_of("a"))
    assert stitcher.table(JOURNEYS)["event_count"].to_list() == [2]


def test_an_id_that_led_to_a_journey_which_ends_leads_nowhere(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]), ("b", 2, ["device:2"]), ("z", 9, []))
    stitcher.add(("b", 2, ["user:1"]))
    assert stitcher.table(JOURNEY_ALIASES).rows() == [("acme", name_of("b"), name_of("a"))]
    stitcher.add(gone=["a", "b"])
    assert stitcher.table(JOURNEY_ALIASES).is_empty()
    assert stitcher.table(JOURNEYS)["journey_id"].to_list() == [name_of("z")]
    stitcher.add(("b", 2, ["device:2"]))
    assert consistent(stitcher) == {"b": name_of("b"), "z": name_of("z")}


def test_a_type_that_becomes_unique_guards_what_is_there(stitcher: Stitcher) -> None:
    events: list[Event] = [("a", 1, ["user:ann", "device:d"])]
    stitcher.add(*events)
    stitcher.unique_user()
    plan = stitcher.journeys.rebase("acme", archive(events), stitcher.policy)
    assert plan.change is not None
    stitcher.journeys.apply(plan, stitcher.policy)
    stitcher.add(("b", 2, ["user:bob", "device:d"]))
    assert consistent(stitcher) == {"a": name_of("a"), "b": name_of("b")}


def test_a_rebase_that_gives_an_id_back_moves_what_stood_under_it(stitcher: Stitcher) -> None:
    events: list[Event] = [
        ("b", 1, ["cookie:c1"]), ("a", 2, ["user:1"]), ("y", 3, ["user:1", "device:2"]), ("x", 4, ["device:2"]),
        ("c", 5, ["device:2", "cookie:c1"]),
    ]  # fmt: skip
    for event in events:
        stitcher.add(event)
    without = KeyPolicy(tuple(rule for rule in RULES if rule.key_type != "user"))
    stitcher.journeys.apply(stitcher.journeys.rebase("acme", archive(events), without), without)
    assert consistent(stitcher) == {"a": name_of("a"), **dict.fromkeys("bcxy", name_of("b"))}
    assert stitcher.journeys.rebase("acme", archive(events), without).change is None


def test_a_purged_founder_does_not_take_its_journey_along(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]), ("b", 2, ["user:1"]))
    stitcher.add(gone=["a"])
    stitcher.table(JOURNEYS)
    stitcher.journeys.purge(pl.DataFrame({"tenant_id": ["acme"], "event_id": ["a"]}))
    fresh = Stitcher(Path(stitcher.lake.uri("")).parent, "fresh")
    fresh.add(("c", 3, ["user:1"]))
    assert consistent(fresh) == {"b": name_of("a"), "c": name_of("a")}


@pytest.mark.parametrize("is_lost", [False, True])
def test_partners_are_counted_alike_with_and_without_the_index(tmp_path: Path, *, is_lost: bool) -> None:
    stitcher = Stitcher(tmp_path)
    stitcher.policy = KeyPolicy(tuple(KeyRule("*", kind, f"attrs.{kind}", max_partners=2) for kind in TYPES))
    stitcher.add(("a", 1, ["session:s", "user:u"]), ("b", 2, ["session:s", "device:d"]))
    stitcher.add(("b", 2, ["session:s", "device:d", "cookie:c"]))  # s meets three, and its journey is restitched
    if is_lost:
        stitcher = Stitcher(tmp_path, "fresh")
        stitcher.policy = KeyPolicy(tuple(KeyRule("*", kind, f"attrs.{kind}", max_partners=2) for kind in TYPES))
    stitcher.add(("e", 3, ["user:u"]), ("f", 4, ["cookie:c"]))
    assert consistent(stitcher) == {**dict.fromkeys("ae", name_of("a")), **dict.fromkeys("bf", name_of("b"))}
    assert stitcher.table(QUARANTINED_KEYS)["key_type"].to_list() == ["session"]


@pytest.mark.parametrize("is_lost", [False, True])
def test_an_altered_event_met_the_keys_of_each_commit_and_not_of_both(tmp_path: Path, *, is_lost: bool) -> None:
    policy = KeyPolicy(tuple(KeyRule("*", kind, f"attrs.{kind}", max_partners=2) for kind in TYPES))
    stitcher = Stitcher(tmp_path)
    stitcher.policy = policy
    stitcher.add(("a", 1, ["user:1", "device:1"]))
    stitcher.add(("a", 1, ["user:2", "cookie:1"]))
    if is_lost:
        stitcher = Stitcher(tmp_path, "fresh")
        stitcher.policy = policy
    stitcher.add(("b", 2, ["user:2", "order:1"]))
    assert consistent(stitcher) == dict.fromkeys("ab", name_of("a"))
    assert stitcher.table(QUARANTINED_KEYS).is_empty()


def test_blocked_keys_are_no_partners(stitcher: Stitcher) -> None:
    stitcher.capped("device", 1)
    stitcher.block("order", "o")
    stitcher.add(("a", 1, ["device:d", "order:o"]), ("b", 2, ["device:d", "user:1"]), ("c", 3, ["device:d"]))
    assert stitcher.partition() == {frozenset("abc")}


def test_a_rebase_counts_partners_again(stitcher: Stitcher) -> None:
    stitcher.capped("device", 2)
    events: list[Event] = [(f"e{n}", n, ["device:d", f"user:u{n}"]) for n in range(3)]
    stitcher.add(*events)
    stitcher.add(gone=["e2"])
    stitcher.journeys.apply(stitcher.journeys.rebase("acme", archive(events[:2]), stitcher.policy), stitcher.policy)
    stitcher.add(("f", 9, ["device:d", "user:u0"]))
    assert consistent(stitcher) == dict.fromkeys(("e0", "e1", "f"), name_of("e0"))
    assert stitcher.table(QUARANTINED_KEYS).is_empty()


def test_an_id_that_leads_elsewhere_than_its_events_is_a_split(stitcher: Stitcher) -> None:
    stitcher.add(("z", 0, ["user:9"]), ("a", 1, ["user:1"]), ("b", 2, ["user:1"]))
    stitcher.add(("a", 1, ["user:9"]))
    found = consistent(stitcher)
    assert (found["a"], found["b"]) == (name_of("z"), name_of("b"))
    assert stitcher.table(JOURNEY_SPLITS).select("journey_id", "split_off").rows() == [(name_of("a"), name_of("b"))]


def test_an_altered_event_moves_and_leaves_nothing_behind(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]), ("b", 2, ["user:1", "device:2"]), ("c", 3, ["device:2"]))
    stitcher.add(("b", 2, ["user:1", "device:9"]))
    assert stitcher.partition() == {frozenset("ab"), frozenset("c")}
    assert stitcher.table(JOURNEYS)["key_count"].sort().to_list() == [1, 2]
    assert stitcher.table(EVENT_KEYS).filter(pl.col("event_id") == "b").height == 2


def test_a_journey_keeps_its_name_when_its_founder_is_gone(stitcher: Stitcher) -> None:
    stitcher.add(("a", 1, ["user:1"]), ("b", 2, ["user:1"]), ("c", 3, ["user:1"]))
    stitcher.add(gone=["a"])
    assert set(stitcher.assigned().values()) == {name_of("a")}


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_weak_key_attaches_and_never_merges(tmp_path: Path, order: tuple[int, ...]) -> None:
    weak = KeyPolicy((*RULES[:2], KeyRule("*", "device", "attrs.device", "weak")))
    events: list[Event] = [("a", 1, ["user:1", "device:d"]), ("b", 2, ["user:2", "device:d"]), ("w", 3, ["device:d"])]
    stitcher = Stitcher(tmp_path)
    stitcher.policy = weak
    for n in order:
        stitcher.add(events[n])
    found = stitcher.assigned()
    assert found["a"] != found["b"]
    assert found["w"] in (found["a"], found["b"])
    assert stitcher.table(JOURNEYS)["event_count"].sort().to_list() == [1, 2]


def test_a_key_with_a_window_ties_within_it_only(stitcher: Stitcher) -> None:
    stitcher.policy = KeyPolicy((KeyRule("*", "session", "attrs.session", window_seconds=1800),))
    stitcher.add(("a", 0, ["session:s"]), ("b", 20, ["session:s"]), ("c", 40, ["session:s"]))
    assert stitcher.partition() == {frozenset("ab"), frozenset("c")}


def test_a_merge_beyond_the_hard_limit_waits_for_review(stitcher: Stitcher) -> None:
    stitcher.policy = KeyPolicy(RULES, (JourneyLimit("*", 2, 3),))
    stitcher.add(("a", 1, ["user:1", "device:1"]), ("b", 2, ["user:2", "device:2"]))
    stitcher.add(("c", 3, ["user:1", "device:2"]))
    assert stitcher.partition() == {frozenset("ac"), frozenset("b")}
    assert stitcher.table(JOURNEY_CONFLICTS)["reason"].to_list() == ["refused_size"]
    stitcher.policy = POLICY
    plan = stitcher.journeys.rebase("acme", archive([("a", 1, ["user:1", "device:1"]),
                                                     ("b", 2, ["user:2", "device:2"]),
                                                     ("c", 3, ["user:1", "device:2"])]), POLICY)  # fmt: skip
    stitcher.journeys.apply(plan, POLICY)
    assert stitcher.partition() == {frozenset("abc")}
    assert stitcher.table(JOURNEY_CONFLICTS).is_empty()


def test_the_journey_of_an_event_at_an_instant(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    lake = Lake(str(tmp_path / "lake"), {}, tmp_path / "cache")
    now = START
    journeys = Journeys(lake, lambda: now)
    journeys.add(archive([("a", 1, ["user:1"]), ("b", 2, ["device:2"])]), POLICY)
    now = START + timedelta(days=1)
    journeys.add(archive([("c", 3, ["user:1", "device:2"])]), POLICY)
    history = JourneyHistory(lake)
    assert history.tenants_of("b") == ["acme"]
    before = history.journey_at("acme", "b", START + timedelta(hours=1))
    after = history.journey_at("acme", "b", now)
    assert [e["journey_id"] for e in before] == [name_of("b")]
    assert {e["journey_id"] for e in after} == {name_of("a")}
    assert len(after) == 3
    ids = history.ids("acme").filter(pl.col("journey_id") == name_of("b"))
    assert ids.select("leads_to", "is_current").rows() == [(name_of("b"), False), (name_of("a"), True)]


def test_junk_holds_the_digests_of_the_empty_string() -> None:
    assert {hashlib.md5(b"").hexdigest(), hashlib.sha256(b"").hexdigest()} <= set(DIGESTS_OF_NOBODY)  # noqa: S324


def test_an_archive_that_was_made_again_takes_its_lost_events_along(tmp_path: Path) -> None:
    stitcher = Stitcher(tmp_path)

    def archived(*events: Event) -> pl.DataFrame:
        rows = archive(list(events)).with_columns(event_date=pl.col("ts").dt.date())
        missing = {n: t for n, t in EVENTS.empty().schema.items() if n not in rows.columns}
        return rows.with_columns(pl.lit(None, t).alias(n) for n, t in missing.items()).select(list(EVENTS.columns))

    stitcher.lake.commits.append(EVENTS, archived(("a", 1, ["user:1"]), ("b", 2, ["user:1"])))
    stitching = Stitching(stitcher.lake, stitcher.journeys, POLICY)
    assert stitching.catch_up().events == 2
    shutil.rmtree(tmp_path / "lake" / "events")
    fresh = Lake(str(tmp_path / "lake"), {}, tmp_path / "again")
    fresh.commits.append(EVENTS, archived(("b", 2, ["user:1"]), ("c", 3, ["user:1"])))
    report = Stitching(fresh, Journeys(fresh), POLICY).catch_up()
    assert (report.events, report.removed) == (1, 1)
    stitcher.journeys = Journeys(fresh)
    assert stitcher.partition() == {frozenset("bc")}


def test_checks_of_journeys_leave_out_what_landed_or_left_since(tmp_path: Path) -> None:
    """Another run lands, or a backfill takes away, between the stitching of a run and its checks."""
    stitcher = Stitcher(tmp_path)
    lake = stitcher.lake

    def archived(*events: Event) -> pl.DataFrame:
        rows = archive(list(events)).with_columns(event_date=pl.col("ts").dt.date())
        missing = {n: t for n, t in EVENTS.empty().schema.items() if n not in rows.columns}
        return rows.with_columns(pl.lit(None, t).alias(n) for n, t in missing.items()).select(list(EVENTS.columns))

    def wrong() -> set[str]:
        found = wrong_rows(JourneyTables(lake).at_one_commit())["every_event_has_one_journey"].collect()
        return set(settled(lake, stitched, found)["event_id"])

    lake.commits.append(EVENTS, archived(("a", 1, ["user:1"]), ("b", 2, ["user:1"]), ("gone", 3, ["user:2"])))
    Stitching(lake, stitcher.journeys, POLICY).catch_up()
    JourneyTables(lake).publish_all()
    stitched = stitched_version(Journeys(lake))
    assert stitched is not None
    lake.commits.append(EVENTS, archived(("new", 4, ["user:1"])))
    lake.commits.delete_rows(EVENTS, ["acme"], {"event_id": ["gone"]}, {})
    now = wrong_rows(JourneyTables(lake).at_one_commit())
    assert set(now["every_event_has_one_journey"].collect()["event_id"]) == {"new", "gone"}
    assert wrong() == set()
    lake.commits.delete_rows(EVENT_JOURNEY, ["acme"], {"event_id": ["a"]}, {})
    assert wrong() == {"a"}
    # Where it is not known how far the archive is stitched, nothing is excused.
    stitched = None
    assert wrong() == {"a", "new", "gone"}


def test_checks_of_journeys_see_tables_of_one_moment_while_another_run_is_between_two_of_them(tmp_path: Path) -> None:
    """Another run stitched two journeys into one, and has published two tables of nine."""
    stitcher = Stitcher(tmp_path)
    stitcher.add(("a", 1, ["user:1"]), ("b", 2, ["user:2"]))
    tables = JourneyTables(stitcher.lake)
    tables.publish_all()
    stitcher.add(("c", 3, ["user:1", "session:s"]), ("d", 4, ["user:2", "session:s"]))
    for table in (JOURNEYS, JOURNEY_KEYS):
        tables.publish(table, tables.target())
    assert tables.published() != tables.target()
    together = tables.at_one_commit()
    assert tables.published() == tables.target()
    names = ("journeys_count_their_events", "every_key_leads_to_a_journey", "every_loser_is_an_alias")
    assert {name: wrong_rows(together)[name].collect().height for name in names} == dict.fromkeys(names, 0)
    # What is wrong of itself is found.
    stitcher.lake.commits.delete_rows(EVENT_JOURNEY, ["acme"], {"event_id": ["a"]}, {})
    assert wrong_rows(tables.at_one_commit())["journeys_count_their_events"].collect().height == 1
