"""Which events are new, held, duplicates or conflicts, against what the archive holds."""

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl

from c360_pipeline.core.arrays.row_hashes import identity_hash, trace_hash, user_hash
from c360_pipeline.core.catalog.changes import difference
from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.contract.identifiers import names_nobody, normal_form
from c360_pipeline.core.landing.lines import DELIVERY, PLACE, Delivery, count_by_delivery
from c360_pipeline.core.landing.suppressed import Suppressed

ARCHIVED_FACTS = ["tenant_id", "event_id", "content_hash", "ts", "source", "mapping_version", *PLACE]
"""Columns of archive rows that decide about an event with their id."""
REPEATED_WITHIN = timedelta(hours=1)
"""A record of a source may come again with another time, as collectors set it right; one of later took the id anew."""
TRACES = ("anonymous_id", "session_id")
"""By which rows of nobody known are told: their visitor, and their visit."""
TRACE_HASHES = {
    ids: trace_hash(kind, *(normal_form(pl.col(name)) for name in ids))
    for kind, ids in (("visitor", ("anonymous_id",)), ("visit", ("session_id", "anonymous_id")))
}
"""By the columns of a trace, what stands for it on the list of the suppressed."""
NEW, HELD, DUPLICATE, CONFLICT = range(4)
_TAKERS_OF_NONE = pl.DataFrame(schema={"taken_by_uri": pl.String, "taken_by_line": pl.Int64})


@dataclass(frozen=True)
class Classified:
    """Events after comparison with the archive.

    Attributes:
        events: rows of `EVENTS`.
        verdicts: of each event, NEW: the archive does not hold it; HELD: it is there from this very line, by an earlier
            try; DUPLICATE: it is there from another line; CONFLICT: its id is taken by an event of other content.
        takers: of each conflict in turn, `taken_by_uri` and `taken_by_line` of the event that has the id.
    """

    events: pl.DataFrame
    verdicts: pl.Series
    takers: pl.DataFrame

    def of(self, *verdicts: int) -> pl.DataFrame:
        """The events with one of these verdicts."""
        chosen = self.verdicts.is_in(verdicts)
        return self.events if chosen.all() else self.events.filter(chosen)

    @property
    def to_append(self) -> pl.DataFrame:
        """Events that the archive does not hold."""
        return self.of(NEW)

    @property
    def landed(self) -> pl.DataFrame:
        """Events that the archive holds from these lines once `to_append` is there."""
        return self.of(NEW, HELD)

    @property
    def duplicates(self) -> pl.DataFrame:
        """Events that the archive holds from other lines."""
        return self.of(DUPLICATE)

    @property
    def conflicts(self) -> pl.DataFrame:
        """Events whose id is taken, with the place of the event that has it."""
        return self.of(CONFLICT).hstack(self.takers)

    def count(self, *verdicts: int) -> Counter[Delivery]:
        """Events with one of these verdicts, by delivery."""
        return count_by_delivery(self.events.select(DELIVERY).filter(self.verdicts.is_in(verdicts)))


def split_suppressed(rows: pl.DataFrame, suppressed: Suppressed) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Part rows into those that may land and those of suppressed people.

    Args:
        rows: with tenant_id and user_id, either of which may be null, and with `TRACES`, by which rows of nobody known
            are told.
        suppressed: whoever has the normal form of an id on the list is meant, however the id is spelled.
    """
    if suppressed.is_empty:
        return rows, rows.clear()
    user = normal_form(pl.col("user_id"))
    # Entries of before there was a normal form are of the id as it was given.
    is_silent = _is_on(rows, ["user_id"], [user_hash(user), user_hash()], suppressed)
    is_visitor, is_visit = (_is_on(rows, list(ids), [of], suppressed) for ids, of in TRACE_HASHES.items())
    is_traced = is_visitor | is_visit
    if is_traced.any():
        # Somebody else who logged in on that device is known by name.
        nobody = rows.select(pl.col("user_id").is_null() | names_nobody(user)).to_series()
        is_silent |= is_traced & nobody
    return rows.filter(~is_silent), rows.filter(is_silent)


def _is_on(rows: pl.DataFrame, columns: list[str], hashes: list[pl.Expr], suppressed: Suppressed) -> pl.Series:
    """Of each row, whether the list has one of the hashes of its ids."""
    key = ["tenant_id", *columns]
    ids = rows.select(key).drop_nulls(columns).unique()
    if ids.is_empty():
        return pl.Series([False]).new_from_index(0, rows.height)
    spelled = pl.concat([ids.with_columns(user_hash=suppressed.covered(one)) for one in hashes])
    found = spelled.join(suppressed.listed, on=["tenant_id", "user_hash"], how="semi").select(key).unique()
    marked = rows.select(key).join(found.with_columns(is_on=True), on=key, how="left", maintain_order="left")
    return marked["is_on"].fill_null(value=False)


def classify(events: pl.DataFrame, archived: pl.DataFrame) -> Classified:
    """Decide which events are new.

    The first of several lines with one identity wins, in the archive before the batch and in the batch by line. A row
    that the archive holds from this very line of this very delivery is an earlier, interrupted try: landed, not a
    duplicate.

    Args:
        events: rows of `EVENTS`.
        archived: `ARCHIVED_FACTS` of the archive rows with the ids of these events.
    """
    key = EVENTS.key
    hashes = identity_hash(events, key)
    # An event whose hash nothing else has is new; only the others are looked at closely.
    is_alone = ~(hashes.is_duplicated() | hashes.is_in(identity_hash(archived, key).implode()))
    verdicts = pl.Series(np.full(events.height, NEW, np.int8))
    if is_alone.all():
        return Classified(events, verdicts, _TAKERS_OF_NONE)
    close = events.select(ARCHIVED_FACTS).with_row_index("row").filter(~is_alone)
    by_line = close.sort(pl.col("row").min().over(DELIVERY), "source_line")
    classified = _classified(by_line, archived).sort("row")
    verdicts = verdicts.scatter(classified["row"], classified["verdict"])
    takers = classified.filter(pl.col("verdict") == CONFLICT).select(_TAKERS_OF_NONE.columns)
    return Classified(events, verdicts, takers)


def _classified(events: pl.DataFrame, archived: pl.DataFrame) -> pl.DataFrame:
    """Verdicts on events, and who took the ids of conflicts; in the order of the events."""
    key, facts = list(EVENTS.key), ["content_hash", "ts", "source", "mapping_version", *PLACE]
    first = events.unique(subset=key, keep="first", maintain_order=True).join(archived, on=key, how="anti")
    winners = pl.concat(
        [
            archived.select(*key, *facts, is_new=pl.lit(value=False)),
            first.select(*key, *facts, is_new=pl.lit(value=True)),
        ]
    ).with_columns(pl.col("content_hash").fill_null(pl.col("event_id")))
    classified = events.join(winners, on=key, how="left", suffix="_winner", maintain_order="left")
    is_winner = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_winner")) for name in PLACE)
    # One record, mapped by two versions: user and action may be other ones.
    is_mapped_otherwise = (pl.col("source") == pl.col("source_winner")) & (
        pl.col("mapping_version") != pl.col("mapping_version_winner")
    )
    is_of_then = pl.col("source").is_null() | ((pl.col("ts") - pl.col("ts_winner")).abs() <= REPEATED_WITHIN)
    has_same_content = pl.col("content_hash") == pl.col("content_hash_winner")
    is_same = (has_same_content | is_mapped_otherwise.fill_null(value=False)) & (is_of_then | is_winner)
    verdict = (
        pl.when(~is_same)
        .then(CONFLICT)
        .when(~is_winner)
        .then(DUPLICATE)
        .when(pl.col("is_new"))
        .then(NEW)
        .otherwise(HELD)
    )
    return classified.select(
        "row",
        verdict=verdict.cast(pl.Int8),
        taken_by_uri="source_uri_winner",
        taken_by_line="source_line_winner",
    )


def archive_changes(before: pl.DataFrame, after: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What to write and what to remove so that the archive holds `after` in place of `before`.

    Args:
        before: rows of the archive.
        after: rows that should be there; `content_hash` is there on every row.

    Returns:
        Rows of `after` that are new or from another line or of other content, as the archive keeps them; and rows of
        `before` with an id and day that `after` does not have.
    """
    identity = ["tenant_id", "event_date", "event_id"]
    # A better mapping alters what an event says, and not what tells it from another.
    facts = [*identity, "content_hash", "mapping_version", *PLACE]
    known = before.with_columns(pl.col("content_hash").fill_null(pl.col("event_id"))).select(facts)
    changes = difference(known, after.select(facts), identity)
    changed = after.join(changes.upserted.select(identity), on=identity, how="semi", maintain_order="left")
    return stored_events(changed), before.join(changes.deleted, on=identity, how="semi")


def stored_events(events: pl.DataFrame) -> pl.DataFrame:
    """Events as the archive keeps them: a hash that is the event's id is not written twice."""
    own_hash = pl.when(pl.col("content_hash") != pl.col("event_id")).then(pl.col("content_hash"))
    return events.with_columns(content_hash=own_hash)
