import json
from datetime import UTC, datetime

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from c360_pipeline.core.landing import LineBlock, classify, decode, line_blocks

NOW = datetime(2025, 11, 3, tzinfo=UTC)


def a_line(user: str, event_id: str | None, action: str) -> bytes:
    fields = {
        "tenantId": "t",
        "userId": user,
        "sessionId": "s",
        "ts": 1762077600000,
        "action": action,
        "eventId": event_id,
    }
    return json.dumps(fields).encode()


LINES = st.lists(
    st.builds(
        a_line, st.sampled_from(["u", "v", " "]), st.sampled_from([None, "1", "2"]), st.sampled_from(["view", "buy"])
    )
)


def landed_in_batches(lines: list[bytes], sizes: list[int]) -> tuple[pl.DataFrame, int]:
    """The archive after landing in batches, and the number of lines accounted for."""
    archive, accounted, start = decode([], NOW).events, 0, 0
    for size in [*sizes, len(lines)]:
        part = lines[start : start + size]
        decoded = decode([LineBlock("f", start + 1, 0, b"".join(one + b"\n" for one in part))], NOW)
        start += len(part)
        facts = archive.select("tenant_id", "event_id", "content_hash", "source_uri", "source_line")
        result = classify(decoded.events, facts.join(decoded.events, on=["tenant_id", "event_id"], how="semi"))
        archive = pl.concat([archive, result.to_append])
        accounted += decoded.dead.height + sum(f.height for f in (result.landed, result.duplicates, result.conflicts))
    return archive, accounted


@given(LINES, st.lists(st.integers(1, 5), max_size=5))
def test_every_line_is_in_one_place_and_batches_do_not_matter(lines: list[bytes], sizes: list[int]) -> None:
    whole, accounted_whole = landed_in_batches(lines, [])
    split, accounted_split = landed_in_batches(lines, sizes)
    assert accounted_whole == accounted_split == len(lines)
    assert split.equals(whole)


@given(LINES)
def test_landing_again_appends_nothing(lines: list[bytes]) -> None:
    once, _ = landed_in_batches(lines, [])
    twice, _ = landed_in_batches([*lines, *lines], [len(lines)])
    assert twice.equals(once)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_offsets_point_at_the_bytes_of_a_line(content: bytes, size: int) -> None:
    pieces = [content[n : n + size] for n in range(0, len(content), size)]
    counted = 0
    for block in line_blocks("f", pieces):
        for index in sorted([*block.lines["number"], *block.invalid]):
            line = block.line(index)
            assert content[line.offset : line.offset + len(line.raw)] == line.raw
            assert line.number == content[: line.offset].count(b"\n") + 1
            counted += 1
    assert counted == sum(1 for raw in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if raw.strip())
