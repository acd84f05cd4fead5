"""What the API recommends, noted without making anybody wait: in memory first, then in the lake, a batch at a time.

It is a measure and no archive: what a process that is killed had not written yet is lost, and what can't be written for
long is dropped and counted.
"""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from sys import intern
from typing import NamedTuple

import polars as pl

from c360_pipeline.core.catalog.recommendation_tables import RECOMMENDATIONS_GIVEN
from c360_pipeline.core.landing.classify import split_suppressed
from c360_pipeline.stages.realtime.later import WrittenLater
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.privacy_lists import PrivacyLists

WRITE_SECONDS = 60.0
BATCH = 5_000
"""Answers from which on a batch is written before its time."""
MOST_WAITING = 50_000


class Given(NamedTuple):
    """One answer.

    Attributes:
        tenant_id: whose customer.
        given_at: when (UTC).
        user_id: for whom; None for a visitor whom nobody knows.
        anonymous_id: for which visitor; None where there is a user.
        version: of what recommends.
        products: ids, the best first.
        sources: of each product.
        given_id: made up.
    """

    tenant_id: str
    given_at: datetime
    user_id: str | None
    anonymous_id: str | None
    version: str
    products: Sequence[str]
    sources: Sequence[str]
    given_id: str

    @classmethod
    def now(
        cls, tenant_id: str, user_id: str | None, anonymous_id: str | None, version: str,
        products: Sequence[tuple[str, str]],
    ) -> "Given":  # fmt: skip
        """An answer of this moment, of products with their sources."""
        ids, sources = [product for product, _ in products], [intern(source) for _, source in products]
        at = datetime.now(UTC)
        return cls(tenant_id, at, user_id, anonymous_id, intern(version), ids, sources, uuid.uuid4().hex)


class GivenRecommendations:
    """Notes answers from any thread, and writes them from one.

    Args:
        lake: holds `RECOMMENDATIONS_GIVEN`.
        lists: say who asked to be forgotten; of this writer alone.
    """

    def __init__(self, lake: Lake, lists: PrivacyLists) -> None:
        self._lake, self._lists = lake, lists
        self._unchecked = RECOMMENDATIONS_GIVEN.empty()
        self._later = WrittenLater(
            "given-recommendations", self._write, BATCH, MOST_WAITING, WRITE_SECONDS, WRITE_SECONDS
        )

    def note(self, given: Given) -> None:
        """Take an answer; returns at once."""
        self._later.take(given)

    def close(self) -> None:
        """Write what waits, and end."""
        self._later.close()

    def write_waiting(self) -> bool:
        """Write what waits, or leave it for the next time and say why."""
        return self._later.write_waiting()

    def _write(self, batch: list[Given]) -> None:
        """Append a batch, less those who asked to be forgotten before or while it was written.

        Raises:
            ConflictError: people are being erased now, or others committed at the same time again and again.
            UnavailableError: a store does not answer.
        """
        self._lists.require_no_erasure()
        self._remove_forgotten()
        schema = RECOMMENDATIONS_GIVEN.empty().schema
        rows = self._remembered(pl.DataFrame([given._asdict() for given in batch], schema=schema))
        if rows.is_empty():
            return
        # Looked at again after the commit, also where its answer is lost: an erasure may have come between.
        self._unchecked = rows
        self._lake.commits.insert_new(RECOMMENDATIONS_GIVEN, rows)
        self._remove_forgotten()

    def _remove_forgotten(self) -> None:
        """Remove rows of those who asked to be forgotten while they were written: the erasure had not found them."""
        if self._unchecked.is_empty():
            return
        gone = self._unchecked.join(self._remembered(self._unchecked), on="given_id", how="anti")
        self._lake.commits.merge(
            RECOMMENDATIONS_GIVEN, RECOMMENDATIONS_GIVEN.empty(), gone.select(RECOMMENDATIONS_GIVEN.key)
        )
        self._unchecked = self._unchecked.clear()

    def _remembered(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows that are not of somebody who asked to be forgotten."""
        asked = rows.with_columns(session_id=pl.lit(None, pl.String))
        kept, _ = split_suppressed(asked, self._lists.suppressed_users())
        return kept.drop("session_id")
