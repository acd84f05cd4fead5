"""What a destination has to be told: members that it does not have, and those that it has and that left."""

import hashlib
from dataclasses import dataclass

import polars as pl

from c360_pipeline.core.catalog.audience_tables import AUDIENCE_DEAD_LETTERS

ENTERED, LEFT = "entered", "left"
CHANGES = {"user_id": pl.String, "change": pl.String, "entered_at": pl.Datetime("us", "UTC"), "id": pl.String}


@dataclass(frozen=True)
class Due:
    """What is to be done for a destination.

    Attributes:
        changes: `CHANGES` to send, sorted by user: `id` is the same whenever a change is sent again.
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
    destination: str, members: pl.DataFrame, delivered: pl.DataFrame, letters: pl.DataFrame, refused: pl.DataFrame
) -> Due:
    """The changes that bring a destination from what it was told to who is a member.

    Args:
        destination: what tells it from others, in ids of changes.
        members: user_id, entered_at.
        delivered: user_id, entered_at of members that it has.
        letters: rows of `AUDIENCE_DEAD_LETTERS` of it.
        refused: user_id of customers who refused its purpose.
    """
    wanted = members.join(refused, on="user_id", how="anti")
    entered = wanted.join(delivered, on="user_id", how="anti").with_columns(change=pl.lit(ENTERED))
    left = delivered.join(wanted, on="user_id", how="anti").with_columns(change=pl.lit(LEFT))
    all_due = pl.concat([rows.select("user_id", "change", "entered_at") for rows in (entered, left)])
    key = ["user_id", "change"]
    dead = all_due.join(letters, on=key, how="semi")
    settled = letters.join(all_due, on=key, how="anti").select("user_id")
    sent = all_due.join(dead, on=key, how="anti").sort("user_id", "change")
    ids = [_id(destination, *row) for row in sent.iter_rows()]
    changes = sent.with_columns(pl.Series("id", ids, pl.String)).select(list(CHANGES))
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


def _id(destination: str, user_id: str, change: str, entered_at: object) -> str:
    return hashlib.sha256("\x1f".join((destination, user_id, change, str(entered_at))).encode()).hexdigest()[:32]
