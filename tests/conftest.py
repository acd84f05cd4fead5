"""Embedded services, started once per session on ports and state of their own; a missing one is a failure."""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import hypothesis
import hypothesis.core
import neo4j
import pytest
from dotenv import dotenv_values
from event_world import World
from repetition import IS_SOAK, SoakReport, _examples, trials
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from c360_pipeline.connections import open_control, open_graph, open_lake, open_landing
from c360_pipeline.devstack import stack
from c360_pipeline.settings import Settings, c360_home, load_settings
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.landing import Landing

# The first call of a compiled function takes a second, or ten where it was never compiled.
for profile, examples in (("dev", 25), ("ci", 100), ("soak", 1_000)):
    hypothesis.settings.register_profile(profile, deadline=None, max_examples=examples, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

EMPTY_GRAPH = "MATCH (n) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF 10000 ROWS"
__all__ = ["_examples", "trials"]
LONGEST = (
    "test_a_day",
    "test_streaming",
    "test_pipeline", "test_rebuild", "test_daemon", "test_erasure", "test_api_schema",
    "test_dagster_ui", "test_api", "test_pages", "test_landing", "test_kill", "test_graph_kill",
)  # fmt: skip
GIVEN = str(Path(given).resolve()) if (given := os.environ.get("C360_TEST_ENV")) else ""
"""A file of `NAME=value`, as `c360 env` prints them: services of one's own, whose graph the tests empty."""
OURS = ("NEO4J_", "ETL_DB_", "AWS_", "C360_", "DAGSTER_", "KAFKA_", "CASSANDRA_", "FLINK_")
COUNT = 1_500
"""Events of the world."""
WORLDS = {"world", "shop"}
"""Fixtures that make a world, or something more of it."""
FREE_PORTS = {"postgres": 0, "s3": 0, "neo4j": 0}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --update-golden` writes the golden answers again; look at the difference before you commit it."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden again")


def pytest_configure(config: pytest.Config) -> None:
    """Each run of the properties has a seed of its own, and says which: `pytest --hypothesis-seed=SEED` repeats it."""
    if config.getoption("hypothesis_seed", None) is None:
        # Processes that tests are shared among get the options of the first one.
        config.option.hypothesis_seed = random.SystemRandom().randrange(2**32)
        hypothesis.core.global_force_seed = config.option.hypothesis_seed

    if GIVEN and (config.getoption("numprocesses", None) or 0) > 1:
        raise pytest.UsageError("C360_TEST_ENV names one graph, which tests empty: run them in one process (-n 0).")
    if IS_SOAK and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SoakReport(config.getoption("hypothesis_seed")), "soak-report")


class GoesOnAfterACrash(LoadScopeScheduling):
    """Tests of a module on one worker; where a worker dies, another one does what it had not done.

    That of pytest-xdist 3.8 gives the other one modules without a test left, or a single last test, and both wait for
    ever (its issues 1378 and 1327).
    """

    crashes = 0
    """Workers that died in a test."""

    def remove_node(self, node: WorkerController) -> str | None:
        """Leave what is done with the worker that goes."""
        held = self.assigned_work[node]
        self.assigned_work[node] = {scope: tests for scope, tests in held.items() if not all(tests.values())}
        return super().remove_node(node)

    def _reschedule(self, node: WorkerController) -> None:
        """A worker begins a test when it knows the next one, or that there is none."""
        if node not in self.registered_collections:
            return  # it has just begun
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Modules are shared among workers where `--dist loadscope` says so."""
    return GoesOnAfterACrash(config, log) if config.getoption("dist") == "loadscope" else None


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: object) -> None:
    """The first worker that dies in a run is told as a skip, and another one does its test again; a second one fails.

    A thread of a compiled library (`tokio-rt-worker`) faults once in several thousand tests, in no test of its own.
    """
    if not isinstance(sched, GoesOnAfterACrash):
        return  # others do not do the test again
    sched.crashes += 1
    if sched.crashes == 1:
        file = crashitem.partition("::")[0]
        report.outcome, report.longrepr = "skipped", (file, 0, f"Skipped: done again, for {report.longrepr}")


def pytest_report_header(config: pytest.Config) -> str:
    """The seed of the properties."""
    return f"--hypothesis-seed={config.getoption('hypothesis_seed')}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test is marked by the folder that it stands in; files that take minutes begin first, for two share them.

    Tests of a file that leave the world as it was come first, one after the other: they share it.
    """
    files = {item.path: number for number, item in reversed(list(enumerate(items)))}

    def place(item: pytest.Item) -> tuple[int, int, str]:
        longest = LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)
        mark = item.get_closest_marker("leaves_world")
        return longest, files[item.path], min(set(item.fixturenames) & WORLDS, default="") if mark else "~"

    items.sort(key=place)
    for item in items:
        kind = item.path.relative_to(Path(__file__).parent).parts[0]
        item.add_marker(getattr(pytest.mark, kind))
        if IS_SOAK and item.get_closest_marker("repeats"):
            item.add_marker(pytest.mark.soak)


@pytest.fixture(scope="session", autouse=True)
def _environment_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting of the developer's shell or .env reaches a test."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    cache = os.environ.get("C360_CACHE")
    home = tmp_path_factory.mktemp("c360") / "home"
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(kept):
            patch.delenv(name)
        patch.setenv("C360_HOME", str(home))
        if cache:
            patch.setenv("C360_CACHE", cache)
        # Servers that live for minutes gain nothing from the optimising compiler, which takes half of their time.
        patch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")
        if GIVEN:
            for name, value in dotenv_values(GIVEN).items():
                patch.setenv(name, value or "")
            patch.setenv("C360_HOME", str(home))
        patch.chdir(tmp_path_factory.mktemp("work"))
        yield


@pytest.fixture(scope="session")
def services(_environment_of_its_own: None) -> Iterator[Path]:
    """The state folder by which running services are reached, given or embedded."""
    folder = c360_home()
    if GIVEN:
        yield folder
        return
    with stack.attached(folder, lambda _: None, ports=FREE_PORTS):
        yield folder


@pytest.fixture(scope="session")
def home(services: Path) -> Path:
    """The state folder of embedded services, which may be stopped, and whose files may be looked at."""
    if GIVEN:
        pytest.skip("needs services of its own; C360_TEST_ENV names given ones")
    return services


@dataclass
class Standing:
    """The world that the graph shows, for the next test that leaves it as it was.

    Attributes:
        name: of its bucket and control database; empty when there is none.
        fixtures: of `WORLDS`, those that were made of it.
        state: counts of the graph and versions of the lake's tables, which a test that leaves it does not change.
    """

    name: str = ""
    fixtures: set[str] = field(default_factory=set)
    state: dict[str, Any] = field(default_factory=dict)

    def serves(self, test: pytest.FixtureRequest) -> bool:
        """Whether a test can have it."""
        wanted = WORLDS & set(test.fixturenames)
        return bool(self.name and test.node.get_closest_marker("leaves_world") and wanted == self.fixtures)


@pytest.fixture(scope="session")
def standing() -> Standing:
    return Standing()


@pytest.fixture
def settings(
    services: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, standing: Standing
) -> Settings:
    """Settings with names that no other test uses, or those of the world that a test shares."""
    name = standing.name if standing.serves(request) else uuid4().hex[:12]
    monkeypatch.setenv("C360_BUCKET", f"test-{name}")
    monkeypatch.setenv("ETL_DB_NAME", f"control_{name}")
    made = load_settings(services)
    # Silos of tests are databases of the embedded server.
    monkeypatch.setenv("C360_SOURCE_TEST", made.etl_db_password.get_secret_value())
    monkeypatch.setenv("C360_SOURCE_TEST_HOST", made.etl_db_host)
    return made


@pytest.fixture
def landing(settings: Settings) -> Landing:
    return open_landing(settings)


@pytest.fixture
def lake(settings: Settings, landing: Landing) -> Lake:
    return open_lake(settings)


@pytest.fixture
def control(settings: Settings) -> ControlDb:
    return open_control(settings)


@pytest.fixture(scope="session")
def empty_graph(services: Path, standing: Standing) -> Callable[[], None]:
    """Removes every node; constraints stay."""

    def remove_all() -> None:
        standing.name = ""
        settings = load_settings(services)
        login = (settings.neo4j_user, settings.neo4j_password.get_secret_value())
        with neo4j.GraphDatabase.driver(settings.neo4j_uri, auth=login) as driver, driver.session() as session:
            session.run(EMPTY_GRAPH).consume()

    return remove_all


@pytest.fixture
def graph(
    settings: Settings, empty_graph: Callable[[], None], request: pytest.FixtureRequest, standing: Standing
) -> Iterator[Graph]:
    """An empty graph with its schema, or that of the world that a test shares."""
    if not standing.serves(request):
        empty_graph()
    with open_graph(settings) as opened:
        opened.schema.apply()
        yield opened


@pytest.fixture
def world(
    settings: Settings, lake: Lake, graph: Graph, request: pytest.FixtureRequest, standing: Standing
) -> Iterator[World]:
    """1,500 events of three tenants, stitched and projected."""
    made, failed = World(lake, graph), request.session.testsfailed
    if standing.serves(request):
        made.count, made.is_shared = COUNT, True
    else:
        made.catalogue()
        made.land(COUNT)
        made.project()
    yield made
    standing.name = ""
    if request.node.get_closest_marker("leaves_world") and request.session.testsfailed == failed:
        state = made.state()
        assert not made.is_shared or state == standing.state, "the test does not leave the world as it was"
        standing.name, standing.state = settings.bucket.removeprefix("test-"), state
        standing.fixtures = WORLDS & set(request.fixturenames)
