"""Traits and consents in the graph before their events land: who withdraws a consent is left out at once."""

import json
from typing import Any

import polars as pl

from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.visitors.said import state_of
from c360_pipeline.stores.neo4j.driver_values import Read
from c360_pipeline.stores.neo4j.graph import Graph

HOLD_USERS = Statement("""
    UNWIND $ids AS event_id
    MATCH (a:Action {tenant_id: $tenant_id, id: event_id})
    WITH event_id, coalesce(a.customer_id, a.user_id) AS user_id WHERE user_id IS NOT NULL
    MATCH (u:User {tenant_id: $tenant_id, id: user_id})
    SET u.held = true REMOVE u.held
    RETURN event_id, user_id, u.traits AS traits, u.consents AS consents,
           u.said_at.epochMillis * 1000 + u.said_at.microsecond % 1000 AS said_at
""")
SET_SAID = Statement("""
    UNWIND $rows AS row
    MATCH (u:User {tenant_id: $tenant_id, id: row.user_id})
    SET u.traits = row.traits, u.consents = row.consents,
        u.said_at = datetime({epochSeconds: row.said_at / 1000000, nanosecond: row.said_at % 1000000 * 1000})
""")


def tell(graph: Graph, tenant_id: str, events: pl.DataFrame) -> None:
    """Let users have the traits and consents of events that were just written.

    An event that is older than what is known is left to landing, which knows the order of all.

    Args:
        graph: holds the events.
        tenant_id: whose.
        events: event_id, traits and consent (lists of key and value), seconds, nanoseconds.
    """
    says = pl.any_horizontal(pl.col(name).list.len() > 0 for name in ("traits", "consent"))
    at = pl.col("seconds") * 1_000_000 + pl.col("nanoseconds").floordiv(1_000)
    said = events.filter(says).select("event_id", "traits", "consent", at=at).sort("at", "event_id")
    if said.height:
        rows = said.to_dicts()
        graph.write_together(lambda run: _tell(run, tenant_id, rows))


def _tell(run: Read, tenant_id: str, said: list[dict[str, Any]]) -> None:
    held = {row["event_id"]: row for row in run(HOLD_USERS, tenant_id=tenant_id, ids=[e["event_id"] for e in said])}
    users: dict[str, dict[str, Any]] = {}
    for event in said:
        if (row := held.get(event["event_id"])) is None:
            continue
        user = users.setdefault(row["user_id"], {**row, "is_changed": False})
        if user["said_at"] is not None and event["at"] < user["said_at"]:
            continue
        user["traits"] = _merged(user["traits"], {one["key"]: one["value"] for one in event["traits"] or ()})
        states = {one["key"]: state_of(one["value"]) for one in event["consent"] or ()}
        user["consents"] = _merged(user["consents"], states)
        user["said_at"], user["is_changed"] = event["at"], True
    rows = [
        {name: user[name] for name in ("user_id", "traits", "consents", "said_at")}
        for _, user in sorted(users.items()) if user["is_changed"]
    ]  # fmt: skip
    if rows:
        run(SET_SAID, tenant_id=tenant_id, rows=rows)


def _merged(known: str | None, said: dict[str, str]) -> str | None:
    if not said:
        return known
    return json.dumps(dict(sorted({**json.loads(known or "{}"), **said}.items())), ensure_ascii=False)
