"""What a batch of stitching did, and what other rules would do."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from c360_pipeline.core.stitching.batch import Batch, Known, Stitched
from c360_pipeline.core.stitching.log import Gone


@dataclass(frozen=True)
class BatchReport:
    """What a batch did.

    Attributes:
        events: that were stitched.
        known: that were stitched before and passed over.
        removed: that were taken out.
        reread: events of journeys that were restitched.
        keys: rows of event and key.
        founded: journeys that are new.
        merged: journeys that went into another.
        split: parts that left a journey.
        conflicts: links that a guard refused.
        quarantined: keys that link no longer.
        seconds: from the first lookup to the commit.
        longest_seconds: of a batch.
        retries: times that another worker was faster.
    """

    events: int = 0
    known: int = 0
    removed: int = 0
    reread: int = 0
    keys: int = 0
    founded: int = 0
    merged: int = 0
    split: int = 0
    conflicts: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    longest_seconds: float = 0.0
    retries: int = 0

    def __add__(self, other: "BatchReport") -> "BatchReport":
        sums = {name: getattr(self, name) + getattr(other, name) for name in vars(self)}
        return BatchReport(**{**sums, "longest_seconds": max(self.longest_seconds, other.longest_seconds)})

    @property
    def events_per_second(self) -> float:
        """Events stitched per second of work."""
        return self.events / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Change:
    """What is to be committed; with the batch, where all that it says of the batch's keys is committed."""

    stitched: Stitched
    gone: Gone
    report: BatchReport
    batch: Batch | None = None
    cause: str = ""


@dataclass(frozen=True)
class Rebase:
    """What other rules make of a tenant's journeys.

    Attributes:
        tenant_id: whose.
        seq: the tenant's last commit when this was found out.
        change: what would be committed; None when nothing would.
        journeys: that there are now.
        moved: tenant_id, event_id, journey_id, before: events that would change journeys.
        keys: tenant_id, key_type, status, before, len: keys of events that would link otherwise, by type.
    """

    tenant_id: str
    seq: int
    change: Change | None
    journeys: int
    moved: pl.DataFrame
    keys: pl.DataFrame

    @property
    def merges(self) -> pl.DataFrame:
        """As `Stitched.merges`."""
        return self.change.stitched.merges if self.change else pl.DataFrame()

    @property
    def splits(self) -> pl.DataFrame:
        """As `Stitched.splits`."""
        return self.change.stitched.splits if self.change else pl.DataFrame()

    def counting(self, stitched: Stitched, partners: np.ndarray[Any, Any]) -> "Rebase":
        """The same, with keys of which other partners are known than were counted."""
        is_other = pl.Series(stitched.key_journey["partners"].to_numpy() != partners)
        others = stitched.key_journey.filter(is_other)
        if self.change is None:
            return self  # counts alone link nothing otherwise
        said = self.change.stitched.key_journey
        more = others.join(said, on=["key_type", "key_hash"], how="anti")
        counted = replace(self.change.stitched, key_journey=pl.concat([said, more]))
        return replace(self, change=replace(self.change, stitched=counted))

    @property
    def touched(self) -> int:
        """Journeys that would merge or split."""
        return self.merges.height + self.splits.height

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        ids = ["tenant_id", "survivor", "loser"]
        return {
            "tenant_id": self.tenant_id, "journeys": self.journeys,
            "merges": self.merges.select(ids).to_dicts() if self.merges.height else [],
            "splits": self.splits.to_dicts(), "moved": self.moved.height, "keys": self.keys.to_dicts(),
        }  # fmt: skip


def report_of(stitched: Stitched, known: Known) -> BatchReport:
    """What a batch that was stitched did."""
    founded = stitched.journeys.join(known.journeys, on="journey_id", how="anti").height
    return BatchReport(
        events=stitched.events.height, keys=stitched.event_keys.height, founded=founded, merged=stitched.merges.height,
        split=stitched.splits.height, conflicts=stitched.conflicts.height, quarantined=stitched.quarantines.height,
    )  # fmt: skip
