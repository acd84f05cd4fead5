"""What event sources brought a tenant: the accounting of their files, as far as all of it is the tenant's own."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.tables import EVENTS, LANDING_FILES
from c360_pipeline.core.landing.accounting import OUTCOMES
from c360_pipeline.core.sources.location import Location
from c360_pipeline.core.sources.mapping import resolved
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.sources.presets import presets
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.control import ControlDb

_COUNTED = ("lines", *OUTCOMES)


@dataclass(frozen=True)
class SourceOfPage:
    """A source as a page needs it.

    Attributes:
        name: of the source.
        location: of its files.
        version: of the mapping that new files are read by; None where the source is paused.
        tenants: of each version of the mapping, the value of its document that says whose the events are.
    """

    name: str
    location: Location
    version: int | None
    tenants: Mapping[int, Any]

    def versions_of(self, tenant_id: str) -> list[int]:
        """Versions of the mapping by which every file is of this tenant."""
        return [version for version, said in self.tenants.items() if said == {"const": tenant_id}]


def sources_of_pages(control: ControlDb) -> list[SourceOfPage]:
    """The sources that have a mapping, as pages show them; what is wrong with one is the run's to say."""
    found = []
    for row in control.sources.rows():
        with suppress(ConfigError):
            known = {name: preset.document for name, preset in presets().items()}
            tenants = {m.version: resolved(m.document, known).get("tenant") for m in control.sources.mappings(row)}
            version = row.active_version if row.is_active else None
            found.append(SourceOfPage(row.name, Location(row.location), version, tenants))
    return found


def delivered_by_source(lake: Lake, sources: Iterable[SourceOfPage], tenant_id: str) -> list[dict[str, Any]]:
    """Of each source that brought a tenant something, or may: files, records by what became of them, newest day.

    Files whose records name several tenants say nothing of each; of their sources the tenant's events alone are known.

    Args:
        lake: with the accounting.
        sources: all of them.
        tenant_id: whose page it is.

    Returns:
        A row each: name, version, events, and `files`, `records`, `outcomes` (name and number), `newest`; None where
        the accounting is not the tenant's alone.
    """
    events = lake.scan(EVENTS).filter((pl.col("tenant_id") == tenant_id) & pl.col("source").is_not_null())
    landed: dict[str, int] = dict(events.group_by("source").len().collect().iter_rows())
    files = lake.scan(LANDING_FILES).filter(pl.col("source").is_not_null())
    rows = []
    for source in sources:
        of_source = files.filter(pl.col("source") == source.name)
        if source.location.says_tenant:
            counted = _counted(of_source.filter(_tenant_in(source.location) == tenant_id))
        elif versions := source.versions_of(tenant_id):
            counted = _counted(of_source.filter(pl.col("mapping_version").is_in(versions)))
        else:
            counted = {"files": None, "records": None, "outcomes": [], "newest": None}
        is_waiting = source.version in source.versions_of(tenant_id)
        if counted["files"] or is_waiting or landed.get(source.name):
            rows.append(
                {"name": source.name, "version": source.version, "events": landed.get(source.name, 0), **counted}
            )
    return rows


def by_source(lake: Lake, *more: str) -> pl.DataFrame:
    """Files and records of each source by what became of them, with the newest day and version."""
    files = lake.scan(LANDING_FILES).filter(pl.col("source").is_not_null())
    counted = files.group_by("source", *more).agg(
        pl.len().alias("files"), pl.col(*_COUNTED).sum(), newest=pl.col("landing_date").max(),
        mapping_version=pl.col("mapping_version").max(),
    )  # fmt: skip
    return counted.sort("source", *more).collect()


def _tenant_in(location: Location) -> pl.Expr:
    key = pl.col("source_uri").str.strip_prefix(f"s3://{location.bucket}/")
    return key.str.extract_groups(f"^(?:{location.pattern})$").struct.field("tenant")


def _counted(files: pl.LazyFrame) -> dict[str, Any]:
    said = files.select(
        pl.len().alias("files"), pl.col(*_COUNTED, "replaced").sum(), newest=pl.col("landing_date").max()
    ).collect().row(0, named=True)  # fmt: skip
    newest: date | None = said["newest"]
    outcomes = [(name, said[name]) for name in (*OUTCOMES, "replaced") if said[name] or name in OUTCOMES[:3]]
    return {"files": said["files"], "records": said["lines"], "outcomes": outcomes, "newest": newest}
