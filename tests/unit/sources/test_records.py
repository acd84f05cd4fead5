"""Files of tables and batches as JSON lines: what is broken is named, and what stands beside it is read."""

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import fastavro
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c360_pipeline.core.contract.events import Rejected, load_object
from c360_pipeline.core.sources import records
from c360_pipeline.core.sources.records import Framing, message_lines
from c360_pipeline.errors import ConfigError, ContractError
from c360_pipeline.stages.landing.blanking import _write_without
from c360_pipeline.stages.sources.reading import record_lines
from c360_pipeline.stages.sources.topics import records_of


def read(tmp_path: Path, content: bytes, framing: Framing) -> list[bytes]:
    path = tmp_path / "file"
    path.write_bytes(content)
    return list(record_lines(path, framing))


def until_damage(tmp_path: Path, content: bytes, framing: Framing) -> tuple[list[bytes], str]:
    path, found = tmp_path / "file", list[bytes]()
    path.write_bytes(content)
    with pytest.raises(ContractError) as caught:
        found.extend(record_lines(path, framing))
    return found, str(caught.value)


@pytest.mark.parametrize("pack", [lambda b: b, gzip.compress])
def test_a_table_has_a_record_each_row(tmp_path: Path, pack: Any) -> None:
    def rows(content: bytes, kind: str) -> list[Any]:
        return [json.loads(line) for line in read(tmp_path, content, Framing(kind))]

    assert rows(pack(b'id\tname\r\n1\tAnn "x"\r\n\r\n2\t\r\n'), "tsv") == [{"id": "1", "name": 'Ann "x"'}, {"id": "2"}]
    assert rows(pack(b'\xef\xbb\xbfid,name\n1,"a, ""b""\nc"\n'), "csv") == [{"id": "1", "name": 'a, "b"\nc'}]
    assert rows("id\tname\n1\tMüller\n".encode("utf-16"), "tsv") == [{"id": "1", "name": "Müller"}]


@pytest.mark.parametrize("kind", ["tsv", "csv"])
def test_a_row_that_is_none_is_a_dead_record_with_all_its_bytes(tmp_path: Path, kind: str) -> None:
    between = "\t" if kind == "tsv" else ","
    lines = [between.join(row).encode() for row in (["a", "b"], ["1", "2"], ["1", "2", "3"], ["4", "5"])]
    found = read(tmp_path, b"\n".join([*lines, b"6" + between.encode() + b"\xff"]) + b"\n", Framing(kind))
    assert [json.loads(found[0]), json.loads(found[2])] == [{"a": "1", "b": "2"}, {"a": "4", "b": "5"}]
    assert between.join("123").encode().decode() in json.loads(found[1])
    for broken, said in ((found[1], "not_an_object"), (found[3], "invalid_utf8")):
        with pytest.raises(Rejected) as caught:
            load_object(broken)
        assert caught.value.error_class == said


def test_a_table_that_breaks_off_is_read_until_there(tmp_path: Path) -> None:
    whole = gzip.compress(b"a\n" + b"".join(b"%d\n" % n for n in range(20_000)))
    found, said = until_damage(tmp_path, whole[: len(whole) // 2], Framing("tsv"))
    assert 5_000 < len(found) < 20_000
    assert [json.loads(line)["a"] for line in found[:-1]] == [str(n) for n in range(len(found) - 1)]
    assert "file" in said


def test_parquet_and_avro_have_a_record_each_row_and_damage_is_named(tmp_path: Path) -> None:
    frame = pl.DataFrame({"id": [1, 2], "at": ["2026-11-20 10:00:00", None], "price": ["79.90", "1"]}).with_columns(
        pl.col("at").str.to_datetime(), pl.col("price").cast(pl.Decimal(10, 2)), inner=pl.struct(a=pl.lit(1)),
    )  # fmt: skip
    stored = io.BytesIO()
    frame.write_parquet(stored)
    (first, second) = (json.loads(line) for line in read(tmp_path, stored.getvalue(), Framing("parquet")))
    assert first == {"id": 1, "at": "2026-11-20T10:00:00+00:00", "price": 79.90, "inner": {"a": 1}}
    assert second["at"] is None
    found, said = until_damage(tmp_path, stored.getvalue()[:-20], Framing("parquet"))
    assert (found, "file" in said) == ([], True)
    odd = io.BytesIO()
    pl.DataFrame({"t": [2**62]}).with_columns(pl.col("t").cast(pl.Datetime("us"))).write_parquet(odd)
    assert "damaged" in until_damage(tmp_path, odd.getvalue(), Framing("parquet"))[1]

    schema = {
        "type": "record",
        "name": "r",
        "fields": [{"name": "id", "type": "long"}, {"name": "s", "type": "string"}],
    }
    avro = io.BytesIO()
    fastavro.writer(avro, schema, [{"id": n, "s": "x" * 50} for n in range(1_000)], codec="deflate")
    assert json.loads(read(tmp_path, avro.getvalue(), Framing("avro"))[999]) == {"id": 999, "s": "x" * 50}
    assert "no Avro file that can be read" in until_damage(tmp_path, avro.getvalue()[:-30], Framing("avro"))[1]


def test_records_within_a_value_are_each_one_and_broken_ones_stay_whole(tmp_path: Path) -> None:
    lines = [
        b'{"batch": [{"a": 9007199254740993.0}, {"a": 2}, null]}', b'{"batch": []}', b'{"batch": [{"a": NaN}]}',
        b'{"batch": [{"a": 1, "a": 2}]}', b'{"other": 1}', b"{oops",
        b'{"batch": [{"a":' + b"[" * 900 + b"]" * 900 + b"}]}",
    ]  # fmt: skip
    found = read(tmp_path, b"\n".join(lines) + b"\n", Framing("lines", None, "batch[]"))
    assert found[:3] == [b'{"a":9007199254740993.0}', b'{"a":2}', b"null"]
    assert found[3:7] == lines[2:6]
    assert len(found) == 8
    deep = read(tmp_path, b'{"r": [{"s": [{"l": [{"n": 1}, {"n": 2}]}, {"l": [{"n": 3}]}]}]}\n',
                Framing("lines", None, "r[].s[].l[]"))  # fmt: skip
    assert deep == [b'{"n":1}', b'{"n":2}', b'{"n":3}']


def test_records_get_members_of_what_they_lie_in_along(tmp_path: Path) -> None:
    lists = b'[{"y": {"a": 1}, "s": [{"l": [{"n": 1}, {"n": 2, "at": 6}, 3]}]}, {"s": [{"l": [{}]}]}]'
    line = b'{"at": 5, "x": 0, "r": ' + lists + b"}\n"
    found = read(tmp_path, line, Framing("lines", None, "[at,none].r[y].s[].l[]"))
    assert found == [b'{"at":5,"y":{"a":1},"n":1}', b'{"at":6,"y":{"a":1},"n":2}', b"3", b'{"at":5}']


@pytest.mark.parametrize("records", ["batch", "a..b[]", "[]", "a[].b", "a[x]", "[].a[]", "[a.b].c[]", "a[b"])
def test_a_path_that_leads_to_no_list_is_refused(records: str) -> None:
    with pytest.raises(ConfigError, match="records"):
        Framing("lines", None, records)


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def test_each_table_of_a_zip_file_has_a_header_of_its_own(tmp_path: Path) -> None:
    packed = gzip.compress(b"id\n3\n")
    content = zipped({"a.csv": b"id,x\n1,a\n", "folder/": b"", "b.csv": b"x,id\nb,2", "c.csv.gz": packed})
    assert read(tmp_path, content, Framing("csv")) == [b'{"id":"1","x":"a"}', b'{"x":"b","id":"2"}', b'{"id":"3"}']
    bare = zipped({"a.tsv": b"1\ta", "b.tsv": b"2\tb\n"})
    assert read(tmp_path, bare, Framing("tsv", ("id", "x"))) == [b'{"id":"1","x":"a"}', b'{"id":"2","x":"b"}']
    table = io.BytesIO()
    pq.write_table(pa.table({"id": [1]}), table)
    tables = zipped({"a": table.getvalue(), "b": table.getvalue()})
    assert read(tmp_path, tables, Framing("parquet")) == [b'{"id":1}'] * 2
    broken = gzip.compress(zipped({"a.csv": b"id\n1\n", "b.csv": b"id\n2\n"}))[:-12]
    assert "is not a whole" in until_damage(tmp_path, broken, Framing("csv"))[1]


def test_lines_of_a_table_may_end_with_carriage_returns(tmp_path: Path) -> None:
    wanted = [b'{"id":"1","x":"a"}', b'{"id":"2","x":"\xc3\xa9"}']
    for end in (b"\r", b"\r\n", b"\n"):
        rows = [b"id\tx", b"1\ta", b"2\t\xc3\xa9", b""]
        assert read(tmp_path, end.join(rows), Framing("tsv")) == wanted
        assert read(tmp_path, end.join(row.replace(b"\t", b",") for row in rows), Framing("csv")) == wanted
    # Within lines that end otherwise it is a part of a value.
    assert read(tmp_path, b"id\tx\n1\ta\rb\n", Framing("tsv")) == [b'{"id":"1","x":"a\\rb"}']


@pytest.mark.parametrize("first", [b"\x1f\x8b", b"PK\x03\x04", b"PAR1", b"[{}]", b"\xff\xfe{\0}\0", b"[", b'"'])
@pytest.mark.parametrize("kind", ["lines", "tsv", "csv"])
def test_a_message_takes_no_other_along_whatever_it_looks_like(tmp_path: Path, first: bytes, kind: str) -> None:
    """The real-time path writes what came, a line each: how a file begins says nothing of its other lines."""
    framing = Framing(kind, None if kind == "lines" else ("a", "b"), is_of_messages=True)
    row = {"lines": b'{"a": "1", "b": "2"}', "tsv": b"1\t2", "csv": b"1,2"}[kind]
    found = read(tmp_path, b"\n".join([first, row, first, row]) + b"\n", framing)
    assert [json.loads(found[1]), json.loads(found[3])] == [{"a": "1", "b": "2"}] * 2
    assert len(found) == 4
    for broken in (found[0], found[2]):
        with pytest.raises(Rejected):
            load_object(broken)
    # A message that is looked at by itself has the same records.
    assert [line for message in (first, row + b"\r\n") for line in records_of(message, framing)] == found[:2]


@pytest.mark.parametrize("framing", [("parquet", None), ("tsv", None), ("array", None)])
def test_what_no_message_can_be_is_refused(framing: tuple[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a message of a topic is a JSON value"):
        Framing(*framing, is_of_messages=True)


ROWS = Framing("csv", ("a", "b"), is_of_messages=True)
BATCHES = Framing(records="[at].batch[]", is_of_messages=True)


@pytest.mark.parametrize(
    ("framing", "lines", "gone", "left"),
    [
        (Framing(is_of_messages=True), [b'{"a":1}', b"", b'{"a":2}'], {3}, [b'{"a":1}', b"", b""]),
        (ROWS, [b"1,2", b'"x', b"", b"3,4"], {2}, [b"1,2", b"", b"", b"3,4"]),
        (BATCHES,
         [b'{"batch":[{"a":1.50},{"a":2}],"at":7}', b'{"batch":[{"a":3}]}', b"no JSON", b'{"batch":[{"a":4}]}'],
         {2, 3, 4}, [b'{"batch":[{"a":1.50},null],"at":7}', b'{"batch":[null]}', b"", b'{"batch":[{"a":4}]}']),
    ],
)  # fmt: skip
def test_records_go_from_messages_and_the_numbers_of_the_others_stay(
    framing: Framing, lines: list[bytes], gone: set[int], left: list[bytes]
) -> None:
    def numbered(content: bytes) -> dict[int, bytes]:
        records = b"".join(message_lines([content], framing)).split(b"\n")
        return {number: record for number, record in enumerate(records, 1) if record}

    content, out = b"\n".join(lines) + b"\n", io.BytesIO()
    _write_without(io.BytesIO(content), out, gone, framing)
    assert out.getvalue() == b"\n".join(left) + b"\n"
    before, after = numbered(content), numbered(out.getvalue())
    assert after == {number: record for number, record in before.items() if number not in gone}
    again = io.BytesIO()
    _write_without(io.BytesIO(out.getvalue()), again, {max(after)}, framing)
    assert numbered(again.getvalue()) == {n: record for n, record in after.items() if n != max(after)}


def test_a_message_that_would_become_more_than_anybody_means_is_one_dead_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "MOST_BYTES_OF_A_VALUE", 1_000)
    line = json.dumps({"at": "x" * 100, "batch": [{}] * 10}).encode()
    assert list(records_of(line, BATCHES)) == [line]
    assert len(list(records_of(json.dumps({"at": "x", "batch": [{}] * 10}).encode(), BATCHES))) == 10
