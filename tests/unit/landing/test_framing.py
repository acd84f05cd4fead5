"""Files as producers deliver them: encodings, packings and framings are recognised; what can be read lands."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from c360_pipeline.core.landing.decode import Decoded, decode
from c360_pipeline.core.landing.framing import json_lines
from c360_pipeline.core.landing.lines import Delivery, LineBlock, line_blocks
from c360_pipeline.errors import ContractError
from c360_pipeline.stores.s3.packed import MOST_LAYERS, unpacked

CASES = Path(__file__).parents[2] / "fixtures" / "cases"
NOW = datetime(2025, 11, 4, tzinfo=UTC)
FILE = Delivery("f", "1")


def landed(content: bytes, piece: int = 1 << 20) -> Decoded:
    """A file through all that landing does with its bytes, read in pieces of some size."""
    lines = json_lines(unpacked(io.BytesIO(content), piece, "f"), "f")
    return Decoded.together(decode(b, NOW) for b in line_blocks(FILE, lines) if isinstance(b, LineBlock))


def event(number: int, **more: object) -> dict[str, object]:
    fields = {"tenantId": "acme", "userId": f"u{number}", "sessionId": "s", "ts": 1762077600000 + number, "action": "x"}
    return {**fields, **more}


EVENTS = [event(n) for n in range(40)]
LINES = b"".join(json.dumps(e).encode() + b"\n" for e in EVENTS)


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("array-with-trailing-commas.jsonl", 3), ("bom-in-the-middle.jsonl", 3), ("bom-per-gz-member.jsonl.gz", 3),
        ("commas-after-each.jsonl", 3), ("cr-only.jsonl", 3), ("firehose-3-per-line.jsonl", 9), ("firehose.jsonl", 5),
        ("nul-padding.jsonl", 2), ("pretty.jsonl", 2), ("utf16be.jsonl", 2), ("utf16le-bom.jsonl", 3),
    ],
)  # fmt: skip
def test_a_file_that_people_call_json_lines_lands_whole(name: str, count: int, piece: int) -> None:
    found = landed((CASES / name).read_bytes(), piece)
    assert (found.events.height, found.rejected.height) == (count, 0)


def zipped(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", content[: len(content) // 2 + content[len(content) // 2 :].index(b"\n")])
        archive.writestr("b/c.jsonl.gz", gzip.compress(content[len(content) // 2 :].split(b"\n", 1)[1]))
    return out.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress, bz2.compress, lzma.compress, zipped, zstd, lambda c: gzip.compress(gzip.compress(c)),
        lambda c: gzip.compress(c[:100]) + gzip.compress(c[100:]), lambda c: zstd(c[:100]) + zstd(c[100:]),
        lambda c: gzip.compress(zstd(c)), lambda c: bz2.compress(c[:100]) + bz2.compress(c[100:]),
    ],
    ids=["gzip", "bzip2", "xz", "zip", "zstd", "gzip twice", "two gzip members", "two zstd frames", "gzip of zstd",
         "two bzip2 streams"],
)  # fmt: skip
def test_a_packed_file_is_what_it_holds(pack) -> None:  # type: ignore[no-untyped-def]
    packed = pack(LINES)
    for piece in (3, 1 << 20):
        found = landed(packed, piece)
        assert sorted(found.events["user_id"]) == sorted(e["userId"] for e in EVENTS)


@pytest.mark.parametrize(("pack", "what"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (zstd, "zstd"),
                                            (lzma.compress, "xz")])  # fmt: skip
def test_of_a_file_that_breaks_off_the_reason_names_its_packing(pack, what: str) -> None:  # type: ignore[no-untyped-def]
    many = LINES * 400
    with pytest.raises(ContractError, match=f"f is not a whole {what} file"):
        landed(pack(many)[:-40])


def test_a_file_that_is_packed_again_and_again_is_refused() -> None:
    content = LINES
    for _ in range(MOST_LAYERS + 1):
        content = gzip.compress(content)
    with pytest.raises(ContractError, match="packed more than 4 times"):
        landed(content)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("piece", [5, 1 << 20])
def test_texts_in_other_encodings_are_texts(encoding: str, piece: int) -> None:
    told = "".join(json.dumps(event(n, itemId="Grüße 🎉"), ensure_ascii=False) + "\r\n" for n in range(20))
    found = landed(told.encode(encoding), piece)
    assert (found.events.height, found.rejected.height) == (20, 0)
    assert set(found.events["item_id"]) == {"Grüße 🎉"}


def test_a_text_that_is_no_utf8_says_so_line_by_line() -> None:
    found = landed(LINES + (CASES / "latin1.jsonl").read_bytes())
    assert found.events.height == len(EVENTS)
    assert found.rejected["error_class"].to_list() == ["invalid_utf8"]


def test_what_is_no_text_is_refused_as_a_file() -> None:
    sink = io.BytesIO()
    pl.DataFrame({"a": [1]}).write_parquet(sink)
    with pytest.raises(ContractError, match=r"f is a Parquet file\. Landing reads JSON lines"):
        landed(sink.getvalue())


def test_one_value_that_breaks_off_takes_no_other_along() -> None:
    pretty = [json.dumps(e, indent=2).encode() for e in EVENTS[:10]]
    pretty[4] = pretty[4][:-12]
    found = landed(b"\n".join(pretty))
    assert (found.events.height, found.rejected.height) == (9, 1)


def test_lines_that_are_mostly_broken_stay_lines() -> None:
    broken = [json.dumps(e).encode()[:-3] for e in EVENTS]
    broken[7] = json.dumps(EVENTS[7]).encode()
    found = landed(b"\n".join(broken))
    assert (found.events.height, found.rejected.height) == (1, 39)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"[]", b"null", b"\0" * 600, b"{", b'"'])
def test_a_file_with_nothing_in_it_lands_nothing(content: bytes) -> None:
    assert landed(content).events.is_empty()


def test_strings_keep_what_looks_like_framing() -> None:
    odd = [event(n, itemId='a}{"b\\\\\\" ],[{' + "\u2028") for n in range(6)]
    for text in (json.dumps(odd), "".join(map(json.dumps, odd)), json.dumps(odd, indent=1)):
        found = landed(text.encode(), 11)
        assert found.events["item_id"].to_list() == [odd[0]["itemId"]] * 6
