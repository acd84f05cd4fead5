"""Proofs that a graph equals its archive, kept: each starts from the one before, and compares what changed since.

A proof says of which moment of the archive it is, how many rows of each kind the graph must hold then, and when every
row was last compared (docs/adr/0064).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.tables import GRAPH_PROOFS
from c360_pipeline.core.projection.user_properties import as_text, from_text
from c360_pipeline.stages.reconciliation.pinned import PinnedVersions
from c360_pipeline.stores.delta.lake import Lake

KEPT_FOR = timedelta(days=3)
"""The next proof needs the newest alone; people look at the last days."""
SEPARATOR = "|"
"""Between the name of a projection and that of a table."""


@dataclass(frozen=True)
class Proof:
    """A comparison that found both sides equal.

    Attributes:
        pinned: the moment of the archive.
        control: sha256 of the control rows that decide what the graph holds.
        counts: rows that the graph must hold at that moment by kind's name; None where nobody knows.
        rows: that were compared.
        proved_at: when the comparison began, UTC.
        everything_at: when the last comparison of every row began, UTC.
        reason: why every row was compared; None where only changes were.
    """

    pinned: PinnedVersions
    control: str
    counts: Mapping[str, int | None]
    rows: int
    proved_at: datetime
    everything_at: datetime
    reason: str | None

    @property
    def uncounted(self) -> list[str]:
        """Kinds whose number is not known, by name."""
        return sorted(name for name, count in self.counts.items() if count is None)

    @classmethod
    def newest(cls, lake: Lake) -> "Proof | None":
        """The proof of the latest moment; None where there is none."""
        proofs = lake.scan(GRAPH_PROOFS)
        at, everything_at = proofs.select(pl.col("proved_at", "everything_proved_at").max()).collect().row(0)
        if at is None:
            return None
        row = proofs.filter(pl.col("proved_at") == at).collect().row(0, named=True)
        said = json.loads(row["snapshot"])
        return cls(
            _pinned(said), said["control"], json.loads(row["counts"]), row["rows"], at, everything_at,
            row["reason"],
        )  # fmt: skip

    def keep(self, lake: Lake, run_id: str) -> None:
        """Put it into the lake under the id of a run, and remove those that are older than `KEPT_FOR`."""
        row = {
            "run_id": run_id, "is_everything": self.reason is not None, "reason": self.reason, "rows": self.rows,
            "uncounted": json.dumps(self.uncounted), "proved_at": self.proved_at,
            "everything_proved_at": self.everything_at,
            "snapshot": json.dumps({**_as_json(self.pinned), "control": self.control}, sort_keys=True),
            "counts": json.dumps(self.counts, sort_keys=True),
        }  # fmt: skip
        schema = GRAPH_PROOFS.empty().schema
        is_old = pl.col("proved_at") < self.proved_at - KEPT_FOR
        old = lake.scan(GRAPH_PROOFS).filter(is_old).select("run_id").collect()
        lake.commits.merge(GRAPH_PROOFS, pl.DataFrame([row], schema=schema), old)


def everything_proved_at(lake: Lake) -> datetime | None:
    """When every row of the graph had last been compared; None for never."""
    at = lake.scan(GRAPH_PROOFS).select(pl.col("everything_proved_at").max()).collect().item()
    return at.astimezone(UTC) if at else None


def _as_json(pinned: PinnedVersions) -> dict[str, Any]:
    return {
        "versions": {SEPARATOR.join(name): str(version) for name, version in pinned.versions.items()},
        "commits": dict(pinned.commits) if pinned.commits is not None else None,
        "silos": _texts(pinned.silos),
        "mapped": {name: _texts(checkpoints) for name, checkpoints in pinned.mapped.items()},
        "properties": as_text(pinned.properties) if pinned.properties is not None else None,
    }


def _pinned(said: Mapping[str, Any]) -> PinnedVersions:
    versions = {tuple(name.split(SEPARATOR)): Version.parse(text) for name, text in said["versions"].items()}
    return PinnedVersions(
        {(projection, table): version for (projection, table), version in versions.items()},
        said["commits"],
        _versions(said["silos"]),
        {name: _versions(checkpoints) for name, checkpoints in said["mapped"].items()},
        from_text(said["properties"]) if said["properties"] is not None else None,
    )


def _texts(versions: Mapping[str, Version]) -> dict[str, str]:
    return {name: str(version) for name, version in versions.items()}


def _versions(texts: Mapping[str, str]) -> dict[str, Version]:
    return {name: Version.parse(text) for name, text in texts.items()}
