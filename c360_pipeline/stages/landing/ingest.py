"""From the landing area into the lake: files are read, decoded and committed in batches, and their accounting closed.

Reading and decoding the next batch goes on while one is committed. After a crash at any point the work is done again:
rows that the archive holds from these very lines count as landed, dead letters are known by the hash of their bytes,
and an account is written when everything that it counts is in its place.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import partial

import polars as pl

from c360_pipeline.core.catalog.tables import DEAD_LETTER_LINES, DEAD_LETTERS, EVENTS, LANDING_FILES
from c360_pipeline.core.landing.accounting import QUEUE_COUNTED_BY, FileAccount, closed_accounts, lost_deliveries
from c360_pipeline.core.landing.classify import (
    ARCHIVED_FACTS,
    DUPLICATE,
    HELD,
    NEW,
    Classified,
    classify,
    split_suppressed,
    stored_events,
)
from c360_pipeline.core.landing.dead_letters import dead_lines, letters_of, long_line_letter, reopened
from c360_pipeline.core.landing.decode import REJECTED_SCHEMA, Decoded, decode, decode_records, rejected_conflicts
from c360_pipeline.core.landing.lines import (
    DELIVERY,
    PLACE,
    Delivery,
    LineBlock,
    count_by_delivery,
    line_blocks,
    line_in,
)
from c360_pipeline.core.landing.overwrites import OverwriteRules
from c360_pipeline.core.landing.suppressed import Suppressed
from c360_pipeline.core.sources.source import NO_SOURCES, Source, Sources
from c360_pipeline.errors import ConflictError, ContractError, UnreadableError
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.s3.landing import (
    EVENTS_PREFIX,
    EventFile,
    EventsArea,
    Landing,
    landing_date_of,
)

PIECE_BYTES = 1024 * 1024
"""Read from a file at once; lines are decoded in blocks of about this size, on as many cores as there are."""
BATCH_BYTES = 16 * 1024 * 1024
"""Unpacked bytes of a batch; one batch is one commit to the archive. Two are in memory at once."""
REJECTED_BYTES = 4 * 1024 * 1024
"""Rejected lines, in bytes, that wait for one commit to the dead-letter queue."""
FILES_NAMED = 100
"""Files that a commit names."""
UPLOADS_WAITING = 2
"""Batches whose rejected bytes may still be on their way while the next is committed."""


@dataclass
class Batch:
    """Lines of one or more files.

    Attributes:
        started: accounts of files whose first lines these are.
        ended: accounts of files whose last lines these are.
        blocks: the lines.
        long_lines: rows of rejected lines whose bytes are in the store already.
        decoded: what the blocks hold.
        sources: of deliveries that are of one.
    """

    started: list[FileAccount] = field(default_factory=list)
    ended: list[FileAccount] = field(default_factory=list)
    blocks: list[LineBlock] = field(default_factory=list)
    long_lines: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=REJECTED_SCHEMA))
    decoded: Decoded = field(default_factory=lambda: Decoded.together([]))
    sources: dict[Delivery, Source] = field(default_factory=dict)

    def begin(self, file: EventFile) -> FileAccount:
        """The account of a file whose first lines are of this batch."""
        account = FileAccount(file.uri, file.etag, file.landing_date, bytes=file.bytes)
        if file.source is not None:
            account.source, account.mapping_version = file.source.name, file.source.mapping.version
            self.sources[account.delivery] = file.source
        self.started.append(account)
        return account

    @property
    def bytes(self) -> int:
        """Unpacked bytes of the blocks."""
        return sum(len(block.content) for block in self.blocks)

    @property
    def rejected(self) -> pl.DataFrame:
        """Rows of all rejected lines."""
        return pl.concat([self.decoded.rejected, self.long_lines])

    @property
    def lines(self) -> Counter[Delivery]:
        """Lines of each delivery that are not blank."""
        return self.decoded.lines + count_by_delivery(self.long_lines)


@dataclass
class Ingest:
    """Brings files into the lake.

    Attributes:
        landing: where they are.
        lake: where they go.
        suppressed: whose events never land.
        overwrites: what it means that a file comes again under its name.
        force: a newer version may take most of the earlier one's events away.
        unreadable: by address, why a file could not be had; it has no account and is tried again with the next run.
        suppressed_lines: numbers of lines that were suppressed, by delivery.
        blanks: these lines are going to be made blank in their files.
        sources: whose files are read by a mapping.
    """

    landing: Landing
    lake: Lake
    suppressed: Suppressed
    overwrites: OverwriteRules = field(default_factory=OverwriteRules)
    force: bool = False
    unreadable: dict[str, str] = field(default_factory=dict)
    suppressed_lines: dict[Delivery, set[int]] = field(default_factory=dict)
    blanks: bool = False
    sources: Sources = NO_SOURCES

    def split(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Part rows with a place into those that may land and those of suppressed people, whose lines are noted."""
        kept, silent = split_suppressed(rows, self.suppressed)
        for uri, etag, number in silent.select(PLACE).iter_rows():
            self.suppressed_lines.setdefault(Delivery(uri, etag), set()).add(number)
        return kept, silent

    def closed(self, accounts: list[FileAccount]) -> pl.DataFrame:
        """Rows of the accounting; of files that are to be changed yet, open ones."""
        own = {account.delivery for account in accounts if self.may_change(account)}
        return closed_accounts(accounts, datetime.now(UTC), own & self.suppressed_lines.keys() if self.blanks else ())

    def may_change(self, account: FileAccount) -> bool:
        """Whether a file is the product's own: those of a source are its producer's, unless the product wrote them."""
        source = self.sources.of(account.source_uri) if account.source is not None else None
        return account.source is None or (source is not None and source.framing.is_of_messages)

    def replaces(self, file: EventFile) -> bool:
        """Whether a newer version of the file stands in for the earlier one."""
        return self.overwrites.replaces(file.key.removeprefix(EVENTS_PREFIX))

    def land(self, files: Iterable[EventFile], report: Callable[[int], None]) -> list[FileAccount]:
        """Land files that are not in the accounting.

        Args:
            files: which.
            report: called with the number of lines of each batch, once they are in their places.

        Returns:
            The accounting of the files.
        """
        opened: dict[Delivery, FileAccount] = {}
        closed: list[FileAccount] = []
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as uploads:
            on_their_way: list[Future[None]] = []
            rejected = pl.DataFrame(schema=REJECTED_SCHEMA)
            for batch in _one_ahead(ahead, self.batches(files)):
                opened |= {account.delivery: account for account in batch.started}
                dead = self._commit(batch, opened)
                on_their_way.append(uploads.submit(self.landing.put_dead_letters, dead))
                rejected.vstack(dead, in_place=True)
                # An account says that everything is in its place.
                while on_their_way and (batch.ended or len(on_their_way) > UPLOADS_WAITING):
                    on_their_way.pop(0).result()
                if batch.ended or rejected.estimated_size() > REJECTED_BYTES:
                    self.queue_dead_letters(rejected)
                    rejected = rejected.clear()
                if batch.ended:
                    self.lake.commits.insert_new(LANDING_FILES, self.closed(batch.ended))
                    closed += batch.ended
                report(batch.lines.total())
        return closed

    def batches(self, files: Iterable[EventFile]) -> Iterator[Batch]:
        """All lines of the files, decoded, in batches of bounded size."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for batch in self._read(files):
                now = datetime.now(UTC)
                batch.decoded = Decoded.together(pool.map(partial(self._decoded, batch.sources, now), batch.blocks))
                yield batch

    @staticmethod
    def _decoded(sources: Mapping[Delivery, Source], now: datetime, block: LineBlock) -> Decoded:
        source = sources.get(block.delivery)
        return decode(block, now) if source is None else decode_records(block, now, source)

    def _read(self, files: Iterable[EventFile]) -> Iterator[Batch]:
        batch = Batch()
        for file in files:
            account = batch.begin(file)
            try:
                for item in line_blocks(account.delivery, self.landing.pieces(file, PIECE_BYTES)):
                    if isinstance(item, LineBlock):
                        batch.blocks.append(item)
                    else:
                        digest, size = self.landing.put_long_dead_letter(item.pieces)
                        batch.long_lines.vstack(long_line_letter(item, digest, size, datetime.now(UTC)), in_place=True)
                    if batch.bytes >= BATCH_BYTES:
                        yield batch
                        batch = Batch(sources=dict(batch.sources))
            except ContractError as error:
                # What could be read has been; the producer has to send the file again.
                account.damage = str(error)
            except (ConflictError, UnreadableError) as error:
                # What was changed meanwhile is a file of its own, for the next run.
                self.unreadable |= {file.uri: str(error)} if isinstance(error, UnreadableError) else {}
                continue
            batch.ended.append(account)
        if batch.started or batch.ended:
            yield batch

    def _commit(self, batch: Batch, accounts: dict[Delivery, FileAccount]) -> pl.DataFrame:
        """Bring a batch into the archive, and count it; returns its rejected lines."""
        events, silent = self.split(batch.decoded.events)
        rejected, silent_rejected = self.split(batch.rejected)
        classified = self.append(events, _identity(batch))
        line_at = partial(line_in, batch.blocks)
        dead = pl.concat([rejected, rejected_conflicts(classified.conflicts, line_at, datetime.now(UTC))])
        for column, counts in {
            "landed": classified.count(NEW, HELD),
            "duplicates": classified.count(DUPLICATE),
            "dead": count_by_delivery(dead),
            "suppressed": count_by_delivery(silent) + count_by_delivery(silent_rejected),
        }.items():
            for delivery, count in counts.items():
                setattr(accounts[delivery], column, getattr(accounts[delivery], column) + count)
        count_lines(batch, accounts)
        return dead

    def account_for_lost(self, files: Iterable[EventFile]) -> list[FileAccount]:
        """Close the accounting of deliveries that were read in part, and then changed or removed.

        Looked for only when the archive has more rows than the accounting says.

        Args:
            files: what is in the landing area.
        """
        accounts = self.lake.read(LANDING_FILES)
        if self.lake.count(EVENTS) == accounts["landed"].sum():
            return []
        landed = self.lake.count_by(EVENTS, *DELIVERY)
        queue = self.lake.count_by(DEAD_LETTER_LINES, *QUEUE_COUNTED_BY)
        present = {Delivery(f.uri, f.etag) for f in files}
        counts = Counter({Delivery(uri, etag): n for uri, etag, n in landed.iter_rows()})
        dead = Counter({Delivery(uri, etag): n for uri, etag, outcome, n in queue.iter_rows() if outcome == "dead"})
        lost = [
            FileAccount(
                *delivery, self._landing_date(delivery.source_uri), lines=counts[delivery] + dead[delivery],
                landed=counts[delivery], dead=dead[delivery],
                damage=f"{delivery.source_uri} was changed or removed before it was read to its end",
            )
            for delivery in lost_deliveries(accounts, landed, queue, present)
            if self._was_listed(delivery.source_uri)
        ]  # fmt: skip
        if lost:
            self.lake.commits.insert_new(LANDING_FILES, closed_accounts(lost, datetime.now(UTC)))
        return lost

    def _was_listed(self, uri: str) -> bool:
        """Whether a file that is not there is gone, and not of a source that is paused or could not be listed."""
        source = self.sources.of(uri)
        if source is None:
            return uri.startswith(f"s3://{self.landing.bucket}/{EVENTS_PREFIX}")
        return source.location.text not in self.unreadable

    def _landing_date(self, uri: str) -> date:
        """The landing date of a file that is gone: of a source's the day that its path says, or today."""
        source = self.sources.of(uri)
        if source is None:
            return landing_date_of(uri)
        said = source.location.match(uri)
        return (said and said.landing_date) or datetime.now(UTC).date()

    def append(self, events: pl.DataFrame, about: dict[str, str] | None = None) -> Classified:
        """Append the events that the archive does not hold, in one commit."""
        outcome: list[Classified] = []

        def new_rows(archived: pl.DataFrame) -> pl.DataFrame:
            outcome[:] = [classify(events, archived)]
            return stored_events(outcome[0].to_append)

        if events.is_empty():
            return classify(events, EVENTS.empty().select(ARCHIVED_FACTS))
        self.lake.commits.append_exclusive(EVENTS, events, ARCHIVED_FACTS, new_rows, about)
        return outcome[0]

    def queue_dead_letters(self, dead: pl.DataFrame) -> None:
        """Queue rejected lines: each content once, each place once."""
        if dead.is_empty():
            return
        letters = letters_of(dead)
        known = self.lake.held(DEAD_LETTERS, letters, list(DEAD_LETTERS.columns))
        self.lake.commits.insert_new(DEAD_LETTERS, letters)
        again = reopened(known.filter(pl.col("status") == "replayed"), letters)
        self.lake.commits.merge(DEAD_LETTERS, again)
        self.lake.commits.insert_new(DEAD_LETTER_LINES, dead_lines(dead))


def files_of(area: Landing, sources: Sources) -> tuple[EventsArea, dict[str, str]]:
    """What lies in the landing area and at the places of sources, and by location why one could not be listed."""
    found, unreadable = area.events_area(), dict[str, str]()
    files = [file for file in found.files if sources.of(file.uri) is None]
    for source in sources:
        try:
            files += area.source_files(source, sources)
        except UnreadableError as error:
            unreadable[source.location.text] = str(error)
    return EventsArea(files, [file for file in found.unrecognised if sources.of(file.uri) is None]), unreadable


def count_lines(batch: Batch, accounts: Mapping[Delivery, FileAccount]) -> None:
    """Count the lines of a batch, and those that a mapping leaves out."""
    for delivery, count in batch.lines.items():
        accounts[delivery].lines += count
    for (delivery, outcome), count in batch.decoded.left_out.items():
        setattr(accounts[delivery], outcome, getattr(accounts[delivery], outcome) + count)


def waiting_files(lake: Lake, files: Iterable[EventFile]) -> tuple[list[EventFile], list[EventFile]]:
    """Of these files, those that the accounting does not hold with their present content, and those of open accounts.

    An account is open when the file was to be read again and that did not come to its end.
    """
    accounts = lake.scan(LANDING_FILES).select("source_uri", "etag", "reopened_at").collect()
    is_open = {(uri, etag): reopened_at is not None for uri, etag, reopened_at in accounts.iter_rows()}
    states = [(file, is_open.get((file.uri, file.etag))) for file in files]
    return [f for f, state in states if state is None], [f for f, state in states if state]


def _identity(batch: Batch) -> dict[str, str]:
    """What a commit is of, for those who read the table's history; of many files, the first and how many."""
    spans: dict[Delivery, list[int]] = {}
    for block in batch.blocks:
        span = spans.setdefault(block.delivery, [block.first_number, block.first_number])
        span[1] = block.first_number + len(block.starts) - 2
    named = [
        {"file": delivery.source_uri, "etag": delivery.source_etag, "first_line": first, "last_line": last}
        for delivery, (first, last) in list(spans.items())[:FILES_NAMED]
    ]
    return {"c360.landed_from": json.dumps(named), "c360.files": str(len(spans))}


def _one_ahead(pool: ThreadPoolExecutor, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; the next is made while one is used."""
    coming = pool.submit(next, batches, None)
    while (batch := coming.result()) is not None:
        coming = pool.submit(next, batches, None)
        yield batch
