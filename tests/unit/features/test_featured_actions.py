from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from c360_pipeline.assets.features import featureless
from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.stages.visitors.counted import EventsAt
from c360_pipeline.stores.delta.lake import Lake


def test_a_tenant_whose_actions_make_no_feature_is_named_with_its_actions(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    lake = Lake(str(tmp_path / "lake"), {}, tmp_path / "cache")
    said = [("acme", "view"), ("school", "Lesson Started"), ("school", "Lesson Started"), ("school", "Plan Bought")]
    rows = EVENTS.empty().clear(len(said)).with_columns(
        tenant_id=pl.Series([tenant for tenant, _ in said]), action=pl.Series([action for _, action in said]),
        event_id=pl.Series([str(n) for n in range(len(said))]), ts=pl.lit(datetime(2026, 3, 2, tzinfo=UTC)),
    ).cast(dict(EVENTS.empty().schema))  # fmt: skip
    lake.commits.append(EVENTS, rows)
    found = featureless(EventsAt.now(lake), ["acme", "school", "new"])
    assert not found.passed
    assert found.description
    assert found.description.startswith("No event of school is a view or a purchase")
    assert "Lesson Started" in str(found.metadata["actions"].value)
    assert "acme" not in str(found.metadata["actions"].value)
    assert featureless(EventsAt.now(lake), ["acme", "new"]).passed
