"""Waits for a line of stdin, then projects: so it can be killed without waiting for imports."""

import sys

from c360_pipeline.connections import open_graph, open_lake
from c360_pipeline.settings import load_settings
from c360_pipeline.stages.projection.corrections import bring_up
from c360_pipeline.stages.projection.events import EventGraph, ProductGraph
from c360_pipeline.stores.neo4j import writer as writing

# Many statements, so that a kill has many places to hit.
writing.BATCH_ROWS = 50
sys.stdout.write("ready\n")
sys.stdout.flush()
sys.stdin.readline()
settings = load_settings()
lake = open_lake(settings)
with open_graph(settings) as graph:
    ProductGraph(lake, graph).project()
    EventGraph(lake, graph, ()).project()
    bring_up(lake, graph)
