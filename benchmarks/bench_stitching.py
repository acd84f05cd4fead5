"""Stitching against its limit and its peers, on the same events, in the same run: `make bench-stitching`.

The events are made from a seed: true journeys of a few events each, and chains of 50 to 300 events in shuffled order,
so that the truth is known; every result is compared with it. Three tables:

- all events at once, from a Parquet file of events and keys to a journey per event: ours, with keys hashed before (as
  landing could) and in the run; scipy's components; DuckDB's `count(DISTINCT key)` as the limit; Splink, igraph,
  networkx;
- in batches of 100,000, each one commit of the log with its guards, over a lake in a folder;
- the graph: the run of "Apache AGE Journey Stitching" (25,000 events of 3 keys) from landing to the graph; reading a
  journey, and explaining two of its events, at many events.
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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

NOTE = Console(stderr=True)
START = datetime(2025, 1, 1, tzinfo=UTC)
KINDS = ("user", "device", "cookie")
BATCH = 100_000
CHAINS = 3_000
PEERS_PYTHON = Path(".venv/bench/bin/python")
AGE_EVENTS = 25_000
AGE_SECONDS = 173.0


def generate(folder: Path, events: int, seed: int) -> None:
    """Write events.parquet (event, event_id, ts, journey) and pairs.parquet (event, key_type, key, high, low).

    About a quarter as many journeys as events, 2.5 keys per event.
    """
    rng = np.random.default_rng(seed)
    chains = min(CHAINS, events // 1000)
    lengths = rng.integers(50, 301, chains)
    rest = max(events - int(lengths.sum()), 0)
    sizes = rng.geometric(1 / 3.4, int(rest / 3.4) + 10)
    sizes = sizes[: np.searchsorted(np.cumsum(sizes), rest)]
    all_sizes = np.concatenate([lengths, sizes])
    journey = np.repeat(np.arange(len(all_sizes)), all_sizes)
    first = np.repeat(np.cumsum(all_sizes) - all_sizes, all_sizes)
    count = len(journey)
    place = np.arange(count) - first
    in_chain = journey < chains
    # Each event brings a key of its own, and one of an earlier event of its journey: of the one before, in a chain.
    earlier = np.where(in_chain, place - 1, (rng.random(count) * place).astype(np.int64))
    more = (rng.random(count) < 0.9) & ~in_chain & (place > 0)
    other = (rng.random(count) * (place + 1)).astype(np.int64)
    has = place > 0
    differs = more & (other != place) & (other != earlier)
    owner = np.concatenate([np.arange(count), (first + earlier)[has], (first + other)[differs]])
    event = np.concatenate([np.arange(count), np.flatnonzero(has), np.flatnonzero(differs)])
    shuffled = rng.permutation(count)
    event, journey_of = shuffled[event], np.empty(count, np.int64)
    journey_of[shuffled] = journey
    # Half of the events bring a key that no other has.
    alone = np.flatnonzero(rng.random(count) < 0.55)
    owner, event = np.concatenate([owner, count + alone]), np.concatenate([event, alone])
    order = np.argsort(event, kind="stable")
    kinds = np.array(KINDS)[owner[order] % 3]
    keys = pl.DataFrame({"event": event[order], "key_type": kinds, "value": owner[order]}).with_columns(
        tenant_id=pl.lit("bench"), value=pl.format("k{}", pl.col("value")),
        key=pl.format("{}:k{}", pl.col("key_type"), pl.col("value")),
    )  # fmt: skip
    rows = pl.DataFrame({"event": np.arange(count), "journey": journey_of}).with_columns(
        event_id=pl.col("event").cast(pl.String).str.zfill(12),
        ts=pl.lit(START) + pl.duration(microseconds=pl.col("event") * 7_000_000),
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, rows, keys)
    few = keys.head(1000)
    _write(folder / "warm", rows.head(int(few["event"].max() or 0) + 1), few)


def _write(folder: Path, rows: pl.DataFrame, keys: pl.DataFrame) -> None:
    from c360_pipeline.core.arrays.row_hashes import words
    from c360_pipeline.core.stitching.keys import key_hash

    folder.mkdir(parents=True, exist_ok=True)
    high, low = words(keys.select(key_hash()).to_series())
    rows.write_parquet(folder / "events.parquet")
    keys.select("event", "key_type", "key", "value", high=pl.Series(high), low=pl.Series(low)).write_parquet(
        folder / "pairs.parquet"
    )


def policy() -> Any:
    """Three types of keys that link, limited to 1,000 partners as by default."""
    from c360_pipeline.core.stitching.keys import KeyPolicy, KeyRule

    return KeyPolicy(tuple(KeyRule("*", kind, f"attrs.{kind}") for kind in KINDS))


def _events(folder: Path, start: int = 0, length: int | None = None) -> pl.DataFrame:
    held = pl.scan_parquet(folder / "events.parquet").select(pl.lit("bench").alias("tenant_id"), "event_id", "ts")
    return held.slice(start, length).collect()


def _hashed_keys(folder: Path, start: int = 0, length: int | None = None) -> pl.DataFrame:
    word = pl.lit(1 << 64, dtype=pl.UInt128)
    pairs = pl.scan_parquet(folder / "pairs.parquet").slice(start, length)
    return pairs.select(
        pl.col("event").cast(pl.UInt32).alias("row"), "key_type",
        (pl.col("high").cast(pl.UInt128) * word + pl.col("low").cast(pl.UInt128)).alias("key_hash"),
    ).collect()  # fmt: skip


def label_numba(folder: Path) -> np.ndarray[Any, Any]:
    """A number per event, keys hashed before: numbering of keys and union-find, both compiled."""
    from c360_pipeline.core.kernels import journeys as kernel
    from c360_pipeline.core.stitching.components import connected_components

    pairs = pl.read_parquet(folder / "pairs.parquet", columns=["event", "high", "low"])
    event = pairs["event"].to_numpy()
    key, first = kernel.dense_ids(pairs["high"].to_numpy(), pairs["low"].to_numpy())
    events = int(event.max()) + 1
    return connected_components(event, key.astype(np.int64) + events, events + len(first))[:events]


def label_scipy(folder: Path) -> np.ndarray[Any, Any]:
    """The same with scipy's search."""
    from c360_pipeline.core.kernels import journeys as kernel
    from c360_pipeline.core.stitching.components import connected_components

    pairs = pl.read_parquet(folder / "pairs.parquet", columns=["event", "high", "low"])
    event = pairs["event"].to_numpy()
    key, first = kernel.dense_ids(pairs["high"].to_numpy(), pairs["low"].to_numpy())
    events = int(event.max()) + 1
    return connected_components(event, key.astype(np.int64) + events, events + len(first), "scipy")[:events]


def stitch_hashed(folder: Path) -> np.ndarray[Any, Any]:
    """All that a batch decides, ids and counts and keys with them, keys hashed before."""
    from c360_pipeline.core.stitching.batch import Known, prepare
    from c360_pipeline.core.stitching.stitch import stitch

    batch = prepare(_events(folder), _hashed_keys(folder), policy())
    decided = stitch(batch, Known.nothing(batch), policy())
    return decided.events.sort("event_id")["journey_id"].rank("dense").to_numpy()


def stitch_text(folder: Path) -> np.ndarray[Any, Any]:
    """The same with keys brought to their normal form and hashed in the run, without a secret."""
    from c360_pipeline.core.contract.identifier_keys import IdentifierKeys

    return _stitch_text(folder, IdentifierKeys())


def stitch_keyed(folder: Path) -> np.ndarray[Any, Any]:
    """The same under a secret, as installations do it."""
    from pydantic import SecretStr

    from c360_pipeline.core.contract.identifier_keys import IdentifierKeys

    return _stitch_text(folder, IdentifierKeys((SecretStr("ab" * 32),)))


def _stitch_text(folder: Path, identifiers: Any) -> np.ndarray[Any, Any]:
    from c360_pipeline.core.stitching.batch import Known, prepare
    from c360_pipeline.core.stitching.keys import key_hash, normalised
    from c360_pipeline.core.stitching.stitch import stitch

    pairs = pl.read_parquet(folder / "pairs.parquet", columns=["event", "key_type", "value"])
    keys = pairs.with_columns(pl.lit("bench").alias("tenant_id"), normalised(pl.col("value"), "user")).select(
        pl.col("event").cast(pl.UInt32).alias("row"), "key_type", key_hash(identifiers).alias("key_hash")
    )
    batch = prepare(_events(folder), keys, policy())
    decided = stitch(batch, Known.nothing(batch), policy())
    return decided.events.sort("event_id")["journey_id"].rank("dense").to_numpy()


def incremental(folder: Path) -> dict[str, Any]:
    """Batches of 100,000 events, each with its lookups, its guards and one commit of the log; leaves the lake there."""
    from c360_pipeline.stages.stitching.journeys import Journeys

    pairs = pl.scan_parquet(folder / "pairs.parquet").select(pl.col("event").set_sorted()).collect()["event"]
    count = int(pairs[-1]) + 1
    starts = [int(pairs.search_sorted(row)) for row in range(0, count + BATCH, BATCH)]
    rules = policy()
    journeys = Journeys(_lake(folder))
    seconds = []
    for n in range(-(-count // BATCH)):
        # What is measured is the product's memory: of the input only one batch is held.
        batch = _events(folder, n * BATCH, BATCH)
        keys = _hashed_keys(folder, starts[n], starts[n + 1] - starts[n]).with_columns(
            (pl.col("row") - n * BATCH).cast(pl.UInt32)
        )
        began = time.perf_counter()
        journeys.add_keyed(batch, keys, rules)
        seconds.append(time.perf_counter() - began)
    tenth = max(len(seconds) // 10, 1)
    return {
        "seconds": sum(seconds), "first_batches": statistics.median(seconds[:tenth]),
        "last_batches": statistics.median(seconds[-tenth:]), "batch_median": statistics.median(seconds),
        "mapped_bytes": _status_bytes("RssFile"),
    }  # fmt: skip


def _status_bytes(name: str) -> int:
    """A figure of this process, as the system keeps it.

    `VmHWM` is its peak, not that of the process that started it, as getrusage has it; `RssFile` are pages of files,
    libraries among them, which the system may take back.
    """
    said = dict(line.split(":") for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(said[name].split()[0]) * 1024


def reopened(folder: Path) -> dict[str, Any]:
    """The index rebuilt, as on a machine that has only the log; and every journey against the truth."""
    from c360_pipeline.core.catalog.tables import JOURNEY_LOG
    from c360_pipeline.core.stitching.log import aliases, events_now
    from c360_pipeline.stages.stitching.journeys import Journeys
    from c360_pipeline.stores.delta.lake import Lake

    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        Journeys(Lake(f"{folder}/lake", {}, Path(cache))).log.refresh()
        seconds = time.perf_counter() - began
    log = _lake(folder).scan(JOURNEY_LOG)
    found = events_now(log, aliases(log)).collect(engine="streaming").sort("event_id")
    return {"seconds": seconds, "wrong": _wrong(found["journey_id"].rank("dense").to_numpy(), _truth(folder))}


def _lake(folder: Path) -> Any:
    from c360_pipeline.stores.delta.lake import Lake

    (folder / "lake").mkdir(exist_ok=True)
    return Lake(f"{folder}/lake", {}, folder / "cache")


def _truth(folder: Path) -> np.ndarray[Any, Any]:
    return pl.read_parquet(folder / "events.parquet", columns=["journey"])["journey"].to_numpy()


def _wrong(labels: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> int:
    """Journeys that are not exactly a true one."""
    pairs = pl.DataFrame({"ours": labels, "true": truth}).unique()
    return int(pairs["ours"].is_duplicated().sum() + pairs["true"].is_duplicated().sum())


OURS: dict[str, Callable[[Path], np.ndarray[Any, Any]]] = {
    "numba": label_numba, "scipy": label_scipy, "stitch": stitch_hashed, "stitch_text": stitch_text,
    "stitch_keyed": stitch_keyed,
}  # fmt: skip


def child(name: str, folder: Path) -> None:
    """Measure one way in a process of its own, so that its peak memory is its own."""
    if name == "incremental":
        incremental(folder / "warm")
        found = incremental(folder)
    elif name == "reopened":
        found = reopened(folder)
    else:
        OURS[name](folder / "warm")
        began = time.perf_counter()
        labels = OURS[name](folder)
        found = {"seconds": time.perf_counter() - began, "wrong": _wrong(labels, _truth(folder))}
    found["peak_bytes"] = _status_bytes("VmHWM")
    print(json.dumps(found))


def measured(python: Path, script: str, *arguments: str, runs: int = 1) -> dict[str, Any]:
    """The run of median seconds."""
    found = []
    for _ in range(runs):
        done = subprocess.run([python, script, *arguments], check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return sorted(found, key=lambda one: one["seconds"])[len(found) // 2]


def at_once(folder: Path, events: int, runs: int, peers: list[str]) -> None:
    """Print the table of all events at once."""
    here = str(Path(__file__))
    results = {}
    limit = measured(
        PEERS_PYTHON, str(Path(__file__).with_name("stitching_peers.py")), "duckdb", str(folder), runs=runs
    )
    results["limit: DuckDB count(DISTINCT key)"] = limit
    for name, title in (
        ("numba", "ours: a label per event, keys hashed before"),
        ("scipy", "ours: the same by scipy"),
        ("stitch", "ours: journeys with ids, counts and keys"),
        ("stitch_text", "ours: the same, keys hashed in the run, without a secret"),
        ("stitch_keyed", "ours: the same, under a secret"),
    ):
        NOTE.print(title)
        results[title] = measured(Path(sys.executable), here, "--child", name, str(folder), runs=runs)
    for name in peers:
        NOTE.print(name)
        results[name] = measured(PEERS_PYTHON, str(Path(__file__).with_name("stitching_peers.py")), name, str(folder))
    table = Table("all events at once", "seconds", "events/s", "of the limit", "peak MiB", "wrong")
    for title, found in results.items():
        table.add_row(
            title, f"{found['seconds']:.2f}", f"{events / found['seconds']:,.0f}",
            f"{limit['seconds'] / found['seconds']:.2f}", f"{found['peak_bytes'] / 2**20:,.0f}",
            str(found.get("wrong", "")),
        )  # fmt: skip
    Console().print(table)


def in_batches(folder: Path, events: int) -> None:
    """Print the table of batches."""
    found = measured(Path(sys.executable), str(Path(__file__)), "--child", "incremental", str(folder))
    again = measured(Path(sys.executable), str(Path(__file__)), "--child", "reopened", str(folder))
    table = Table("in batches of 100,000, durable", "ours")
    for title, value in (
        ("seconds", f"{found['seconds']:.1f}"),
        ("events/s", f"{events / found['seconds']:,.0f}"),
        ("median batch, seconds", f"{found['batch_median']:.2f}"),
        ("first tenth of the batches, median seconds", f"{found['first_batches']:.2f}"),
        ("last tenth", f"{found['last_batches']:.2f}"),
        ("last of first", f"{found['last_batches'] / found['first_batches']:.2f}"),
        ("peak MiB", f"{found['peak_bytes'] / 2**20:,.0f}"),
        ("pages of files at the end, MiB", f"{found['mapped_bytes'] / 2**20:,.0f}"),
        ("journeys that are not a true one", str(again["wrong"])),
        ("the index again from the log, seconds", f"{again['seconds']:.1f}"),
    ):
        table.add_row(title, value)
    Console().print(table)


def _land_age_events(folder: Path, events: int) -> Path:
    """Events of three keys each, as "Apache AGE Journey Stitching" has them: 1,250 journeys."""
    rng = np.random.default_rng(2)
    path = folder / "age.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for n in range(events):
            journey = int(rng.integers(0, max(events // 20, 1)))
            at = (START + timedelta(seconds=n)).isoformat()
            attrs = {"deviceId": f"d{journey}-{n % 3}"}
            line = {"tenantId": "age", "userId": f"u{journey}", "sessionId": f"s{journey}-{n % 5}", "ts": at,
                    "action": "view", "itemId": f"p{n % 100}", "attrs": attrs, "eventId": f"age-{n}"}  # fmt: skip
            out.write(json.dumps(line) + "\n")
    return path


def in_the_graph(events: int) -> None:
    """Print the table of the graph, over embedded services with a state folder of their own."""
    from c360_pipeline.connections import open_control, open_graph, open_lake, open_landing
    from c360_pipeline.devstack import stack
    from c360_pipeline.runs import materialise
    from c360_pipeline.settings import load_settings

    selection = "*journey_graph"
    table = Table("in the graph", "events", "seconds", "aim")
    with tempfile.TemporaryDirectory() as where:
        os.environ["C360_HOME"] = where
        with stack.attached(Path(where), lambda _: None, ports={"postgres": 0, "s3": 0, "neo4j": 0}):
            settings = load_settings(Path(where))
            open_control(settings)
            landing, lake = open_landing(settings), open_lake(settings)
            for count, title in ((AGE_EVENTS, "landing to graph, as the document's run"), (events, "landing to graph")):
                path = _land_age_events(Path(where), count)
                landing.put_file(path, f"landing/events/date=2025-01-0{1 + (count != AGE_EVENTS)}/")
                began = time.perf_counter()
                outcome = materialise(Path(where), selection, None, lambda step: NOTE.print(step.name, step.state))
                table.add_row(title, f"{count:,}", f"{time.perf_counter() - began:.1f}",
                              f"{AGE_SECONDS:.0f}" if count == AGE_EVENTS else "")  # fmt: skip
                if outcome.error:
                    raise RuntimeError(outcome.error)
            with open_graph(settings) as graph:
                for title, seconds in _reads(graph, lake):
                    table.add_row(title, f"{events:,}", f"{seconds:.4f}", "0.0100")
    Console().print(table)


def _reads(graph: Any, lake: Any) -> list[tuple[str, float]]:
    """Median seconds of reading a journey and of explaining two of its events."""
    from c360_pipeline.core.catalog.tables import EVENT_JOURNEY
    from c360_pipeline.reads.journeys import explanation, journey_of_event

    pairs = lake.read(EVENT_JOURNEY).sample(200, seed=1, shuffle=True)
    members = lake.read(EVENT_JOURNEY).join(pairs.select("journey_id"), on="journey_id", how="semi")
    others = members.group_by("journey_id").agg(pl.col("event_id").last(), pl.col("tenant_id").first())
    asked = pairs.join(others, on="journey_id", suffix="_other").rows(named=True)
    journeys, chains = [], []
    for row in asked:
        began = time.perf_counter()
        journey_of_event(graph, row["tenant_id"], row["event_id"])
        between = time.perf_counter()
        explanation(graph, row["tenant_id"], row["event_id"], row["event_id_other"])
        journeys.append(between - began)
        chains.append(time.perf_counter() - between)
    return [("reading a journey, median of 200", statistics.median(journeys)),
            ("explaining two events, median of 200", statistics.median(chains))]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=4_000_000)
    parser.add_argument("--graph-events", type=int, default=1_000_000, help="0 leaves the graph out")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--peers", default="splink,igraph,networkx", help="with commas; empty for none")
    parser.add_argument("--only", choices=["at_once", "batches", "graph"])
    parser.add_argument("--child", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child(chosen.child[0], Path(chosen.child[1]))
        return
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        if chosen.only != "graph":
            generate(folder, chosen.events, chosen.seed)
            events = pl.scan_parquet(folder / "events.parquet").select(pl.len()).collect().item()
            pairs = pl.scan_parquet(folder / "pairs.parquet").select(pl.len()).collect().item()
            Console().print(f"{events:,} events, {pairs:,} pairs of event and key, seed {chosen.seed}")
        if chosen.only in (None, "at_once"):
            at_once(folder, events, chosen.runs, [name for name in chosen.peers.split(",") if name])
        if chosen.only in (None, "batches"):
            in_batches(folder, events)
    if chosen.only in (None, "graph") and chosen.graph_events:
        in_the_graph(chosen.graph_events)


if __name__ == "__main__":
    main()
