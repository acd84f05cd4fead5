"""Insights begin with what is most telling."""

from pathlib import Path

import polars as pl
import pytest

from c360_pipeline.reads.insights import KINDS, insights
from c360_pipeline.stores.delta.lake import Lake

VALUES: dict[type[pl.DataType], list[object]] = {
    pl.String: ["a", "c", "b"], pl.Float64: [0.2, 0.9, 0.5], pl.Int64: [2, 9, 5],
}  # fmt: skip


@pytest.mark.parametrize("name", list(KINDS))
def test_the_most_telling_come_first(name: str, tmp_path: Path) -> None:
    kind, lake = KINDS[name], Lake(f"{tmp_path}/lake", {}, tmp_path / "cache")
    schema = kind.table.empty().schema
    columns = {column: VALUES.get(type(dtype), [None] * 3) for column, dtype in schema.items()}
    given = {**columns, "tenant_id": ["t"] * 3}
    lake.commits.append(kind.table, pl.DataFrame(given, schema=schema))
    first, is_descending = next(iter(kind.order.items()))
    found = insights(lake, "t", name, 2)
    assert [row[first] for row in found.rows] == sorted(given[first], key=str, reverse=is_descending)[:2]  # type: ignore[call-overload]
    assert found.total == 3
