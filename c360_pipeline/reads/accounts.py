"""What the graph knows of accounts and tickets, as features take it."""

from datetime import datetime
from typing import Any

import polars as pl

from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.stores.neo4j.driver_values import Read, instant

READ_NEWEST = Statement("""
    CALL () { MATCH (e:PlayEvent {tenant_id: $tenant_id}) RETURN max(e.event_timestamp) AS at
        UNION ALL MATCH (t:Ticket {tenant_id: $tenant_id}) RETURN max(t.created_at) AS at
        UNION ALL MATCH (u:User {tenant_id: $tenant_id}) RETURN max(u.last_seen) AS at }
    WITH at WHERE at IS NOT NULL
    RETURN max(datetime({epochMillis: datetime(at).epochMillis})) AS newest
""")
READ_ACCOUNTS = Statement("""
    MATCH (a:Account {tenant_id: $tenant_id})
    WHERE $account_id IS NULL OR toString(a.account_id) = $account_id
    CALL (a) {
        OPTIONAL MATCH (a)-[:HAS_SUBSCRIPTION]->(s:Subscription {tenant_id: $tenant_id})
            -[:SUBSCRIBED_TO]->(p:Plan {tenant_id: $tenant_id})
        WHERE toLower(s.status) = 'active'
        RETURN count(s) > 0 AS is_active, sum(toFloat(p.monthly_fee)) AS monthly_fee, min(p.plan_name) AS plan
    }
    CALL (a) {
        OPTIONAL MATCH (u:User {tenant_id: $tenant_id})-[:IS_ACCOUNT]->(a)
        OPTIONAL MATCH (u)-[bought:PURCHASED]->(product:Product {tenant_id: $tenant_id})
        RETURN sum(bought.count * coalesce(product.price, 0)) AS purchases,
               sum(CASE WHEN bought.last_interaction > $now - duration({days: 90})
                        THEN bought.count * coalesce(product.price, 0) ELSE 0 END) AS recent_purchases
    }
    RETURN toString(a.account_id) AS account_id, a.email AS email, plan, is_active, monthly_fee, purchases,
           recent_purchases, coalesce(duration.inMonths(a.created_at, $now).months, 0) AS months,
           COUNT { MATCH (a)-[:WATCHED]->(e:PlayEvent {tenant_id: $tenant_id})
                   WHERE $now - duration({days: 30}) < e.event_timestamp <= $now } AS recent_plays,
           COUNT { MATCH (a)-[:WATCHED]->(e:PlayEvent {tenant_id: $tenant_id})
                   WHERE $now - duration({days: 120}) < e.event_timestamp <= $now - duration({days: 30}) }
               AS earlier_plays,
           COUNT { MATCH (a)-[:SUBMITTED]->(t:Ticket {tenant_id: $tenant_id})
                   WHERE $now - duration({days: 30}) < t.created_at <= $now } AS recent_tickets
    ORDER BY account_id
""")
READ_TICKETS = Statement("""
    MATCH (u:User {tenant_id: $tenant_id})-[:IS_ACCOUNT]->(:Account {tenant_id: $tenant_id})
        -[:SUBMITTED]->(t:Ticket {tenant_id: $tenant_id})
    RETURN toString(t.ticket_id) AS ticket_id, u.id AS user_id, t.created_at.epochMillis * 1000 AS created_at
    ORDER BY ticket_id, user_id
""")
ACCOUNTS = {
    "account_id": pl.String, "email": pl.String, "plan": pl.String, "is_active": pl.Boolean, "monthly_fee": pl.Float64,
    "purchases": pl.Float64, "recent_purchases": pl.Float64, "months": pl.Int64, "recent_plays": pl.Int64,
    "earlier_plays": pl.Int64, "recent_tickets": pl.Int64,
}  # fmt: skip


def newest_of(read: Read, tenant_id: str) -> datetime | None:
    """When the last thing happened that the graph knows of a tenant: play, ticket or event; None when it knows none."""
    rows = read(READ_NEWEST, tenant_id=tenant_id)
    newest: Any = rows[0]["newest"] if rows else None
    return None if newest is None else instant(newest)


def read_accounts(read: Read, tenant_id: str, now: datetime, account_id: str | None = None) -> pl.DataFrame:
    """Accounts of a tenant as `core.features.account_values` takes them.

    Args:
        read: runs a statement in the graph.
        tenant_id: whose.
        now: what days and months are counted to.
        account_id: one account only.
    """
    rows = read(READ_ACCOUNTS, tenant_id=tenant_id, now=now, account_id=account_id)
    return pl.DataFrame(rows, schema=ACCOUNTS).select(pl.lit(tenant_id).alias("tenant_id"), pl.all())


def read_tickets(read: Read, tenant_id: str) -> pl.DataFrame:
    """Tickets of users that have an account: tenant_id, ticket_id, user_id, created_at."""
    schema = {"ticket_id": pl.String, "user_id": pl.String, "created_at": pl.Int64}
    rows = pl.DataFrame(read(READ_TICKETS, tenant_id=tenant_id), schema=schema)
    at = pl.col("created_at").cast(pl.Datetime("us", "UTC"))
    return rows.select(pl.lit(tenant_id).alias("tenant_id"), "ticket_id", "user_id", at)
