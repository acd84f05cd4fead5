"""Commits to the log of stitching, and the index that is brought up to it.

A commit is decided on a snapshot of the log and carries, for each tenant that it is of, the next number of that tenant:
whoever comes second fails, looks again and finds the work done (docs/adr/0024).
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import Any

import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from c360_pipeline.core.catalog.tables import JOURNEY_LOG
from c360_pipeline.core.stitching.keys import EVERY_TENANT, KeyPolicy
from c360_pipeline.core.stitching.log import (
    COMMIT,
    log_rows,
    remark_rows,
)
from c360_pipeline.errors import ConflictError
from c360_pipeline.stages.stitching.index import JourneyIndex, TenantState, discard
from c360_pipeline.stages.stitching.report import BatchReport, Change
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.delta.storage import MAX_ATTEMPTS

ABSORBED_ROWS = 2_000_000
"""Rows of the log that are taken into the index at once."""


ROTATED = "identifier_keys"
"""The name of the number that says up to which version of the secret the keys of a table were rotated."""


def log_number(tenant_id: str) -> str:
    """The name of the number that commits of a tenant count up in the log."""
    return f"stitch:{tenant_id}"


def log_name(snapshot: DeltaTable) -> str:
    """What a log is called by what is made of it: a rotation leaves commits as they are numbered, and no key."""
    return _log_name(snapshot, snapshot.transaction_version(ROTATED) or 0)


def _log_name(snapshot: DeltaTable, rotated: int) -> str:
    return f"{snapshot.metadata().id}-{rotated}" if rotated else str(snapshot.metadata().id)


class JourneyLog:
    """The log of stitching, with its index on this machine.

    Args:
        lake: holds the log; the index is in its cache.
        clock: the time of commits, UTC.
    """

    def __init__(self, lake: Lake, clock: Callable[[], datetime]) -> None:
        self._lake = lake
        self._clock = clock
        self._index: tuple[str, JourneyIndex] | None = None

    def refresh(self) -> tuple[DeltaTable, JourneyIndex]:
        """The log as it is now, and the index brought up to it."""
        for _ in range(MAX_ATTEMPTS):
            snapshot = self._lake.commits.snapshot(JOURNEY_LOG)
            index, files = self._index_of(snapshot), set(snapshot.file_uris())
            if index.files != files or not index.is_newest():
                index.load()
            if any(number < index.tenant(tenant).seq for tenant, number in self._numbers(snapshot, index)):
                # The log was restored to an earlier version, or another process is further than this snapshot.
                snapshot = self._lake.commits.snapshot(JOURNEY_LOG)
                files = set(snapshot.file_uris())
                if any(number < index.tenant(tenant).seq for tenant, number in self._numbers(snapshot, index)):
                    index.forget()
            if index.files == files:
                return snapshot, index
            self._absorb(index, files)
        raise ConflictError(f"Other processes changed the index of journeys {MAX_ATTEMPTS} times in a row.")

    def _index_of(self, snapshot: DeltaTable) -> JourneyIndex:
        name, folder = log_name(snapshot), self._lake.cache / "journeys"
        if self._index is None or self._index[0] != name:
            self._index = (name, JourneyIndex(folder / name))
            for number in range(snapshot.transaction_version(ROTATED) or 0):
                shutil.rmtree(folder / _log_name(snapshot, number), ignore_errors=True)  # of an earlier secret
        return self._index[1]

    def _numbers(self, snapshot: DeltaTable, index: JourneyIndex) -> Iterator[tuple[str, int]]:
        return ((tenant, snapshot.transaction_version(log_number(tenant)) or 0) for tenant in index.seqs)

    def _absorb(self, index: JourneyIndex, files: set[str]) -> None:
        known = pl.LazyFrame(list(index.seqs.items()), schema={"tenant_id": pl.String, "known": pl.Int64}, orient="row")
        rows = self._lake.scan_files(JOURNEY_LOG, files - index.files).join(known, on="tenant_id", how="left")
        rows = rows.filter(pl.col("seq") > pl.col("known").fill_null(0)).drop("known")
        counts = rows.group_by("seq").len().sort("seq").collect(engine="streaming")
        windows = counts.with_columns(window=(pl.col("len").cum_sum() - 1) // ABSORBED_ROWS)
        for (_,), window in windows.group_by("window", maintain_order=True):
            low, high = window["seq"].min(), window["seq"].max()
            if not index.absorb(rows.filter(pl.col("seq").is_between(low, high)).collect(), index.files):
                return  # what another process has taken up is looked at first
        index.absorb(JOURNEY_LOG.empty(), files)

    def state(self, tenant_id: str) -> TenantState:
        """How far a tenant is stitched."""
        return self.refresh()[1].tenant(tenant_id)

    def states(self) -> dict[str, TenantState]:
        """How far each tenant is stitched."""
        _, index = self.refresh()
        return {tenant: index.tenant(tenant) for tenant in index.seqs}

    def note(self, tenant_id: str, details: Mapping[str, Any]) -> None:
        """Commit a remark and nothing else; nothing when the last commit says the same."""

        def attempt() -> None:
            snapshot, index = self.refresh()
            state = index.tenant(tenant_id)
            if dict(state.detail) == dict(details):
                return
            seqs = {tenant_id: state.seq + 1}
            self._append(snapshot, index, remark_rows(seqs, {tenant_id: details}, self._clock()), seqs)

        self._lake.commits.retried(JOURNEY_LOG.name, attempt)

    def adopt_first(self, tenant_id: str, folder: str) -> int:
        """Commit rows of the log that another engine wrote as files below the log; returns how many.

        Args:
            tenant_id: whose; there is nothing of it yet.
            folder: below the log.

        Raises:
            ConflictError: the tenant has journeys already.
        """

        def attempt() -> int:
            snapshot, index = self.refresh()
            if index.tenant(tenant_id).seq:
                raise ConflictError(f"{tenant_id} was stitched meanwhile: what was found for it is out of date.")
            return self._lake.commits.commit_files(JOURNEY_LOG, snapshot, folder, {log_number(tenant_id): 1})

        return self._lake.commits.retried(JOURNEY_LOG.name, attempt)

    def committed(
        self,
        decide: Callable[[JourneyIndex], Change | None],
        policy: KeyPolicy,
        details: Mapping[str, Any] | None = None,
    ) -> BatchReport:
        """Decide on the index as it is now, and commit that; again as long as other workers were faster."""
        started = time.perf_counter()
        attempts = 0

        def attempt() -> BatchReport:
            nonlocal attempts
            attempts += 1
            snapshot, index = self.refresh()
            change = decide(index)
            if change is None:
                return BatchReport()
            self._commit(snapshot, index, change, policy, details or {})
            return change.report

        report = self._lake.commits.retried(JOURNEY_LOG.name, attempt)
        seconds = time.perf_counter() - started
        return replace(report, seconds=seconds, longest_seconds=seconds, retries=attempts - 1)

    def _commit(
        self,
        snapshot: DeltaTable,
        index: JourneyIndex,
        change: Change,
        policy: KeyPolicy,
        details: Mapping[str, Any],
    ) -> None:
        held = {index.tenant(tenant).identifiers for tenant in index.seqs if tenant != EVERY_TENANT}
        if held - {policy.identifiers.name}:
            raise ConflictError("Identifiers got another secret since this run began: run it again.")
        frames = (change.stitched.events, change.stitched.journeys, change.gone.events, change.gone.journeys)
        tenants = sorted({tenant for frame in frames for tenant in frame["tenant_id"].unique()})
        seqs = {tenant: index.tenant(tenant).seq + 1 for tenant in tenants}
        # Rules that are not applied yet stay pending: a tenant's first commit notes them, then who applies them.
        noted = {tenant: {**rules_of(tenant, policy), **index.tenant(tenant).detail} for tenant in tenants}
        said = {tenant: {**noted[tenant], **details, "events": change.report.events} for tenant in tenants}
        rows = log_rows(
            change.stitched, change.gone, seqs, said, self._clock(), change.cause, all_keys=change.batch is None
        )
        self._append(snapshot, index, rows, seqs, change)

    def _append(
        self,
        snapshot: DeltaTable,
        index: JourneyIndex,
        rows: pl.DataFrame,
        seqs: Mapping[str, int],
        change: Change | None = None,
    ) -> None:
        numbers = {log_number(tenant): seq for tenant, seq in seqs.items()}
        for name, seq in numbers.items():
            if (snapshot.transaction_version(name) or 0) != seq - 1:
                index.forget()
                raise CommitFailedError(f"the index is not that of the log: {name} is not at {seq - 1}")
        version = snapshot.version()
        with ThreadPoolExecutor(1) as pool:
            commit = pool.submit(self._lake.commits.append_numbered, JOURNEY_LOG, snapshot, rows, numbers)
            staged = index.stage(change.batch, change.stitched, change.gone) if change and change.batch else None
            if commit.exception() and staged:
                discard(staged)
            commit.result()
        if snapshot.version() != version + 1:
            # Another worker's commit came in between, of another tenant: both are read from the log the next time.
            discard(staged or {})
        elif staged is None:
            index.absorb(rows, set(snapshot.file_uris()))
        else:
            commits = rows.filter(pl.col("kind") == COMMIT).select("tenant_id", "seq", "detail")
            index.adopt(staged, commits, set(snapshot.file_uris()))

    def rows(self, tenants: list[str]) -> pl.LazyFrame:
        """The rows of some tenants, lazily."""
        snapshot = self._lake.commits.snapshot(JOURNEY_LOG)
        rows = self._lake.scan_files(JOURNEY_LOG, set(snapshot.file_uris()))
        return rows.filter(pl.col("tenant_id").is_in(tenants))


def rules_of(tenant_id: str, policy: KeyPolicy) -> dict[str, Any]:
    """What a commit says of the rules that it was decided by."""
    return {
        "policy": policy.fingerprint(tenant_id),
        "blocked": policy.blocked_of(tenant_id),
        "identifiers": policy.identifiers.name,
    }
