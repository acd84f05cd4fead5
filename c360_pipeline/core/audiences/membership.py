"""Who enters and who leaves: the difference between members as they are kept and as they should be."""

from datetime import datetime, timedelta

import polars as pl

from c360_pipeline.core.audiences.members import MEMBERS
from c360_pipeline.core.catalog.audience_tables import AUDIENCE_MEMBERS, IS_MEMBER
from c360_pipeline.core.catalog.changes import Changes
from c360_pipeline.core.projection.graph import INSTANT

CUSTOMER = ["tenant_id", "user_id"]


def moved(held: pl.DataFrame, found: pl.DataFrame, customers: pl.DataFrame, now: datetime) -> Changes:
    """What to write so that some audiences hold whom they should.

    Of customers whom the archive does not know any more, nothing stays, not even that they were members.

    Args:
        held: rows of `AUDIENCE_MEMBERS` of these audiences, of all customers that are looked at.
        found: `MEMBERS` of these audiences, among these customers.
        customers: tenant_id, user_id of these customers that the archive knows.
        now: when this is found.
    """
    gone = held.join(customers, on=CUSTOMER, how="anti").select(AUDIENCE_MEMBERS.key)
    known = held.join(customers, on=CUSTOMER, how="semi")
    inside, key = known.filter(IS_MEMBER), list(MEMBERS)
    at = pl.lit(_after(known, now), INSTANT)
    entered = found.join(inside, on=key, how="anti").with_columns(entered_at=at, left_at=pl.lit(None, INSTANT))
    left = inside.join(found, on=key, how="anti").with_columns(left_at=at)
    columns = list(AUDIENCE_MEMBERS.columns)
    return Changes(entered.select(columns), left.select(columns), gone)


def _after(known: pl.DataFrame, now: datetime) -> datetime:
    """A moment after all that is kept: a clock may have been set back."""
    latest = max(
        (found for name in ("entered_at", "left_at") if (found := known[name].max()) is not None), default=None
    )
    return now if not isinstance(latest, datetime) or latest < now else latest + timedelta(microseconds=1)
