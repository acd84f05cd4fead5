"""Rows of the graph: attributes as JSON text are what the standard library makes of them."""

import json

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.projection.graph import attributes_text

TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=6)


@given(st.lists(st.none() | st.dictionaries(TEXTS, TEXTS, max_size=4), max_size=5))
def test_attributes_are_json_with_sorted_names(attrs: list[dict[str, str] | None]) -> None:
    entries = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
    given_rows = [None if one is None else [{"key": k, "value": v} for k, v in one.items()] for one in attrs]
    series = pl.Series(given_rows, dtype=entries).cast(EVENTS.empty().schema["attrs"])
    wanted = [json.dumps(one or {}, ensure_ascii=False, sort_keys=True) for one in attrs]
    assert attributes_text(series).to_list() == wanted
