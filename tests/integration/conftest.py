"""Stores on the embedded services; each test has a bucket, a control database and the graph to itself."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import neo4j
import pytest

from c360_pipeline.resources import open_control, open_graph, open_lake, open_landing
from c360_pipeline.settings import Settings, load_settings
from c360_pipeline.stores.control import ControlDb
from c360_pipeline.stores.graph import Graph
from c360_pipeline.stores.lake import Lake
from c360_pipeline.stores.landing import Landing

EMPTY_GRAPH = "MATCH (n) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF 10000 ROWS"


@pytest.fixture
def settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with names that no other test uses."""
    name = uuid4().hex[:12]
    monkeypatch.setenv("C360_BUCKET", f"test-{name}")
    monkeypatch.setenv("ETL_DB_NAME", f"control_{name}")
    return load_settings(home)


@pytest.fixture
def landing(settings: Settings) -> Landing:
    return open_landing(settings)


@pytest.fixture
def lake(settings: Settings, landing: Landing) -> Lake:
    return open_lake(settings)


@pytest.fixture
def control(settings: Settings) -> ControlDb:
    return open_control(settings)


@pytest.fixture
def graph(settings: Settings) -> Iterator[Graph]:
    """An empty graph with its schema."""
    login = (settings.neo4j_user, settings.neo4j_password.get_secret_value())
    with neo4j.GraphDatabase.driver(settings.neo4j_uri, auth=login) as driver, driver.session() as session:
        session.run(EMPTY_GRAPH).consume()
    with open_graph(settings) as opened:
        opened.apply_schema()
        yield opened
