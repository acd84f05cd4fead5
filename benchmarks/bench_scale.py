"""What a run costs as the archive grows: `make bench-scale`.

For each size an archive of events is made, stitched, and its graph built by import. Then files are dropped and runs are
started as a user starts them, `c360 run` from landing to proof in a process of its own: with 10,000 new events, with
nothing new, and one that compares everything. Each size is measured in services of its own. What was measured is kept
in a file, so that the command goes on where it was broken off.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from synthetic_archive import DAYS, START, TENANT, archive_of, archive_rows, fill, rebuild, services, timed

NOTE = Console(stderr=True)
NEW_EVENTS = 10_000
AT_ONCE = 1_000_000
"""Events that are drawn and put into the archive at once."""
EVENTS_OF_A_USER = 20
PRODUCTS = 20_000
COMMAND = ("-m", "c360_pipeline.cli", "run", "--select", "+key:graph_proofs")
STEPS = """
    SELECT step_key, extract(epoch FROM max(timestamp) - min(timestamp)) AS seconds
    FROM event_logs WHERE run_id = %s AND dagster_event_type IN ('STEP_START', 'STEP_SUCCESS', 'STEP_FAILURE')
    GROUP BY step_key ORDER BY seconds DESC
"""
NEWEST_RUN = "SELECT run_id FROM runs ORDER BY id DESC LIMIT 1"


def drawn(first: int, count: int, users: int, rng: np.random.Generator) -> pl.DataFrame:
    """Events of an archive of so many users, with numbers from `first` on."""
    return archive_rows(pl.DataFrame({
        "n": np.arange(first, first + count), "user": rng.integers(0, users, count),
        "second": np.sort(rng.integers(0, DAYS * 86_400, count)),
        # A few products are in most of the baskets.
        "item": np.minimum(rng.zipf(1.2, count), PRODUCTS) - 1,
        "session": rng.integers(0, 5, count), "is_purchase": rng.integers(0, 5, count) == 0,
    }))  # fmt: skip


def make_archive(count: int) -> None:
    """Put so many events, stitched, into the lake of the settings."""
    from c360_pipeline.connections import open_control, open_lake
    from c360_pipeline.settings import load_settings

    settings = load_settings()
    lake, policy = open_lake(settings), open_control(settings).key_rules.policy()
    rng = np.random.default_rng(count)
    for first in range(0, count, AT_ONCE):
        some = min(AT_ONCE, count - first)
        fill(lake, drawn(first, some, max(count // EVENTS_OF_A_USER, 1), rng), PRODUCTS if first == 0 else 0, policy)
        NOTE.print(f"{first + some:,} events")


def make_graph() -> None:
    """Build the graph of that lake by import."""
    from c360_pipeline.connections import open_lake
    from c360_pipeline.settings import load_settings

    rebuild(archive_of(open_lake(load_settings())), lambda _: None)


def apart(work: Callable[..., None], *arguments: Any) -> float:
    """Seconds of a piece of work in a process of its own: what it needed would be counted as that of runs."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return timed(lambda: process.submit(work, *arguments).result())


def drop_file(landing: Any, folder: Path, first: int, users: int) -> None:
    """A file of new events."""
    from c360_pipeline.stores.s3.landing import EVENTS_PREFIX

    rng = np.random.default_rng(first)
    file = folder / f"new-{first}.jsonl"
    rows = zip(rng.integers(0, users, NEW_EVENTS), rng.integers(0, 5, NEW_EVENTS),
               np.minimum(rng.zipf(1.2, NEW_EVENTS), PRODUCTS) - 1, rng.integers(0, 86_400, NEW_EVENTS),
               strict=True)  # fmt: skip
    day = START.date().replace(month=3, day=2)
    file.write_text("".join(
        json.dumps({"tenantId": TENANT, "userId": f"u{user}", "sessionId": f"u{user}-s{session}", "eventId": f"n{n}",
                    "action": "view", "ts": f"{day}T{s // 3600:02}:{s // 60 % 60:02}:{s % 60:02}Z",
                    "itemId": f"p{item}"}) + "\n"
        for n, (user, session, item, s) in enumerate(rows, first)
    ))  # fmt: skip
    landing.put_file(file, f"{EVENTS_PREFIX}date={day}/")


def run(home: Path, settings: Any) -> dict[str, Any]:
    """`c360 run`, and what it took: seconds, CPU seconds and MiB of its process, seconds by step."""
    import psycopg

    from c360_pipeline.settings import postgres_login

    began = time.perf_counter()
    with (home / "run.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, *COMMAND], stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
    seconds, code = time.perf_counter() - began, os.waitstatus_to_exitcode(status)
    if code:
        NOTE.print((home / "run.log").read_text()[-3000:])
    with psycopg.connect(**postgres_login(settings, settings.dagster_db_name)) as dagster:
        newest = dagster.execute(NEWEST_RUN).fetchone()
        steps = dagster.execute(STEPS, newest).fetchall()
    return {
        "seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "mib": used.ru_maxrss / 1024, "exit": code,
        "steps": {name: float(took) for name, took in steps},
    }  # fmt: skip


def forget_proofs(lake: Any) -> None:
    """Let the next run compare everything."""
    from c360_pipeline.core.catalog.tables import GRAPH_PROOFS

    lake.commits.replace(GRAPH_PROOFS, GRAPH_PROOFS.empty())


def measure(count: int, note: Any) -> None:
    """All figures of one size."""
    from c360_pipeline.connections import open_lake, open_landing
    from c360_pipeline.settings import load_settings

    with services() as home:
        settings = load_settings(home)
        landing, lake = open_landing(settings), open_lake(settings)
        note("archive", {"seconds": apart(make_archive, count)})
        note("import", {"seconds": apart(make_graph)})
        users = max(count // EVENTS_OF_A_USER, 1)
        note("first run, everything compared", run(home, settings))
        for number in range(3):
            drop_file(landing, home, number * NEW_EVENTS, users)
            note(f"{NEW_EVENTS:,} new events, {number + 1}", run(home, settings))
        note("nothing new", run(home, settings))
        forget_proofs(lake)
        note("everything compared again", run(home, settings))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--kept", type=Path, default=Path("bench-scale.json"), help="what was measured so far")
    chosen = parser.parse_args()
    measured: dict[str, Any] = json.loads(chosen.kept.read_text()) if chosen.kept.exists() else {}
    for count in chosen.events:
        if measured.get(str(count), {}).get("everything compared again"):
            continue
        figures = measured[str(count)] = {}

        def note(what: str, found: dict[str, Any], count: int = count, figures: dict[str, Any] = figures) -> None:
            figures[what] = found
            chosen.kept.write_text(json.dumps(measured, indent=1))
            NOTE.print(f"{count:,}", what, {k: round(v, 1) for k, v in found.items() if isinstance(v, float)})

        measure(count, note)
    table = Table("events", "what", "seconds", "CPU s", "MiB", "slowest steps")
    for size, figures in measured.items():
        for what, found in figures.items():
            slowest = ", ".join(f"{name} {took:.1f}" for name, took in list(found.get("steps", {}).items())[:5])
            table.add_row(f"{int(size):,}", what, f"{found['seconds']:.1f}", f"{found.get('cpu', 0):.1f}",
                          f"{found.get('mib', 0):,.0f}", slowest)  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
