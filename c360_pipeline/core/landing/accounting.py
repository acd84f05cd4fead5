"""The accounting of landing: for every delivery, what became of each of its lines, and whether that adds up."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime

import polars as pl

from c360_pipeline.core.catalog.tables import LANDING_FILES
from c360_pipeline.core.contract.fields import CONTRACT_VERSION
from c360_pipeline.core.landing.lines import DELIVERY, Delivery

COUNTED_AS = {"landed": "landed", "duplicate": "duplicates", "suppressed": "suppressed"}
"""What a dead letter's line can become, and the column of `LANDING_FILES` that counts such lines."""
OUTCOMES = ("landed", "duplicates", "dead", "suppressed", "skipped", "withheld")
"""What becomes of a line."""
QUEUE_COUNTED_BY = (*DELIVERY, "outcome")
"""Columns of `DEAD_LETTER_LINES`; the number of its lines with equal values is all that the accounting needs of it."""


@dataclass
class FileAccount:
    """The account of one delivery while it is read; balanced when every line is in one of `OUTCOMES`."""

    source_uri: str
    etag: str
    landing_date: date
    bytes: int = 0
    lines: int = 0
    landed: int = 0
    duplicates: int = 0
    dead: int = 0
    suppressed: int = 0
    skipped: int = 0
    withheld: int = 0
    damage: str | None = None
    source: str | None = None
    mapping_version: int | None = None

    @property
    def delivery(self) -> Delivery:
        """What the account is of."""
        return Delivery(self.source_uri, self.etag)


def closed_accounts(accounts: list[FileAccount], now: datetime, left_open: Collection[Delivery] = ()) -> pl.DataFrame:
    """Rows of `LANDING_FILES`.

    Args:
        accounts: of files that were read.
        now: when.
        left_open: deliveries with which something is to be done yet; whatever breaks off, they are read again.
    """
    schema = LANDING_FILES.empty().schema
    rows = [
        {
            **vars(account),
            "landed_at": now,
            "contract_version": CONTRACT_VERSION,
            "replaced": 0,
            "reopened_at": now if account.delivery in left_open else None,
            **dict.fromkeys((f"replayed_{c}" for c in COUNTED_AS.values()), 0),
        }
        for account in accounts
    ]
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def of_older_contracts(files: pl.DataFrame) -> pl.DataFrame:
    """Rows of `LANDING_FILES` whose file was read by an older version of the event contract than today's.

    They stay as they were read: what a newer contract makes of their lines comes when their landing date is read again
    (`c360 run --partition DATE`).
    """
    return files.filter(pl.col("contract_version").fill_null(1) < CONTRACT_VERSION)


def unbalanced(files: pl.DataFrame) -> pl.DataFrame:
    """Rows of `LANDING_FILES` whose columns do not add up to their lines."""
    columns = (*OUTCOMES, "replaced")
    return files.filter(pl.col("lines") != pl.sum_horizontal(pl.col(name).fill_null(0) for name in columns))


def replaced_accounts(files: pl.DataFrame) -> pl.DataFrame:
    """Accounts of versions of files whose events and letters have left for those of a newer version.

    Args:
        files: rows of `LANDING_FILES`.
    """
    gone = pl.sum_horizontal(pl.col("replaced").fill_null(0), "landed", "dead")
    emptied = ("landed", "dead", *(f"replayed_{name}" for name in COUNTED_AS.values()))
    return files.with_columns(
        replaced=gone, reopened_at=pl.lit(None, files.schema["reopened_at"]),
        **{name: pl.lit(0, pl.Int64) for name in emptied},
    ).filter(pl.col("replaced") > 0)  # fmt: skip


def misaccounted(files: pl.DataFrame, archived: pl.DataFrame) -> pl.DataFrame:
    """Addresses of which the archive holds more or fewer rows than their accounting says.

    A file that is being read has rows in the archive and no account; it is not checked here.

    Args:
        files: rows of `LANDING_FILES`; an address that was delivered to again has several.
        archived: source_uri and `archived`, the number of archive rows from it.

    Returns:
        source_uri, landed, archived.
    """
    booked = files.group_by("source_uri").agg(pl.col("landed").sum())
    both = booked.join(archived, on="source_uri", how="left").with_columns(pl.col("archived").fill_null(0))
    return both.filter(pl.col("landed") != pl.col("archived")).sort("source_uri")


def misaccounted_dead(files: pl.DataFrame, queue: pl.DataFrame) -> pl.DataFrame:
    """Deliveries of which the queue holds more or fewer dead lines than their accounting says.

    Args:
        files: rows of `LANDING_FILES`.
        queue: lines per `QUEUE_COUNTED_BY`, as `len`.

    Returns:
        source_uri, source_etag, dead, queued.
    """
    queued = queue.filter(pl.col("outcome") == "dead").select(*DELIVERY, queued="len")
    booked = files.select("source_uri", "dead", source_etag="etag")
    both = booked.join(queued, on=DELIVERY, how="left").with_columns(pl.col("queued").fill_null(0))
    return both.filter(pl.col("dead") != pl.col("queued")).select(*DELIVERY, "dead", "queued").sort(DELIVERY)


def settled(files: pl.DataFrame, queue: pl.DataFrame) -> pl.DataFrame:
    """Accounts of files that do not show yet what became of their dead lines, as they should be.

    Derived from what the lines say, so that it can be done again after a crash at any point.

    Args:
        files: rows of `LANDING_FILES`.
        queue: lines per `QUEUE_COUNTED_BY`, as `len`.
    """
    counts = queue.group_by(source_uri="source_uri", etag="source_etag").agg(
        pl.col("len").filter(pl.col("outcome") == outcome).sum().alias(f"now_{column}")
        for outcome, column in COUNTED_AS.items()
    )
    columns = list(COUNTED_AS.values())
    joined = files.join(counts, on=["source_uri", "etag"], how="left", maintain_order="left").with_columns(
        *(pl.col(f"now_{c}").fill_null(0) for c in columns), *(pl.col(f"replayed_{c}").fill_null(0) for c in columns)
    )
    change = {c: pl.col(f"now_{c}") - pl.col(f"replayed_{c}") for c in columns}
    return (
        joined.filter(pl.any_horizontal(change[c] != 0 for c in columns))
        .with_columns(
            **{c: pl.col(c) + change[c] for c in columns},
            dead=pl.col("dead") - pl.sum_horizontal(change.values()),
            **{f"replayed_{c}": pl.col(f"now_{c}") for c in columns},
        )
        .select(files.columns)
    )


def lost_deliveries(
    files: pl.DataFrame, archived: pl.DataFrame, queue: pl.DataFrame, present: set[Delivery]
) -> list[Delivery]:
    """Deliveries with rows in the archive or the queue that have no account, and that can't be read any more.

    Args:
        files: rows of `LANDING_FILES`.
        archived: source_uri and source_etag of archive rows, each once.
        queue: lines per `QUEUE_COUNTED_BY`, as `len`.
        present: deliveries that are in the landing area.
    """
    known = pl.concat([archived.select(DELIVERY), queue.select(DELIVERY)]).unique().drop_nulls()
    unbooked = known.join(files.select("source_uri", source_etag="etag"), on=DELIVERY, how="anti").sort(DELIVERY)
    return [d for d in (Delivery(*row) for row in unbooked.iter_rows()) if d not in present]
