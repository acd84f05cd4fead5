"""SIGKILL at random points of landing, backfill and replay: the books balance, nothing is lost, nothing is there twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from c360_pipeline.assets.landing import land
from c360_pipeline.core.books import misbooked, misbooked_dead, unbalanced
from c360_pipeline.core.lake import DEAD_LETTER_LINES, DEAD_LETTERS, EVENTS, LANDING_FILES
from c360_pipeline.devstack.event_samples import SampleRequest, planned_lines, write_sample
from c360_pipeline.settings import Settings
from c360_pipeline.stores.control import ControlDb
from c360_pipeline.stores.ingest import Ingest
from c360_pipeline.stores.lake import Lake
from c360_pipeline.stores.landing import EVENTS_PREFIX, Landing

KILLS = 50
REQUEST = SampleRequest(events=4_000, tenants=2, seed=4, malformed_rate=0.03, duplicate_rate=0.05)
DAY = "2025-11-02"
WORKER = Path(__file__).parent / "landing_worker.py"


class Worker:
    """The process that forks a child per command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._commands, self._answers = process.stdin, process.stdout
        assert self._answers.readline() == "ready\n"

    def do(self, command: str, kill_after: float | None = None) -> int:
        """Exit code of a child, which is killed after so many seconds if it is still there."""
        print(command, file=self._commands, flush=True)
        child = int(self._answers.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        return int(self._answers.readline())


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    command = [sys.executable, str(WORKER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Worker(process)
        assert process.stdin is not None
        process.stdin.close()


def totals(lake: Lake) -> tuple[int, ...]:
    """Lines, landed, duplicates, dead, suppressed, after proving that all books are right."""
    books = lake.read(LANDING_FILES)
    assert unbalanced(books).is_empty()
    assert misbooked(books, lake.count_by(EVENTS, "source_uri").rename({"len": "archived"})).is_empty()
    assert misbooked_dead(books, lake.read(DEAD_LETTER_LINES)).is_empty()
    return books.select("lines", "landed", "duplicates", "dead", "suppressed").sum().row(0)


def test_fifty_kills_at_random_points_lose_nothing_and_leave_nothing_twice(
    worker: Worker, settings: Settings, landing: Landing, lake: Lake, control: ControlDb, tmp_path: Path
) -> None:
    rng = random.Random(4)
    files = write_sample(REQUEST, tmp_path, lambda _: None).event_files
    killed = 0
    while killed < KILLS:
        if files and killed >= (10 - len(files)) * 3:
            landing.put_file(files.pop(0), f"{EVENTS_PREFIX}date={DAY}/")
        command = rng.choice(["land", "land", f"land {DAY}", "replay"])
        code = worker.do(command, kill_after=rng.uniform(0.3, 2.5))
        assert code in (0, -signal.SIGKILL)
        killed += code == -signal.SIGKILL
        if killed % 10 == 0:
            assert lake.scan(EVENTS).select(pl.struct(EVENTS.key).is_duplicated().any()).collect().item() in (
                False,
                None,
            )
    for path in files:
        landing.put_file(path, f"{EVENTS_PREFIX}date={DAY}/")
    assert worker.do("land") == 0
    good, malformed, duplicates = planned_lines(REQUEST)
    assert totals(lake) == (good + malformed + duplicates, good, duplicates, malformed, 0)
    events = lake.read(EVENTS)
    assert events.height == events.n_unique(EVENTS.key) == good
    letters = lake.read(DEAD_LETTERS)
    assert all(landing.read_dead_letter(i) == raw for i, raw in letters.select("dead_letter_id", "raw").iter_rows())
    # From nothing and without a kill, the archive is the same.
    fresh = Lake(f"s3://{settings.bucket}/fresh", lake._options, tmp_path / "cache")
    land(Ingest(landing, fresh, control.suppressed_users()), landing.event_files(), None, lambda _: None)
    content = ["tenant_id", "event_id", "user_id", "session_id", "ts", "action", "item_id"]
    assert fresh.read(EVENTS).select(content).sort(EVENTS.key).equals(events.select(content).sort(EVENTS.key))
