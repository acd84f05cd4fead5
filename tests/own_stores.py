"""Stores that no other test uses, for fixtures of a whole module."""

from pathlib import Path
from uuid import uuid4

import pytest

from c360_pipeline.settings import Settings, load_settings


def own_stores(patch: pytest.MonkeyPatch, home: Path) -> Settings:
    """Settings with a bucket, a control database and a database of Dagster of new names, until the patch ends."""
    name = uuid4().hex[:12]
    patch.setenv("C360_BUCKET", f"test-{name}")
    patch.setenv("ETL_DB_NAME", f"control_{name}")
    patch.setenv("C360_DAGSTER_DB", f"dagster_{name}")
    return load_settings(home)
