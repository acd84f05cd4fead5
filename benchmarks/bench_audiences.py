"""What audiences cost: worked out anew, by what changed, and where nothing did; against a scan of the same columns.

make bench-audiences ARGS="--events 1000000"
"""

import argparse
import resource
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from synthetic_archive import timed

from c360_pipeline.core.audiences.definition import read_audience
from c360_pipeline.core.catalog.tables import EVENTS, VISITOR_DECISIONS
from c360_pipeline.stages.audiences.facts import FactsOfTenants
from c360_pipeline.stages.audiences.refresh import ASKED, Members
from c360_pipeline.stages.audiences.trials import Trials
from c360_pipeline.stores.delta.lake import Lake

START, DAYS = datetime(2026, 1, 1, tzinfo=UTC), 90
NOW = START + timedelta(days=DAYS, hours=-1)
CONDITIONS = [
    {"did": "purchase", "at_least": 2, "within_days": 30},
    {"all": [{"did": "purchase"}, {"not": {"did": "*", "within_days": 14}}]},
    {"sequence": [{"did": "view"}, {"did": "purchase"}], "each_within_hours": 24, "within_days": 30},
    {"any": [{"spent": {"at_least": 500}}, {"trait": "plan", "is": "gold"}]},
    {"all": [{"consent": "ads", "is": "granted"}, {"did": "view", "item": [f"p{n}" for n in range(50)]}]},
]


def events(count: int, first: int, seed: int) -> pl.DataFrame:
    """Events of a tenth as many users, a third of them before a login."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, max(10, count // 10), count)
    moments = np.sort(rng.integers(0, DAYS * 86_400, count)) if first == 0 else np.full(count, DAYS * 86_400 - 7_200)
    kinds = EVENTS.empty().schema
    names = pl.DataFrame({"user": user, "seconds": moments, "number": np.arange(first, first + count)})
    is_anonymous = pl.Series(rng.random(count) < 0.33)
    says = rng.random(count)
    rows = names.select(
        tenant_id=pl.lit("acme"), event_id=pl.format("e{}", "number"),
        user_id=pl.when(~is_anonymous).then(pl.format("u{}", "user")), anonymous_id=pl.format("v{}", "user"),
        ts=(pl.lit(START) + pl.duration(seconds="seconds")).cast(kinds["ts"]),
        action=pl.Series(rng.choice(["view", "view", "view", "cart", "purchase"], count)),
        item_id=pl.Series(rng.integers(0, 2_000, count)).map_elements(lambda n: f"p{n}", return_dtype=pl.String),
    ).with_columns(event_date=pl.col("ts").dt.date(), landed_at=pl.lit(START).cast(kinds["landed_at"]))  # fmt: skip
    maps = {
        "traits": [{"plan": "gold"} if one < 0.02 else None for one in says],
        "consent": [{"ads": "granted"} if one > 0.98 else None for one in says],
    }
    rows = rows.with_columns(pl.Series(name, values, kinds[name]) for name, values in maps.items())
    others = [pl.lit(None, dtype).alias(name) for name, dtype in kinds.items() if name not in rows.columns]
    return rows.with_columns(others).select(list(kinds))


def make(folder: str, count: int) -> None:
    """Write the archive; in a process of its own, whose memory is not counted."""
    lake = opened(folder)
    lake.commits.append(VISITOR_DECISIONS, VISITOR_DECISIONS.empty())
    lake.commits.append(EVENTS, events(count, 0, 1))


def opened(folder: str) -> Lake:
    """The lake of the benchmark."""
    return Lake(f"{folder}/lake", {}, Path(folder) / "cache")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--new", type=int, default=10_000)
    given = parser.parse_args()
    table = Table("step", "seconds", "times a scan", title=f"{given.events:,} events, {len(CONDITIONS)} audiences")
    with tempfile.TemporaryDirectory() as folder:
        maker = get_context("spawn").Process(target=make, args=(folder, given.events))
        maker.start()
        maker.join()
        lake = opened(folder)
        some = [read_audience({"audience": f"a{n}", "tenant": "acme", "who": who}) for n, who in enumerate(CONDITIONS)]
        members, trials = Members(lake, FactsOfTenants(lake)), Trials(lake, lambda *_, **__: [])

        def scan() -> None:
            for _ in lake.scan(EVENTS).select(ASKED).collect_batches():
                pass

        def step(name: str, work: Callable[[], object], floor: float | None) -> float:
            seconds = timed(work)
            table.add_row(name, f"{seconds:.2f}", f"{seconds / floor:.2f}" if floor else "1")
            return seconds

        floor = step("a scan of the columns", scan, None)
        step("worked out anew", lambda: members.refresh(some, [], NOW), floor)
        step("nothing new", lambda: members.refresh(some, [], NOW + timedelta(minutes=1)), floor)
        lake.commits.append(EVENTS, events(given.new, given.events, 2))
        step(f"{given.new:,} new events", lambda: members.refresh(some, [], NOW + timedelta(minutes=2)), floor)
        step("a new day", lambda: members.refresh(some, [], NOW + timedelta(days=1)), floor)
        step("tried on the page, first", lambda: trials.tried(some[:1], [], NOW), floor)
        step("tried on the page, then", lambda: trials.tried(some[1:2], [], NOW), floor)
        trials.close()
    Console().print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Console().print(f"Peak memory of the process: {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
