"""The whole demo on a Neo4j that has no Graph Data Science."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from c360_pipeline.devstack.distributions import cache_folder, neo4j_distribution

README = Path(__file__).parents[2] / "README.md"
DIGEST = re.compile(r"\b[0-9a-f]{64}\b")

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1_800)]


@pytest.fixture
def cache_without_plugin(tmp_path: Path) -> Path:
    """The cache of programs as it is, but for the plugins of Neo4j, which are left out."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for entry in cache_folder().iterdir():
        if entry != neo4j_distribution():
            (cache / entry.name).symlink_to(entry)
    server = cache / neo4j_distribution().name
    (server / "plugins").mkdir(parents=True)
    for entry in neo4j_distribution().iterdir():
        if entry.name not in ("plugins", "classes.jsa"):
            (server / entry.name).symlink_to(entry)
    return cache


def test_the_demo_makes_the_same_graph_without_the_plugin(cache_without_plugin: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "C360_CACHE": str(cache_without_plugin), "C360_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "c360_pipeline.cli", "demo"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert set(DIGEST.findall(shown.stdout)) <= set(DIGEST.findall(README.read_text("utf-8")))
    assert DIGEST.search(shown.stdout)
    # What was asked of: a procedure of the plugin is not there.
    server_log = (tmp_path / "home" / "logs" / "neo4j.log").read_text("utf-8", errors="replace")
    assert "Started" in server_log
    assert not list((cache_without_plugin / neo4j_distribution().name).glob("*/*gds*"))
