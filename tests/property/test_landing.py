import json
from datetime import UTC, datetime

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.landing.classify import ARCHIVED_FACTS, classify, stored_events
from c360_pipeline.core.landing.decode import PADDING, Decoded, decode
from c360_pipeline.core.landing.lines import Delivery, LineBlock, line_blocks

NOW = datetime(2025, 11, 3, tzinfo=UTC)
FILE = Delivery("f", "etag")


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
    archive, accounted, start = EVENTS.empty(), 0, 0
    for size in [*sizes, len(lines)]:
        part = lines[start : start + size]
        decoded = decode(LineBlock(FILE, start + 1, 0, b"".join(one + b"\n" for one in part)), NOW)
        start += len(part)
        facts = archive.select(ARCHIVED_FACTS)
        result = classify(decoded.events, facts.join(decoded.events, on=["tenant_id", "event_id"], how="semi"))
        archive = pl.concat([archive, stored_events(result.to_append)])
        accounted += decoded.rejected.height
        accounted += sum(f.height for f in (result.landed, result.duplicates, result.conflicts))
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
    for block in line_blocks(FILE, pieces):
        assert isinstance(block, LineBlock)
        for line in map(block.line, range(len(block.starts) - 1)):
            assert content[line.offset : line.offset + len(line.raw)] == line.raw
            assert line.number == content[: line.offset].count(b"\n") + 1
            counted += 1
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert counted == len(lines) - (lines[-1] == b"")


@given(st.lists(st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"")), max_size=12), st.integers(1, 30))
def test_every_line_of_any_file_is_counted_once(lines: list[bytes], size: int) -> None:
    content = b"\n".join(lines)
    pieces = [content[n : n + size] for n in range(0, len(content), size)]
    blocks = [block for block in line_blocks(FILE, pieces) if isinstance(block, LineBlock)]
    decoded = Decoded.together(decode(block, NOW) for block in blocks)
    there = [raw for raw in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
             if raw.strip(b" \t\r\x0b\x0c") and PADDING.sub(b"", raw)]  # fmt: skip
    assert decoded.lines.total() == len(there) == decoded.events.height + decoded.rejected.height
    assert decoded.rejected["raw"].to_list() == there
