"""Fifty people leave at once: each with visits before a login, a device that others use, and seven spellings."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from own_stores import own_stores
from raw_bytes import is_word, places_of

from c360_pipeline.cli.privacy import stores_of
from c360_pipeline.connections import open_control, open_graph, open_lake, open_landing
from c360_pipeline.core.catalog.tables import EVENT_JOURNEY, EVENTS
from c360_pipeline.core.contract.identifiers import normal_text
from c360_pipeline.core.privacy.erasure import Person
from c360_pipeline.runs import materialise
from c360_pipeline.settings import Settings
from c360_pipeline.stages.privacy.erasure import Erasure
from c360_pipeline.stages.privacy.export import export
from c360_pipeline.stages.projection.everything import stitch_all
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import digests, summarise
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph

pytestmark = pytest.mark.soak
PEOPLE, NEIGHBOURS = 50, 30
AT = datetime(2025, 11, 1, 10, tzinfo=UTC)
Line = dict[str, Any]


def spellings(name: str) -> list[str]:
    """Seven ways to write one address."""
    address = f"{name}@people.example"
    return [
        address, address.upper(), f" {address}", f"{address} ", f"mailto:{address}", address.title(),
        f"{name}\u200b@people.example",
    ]  # fmt: skip


@dataclass
class Population:
    """Who there is, and what everybody did.

    Attributes:
        lines: of landing files.
        theirs: event ids by person who leaves.
        words: by person, what is theirs alone.
    """

    lines: list[Line] = field(default_factory=list)
    theirs: dict[str, set[str]] = field(default_factory=dict)
    words: dict[str, set[str]] = field(default_factory=dict)

    def did(self, tenant: str, **said: Any) -> str:
        """One event; returns its id."""
        number = len(self.lines)
        at = AT + timedelta(minutes=7 * number)
        line = {"tenantId": tenant, "ts": at.isoformat(), "action": "view", "eventId": f"event-{number:05}"}
        self.lines.append({**line, **said})
        return str(line["eventId"])

    def somebody_leaves(self, number: int) -> None:
        """What one person did, who is erased later, on devices of their own and on one of a family."""
        name, tablet = f"leaver{number:02}", f"tablet-{number % NEIGHBOURS:02}"
        browser, phone = f"browser-of-{name}", f"phone-of-{name}"
        visits = [{"anonymousId": browser, "sessionId": f"visit-{n}-of-{name}"} for n in range(2)]
        visits += [{"anonymousId": phone, "attrs": {"campaign": f"letter-to-{name}"}}]
        ids = {self.did("acme", **visit) for visit in visits}
        for n, spelling in enumerate(spellings(name)):
            device = {"anonymousId": browser} if n == 0 else {"anonymousId": phone} if n == 1 else {}
            traits = {"traits": {"nick": f"nick-of-{name}"}} if n == 2 else {}
            ids.add(self.did("acme", userId=spelling, sessionId=f"session-{n}-of-{name}", **device, **traits))
        at_table = f"morning-of-{name}"
        ids.add(self.did("acme", anonymousId=tablet, sessionId=at_table))
        ids.add(self.did("acme", anonymousId=tablet, sessionId=at_table, userId=spellings(name)[0], action="purchase",
                         itemId="sku-1"))  # fmt: skip
        self.theirs[name] = ids
        self.words[name] = {browser, phone, f"nick-of-{name}", f"letter-to-{name}", at_table, f"visit-0-of-{name}",
                            *(one.strip() for one in spellings(name))}  # fmt: skip

    def somebody_stays(self, tenant: str, number: int) -> None:
        """A neighbour, who uses one of these tablets too."""
        name, tablet = f"neighbour{number:02}", f"tablet-{number:02}"
        self.did(tenant, anonymousId=tablet, sessionId=f"evening-of-{name}")
        self.did(tenant, anonymousId=tablet, sessionId=f"evening-of-{name}", userId=f"{name}@others.example")
        self.did(tenant, anonymousId=tablet, sessionId=f"night-on-{tablet}")
        self.did(tenant, userId=f"{name}@others.example", sessionId=f"s-{name}", action="purchase", itemId="sku-1")


@dataclass(frozen=True)
class Left:
    """Before and after."""

    people: Population
    home: Path
    settings: Settings
    lake: Lake
    graph: Graph
    before: pl.DataFrame
    others_before: dict[str, str]

    def proof(self) -> dict[str, str]:
        """Digests of the other tenant, in a graph that is equal to its archive."""
        results = reconcile(Archive(self.lake, open_control(self.settings).read()), self.graph)
        assert not summarise(results)["findings"]
        found = digests(self.lake, results)
        return {name: digest for name, digest in found.items() if name.startswith("graph globex ")}

    @property
    def all_of_theirs(self) -> set[str]:
        return set().union(*self.people.theirs.values())


@pytest.fixture(scope="module")
def left(home: Path, empty_graph: Callable[[], None]) -> Iterator[Left]:
    people = Population()
    order = [(people.somebody_leaves, (n,)) for n in range(PEOPLE)]
    order += [(people.somebody_stays, (tenant, n)) for tenant in ("acme", "globex") for n in range(NEIGHBOURS)]
    random.Random(8).shuffle(order)
    for act, arguments in order:
        act(*arguments)
    with pytest.MonkeyPatch.context() as patch:
        settings = own_stores(patch, home)
        empty_graph()
        landing = open_landing(settings)
        random.Random(9).shuffle(people.lines)
        for number in range(3):
            text = "\n".join(map(json.dumps, people.lines[number::3]))
            landing.put_events(text.encode(), f"part-{number}.jsonl", date(2025, 11, 2))
        with open_graph(settings) as graph:
            outcome = materialise(home, "*", None, lambda _: None)
            assert outcome.error is None
            lake = open_lake(settings)
            made = Left(people, home, settings, lake, graph, lake.read(EVENTS), {})
            made.others_before.update(made.proof())
            yield made


def test_an_export_of_each_holds_what_is_theirs_and_nothing_of_others(left: Left) -> None:
    for number, (name, ids) in enumerate(sorted(left.people.theirs.items())[::7]):
        asked = spellings(name)[number % 7]
        found = export(stores_of(left.settings), Person("acme", asked))
        assert {one["event_id"] for one in found.events} == ids, asked
        text = found.as_json()
        others = set().union(*(words for other, words in left.people.words.items() if other != name))
        assert not [word for word in others if is_word(word, text)]


def test_fifty_people_leave_and_everybody_else_stays_what_they_were(left: Left, tmp_path: Path) -> None:
    people = [Person("acme", spellings(name)[n % 7]) for n, name in enumerate(sorted(left.people.theirs))]
    certificate = Erasure(stores_of(left.settings), left.home / "erasure").erase(people, lambda _: None)
    assert certificate.is_clean, [one for one in certificate.stores if one["left_in"]]
    assert certificate.visitors == 2 * PEOPLE
    assert certificate.shared_visitors == NEIGHBOURS
    # Not a byte: every spelling, device, visit, trait and attribute of each.
    words = sorted(set().union(*left.people.words.values()))
    assert len(words) > 10 * PEOPLE
    assert places_of(words, left.home, left.settings, left.graph) == []
    assert {normal_text(word) for word in words}.isdisjoint(left.lake.read(EVENTS)["user_id"].drop_nulls())
    # Who stays: the events, the journeys of an archive that never knew them, and the digests of another tenant.
    stays = ~pl.col("event_id").is_in(left.all_of_theirs)
    columns = [name for name in EVENTS.columns if name not in ("attrs", "source_etag", "landed_at", "traits")]
    key = ["tenant_id", "event_id"]
    kept = left.before.filter(stays)
    assert left.lake.read(EVENTS).select(columns).sort(key).equals(kept.select(columns).sort(key))
    (tmp_path / "lake").mkdir()
    fresh = Lake(str(tmp_path / "lake"), {}, tmp_path / "cache")
    fresh.commits.insert_new(EVENTS, kept)
    stitch_all(fresh, open_control(left.settings).key_rules.policy())
    assert partition(left.lake) == partition(fresh)
    assert left.proof() == left.others_before


def partition(lake: Lake) -> set[frozenset[str]]:
    """Which events are together."""
    named = lake.read(EVENT_JOURNEY).group_by("tenant_id", "journey_id").agg("event_id")
    return {frozenset(ids) for ids in named["event_id"]}
