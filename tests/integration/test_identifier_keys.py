"""Identifiers under secrets: nobody finds them by trying, and they go from one secret to the next."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import neo4j
import polars as pl
import pytest

from c360_pipeline.connections import open_control
from c360_pipeline.core.catalog.tables import (
    EVENT_JOURNEY,
    EVENT_KEYS,
    EVENTS,
    JOURNEY_KEYS,
    JOURNEY_LOG,
)
from c360_pipeline.core.contract.identifier_keys import IdentifierKeys
from c360_pipeline.core.landing.classify import TRACES, split_suppressed
from c360_pipeline.core.silos.control_rows import ControlRows
from c360_pipeline.core.stitching.keys import UNKEYED, key_hash, value_hash
from c360_pipeline.errors import ConfigError, ConflictError
from c360_pipeline.reads.customers import Customers
from c360_pipeline.settings import Settings, identifier_keys_place, identifier_secrets
from c360_pipeline.stages.privacy import rotation
from c360_pipeline.stages.projection.corrections import block_key, bring_up
from c360_pipeline.stages.projection.events import EventGraph
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import digests, summarise
from c360_pipeline.stages.stitching.catch_up import Stitching
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb

AT = datetime(2026, 3, 2, tzinfo=UTC)
LIST = 100_000
PHONES = [f"+49151{number:08d}" for number in range(LIST)]
"""That somebody who has a dump tries; four of them are customers'."""
RULE = """
    INSERT INTO correlation_key_rules (tenant_id, key_type, source_attribute, is_unique)
    VALUES ('*', 'phone', 'attrs.phone', false), ('*', 'crm', 'attrs.crm', true)
"""
TABLES = (JOURNEY_LOG, EVENT_KEYS, JOURNEY_KEYS)


class Installation:
    """Customers with phones, in archive, tables and graph."""

    def __init__(self, settings: Settings, control: ControlDb, lake: Lake, graph: Graph) -> None:
        self.settings, self.control, self.lake, self.graph = settings, control, lake, graph
        self.count = 0

    def bring(self, *events: tuple[str, dict[str, str]]) -> None:
        """Events of users with attributes, stitched and shown."""
        rows = [
            {
                "tenant_id": "acme", "event_id": f"e{self.count + n}", "user_id": user, "attrs": attrs,
                "session_id": f"s{self.count + n}", "action": "view", "ts": AT + timedelta(minutes=self.count + n),
                "event_date": AT.date(), "landed_at": AT, "content_hash": f"{self.count + n}",
            }
            for n, (user, attrs) in enumerate(events)
        ]  # fmt: skip
        self.count += len(rows)
        self.lake.commits.insert_new(EVENTS, pl.DataFrame(rows, schema=EVENTS.empty().schema))
        self.follow()

    def follow(self) -> None:
        Stitching(self.lake, Journeys(self.lake), self.control.key_rules.policy()).catch_up()
        EventGraph(self.lake, self.graph, ()).project()
        bring_up(self.lake, self.graph)

    def customers(self) -> dict[str, str]:
        """Journeys by event."""
        return dict(self.lake.read(EVENT_JOURNEY).select("event_id", "journey_id").iter_rows())

    def proof(self) -> dict[str, str]:
        """The digests, of a graph that is equal to its archive."""
        results = reconcile(Archive(self.lake, ControlRows((), (), {}, {}, ())), self.graph)
        assert not summarise(results)["findings"]
        return digests(self.lake, results)

    def rotate(self) -> rotation.Rotated:
        return rotation.rotate(self.control, self.lake, self.graph, lambda _: None)

    def hashes(self) -> set[str]:
        """Of all keys, as they stand in tables, and in texts beside them."""
        found = {one for table in TABLES for one in self.lake.read(table)["key_hash"].drop_nulls()}
        named = self.lake.read(JOURNEY_LOG)["unique_keys"].explode().drop_nulls()
        named = [*named, *(row["id"] for row in self.dump("Correlation"))]
        return found | {one.partition(":")[2] for one in named if one}

    def dump(self, label: str = "") -> list[dict[str, Any]]:
        """Everything that nodes hold, by a client of its own."""
        login = (self.settings.neo4j_user, self.settings.neo4j_password.get_secret_value())
        wanted = f"MATCH (n{f':{label}' if label else ''}) RETURN properties(n) AS held"
        with neo4j.GraphDatabase.driver(self.settings.neo4j_uri, auth=login) as driver:
            return [row["held"] for row in driver.execute_query(wanted).records]


@pytest.fixture
def installation(settings: Settings, control: ControlDb, lake: Lake, graph: Graph) -> Installation:
    control.execute(RULE)
    made = Installation(settings, control, lake, graph)
    made.bring(
        ("ana", {"phone": PHONES[7], "crm": "c-1"}), ("ana", {"phone": PHONES[8]}), ("bo", {"phone": PHONES[90_000]}),
        ("cy", {"deviceId": "d"}), ("dee", {"deviceId": "d", "phone": PHONES[5]}),
    )  # fmt: skip
    return made


def tried(identifiers: IdentifierKeys) -> set[str]:
    """The hashes of all phones of the list."""
    rows = pl.LazyFrame({"value": PHONES}).with_columns(tenant_id=pl.lit("acme"), key_type=pl.lit("phone"))
    return set(rows.select(key_hash(identifiers).cast(pl.String)).collect().to_series())


def test_who_has_a_dump_finds_no_phone_by_trying_without_the_secret(installation: Installation) -> None:
    ours = installation.control.identifiers.current()
    assert ours.version == 1
    assert tried(ours) & installation.hashes() == {
        value_hash("acme", "phone", PHONES[n], ours) for n in (5, 7, 8, 90_000)
    }
    # Attributes of events are there as they came; keys are not, and can't be found with another secret or none.
    text = json.dumps(installation.dump("Correlation"), default=str)
    assert not [phone for phone in PHONES if phone in text]
    assert not tried(UNKEYED) & installation.hashes()
    assert identifier_secrets()[1].get_secret_value() not in json.dumps(installation.dump(), default=str)
    assert Path(identifier_keys_place()).stat().st_mode & 0o777 == 0o600


def test_a_new_secret_changes_hashes_and_nothing_else(installation: Installation) -> None:
    journeys, hashes = installation.customers(), installation.hashes()
    ours = installation.control.identifiers.current()
    phone = f"phone:{value_hash('acme', 'phone', PHONES[90_000], ours)}"
    block_key(installation.control, installation.lake, installation.graph, phone, None, "shared", undo=False)
    installation.control.privacy.suppress("acme", "zed", "asked")
    before = installation.proof()
    done = installation.rotate()
    assert done.version == ours.version + 1
    assert installation.proof() == before
    assert installation.customers() == journeys
    assert not installation.hashes() & hashes
    newest = installation.control.identifiers.current()
    assert newest.version == done.version
    # What comes finds what is there by the new hashes: a phone that links, one that is blocked, somebody who is out.
    installation.bring(("", {"phone": PHONES[7]}), ("", {"phone": PHONES[90_000]}))
    found = installation.customers()
    assert found["e5"] == journeys["e0"]
    assert found["e6"] not in journeys.values()
    rows = pl.DataFrame({"tenant_id": ["acme"] * 2, "user_id": ["zed ", "ana"], **dict.fromkeys(TRACES, None)})
    rows = rows.cast(dict.fromkeys(TRACES, pl.String))
    kept, silent = split_suppressed(rows, installation.control.privacy.suppressed_users())
    assert (kept["user_id"].to_list(), silent["user_id"].to_list()) == (["ana"], ["zed "])
    blocked = f"phone:{value_hash('acme', 'phone', PHONES[90_000], newest)}"
    block_key(installation.control, installation.lake, installation.graph, blocked, None, "", undo=True)
    assert installation.customers()["e6"] == journeys["e2"]
    installation.proof()
    customer = Customers(installation.graph, "acme", newest).find("ana")
    assert customer is not None
    assert [one["journey_id"] for one in customer.journeys] == [journeys["e0"]]


class KilledError(Exception):
    """A kill at some point."""


def killing(work: Callable[..., Any], times: int) -> Callable[..., Any]:
    """Does its work so many times, and then, after the work, nothing more."""
    left = iter(range(times))

    def work_or_die(*given: Any, **named: Any) -> Any:
        done = work(*given, **named)
        if next(left, None) is None:
            raise KilledError
        return done

    return work_or_die


@pytest.mark.parametrize(("step", "times"), [("_rewritten", 0), ("_rename_nodes", 0), ("_rewritten", 4)])
def test_a_rotation_that_was_killed_is_taken_up_where_it_was(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, step: str, times: int
) -> None:
    before, journeys = installation.proof(), installation.customers()
    version = installation.control.identifiers.current().version
    with monkeypatch.context() as patch:
        patch.setattr(rotation, step, killing(getattr(rotation, step), times))
        with pytest.raises(KilledError):
            installation.rotate()
    # Meanwhile nobody stitches with either secret; lists are what they were.
    with pytest.raises(ConflictError, match="c360 keys rotate"):
        installation.follow()
    assert installation.control.privacy.suppressed_users().identifiers.version == version
    assert installation.rotate().version == version + 1
    assert installation.proof() == before
    assert installation.customers() == journeys
    assert not tried(UNKEYED) & installation.hashes()
    installation.bring(("ana", {}))
    assert installation.customers()["e5"] == journeys["e0"]


def test_an_installation_of_before_there_were_secrets_gets_its_first_one(
    installation: Installation, control: ControlDb, tmp_path: Path
) -> None:
    """Its lake, made without a secret, as an earlier release left it."""
    control.execute("DELETE FROM identifier_keys")
    older = Installation(installation.settings, control, *_apart(installation, tmp_path))
    older.bring(("ana", {"phone": PHONES[7]}), ("", {"phone": PHONES[7]}), ("bo", {"phone": PHONES[9]}))
    assert len(tried(UNKEYED) & older.hashes()) == 2
    before, journeys = older.proof(), older.customers()
    assert older.rotate().version == 1
    assert older.proof() == before
    assert not tried(UNKEYED) & older.hashes()
    older.bring(("", {"phone": PHONES[9]}))
    assert older.customers()["e3"] == journeys["e2"]


def _apart(installation: Installation, cache: Path) -> tuple[Lake, Graph]:
    """Another lake in the same bucket, and the graph, emptied."""
    lake = installation.lake
    installation.graph.writer.clear()
    return Lake(f"{lake.uri('')}older", lake._storage.options, cache), installation.graph


def test_without_the_right_secret_nothing_is_hashed_and_the_error_says_which(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = installation.control.identifiers.versions()[0].fingerprint
    for given in (f"1:{'ab' * 32}", f"2:{'ab' * 32}"):
        monkeypatch.setenv("C360_IDENTIFIER_KEYS", given)
        for ask in (installation.control.key_rules.policy, installation.control.privacy.suppressed_users):
            with pytest.raises(
                ConfigError, match=rf"version 1 \(fingerprint {named}\).*C360_IDENTIFIER_KEYS"
            ) as caught:
                ask()
            assert "ab" * 32 not in str(caught.value)
    monkeypatch.delenv("C360_IDENTIFIER_KEYS")
    assert installation.control.key_rules.policy().identifiers.version == 1


def test_a_control_database_that_was_made_anew_does_not_make_two_of_each_customer(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("C360_IDENTIFIER_KEYS_FILE", str(tmp_path / "others"))
    monkeypatch.setenv("ETL_DB_NAME", f"{installation.settings.etl_db_name}_anew")
    anew = open_control(
        installation.settings.model_copy(update={"etl_db_name": f"{installation.settings.etl_db_name}_anew"})
    )
    with pytest.raises(ConfigError, match="another installation"):
        Stitching(installation.lake, Journeys(installation.lake), anew.key_rules.policy()).catch_up()
    assert (tmp_path / "others").read_text().startswith("1:")
