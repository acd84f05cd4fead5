"""Erasure: people leave every store, nobody else does, and what is left is right."""

import json
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from own_stores import own_stores
from raw_bytes import is_word, objects, places_of
from repetition import often
from typer.testing import CliRunner

from c360_pipeline.cli import app
from c360_pipeline.cli.privacy import stores_of
from c360_pipeline.connections import open_control, open_graph, open_lake, open_landing
from c360_pipeline.core.audiences.definition import read_audience
from c360_pipeline.core.catalog.tables import (
    DEAD_LETTERS,
    EVENT_JOURNEY,
    EVENTS,
    LANDING_FILES,
    RECONCILIATION_FINDINGS,
)
from c360_pipeline.core.privacy.erasure import Person
from c360_pipeline.devstack import silo_samples
from c360_pipeline.devstack.event_samples import SampleRequest, write_sample
from c360_pipeline.devstack.sample_files import Written
from c360_pipeline.errors import ConfigError
from c360_pipeline.runs import materialise
from c360_pipeline.settings import Settings, postgres_login
from c360_pipeline.stages.privacy import erasure as erasing
from c360_pipeline.stages.privacy.certificate import Certificate
from c360_pipeline.stages.privacy.erasure import Erasure
from c360_pipeline.stages.privacy.export import export
from c360_pipeline.stages.privacy.mentions import Companion
from c360_pipeline.stages.privacy.steps import Steps
from c360_pipeline.stages.projection.everything import stitch_all
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import summarise
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.s3.landing import folder_for

REQUEST = SampleRequest(events=1_500, tenants=2, seed=11, malformed_rate=0.04, duplicate_rate=0.04)
pytestmark = pytest.mark.repeats
PEOPLE = often(5, 20)
"""Of the sample; beside them somebody whom others name."""
NAMED = Person("acme", "planted.person@example.org")
VISITOR = "visitor-before-login-77"
REDACTED = ("gift", "thanks")
PLANTED = [
    {"eventId": "own", "userId": NAMED.user_id, "attrs": {"deviceId": "device-of-planted-1"}},
    {"eventId": "before", "userId": VISITOR, "attrs": {"deviceId": "device-of-planted-1"}},
    {"eventId": "gift", "userId": "friend-of-planted", "attrs": {"giftTo": NAMED.user_id}},
    {"eventId": "thanks", "userId": "friend-of-friend", "attrs": {"note": f"thanks to <{NAMED.user_id}>, and Zoë"}},
]
HERS = [
    {"eventId": "login", "userId": NAMED.user_id, "anonymousId": "browser-of-planted", "sessionId": "at-login"},
    {"eventId": "visit-1", "anonymousId": "browser-of-planted", "sessionId": "first-visit-of-planted"},
    {"eventId": "visit-2", "anonymousId": "browser-of-planted"},
    {"eventId": "at-table", "userId": NAMED.user_id, "anonymousId": "tablet-of-family", "sessionId": "morning"},
    {"eventId": "before-login-at-table", "anonymousId": "tablet-of-family", "sessionId": "morning"},
]
"""Events of a person on devices, most of them before a login."""
OF_THE_FAMILY = [
    {"eventId": "other-login", "userId": "sister", "anonymousId": "tablet-of-family", "sessionId": "evening"},
    {"eventId": "other-visit", "anonymousId": "tablet-of-family", "sessionId": "evening"},
    {"eventId": "whose", "anonymousId": "tablet-of-family", "sessionId": "at-night"},
]
EVERYBODY = {
    "audience": "everybody", "who": {"did": "*"},
    "deliver": {"text": {"to": "bucket"}, "table": {"to": "bucket", "format": "parquet"}},
}  # fmt: skip
"""An audience whose members are in files, too."""
WITH_ACCOUNT = PEOPLE * 3 // 5


@dataclass(frozen=True)
class World:
    """A sample after its first run."""

    home: Path
    settings: Settings
    lake: Lake
    graph: Graph
    written: Written

    def run(self) -> None:
        """Materialise everything; every step and check must pass."""
        outcome = materialise(self.home, "*", None, lambda _: None)
        assert (outcome.error, outcome.failed_checks, outcome.succeeded) == (None, [], True)

    def findings(self) -> list[dict[str, Any]]:
        """Differences between graph and archive."""
        archive = Archive(self.lake, open_control(self.settings).read())
        found: list[dict[str, Any]] = summarise(reconcile(archive, self.graph))["findings"]
        return found

    def accounts(self) -> pl.DataFrame:
        """Rows of the silo's table."""
        table = self.lake.stored_table("silos/profiles_db/accounts", ("tenant_id", "account_id"))
        assert table is not None
        return self.lake.read(table)


@pytest.fixture(scope="module")
def world(home: Path, empty_graph: Callable[[], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    written = write_sample(REQUEST, tmp_path_factory.mktemp("sample"), lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        settings = own_stores(patch, home)
        empty_graph()
        silo_samples.seed(postgres_login(settings, settings.etl_db_name), open_control(settings), "sample", lambda _: 0)
        landing = open_landing(settings)
        for path in (*written.event_files, written.catalog_file):
            landing.put_file(path, folder_for(path, date(2025, 11, 3)))
        shared = {"tenantId": "acme", "ts": "2025-11-01T10:00:00Z", "action": "view"}
        lines = [json.dumps({**shared, "sessionId": f"s-{line['eventId']}", **line}) for line in PLANTED]
        lines += [json.dumps(shared | line) for line in (*HERS, *OF_THE_FAMILY)]
        landing.put_events("\n".join(lines).encode(), "planted.jsonl", date(2025, 11, 3))
        for tenant in ("acme", "globex"):
            open_control(settings).audiences.apply(read_audience({**EVERYBODY, "tenant": tenant}), "")
        with open_graph(settings) as graph:
            made = World(home, settings, open_lake(settings), graph, written)
            made.run()
            yield made


@dataclass(frozen=True)
class Erased:
    """Twenty people, what is known of them, and what is left."""

    @property
    def gone(self) -> pl.DataFrame:
        """Accounts that were erased."""
        return self.accounts.join(self.accounts_left, on=["tenant_id", "account_id"], how="anti")

    people: list[Person]
    words: set[str]
    others: pl.DataFrame
    accounts: pl.DataFrame
    accounts_left: pl.DataFrame
    certificate: Certificate


def known_of(world: World, people: list[Person]) -> set[str]:
    """User ids and, of those with an account, address and name: of these what nobody else has, in any tenant."""
    users = pl.DataFrame([(p.tenant_id, p.user_id) for p in people], schema=["tenant_id", "user"], orient="row")
    named = pl.concat([world.accounts().with_columns(user=pl.col("email")),
                       world.accounts().with_columns(user=pl.col("account_id").cast(pl.String))])  # fmt: skip
    accounts = named.join(users, on=["tenant_id", "user"], how="semi")
    others = world.accounts().join(accounts, on=["tenant_id", "account_id"], how="anti")
    events = world.lake.read(EVENTS).select("tenant_id", user="user_id")
    elsewhere = events.join(users, on=["tenant_id", "user"], how="anti")["user"]
    words = {*users["user"], *accounts["email"], *accounts["full_name"]}
    shared = {*others["full_name"], *others["email"], *elsewhere}
    return {word for word in words - shared if len(word) > 5}


@pytest.fixture(scope="module")
def erased(world: World) -> Erased:
    """After the erasure, which was broken off twice."""
    events = world.lake.read(EVENTS)
    planted = pl.col("user_id").is_in([line["userId"] for line in (*PLANTED, *OF_THE_FAMILY) if "userId" in line])
    users = (
        events.filter(~planted, pl.col("user_id").is_not_null())
        .select("tenant_id", "user_id")
        .unique()
        .sort(pl.all())
        .rows()
    )
    rng = random.Random(4)
    with_account = [u for u in users if "@" in u[1] or u[1].isdecimal()]
    chosen = rng.sample(with_account, WITH_ACCOUNT) + rng.sample(
        [u for u in users if u not in with_account], PEOPLE - WITH_ACCOUNT
    )
    people = [*(Person(*one) for one in chosen), NAMED]
    theirs = pl.DataFrame([*chosen, (NAMED.tenant_id, NAMED.user_id)], schema=["tenant_id", "user_id"], orient="row")
    before_login = pl.col("event_id").is_in([line["eventId"] for line in HERS])
    others = events.join(theirs, on=["tenant_id", "user_id"], how="anti").filter(~before_login)
    words = known_of(world, people) | {"browser-of-planted", "first-visit-of-planted"}
    accounts = world.accounts()
    # What a reconciliation says of a person in passing.
    finding = {"run_id": "r", "tenant_id": chosen[0][0], "kind": "missing", "label": "User", "repaired": False,
               "key": f"{chosen[0][0]} {next(iter(words))}", "difference": ""}  # fmt: skip
    schema = RECONCILIATION_FINDINGS.empty().schema
    world.lake.commits.insert_new(
        RECONCILIATION_FINDINGS, pl.DataFrame([{n: finding.get(n) for n in schema}], schema=schema)
    )
    (world.home / "logs" / "some.log").write_text(f"a statement about {sorted(words)[0]} failed\n")

    kept: list[Certificate] = []
    erasure = Erasure(stores_of(world.settings), world.home / "erasure")
    assert erasure.companions([NAMED]) == [Companion("acme", VISITOR, 1)]
    assert erasure.mentions([NAMED]) == {"events": 2}
    assert erasure.shared_visitors([NAMED]) == ["tablet-of-family"]
    for owner, step in ((Steps, "_follow"), (erasing, "certify"))[: often(1, 2)]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, step, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                erasure.erase(people, kept.append, redact=True)
    newcomer = land_another(world)
    with pytest.raises(ConfigError, match="broken off"):
        erasure.erase(people[:1], kept.append)
    certificate = erasure.erase(people, kept.append, redact=True)
    assert kept == [certificate]
    assert open_control(world.settings).privacy.unfinished_erasure() is None
    return Erased(people, words, pl.concat([others, newcomer]), accounts, world.accounts(), certificate)


def land_another(world: World) -> pl.DataFrame:
    """While an erasure is broken off, others land; its own files wait, and are named. Returns the new event."""
    privacy = open_control(world.settings).privacy
    privacy.require_no_erasure()
    waiting = privacy.unfinished_erasure()
    assert waiting is not None
    assert waiting.files
    assert "call it again with the same people" in CliRunner().invoke(app, ["status"]).output.replace("\n", " ")
    line = {"tenantId": "acme", "userId": "newcomer", "sessionId": "s", "ts": "2025-11-01T10:00:00Z", "action": "view",
            "eventId": "of-newcomer"}  # fmt: skip
    open_landing(world.settings).put_events(json.dumps(line).encode() + b"\n", "another.jsonl", date(2025, 11, 3))
    before = world.lake.read(EVENTS)
    outcome = materialise(world.home, "landed_events,dead_letters,landing_files", None, lambda _: None)
    assert (outcome.error, outcome.failed_checks) == (None, ["landing_files: every_file_was_read"])
    assert "call it again with the same people" in outcome.reasons[0]
    return world.lake.read(EVENTS).join(before, on=["tenant_id", "event_id"], how="anti")


def test_an_export_has_all_of_a_person_and_nothing_of_others(world: World, tmp_path: Path) -> None:
    """Before they are erased: what is handed over is what would be."""
    asked = ["export", "--tenant", "acme", "--user", NAMED.user_id.upper(), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, (result.output, result.exception)
    path = tmp_path / "out" / "person.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    said = json.loads(path.read_text())
    assert {one["event_id"] for one in said["events"]} == {"own", *(line["eventId"] for line in HERS)}
    assert said["visitors"] == ["browser-of-planted"]
    assert said["shared_visitors"] == ["tablet-of-family"]
    assert said["mentions"] == {"events": 2}
    assert said["user_ids"] == [NAMED.user_id.upper(), NAMED.user_id]
    page = (tmp_path / "out" / "person.html").read_text()
    for word in ("first-visit-of-planted", "browser-of-planted", NAMED.user_id):
        assert word in page
        assert word in path.read_text()
    for other in ("friend-of-planted", VISITOR, "sister", "at-night", "evening"):
        assert other not in path.read_text() + page
    # Somebody with an account has the rows of it.
    tenant, email = world.accounts().select("tenant_id", "email").row(3)
    found = export(stores_of(world.settings), Person(tenant, email))
    (account,) = found.rows["silos/profiles_db/accounts"]
    assert account["email"] == email
    emails = set(world.accounts()["email"]) - {email}
    assert not [other for other in emails if is_word(other, found.as_json())]
    nobody = CliRunner().invoke(app, ["export", "--tenant", "acme", "--user", "nobody-at-all"])
    assert isinstance(nobody.exception, ConfigError)


def test_the_certificate_says_what_was_searched_and_that_nothing_is_left(world: World, erased: Erased) -> None:
    said = erased.certificate
    assert {one["store"]: one["left_in"] for one in said.stores if one["left_in"]} == {}
    assert said.findings == 0
    assert said.is_clean
    hits = {one["store"]: (one["hits_before"], one["hits_after"]) for one in said.stores}
    assert {store for store, (before, _) in hits.items() if before} >= {"landing area", "lake", "graph", "logs"}
    assert {after for _, after in hits.values()} == {0}
    searched = {one["store"] for one in said.stores if one["searched"]}
    assert searched >= {"landing area", "lake", "control database", "dagster", "logs", "graph", "graph files"}
    assert said.removed["events"] > PEOPLE
    assert said.removed["landing_lines"] >= said.removed["events"]
    assert said.removed["silo_rows"]["silos/profiles_db/accounts"] >= PEOPLE // 4
    assert len(said.people) == PEOPLE + 1
    assert (said.visitors, said.shared_visitors) == (1, 1)
    assert (said.mentions, said.redacted, said.same_journeys > 0) == ({}, len(REDACTED), True)
    text = json.dumps(said.as_dict())
    assert not [word for word in erased.words if word in text]
    assert not (world.home / "erasure").exists()


def test_no_byte_of_any_store_holds_a_word_of_theirs(world: World, erased: Erased) -> None:
    """Looked for by other means than the erasure's own search."""
    words = sorted(erased.words)
    assert len(words) > PEOPLE
    found = places_of(words, world.home, world.settings, world.graph)
    assert found == []


def test_everybody_else_is_what_they_were(world: World, erased: Erased) -> None:
    columns = [name for name in EVENTS.columns if name not in ("attrs", "source_etag", "landed_at")]
    key = ["tenant_id", "event_id"]
    untouched = ~pl.col("event_id").is_in(REDACTED)
    now = world.lake.read(EVENTS).filter(untouched).select(columns).sort(key)
    assert now.equals(erased.others.filter(untouched).select(columns).sort(key))
    assert erased.gone.height >= PEOPLE // 4
    names = {(one.tenant_id, one.user_id) for one in erased.people}
    for tenant, email, account in erased.gone.select(
        "tenant_id", "email", pl.col("account_id").cast(pl.String)
    ).iter_rows():
        assert {(tenant, email), (tenant, account)} & names


def test_a_name_that_others_mention_is_taken_out_of_their_events(world: World, erased: Erased) -> None:
    hidden = "x" * len(NAMED.user_id)
    left = {"gift": {"giftTo": hidden}, "thanks": {"note": f"thanks to <{hidden}>, and Zoë"}}
    asked = "MATCH (a:Action) WHERE a.id IN $ids RETURN a.id AS id, a.attrs AS said"
    assert {row["id"]: json.loads(row["said"]) for row in world.graph.run(asked, ids=list(REDACTED))} == left
    lines = [json.loads(text) for path, text in objects(world.home, world.settings) if path.endswith("planted.jsonl")
             for text in text.splitlines() if text]  # fmt: skip
    assert {line["eventId"]: line["attrs"] for line in lines if line["eventId"] in REDACTED} == left


def partition(assigned: pl.DataFrame) -> set[frozenset[str]]:
    """Which events are together."""
    named = assigned.select("tenant_id", "journey_id", event=pl.concat_str("tenant_id", "event_id", separator=" "))
    return {frozenset(events) for events in named.group_by("tenant_id", "journey_id").agg("event")["event"]}


def test_the_journeys_of_the_rest_are_those_of_an_archive_that_never_knew_them(
    world: World, erased: Erased, tmp_path: Path
) -> None:
    (tmp_path / "lake").mkdir()
    fresh = Lake(str(tmp_path / "lake"), {}, tmp_path / "cache")
    fresh.commits.insert_new(EVENTS, erased.others)
    stitch_all(fresh, open_control(world.settings).key_rules.policy())
    assert partition(world.lake.read(EVENT_JOURNEY)) == partition(fresh.read(EVENT_JOURNEY))


def test_accounting_and_graph_are_right_and_the_next_run_brings_nobody_back(world: World, erased: Erased) -> None:
    """The same browser again, the same visit again, and somebody else who logs in there: only the last lands."""
    assert world.findings() == []
    again = {"tenantId": "acme", "ts": "2025-11-02T10:00:00Z", "action": "view"}
    lines: list[dict[str, Any]] = [
        {"eventId": "broken", "anonymousId": "browser-of-planted", "ts": "garbage"},
        {"eventId": "again", "anonymousId": " browser-of-planted"}, {"eventId": "again-2", "sessionId": "morning",
                                                                      "anonymousId": "tablet-of-family"},
        {"eventId": "somebody", "userId": "somebody-else", "anonymousId": "browser-of-planted", "sessionId": "morning"},
        {"eventId": "tablet", "anonymousId": "tablet-of-family"},
    ]  # fmt: skip
    content = "\n".join(json.dumps(again | line) for line in lines).encode()
    open_landing(world.settings).put_events(content, "afterwards.jsonl", date(2025, 11, 4))
    world.run()
    assert world.findings() == []
    landed = set(world.lake.read(EVENTS)["event_id"]) & {line["eventId"] for line in lines}
    assert landed == {"somebody", "tablet"}
    held = world.lake.read(LANDING_FILES).filter(pl.col("source_uri").str.ends_with("afterwards.jsonl"))
    assert held.select("landed", "suppressed").rows() == [(2, 3)]
    assert (
        world.accounts()
        .sort("account_id")
        .select("account_id", "email")
        .equals(
            erased.accounts.join(erased.gone, on=["tenant_id", "account_id"], how="anti")
            .sort("account_id")
            .select("account_id", "email")
        )
    )
    accounts = world.lake.read(LANDING_FILES)
    assert accounts["landed"].sum() == world.lake.count(EVENTS) == erased.others.height + len(landed)
    stores = stores_of(world.settings)
    after = Erasure(stores, world.home / "erasure").look(erased.people)[0]
    assert {one.store: one.hits for one in after if one.hits} == {}


def test_blanked_letters_keep_their_place_in_the_queue(world: World, erased: Erased) -> None:
    letters = world.lake.read(DEAD_LETTERS)
    assert (
        letters.filter(pl.col("resolution") == "erased")["raw"].null_count()
        == letters.filter(pl.col("resolution") == "erased").height
    )
