"""SIGKILL at random points of landing, backfill and replay: nothing is lost, nothing is there twice, all adds up."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from repetition import Trials, often
from workers import Workers

from c360_pipeline.assets.landing import land
from c360_pipeline.core.catalog.tables import DEAD_LETTER_LINES, DEAD_LETTERS, EVENTS, LANDING_FILES
from c360_pipeline.core.landing.accounting import QUEUE_COUNTED_BY, misaccounted, misaccounted_dead, unbalanced
from c360_pipeline.devstack.event_samples import SampleRequest, planned_lines, write_sample
from c360_pipeline.settings import Settings
from c360_pipeline.stages.landing.ingest import Ingest
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.landing import EVENTS_PREFIX, Landing

KILLS, SEED = often(3, 50), 4
REQUEST = SampleRequest(events=4_000, tenants=2, seed=4, malformed_rate=0.03, duplicate_rate=0.05)
DAY = "2025-11-02"
WORKER = Path(__file__).parent / "landing_worker.py"


@pytest.fixture
def workers(settings: Settings) -> Iterator[Workers]:
    started = Workers(WORKER)
    yield started
    started.stop()


def totals(lake: Lake) -> tuple[int, ...]:
    """Lines, landed, duplicates, dead, suppressed, after proving that all accounts are right."""
    accounts = lake.read(LANDING_FILES)
    assert unbalanced(accounts).is_empty()
    assert misaccounted(accounts, lake.count_by(EVENTS, "source_uri").rename({"len": "archived"})).is_empty()
    assert misaccounted_dead(accounts, lake.count_by(DEAD_LETTER_LINES, *QUEUE_COUNTED_BY)).is_empty()
    return accounts.select("lines", "landed", "duplicates", "dead", "suppressed").sum().row(0)


@pytest.mark.repeats
def test_kills_at_random_points_lose_nothing_and_leave_nothing_twice(
    trials: Trials,
    workers: Workers,
    settings: Settings,
    landing: Landing,
    lake: Lake,
    control: ControlDb,
    tmp_path: Path,
) -> None:
    rng = random.Random(SEED)
    trials(KILLS, SEED)
    files = write_sample(REQUEST, tmp_path, lambda _: None).event_files
    killed = 0
    while killed < KILLS:
        if files and killed >= (10 - len(files)) * 3:
            landing.put_file(files.pop(0), f"{EVENTS_PREFIX}date={DAY}/")
        command = rng.choice(["land", "land", f"land {DAY}", "replay"])
        code = workers.do(command, kill_after=rng.uniform(0.2, 2))
        assert code in (0, -signal.SIGKILL)
        killed += code == -signal.SIGKILL
        if killed % 10 == 0:
            assert lake.scan(EVENTS).select(pl.struct(EVENTS.key).is_duplicated().any()).collect().item() in (
                False,
                None,
            )
    for path in files:
        landing.put_file(path, f"{EVENTS_PREFIX}date={DAY}/")
    assert workers.do("land") == 0
    good, malformed, duplicates = planned_lines(REQUEST)
    assert totals(lake) == (good + malformed + duplicates, good, duplicates, malformed, 0)
    events = lake.read(EVENTS)
    assert events.height == events.n_unique(EVENTS.key) == good
    letters = lake.read(DEAD_LETTERS)
    assert all(landing.read_dead_letter(i) == raw for i, raw in letters.select("dead_letter_id", "raw").iter_rows())
    # From nothing and without a kill, the archive is the same.
    fresh = Lake(f"s3://{settings.bucket}/fresh", lake._storage.options, tmp_path / "cache")
    land(Ingest(landing, fresh, control.privacy.suppressed_users()), landing.event_files(), None, lambda _: None)
    content = ["tenant_id", "event_id", "user_id", "session_id", "ts", "action", "item_id"]
    assert fresh.read(EVENTS).select(content).sort(EVENTS.key).equals(events.select(content).sort(EVENTS.key))
