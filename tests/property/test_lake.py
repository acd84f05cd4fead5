import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from c360_pipeline.core.catalog.changes import compare_versions

ROWS = st.dictionaries(st.integers(0, 9), st.none() | st.integers(0, 2))


def frame(rows: dict[int, int | None]) -> pl.DataFrame:
    return pl.DataFrame({"k": list(rows), "v": list(rows.values())}, schema={"k": pl.Int64, "v": pl.Int64})


@given(ROWS, ROWS)
def test_changes_lead_from_one_version_to_the_next_and_are_the_fewest(
    before: dict[int, int], after: dict[int, int]
) -> None:
    changes = compare_versions(frame(before), frame(after), ("k",))
    applied = {k: v for k, v in before.items() if k not in changes.deleted["k"].to_list()} | dict(
        changes.upserted.rows()
    )
    assert applied == after
    assert changes.upserted.height == sum(1 for k, v in after.items() if k not in before or before[k] != v)
    assert changes.deleted.height == len(before.keys() - after.keys())
