"""What a destination has to be told: members that it does not have, and those that it has, or may have, and that left.

A change is noted before it is sent and after it was answered. What was sent and not answered is in doubt: it is sent
again under its id, or, where it is not wanted any more, its opposite is.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from c360_pipeline.core.catalog.audience_tables import AUDIENCE_DEAD_LETTERS
from c360_pipeline.core.projection.graph import INSTANT

ENTERED, LEFT = "entered", "left"
HAS, ENTERING, LEAVING = "has", "entering", "leaving"
"""What a destination is known to have, may have, and may have lost."""
IN_DOUBT = {ENTERED: ENTERING, LEFT: LEAVING}
CHANGES = {"user_id": pl.String, "change": pl.String, "entered_at": INSTANT, "told_at": INSTANT, "id": pl.String}


@dataclass(frozen=True)
class Due:
    """What is to be done for a destination.

    Attributes:
        changes: `CHANGES` to send, sorted by user; `id` is the same when a change is sent again, and no other's.
        withheld: members who refused the purpose.
        dead: changes that the destination refused before.
        settled: user_id of dead letters that ask for nothing any more.
        members: user_id, entered_at of all whom the destination is to have.
    """

    changes: pl.DataFrame
    withheld: int
    dead: int
    settled: pl.DataFrame
    members: pl.DataFrame


def due(
    destination: str, members: pl.DataFrame, delivered: pl.DataFrame, letters: pl.DataFrame, refused: pl.DataFrame,
    now: datetime,
) -> Due:  # fmt: skip
    """The changes that bring a destination from what it was told to who is a member.

    Args:
        destination: what tells it from others, in ids of changes.
        members: user_id, entered_at.
        delivered: user_id, entered_at, state, told_at, as `AUDIENCE_DELIVERED` has them of it.
        letters: rows of `AUDIENCE_DEAD_LETTERS` of it.
        refused: user_id of customers who refused its purpose.
        now: when changes are told that were not told before.
    """
    wanted = members.join(refused, on="user_id", how="anti")
    entered = wanted.join(delivered.filter(pl.col("state") == HAS), on="user_id", how="anti")
    left = delivered.join(wanted, on="user_id", how="anti")
    parts = ((entered, ENTERED), (left, LEFT))
    all_due = pl.concat([rows.select("user_id", "entered_at", change=pl.lit(change)) for rows, change in parts])
    key = ["user_id", "change"]
    dead = all_due.join(letters, on=key, how="semi")
    settled = letters.join(all_due, on=key, how="anti").select("user_id")
    sent = all_due.join(dead, on=key, how="anti")
    told = delivered.filter(pl.col("state") != HAS).select(
        "user_id", "told_at", change=pl.col("state").replace({v: k for k, v in IN_DOUBT.items()})
    )
    again = sent.join(told, on=key, how="left").with_columns(pl.col("told_at").fill_null(pl.lit(now, INSTANT)))
    ordered = again.sort("user_id", "change")
    ids = [_id(destination, *row) for row in ordered.select("user_id", "change", "told_at").iter_rows()]
    changes = ordered.with_columns(pl.Series("id", ids, pl.String)).select(list(CHANGES))
    return Due(changes, members.height - wanted.height, dead.height, settled, wanted.sort("user_id"))


def dead_letters(refused: pl.DataFrame, names: dict[str, str], now: pl.Expr) -> pl.DataFrame:
    """Rows of `AUDIENCE_DEAD_LETTERS` of changes with a reason.

    Args:
        refused: user_id, change, reason.
        names: tenant_id, audience and destination.
        now: when they were refused.
    """
    named = {name: pl.lit(value) for name, value in names.items()}
    return refused.with_columns(**named, refused_at=now).select(list(AUDIENCE_DEAD_LETTERS.columns))


def _id(destination: str, user_id: str, change: str, told_at: object) -> str:
    return hashlib.sha256("\x1f".join((destination, user_id, change, str(told_at))).encode()).hexdigest()[:32]
