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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from synthetic_archive import DAYS, TENANT, archive_of, archive_rows, fill, rebuild, services, timed

NOTE = Console(stderr=True)
CLIENT = Path(__file__).with_name("serving_client.py")
PRODUCTS = 5_000
LOADS = (
    ("first", "recommend, users never asked for", ""),
    ("new", "recommend, users never asked for", "p99 50 ms"),
    ("again", "recommend, warm", "1,000/s, p99 20 ms"),
    ("alone", "recommend, warm", ""),
    ("customer", "customer as JSON", ""),
    ("page", "customer page", "p99 300 ms"),
    ("track", "track", ""),
)
"""What the client asks for."""
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
    rng = np.random.default_rng(1)
    user = rng.integers(0, max(count // 20, 1), count)
    # Each user has a taste, a tenth of the products, and in it the popular ones are touched most.
    item = (user % 10) * (PRODUCTS // 10) + (PRODUCTS // 10 * rng.random(count) ** 3).astype(np.int64)
    second = np.sort(rng.integers(0, DAYS * 86_400, count))
    return archive_rows(pl.DataFrame({
        "n": np.arange(count), "user": user, "second": second, "item": item,
        "session": rng.integers(0, 5, count), "is_purchase": rng.integers(0, 20, count) == 0,
    }))  # fmt: skip


def features(table: Table, lake: Any, graph: Any) -> None:
    """Seconds of each feature, as its asset computes it."""
    from c360_pipeline.core.catalog.feature_tables import PRODUCT_SIMILARITIES, USER_COMMUNITIES
    from c360_pipeline.core.catalog.tables import CATALOG, EVENTS
    from c360_pipeline.core.features import algorithms, leads, paths, recommend, similar_products, trends
    from c360_pipeline.core.features import communities as of
    from c360_pipeline.core.projection import graph as model
    from c360_pipeline.stages.projection.events import ProductGraph

    kept: dict[str, Any] = {}

    def communities() -> None:
        weights = of.interaction_weights(
            graph.audit.rows(model.VIEWED, TENANT), graph.audit.rows(model.PURCHASED, TENANT)
        )
        members, edges = of.number_members(weights)
        found = of.canonical_communities(TENANT, members, algorithms.louvain(members, edges))
        lake.commits.replace(USER_COMMUNITIES, found)
        graph.writer.update(model.USER_COMMUNITY, model.user_communities(found))
        kept.update(weights=weights, communities=found)

    def similarities() -> None:
        members, edges = similar_products.customers_of_products(kept["weights"])
        pairs = similar_products.shared_customers(algorithms.node_similarity(edges, 20), edges)
        views = lake.scan(EVENTS).filter(pl.col("action") == "view").select("tenant_id", "session_id", "item_id")
        met = leads.interactions(lake.scan(EVENTS).filter(pl.col("tenant_id") == TENANT))
        usual = leads.Settings().regularisation
        rows = pl.concat([
            similar_products.similar_by_customers(TENANT, members, pairs), similar_products.similar_by_sessions(views),
            leads.lead_rows(TENANT, leads.learned(leads.interests(met), [usual])[usual]),
        ])  # fmt: skip
        lake.commits.replace(PRODUCT_SIMILARITIES, rows)
        ProductGraph(lake, graph).project_similarities()

    def candidates() -> None:
        rows = lake.scan(EVENTS).filter(pl.col("action") == "purchase").rename({"user_id": model.CUSTOMER_ID})
        bought = model.purchases(rows.collect())
        found = recommend.candidates(TENANT, bought.select("count", user_id="from_id", product_id="to_id"))
        kept["candidates"] = sum(part.height for part in found)

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
        seconds = timed(work)
        NOTE.print(f"{name}: {seconds:.1f} s")
        table.add_row(f"feature: {name}", f"{seconds:.1f} s", "")


def served(table: Table, graph: Any, users: list[str], seconds: float) -> None:
    """Load by a client in a process of its own."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.devstack.service import free_port
    from c360_pipeline.settings import load_settings
    from c360_pipeline.stores.postgres.api_keys import ApiKeys

    key, _ = ApiKeys(open_control(load_settings()).login).add(TENANT, "admin", "bench")
    port = free_port(0)
    os.environ["C360_API_RATE"] = "1000000/second"
    told: dict[str, dict[str, float]] = {}
    with subprocess.Popen([sys.executable, "-m", "c360_pipeline.cli", "api", "--port", str(port)]) as api:
        try:
            for kind, title, aim in LOADS:
                told[kind] = seen = json.loads(subprocess.check_output(
                    [sys.executable, str(CLIENT), kind, str(port), key, str(seconds), json.dumps(users)]
                ))  # fmt: skip
                if seen["errors"]:
                    raise RuntimeError(f"{title}: {seen['errors']} errors")
                said = f"{seen['rate']:,.0f}/s, p50 {seen['p50']:.1f} ms, p99 {seen['p99']:.1f} ms"
                NOTE.print(title, said)
                table.add_row(f"{title}, {seen['connections']} at once", said, aim)
        finally:
            api.terminate()
    compare_with_source(table, graph, users[:50], told["alone"]["p50"] / 1e3)


def compare_with_source(table: Table, graph: Any, users: list[str], warm_seconds: float) -> None:
    """The source's statement for some users, one after the other, against ours with and without the API's cache."""
    from c360_pipeline.reads.recommend import RecommendationRequest, Recommender

    theirs = [timed(lambda u=u: graph.read_only(SEED_QUERY, user_id=u)) for u in users]
    mine = [timed(lambda u=u: Recommender(graph, TENANT).recommend(RecommendationRequest(u, 10))) for u in users]
    their_median, my_median = statistics.median(theirs), statistics.median(mine)
    table.add_row("the source's statement, the same users", f"{their_median * 1e3:.1f} ms", "")
    table.add_row(
        "… by ours", f"{their_median / warm_seconds:.1f} x by the API, warm, {warm_seconds * 1e3:.1f} ms",
        f"{their_median / my_median:.1f} x in the graph, {my_median * 1e3:.1f} ms; aim 10 x",
    )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    chosen = parser.parse_args()
    from c360_pipeline.connections import open_graph, open_lake
    from c360_pipeline.settings import load_settings

    with services() as home, open_graph(load_settings(home)) as graph:
        graph.schema.apply()
        lake = open_lake(load_settings())
        NOTE.print(f"{chosen.events:,} events")
        fill(lake, events(chosen.events), PRODUCTS)
        rebuild(archive_of(lake), NOTE.print)
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
