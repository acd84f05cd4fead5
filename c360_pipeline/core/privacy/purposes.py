"""Purposes that people must not have refused for a feature to use what they did."""

from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from c360_pipeline.core.privacy.retention import EVERY

RECOMMENDATIONS = "recommendations"
"""The feature that is made when it is asked for; others are tables."""


@dataclass(frozen=True)
class Purpose:
    """A control row of `feature_purposes`.

    Attributes:
        tenant_id: whose customers; `*` for all.
        feature: table of features, `recommendations`, or `*` for all.
        purpose: as events name it.
    """

    tenant_id: str
    feature: str
    purpose: str


def purposes_of(rows: Collection[Purpose], feature: str, tenants: Collection[str]) -> pl.DataFrame:
    """tenant_id, purpose: what a feature needs of the customers of some tenants."""
    found = {
        (tenant, row.purpose)
        for row in rows if row.feature in (EVERY, feature)
        for tenant in tenants if row.tenant_id in (EVERY, tenant)
    }  # fmt: skip
    return pl.DataFrame(sorted(found), schema={"tenant_id": pl.String, "purpose": pl.String}, orient="row")
