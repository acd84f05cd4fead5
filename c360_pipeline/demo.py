"""`c360 demo`: the whole way on sample data in one screen, compared with what the sample's maker knows."""

import gzip
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
from dotenv import dotenv_values
from rich.console import Console
from rich.table import Table

from c360_pipeline.connections import open_control, open_graph, open_lake, open_landing
from c360_pipeline.core.catalog.tables import EVENT_JOURNEY, EVENTS, LANDING_FILES
from c360_pipeline.core.landing.accounting import unbalanced
from c360_pipeline.core.landing.decode import decode_file
from c360_pipeline.core.landing.lines import Delivery
from c360_pipeline.core.reconciliation.compare import combined_digest
from c360_pipeline.devstack import movielens, silo_samples, stack, web
from c360_pipeline.devstack.event_samples import DEFAULT_SAMPLE, write_sample
from c360_pipeline.devstack.people import SILO_TENANT
from c360_pipeline.devstack.sample_files import Written
from c360_pipeline.errors import ConfigError, InvariantError
from c360_pipeline.reads.journeys import account_of_user, first_event_of_user, journey_of_event
from c360_pipeline.reads.recommend import RecommendationRequest, Recommender
from c360_pipeline.runs import EVERYTHING, Outcome, Step, materialise
from c360_pipeline.settings import (
    OWNERS,
    Settings,
    c360_home,
    connection_file,
    load_settings,
    merged_environment,
    postgres_login,
)
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import digests, summarise
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.api_keys import ApiKeys
from c360_pipeline.stores.s3.landing import folder_for

STORY_EVENTS = 10
RECOMMENDATIONS = 3

ServiceProgress = Callable[[], AbstractContextManager[Callable[[dict[str, Any]], None]]]
RunProgress = Callable[[], AbstractContextManager[Callable[[Step], None]]]


@dataclass(frozen=True)
class Sample:
    """A data set that the demo can show, and the customer whose story it tells."""

    tenant_id: str
    user_id: str
    write: Callable[[Path], Written]


SAMPLES = {
    "sample": Sample(SILO_TENANT, "john.smith@email.com", lambda f: write_sample(DEFAULT_SAMPLE, f, lambda _: None)),
    "movielens": Sample(movielens.TENANT, "405", lambda f: movielens.write_movielens(f, lambda _: None)),
}


class Demo:
    """One run of the demo.

    Args:
        data: `sample` or `movielens`; MovieLens has a state folder of its own.
        console: where the story is told.
        service_progress: shows how services start.
        run_progress: shows the steps of a run.
    """

    def __init__(
        self, data: str, console: Console, service_progress: ServiceProgress, run_progress: RunProgress
    ) -> None:
        if data not in SAMPLES:
            raise ConfigError(f"--data {data!r}: {' or '.join(SAMPLES)} is right.")
        self._data = data
        self._sample = SAMPLES[data]
        self._console = console
        self._service_progress = service_progress
        self._run_progress = run_progress
        self._is_named = data != "sample" or "C360_HOME" in os.environ
        self._home = c360_home() if data == "sample" else c360_home() / data
        self._seconds: dict[str, float] = {}
        self._wrong: list[str] = []

    def show(self, *, keep: bool) -> None:
        """Do it all and print it.

        Raises:
            InvariantError: something did not come out as it must; everything is printed before.
        """
        os.environ["C360_HOME"] = str(self._home)
        began = time.monotonic()
        with ExitStack() as until_shown:
            with self._service_progress() as progress, self._timed("start services"):
                if keep:
                    stack.up(self._home, progress)
                else:
                    until_shown.enter_context(stack.attached(self._home, progress))
            self._refuse_other_servers()
            folder = Path(until_shown.enter_context(tempfile.TemporaryDirectory()))
            self._work_and_tell(load_settings(), folder)
            addresses = self._start_servers() if keep else None
        self._tell_timings(time.monotonic() - began)
        self._tell_where_to_look(addresses)
        if self._wrong:
            raise InvariantError("not as it must be: " + "; ".join(self._wrong))

    def _refuse_other_servers(self) -> None:
        """The demo fills what it is connected to: that must be the services that it started."""
        started, used = dotenv_values(connection_file(self._home)), merged_environment(self._home)
        others = sorted(n for names in OWNERS.values() for n in names if n in used and used[n] != started.get(n))
        if others:
            raise ConfigError(
                f"The demo loads sample data, and {', '.join(others)} name other servers than the embedded ones. "
                "Unset these variables, or move .env aside."
            )

    def _start_servers(self) -> tuple[str, str, str]:
        """Addresses of the UI and the API, and a key that opens the customer page of the sample's tenant."""
        with self._timed("start UI and API"):
            login = open_control(load_settings()).login
            key, _ = ApiKeys(login).add(self._sample.tenant_id, "admin", "made by the demo")
            return web.start(web.UI, self._home), web.start(web.API, self._home), key

    def _work_and_tell(self, settings: Settings, folder: Path) -> None:
        with self._timed("fill silos"):
            login = postgres_login(settings, settings.etl_db_name)
            silo_samples.seed(login, open_control(settings), self._data, lambda line: self._say(line))
        with self._timed("write events"):
            written = self._sample.write(folder)
        with self._timed("upload"):
            self._upload(settings, written)
        self._run("run")
        lake = open_lake(settings)
        archive = Archive(lake, open_control(settings).read())
        with open_graph(settings) as graph:
            with self._timed("prove and tell"):
                self._report_accounting(lake)
                self._tell_graph(graph)
                self._tell_journeys(lake, written)
                first = self._tell_reconciliation(archive, graph, lake)
                self._tell_story(graph)
            self._run("run again")
            with self._timed("digest"):
                second = digests(lake, reconcile(archive, graph))
        self._tell_digests(first, second)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds[what] = time.monotonic() - began

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=True)

    def _must(self, what: str, *, hold: bool) -> str:
        if not hold:
            self._wrong.append(what)
        return "" if hold else "  [red]<- not as it must be[/]"

    def _upload(self, settings: Settings, written: Written) -> None:
        landing, today = open_landing(settings), datetime.now(UTC).date()
        for path in (*written.event_files, written.catalog_file):
            landing.put_file(path, folder_for(path, today))

    def _run(self, name: str) -> Outcome:
        with self._run_progress() as progress, self._timed(name):
            outcome = materialise(self._home, EVERYTHING, None, progress)
        if outcome.error:
            raise InvariantError(f"run {outcome.run_id} failed: {outcome.error}")
        self._must(f"checks of {name}: {', '.join(outcome.failed_checks)}", hold=not outcome.failed_checks)
        return outcome

    def _report_accounting(self, lake: Lake) -> None:
        accounts = lake.read(LANDING_FILES)
        total = accounts.select("lines", "landed", "duplicates", "dead", "suppressed").sum().row(0, named=True)
        flag = self._must("the accounting adds up", hold=unbalanced(accounts).is_empty())
        self._say(
            "\n[bold]Accounting[/]  {lines:,} lines = {landed:,} landed + {duplicates:,} duplicates + {dead:,} dead "
            "+ {suppressed:,} suppressed".format(**total)
            + f", in {accounts.height} files{flag}"
        )

    def _tell_graph(self, graph: Graph) -> None:
        labels, types = graph.counts.label_counts(), graph.counts.type_counts()
        table = Table("nodes", "number", "relationships", "number ", title="Graph", title_justify="left")
        for row in range(max(len(labels), len(types))):
            cells: list[str] = []
            for counts in (labels, types):
                name, number = sorted(counts.items())[row] if row < len(counts) else ("", None)
                cells += [name, "" if number is None else f"{number:,}"]
            table.add_row(*cells)
        self._console.print(table)

    def _tell_journeys(self, lake: Lake, written: Written) -> None:
        found = found_against_truth(lake, written)
        archived = lake.scan(EVENTS).select(pl.len()).collect().item()
        if archived != found.events:
            self._say(
                f"[bold]Journeys[/]  {found.ours:,} hold the sample's {found.events:,} events; not compared with the "
                f"truth, for the archive has {archived - found.events:,} events from elsewhere too"
            )
            return
        flag = self._must("every journey is found", hold=found.same == found.true == found.ours)
        self._say(
            f"[bold]Journeys[/]  {found.same:,} of {found.true:,} that the sample's maker knows were found, none more "
            f"and none mixed, from {found.events:,} events{flag}"
        )

    def _tell_reconciliation(self, archive: Archive, graph: Graph, lake: Lake) -> dict[str, str]:
        results = reconcile(archive, graph)
        result = summarise(results)
        flag = self._must("the graph equals its archive", hold=not result["findings"])
        self._say(
            f"[bold]Reconciliation[/]  {result['rows']:,} nodes and relationships compared with the archive, "
            f"{len(result['findings'])} differ{flag}"
        )
        return digests(lake, results)

    def _tell_story(self, graph: Graph) -> None:
        tenant, user = self._sample.tenant_id, self._sample.user_id
        account = account_of_user(graph, tenant, user) or {}
        event = first_event_of_user(graph, tenant, user)
        events = journey_of_event(graph, tenant, event) if event else []
        self._say(f"\n[bold]One customer[/]  {user} of {tenant}: {_who(account)}")
        self._console.print(_story_table(events))
        recommendations = Recommender(graph, tenant).recommend(RecommendationRequest(user, RECOMMENDATIONS))
        for r in recommendations:
            self._say(
                f"  recommended: {r.product_name or r.product_id} ({r.category}), score {r.score:.0f}: {r.reason}"
            )
        self._must(f"a recommendation for {user}", hold=bool(recommendations))

    def _tell_digests(self, first: dict[str, str], second: dict[str, str]) -> None:
        changed = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
        what = f" ({', '.join(changed)} did)" if changed else ""
        flag = self._must(f"a second run changes nothing{what}", hold=not changed)
        one, other = combined_digest(first), combined_digest(second)
        self._say(f"\n[bold]Digest[/]  first run  {one}\n        second run {other}{flag}")

    def _tell_timings(self, total: float) -> None:
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._seconds.items())
        self._say(f"[bold]Seconds[/]  {total:.1f} in all: {stages}")

    def _tell_where_to_look(self, addresses: tuple[str, str, str] | None) -> None:
        prefix = f"C360_HOME={self._home} " if self._is_named else ""
        page = f"/app/customers/{quote(self._sample.user_id)}"
        if addresses:
            dagster, api, key = addresses
            self._say(f"[bold]Dagster UI[/]  {dagster}/asset-groups (stop all with `{prefix}.venv/bin/c360 down`)")
            self._say(f"[bold]Customer page[/]  {api}{page}, key {key}")
        else:
            self._say(
                f"[bold]Dagster UI[/]  `{prefix}.venv/bin/c360 up && {prefix}.venv/bin/c360 dev`, then "
                f"http://127.0.0.1:{web.UI.preferred_port}/asset-groups; `make demo KEEP=1` leaves it running"
            )
            self._say(
                f"[bold]Customer page[/]  `{prefix}.venv/bin/c360 api-keys create --tenant {self._sample.tenant_id}`, "
                f"`{prefix}.venv/bin/c360 api`, then http://127.0.0.1:{web.API.preferred_port}{page}"
            )


@dataclass(frozen=True)
class FoundJourneys:
    """How stitching compares with the truth: events compared, true journeys, ours, and those that are the same."""

    events: int
    true: int
    ours: int
    same: int


def found_against_truth(lake: Lake, written: Written) -> FoundJourneys:
    """Compare partitions: a journey is found when its events are all the events of one journey of ours."""
    truth = pl.read_ndjson(written.truth_file, infer_schema_length=None).filter(pl.col("kind") == "event")
    now = datetime.now(UTC)
    decoded = [
        decode_file(Delivery(p.name, ""), gzip.decompress(p.read_bytes()), now).events for p in written.event_files
    ]
    ids = pl.concat(decoded).select("tenant_id", "event_id", file="source_uri", line="source_line")
    compared = truth.join(ids, on=["file", "line"]).join(lake.read(EVENT_JOURNEY), on=["tenant_id", "event_id"])
    pairs = compared.select(true="journey", ours="journey_id").unique()
    once = [pairs.group_by(side).len().filter(pl.col("len") == 1).select(side) for side in ("true", "ours")]
    same = pairs.join(once[0], on="true").join(once[1], on="ours")
    return FoundJourneys(compared.height, truth["journey"].n_unique(), pairs["ours"].n_unique(), same.height)


def _who(account: dict[str, Any]) -> str:
    if not account.get("email"):
        return "no account in the silos"
    name = account["full_name"] or account["email"]
    plans = f", {' and '.join(account['plans'])} plan" if account["plans"] else ""
    return f"{name}{plans}, {account['tickets']} support tickets, community {account['community']}"


def _story_table(events: list[dict[str, Any]]) -> Table:
    shown = chosen_for_story(events)
    title = f"journey {events[0]['journey_id']}: {len(shown)} of its {len(events):,} events" if events else "no journey"
    table = Table("time", "known as", "action", "product", "linked by", title=title, title_justify="left")
    for e in shown:
        at = e["ts"].to_native().strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(at, e["user_id"], e["action"], e["product_name"] or e["product_id"] or "", e["key_types"])
    return table


def chosen_for_story(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first event under each name that the customer was known by, then purchases, then others; by time."""
    names: set[str] = set()
    ranked = []
    for number, event in enumerate(events):
        is_new_name = event["user_id"] not in names
        names.add(event["user_id"])
        ranked.append((not is_new_name, event["action"] != "purchase", number))
    chosen = sorted(number for _, _, number in sorted(ranked)[:STORY_EVENTS])
    return [{**events[n], "key_types": " ".join(sorted(events[n]["key_types"]))} for n in chosen]
