"""What orchestration costs: `make bench-orchestration`.

Landing by Dagster against the same function called directly, a file dropped into S3 until it is a node in the graph,
and a backfill of 30 dates of three tenants in one run and date by date.
"""

import argparse
import json
import os
import sys
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from synthetic_archive import services, timed

sys.path.append(str(Path(__file__).parents[1] / "tests"))

NOTE = Console(stderr=True)
FIRST = date(2025, 10, 1)
LANDED = ("landed_events", "dead_letters", "landing_files")


class Figures:
    """What was measured: called with at once, and as a table at the end."""

    def __init__(self) -> None:
        self.table = Table("what", "time", "")

    def add(self, what: str, seconds: str, ratio: str) -> None:
        """One row."""
        NOTE.print(f"{what}: {seconds} {ratio}")
        self.table.add_row(what, seconds, ratio)


def write_days(landing: Any, folder: Path, days: int, rows: int) -> None:
    """A file for each of three tenants on each date."""
    from c360_pipeline.stores.s3.landing import EVENTS_PREFIX

    for number in range(days):
        day = FIRST + timedelta(days=number)
        for tenant in ("acme", "globex", "initech"):
            file = folder / f"{tenant}-{day}.jsonl"
            file.write_text("".join(
                json.dumps({"tenantId": tenant, "userId": f"u{n % 97}", "sessionId": f"s{n % 211}", "action": "view",
                            "ts": f"{day}T{n % 24:02}:00:00Z", "itemId": f"p{n % 31}",
                            "eventId": f"{day}-{n}"}) + "\n"
                for n in range(rows)
            ))  # fmt: skip
            landing.put_file(file, f"{EVENTS_PREFIX}date={day}/")


def fresh_bucket(name: str) -> Any:
    """Settings with a bucket and a control database of their own."""
    from c360_pipeline.settings import c360_home, load_settings

    os.environ["C360_BUCKET"], os.environ["ETL_DB_NAME"] = f"bench-{name}", f"bench_{name}"
    return load_settings(c360_home())


def overhead(table: Figures, folder: Path) -> None:
    """An asset, and a run of nothing new, against the functions."""
    import dagster as dg

    from c360_pipeline.connections import open_control, open_lake, open_landing
    from c360_pipeline.definitions import defs
    from c360_pipeline.runs import instance, materialise
    from c360_pipeline.settings import c360_home
    from c360_pipeline.stages.landing.backfill import land
    from c360_pipeline.stages.landing.ingest import Ingest

    def function(settings: Any) -> float:
        write_days(open_landing(settings), folder, 10, 2_000)
        landing, lake = open_landing(settings), open_lake(settings)
        ingest = Ingest(landing, lake, open_control(settings).privacy.suppressed_users())
        return timed(lambda: land(ingest, landing.event_files(), None, lambda _: None))

    function(fresh_bucket("warm"))  # the first of a process compiles and loads what both need
    plain = function(fresh_bucket("direct"))
    settings = fresh_bucket("dagster")
    write_days(open_landing(settings), folder, 10, 2_000)
    with instance(c360_home()) as dagster:
        job = defs.resolve_implicit_global_asset_job_def()
        keys = list(map(dg.AssetKey, LANDED))
        run = timed(lambda: job.execute_in_process(instance=dagster, asset_selection=keys))
    table.add("60,000 events landed: the function", f"{plain:.2f} s", "")
    table.add("… the asset with its six checks, in a run of Dagster", f"{run:.2f} s", f"{run / plain:.2f} x")
    whole = timed(lambda: materialise(c360_home(), "*", None, lambda _: None))
    again = timed(lambda: materialise(c360_home(), "*", None, lambda _: None))
    steps = len(defs.resolve_all_asset_keys()) - 1
    table.add("all assets, 60,000 events, `c360 run`", f"{whole:.1f} s", "")
    table.add("all assets, nothing new", f"{again:.1f} s", f"{again / steps * 1000:.0f} ms an asset")


def backfills(table: Figures, folder: Path) -> None:
    """Thirty dates of three tenants, reread: one run over all, and one run for each."""
    import dagster as dg

    from c360_pipeline.connections import open_landing
    from c360_pipeline.definitions import defs
    from c360_pipeline.runs import instance
    from c360_pipeline.settings import c360_home

    settings = fresh_bucket("backfill")
    write_days(open_landing(settings), folder, 30, 500)
    job, keys = defs.resolve_job_def("landed_files"), list(map(dg.AssetKey, LANDED))
    dates = [str(FIRST + timedelta(days=n)) for n in range(30)]
    ends = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    with instance(c360_home()) as dagster:

        def one_run() -> None:
            tags = dict(zip(ends, (dates[0], dates[-1]), strict=True))
            job.execute_in_process(instance=dagster, asset_selection=keys, tags=tags)

        def date_by_date() -> None:
            for day in dates:
                job.execute_in_process(instance=dagster, asset_selection=keys, partition_key=day)

        one_run()  # everything is landed: both reread what the archive holds
        together, apart = timed(one_run), timed(date_by_date)
    table.add("backfill, 30 dates x 3 tenants, one run", f"{together:.1f} s", "")
    table.add("… a run for each date, in one process", f"{apart:.1f} s", f"{apart / together:.1f} x")


def until_a_node(table: Figures, folder: Path, files: int) -> None:
    """The daemon as in production."""
    from dagster_processes import dagster_dev, wait_until

    from c360_pipeline.connections import open_graph, open_landing
    from c360_pipeline.devstack.service import free_port
    from c360_pipeline.stores.s3.landing import EVENTS_PREFIX

    settings = fresh_bucket("daemon")
    landing, seconds = open_landing(settings), []
    with open_graph(settings) as graph, dagster_dev(free_port(0)):
        graph.writer.clear()
        for number in range(files):
            file = folder / f"drop-{number}.jsonl"
            file.write_text(json.dumps({
                "tenantId": "acme", "userId": "ann", "sessionId": "s", "ts": datetime.now(UTC).isoformat(),
                "action": "view", "eventId": f"drop-{number}",
            }) + "\n")  # fmt: skip
            landing.put_file(file, f"{EVENTS_PREFIX}date={datetime.now(UTC):%Y-%m-%d}/")
            wanted = number + 1
            seconds.append(timed(
                lambda wanted=wanted: wait_until(lambda: graph.counts.label_counts().get("Action", 0) == wanted, 300)
            ))  # fmt: skip
            NOTE.print(f"a node after {seconds[-1]:.1f} s")
    later = sorted(seconds[1:]) or seconds
    table.add("a file dropped, until it is a node; sensor every 30 s", f"{later[len(later) // 2]:.1f} s",
                  f"{later[0]:.1f} to {later[-1]:.1f} s of {len(later)}")  # fmt: skip


def listing(table: Figures, objects: int) -> None:
    """A tick of the sensor over a prefix that is full."""
    from concurrent.futures import ThreadPoolExecutor

    import obstore

    from c360_pipeline.connections import open_landing
    from c360_pipeline.stores.s3.landing import EVENTS_PREFIX

    landing = open_landing(fresh_bucket("listing"))
    NOTE.print(f"{objects:,} objects")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(
            lambda n: obstore.put(landing._objects, f"{EVENTS_PREFIX}date=2025-11-01/{n:06}.jsonl", b"{}\n"),
            range(objects),
        ))  # fmt: skip
    seconds = timed(landing.event_files)
    table.add(f"{objects:,} objects listed", f"{seconds:.1f} s", f"{seconds / objects * 1e6:.0f} µs each")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=6, help="dropped one after the other, with a daemon")
    parser.add_argument("--objects", type=int, default=100_000, help="in a prefix that is listed")
    chosen = parser.parse_args()
    with services(), tempfile.TemporaryDirectory() as folder:
        table = Figures()
        overhead(table, Path(folder))
        backfills(table, Path(folder))
        if chosen.files:
            until_a_node(table, Path(folder), chosen.files)
        if chosen.objects:
            listing(table, chosen.objects)
        Console().print(table.table)


if __name__ == "__main__":
    main()
