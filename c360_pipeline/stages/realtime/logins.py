"""Whom the events of visitors count for, in the graph before they land: a login moves what came before within a second.

The rule is that of the archive (`core.visitors.counting`). Each visitor is settled in one transaction that holds its
node, so that writers who meet at one visitor take turns, and every move is a difference between what a node says and
what it should say: carried out again, it moves nothing.
"""

from collections.abc import Iterable
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.tables import VISITOR_DECISIONS
from c360_pipeline.core.contract.identifiers import names_nobody, normal_form
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.visitors.counting import BY_GAP, NEEDED, VISITOR, counted, next_logins
from c360_pipeline.stores.neo4j.driver_values import Read
from c360_pipeline.stores.neo4j.graph import Graph

MOST_EVENTS = 10_000
"""Of a visitor with more, what came before a login moves when the login lands."""
COUNTED_ACTIONS = {"view": "VIEWED", "purchase": "PURCHASED"}


def count_statement(action: str, relationship: str) -> str:
    """The part of a statement that counts an action of user `u` on product `p`; `row` has its `action` and `ts`."""
    return f"""
    CALL (u, p, row) {{
        WITH u, p, row WHERE row.action = '{action}' AND u IS NOT NULL
        MERGE (u)-[r:{relationship}]->(p)
            ON CREATE SET r.count = 1, r.first_interaction = row.ts, r.last_interaction = row.ts
            ON MATCH SET r.count = r.count + 1,
                r.first_interaction = CASE WHEN row.ts < r.first_interaction THEN row.ts ELSE r.first_interaction END,
                r.last_interaction = CASE WHEN row.ts > r.last_interaction THEN row.ts ELSE r.last_interaction END
    }}"""


HOLD = Statement("""
    UNWIND $visitors AS visitor_id
    MATCH (v:Visitor {tenant_id: $tenant_id, id: visitor_id})
    SET v.held = true REMOVE v.held
    WITH v
    OPTIONAL MATCH (v)-[:IS_USER]->(u:User {tenant_id: $tenant_id})
    RETURN v.id AS anonymous_id, v.users AS users, v.is_split AS is_split, u.id AS visitor_user
""")
_READ = """
    OPTIONAL MATCH (s:Session {tenant_id: $tenant_id})-[:HAS_ACTION]->(a)
    RETURN a.anonymous_id AS anonymous_id, a.id AS event_id, a.user_id AS user_id, a.customer_id AS was,
           s.id AS session_id, a.ts.epochMillis * 1000 + a.ts.microsecond % 1000 AS ts, a.type AS action,
           COLLECT { MATCH (a)-[:ON_PRODUCT]->(p:Product {tenant_id: $tenant_id}) RETURN p.id } AS products
"""
READ_EVENTS = Statement(f"UNWIND $ids AS id MATCH (a:Action {{tenant_id: $tenant_id, id: id}}) {_READ}")
READ_VISITORS = Statement(f"""
    UNWIND $visitors AS visitor_id
    CALL (visitor_id) {{
        MATCH (a:Action {{tenant_id: $tenant_id, anonymous_id: visitor_id}}) RETURN a LIMIT $most
    }} {_READ}
""")
READ_SESSIONS = Statement(f"""
    UNWIND $rows AS row
    CALL (row) {{
        MATCH (:Session {{tenant_id: $tenant_id, id: row.session_id}})
            -[:HAS_ACTION]->(a:Action {{tenant_id: $tenant_id, anonymous_id: row.anonymous_id}})
        RETURN a LIMIT $most
    }} {_READ}
""")
SET_CUSTOMERS = Statement("""
    UNWIND $rows AS row MATCH (a:Action {tenant_id: $tenant_id, id: row.event_id}) SET a.customer_id = row.customer_id
""")
GAIN = Statement(
    """
    UNWIND $rows AS sent
    WITH sent {.*, ts: datetime({epochSeconds: sent.seconds, nanosecond: sent.nanoseconds})} AS row
    MERGE (u:User {tenant_id: $tenant_id, id: row.becomes})
        ON CREATE SET u.first_seen = row.ts, u.last_seen = row.ts
        ON MATCH SET u.first_seen = CASE WHEN row.ts < u.first_seen THEN row.ts ELSE u.first_seen END,
                     u.last_seen = CASE WHEN row.ts > u.last_seen THEN row.ts ELSE u.last_seen END
    WITH u, row
    CALL (u, row) {
        MATCH (s:Session {tenant_id: $tenant_id, id: row.session_id}) MERGE (u)-[:HAS_SESSION]->(s)
    }
    UNWIND row.products AS product_id
    MATCH (p:Product {tenant_id: $tenant_id, id: product_id})
    WITH u, p, row"""
    + "".join(count_statement(*pair) for pair in COUNTED_ACTIONS.items())
)
LOSE_SESSIONS = Statement("""
    UNWIND $rows AS row
    MATCH (u:User {tenant_id: $tenant_id, id: row.user_id})-[r:HAS_SESSION]
        ->(s:Session {tenant_id: $tenant_id, id: row.session_id})
    WHERE NOT EXISTS {
        MATCH (s)-[:HAS_ACTION]->(a:Action {tenant_id: $tenant_id}) WHERE coalesce(a.customer_id, a.user_id) = u.id
    }
    DELETE r
""")
RECOUNT = Statement("""
    UNWIND $rows AS row
    MATCH (u:User {tenant_id: $tenant_id, id: row.user_id})-[r:VIEWED|PURCHASED]
        ->(p:Product {tenant_id: $tenant_id, id: row.product_id})
    CALL (u, r, p) {
        MATCH (u)-[:HAS_SESSION]->(:Session {tenant_id: $tenant_id})
            -[:HAS_ACTION]->(a:Action {tenant_id: $tenant_id})-[:ON_PRODUCT]->(p)
        WHERE coalesce(a.customer_id, a.user_id) = u.id
            AND a.type = CASE type(r) WHEN 'VIEWED' THEN 'view' ELSE 'purchase' END
        RETURN count(a) AS number, min(a.ts) AS first, max(a.ts) AS last
    }
    SET r.count = number, r.first_interaction = coalesce(first, r.first_interaction),
        r.last_interaction = coalesce(last, r.last_interaction)
    WITH r WHERE r.count = 0
    DELETE r
""")
SEE_AGAIN = Statement("""
    UNWIND $user_ids AS user_id
    MATCH (u:User {tenant_id: $tenant_id, id: user_id})-[:HAS_SESSION]->(:Session {tenant_id: $tenant_id})
        -[:HAS_ACTION]->(a:Action {tenant_id: $tenant_id})
    WHERE coalesce(a.customer_id, a.user_id) = u.id
    WITH u, min(a.ts) AS first, max(a.ts) AS last
    SET u.first_seen = first, u.last_seen = last
""")
SET_VISITORS = Statement("""
    UNWIND $rows AS row
    MATCH (v:Visitor {tenant_id: $tenant_id, id: row.anonymous_id})
    SET v.users = row.users
    WITH v, row
    CALL (v, row) {
        MATCH (v)-[old:IS_USER]->(u:User {tenant_id: $tenant_id})
        WHERE row.visitor_user IS NULL OR u.id <> row.visitor_user
        DELETE old
    }
    CALL (v, row) {
        WITH v, row WHERE row.visitor_user IS NOT NULL
        MERGE (u:User {tenant_id: $tenant_id, id: row.visitor_user}) MERGE (v)-[:IS_USER]->(u)
    }
""")
_EVENT: dict[str, pl.DataType | type[pl.DataType]] = {
    "anonymous_id": pl.String, "event_id": pl.String, "user_id": pl.String, "was": pl.String, "session_id": pl.String,
    "ts": pl.Int64, "action": pl.String, "products": pl.List(pl.String),
}  # fmt: skip
_NO_MOVES = pl.DataFrame(schema={**_EVENT, "becomes": pl.String})
_HELD: dict[str, pl.DataType | type[pl.DataType]] = {
    "anonymous_id": pl.String,
    "users": pl.Int64,
    "is_split": pl.Boolean,
    "visitor_user": pl.String,
}


def visitor_ids(events: pl.DataFrame) -> pl.Series:
    """The anonymous id of each event where it names somebody."""
    named = ~names_nobody(normal_form(pl.col("anonymous_id")))
    return events.select(pl.when(named).then("anonymous_id")).to_series()


def are_of_nobody(events: pl.DataFrame) -> pl.Series:
    """Whether the user of each event is none, or a word that names nobody."""
    return events.select(pl.col("user_id").is_null() | names_nobody(normal_form(pl.col("user_id")))).to_series()


def settle(graph: Graph, tenant_id: str, events: pl.DataFrame) -> list[str]:
    """Make the events of visitors count for whom they should, after some of theirs were written.

    Args:
        graph: holds them.
        tenant_id: whose.
        events: that were written: event_id, user_id, visitor_id, session_id.

    Returns:
        Ids of events that count for somebody else than before.
    """
    written = events.drop_nulls("visitor_id")
    return graph.write_together(lambda run: _settle(run, tenant_id, written)) if written.height else []


def _settle(run: Read, tenant_id: str, written: pl.DataFrame) -> list[str]:
    ids = sorted(written["visitor_id"].unique())
    held = pl.DataFrame(run(HOLD, tenant_id=tenant_id, visitors=ids), schema=_HELD)
    whole = held.filter(~pl.col("is_split").fill_null(value=False)).join(
        _named(written), on="anonymous_id", how="left"
    )  # fmt: skip
    form = whole["visitor_user"].to_frame().select(normal_form(pl.col("visitor_user"))).to_series()
    others = pl.col("named").list.set_difference(pl.concat_list(form)).list.len().fill_null(0) > 0
    is_shared = pl.col("visitor_user").is_null() & (pl.col("users").fill_null(0) > 1)
    is_open = ~is_shared & (others | (pl.col("visitor_user").is_null() & (pl.col("users").fill_null(0) > 0)))
    known = whole.filter(~is_open & ~is_shared).drop_nulls("visitor_user").select("anonymous_id", "visitor_user")
    parts = (
        _of_known(run, tenant_id, written, known),
        _of_shared(run, tenant_id, written, whole.filter(is_shared)["anonymous_id"].to_list()),
        _of_open(run, tenant_id, whole.filter(is_open)["anonymous_id"].to_list()),
    )
    return [event_id for part in parts for event_id in _move(run, tenant_id, part)]


def _named(written: pl.DataFrame) -> pl.DataFrame:
    """anonymous_id and the normal forms of users that it was named with just now."""
    users = written.filter(~are_of_nobody(written)).select(
        anonymous_id="visitor_id", form=normal_form(pl.col("user_id"))
    )  # fmt: skip
    return users.group_by("anonymous_id").agg(named=pl.col("form").unique())


def _of_known(run: Read, tenant_id: str, written: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Moves of the events that came without a login, of visitors whose only user is known."""
    new = written.join(known, on="anonymous_id", how="semi")["event_id"].to_list()
    if not new:
        return _NO_MOVES
    rows = pl.DataFrame(run(READ_EVENTS, tenant_id=tenant_id, ids=new), schema=_EVENT)
    theirs = rows.filter(are_of_nobody(rows)).join(known, on="anonymous_id")
    return theirs.rename({"visitor_user": "becomes"}).select(*_EVENT, "becomes")


def _of_shared(run: Read, tenant_id: str, written: pl.DataFrame, visitors: list[str]) -> pl.DataFrame:
    """Moves in the sessions of the events that came, of visitors whom several users are known to share."""
    new = written.filter(pl.col("visitor_id").is_in(visitors)).drop_nulls("session_id")
    if new.is_empty():
        return _NO_MOVES
    asked = new.select("session_id", anonymous_id="visitor_id").unique().sort(pl.all()).to_dicts()
    rows = pl.DataFrame(run(READ_SESSIONS, tenant_id=tenant_id, rows=asked, most=MOST_EVENTS), schema=_EVENT)
    placed = _as_events(rows, tenant_id).with_columns(is_shared=pl.lit(value=True), is_known=~are_of_nobody(rows))
    found = next_logins(placed.lazy()).collect().rename({"next_user": "becomes"})
    return rows.join(found.select("event_id", "becomes"), on="event_id").select(*_EVENT, "becomes")


def _of_open(run: Read, tenant_id: str, visitors: Iterable[str]) -> pl.DataFrame:
    """Moves of all events of visitors whose users are others than before; says whom they are now, too."""
    asked = list(visitors)
    if not asked:
        return _NO_MOVES
    found = run(READ_VISITORS, tenant_id=tenant_id, visitors=asked, most=MOST_EVENTS + 1)
    rows = pl.DataFrame(found, schema=_EVENT)
    rows = rows.filter(pl.len().over("anonymous_id") <= MOST_EVENTS)
    if rows.is_empty():
        return _NO_MOVES
    events = _as_events(rows, tenant_id)
    now = counted(events.select(NEEDED).lazy(), VISITOR_DECISIONS.empty().lazy()).collect()
    state = now.unique(VISITOR).select("anonymous_id", "visitor_user", users="visitor_users")
    run(SET_VISITORS, tenant_id=tenant_id, rows=state.to_dicts())
    # On a device of several, sessions by gaps are left to the archive, which knows the gap of the tenant.
    is_sure = pl.col("visitor_user").is_not_null() | ~pl.col("session_id").str.starts_with(BY_GAP)
    said = now.filter(is_sure).select("event_id", becomes="customer_id")
    return rows.join(said, on="event_id").select(*_EVENT, "becomes")


def _as_events(rows: pl.DataFrame, tenant_id: str) -> pl.DataFrame:
    """Rows as the archive has them; sessions by gaps are none that a producer named."""
    by_gap = pl.col("session_id").str.starts_with(BY_GAP)
    return rows.with_columns(
        tenant_id=pl.lit(tenant_id), ts=pl.from_epoch("ts", time_unit="us").dt.replace_time_zone("UTC"),
        session_id=pl.when(~by_gap).then("session_id"),
    )  # fmt: skip


def _move(run: Read, tenant_id: str, events: pl.DataFrame) -> list[str]:
    """Let events count for others than before; those that count for the same already are left alone."""
    known = events.select(pl.when(~are_of_nobody(events)).then("user_id").alias("known")).to_series()
    counts_for = pl.coalesce("was", known)
    moved = events.with_columns(counted_for=counts_for).filter(
        pl.col("counted_for").ne_missing(pl.col("becomes"))
    )  # fmt: skip
    if moved.is_empty():
        return []
    rows = moved.with_columns(
        customer_id=pl.when(pl.col("becomes").ne_missing(pl.col("user_id"))).then("becomes"),
        seconds=pl.col("ts").floordiv(1_000_000), nanoseconds=pl.col("ts") % 1_000_000 * 1_000,
    ).sort("event_id")  # fmt: skip
    run(SET_CUSTOMERS, tenant_id=tenant_id, rows=_dicts(rows.select("event_id", "customer_id")))
    gained = rows.drop_nulls("becomes")
    names = ("becomes", "session_id", "products", "action", "seconds", "nanoseconds")
    run(GAIN, tenant_id=tenant_id, rows=_dicts(gained.select(names)))
    lost = rows.drop_nulls("counted_for").rename({"counted_for": "left"})
    if lost.height:
        pairs = lost.select("products", user_id="left").explode("products").drop_nulls().unique()
        sessions = lost.select("session_id", user_id="left").drop_nulls().unique()
        run(RECOUNT, tenant_id=tenant_id, rows=_dicts(pairs.rename({"products": "product_id"})))
        run(SEE_AGAIN, tenant_id=tenant_id, user_ids=sorted(lost["left"].unique()))
        run(LOSE_SESSIONS, tenant_id=tenant_id, rows=_dicts(sessions))
    return rows["event_id"].to_list()


def _dicts(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return rows.sort(pl.all().exclude(pl.List(pl.String))).to_dicts()
