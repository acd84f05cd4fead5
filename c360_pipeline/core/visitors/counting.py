"""Whom an event counts for, and the session of one that names none: functions of the archive and of decisions alone.

An event with a user counts for that user. One of a visitor whom nobody is known to be yet counts for the visitor's only
known user, whenever that user logged in. On a device of several users it counts for the one who logged in next in the
same session, and for nobody where nobody did (docs/adr/0059).

Sources: docs/visitors.md; Snowplow and Segment for sessions by a gap of 30 minutes.
"""

import polars as pl

from c360_pipeline.core.contract.identifiers import names_nobody, normal_form

SPLIT, SESSION_GAP = "split", "session_gap"
"""Decisions: what a visitor did before logins counts for nobody; minutes without an event that end a session."""
GAP_MINUTES = 30
BY_GAP = "gap:"
"""What the id of a session begins with that no producer named; the id of its first event follows."""
NEEDED = ("tenant_id", "event_id", "user_id", "session_id", "anonymous_id", "ts")
"""Columns of events that decide whom they count for."""
VISITOR = ["tenant_id", "anonymous_id"]
EVENT = ["tenant_id", "event_id"]


def counted(events: pl.LazyFrame, decisions: pl.LazyFrame) -> pl.LazyFrame:
    """Events with whom they count for.

    Args:
        events: with `NEEDED`; all events of each visitor, and of each user without a visitor, whose rows are used.
        decisions: tenant_id, kind, anonymous_id, minutes, as `VISITOR_DECISIONS` has them.

    Returns:
        All columns, `session_id` with the sessions that gaps make where it was null, and: customer_id (user for whom
        the event counts, null for nobody), visitor_id (the anonymous id where it names somebody), visitor_user (the one
        known user of the visitor), visitor_users (how many it has), is_split (whether a decision says that what the
        visitor did before logins counts for nobody), is_by_gap (whether no producer named the session).
    """
    of_visitors = events.filter(pl.col("anonymous_id").is_not_null())
    visitors = of_visitors.select(VISITOR).unique()
    visitors = of_somebody(visitors, "anonymous_id").with_columns(visitor_id="anonymous_id")
    known = _known_users(of_visitors)
    split = decisions.filter(pl.col("kind") == SPLIT).select(*VISITOR, is_split=True).unique()
    # Sorted before they are grouped: sorting within groups takes a hundred times as long.
    ordered = known.sort("first_ts", "user_id")
    users = ordered.group_by(VISITOR, maintain_order=True).agg(
        visitor_users=pl.col("form").n_unique().cast(pl.Int64), visitor_user=pl.col("user_id").first()
    )
    facts = visitors.join(users, on=VISITOR, how="left").join(split, on=VISITOR, how="left")
    is_whole = ~pl.col("is_split")
    facts = facts.with_columns(pl.col("visitor_users").fill_null(0), pl.col("is_split").fill_null(value=False))
    facts = facts.with_columns(
        visitor_user=pl.when(is_whole & (pl.col("visitor_users") == 1)).then("visitor_user"),
        is_shared=is_whole & (pl.col("visitor_users") > 1),
    )
    placed = (
        events.join(facts, on=VISITOR, how="left")
        .join(known.select(*VISITOR, "user_id", is_known=True), on=[*VISITOR, "user_id"], how="left")
        .with_columns(pl.col("is_known", "is_shared").fill_null(value=False))
    )
    placed = placed.join(_sessions_by_gap(placed, decisions), on=EVENT, how="left").with_columns(
        session_id=pl.coalesce("session_id", "session_by_gap")
    )
    placed = placed.join(next_logins(placed), on=EVENT, how="left")
    customer = pl.coalesce(pl.when("is_known").then("user_id"), "visitor_user", "next_user")
    return placed.with_columns(
        customer_id=pl.when(pl.col("visitor_id").is_null()).then("user_id").otherwise(customer),
        is_by_gap=pl.col("session_by_gap").is_not_null(),
    ).drop("is_known", "is_shared", "session_by_gap", "next_user")


def uncounted(events: pl.LazyFrame) -> pl.LazyFrame:
    """Events with the same columns as `counted` gives, by the rules of releases that knew no visitors."""
    nothing = pl.lit(None, pl.String)
    return events.with_columns(
        visitor_id=nothing, visitor_user=nothing, visitor_users=pl.lit(None, pl.Int64),
        is_split=pl.lit(None, pl.Boolean), customer_id="user_id", is_by_gap=pl.lit(value=False),
    )  # fmt: skip


APART = {"tenant_id": pl.String, "event_id": pl.String, "user_key": pl.String, "session_key": pl.String}


def apart(events: pl.LazyFrame) -> pl.LazyFrame:
    """Events of visitors that are no tie between events: shared ones and split ones.

    What a visitor did belongs to one customer only where the visitor has one known user, or none. Where it has several,
    or is split, its id links nothing, and its sessions are divided between those whom their events count for.

    Args:
        events: as `counted` gives them.

    Returns:
        `APART`: the user whom an event counts for, null for nobody, and what stands for its session.
    """
    parts = ("session_id", "visitor_id", "customer_id")
    divided = pl.concat_str([pl.col(name).fill_null("") for name in parts], separator="\x1f")
    named = pl.col("session_id").is_not_null() & ~pl.col("is_by_gap")
    return events.filter(pl.col("is_split") | (pl.col("visitor_users") > 1)).select(
        *EVENT, user_key="customer_id", session_key=pl.when(named).then(divided)
    )


def keyed(events: pl.DataFrame, those_apart: pl.DataFrame) -> pl.DataFrame:
    """Events with the values that stitching makes keys of: those of visitors that are no tie have others.

    Args:
        events: rows of the archive.
        those_apart: `APART` rows, of these events at least.
    """
    if those_apart.is_empty():
        return events
    found = events.join(those_apart.with_columns(is_apart=True), on=EVENT, how="left", maintain_order="left")
    return found.with_columns(
        user_id=pl.when("is_apart").then("user_key").otherwise("user_id"),
        session_id=pl.when("is_apart").then("session_key").otherwise("session_id"),
        anonymous_id=pl.when(pl.col("is_apart").is_null()).then("anonymous_id"),
    ).drop("is_apart", "user_key", "session_key")


def of_somebody(rows: pl.LazyFrame, column: str) -> pl.LazyFrame:
    """Rows whose value names somebody."""
    # In a column, and not in the filter: there, the normal form would be made anew for each of its twenty mentions.
    marked = rows.with_columns(form=normal_form(pl.col(column))).with_columns(is_nobody=names_nobody(pl.col("form")))
    return marked.filter(~pl.col("is_nobody")).drop("is_nobody", "form")


def _known_users(of_visitors: pl.LazyFrame) -> pl.LazyFrame:
    """tenant_id, anonymous_id, user_id, form, first_ts of the users that visitors were named with."""
    named = (
        of_visitors.drop_nulls("user_id")
        .group_by(*VISITOR, "user_id")
        .agg(first_ts=pl.col("ts").min())
        .with_columns(form=normal_form(pl.col("user_id")))
        .with_columns(is_nobody=names_nobody(pl.col("form")))
    )
    return named.filter(~pl.col("is_nobody")).drop("is_nobody")


def _sessions_by_gap(placed: pl.LazyFrame, decisions: pl.LazyFrame) -> pl.LazyFrame:
    """tenant_id, event_id and the session of events that name none: by visitor, else by user, never by journey."""
    owner = ["tenant_id", "is_visitor", "owner"]
    without = placed.filter(pl.col("session_id").is_null()).select(
        *EVENT, "ts", is_visitor=pl.col("visitor_id").is_not_null(), owner=pl.coalesce("visitor_id", "user_id")
    )
    somebody = of_somebody(without.select(owner).drop_nulls().unique(), "owner")
    gaps = (
        decisions.filter(pl.col("kind") == SESSION_GAP)
        .group_by("tenant_id")
        .agg(gap=pl.duration(minutes=pl.col("minutes").first()))
    )
    ordered = (
        without.join(somebody, on=owner, how="semi")
        .join(gaps, on="tenant_id", how="left")
        .with_columns(pl.col("gap").fill_null(pl.duration(minutes=GAP_MINUTES)))
        .sort(*owner, "ts", "event_id")
    )
    is_first = (pl.col("ts").diff().over(owner) > pl.col("gap")).fill_null(value=True)
    begun = ordered.with_columns(begun=pl.when(is_first).then("event_id"))
    return begun.select(
        *EVENT, session_by_gap=pl.concat_str(pl.lit(BY_GAP), pl.col("begun").forward_fill().over(owner))
    )


def next_logins(placed: pl.LazyFrame) -> pl.LazyFrame:
    """tenant_id, event_id, next_user of events of shared visitors: who logged in next in the same session.

    Args:
        placed: events with `NEEDED`, is_shared (whether several users are known of the visitor) and is_known (whether
            the event's user is somebody); all of each session.
    """
    session = [*VISITOR, "session_id"]
    ordered = placed.filter("is_shared").drop_nulls("session_id").sort(*session, "ts", "event_id")
    login = pl.when("is_known").then("user_id")
    return (
        ordered.select(*EVENT, next_user=login.backward_fill().over(session), was_known="is_known")
        .filter(~pl.col("was_known"))
        .drop("was_known")
    )
