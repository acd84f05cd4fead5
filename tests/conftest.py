"""Embedded services, started once per session on ports and state of their own; a missing one is a failure."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

FREE_PORTS = {"postgres": 0, "s3": 0, "neo4j": 0}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test is marked by the folder that it stands in."""
    for item in items:
        kind = item.path.relative_to(Path(__file__).parent).parts[0]
        item.add_marker(getattr(pytest.mark, kind))


@pytest.fixture(scope="session", autouse=True)
def _environment_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting of the developer's shell or .env reaches a test."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NEO4J_", "ETL_DB_", "AWS_", "C360_", "DAGSTER_"))}
    cache = os.environ.get("C360_CACHE")
    home = tmp_path_factory.mktemp("c360") / "home"
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(kept):
            patch.delenv(name)
        patch.setenv("C360_HOME", str(home))
        if cache:
            patch.setenv("C360_CACHE", cache)
        patch.chdir(tmp_path_factory.mktemp("work"))
        yield


@pytest.fixture(scope="session")
def home(_environment_of_its_own: None) -> Iterator[Path]:
    """The state folder of running services."""
    from c360_pipeline.devstack import stack
    from c360_pipeline.settings import c360_home

    folder = c360_home()
    with stack.attached(folder, lambda _: None, ports=FREE_PORTS):
        yield folder
