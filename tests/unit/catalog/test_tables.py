import polars as pl

from c360_pipeline.core.catalog.changes import difference
from c360_pipeline.core.catalog.tables import TABLES


def frame(**rows: int | None) -> pl.DataFrame:
    return pl.DataFrame({"k": list(rows), "v": list(rows.values())}, schema={"k": pl.String, "v": pl.Int64})


def test_changes_are_new_altered_and_gone_rows() -> None:
    changes = difference(frame(a=1, b=2, c=None), frame(a=1, b=3, d=None), ("k",))
    assert sorted(changes.upserted["k"]) == ["b", "d"]
    assert changes.deleted["k"].to_list() == ["c"]
    assert changes.count == 3


def test_null_equals_null() -> None:
    assert difference(frame(a=None), frame(a=None), ("k",)).count == 0


def test_rows_of_another_type_are_all_altered() -> None:
    before = frame(a=1, b=2).with_columns(pl.col("v").cast(pl.String))
    changes = difference(before, frame(a=1, c=3), ("k",))
    assert sorted(changes.upserted["k"]) == ["a", "c"]
    assert changes.deleted["k"].to_list() == ["b"]


def test_from_and_to_nothing() -> None:
    assert difference(frame(), frame(a=1), ("k",)).upserted.height == 1
    assert difference(frame(a=1), frame(), ("k",)).deleted.height == 1


def test_the_key_and_the_partitions_of_every_table_are_columns() -> None:
    for table in TABLES.values():
        assert set(table.key) | set(table.partition_by) <= set(table.columns), table.name
        assert table.description.endswith(".")


def test_every_column_is_declared_once_in_its_table_and_says_what_it_means() -> None:
    for table in TABLES.values():
        assert len(table.columns) == len(table.declared), table.name
        assert all(len(meaning) > 2 for meaning in table.meanings.values()), table.name
