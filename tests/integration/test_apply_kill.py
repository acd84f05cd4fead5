"""SIGKILL between any two writes of `c360 sources apply`: done again, it is as if it had never been killed."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from repetition import Trials
from workers import Workers

from c360_pipeline.core.catalog.tables import DEAD_LETTER_LINES, DEAD_LETTERS, EVENTS, LANDING_FILES
from c360_pipeline.core.landing.accounting import QUEUE_COUNTED_BY, misaccounted, misaccounted_dead, unbalanced
from c360_pipeline.settings import Settings
from c360_pipeline.stages.landing.backfill import land
from c360_pipeline.stages.landing.ingest import Ingest
from c360_pipeline.stages.sources.active import active_sources
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.landing import Landing

FILE = Path(__file__).parents[1] / "fixtures" / "sources" / "segment.jsonl"
FOLDER = "segment-logs/src_1/1795132800000/"
DEAD = b'{"messageId": "m", "type": "track", "event": "Boo", "userId": 7, "at": "2026-11-20T10:00:00Z"}\n'
FIRST: dict[str, Any] = {"extends": "segment@1", "tenant": {"const": "acme"}}
BETTER = FIRST | {"time": {"path": ["timestamp", "at"], "as": "rfc3339"}, "action": {"map": {"page": "visit"}}}
OTHER = FIRST | {"time": {"path": ["timestamp", "sentAt"], "as": "rfc3339"}, "user": "anonymousId"}


@pytest.fixture
def workers(settings: Settings) -> Iterator[Workers]:
    started = Workers(Path(__file__).parent / "apply_worker.py")
    yield started
    started.stop()


def content(lake: Lake) -> list[tuple[Any, ...]]:
    """Events as they are, after proving that all accounts are right."""
    accounts = lake.read(LANDING_FILES)
    assert unbalanced(accounts).is_empty()
    assert misaccounted(accounts, lake.count_by(EVENTS, "source_uri").rename({"len": "archived"})).is_empty()
    assert misaccounted_dead(accounts, lake.count_by(DEAD_LETTER_LINES, *QUEUE_COUNTED_BY)).is_empty()
    columns = ["event_id", "user_id", "anonymous_id", "action", "ts", "mapping_version"]
    return sorted(lake.read(EVENTS).select(columns).rows(), key=str)


@pytest.mark.soak
@pytest.mark.repeats
def test_apply_that_is_killed_between_any_two_writes_is_made_up_for(
    trials: Trials, workers: Workers, settings: Settings, landing: Landing, lake: Lake, control: ControlDb,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_bytes(FILE.read_bytes() + DEAD)
    landing.put_file(path, FOLDER)
    location = f"s3://{settings.bucket}/segment-logs/{{any}}/{{received:epoch_ms}}/*"
    control.sources.add("shop", location, "lines", None, None)
    versions = [control.sources.add_mapping("shop", document, "") for document in (FIRST, BETTER, OTHER)]
    control.sources.apply("shop", versions[0])
    sources, _ = active_sources(control)
    nobody = control.privacy.suppressed_users()
    land(Ingest(landing, lake, nobody, sources=sources), landing.source_files(*sources), None, lambda _: None)

    # Each version as it is without a kill, to compare with.
    wanted = {}
    for version in (*versions, versions[0]):
        assert workers.do(f"0 shop v{version} --from 2026-11-01 --force") == 0
        wanted[version] = content(lake)
    assert len({str(rows) for rows in wanted.values()}) == len(versions)

    moment, kills = 1, 0
    while True:
        version = versions[1 + kills % 2]
        code = workers.do(f"{moment} shop v{version} --from 2026-11-01 --force")
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        assert workers.do(f"0 shop v{version} --from 2026-11-01 --force") == 0
        assert content(lake) == wanted[version], moment
        letters = dict(lake.read(DEAD_LETTERS).select("dead_letter_id", "status").iter_rows())
        assert set(letters.values()) == ({"replayed"} if version == versions[1] else {"open"}), moment
        moment += 1
    trials(kills, None)
    assert kills >= 10
