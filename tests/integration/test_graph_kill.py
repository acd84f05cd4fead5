"""SIGKILL of the projection and of Neo4j at random points: the graph ends as if nothing had happened."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from event_world import World
from repetition import Trials
from workers import Workers

from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.devstack import stack
from c360_pipeline.devstack.pause import paused
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import graph_digest
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph

KILLS, OF_NEO4J, SEED = 30, 5, 7
WORKER = Path(__file__).parent / "graph_worker.py"


@pytest.fixture
def workers(graph: Graph) -> Iterator[Workers]:
    started = Workers(WORKER)
    yield started
    started.stop()


def change(world: World, rng: random.Random) -> None:
    """Events come, change and go, in the archive and in the journeys."""
    world.land(rng.randrange(20, 60))
    if rng.random() < 0.5:
        events = world.lake.read(EVENTS).sample(6, seed=rng.randrange(1000))
        gone, moved = events.head(3), events.tail(3)
        changed = moved.with_columns(action=pl.lit("purchase"), content_hash=pl.lit(f"changed {rng.random()}"))
        keys = ["tenant_id", "event_date", "event_id"]
        world.lake.commits.merge(EVENTS, changed, gone.select(keys), on=keys)
        Journeys(world.lake).add(changed.clear(), world.policy, gone.select("tenant_id", "event_id"))


def kill_neo4j(home: Path, after: float) -> threading.Timer:
    """Kill the server after some seconds."""
    (pid,) = [status.pid for status in stack.status(home) if status.service == "neo4j"]
    timer = threading.Timer(after, os.kill, (pid, signal.SIGKILL))
    timer.start()
    return timer


@pytest.mark.soak
def test_kills_of_the_projection_and_of_neo4j_leave_the_same_graph(
    trials: Trials, workers: Workers, world: World, home: Path, lake: Lake, graph: Graph
) -> None:
    rng = random.Random(SEED)
    trials(KILLS, SEED)
    killed = of_neo4j = 0
    while killed < KILLS:
        change(world, rng)
        if of_neo4j < OF_NEO4J and killed % (KILLS // OF_NEO4J) == 0:
            timer = kill_neo4j(home, rng.uniform(0.1, 1.5))
            code = workers.do("project", kill_after=rng.uniform(5, 30))
            timer.join()
            with paused(home, "neo4j"):
                of_neo4j += 1
            killed += 1
            continue
        code = workers.do("project", kill_after=rng.uniform(0.1, 2.5))
        assert code in (0, -signal.SIGKILL)
        killed += code == -signal.SIGKILL
    assert workers.do("project") == 0
    assert world.findings() == set()
    survived = graph_digest(reconcile(world.archive, graph))

    graph.checkpoints.forget_all()
    graph.writer.clear()
    world.project()
    assert graph_digest(reconcile(world.archive, graph)) == survived
