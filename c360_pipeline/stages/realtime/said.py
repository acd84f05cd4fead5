"""Traits and consents in the graph before their events land: who withdraws a consent is left out at once."""

import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.visitors.said import state_of
from c360_pipeline.stores.neo4j.driver_values import Read
from c360_pipeline.stores.neo4j.graph import Graph

HOLD_USERS = Statement("""
    UNWIND $ids AS event_id
    MATCH (a:Action {tenant_id: $tenant_id, id: event_id}) WHERE a.said IS NOT NULL
    WITH a, coalesce(a.customer_id, a.user_id) AS user_id WHERE user_id IS NOT NULL
    MATCH (u:User {tenant_id: $tenant_id, id: user_id})
    SET u.held = true REMOVE u.held
    WITH a, u WHERE coalesce(a.customer_id, a.user_id) = u.id
    RETURN a.id AS event_id, a.said AS said, a.ts.epochMillis * 1000 + a.ts.microsecond % 1000 AS at,
           u.id AS user_id, u.traits AS traits, u.consents AS consents,
           u.said_at.epochMillis * 1000 + u.said_at.microsecond % 1000 AS said_at
    ORDER BY at, event_id
""")
SET_SAID = Statement("""
    UNWIND $rows AS row
    MATCH (u:User {tenant_id: $tenant_id, id: row.user_id})
    SET u.traits = row.traits, u.consents = row.consents,
        u.said_at = datetime({epochSeconds: row.said_at / 1000000, nanosecond: row.said_at % 1000000 * 1000})
""")
READ_UNTOLD = Statement("""
    MATCH (a:Unlanded) WHERE a.said IS NOT NULL RETURN a.tenant_id AS tenant_id, a.id AS event_id
    ORDER BY tenant_id, event_id
""")


def words_of(events: pl.DataFrame) -> pl.Series:
    """Traits and consents of events (lists of key and value) as JSON texts, null where an event says nothing."""
    parts = events.select("traits", "consent")
    if not parts.select(pl.any_horizontal(pl.all().list.len() > 0).any()).item():
        return pl.Series("said", [None] * events.height, dtype=pl.String)
    return pl.Series("said", [_words(traits, consent) for traits, consent in parts.iter_rows()], dtype=pl.String)


def _words(traits: list[dict[str, str]] | None, consent: list[dict[str, str]] | None) -> str | None:
    said = [
        {one["key"]: one["value"] for one in traits or ()},
        {one["key"]: state_of(one["value"]) for one in consent or ()},
    ]
    return json.dumps(said, ensure_ascii=False) if any(said) else None


def tell(graph: Graph, tenant_id: str, events: Sequence[str]) -> None:
    """Let users have the traits and consents of events that have not landed.

    What is not newer than what is known is left to landing, which knows the order of all.

    Args:
        graph: holds the events, each with what it says.
        tenant_id: whose.
        events: ids.
    """
    if events:
        graph.write_together(lambda run: _tell(run, tenant_id, list(events)))


def tell_again(graph: Graph) -> None:
    """Tell what has not landed once more: a projection gives users what the archive says, which is older."""
    untold: dict[str, list[str]] = {}
    for row in graph.run(READ_UNTOLD):
        untold.setdefault(row["tenant_id"], []).append(row["event_id"])
    for tenant_id, events in untold.items():
        tell(graph, tenant_id, events)


def _tell(run: Read, tenant_id: str, events: list[str]) -> None:
    users: dict[str, dict[str, Any]] = {}
    for row in run(HOLD_USERS, tenant_id=tenant_id, ids=sorted(events)):
        user = users.setdefault(row["user_id"], {**row, "newest": row["said_at"]})
        if user["said_at"] is not None and row["at"] <= user["said_at"]:
            continue
        traits, states = json.loads(row["said"])
        user["traits"], user["consents"] = _merged(user["traits"], traits), _merged(user["consents"], states)
        user["newest"] = row["at"]
    rows = [
        {**{name: user[name] for name in ("user_id", "traits", "consents")}, "said_at": user["newest"]}
        for _, user in sorted(users.items()) if user["newest"] != user["said_at"]
    ]  # fmt: skip
    if rows:
        run(SET_SAID, tenant_id=tenant_id, rows=rows)


def _merged(known: str | None, said: dict[str, str]) -> str | None:
    if not said:
        return known
    return json.dumps(dict(sorted({**json.loads(known or "{}"), **said}.items())), ensure_ascii=False)
