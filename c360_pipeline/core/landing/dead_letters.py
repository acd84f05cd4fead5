"""Dead letters: rejected lines as rows of the queue, and what becomes of them when they are replayed."""

import hashlib
from collections.abc import Callable
from datetime import datetime
from functools import partial

import polars as pl

from c360_pipeline.core.catalog.tables import DEAD_LETTER_LINES, DEAD_LETTERS
from c360_pipeline.core.contract.events import ERROR_CLASSES, MAX_LINE_BYTES
from c360_pipeline.core.landing.classify import Classified
from c360_pipeline.core.landing.decode import REJECTED_SCHEMA, Decoded, decode, decode_records, rejected_conflicts
from c360_pipeline.core.landing.lines import PLACE, Delivery, Line, LineBlock, LongLine
from c360_pipeline.core.projection.refused import REFUSED
from c360_pipeline.core.sources.source import Sources

LETTER_CLASSES = (*ERROR_CLASSES, REFUSED)
STATUSES = ("open", "replayed", "discarded")
REPLAY_SCHEMA = pl.Schema(
    dict.fromkeys(("dead_letter_id", "outcome", "error_class", "reason", "tenant_id", "source_uri"), pl.String)
    | {"source_line": pl.Int64}
)
"""Columns of what a replay says of each letter; class and reason are null for those that are not dead any more."""


def letters_of(rejected: pl.DataFrame) -> pl.DataFrame:
    """Rows of `DEAD_LETTERS`: each content once, at its first place."""
    return rejected.unique("dead_letter_id", keep="first", maintain_order=True).select(list(DEAD_LETTERS.columns))


def dead_lines(rejected: pl.DataFrame) -> pl.DataFrame:
    """Rows of `DEAD_LETTER_LINES`: each place once."""
    return rejected.with_columns(outcome=pl.lit("dead")).select(list(DEAD_LETTER_LINES.columns))


def long_line_letter(line: LongLine, digest: str, size: int, now: datetime) -> pl.DataFrame:
    """The rejected row of a line that was never in memory: its bytes are in the store only.

    Args:
        line: where it stands.
        digest: sha256 of its bytes, in hex.
        size: how many they are.
        now: the moment of landing, UTC.
    """
    row = {
        "dead_letter_id": digest, **line.delivery._asdict(), "source_line": line.number, "byte_offset": line.offset,
        "error_class": "too_large", "reason": f"the line has {size:,} bytes, the limit is {MAX_LINE_BYTES:,}",
        "first_seen_at": now, "status": "open",
    }  # fmt: skip
    return pl.DataFrame([{name: row.get(name) for name in REJECTED_SCHEMA}], schema=REJECTED_SCHEMA)


def reopened(replayed: pl.DataFrame, rejected: pl.DataFrame) -> pl.DataFrame:
    """Letters that were replayed once and are rejected again: open, with today's class and reason."""
    today = rejected.select("dead_letter_id", new_class="error_class", new_reason="reason")
    return (
        replayed.join(today, on="dead_letter_id", maintain_order="left")
        .with_columns(
            status=pl.lit("open"),
            resolved_at=pl.lit(None, pl.Datetime("us", "UTC")),
            resolution=pl.lit(None, pl.String),
            error_class="new_class",
            reason="new_reason",
        )
        .select(list(DEAD_LETTERS.columns))
    )


def passed(classified: Classified, queued: pl.DataFrame) -> pl.DataFrame:
    """What became of lines that were in the queue and pass today.

    Args:
        classified: the events of today.
        queued: rows of `DEAD_LETTER_LINES`.

    Returns:
        dead_letter_id, outcome.
    """
    outcomes = [(classified.landed, "landed"), (classified.duplicates, "duplicate")]
    return pl.concat(
        queued.join(frame, on=PLACE, how="semi").select("dead_letter_id", outcome=pl.lit(outcome))
        for frame, outcome in outcomes
    )


def read_by(places: pl.DataFrame, sources: Sources, own: str) -> pl.DataFrame:
    """Rows with a `reader`: what lines of their file are read by; null where its source is paused or wrong.

    Args:
        places: rows with a `source_uri`.
        sources: those that are active.
        own: what addresses of files of the product's own form begin with.
    """
    uris = places["source_uri"].unique()
    readers = [_reader(uri, sources, own) for uri in uris]
    named = pl.DataFrame([uris, pl.Series("reader", readers, dtype=pl.String)])
    return places.join(named, on="source_uri", how="left", maintain_order="left")


def _reader(uri: str, sources: Sources, own: str) -> str | None:
    source = sources.of(uri)
    if source is None:
        return "" if uri.startswith(own) else None
    return "\n".join([source.name, *source.given(uri).values()])


def at_their_places(letters: pl.DataFrame, lines: pl.DataFrame, sources: Sources, own: str) -> pl.DataFrame:
    """Letters, once for each reader of a file in which their bytes stand: each makes its own event of them.

    Args:
        letters: rows of `DEAD_LETTERS`.
        lines: rows of `DEAD_LETTER_LINES`, of these letters.
        sources: those that are active.
        own: what addresses of files of the product's own form begin with.

    Returns:
        Rows of `DEAD_LETTERS` with a `reader`, at the place that landed already, else where the letter was first seen,
        else the first by name.
    """
    place = ["dead_letter_id", *PLACE]
    alone = letters.join(lines, on="dead_letter_id", how="anti").select(*place, was=pl.lit("dead"))
    first = letters.select(*place, is_first=True)
    known = pl.concat([lines.select(*place, was="outcome"), alone]).join(first, on=place, how="left")
    found = (
        read_by(known, sources, own)
        .drop_nulls("reader")
        .sort(pl.col("was") != "landed", pl.col("is_first").is_null(), *PLACE)
        .unique(["dead_letter_id", "reader"], keep="first", maintain_order=True)
        .select(*place, "reader")
    )
    placed = letters.drop(PLACE).join(found, on="dead_letter_id", maintain_order="left_right")
    return placed.select(*letters.columns, "reader")


def decode_letters(letters: pl.DataFrame, now: datetime, sources: Sources) -> Decoded:
    """Hold the bytes of letters against the contract, those of sources through their mapping of today.

    Args:
        letters: rows of `DEAD_LETTERS` with a `reader`, all with their bytes.
        now: the moment of the replay, UTC.
        sources: those that are active.

    Returns:
        Events and rejected lines, every row at the letter's place.
    """
    parts = []
    for part in letters.partition_by("reader", maintain_order=True):
        # All files of a reader are of one source, and say the same of their records.
        uri = str(part["source_uri"][0])
        source = sources.of(uri)
        again = partial(decode, now=now) if source is None else partial(
            decode_records, now=now, source=source, keeps_left_out=True
        )  # fmt: skip
        parts.append(_decoded(part, again, uri))
    return Decoded.together(parts)


def _decoded(letters: pl.DataFrame, decoder: Callable[[LineBlock], Decoded], uri: str) -> Decoded:
    block = LineBlock(Delivery(uri, ""), 0, 0, b"".join(raw + b"\n" for raw in letters["raw"]))
    decoded = decoder(block)
    places = letters.select(PLACE).with_row_index("number", offset=0).with_columns(pl.col("number").cast(pl.Int64))
    return Decoded(_placed(decoded.events, places), _placed(decoded.rejected, places), decoded.lines)


def _placed(rows: pl.DataFrame, places: pl.DataFrame) -> pl.DataFrame:
    numbered = rows.rename({"source_line": "number"}).drop("source_uri", "source_etag")
    return numbered.join(places, on="number", maintain_order="left").select(rows.columns)


def validated_letters(
    letters: pl.DataFrame, classified: Classified, suppressed: pl.DataFrame, rejected: pl.DataFrame, now: datetime
) -> pl.DataFrame:
    """What becomes of each letter, of `REPLAY_SCHEMA` with the `reader`.

    Args:
        letters: rows of `DEAD_LETTERS` with a `reader`.
        classified: the events that they hold.
        suppressed: rows of those whose user is suppressed.
        rejected: rows of those that break the contract still.
        now: the moment of the replay, UTC.
    """
    raw = {(Delivery(uri, etag), line): raw for uri, etag, line, raw in letters.select(*PLACE, "raw").iter_rows()}

    def line_at(delivery: Delivery, number: int) -> Line:
        return Line(delivery, number, 0, raw[delivery, number])

    dead = pl.concat([rejected, rejected_conflicts(classified.conflicts, line_at, now)])
    nothing = pl.lit(None, pl.String)
    outcomes = pl.concat(
        [
            *(
                frame.select(*PLACE, outcome=pl.lit(outcome), new_class=nothing, new_reason=nothing)
                for outcome, frame in (
                    ("landed", classified.landed), ("duplicate", classified.duplicates), ("suppressed", suppressed)
                )
            ),
            dead.select(*PLACE, outcome=pl.lit("dead"), new_class="error_class", new_reason="reason"),
        ]
    )  # fmt: skip
    return (
        letters.select("dead_letter_id", "tenant_id", *PLACE, "reader")
        .join(outcomes, on=PLACE, maintain_order="left")
        .rename({"new_class": "error_class", "new_reason": "reason"})
        .select(*REPLAY_SCHEMA, "reader")
    )


def closed(letters: pl.DataFrame, status: str, resolution: str, now: datetime) -> pl.DataFrame:
    """The letters, out of the queue.

    Args:
        letters: rows of `DEAD_LETTERS`.
        status: replayed or discarded.
        resolution: what became of them, or why they are put aside.
        now: UTC.
    """
    return letters.with_columns(
        status=pl.lit(status), resolution=pl.lit(resolution),
        resolved_at=pl.lit(now).cast(pl.Datetime("us", "UTC")),
    )  # fmt: skip


def emptied(letters: pl.DataFrame, resolution: str, now: datetime) -> pl.DataFrame:
    """The letters without their bytes, put aside; the accounting goes on counting their lines."""
    return closed(letters, "discarded", resolution, now).with_columns(raw=pl.lit(None, pl.Binary))


def resolved_lines(lines: pl.DataFrame, letters: pl.DataFrame, outcome: pl.DataFrame) -> pl.DataFrame:
    """Rows of `DEAD_LETTER_LINES` that are not dead any more.

    The place of a letter is what landed, others with the same reader repeat it.

    Args:
        lines: rows of `DEAD_LETTER_LINES` with their `reader`.
        letters: rows of `DEAD_LETTERS` with their `reader`.
        outcome: what became of these.
    """
    alive = outcome.filter(pl.col("outcome") != "dead").select("dead_letter_id", "reader", now="outcome")
    first = letters.select(*PLACE, is_first=True)
    here = (pl.col("now") == "suppressed") | pl.col("is_first").fill_null(value=False)
    return (
        lines.join(alive, on=["dead_letter_id", "reader"], maintain_order="left")
        .join(first, on=PLACE, how="left", maintain_order="left")
        .with_columns(outcome=pl.when(here).then("now").otherwise(pl.lit("duplicate")))
        .select(list(DEAD_LETTER_LINES.columns))
    )


def resolved_letters(letters: pl.DataFrame, lines: pl.DataFrame, outcome: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """Rows of `DEAD_LETTERS` after a replay; those that are dead to one of their readers have its class and reason.

    Args:
        letters: rows of `DEAD_LETTERS`.
        lines: rows of `DEAD_LETTER_LINES` with their `reader`; a letter of which one has none stays open.
        outcome: what became of the letters at each of their readers.
        now: UTC.
    """
    waiting = lines.filter(pl.col("reader").is_null())["dead_letter_id"].unique()
    today = outcome.group_by("dead_letter_id", maintain_order=True).agg(
        outcome=pl.when((pl.col("outcome") == "landed").any())
        .then(pl.lit("landed"))
        .otherwise(pl.col("outcome").first()),
        is_alive=(pl.col("outcome") != "dead").all(),
        new_class=pl.col("error_class").drop_nulls().first(),
        new_reason=pl.col("reason").drop_nulls().first(),
    )
    is_alive = pl.col("is_alive") & ~pl.col("dead_letter_id").is_in(waiting.implode())
    return (
        letters.join(today, on="dead_letter_id", maintain_order="left")
        .with_columns(
            status=pl.when(is_alive).then(pl.lit("replayed")).otherwise("status"),
            resolved_at=pl.when(is_alive).then(pl.lit(now).cast(pl.Datetime("us", "UTC"))).otherwise("resolved_at"),
            resolution=pl.when(is_alive).then("outcome").otherwise("resolution"),
            error_class=pl.coalesce("new_class", "error_class"),
            reason=pl.coalesce("new_reason", "reason"),
        )
        .select(letters.columns)
    )


def damaged(letters: pl.DataFrame) -> pl.DataFrame:
    """Letters whose id is not the sha256 of their bytes, or whose class is none that there is.

    Args:
        letters: dead_letter_id, raw, error_class.
    """
    hashes = pl.Series([hashlib.sha256(raw).hexdigest() for raw in letters["raw"]], dtype=pl.String)
    return letters.filter((pl.col("dead_letter_id") != hashes) | ~pl.col("error_class").is_in(LETTER_CLASSES))
