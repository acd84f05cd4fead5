"""Lines of landing files made blank: what was sent of people who are to be forgotten is stored nowhere.

The numbers of all other lines stay. A file that was changed so has another etag, and says in its metadata of which it
was made; accounts, queue and archive follow it, now or, after a crash, before the next landing.
"""

import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import IO

import polars as pl

from c360_pipeline.core.catalog.tables import DEAD_LETTER_LINES, DEAD_LETTERS, EVENTS, LANDING_FILES
from c360_pipeline.core.landing.lines import Delivery
from c360_pipeline.core.sources.records import Framing, message_lines, without_records
from c360_pipeline.core.sources.source import Source, Sources
from c360_pipeline.errors import ConflictError, ContractError, UnreadableError
from c360_pipeline.stages.landing.ingest import PIECE_BYTES
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.local.scratch import scratch_folder
from c360_pipeline.stores.s3.bucket import GZIP_MAGIC
from c360_pipeline.stores.s3.landing import BLANKED_FROM, EventFile, Landing, LandingFile, is_of_messages
from c360_pipeline.stores.s3.packed import reader

LINE_BYTES = 1024 * 1024
Redact = Callable[[bytes], bytes]


def blank_lines(
    landing: Landing,
    file: LandingFile,
    numbers: Set[int],
    redacted: Set[int] = frozenset(),
    redact: Redact = bytes,
    source: Source | None = None,
) -> str:
    """Write a file again without some of its lines, as landing reads it: packed by gzip where it was.

    Args:
        landing: where it is.
        file: as it was read.
        numbers: of lines that become blank, from 1.
        redacted: of lines of which only a part goes.
        redact: makes of such a line what stays of it, without touching its end.
        source: that the file is of: in files of messages, lines are counted by its records.

    Returns:
        Its new etag.

    Raises:
        ConflictError: it was changed since.
        ContractError: it is damaged.
        UnreadableError: the store does not hand it out, or does not take the new one.
    """
    metadata = landing.metadata(file.key)
    sha256 = metadata.get("sha256") or landing.sha256_of(file.uri) or ""
    with scratch_folder() as folder:
        target = folder / "blanked"
        with target.open("wb") as out:
            lines = reader(landing.pieces(file, PIECE_BYTES))
            if source is not None and source.framing.is_of_messages:
                _write_without(lines, out, numbers, source.framing)
            elif landing.first_bytes(file).startswith(GZIP_MAGIC) and not is_of_messages(file.key):
                with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed:
                    _write_blanked(lines, packed, numbers, redacted, redact)  # type: ignore[arg-type]  # they read as files do
            else:
                _write_blanked(lines, out, numbers, redacted, redact)
        # Known as what it was: its producer may send it again.
        return landing.replace(file, target, {"sha256": sha256, BLANKED_FROM: file.etag})


def rename_deliveries(lake: Lake, renamed: Mapping[tuple[str, str], str]) -> None:
    """Let the tables say that files have other etags now; can be done again after it broke off.

    Args:
        lake: where they are.
        renamed: the new etag by address and old etag.
    """
    for table in (DEAD_LETTER_LINES, DEAD_LETTERS, EVENTS):
        lake.commits.rename_deliveries(table, "source_etag", renamed)
    # Last: as long as it says the old etag, the rest is made up for.
    lake.commits.rename_deliveries(LANDING_FILES, "etag", renamed)


def settle_blanked(landing: Landing, lake: Lake, files: Sequence[EventFile]) -> bool:
    """Make up for renames that broke off: files that are new to the accounting may be made of one that is in it.

    Args:
        landing: where they are.
        lake: with the accounting.
        files: that the accounting does not hold with their present etag.

    Returns:
        Whether there was one.
    """
    if not files:
        return False
    known = set(lake.scan(LANDING_FILES).select("source_uri", "etag").collect().iter_rows())
    addresses = {uri for uri, _ in known}
    renamed: dict[tuple[str, str], str] = {}
    for file in files:
        before = landing.metadata(file.key).get(BLANKED_FROM) if file.uri in addresses else None
        if before is not None and (file.uri, before) in known:
            renamed[file.uri, before] = file.etag
    rename_deliveries(lake, renamed)
    return bool(renamed)


def blank_deliveries(
    landing: Landing, lake: Lake, lines: Mapping[Delivery, set[int]], sources: Sources, failed: dict[str, str]
) -> dict[Delivery, str]:
    """Make lines of deliveries that landed blank, and close their accounts.

    Args:
        landing: where they are.
        lake: whose tables follow.
        lines: their numbers, by delivery.
        sources: whose files these may be.
        failed: gets, by address, why a file could not be changed.

    Returns:
        The new etag of each that was changed.
    """
    done: dict[Delivery, str] = {}
    for delivery, numbers in lines.items():
        try:
            file = landing.named(delivery.source_uri)
            if file.etag == delivery.source_etag:
                done[delivery] = blank_lines(landing, file, numbers, source=sources.of(delivery.source_uri))
        except (FileNotFoundError, ConflictError):
            continue  # its producer removed it, or sent another, which lands by itself
        except (UnreadableError, ContractError) as error:
            failed[delivery.source_uri] = (
                f"{len(numbers)} lines of people who are not to be stored could not be made blank: {error}"
            )
    rename_deliveries(lake, {(uri, etag): new for (uri, etag), new in done.items()})
    closed = pl.DataFrame(
        [(uri, done.get(Delivery(uri, etag), etag)) for uri, etag in lines],
        schema={"source_uri": pl.String, "etag": pl.String}, orient="row",
    )  # fmt: skip
    if closed.height:
        accounts = lake.read(LANDING_FILES).join(closed, on=["source_uri", "etag"], how="semi")
        lake.commits.merge(LANDING_FILES, accounts.with_columns(reopened_at=pl.lit(None, pl.Datetime("us", "UTC"))))
    return done


def _write_blanked(lines: IO[bytes], out: IO[bytes], numbers: Set[int], redacted: Set[int], redact: Redact) -> None:
    """Copy lines, of those with these numbers, from 1, their ends only: the others keep theirs."""
    for number, part in _parts(lines):
        if number not in numbers:
            out.write(redact(part) if number in redacted else part)
        elif part.endswith(b"\n"):
            out.write(b"\n")


def _write_without(lines: IO[bytes], out: IO[bytes], numbers: Set[int], framing: Framing) -> None:
    """Copy messages, of those with records of these numbers, from 1, what is left of them."""
    first = 1
    while line := lines.readline():
        held = b"".join(message_lines([line.removesuffix(b"\n") + b"\n"], framing)).count(b"\n")
        gone = {number for number in range(1, held + 1) if first + number - 1 in numbers}
        end = b"\n" if line.endswith(b"\n") else b""
        out.write(without_records(line.removesuffix(b"\n"), framing, gone) + end if gone else line)
        first += held


def _parts(lines: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines, the long ones in parts, each with the number of its line."""
    number = 1
    while part := lines.readline(LINE_BYTES):
        yield number, part
        number += part.endswith(b"\n")
