from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest

from c360_pipeline.core.reconciliation.compare import combined_digest, compare, digest, row_hashes


def frame(*rows: tuple[str, object]) -> pl.DataFrame:
    return pl.DataFrame({"id": [r[0] for r in rows], "value": [r[1] for r in rows]}, strict=False)


def test_equal_rows_in_any_order_have_one_digest() -> None:
    one, other = frame(("a", 1), ("b", 2)), frame(("b", 2), ("a", 1)).select("value", "id")
    assert digest(row_hashes(one)) == digest(row_hashes(other))
    assert compare(one, other, ["id"]).is_equal


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 2), (1, None), (None, ""), (None, "\x00"), (1, 1.0), (1, "1"), (True, 1), ([1, 2], [2, 1])],
)
def test_values_that_differ_in_anything_differ(one: object, other: object) -> None:
    assert digest(row_hashes(frame(("a", one)))) != digest(row_hashes(frame(("a", other))))


def test_an_instant_is_the_same_in_every_zone() -> None:
    at = datetime(2025, 11, 1, 12, tzinfo=UTC)
    there = pl.DataFrame({"id": ["a"], "value": [at.astimezone(timezone(timedelta(hours=2)))]})
    here = pl.DataFrame({"id": ["a"], "value": [at]})
    assert compare(here, there.with_columns(pl.col("value").dt.convert_time_zone("UTC")), ["id"]).is_equal


def test_maps_are_equal_in_any_order_of_names() -> None:
    kind = pl.Map(pl.String, pl.String)
    one = pl.DataFrame({"m": pl.Series([{"a": "1", "b": "2"}], dtype=kind)})
    other = pl.DataFrame({"m": pl.Series([{"b": "2", "a": "1"}], dtype=kind)})
    assert row_hashes(one).equals(row_hashes(other))


def test_each_kind_of_difference_is_named() -> None:
    expected = frame(("same", 1), ("altered", 1), ("missing", 1), ("twice", 1))
    found = frame(("same", 1), ("altered", 2), ("ghost", 1), ("twice", 1), ("twice", 1))
    findings = compare(expected, found, ["id"]).findings
    assert sorted(findings.select("kind", "key").rows()) == [
        ("altered", "altered"), ("duplicate", "twice"), ("ghost", "ghost"), ("missing", "missing"),
    ]  # fmt: skip
    altered = findings.filter(pl.col("kind") == "altered")["difference"].item()
    assert altered == "value: archive 1, graph 2"


def test_a_combined_digest_does_not_depend_on_order() -> None:
    assert combined_digest({"a": "1", "b": "2"}) == combined_digest({"b": "2", "a": "1"})
    assert combined_digest({"a": "1"}) != combined_digest({"a": "2"})
