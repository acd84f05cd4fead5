"""Tables of audiences: who is a member, and what destinations were told of it."""

import polars as pl

from c360_pipeline.core.catalog.columns import INT, TENANT_ID, TEXT, UTC_MICROS, Column, of_events
from c360_pipeline.core.catalog.table import Table

AUDIENCE = Column("audience", TEXT, "name of the audience")
DESTINATION = Column("destination", TEXT, "its name in the audience's document")

AUDIENCE_MEMBERS = Table(
    "audience_members",
    ("tenant_id", "audience", "user_id", "entered_at"),
    (
        TENANT_ID,
        AUDIENCE,
        Column("user_id", TEXT, "customer who is or was a member", origin=of_events("user_id", "anonymous_id")),
        Column("entered_at", UTC_MICROS, "when a run found the customer to be a member (UTC)"),
        Column("left_at", UTC_MICROS, "when a run found the customer to be none any more (UTC); null for members"),
    ),
    "Who is in which audience, since when, and who was until when.",
)

IS_MEMBER = pl.col("left_at").is_null()
"""Of rows of `AUDIENCE_MEMBERS`, those of today."""

AUDIENCE_DELIVERED = Table(
    "audience_delivered",
    ("tenant_id", "audience", "destination", "user_id"),
    (
        TENANT_ID,
        AUDIENCE,
        DESTINATION,
        Column("user_id", TEXT, "member whom the destination has", origin=of_events("user_id", "anonymous_id")),
        Column("entered_at", UTC_MICROS, "when the member entered (UTC), as the destination was told"),
        Column("state", TEXT, "has; or entering, leaving where it was told, and what became of that is not known"),
        Column("told_at", UTC_MICROS, "when it was told last (UTC)"),
    ),
    "The members that each destination of an audience has, or may have, as far as it was told.",
)

AUDIENCE_DEAD_LETTERS = Table(
    "audience_dead_letters",
    ("tenant_id", "audience", "destination", "user_id"),
    (
        TENANT_ID,
        AUDIENCE,
        DESTINATION,
        Column("user_id", TEXT, "member whom the destination refused", origin=of_events("user_id", "anonymous_id")),
        Column("change", TEXT, "entered or left"),
        Column("reason", TEXT, "what the destination answered"),
        Column("refused_at", UTC_MICROS, "when (UTC)"),
    ),
    "Changes of members that a destination refused: they are not sent again until a person says so.",
)

AUDIENCE_DELIVERIES = Table(
    "audience_deliveries",
    ("tenant_id", "audience", "destination", "started_at"),
    (
        TENANT_ID,
        AUDIENCE,
        DESTINATION,
        Column("started_at", UTC_MICROS, "when the delivery began (UTC)"),
        Column("ended_at", UTC_MICROS, "when it ended (UTC)"),
        Column("entered", INT, "members that the destination took"),
        Column("left", INT, "members that it took off"),
        Column("refused", INT, "changes that it refused: they are dead letters now"),
        Column("waiting", INT, "changes that were not sent, because it did not answer; the next delivery sends them"),
        Column("withheld", INT, "members who refused the purpose of the destination"),
        Column("dead", INT, "changes that it refused before and that wait for a person"),
        Column("members", INT, "members that the destination has now"),
        Column("error", TEXT, "why changes wait; empty where none do"),
    ),
    "The accounting of deliveries: what was sent to each destination of each audience, and what became of it.",
)

AUDIENCES = (AUDIENCE_MEMBERS, AUDIENCE_DELIVERED, AUDIENCE_DEAD_LETTERS, AUDIENCE_DELIVERIES)
