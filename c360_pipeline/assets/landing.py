"""Landing: new files of the landing area become events or dead letters, and every line is in the books."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime

import dagster as dg
import polars as pl

from c360_pipeline.assets.specs import OWNERS, column_schema, preview, rows, table_spec
from c360_pipeline.core.lake import CATALOG, DEAD_LETTERS, EVENTS, LANDING_FILES
from c360_pipeline.core.landing import (
    Classified,
    FileBook,
    LineBlock,
    classify,
    conflict_letters,
    count_by_file,
    damaged_letters,
    decode,
    line_blocks,
    misbooked,
    unbalanced,
)
from c360_pipeline.errors import ContractError
from c360_pipeline.resources import LakeResource, LandingResource
from c360_pipeline.stores.lake import Lake
from c360_pipeline.stores.landing import EventFile, Landing

PIECE_BYTES = 8 * 1024 * 1024
"""Read from a file at once; lines are decoded in blocks of about this size."""
BATCH_BYTES = 32 * 1024 * 1024
"""Unpacked bytes in memory at once; one batch is one commit to the archive."""

GROUP = "landing"


class LandingConfig(dg.Config):
    """Which files to land; without a date, every file that is not in the books."""

    landing_date: str | None = None


@dataclass
class Ledger:
    """The books of the files of one run, filled batch by batch."""

    books: dict[str, FileBook] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


@dg.multi_asset(
    name="landing",
    specs=[
        table_spec("landed_events", EVENTS, GROUP),
        table_spec("dead_letters", DEAD_LETTERS, GROUP),
        table_spec("landing_files", LANDING_FILES, GROUP),
    ],
    check_specs=[
        dg.AssetCheckSpec(
            "books_balance",
            asset="landing_files",
            blocking=True,
            description="For every file, lines = landed + duplicates + dead + suppressed.",
        ),
        dg.AssetCheckSpec(
            "archive_holds_what_the_books_say",
            asset="landed_events",
            blocking=True,
            description="For every booked file, rows of the archive = `landed` in its books.",
        ),
        dg.AssetCheckSpec(
            "every_dead_letter_is_whole",
            asset="dead_letters",
            description="Each dead letter has the bytes that its id is the hash of, and a class of the contract.",
        ),
        dg.AssetCheckSpec(
            "every_file_was_read",
            asset="landing_files",
            description="No file was left aside, for example because its gzip stream is broken.",
        ),
    ],
)
def landing_assets(
    context: dg.AssetExecutionContext, config: LandingConfig, landing: LandingResource, lake: LakeResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Land every file that is not in the books yet."""
    area, tables = landing.open(), lake.open()
    files = unbooked_files(area, tables, date.fromisoformat(config.landing_date) if config.landing_date else None)
    ledger = Ledger()
    for blocks in batches(area, files, ledger):
        land_batch(area, tables, blocks, ledger)
        context.log.info("batch_landed: %s lines", f"{sum(block.line_count for block in blocks):,}")
    tables.insert_new(LANDING_FILES, closed_books(ledger, files))
    yield from _results(tables, ledger)


def unbooked_files(landing: Landing, lake: Lake, landing_date: date | None) -> list[EventFile]:
    """Files of the landing area that the books do not hold with their present content."""
    booked = set(lake.scan(LANDING_FILES).select("source_uri", "etag").collect().iter_rows())
    files = [f for f in landing.event_files() if (f.uri, f.etag) not in booked]
    return [f for f in files if landing_date in (None, f.landing_date)]


def batches(landing: Landing, files: list[EventFile], ledger: Ledger) -> Iterator[list[LineBlock]]:
    """All files in batches of bounded size; opens the book of each file that it reads."""
    batch: list[LineBlock] = []
    for block in _blocks(landing, files, ledger):
        batch.append(block)
        if sum(len(b.content) for b in batch) >= BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _blocks(landing: Landing, files: list[EventFile], ledger: Ledger) -> Iterator[LineBlock]:
    for file in files:
        book = ledger.books[file.uri] = FileBook(file.uri, file.etag, file.landing_date, bytes=file.bytes)
        try:
            for block in line_blocks(file.uri, landing.pieces(file, PIECE_BYTES)):
                book.lines += block.line_count
                yield block
        except ContractError as error:
            # What was read stays, its identity keeps it from landing twice; the file is not booked and is tried again.
            ledger.unreadable[file.uri] = str(error)


def land_batch(landing: Landing, lake: Lake, blocks: list[LineBlock], ledger: Ledger) -> None:
    """Bring one batch into the archive and the dead-letter queue, and into the books.

    The books are written last. After a crash at any point the batch is read again: rows that the archive holds from
    these very lines count as landed, dead letters are known by the hash of their bytes.
    """
    now = datetime.now(UTC)
    decoded = decode(blocks, now)
    uris = {block.source_uri for block in blocks}
    booked = set(lake.scan(LANDING_FILES).filter(pl.col("source_uri").is_in(uris)).collect()["source_uri"])
    outcome: list[Classified] = []

    def new_rows(archive: pl.LazyFrame) -> pl.DataFrame:
        outcome[:] = [classify(decoded.events, archived_with_ids_of(decoded.events, archive), booked)]
        return outcome[0].to_append

    lake.append_exclusive(EVENTS, new_rows)
    classified = outcome[0]
    dead = pl.concat([decoded.dead, conflict_letters(classified.conflicts, blocks, now)])
    keep_dead_letters(landing, lake, dead)
    for column, frame in (("landed", classified.landed), ("duplicates", classified.duplicates), ("dead", dead)):
        for uri, count in count_by_file(frame).items():
            book = ledger.books[uri]
            setattr(book, column, getattr(book, column) + count)


def archived_with_ids_of(events: pl.DataFrame, archive: pl.LazyFrame) -> pl.DataFrame:
    """Archive rows with the ids of a batch.

    An id made from the content can only be in the partition of its day; one that a producer gave can be anywhere.
    """
    key = ["tenant_id", "event_id"]
    is_content_id = pl.col("event_id") == pl.col("content_hash")
    parts = []
    for ids, scope in (
        (events.filter(is_content_id), ["tenant_id", "event_date"]),
        (events.filter(~is_content_id), ["tenant_id"]),
    ):
        partitions = [pl.col(c).is_in(ids[c].unique().implode()) for c in scope]
        held = archive.filter(*partitions) if ids.height else archive.head(0)
        parts.append(held.join(ids.select(key).unique().lazy(), on=key, how="semi"))
    columns = [*key, "content_hash", "source_uri", "source_line"]
    return pl.concat([part.select(columns) for part in parts]).collect().unique(key)


def keep_dead_letters(landing: Landing, lake: Lake, dead: pl.DataFrame) -> None:
    """Store the bytes under their hash, then the rows; both can be done again."""
    distinct = dead.unique("dead_letter_id", maintain_order=True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(landing.put_dead_letter, distinct["dead_letter_id"], distinct["raw"]))
    lake.insert_new(DEAD_LETTERS, distinct)


def closed_books(ledger: Ledger, files: Iterable[EventFile]) -> pl.DataFrame:
    """Rows of `LANDING_FILES` for the files that were read to their end."""
    now = datetime.now(UTC)
    rows = [asdict(ledger.books[f.uri]) for f in files if f.uri not in ledger.unreadable]
    frame = pl.DataFrame(rows) if rows else LANDING_FILES.empty()
    return frame.with_columns(landed_at=pl.lit(now).cast(pl.Datetime("us", "UTC"))).select(list(LANDING_FILES.columns))


def _results(lake: Lake, ledger: Ledger) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    books = lake.read(LANDING_FILES)
    per_tenant = lake.scan(EVENTS).group_by("tenant_id").len().sort("tenant_id").collect()
    reasons = lake.scan(DEAD_LETTERS).group_by("error_class").len().sort("len", descending=True).collect()
    events = int(per_tenant["len"].sum())
    archived = lake.scan(EVENTS).group_by("source_uri").agg(archived=pl.len().cast(pl.Int64)).collect()
    wrong, missing = unbalanced(books), misbooked(books, archived)
    yield dg.MaterializeResult(asset_key="landed_events", metadata=rows(events, per_tenant=preview(per_tenant)))
    yield dg.MaterializeResult(
        asset_key="dead_letters", metadata=rows(int(reasons["len"].sum()), per_error_class=preview(reasons))
    )
    totals = books.select("lines", "landed", "duplicates", "dead", "suppressed").sum()
    yield dg.MaterializeResult(
        asset_key="landing_files",
        metadata=rows(books.height, files_in_this_run=len(ledger.books), books=preview(totals)),
    )
    yield dg.AssetCheckResult(
        asset_key="landing_files",
        check_name="books_balance",
        passed=wrong.is_empty(),
        metadata={"unbalanced_files": preview(wrong)},
    )
    yield dg.AssetCheckResult(
        asset_key="landed_events",
        check_name="archive_holds_what_the_books_say",
        passed=missing.is_empty(),
        metadata={"archive_rows": events, "booked_rows": int(books["landed"].sum()), "wrong_files": preview(missing)},
    )
    damaged = damaged_letters(lake.read(DEAD_LETTERS))
    yield dg.AssetCheckResult(
        asset_key="dead_letters",
        check_name="every_dead_letter_is_whole",
        passed=damaged.is_empty(),
        metadata={"damaged": preview(damaged.drop("raw"))},
    )
    yield dg.AssetCheckResult(
        asset_key="landing_files",
        check_name="every_file_was_read",
        passed=not ledger.unreadable,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"unreadable": dg.MetadataValue.json(ledger.unreadable)},
    )


@dg.asset(
    description=CATALOG.description,
    owners=OWNERS,
    group_name=GROUP,
    kinds={"deltalake", "csv"},
    metadata={"dagster/column_schema": column_schema(CATALOG), "lake_table": CATALOG.name},
    check_specs=[
        dg.AssetCheckSpec(
            "every_catalogue_was_read",
            asset="product_catalog",
            description="No catalogue file was left aside because its columns or prices are wrong.",
        )
    ],
)
def product_catalog(  # with checks of its own, Dagster takes the result type without parameters only
    landing: LandingResource, lake: LakeResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Read every catalogue file; of a product that stands in several, the last file by name counts."""
    area, tables = landing.open(), lake.open()
    frames, unreadable = [CATALOG.empty()], []
    for file in area.catalog_files():
        try:
            frames.append(read_catalog(area.read(file), file.uri))
        except ContractError as error:
            unreadable.append(str(error))
    catalog = pl.concat(frames).unique(CATALOG.key, keep="last", maintain_order=True)
    changes = tables.replace(CATALOG, catalog.sort(CATALOG.key))
    return dg.MaterializeResult(
        metadata=rows(catalog.height, changed_rows=changes.count, preview=preview(catalog)),
        check_results=[
            dg.AssetCheckResult(
                check_name="every_catalogue_was_read",
                passed=not unreadable,
                metadata={"unreadable": dg.MetadataValue.json(unreadable)},
            )
        ],
    )


def read_catalog(content: bytes, uri: str) -> pl.DataFrame:
    """Rows of `CATALOG` from a file with the header tenant_id,id,name,category,price.

    Raises:
        ContractError: a column is missing or a price is not a number; the message names the file.
    """
    schema = {"tenant_id": pl.String, "id": pl.String, "name": pl.String, "category": pl.String, "price": pl.Float64}
    try:
        frame = pl.read_csv(content, schema_overrides=schema).select(list(schema))
    except pl.exceptions.PolarsError as error:
        raise ContractError(f"{uri} is not a catalogue with the columns {', '.join(schema)}: {error}") from None
    # Composed, as the strings of events are: an item must be the same text on both sides.
    composed = frame.with_columns(pl.col(pl.String).str.normalize("NFC"))
    return composed.drop_nulls(["tenant_id", "id"]).with_columns(source_uri=pl.lit(uri))


@dg.asset_check(asset=product_catalog, description="Every price is a number that is not negative.")
def prices_are_not_negative(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for products that would pay the customer."""
    wrong = lake.open().scan(CATALOG).filter(pl.col("price") < 0).collect()
    return dg.AssetCheckResult(passed=wrong.is_empty(), metadata={"products": preview(wrong)})
