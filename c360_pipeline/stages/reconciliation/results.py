"""What comparisons say: as rows of tables, as digests, and as findings for people."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.feature_tables import (
    CUSTOMER_CHURN,
    CUSTOMER_MODELS,
    CUSTOMER_VALUES,
    RECOMMENDATION_SETTINGS,
    USUAL_STEPS,
)
from c360_pipeline.core.catalog.recommendation_tables import RECOMMENDATION_HITS, RECOMMENDATIONS_GIVEN
from c360_pipeline.core.catalog.tables import RECONCILIATION_FINDINGS, RECONCILIATIONS, TABLES
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.graph import OF_VISITORS
from c360_pipeline.core.reconciliation.compare import (
    NO_ROWS,
    Comparison,
    combined_digest,
    digest,
    row_hashes,
    sum_of_digests,
)
from c360_pipeline.stages.reconciliation.reconcile import REFUSED_TEXT, Reconciled
from c360_pipeline.stores.delta.lake import Lake

BOOKKEEPING = ("landed_at", "source_uri", "source_line", "etag", "landing_date", "first_seen_at", "merged_at",
               "extracted_at", "run_id", "reconciled_at", "reason", "committed_at",
               "split_at", "found_at", "quarantined_at", "split_id", "contract_version")  # fmt: skip
"""Columns that say when, whence and why a row came, not what it says: two runs differ in them and are equal."""

NOT_IN_DIGEST = (
    "reconciliations", "reconciliation_findings", "graph_proofs", "landing_files", "journey_log",
    "visitor_user", "sessions", "user_traits", "user_consents", "daily_events", "audience_members",
    "audience_delivered", "audience_dead_letters", "audience_deliveries", RECOMMENDATIONS_GIVEN.name,
    *(table.name for table in (RECOMMENDATION_HITS, CUSTOMER_VALUES, CUSTOMER_CHURN, CUSTOMER_MODELS, USUAL_STEPS)),
)  # fmt: skip
"""Tables that tell of runs and of requests, and those that follow from `events`."""
LATER = (
    "lake visitor_decisions",
    f"lake {RECOMMENDATION_SETTINGS.name}",
    *(
        kind.name
        for kind in (*OF_VISITORS, model.GROUP, model.MEMBER_OF, model.LEADS_TO, model.AUDIENCE, model.IN_AUDIENCE)
    ),
)
"""What a later release added: where it holds nothing, digests are what they were without it."""
HASHES = ("key_hash", "cause")
"""Columns of tables that hold hashes of identifiers, or name keys by them."""


def publish(lake: Lake, results: Sequence[Reconciled], run_id: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Keep what was found, and whether it was repaired, under the id of a run; returns the rows of both tables."""
    buckets, findings = bucket_rows(results, run_id), finding_rows(results, run_id)
    lake.commits.insert_new(RECONCILIATIONS, buckets)
    lake.commits.insert_new(RECONCILIATION_FINDINGS, findings)
    return buckets, findings


def bucket_rows(results: Iterable[Reconciled], run_id: str) -> pl.DataFrame:
    """Rows of `RECONCILIATIONS`."""
    now = datetime.now(UTC)
    parts = [
        r.comparison.buckets.with_columns(
            run_id=pl.lit(run_id), tenant_id=pl.lit(r.tenant_id), entity=pl.lit(r.kind.name),
            reconciled_at=pl.lit(now).cast(RECONCILIATIONS.empty().schema["reconciled_at"]),
        ).select(list(RECONCILIATIONS.columns))
        for r in results
    ]  # fmt: skip
    return pl.concat([RECONCILIATIONS.empty(), *parts])


def finding_rows(results: Iterable[Reconciled], run_id: str) -> pl.DataFrame:
    """Rows of `RECONCILIATION_FINDINGS`."""
    parts = [
        r.findings().with_columns(
            run_id=pl.lit(run_id), tenant_id=pl.lit(r.tenant_id), label=pl.lit(r.kind.name),
        ).select(list(RECONCILIATION_FINDINGS.columns))
        for r in results
        if r.comparison.findings.height
    ]  # fmt: skip
    return pl.concat([RECONCILIATION_FINDINGS.empty(), *parts])


def digests(lake: Lake, results: list[Reconciled]) -> dict[str, str]:
    """The canonical digest of every table of the lake and, as reconciled, every kind of the graph, by name.

    What only says when a row came is left out, and so are hashes of identifiers: two runs over the same input are
    equal, and so are two installations with other secrets.
    """
    result = {f"lake {name}": lake_digest(lake, name, passed=HASHES) for name in TABLES if name not in NOT_IN_DIGEST}
    return _without_empty_later(result) | _by_kind(results, lambda found: found.content_digest)


def lake_digest(lake: Lake, name: str, version: int | None = None, passed: Sequence[str] = ()) -> str:
    """The digest of a table at a version, without columns that only say when and whence a row came; read in batches.

    Args:
        lake: holds it.
        name: of the table.
        version: of the table; as it is now by default.
        passed: further columns that are left out.
    """
    table = TABLES.get(name) or lake.stored_table(name, ())
    if table is None:
        return NO_ROWS
    # Columns that a later release added are none of what the table held: its digest stays.
    said = [
        name
        for name in lake.column_names(name, version)
        if name in table.columns and name not in (*BOOKKEEPING, *passed)
    ]
    parts = (digest(row_hashes(rows.select(said))) for rows in lake.batches(table, version))
    return sum_of_digests(parts)


def _by_kind(results: Iterable[Reconciled], read: Callable[[Comparison], str]) -> dict[str, str]:
    found = {f"graph {r.tenant_id} {r.kind.name}": (r.kind.name, read(r.comparison)) for r in results}
    return {name: digest for name, (kind, digest) in found.items() if digest != NO_ROWS or kind not in LATER}


def _without_empty_later(found: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in found.items() if digest != NO_ROWS or name not in LATER}


def digests_by_day(results: Iterable[Reconciled]) -> list[dict[str, Any]]:
    """tenant_id, entity, day, and the digests of archive and graph, for every day that has rows."""
    return [
        {
            "tenant_id": r.tenant_id, "entity": r.kind.name, **_as_text({"day": row["day"]}),
            "archive": row["expected_digest"], "graph": row["found_digest"],
        }
        for r in results
        for row in r.comparison.buckets.iter_rows(named=True)
    ]  # fmt: skip


def graph_digest(results: Iterable[Reconciled]) -> str:
    """The digest of the graph alone, as reconciled, hashes of identifiers and all."""
    return combined_digest(_by_kind(results, lambda found: found.found_digest))


def summarise(results: list[Reconciled]) -> dict[str, Any]:
    """Plain values for people and JSON: rows compared, and every finding with its tenant and kind."""
    findings = [
        {"tenant_id": r.tenant_id, "entity": r.kind.name, **_as_text(finding)}
        for r in results
        for finding in r.findings().iter_rows(named=True)
    ]
    return {"rows": sum(r.comparison.expected_count for r in results), "findings": findings}


def drift(results: list[Reconciled]) -> list[dict[str, Any]]:
    """The findings but those of rows that the graph refuses, which are known and in the dead letters."""
    return [finding for finding in summarise(results)["findings"] if finding["difference"] != REFUSED_TEXT]


def _as_text(finding: dict[str, Any]) -> dict[str, Any]:
    return {**finding, "day": finding["day"].isoformat() if finding["day"] else None}
