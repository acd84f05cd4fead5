"""The API under load on loopback, and what features cost: `make bench-serving`.

One tenant's events, skewed as shops are, in archive and graph; communities and similar products computed; one API
process; a client in a process of its own that asks for recommendations of users it has and has not asked for before,
and for customers. Then the source's statement, as printed, for the same users.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

NOTE = Console(stderr=True)
TENANT = "bench"
CLIENT = Path(__file__).with_name("serving_client.py")
START = datetime(2025, 1, 1, tzinfo=UTC)
PRODUCTS = 5_000
SEED_QUERY = """
    MATCH (u:User {id: $user_id})-[r1:PURCHASED]->(p:Product)<-[r2:PURCHASED]-(similar:User)
    MATCH (similar)-[r3:PURCHASED]->(rec:Product)
    WHERE NOT (u)-[:PURCHASED]->(rec)
    WITH rec, COUNT(DISTINCT similar) AS similarity_score, SUM(r3.count) AS interaction_strength
    RETURN rec.id, rec.name, rec.category, (similarity_score * 10 + interaction_strength) AS total_score
    ORDER BY total_score DESC
    LIMIT 10
"""
"""Source: "Neo4j Integration Guide"."""


def events(count: int) -> pl.DataFrame:
    """Rows of the archive: a twentieth as many users, products of which few are popular, one purchase in twenty."""
    from c360_pipeline.core.lake import EVENTS

    rng = np.random.default_rng(1)
    user = rng.integers(0, max(count // 20, 1), count)
    # Each user has a taste, a tenth of the products, and in it the popular ones are touched most.
    item = (user % 10) * (PRODUCTS // 10) + (PRODUCTS // 10 * rng.random(count) ** 3).astype(np.int64)
    frame = pl.DataFrame(
        {"n": np.arange(count), "user": user, "second": np.sort(rng.integers(0, 60 * 86_400, count)), "item": item,
         "session": rng.integers(0, 5, count), "kind": rng.integers(0, 20, count)}
    )  # fmt: skip
    schema = EVENTS.empty().schema
    made = frame.select(
        event_id=pl.format("e{}", "n"), tenant_id=pl.lit(TENANT), user_id=pl.format("u{}", "user"),
        session_id=pl.format("u{}-s{}", "user", "session"),
        ts=(pl.lit(START) + pl.duration(seconds="second")).cast(schema["ts"]),
        action=pl.when(pl.col("kind") == 0).then(pl.lit("purchase")).otherwise(pl.lit("view")),
        item_id=pl.format("p{}", "item"),
    )  # fmt: skip
    entries = pl.lit([], pl.List(pl.Struct({"key": pl.String, "value": pl.String})))
    dated = made.with_columns(event_date=pl.col("ts").dt.date(), attrs=entries.cast(schema["attrs"]), landed_at="ts")
    return dated.select(
        pl.col(name).cast(dtype) if name in dated.columns else pl.lit(None, dtype).alias(name)
        for name, dtype in schema.items()
    )


def fill(lake: Any, graph: Any, count: int) -> None:
    """Archive, journeys and graph; the graph by import."""
    from bench_graph import rebuild

    from c360_pipeline.core.keys import KeyPolicy, KeyRule
    from c360_pipeline.core.lake import CATALOG, EVENTS
    from c360_pipeline.core.silos import ControlRows
    from c360_pipeline.stores.archive import Archive
    from c360_pipeline.stores.journey_tables import JourneyTables
    from c360_pipeline.stores.journeys import Journeys

    landed = events(count)
    lake.insert_new(EVENTS, landed)
    n = pl.int_range(PRODUCTS)
    lake.insert_new(CATALOG, pl.select(
        tenant_id=pl.lit(TENANT), id=pl.format("p{}", n), name=pl.format("Product {}", n),
        category=pl.format("c{}", n % 20), price=n + 0.5, source_uri=pl.lit("bench"),
    ))  # fmt: skip
    policy = KeyPolicy((KeyRule("*", "user", "userId"), KeyRule("*", "session", "sessionId")))
    journeys = Journeys(lake)
    for batch in landed.iter_slices(100_000):
        journeys.add(batch, policy)
    JourneyTables(lake).publish_all()

    class World:
        """What `rebuild` takes."""

        archive = Archive(lake, ControlRows((), (), {}, {}, ()))

    World.lake = lake  # type: ignore[attr-defined]
    rebuild(World)  # type: ignore[arg-type]


def features(table: Table, lake: Any, graph: Any) -> None:
    """Seconds of each feature, as its asset computes it."""
    from c360_pipeline.connections import neo4j_login
    from c360_pipeline.core import features as of
    from c360_pipeline.core import graph as model
    from c360_pipeline.core import paths, recommend, trends
    from c360_pipeline.core.lake import CATALOG, EVENTS, PRODUCT_SIMILARITIES, USER_COMMUNITIES
    from c360_pipeline.settings import load_settings
    from c360_pipeline.stores.event_graph import ProductGraph
    from c360_pipeline.stores.gds import Gds

    gds = Gds(*neo4j_login(load_settings()))
    kept: dict[str, Any] = {}

    def communities() -> None:
        weights = of.interaction_weights(graph.read(model.VIEWED, TENANT), graph.read(model.PURCHASED, TENANT))
        members, edges = of.number_members(weights)
        found = of.canonical_communities(TENANT, members, gds.louvain("bench", members, edges))
        lake.replace(USER_COMMUNITIES, found)
        graph.update(model.USER_COMMUNITY, model.user_communities(found))
        kept.update(weights=weights, communities=found)

    def similarities() -> None:
        members, edges = of.customers_of_products(kept["weights"])
        pairs = of.shared_customers(gds.node_similarity("bench", members, edges, 20), edges)
        views = lake.scan(EVENTS).filter(pl.col("action") == "view").select("tenant_id", "session_id", "item_id")
        rows = pl.concat([of.similar_by_customers(TENANT, members, pairs), of.similar_by_sessions(views)])
        lake.replace(PRODUCT_SIMILARITIES, rows)
        ProductGraph(lake, graph).project_similarities()

    def candidates() -> None:
        bought = model.purchases(lake.scan(EVENTS).filter(pl.col("action") == "purchase").collect())
        rows = recommend.candidates(TENANT, bought.select("count", user_id="from_id", product_id="to_id"))
        kept["candidates"] = sum(part.height for part in rows)

    def of_events(work: Callable[[pl.DataFrame], object]) -> Callable[[], object]:
        columns = ["tenant_id", "user_id", "session_id", "event_id", "ts", "action"]
        return lambda: work(lake.scan(EVENTS).select(columns).collect())

    for name, work in (
        ("communities, Louvain", communities), ("similar products, node similarity and sessions", similarities),
        ("candidates of all users", candidates),
        ("trending products", lambda: trends.trending(lake.scan(EVENTS), lake.read(CATALOG))),
        ("odd paths", of_events(lambda e: paths.path_anomalies(e, kept["communities"]))),
        ("funnel", of_events(paths.drop_offs)),
    ):  # fmt: skip
        began = time.perf_counter()
        work()
        table.add_row(f"feature: {name}", f"{time.perf_counter() - began:.1f} s", "")


def served(table: Table, graph: Any, users: list[str], seconds: float) -> None:
    """Load by a client in a process of its own."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.devstack.services import free_port
    from c360_pipeline.settings import load_settings
    from c360_pipeline.stores.api_keys import ApiKeys

    key, _ = ApiKeys(open_control(load_settings()).login).add(TENANT, "admin", "bench")
    port = free_port(0)
    os.environ["C360_API_RATE"] = "1000000/second"
    with subprocess.Popen([sys.executable, "-m", "c360_pipeline.cli", "api", "--port", str(port)]) as api:
        try:
            for kind, title, aim in (
                ("first", "recommend, users never asked for", ""),
                ("again", "recommend, warm", "300/s, p99 50 ms"),
                ("customer", "customer as JSON", ""),
                ("page", "customer page", "p99 300 ms"),
                ("track", "track", ""),
            ):
                told = json.loads(subprocess.check_output(
                    [sys.executable, str(CLIENT), kind, str(port), key, str(seconds), json.dumps(users)]
                ))  # fmt: skip
                table.add_row(
                    title, f"{told['rate']:,.0f}/s, p50 {told['p50']:.1f} ms, p99 {told['p99']:.1f} ms",
                    aim + (f", {told['errors']} errors" if told["errors"] else ""),
                )  # fmt: skip
        finally:
            api.terminate()
    sample = users[:50]
    theirs = [timed(lambda u=u: graph.read_only(SEED_QUERY, user_id=u)) for u in sample]
    from c360_pipeline.stores.recommend import Recommender, Wish

    mine = [timed(lambda u=u: Recommender(graph, TENANT).recommend(Wish(u, 10))) for u in sample]
    ratio = statistics.median(a / b for a, b in zip(theirs, mine, strict=True))
    table.add_row(
        "the source's statement, the same users", f"{statistics.median(theirs) * 1e3:.1f} ms",
        f"{ratio:.1f} x ours of {statistics.median(mine) * 1e3:.1f} ms without the cache; aim 10 x",
    )  # fmt: skip


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    chosen = parser.parse_args()
    from c360_pipeline.connections import open_graph, open_lake
    from c360_pipeline.devstack import stack
    from c360_pipeline.settings import load_settings

    with tempfile.TemporaryDirectory() as where:
        os.environ["C360_HOME"] = where
        ports = {"postgres": 0, "s3": 0, "neo4j": 0}
        with stack.attached(Path(where), lambda _: None, ports=ports), open_graph(load_settings(Path(where))) as graph:
            graph.apply_schema()
            lake = open_lake(load_settings())
            NOTE.print(f"{chosen.events:,} events")
            fill(lake, graph, chosen.events)
            table = Table("what", "measured", "of the aim")
            features(table, lake, graph)
            NOTE.print("load")
            rng = np.random.default_rng(2)
            there = chosen.events // 20
            users = [f"u{n}" for n in rng.choice(there, min(4_000, there), replace=False)]
            served(table, graph, users, chosen.seconds)
            Console().print(table)


if __name__ == "__main__":
    main()
