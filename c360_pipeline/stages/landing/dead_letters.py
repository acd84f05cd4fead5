"""The dead-letter queue: look at it, replay what passes under today's rules, put aside what never will."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime

import polars as pl

from c360_pipeline.core.catalog.tables import DEAD_LETTER_LINES, DEAD_LETTERS, EVENTS, LANDING_FILES
from c360_pipeline.core.landing.accounting import QUEUE_COUNTED_BY, settled
from c360_pipeline.core.landing.classify import ARCHIVED_FACTS, classify, split_suppressed
from c360_pipeline.core.landing.dead_letters import (
    REPLAY_SCHEMA,
    at_their_places,
    closed,
    damaged,
    decode_letters,
    read_by,
    resolved_letters,
    resolved_lines,
    validated_letters,
)
from c360_pipeline.core.landing.lines import DELIVERY
from c360_pipeline.core.projection.refused import REFUSED
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.landing.ingest import Ingest
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.s3.landing import EVENTS_PREFIX

CHUNK_BYTES = 32 * 1024 * 1024
"""Rejected bytes that are replayed at once."""
WITHOUT_RAW = [name for name in DEAD_LETTERS.columns if name != "raw"]


@dataclass(frozen=True)
class Selection:
    """Which letters; what is not given does not limit.

    Attributes:
        error_class: their class.
        tenant_id: the tenant that the line names.
        file: a part of the address of a file in which they were found.
        day: landing date of such a file.
        status: open, replayed or discarded.
        ids: beginnings of their ids.
    """

    error_class: str | None = None
    tenant_id: str | None = None
    file: str | None = None
    day: date | None = None
    status: str | None = "open"
    ids: tuple[str, ...] = ()

    def letters(self, lake: Lake) -> pl.LazyFrame:
        """The letters, by the time at which they were first seen and their place."""
        letters = lake.scan(DEAD_LETTERS)
        for column, value in (
            ("error_class", self.error_class),
            ("tenant_id", self.tenant_id),
            ("status", self.status),
        ):
            if value is not None:
                letters = letters.filter(pl.col(column) == value)
        if self.ids:
            letters = letters.filter(pl.any_horizontal(pl.col("dead_letter_id").str.starts_with(i) for i in self.ids))
        if self.file or self.day:
            lines = lake.scan(DEAD_LETTER_LINES)
            if self.file:
                lines = lines.filter(pl.col("source_uri").str.contains(self.file, literal=True))
            if self.day:
                # Of a file without an account yet, its folder says the day.
                of_day = lake.scan(LANDING_FILES).filter(pl.col("landing_date") == self.day)
                in_folder = pl.col("source_uri").str.contains(f"/date={self.day.isoformat()}/", literal=True)
                lines = pl.concat(
                    [
                        lines.filter(in_folder),
                        lines.join(of_day, left_on=DELIVERY, right_on=["source_uri", "etag"], how="semi"),
                    ]
                )
            letters = letters.join(lines.select("dead_letter_id").unique(), on="dead_letter_id", how="semi")
        return letters.sort("first_seen_at", "source_uri", "source_line", "dead_letter_id")


@dataclass(frozen=True)
class DeadLetters:
    """The queue.

    Attributes:
        ingest: the landing area, the lake, and who is suppressed.
    """

    ingest: Ingest

    def find(self, selection: Selection) -> pl.DataFrame:
        """Rows of `DEAD_LETTERS` without the bytes."""
        return selection.letters(self.ingest.lake).select(WITHOUT_RAW).collect()

    def one(self, beginning: str) -> dict[str, object]:
        """One letter with its bytes as `raw` and its `places`.

        Raises:
            ConfigError: no letter's id begins so, or several do.
        """
        letters = self.find(Selection(status=None, ids=(beginning,)))
        if letters.height != 1:
            raise ConfigError(f"{letters.height} dead letters have an id that begins with {beginning!r}: give one.")
        letter = letters.row(0, named=True)
        places = self.ingest.lake.scan(DEAD_LETTER_LINES).filter(pl.col("dead_letter_id") == letter["dead_letter_id"])
        found = places.drop("dead_letter_id").sort("source_uri", "source_line").collect()
        return {
            **letter,
            "raw": self._raw(str(letter["dead_letter_id"])),
            "places": found.to_dicts(),
        }

    def _raw(self, letter_id: str) -> bytes:
        """The bytes: rows that the graph refused are in the lake only, the longest lines in the store only."""
        letter = self.ingest.lake.scan(DEAD_LETTERS).filter(pl.col("dead_letter_id") == letter_id).select("raw")
        raw: bytes | None = letter.collect().item()
        return self.ingest.landing.read_dead_letter(letter_id) if raw is None else raw

    def replay(self, selection: Selection, *, dry_run: bool) -> pl.DataFrame:
        """Land what passes under today's rules; what does not gets today's class and reason.

        Rows that the graph refused are left alone: they came from the archive, and `c360 reconcile --repair` tries
        them again.

        Done again, or after a crash at any point, it changes nothing more.

        Args:
            selection: which letters.
            dry_run: only say what would happen.

        Returns:
            One row per letter and source in whose files it stands, of `REPLAY_SCHEMA`; `outcome` is landed, duplicate,
            suppressed or dead.
        """
        lake, now = self.ingest.lake, datetime.now(UTC)
        done = [pl.DataFrame(schema=REPLAY_SCHEMA)]
        if not dry_run:
            settle_accounting(lake)
        for chunk in self._chunks(selection):
            lines = self._lines(chunk)
            letters = at_their_places(chunk, lines, self.ingest.sources, self._own)
            decoded = decode_letters(letters, now, self.ingest.sources)
            events, silent = split_suppressed(decoded.events, self.ingest.suppressed)
            rejected, silent_rejected = split_suppressed(decoded.rejected, self.ingest.suppressed)
            if dry_run:
                classified = classify(events, lake.held(EVENTS, events, ARCHIVED_FACTS))
            else:
                classified = self.ingest.append(events, {"c360.replayed": str(letters.height)})
            outcome = validated_letters(
                letters, classified, pl.concat([silent, silent_rejected], how="diagonal"), rejected, now
            )
            if not dry_run:
                lake.commits.merge(DEAD_LETTER_LINES, resolved_lines(lines, letters, outcome))
                settle_accounting(lake)
                # The letters last, for an open letter is replayed again.
                lake.commits.merge(DEAD_LETTERS, resolved_letters(chunk, lines, outcome, now))
            done.append(outcome.drop("reader"))
        return pl.concat(done)

    @property
    def _own(self) -> str:
        """What addresses of files of the product's own form begin with."""
        return f"s3://{self.ingest.landing.bucket}/{EVENTS_PREFIX}"

    def _lines(self, letters: pl.DataFrame) -> pl.DataFrame:
        """Where these letters stand, rows of `DEAD_LETTER_LINES` with their `reader`."""
        ids = letters.lazy().select("dead_letter_id")
        lines = self.ingest.lake.scan(DEAD_LETTER_LINES).join(ids, on="dead_letter_id", how="semi").collect()
        return read_by(lines, self.ingest.sources, self._own)

    def _chunks(self, selection: Selection) -> Iterator[pl.DataFrame]:
        """The letters with their bytes, in bounded parts; those too long to be held stay what they are."""
        letters = selection.letters(self.ingest.lake).filter(pl.col("error_class") != REFUSED)
        sizes = letters.select("dead_letter_id", size=pl.col("raw").bin.size()).drop_nulls().collect(engine="streaming")
        chunks = sizes.with_columns(chunk=pl.col("size").cast(pl.Int64).cum_sum() // CHUNK_BYTES)
        for chunk in chunks.partition_by("chunk", maintain_order=True):
            yield (
                chunk.select("dead_letter_id")
                .join(
                    self.ingest.lake.held(DEAD_LETTERS, chunk, list(DEAD_LETTERS.columns)),
                    on="dead_letter_id",
                    maintain_order="left",
                )
                .select(list(DEAD_LETTERS.columns))
            )

    def discard(self, selection: Selection, note: str) -> pl.DataFrame:
        """Put letters aside: they stay in the accounting and in the queue, and are not replayed any more.

        Args:
            selection: which letters.
            note: why, for those who look at them later.

        Returns:
            The letters without their bytes.
        """
        letters = selection.letters(self.ingest.lake).collect()
        discarded = closed(letters, "discarded", note, datetime.now(UTC))
        self.ingest.lake.commits.merge(DEAD_LETTERS, discarded)
        return discarded.select(WITHOUT_RAW)


def settle_accounting(lake: Lake) -> int:
    """Bring into the accounting what became of dead letters; returns how many accounts that changed."""
    changed = settled(lake.read(LANDING_FILES), lake.count_by(DEAD_LETTER_LINES, *QUEUE_COUNTED_BY))
    return lake.commits.merge(LANDING_FILES, changed)


def damaged_since(lake: Lake, since: datetime) -> pl.DataFrame:
    """Letters first seen since then that have other bytes than their id says, or a class unknown to the contract."""
    new = lake.scan(DEAD_LETTERS).filter(pl.col("first_seen_at") >= since, pl.col("raw").is_not_null())
    return damaged(new.select("dead_letter_id", "raw", "error_class").collect()).drop("raw")
