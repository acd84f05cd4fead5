"""Files read again under today's rules: archive, queue and accounts end as if those had been the rules always.

The accounting is reopened first, so that a run after a crash takes the files up again; the archive changes in one
commit;
the queue and the accounting follows. Everything is derived from the files and the archive, so doing it again changes
nothing.

Memory follows a share of the files: what they hold is parted by event id, and one part is compared at a time.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from c360_pipeline.core.catalog.tables import DEAD_LETTER_LINES, DEAD_LETTERS, EVENTS, LANDING_FILES
from c360_pipeline.core.landing.accounting import FileAccount, replaced_accounts
from c360_pipeline.core.landing.classify import (
    ARCHIVED_FACTS,
    DUPLICATE,
    HELD,
    NEW,
    archive_changes,
    classify,
)
from c360_pipeline.core.landing.dead_letters import dead_lines, passed
from c360_pipeline.core.landing.decode import rejected_conflicts
from c360_pipeline.core.landing.lines import (
    DELIVERY,
    PLACE,
    Delivery,
    Line,
    LineBlock,
    count_by_delivery,
    line_blocks,
    line_in,
)
from c360_pipeline.core.landing.overwrites import why_not_believed
from c360_pipeline.errors import ConflictError
from c360_pipeline.stages.landing.blanking import blank_deliveries, settle_blanked
from c360_pipeline.stages.landing.ingest import PIECE_BYTES, Ingest, count_lines, waiting_files
from c360_pipeline.stores.local.scratch import scratch_folder
from c360_pipeline.stores.local.spill import Spill
from c360_pipeline.stores.s3.landing import EventFile

PART_BYTES = 128 * 1024 * 1024
"""Bytes of the files that one part stands for, as far as can be told before they are unpacked."""
UNPACKED = 12
"""How many times its size a gzip file of events unpacks to, roughly."""
MAX_PARTS = 256
ATTEMPTS = 5
IN_ITS_PARTITION = ("tenant_id", "event_date", "event_id")


@dataclass
class _Read:
    """What the files hold, staged on disk where it may be large."""

    folder: Path
    parts: int
    accounts: dict[Delivery, FileAccount] = field(default_factory=dict)
    rejected: list[pl.DataFrame] = field(default_factory=list)
    replaced: pl.DataFrame = field(default_factory=LANDING_FILES.empty)
    """Accounts of earlier versions, whose events leave."""
    replacing: list[str] = field(default_factory=list)
    """Addresses of files of which only the version that was read stays."""
    waiting: list[Delivery] = field(default_factory=list)
    """Newer versions that are not believed yet: nothing of them lands."""

    def __post_init__(self) -> None:
        self.events = self.spill("read")

    def of(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of the deliveries that were read, and of those that these replace."""
        own = rows.join(_keys(self.accounts), on=DELIVERY, how="semi")
        replaced = rows.filter(pl.col("source_uri").is_in(self.replacing)).join(own, on=DELIVERY, how="anti")
        return pl.concat([own, replaced])

    def without_waiting(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of deliveries that land."""
        return rows.join(_keys(self.waiting), on=DELIVERY, how="anti") if self.waiting else rows

    def spill(self, name: str) -> Spill:
        """For events, in parts by their id."""
        return Spill(self.folder / name, EVENTS.key, EVENTS.empty().schema, parts=self.parts)


@dataclass
class _Decision:
    """What is to be done, and what then stands in the accounting."""

    upserts: list[pl.DataFrame] = field(default_factory=list)
    gone: list[pl.DataFrame] = field(default_factory=list)
    conflicts: list[pl.DataFrame] = field(default_factory=list)
    passed: list[pl.DataFrame] = field(default_factory=list)
    landed: Counter[Delivery] = field(default_factory=Counter)
    duplicates: Counter[Delivery] = field(default_factory=Counter)


def land(
    ingest: Ingest,
    found: list[EventFile],
    dates: Collection[date] | None,
    report: Callable[[int], None],
    held: Collection[str] = (),
) -> list[FileAccount]:
    """Land what is not in the accounting and what a backfill left half-way; of dates, all their files again.

    Lines of suppressed people in files that are new are made blank: they are stored nowhere. Those of dates that are
    read again stay, so that who comes off the list comes back.

    Args:
        ingest: the landing area, the lake, and who is suppressed.
        found: what is in the landing area.
        dates: of folders that are read again; None for what is new.
        report: called with the number of lines of each batch that was read.
        held: addresses of files that are left alone.

    Returns:
        The accounting of what was read.
    """
    files = [f for f in found if f.uri not in held]
    if dates is not None:
        return backfill(ingest, [f for f in files if f.landing_date in dates], report)
    new, interrupted = waiting_files(ingest.lake, files)
    if settle_blanked(ingest.landing, ingest.lake, new):
        new, interrupted = waiting_files(ingest.lake, files)
    newer = _newer_versions(ingest, new)
    ingest.blanks = True
    again = backfill(ingest, [*interrupted, *newer], report)
    first = [f for f in new if f not in newer] if newer else new
    accounts = [*again, *ingest.land(first, report)]
    lines = {
        a.delivery: ingest.suppressed_lines[a.delivery]
        for a in accounts
        if a.delivery in ingest.suppressed_lines and ingest.may_change(a)
    }
    etags = blank_deliveries(ingest.landing, ingest.lake, lines, ingest.sources, ingest.unreadable)
    accounts = [replace(a, etag=etags.get(a.delivery, a.etag)) for a in accounts]
    return [*accounts, *ingest.account_for_lost(found)]


def _newer_versions(ingest: Ingest, new: list[EventFile]) -> list[EventFile]:
    """Of files that are new to the accounting, those that replace what is there from an earlier version."""
    replacing = [f for f in new if ingest.replaces(f)]
    if not replacing:
        return []
    known = set(ingest.lake.scan(LANDING_FILES).select("source_uri").collect()["source_uri"])
    # A version that was read in part has rows and no account.
    for frame in ingest.lake.scan_range(EVENTS, "source_uri", sorted({f.uri for f in replacing} - known)):
        known |= set(frame["source_uri"])
    return [f for f in replacing if f.uri in known]


def backfill(ingest: Ingest, files: list[EventFile], report: Callable[[int], None]) -> list[FileAccount]:
    """Read files again, or for the first time, under today's rules.

    Args:
        ingest: the landing area, the lake, and who is suppressed.
        files: which.
        report: called with the number of lines of each batch that was read.

    Returns:
        The accounting of the files.

    Raises:
        ConflictError: other workers changed the archive five times in a row while it was compared.
    """
    if not files:
        return []
    lake = ingest.lake
    _reopen(ingest, files)
    with scratch_folder() as folder:
        read = _read(ingest, files, folder, report)
        for attempt in Retrying(
            retry=retry_if_exception_type(ConflictError), stop=stop_after_attempt(ATTEMPTS), reraise=True
        ):
            with attempt:
                version = lake.versions.version(EVENTS.name)
                decision = _decide(ingest, read)
                upserts, gone = (
                    pl.concat([EVENTS.empty(), *decision.upserts]),
                    pl.concat([EVENTS.empty().select(IN_ITS_PARTITION), *decision.gone]),
                )
                lake.commits.merge(EVENTS, upserts, gone, on=IN_ITS_PARTITION, expected=version)
        dead = pl.concat(
            [*(read.without_waiting(rows) for rows in read.rejected), _conflict_letters(ingest, files, decision)]
        )
        _queue(ingest, read, dead, pl.concat(decision.passed))
    for delivery, account in read.accounts.items():
        account.landed, account.duplicates = decision.landed[delivery], decision.duplicates[delivery]
        account.dead = count_by_delivery(dead)[delivery]
    accounts = list(read.accounts.values())
    closed = ingest.closed(accounts)
    lake.commits.merge(LANDING_FILES, pl.concat([closed, replaced_accounts(read.replaced)]))
    return accounts


def _reopen(ingest: Ingest, files: Iterable[EventFile]) -> None:
    """Say in the accounting that these files are being read again."""
    keys = pl.DataFrame([(f.uri, f.etag) for f in files], schema=["source_uri", "etag"], orient="row")
    accounts = ingest.lake.read(LANDING_FILES)
    if keys.height and accounts.height:
        again = accounts.join(keys, on=["source_uri", "etag"], how="semi").with_columns(
            reopened_at=pl.lit(datetime.now(UTC)).cast(pl.Datetime("us", "UTC"))
        )
        ingest.lake.commits.merge(LANDING_FILES, again)


def _read(ingest: Ingest, files: list[EventFile], folder: Path, report: Callable[[int], None]) -> _Read:
    size = sum(f.bytes * (UNPACKED if f.key.endswith(".gz") else 1) for f in files)
    read = _Read(folder, min(MAX_PARTS, 1 + size // PART_BYTES))
    ended: set[Delivery] = set()
    for batch in ingest.batches(files):
        read.accounts |= {account.delivery: account for account in batch.started}
        ended |= {account.delivery for account in batch.ended}
        events, silent = ingest.split(batch.decoded.events)
        rejected, silent_rejected = ingest.split(batch.rejected)
        read.events.add(events)
        read.rejected.append(rejected)
        for frame in (silent, silent_rejected):
            for delivery, count in count_by_delivery(frame).items():
                read.accounts[delivery].suppressed += count
        count_lines(batch, read.accounts)
        report(batch.lines.total())
    # A file that was changed or removed meanwhile was not read: what it brought before stays.
    read.accounts = {delivery: account for delivery, account in read.accounts.items() if delivery in ended}
    _look_at_newer_versions(ingest, files, read)
    return read


def _look_at_newer_versions(ingest: Ingest, files: list[EventFile], read: _Read) -> None:
    """Name what newer versions replace; those that are not believed wait, and say why."""
    replacing = {f.uri for f in files if ingest.replaces(f)}
    accounts = ingest.lake.read(LANDING_FILES).filter(pl.col("source_uri").is_in(sorted(replacing)))
    earlier = accounts.join(_keys(read.accounts), left_on=["source_uri", "etag"], right_on=DELIVERY, how="anti")
    held = dict(earlier.group_by("source_uri").agg(pl.col("landed").sum()).iter_rows())
    dead = sum((count_by_delivery(rows) for rows in read.rejected), Counter[Delivery]())
    for delivery in [d for d in read.accounts if d.source_uri in held]:
        account = read.accounts[delivery]
        if why := why_not_believed(
            lines=account.lines, dead=dead[delivery], damage=account.damage, force=ingest.force,
            events=account.lines - dead[delivery], earlier=held[delivery.source_uri],
        ):  # fmt: skip
            ingest.unreadable[delivery.source_uri] = why
            del read.accounts[delivery]
            read.waiting.append(delivery)
    read.replacing = sorted(replacing & {delivery.source_uri for delivery in read.accounts})
    read.replaced = earlier.filter(pl.col("source_uri").is_in(read.replacing))


def _decide(ingest: Ingest, read: _Read) -> _Decision:
    """Compare what was read with what the archive holds."""
    lake, decision = ingest.lake, _Decision()
    held = read.spill("held")
    for frame in lake.scan_range(EVENTS, "source_uri", sorted({d.source_uri for d in read.accounts})):
        held.add(_rows_of(read, frame))
    queued = read.of(lake.read(DEAD_LETTER_LINES))
    for part in range(read.parts):
        events, old = read.without_waiting(read.events.part(part)), held.part(part)
        others = lake.held(EVENTS, events, ARCHIVED_FACTS)
        classified = classify(events, others.join(old, on=["tenant_id", "event_id"], how="anti"))
        changed, gone = archive_changes(old, classified.landed)
        decision.upserts.append(changed)
        decision.gone.append(gone.select(IN_ITS_PARTITION))
        decision.conflicts.append(classified.conflicts)
        decision.passed.append(passed(classified, queued))
        decision.landed += classified.count(NEW, HELD)
        decision.duplicates += classified.count(DUPLICATE)
    return decision


def _keys(deliveries: Iterable[Delivery]) -> pl.DataFrame:
    return pl.DataFrame(list(deliveries), schema=dict.fromkeys(DELIVERY, pl.String), orient="row")


def _rows_of(read: _Read, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of the archive that what was read stands for; one from before deliveries were distinguished is of any."""
    unnamed = rows.filter(
        pl.col("source_etag").is_null() & pl.col("source_uri").is_in({d.source_uri for d in read.accounts})
    )
    return pl.concat([read.of(rows.filter(pl.col("source_etag").is_not_null())), unnamed])


def _conflict_letters(ingest: Ingest, files: list[EventFile], decision: _Decision) -> pl.DataFrame:
    """Rejected lines for events under a taken id; only the files that hold such lines are read once more."""
    conflicts = pl.concat(decision.conflicts)
    wanted: dict[Delivery, set[int]] = {}
    for uri, etag, number in conflicts.select(PLACE).iter_rows():
        wanted.setdefault(Delivery(uri, etag), set()).add(number)
    lines = {
        (line.delivery, line.number): line
        for file in files
        if (delivery := Delivery(file.uri, file.etag)) in wanted
        for line in _lines_of(ingest, file, delivery, wanted[delivery])
    }

    def line_at(delivery: Delivery, number: int) -> Line:
        return lines[delivery, number]

    return rejected_conflicts(conflicts, line_at, datetime.now(UTC))


def _lines_of(ingest: Ingest, file: EventFile, delivery: Delivery, numbers: set[int]) -> Iterator[Line]:
    for block in line_blocks(delivery, ingest.landing.pieces(file, PIECE_BYTES)):
        if isinstance(block, LineBlock):
            inside = range(block.first_number, block.first_number + len(block.starts) - 1)
            yield from (line_in([block], delivery, number) for number in sorted(numbers.intersection(inside)))


def _queue(ingest: Ingest, read: _Read, dead: pl.DataFrame, passed_lines: pl.DataFrame) -> None:
    """Make the queue hold exactly the dead lines of these deliveries, and close the letters that have none left."""
    lake = ingest.lake
    ingest.landing.put_dead_letters(dead)
    ingest.queue_dead_letters(dead)
    lines, all_lines = dead_lines(dead), lake.read(DEAD_LETTER_LINES)
    stale = read.of(all_lines).join(lines, on=[*PLACE, "dead_letter_id"], how="anti")
    held = all_lines.join(stale, on=[*PLACE, "dead_letter_id"], how="anti").filter(pl.col("outcome") == "dead")
    left = pl.concat([held.select("dead_letter_id"), lines.select("dead_letter_id")])
    without_lines = lake.held(
        DEAD_LETTERS, stale.join(left, on="dead_letter_id", how="anti"), list(DEAD_LETTERS.columns)
    ).filter(pl.col("status") != "replayed")
    resolution = passed_lines.unique("dead_letter_id").select("dead_letter_id", now="outcome")
    of_replaced = stale.join(_keys(read.accounts), on=DELIVERY, how="anti")
    why = pl.when(pl.col("dead_letter_id").is_in(of_replaced["dead_letter_id"].implode()))
    closed = (
        without_lines.join(resolution, on="dead_letter_id", how="left", maintain_order="left")
        .with_columns(
            status=pl.lit("replayed"),
            resolved_at=pl.lit(datetime.now(UTC)).cast(pl.Datetime("us", "UTC")),
            resolution=pl.col("now").fill_null(why.then(pl.lit("replaced")).otherwise(pl.lit("suppressed"))),
        )
        .select(list(DEAD_LETTERS.columns))
    )
    # The letters first: which are to be closed shows by their lines, and so it does to who makes up for a crash.
    lake.commits.merge(DEAD_LETTERS, closed)
    lake.commits.merge(DEAD_LETTER_LINES, lines, stale.select(PLACE).join(lines, on=PLACE, how="anti"))
