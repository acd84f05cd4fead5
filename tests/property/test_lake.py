import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from c360_pipeline.core.catalog.changes import difference

ROWS = st.dictionaries(st.integers(0, 9), st.none() | st.integers(0, 2))


def frame(rows: dict[int, int | None]) -> pl.DataFrame:
    return pl.DataFrame({"k": list(rows), "v": list(rows.values())}, schema={"k": pl.Int64, "v": pl.Int64})


@given(ROWS, ROWS)
def test_changes_lead_from_one_version_to_the_next_and_are_the_fewest(
    before: dict[int, int], after: dict[int, int]
) -> None:
    changes = difference(frame(before), frame(after), ("k",))
    assert dict(changes.inserted.rows()) == {k: v for k, v in after.items() if k not in before}
    assert dict(changes.updated.rows()) == {k: v for k, v in after.items() if k in before and before[k] != v}
    applied = {k: v for k, v in before.items() if k not in changes.deleted["k"].to_list()} | dict(
        changes.upserted.rows()
    )
    assert applied == after
    assert changes.upserted.height == sum(1 for k, v in after.items() if k not in before or before[k] != v)
    assert changes.deleted.height == len(before.keys() - after.keys())


@given(ROWS, ROWS)
def test_rows_of_a_part_of_the_source_delete_nothing(before: dict[int, int], after: dict[int, int]) -> None:
    changes = difference(frame(before), frame(after), ("k",), is_all=False)
    assert changes.deleted.is_empty()
    assert changes.upserted.equals(difference(frame(before), frame(after), ("k",)).upserted)
