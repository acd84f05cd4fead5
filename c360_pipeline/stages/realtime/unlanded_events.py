"""Events that the graph shows before they are in the archive: written as they come, marked `Unlanded` until they land.

The raw event is in S3 before; landing and projection write the same nodes and relationships and take the mark away.
Reconciliation leaves out what marked events touch, for a day at most (docs/adr/0035).
"""

from datetime import timedelta

import polars as pl

from c360_pipeline.core.contract.layout import GRAPH_PROPERTIES
from c360_pipeline.core.projection.graph import PIECES, UNLANDED_COLUMNS, attributes_text
from c360_pipeline.core.projection.items import each_item
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.stages.realtime.logins import COUNTED_ACTIONS, are_of_nobody, count_statement, settle, visitor_ids
from c360_pipeline.stages.realtime.said import tell, words_of
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.neo4j.writer import batches, to_rows

USUALLY_UNLANDED = timedelta(hours=1)
"""Within it events land, whatever the sensor and the queue do."""
LONGEST_UNLANDED = timedelta(days=1)
"""An event that did not land within a day is a ghost: reconciliation names it and a repair removes it."""

SENT = tuple(dict.fromkeys(("tenant_id", "event_id", "user_id", "session_id", "action", *GRAPH_PROPERTIES)))
"""Columns of an event that a statement gets."""
_PROPERTIES = ", ".join(f"a.{name} = row.{column}" for column, name in GRAPH_PROPERTIES.items())


# What an event adds is added in the transaction that makes its node, so that an event counts once however often it is
# sent, and a write costs what the event touches, not what its product has gathered.
# Moments are numbers on the way: the driver takes longer to make a moment of Neo4j than to send all the rest of a row.
WRITE = Statement(
    f"""
    UNWIND $rows AS sent
    WITH sent {{.*, ts: datetime({{epochSeconds: sent.seconds, nanosecond: sent.nanoseconds}})}} AS row
    MERGE (a:Action {{tenant_id: $tenant_id, id: row.event_id}})
        ON CREATE SET a:Event:Unlanded, {_PROPERTIES}, a.status = 'NEW', a.written_at = datetime(), a.said = row.said,
            a.is_new = true
    WITH a, row WHERE a.is_new
    REMOVE a.is_new
    WITH a, row
    CALL (row) {{
        WITH row WHERE row.acting_id IS NOT NULL
        MERGE (u:User {{tenant_id: $tenant_id, id: row.acting_id}})
            ON CREATE SET u.first_seen = row.ts, u.last_seen = row.ts
            ON MATCH SET u.first_seen = CASE WHEN row.ts < u.first_seen THEN row.ts ELSE u.first_seen END,
                         u.last_seen = CASE WHEN row.ts > u.last_seen THEN row.ts ELSE u.last_seen END
        RETURN collect(u)[0] AS u
    }}
    CALL (row, a, u) {{
        WITH row, a, u WHERE row.session_id IS NOT NULL
        MERGE (s:Session {{tenant_id: $tenant_id, id: row.session_id}})
            ON CREATE SET s.first_seen = row.ts, s.last_seen = row.ts
            ON MATCH SET s.first_seen = CASE WHEN row.ts < s.first_seen THEN row.ts ELSE s.first_seen END,
                         s.last_seen = CASE WHEN row.ts > s.last_seen THEN row.ts ELSE s.last_seen END
        CREATE (s)-[:HAS_ACTION]->(a)
        RETURN collect(s)[0] AS s
    }}
    CALL (u, s) {{
        WITH u, s WHERE u IS NOT NULL AND s IS NOT NULL
        MERGE (u)-[:HAS_SESSION]->(s)
    }}
    CALL (row, s) {{
        WITH row, s WHERE row.visitor_id IS NOT NULL
        MERGE (v:Visitor {{tenant_id: $tenant_id, id: row.visitor_id}})
            ON CREATE SET v.first_seen = row.ts, v.last_seen = row.ts, v.users = 0, v.is_split = false
            ON MATCH SET v.first_seen = CASE WHEN row.ts < v.first_seen THEN row.ts ELSE v.first_seen END,
                         v.last_seen = CASE WHEN row.ts > v.last_seen THEN row.ts ELSE v.last_seen END
        WITH v, s WHERE s IS NOT NULL
        MERGE (v)-[:HAS_SESSION]->(s)
    }}
    UNWIND row.about AS item
    MERGE (p:Product {{tenant_id: $tenant_id, id: item.id}})
    CREATE (a)-[:ON_PRODUCT {{quantity: item.quantity, price: item.price, currency: item.currency}}]->(p)
    WITH u, p, row"""
    + "".join(count_statement(*pair) for pair in COUNTED_ACTIONS.items())
)
READ_UNLANDED = Statement("""
    MATCH (a:Unlanded) WHERE a.written_at > datetime() - duration({seconds: $longest})
    OPTIONAL MATCH (s:Session {tenant_id: a.tenant_id})-[:HAS_ACTION]->(a)
    OPTIONAL MATCH (a)-[:ON_PRODUCT]->(p:Product {tenant_id: a.tenant_id})
    RETURN a.tenant_id AS tenant_id, a.id AS event_id, coalesce(a.customer_id, a.user_id) AS user_id,
           s.id AS session_id, p.id AS item_id, a.anonymous_id AS visitor_id
""")
READ_OF_VISITORS = Statement("""
    UNWIND $visitors AS visitor_id
    MATCH (a:Action {tenant_id: $tenant_id, anonymous_id: visitor_id})
    UNWIND [a.user_id, a.customer_id] AS user_id
    RETURN DISTINCT a.id AS event_id, user_id
""")
READ_VISITORS_AHEAD = Statement("""
    MATCH (a:Unlanded) WHERE a.anonymous_id IS NOT NULL
    RETURN DISTINCT a.tenant_id AS tenant_id, a.anonymous_id AS anonymous_id
""")
READ_CUSTOMERS = Statement("""
    UNWIND $visitors AS visitor_id
    CALL (visitor_id) {
        MATCH (a:Action {tenant_id: $tenant_id, anonymous_id: visitor_id})
        UNWIND [a.user_id, a.customer_id] AS user_id RETURN user_id
        UNION
        MATCH (:Visitor {tenant_id: $tenant_id, id: visitor_id})-[:IS_USER]->(u:User {tenant_id: $tenant_id})
        RETURN u.id AS user_id
    }
    RETURN DISTINCT user_id
""")
READ_OVERDUE = Statement("""
    MATCH (a:Unlanded) WHERE a.written_at < datetime() - duration({seconds: $longest})
    RETURN a.tenant_id AS tenant_id, count(a) AS events, toString(min(a.written_at)) AS since
    ORDER BY tenant_id
""")
SCHEMA = dict.fromkeys(UNLANDED_COLUMNS, pl.String)


def write_unlanded(graph: Graph, events: pl.DataFrame) -> None:
    """Write events; of one id the first, and those that the graph has already stay as they are.

    Args:
        graph: where to.
        events: rows as `core.contract.frames.event_frame` makes them.
    """
    first = events.unique(["tenant_id", "event_id"], keep="first", maintain_order=True)
    micros = pl.col("ts").dt.epoch("us")
    rows = first.select(
        *(name for name in SENT if name not in ("ts", "attrs")), attributes_text(first["attrs"]).alias("attrs"),
        seconds=micros.floordiv(1_000_000), nanoseconds=micros % 1_000_000 * 1_000,
    )  # fmt: skip
    rows = rows.join(_about(first), on=["tenant_id", "event_id"], how="left").with_columns(
        pl.col("about").fill_null([])
    )
    # A word that names nobody is no user where there is a visitor: whom the event counts for is settled then.
    is_of_visitor = pl.col("visitor_id").is_not_null() & pl.col("is_nobody")
    rows = rows.with_columns(
        visitor_ids(rows).alias("visitor_id"), are_of_nobody(rows).alias("is_nobody")
    ).with_columns(acting_id=pl.when(~is_of_visitor).then("user_id"))
    said = first.select("tenant_id", "event_id", words_of(first))
    rows = rows.join(said, on=["tenant_id", "event_id"], how="left").sort("tenant_id", "event_id")
    for tenant_id, batch in batches(rows):
        graph.run(WRITE, tenant_id=tenant_id, rows=to_rows(batch.drop("is_nobody")))
        moved = settle(graph, tenant_id, batch)
        tell(graph, tenant_id, sorted({*moved, *batch.drop_nulls("said")["event_id"]}))


def _about(events: pl.DataFrame) -> pl.DataFrame:
    """tenant_id, event_id and `about`: of each product that an event is about id, quantity, price and currency."""
    pieces = pl.struct(pl.col("item_id").alias("id"), *PIECES)
    about = each_item(events.lazy()).group_by("tenant_id", "event_id", maintain_order=True)
    return about.agg(about=pieces).collect()


def unlanded_events(graph: Graph) -> pl.DataFrame:
    """Events of all tenants that are not in the archive yet: `UNLANDED_COLUMNS`."""
    rows = graph.run(READ_UNLANDED, longest=int(LONGEST_UNLANDED.total_seconds()))
    found = pl.DataFrame(rows, schema=SCHEMA)
    named = visitor_ids(found.rename({"visitor_id": "anonymous_id"}))
    return found.with_columns(named.alias("visitor_id"))


def visitors_ahead(graph: Graph) -> pl.DataFrame:
    """tenant_id, anonymous_id of visitors with events that a graph shows before they are taken up from the archive."""
    schema = {"tenant_id": pl.String, "anonymous_id": pl.String}
    return pl.DataFrame(graph.run(READ_VISITORS_AHEAD), schema=schema)


def customers_of_visitors(graph: Graph, visitors: pl.DataFrame) -> pl.DataFrame:
    """tenant_id, user_id of all whom a graph lets events of some visitors count for.

    Args:
        graph: which may be ahead of the archive.
        visitors: tenant_id, anonymous_id.
    """
    found = [pl.DataFrame(schema=dict.fromkeys(("tenant_id", "user_id"), pl.String))]
    for (tenant_id,), rows in visitors.partition_by("tenant_id", as_dict=True).items():
        said = graph.run(READ_CUSTOMERS, tenant_id=tenant_id, visitors=sorted(rows["anonymous_id"]))
        ids = pl.DataFrame(said, schema={"user_id": pl.String}).drop_nulls()
        found.append(ids.select(pl.lit(str(tenant_id)).alias("tenant_id"), "user_id"))
    return pl.concat(found).unique()


def events_of_visitors(graph: Graph, unlanded: pl.DataFrame) -> pl.DataFrame:
    """tenant_id, event_id, user_id of all events of the visitors of some events, once for each user they count for."""
    found = [pl.DataFrame(schema=dict.fromkeys(("tenant_id", "event_id", "user_id"), pl.String))]
    visitors = unlanded.drop_nulls("visitor_id").group_by("tenant_id").agg(pl.col("visitor_id").unique())
    for tenant_id, ids in visitors.sort("tenant_id").iter_rows():
        rows = graph.run(READ_OF_VISITORS, tenant_id=tenant_id, visitors=sorted(ids))
        schema = {"event_id": pl.String, "user_id": pl.String}
        found.append(pl.DataFrame(rows, schema=schema).select(pl.lit(tenant_id).alias("tenant_id"), pl.all()))
    return pl.concat(found)


def overdue_events(graph: Graph) -> pl.DataFrame:
    """Events that should have landed by now, by tenant: tenant_id, events, since."""
    rows = graph.run(READ_OVERDUE, longest=int(USUALLY_UNLANDED.total_seconds()))
    return pl.DataFrame(rows, schema={"tenant_id": pl.String, "events": pl.Int64, "since": pl.String})
