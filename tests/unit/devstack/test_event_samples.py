import gzip
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from c360_pipeline.core.landing.classify import ARCHIVED_FACTS, classify
from c360_pipeline.core.landing.decode import Decoded, decode_file
from c360_pipeline.core.landing.lines import Delivery
from c360_pipeline.devstack.event_samples import SampleRequest, planned_lines, share, write_sample
from c360_pipeline.devstack.sample_files import Written
from c360_pipeline.errors import ConfigError

REQUEST = SampleRequest(events=3_000, tenants=2, seed=5, malformed_rate=0.05, duplicate_rate=0.05)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_sample(REQUEST, tmp_path_factory.mktemp("sample"), lambda _: None)


def test_there_are_as_many_lines_as_asked_for(written: Written) -> None:
    assert written.counts == dict(zip(("event", "malformed", "duplicate"), planned_lines(REQUEST), strict=True))


def test_the_truth_is_true_of_every_line(written: Written) -> None:
    truth = pl.read_ndjson(written.truth_file, infer_schema_length=None)
    now = datetime.now(UTC)
    decoded = Decoded.together(
        decode_file(Delivery(f.name, ""), gzip.decompress(f.read_bytes()), now) for f in written.event_files
    )
    classified = classify(decoded.events, decoded.events.clear().select(ARCHIVED_FACTS))
    for kind, frame in (("event", classified.landed), ("duplicate", classified.duplicates)):
        said = truth.filter(pl.col("kind") == kind).select("file", "line").rows()
        assert sorted(frame.select("source_uri", "source_line").rows()) == sorted(said)
    places = decoded.rejected.select("source_uri", "source_line", "error_class").rows()
    dead = {(file, line): error_class for file, line, error_class in places}
    conflicts = classified.conflicts.select("source_uri", "source_line").rows()
    dead |= dict.fromkeys(conflicts, "duplicate_id_conflict")
    said_dead = truth.filter(pl.col("kind") == "malformed").select("file", "line", "error_class").rows()
    assert dead == {(file, line): error_class for file, line, error_class in said_dead}
    assert len(set(dead.values())) == 11


def test_a_duplicate_comes_after_its_original(written: Written) -> None:
    truth = pl.read_ndjson(written.truth_file, infer_schema_length=None).filter(pl.col("kind") == "duplicate")
    for row in truth.iter_rows(named=True):
        assert (row["original_file"], row["original_line"]) < (row["file"], row["line"])


def test_equal_requests_give_equal_bytes(written: Written, tmp_path: Path) -> None:
    again = write_sample(REQUEST, tmp_path, lambda _: None)
    assert [f.read_bytes() for f in again.event_files] == [f.read_bytes() for f in written.event_files]


def test_events_hold_all_that_bridges_sessions(written: Written) -> None:
    lines = b"".join(gzip.decompress(f.read_bytes()) for f in written.event_files)
    for name in (b"deviceId", b"cookieId", b"orderId", b"emailHash", b"anon-", b"caller-", b"reader-"):
        assert name in lines


@pytest.mark.parametrize(("total", "parts"), [(0, 3), (1, 30), (100, 7)])
def test_shares_add_up(total: int, parts: int) -> None:
    shares = [share(total, part, parts) for part in range(parts)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("change", [{"events": 0}, {"tenants": 9}, {"malformed_rate": 1.5}])
def test_impossible_requests_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="is right"):
        SampleRequest(**({"events": 10, "tenants": 1, "seed": 1} | change))


def test_one_event_is_possible(tmp_path: Path) -> None:
    counts = Counter(write_sample(SampleRequest(1, 1, 1), tmp_path, lambda _: None).counts)
    assert counts.total() == 1
