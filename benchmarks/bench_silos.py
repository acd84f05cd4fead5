"""Silos against their floor and their peers, on the same tables, in the same run: `make bench-silos`.

Three tables of ratios:

- reading a table of play events into Arrow, typed as in the lake: ours; the floor, a bare `COPY … TO STDOUT (FORMAT
  binary)` whose bytes are thrown away; psycopg's fetchmany over a server-side cursor; `pandas.read_sql` in chunks;
- writing nodes and relationships: ours, which merges by key and checks ends; a bare `UNWIND … CREATE`; and one CREATE
  statement per row, as "Customer 360 Graph Pipeline" does it, over as many rows as are sensible;
- a whole run, from Postgres over the lake into the graph, and the run after 0.1 % of the rows changed.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import psycopg
from rich.console import Console
from rich.table import Table

NOTE = Console(stderr=True)
FETCHED_AT_ONCE = 10_000
ROW_BY_ROW = 2_000
CONTROL_ROWS = """
    WITH db AS (
        INSERT INTO source_databases (tenant_id, db_name, host, port, db_user, password_ref)
        VALUES ('bench', %(db)s, %(host)s, %(port)s, %(user)s, 'env:C360_SOURCE_BENCH') RETURNING database_id
    ), accounts AS (
        INSERT INTO source_tables (database_id, table_name, key_columns, cursor_column, snapshot_mode)
        SELECT database_id, 'accounts', '{account_id}', 'changed_at', 'incremental' FROM db RETURNING table_id
    ), plays AS (
        INSERT INTO source_tables (database_id, table_name, key_columns, cursor_column, snapshot_mode)
        SELECT database_id, 'play_events', '{play_event_id}', 'event_timestamp', 'incremental' FROM db
        RETURNING table_id
    ), labels AS (
        INSERT INTO node_label_mappings (table_id, node_label)
        SELECT table_id, 'Account' FROM accounts UNION ALL SELECT table_id, 'PlayEvent' FROM plays
    )
    INSERT INTO relationship_mappings (from_label, to_label, relationship_type, join_condition)
    VALUES ('Account', 'PlayEvent', 'WATCHED', 'a.account_id = p.account_id')
"""
TABLES = """
    CREATE TABLE accounts (
        account_id bigint PRIMARY KEY, email text NOT NULL, full_name text, country text,
        changed_at timestamptz NOT NULL
    );
    CREATE TABLE play_events (
        play_event_id bigint PRIMARY KEY, account_id bigint NOT NULL, media_id int NOT NULL, action text NOT NULL,
        event_timestamp timestamptz NOT NULL, device_fingerprint text, position_seconds int
    );
"""
FILL_ACCOUNTS = """
    INSERT INTO accounts SELECT n, 'customer' || n || '@example.com', 'Customer ' || n,
           (ARRAY['DE','FR','US'])[1 + n %% 3],
           timestamptz '2025-01-01' + n * interval '1 second' FROM generate_series(1, %s::bigint) n
"""
FILL_PLAYS = """
    INSERT INTO play_events SELECT n, 1 + n * 7919 %% %s::bigint, n %% 9973,
           CASE n %% 2 WHEN 0 THEN 'play' ELSE 'stop' END,
           timestamptz '2025-01-01' + n * interval '1 second', 'device-' || n %% 50021, n %% 5400
    FROM generate_series(1, %s::bigint) n
"""
CHANGE = (
    "UPDATE accounts SET full_name = full_name || '!', changed_at = now() WHERE account_id %% 1000 = 1",
    "UPDATE play_events SET position_seconds = 1, event_timestamp = now() WHERE play_event_id %% 1000 = 1",
)
CREATE_NODES = "UNWIND $rows AS row CREATE (n:PlayEvent {tenant_id: $tenant_id}) SET n += row"
CREATE_PAIRS = """
    UNWIND $rows AS row
    MATCH (a:Account {tenant_id: $tenant_id, account_id: row.from_account_id})
    MATCH (b:PlayEvent {tenant_id: $tenant_id, play_event_id: row.to_play_event_id})
    CREATE (a)-[:WATCHED]->(b)
"""


class World:
    """A silo of its own, its control database and lake, and the embedded graph."""

    def __init__(self, accounts: int, plays: int) -> None:
        from c360_pipeline.connections import open_control, open_lake
        from c360_pipeline.settings import load_settings, postgres_login

        name = uuid4().hex[:8]
        os.environ |= {"C360_BUCKET": f"bench-{name}", "ETL_DB_NAME": f"bench_control_{name}"}
        self.settings = load_settings()
        self.control, self.lake = open_control(self.settings), open_lake(self.settings)
        self.login = {**postgres_login(self.settings, f"bench_silo_{name}")}
        os.environ["C360_SOURCE_BENCH"] = str(self.login["password"])
        os.environ["C360_SOURCE_BENCH_HOST"] = f"{self.login['host']}:{self.login['port']}"
        control_login = postgres_login(self.settings, self.settings.etl_db_name)
        with psycopg.connect(**{**self.login, "dbname": "postgres"}, autocommit=True) as server:
            server.execute(f'CREATE DATABASE "{self.login["dbname"]}"'.encode())
        with psycopg.connect(**self.login) as silo:
            silo.execute(TABLES.encode())
            silo.execute(FILL_ACCOUNTS.encode(), (accounts,))
            silo.execute(FILL_PLAYS.encode(), (accounts, plays))
        with psycopg.connect(**self.login, autocommit=True) as silo:
            silo.execute("VACUUM ANALYZE")
        with psycopg.connect(**control_login) as rows:
            names = {**self.login, "db": self.login["dbname"]}
            rows.execute(CONTROL_ROWS.encode(), {k: names[k] for k in ("db", "host", "port", "user")})

    def extract(self) -> tuple[Any, Any]:
        """The plan of the play events, and a function that opens their silo."""
        from c360_pipeline.connections import open_silo
        from c360_pipeline.core.silos.plan import make_plan
        from c360_pipeline.stages.silos.run import found_tables

        rows = self.control.read()
        extracts = make_plan(rows, found_tables(rows, open_silo)).extracts
        return next(e for e in extracts if e.label == "PlayEvent"), lambda: open_silo(rows.databases[0])

    def run(self) -> float:
        """Seconds of one run from Postgres into the graph."""
        from c360_pipeline.connections import open_graph, open_silo
        from c360_pipeline.stages.projection.silos import SiloGraph
        from c360_pipeline.stages.silos.run import SiloRun

        started = time.perf_counter()
        with self.control.runs.logged_run("bench") as log:
            SiloRun(self.control, self.lake, open_silo, uuid4().hex, log, NOTE.print).load()
        loaded = time.perf_counter() - started
        with open_graph(self.settings) as graph:
            silos = SiloGraph(self.lake, graph, self.control.read())
            silos.project_nodes()
            nodes = time.perf_counter() - started
            silos.project_relationships()
        seconds = time.perf_counter() - started
        NOTE.print(f"lake {loaded:.1f} s, nodes {nodes - loaded:.1f} s, relationships {seconds - nodes:.1f} s")
        return seconds


def timed(work: Callable[[], object], repeat: int) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def ours(world: World, extract: Any, open_silo: Callable[[], Any]) -> int:
    """Batches of the lake's types, over ADBC."""
    with open_silo().snapshot() as snapshot:
        return sum(batch.height for batch in snapshot.rows(extract))


def copy_binary(world: World, extract: Any, _: object) -> int:
    """The bytes of a COPY, thrown away."""
    with (
        psycopg.connect(**world.login) as silo,
        silo.cursor() as cursor,
        cursor.copy(f"COPY ({selected(extract)}) TO STDOUT (FORMAT binary)".encode()) as copy,
    ):
        return sum(1 for _ in copy) - 1  # the trailer


def fetchmany(world: World, extract: Any, _: object) -> int:
    """Tuples from a server-side cursor, made into frames."""
    total = 0
    with psycopg.connect(**world.login) as silo, silo.cursor(name="c") as cursor:
        cursor.execute(selected(extract).encode())
        while rows := cursor.fetchmany(FETCHED_AT_ONCE):
            total += pl.DataFrame(rows, schema=extract.lake_schema, orient="row").height
    return total


def read_sql(world: World, extract: Any, _: object) -> int:
    """Chunks of pandas."""
    import pandas as pd
    import sqlalchemy

    login = world.login
    url = sqlalchemy.URL.create(
        "postgresql+psycopg", login["user"], login["password"], login["host"], login["port"], login["dbname"]
    )
    with sqlalchemy.create_engine(url).connect().execution_options(stream_results=True) as connection:
        chunks = pd.read_sql(sqlalchemy.text(selected(extract)), connection, chunksize=100_000)
        return sum(pl.from_pandas(chunk).height for chunk in chunks)


def selected(extract: Any) -> str:
    """What all read."""
    return f"SELECT {', '.join(c.name for c in extract.columns)} FROM play_events"  # noqa: S608 - a table of ours


def compare_reads(world: World, plays: int, repeat: int) -> None:
    """Rows per second into Arrow."""
    extract, open_silo = world.extract()
    seconds = {}
    for read in (ours, copy_binary, fetchmany, read_sql):
        if (found := read(world, extract, open_silo)) != plays:
            raise SystemExit(f"{read.__name__} read {found:,} of {plays:,} rows")
        seconds[read.__name__] = timed(
            lambda read=read: read(world, extract, open_silo), repeat if read in (ours, copy_binary) else 1
        )
    table = Table("reading", "seconds", "rows/s", "of the floor", "ours is", title=f"{plays:,} play events")
    for name, taken in seconds.items():
        table.add_row(name, f"{taken:.2f}", f"{plays / taken:,.0f}", f"{seconds['copy_binary'] / taken:.2f}",
                      f"{taken / seconds['ours']:.1f} x")  # fmt: skip
    Console().print(table)


class Writes:
    """Ways to write the same rows into the same graph."""

    def __init__(self, world: World, graph: Any, rows: int, repeat: int) -> None:
        from c360_pipeline.core.silos.control_rows import node_rows
        from c360_pipeline.core.silos.joins import relationship_kind
        from c360_pipeline.stages.projection.silos import label_tables

        control = world.control.read()
        labels = label_tables(world.lake, control)
        self.graph, self.repeat = graph, repeat
        self.kind = relationship_kind(control.relationships[0], {name: found.kind for name, found in labels.items()})
        batches = world.lake.batches(labels["PlayEvent"].tables[0])
        self.plays = node_rows(self.kind.target, pl.concat(islice(batches, rows // 100_000 + 1)).head(rows))
        self.pairs = self.plays.select("tenant_id", from_account_id="account_id", to_play_event_id="play_event_id")
        graph.writer.clear()
        graph.schema.apply([found.kind for found in labels.values()])
        for batch in world.lake.batches(labels["Account"].tables[0]):
            graph.writer.merge(self.kind.source, node_rows(self.kind.source, batch))

    def bare(self, statement: str, frame: pl.DataFrame) -> None:
        """The statement over batches."""
        from c360_pipeline.stores.neo4j.writer import batches, to_rows

        for tenant_id, batch in batches(frame):
            self.graph.run(statement, tenant_id=tenant_id, rows=to_rows(batch))

    def row_by_row(self, statement: str, frame: pl.DataFrame) -> None:
        """The statement over single rows."""
        from c360_pipeline.stores.neo4j.writer import to_rows

        for row in to_rows(frame.head(ROW_BY_ROW).drop("tenant_id")):
            self.graph.run(statement, tenant_id="bench", rows=[row])

    def rate(self, write: Callable[[], object], count: int, *, with_nodes: bool) -> float:
        """Rows per second, into a graph without play events or with those that relationships need."""
        taken = []
        for _ in range(self.repeat):
            self.graph.writer.clear_label("PlayEvent")
            if with_nodes:
                self.graph.writer.merge(self.kind.target, self.plays)
            started = time.perf_counter()
            write()
            taken.append(time.perf_counter() - started)
        return count / statistics.median(taken)


def compare_writes(world: World, rows: int, repeat: int) -> None:
    """Nodes and relationships per second."""
    from c360_pipeline.connections import open_graph

    table = Table("writing", "per second", "of the floor", title=f"{rows:,} play events and their relationships")
    with open_graph(world.settings) as graph:
        writes = Writes(world, graph, rows, repeat)
        for what, frame, bare, kind in (
            ("nodes", writes.plays, CREATE_NODES, writes.kind.target),
            ("relationships", writes.pairs, CREATE_PAIRS, writes.kind),
        ):
            few = min(ROW_BY_ROW, frame.height)
            need = what == "relationships"
            rates = {
                "ours": writes.rate(partial(graph.writer.merge, kind, frame), frame.height, with_nodes=need),
                "UNWIND … CREATE": writes.rate(partial(writes.bare, bare, frame), frame.height, with_nodes=need),
                "a statement per row": writes.rate(partial(writes.row_by_row, bare, frame), few, with_nodes=need),
            }
            for name, rate in rates.items():
                table.add_row(f"{what}, {name}", f"{rate:,.0f}", f"{rate / rates['UNWIND … CREATE']:.2f}")
    Console().print(table)


def compare_runs(world: World) -> None:
    """A run over everything, and one after a thousandth of the rows changed."""
    full = world.run()
    with psycopg.connect(**world.login) as silo:
        for statement in CHANGE:
            silo.execute(statement.replace("%%", "%").encode())
    changed = world.run()
    idle = world.run()
    table = Table("run", "seconds", "of the first")
    for name, seconds in (("first, all rows", full), ("0.1 % changed", changed), ("nothing changed", idle)):
        table.add_row(name, f"{seconds:.1f}", f"{seconds / full:.1%}")
    Console().print(table)


def main() -> None:
    """Fill the tables, run the contenders, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--plays", type=int, default=5_000_000)
    parser.add_argument("--written", type=int, default=100_000, help="play events of the second table")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    from c360_pipeline.devstack import stack
    from c360_pipeline.settings import merged_environment

    with (
        tempfile.TemporaryDirectory(prefix="c360-bench-") as home,
        stack.attached(Path(home), lambda _: None, ports={"postgres": 0, "s3": 0, "neo4j": 0}),
    ):
        # A graph of its own: it is emptied.
        os.environ |= {**merged_environment(Path(home), {}), "C360_HOME": home}
        world = World(arguments.accounts, arguments.plays)
        NOTE.print(f"{arguments.accounts:,} accounts and {arguments.plays:,} play events")
        compare_reads(world, arguments.plays, arguments.repeat)
        compare_runs(world)
        compare_writes(world, arguments.written, arguments.repeat)


if __name__ == "__main__":
    main()
