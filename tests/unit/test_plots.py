"""Pictures in the UI are made whatever tenants are called."""

import base64
import io

import polars as pl
import pytest

from c360_pipeline.assets.plots import community_sizes, differences_by_day

NAMES = ["$^$_{", "_hidden", "🙂", "\u202e", "a\nb", "漢" * 60, "x" * 200]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_made_whatever_a_tenant_is_called(name: str) -> None:
    sizes = pl.DataFrame({"tenant_id": [name, name], "community": [1, 2], "community_size": [30, 3]})
    buckets = pl.DataFrame(
        {"tenant_id": [name], "day": [None], "expected_digest": ["a"], "found_digest": ["b"]},
        schema_overrides={"day": pl.Date},
    )
    for made in (community_sizes(sizes), differences_by_day(buckets)):
        image = base64.b64decode(str(made.value).partition("base64,")[2].removesuffix(")"))
        assert io.BytesIO(image).read(8) == b"\x89PNG\r\n\x1a\n"
