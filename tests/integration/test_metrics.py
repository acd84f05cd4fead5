"""The endpoint that Prometheus scrapes, over real stores."""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl
from event_world import World
from prometheus_client.parser import text_string_to_metric_families

from c360_pipeline.cli.metrics import exporter
from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.settings import c360_home, load_settings
from c360_pipeline.stores.local.metrics import Figure, Metrics

Samples = dict[tuple[str, str], float]


@contextmanager
def served() -> Iterator[str]:
    """`c360 metrics` on a free port; yields its address."""
    command = [sys.executable, "-m", "c360_pipeline.cli", "metrics", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield process.stderr.readline().strip()
        finally:
            process.terminate()


def scraped(address: str) -> Samples:
    """By name and the value of the first label."""
    with urllib.request.urlopen(address, timeout=60) as response:  # noqa: S310 - http on loopback
        text = response.read().decode()
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_figures_say_how_far_the_graph_is_behind(world: World) -> None:
    Metrics(c360_home() / "metrics").write("some_stage", [Figure("graph_statements", "Statements.", 7, {"stage": "x"})])
    with served() as address:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", address)
        found = scraped(address)
    tenants = world.lake.count_by(EVENTS, "tenant_id")["tenant_id"].to_list()
    assert {t for name, t in found if name == "c360_graph_lag_seconds"} == set(tenants)
    assert all(found["c360_graph_lag_seconds", tenant] == 0 for tenant in tenants)
    assert sum(v for (name, _), v in found.items() if name == "c360_archived_events") == world.count
    assert {found["c360_up", service] for service in ("lake", "landing", "neo4j")} == {1.0}
    assert found["c360_waiting_files", ""] == 0
    assert found["c360_graph_statements", "x"] == 7
    assert found["c360_figures_age_seconds", "some_stage"] < 60

    newer = world.lake.read(EVENTS).filter(pl.col("tenant_id") == "acme").top_k(1, by="landed_at")
    later = pl.col("landed_at") + pl.duration(hours=1)
    world.lake.commits.insert_new(
        EVENTS, newer.with_columns(event_id=pl.lit("late"), landed_at=later)
    )  # and not projected
    with served() as address:
        behind = scraped(address)
    assert {tenant: behind["c360_graph_lag_seconds", tenant] for tenant in tenants} == {
        tenant: 3600.0 if tenant == "acme" else 0.0 for tenant in tenants
    }


def test_what_does_not_answer_is_said_and_the_rest_goes_on(world: World) -> None:
    settings = load_settings(c360_home(), {**os.environ, "NEO4J_URI": "bolt://127.0.0.1:9", "NEO4J_PASSWORD": "x"})
    families = {family.name: family for family in exporter(c360_home(), settings).collect()}
    up = {sample.labels["service"]: sample.value for sample in families["c360_up"].samples}
    assert up == {"lake": 1.0, "landing": 1.0, "neo4j": 0.0}
    assert "c360_archived_events" in families
