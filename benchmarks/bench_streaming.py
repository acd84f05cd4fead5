"""The real-time path: `make bench-streaming`.

Events that wait in Kafka are read by the job as fast as it goes, into each sink alone and into all; the same events are
written by the same writer without Flink, and one statement each. Then events are sent at a rate, and beside them others
that are looked for in the graph until they are there. Servers are warmed up before. At last the task manager is killed.
"""

import argparse
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from synthetic_archive import services, timed

NOTE = Console(stderr=True)
TENANTS = ("acme", "globex", "initech")
USERS, PRODUCTS = 2_000, 500
SINGLE = 500
PROBES_A_SECOND = 10
PROBED = "acme"
WARM_SECONDS = 15.0
WARM_EVENTS = 30_000


def made(count: int, tenants: Sequence[str] = TENANTS, seed: int = 1) -> Iterator[tuple[bytes, bytes]]:
    """Lines with their keys; their times are those of the moment in which they are made."""
    from c360_pipeline.streaming.producer import message_key

    draw = np.random.default_rng(seed)
    for _ in range(count):
        tenant, user = tenants[draw.integers(len(tenants))], f"u{draw.integers(USERS)}"
        line = {
            "tenantId": tenant, "userId": user, "sessionId": f"{user}-s", "ts": datetime.now(UTC).isoformat(),
            "action": "purchase" if draw.integers(4) == 0 else "view", "itemId": f"p{draw.integers(PRODUCTS)}",
            "eventId": str(uuid.uuid4()),
        }  # fmt: skip
        yield json.dumps(line).encode(), message_key(tenant, user)


def probe() -> tuple[bytes, bytes]:
    """An event of any user of one tenant, with its key."""
    return next(made(1, [PROBED], time.monotonic_ns()))


class Bench:
    """A stack with the real-time path.

    Args:
        home: its state folder.
    """

    def __init__(self, home: Path) -> None:
        from c360_pipeline.settings import load_settings
        from c360_pipeline.streaming.cluster import StreamCluster

        self.home = home
        self.settings = load_settings(home)
        self.cluster = StreamCluster(self.settings)
        self.table = Table("what", "measured", "aim")

    def add(self, what: str, measured: str, aim: str = "") -> None:
        """One row, told at once."""
        NOTE.print(f"{what}: {measured}")
        self.table.add_row(what, measured, aim)

    def start(self, sinks: Sequence[str]) -> None:
        """Start the job."""
        from c360_pipeline.cli.stream import start_job

        start_job(self.home, self.settings, sinks, NOTE.print)

    def send(self, count: int, rate: float | None) -> None:
        """Send events."""
        from c360_pipeline.streaming.producer import EventProducer, send

        with EventProducer(self.settings) as producer:
            send(producer, made(count), rate, lambda _: None)

    def count(self, name: str) -> int:
        """A counter of the job."""
        job = self.cluster.job_id()
        return 0 if job is None else self.cluster.counts(job).get(name, 0)

    def drained(self, sinks: Sequence[str], count: int, aim: str, why: str = "") -> float:
        """How many events a second are written of those that wait, of their second half: servers are warm by then."""
        self.start(sinks)
        self.cluster.stop()
        self.send(count, None)
        self.start(sinks)
        watched = sinks[0] if sinks[0] != "s3" else "validate"
        name = f"{watched}.{'events' if watched == 'validate' else 'written'}"
        first = self.reached(name, count // 2)
        last = self.reached(name, count)
        rate = (last[1] - first[1]) / (last[0] - first[0])
        self.add(f"{why}{', '.join(sinks)}: {count:,} events that wait", f"{rate:,.0f}/s", aim)
        self.cluster.stop()
        return rate

    def reached(self, name: str, wanted: int) -> tuple[float, int]:
        """When a counter has reached a number, and what it is then."""
        deadline = time.monotonic() + 600
        while (seen := self.count(name)) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is {seen:,} and not {wanted:,}")
            time.sleep(1)
        return time.monotonic(), seen

    def without_flink(self, count: int) -> None:
        """The same writers in a loop, and one statement per event."""
        from c360_pipeline.connections import open_graph
        from c360_pipeline.core.contract.events import parse_event
        from c360_pipeline.core.contract.frames import event_frame
        from c360_pipeline.stages.realtime.unlanded_events import write_unlanded
        from c360_pipeline.stores.cassandra.user_events import user_event
        from c360_pipeline.streaming.clients import open_user_events
        from c360_pipeline.streaming.sinks import STORES

        now = datetime.now(UTC) + timedelta(minutes=1)
        events = [parse_event(line, now) for line, _ in made(count)]
        with open_graph(self.settings) as graph, open_user_events(self.settings) as table:
            at_once = STORES["neo4j"].batch_events
            batches = list(event_frame(events).iter_slices(at_once))
            with ThreadPoolExecutor(4) as pool:
                seconds = timed(lambda: list(pool.map(lambda part: write_unlanded(graph, part), batches)))
            self.add(f"Neo4j without Flink, batches of {at_once:,}, four at once", f"{count / seconds:,.0f}/s")
            single = [event_frame([parse_event(line, now)]) for line, _ in made(SINGLE)]
            seconds = timed(lambda: [write_unlanded(graph, row) for row in single])
            self.add("Neo4j, one statement per event", f"{SINGLE / seconds:,.0f}/s")
            at_once = STORES["cassandra"].batch_events
            parts = [events[n : n + at_once] for n in range(0, count, at_once)]
            seconds = timed(lambda: [table.write(user_event(event._asdict()) for event in part) for part in parts])
            self.add(f"Cassandra without Flink, batches of {at_once:,}", f"{count / seconds:,.0f}/s")
            seconds = timed(lambda: [table.write([user_event(event._asdict())]) for event in events[:SINGLE]])
            self.add("Cassandra, one statement per event", f"{SINGLE / seconds:,.0f}/s")

    def latency(self, rate: float, seconds: float) -> None:
        """From the call of the producer until a query sees the event, for some events among many."""
        from c360_pipeline.connections import open_graph
        from c360_pipeline.streaming.producer import EventProducer

        read = "UNWIND $ids AS id MATCH (e:Event {tenant_id: $tenant_id, id: id}) RETURN e.id AS id"
        load = threading.Thread(target=self.send, args=(int(rate * (WARM_SECONDS + seconds)), rate))
        sent: dict[str, float] = {}
        took: list[float] = []
        with open_graph(self.settings) as graph, EventProducer(self.settings) as producer:
            load.start()
            begin = due = time.monotonic() + WARM_SECONDS
            while load.is_alive() or sent:
                now = time.monotonic()
                if now > due and load.is_alive():
                    (line, key), due = probe(), due + 1 / PROBES_A_SECOND
                    producer.send_line(line, key)
                    sent[json.loads(line)["eventId"]] = now
                if now > begin:
                    seen = graph.read_only(read, tenant_id=PROBED, ids=list(sent))
                    took += [time.monotonic() - sent.pop(row["id"]) for row in seen]
                if sent and now - min(sent.values()) > 60:
                    raise TimeoutError("an event is not in the graph after a minute")
                time.sleep(0.05)
            load.join()
        ordered = sorted(took)
        self.add(
            f"until it is seen in the graph, {rate:,.0f} events/s into all sinks, {len(took)} looked for",
            f"p50 {ordered[len(took) // 2]:.2f} s, p99 {ordered[int(len(took) * 0.99)]:.2f} s", "p99 2 s",
        )  # fmt: skip

    def agreement(self) -> None:
        """The comparison of all that was sent with all stores."""
        from c360_pipeline.streaming.verify import compared

        began = time.monotonic()
        found = compared(self.settings, None, timedelta(hours=1))
        seconds, messages = time.monotonic() - began, found.counts["messages"]
        self.add(f"compared with all stores, {messages:,} messages", f"{seconds:.1f} s, {messages / seconds:,.0f}/s")

    def recovery(self) -> None:
        """From kill -9 of the task manager until an event that was sent after it is written."""
        from c360_pipeline.devstack.pause import paused

        entries: list[dict[str, Any]] = json.loads((self.home / "services.json").read_text())["services"]
        process = next(entry["pid"] for entry in entries if entry["service"] == "flink-taskmanager")
        before = sum(self.cluster.lag().values())
        os.kill(process, signal.SIGKILL)
        began = time.monotonic()
        with paused(self.home, "flink-taskmanager"):
            pass
        self.send(200, None)
        deadline = time.monotonic() + 300
        while sum(self.cluster.lag().values()) > before:
            if time.monotonic() > deadline:
                raise TimeoutError("the job does not go on")
            time.sleep(0.2)
        self.add("task manager killed, until what was sent is in a checkpoint", f"{time.monotonic() - began:.1f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000, help="that wait in Kafka")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each rate")
    chosen = parser.parse_args()
    with services(streaming=True) as home:
        bench = Bench(home)
        bench.cluster.make_topics()
        bench.drained(["neo4j", "cassandra", "s3"], WARM_EVENTS, "", "to warm up: ")
        bench.drained(["neo4j"], chosen.events, "2,000/s")
        bench.drained(["cassandra"], chosen.events, "5,000/s")
        bench.drained(["s3"], chosen.events, "")
        most = bench.drained(["neo4j", "cassandra", "s3"], chosen.events, "")
        bench.without_flink(min(chosen.events, 20_000))
        bench.start(["neo4j", "cassandra", "s3"])
        bench.latency(500, chosen.seconds)
        bench.latency(most / 2, chosen.seconds)
        bench.recovery()
        bench.agreement()
        Console().print(bench.table)


if __name__ == "__main__":
    main()
