"""What pages show besides a customer: the neighbourhood, the delivery, the comparison, merges."""

from datetime import date
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.feature_tables import CUSTOMER_CHURN, CUSTOMER_VALUES
from c360_pipeline.core.catalog.tables import (
    DEAD_LETTERS,
    EVENT_JOURNEY,
    EVENTS,
    JOURNEY_MERGES,
    JOURNEY_SPLITS,
    RECONCILIATIONS,
)
from c360_pipeline.core.projection.refused import REFUSED, refused_statements
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph

Elements = dict[str, list[dict[str, Any]]]

SHOWN_CHANGES = 50
"""Merges of a customer's journeys, and splits."""

COUNT_EVENTS = Statement("MATCH (e:Event {tenant_id: $tenant_id}) RETURN count(e) AS number")
READ_NEIGHBOURHOOD = Statement("""
    UNWIND $user_ids AS user_id
    MATCH (u:User {tenant_id: $tenant_id, id: user_id})
    CALL (u) {
        MATCH (u)-[r:PURCHASED|VIEWED]->(p:Product {tenant_id: $tenant_id})
        WITH r, p ORDER BY type(r), r.last_interaction DESC LIMIT $limit
        RETURN type(r) AS type, 'Product' AS label, p.id AS id, coalesce(p.name, p.id) AS name
        UNION ALL
        MATCH (u)-[r:HAS_SESSION]->(s:Session {tenant_id: $tenant_id})
        WITH r, s ORDER BY s.last_seen DESC LIMIT 5
        RETURN type(r) AS type, 'Session' AS label, s.id AS id, s.id AS name
        UNION ALL
        MATCH (u)-[r:IS_ACCOUNT]->(a:Account {tenant_id: $tenant_id})
        RETURN type(r) AS type, 'Account' AS label, toString(a.account_id) AS id, a.email AS name
    }
    RETURN user_id, type, label, id, name
""")


READ_ACTIVITY = Statement("""
    CALL () {
        UNWIND $journey_ids AS journey_id
        MATCH (j:Journey {tenant_id: $tenant_id, id: journey_id})
            <-[:PART_OF|HAS_KEY|IN_JOURNEY*1..2]-(e:Event {tenant_id: $tenant_id})
        RETURN e
        UNION
        UNWIND $user_ids AS user_id
        MATCH (:User {tenant_id: $tenant_id, id: user_id})-[:HAS_SESSION]->(:Session {tenant_id: $tenant_id})
            -[:HAS_ACTION]->(e:Event {tenant_id: $tenant_id})
        WHERE coalesce(e.customer_id, e.user_id) = user_id
        RETURN e
    }
    WITH e LIMIT $limit
    RETURN date(e.ts) AS day, count(e) AS events
""")
MOST_COUNTED = 20_000
"""Events of a customer."""


class CustomerPages:
    """What the pages of a tenant show.

    Args:
        graph: with the neighbourhood.
        lake: what was delivered and compared.
        tenant_id: whose.
    """

    def __init__(self, graph: Graph, lake: Lake, tenant_id: str) -> None:
        self._graph = graph
        self._lake = lake
        self._tenant_id = tenant_id

    def neighbourhood(self, user_ids: list[str], journeys: list[str], limit: int = 8) -> Elements:
        """Nodes and edges around users, as cytoscape.js takes them."""
        rows = self._graph.read_only(READ_NEIGHBOURHOOD, tenant_id=self._tenant_id, user_ids=user_ids, limit=limit)
        nodes = {f"User {user}": ("User", user) for user in user_ids}
        nodes |= {f"{row['label']} {row['id']}": (row["label"], row["name"]) for row in rows}
        nodes |= {f"Journey {journey}": ("Journey", f"journey {journey[:8]}") for journey in journeys}
        edges = {(f"User {r['user_id']}", f"{r['label']} {r['id']}", r["type"]) for r in rows}
        edges |= {(f"User {user}", f"Journey {journey}", "in") for user in user_ids for journey in journeys[:1]}
        return {
            "nodes": [{"data": {"id": i, "label": label, "name": name}} for i, (label, name) in nodes.items()],
            "edges": [{"data": {"source": a, "target": b, "type": type_}} for a, b, type_ in sorted(edges)],
        }

    def activity(self, user_ids: list[str], journeys: list[str]) -> dict[date, int]:
        """Events by UTC day, of `MOST_COUNTED` at most."""
        rows = self._graph.read_only(
            READ_ACTIVITY, tenant_id=self._tenant_id, user_ids=user_ids, journey_ids=journeys, limit=MOST_COUNTED
        )
        return {row["day"].to_native(): row["events"] for row in rows}

    def foreseen(self, user_ids: list[str]) -> dict[str, dict[str, Any] | None]:
        """What last night's features say of some users: `value` of who paid most, `churn` of who was seen last."""
        found: dict[str, dict[str, Any] | None] = {}
        for name, table, order in (("value", CUSTOMER_VALUES, "revenue"), ("churn", CUSTOMER_CHURN, "last_seen")):
            rows = self._of_tenant(table).filter(pl.col("user_id").is_in(user_ids))
            first = rows.sort(order, "user_id", descending=[True, False], nulls_last=True).head(1).collect().to_dicts()
            found[name] = first[0] if first else None
        return found

    def history(self, journeys: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Merges that made some journeys, each with the type of the key that linked them, and splits; newest first."""
        merges = self._of_tenant(JOURNEY_MERGES).filter(pl.col("survivor").is_in(journeys))
        splits = self._of_tenant(JOURNEY_SPLITS).filter(pl.col("journey_id").is_in(journeys))
        newest = merges.sort("merged_at", descending=True), splits.sort("split_at", descending=True)
        of_merges, of_splits = (rows.head(SHOWN_CHANGES).collect().to_dicts() for rows in newest)
        return of_merges, of_splits

    def delivery(self) -> dict[str, Any]:
        """How many lines, events, dead letters, journeys and nodes there are, and why lines were rejected."""
        events = self._of_tenant(EVENTS).select(pl.len()).collect().item()
        stitched = self._of_tenant(EVENT_JOURNEY).select(pl.len()).collect().item()
        shown = self._graph.read_only(COUNT_EVENTS, tenant_id=self._tenant_id)
        letters = self._of_tenant(DEAD_LETTERS)
        reasons = (
            letters.group_by("error_class", "status")
            .agg(letters=pl.len(), newest=pl.col("first_seen_at").max(), example=pl.col("reason").first(),
                 place=pl.concat_str(pl.col("source_uri").str.split("/").list.last(), pl.lit(":"),
                                     pl.col("source_line")).first())
            .sort("letters", "error_class", descending=[True, False])
        )  # fmt: skip
        landed = self._of_tenant(EVENTS).group_by(day=pl.col("landed_at").dt.date()).agg(landed=pl.len())
        dead = letters.group_by(day=pl.col("first_seen_at").dt.date()).agg(dead=pl.len())
        days = landed.join(dead, on="day", how="full", coalesce=True).sort("day", descending=True).head(14)
        is_refused = (pl.col("error_class") == REFUSED) & (pl.col("status") == "open") & pl.col("raw").is_not_null()
        refused = letters.filter(is_refused).select("reason", "raw").collect()
        return {
            "refused": refused_statements(refused),
            "stages": [("events in the archive", events), ("events with a journey", stitched),
                       ("events in the graph", shown[0]["number"])],
            "reasons": reasons.collect().to_dicts(),
            "days": days.with_columns(pl.col("landed", "dead").fill_null(0)).collect().to_dicts(),
        }  # fmt: skip

    def comparison(self) -> dict[str, Any]:
        """The newest comparison of everything, kinds against days, and what later ones of changes found."""
        mine = self._of_tenant(RECONCILIATIONS).with_columns(
            differs=pl.col("expected_digest") != pl.col("found_digest")
        )
        dated, columns = mine.filter(pl.col("day").is_not_null()), ["run_id", "reconciled_at"]
        newest = dated.select(columns).top_k(1, by="reconciled_at").collect()
        if newest.is_empty():  # a tenant of whom nothing has a day
            newest = mine.select(columns).top_k(1, by="reconciled_at").collect()
        if newest.is_empty():
            return {"at": None, "changes_at": None, "days": [], "kinds": []}
        run_id, at = newest.row(0)
        later = mine.filter(pl.col("reconciled_at") > at)
        since = later.select("run_id", "reconciled_at").top_k(1, by="reconciled_at").collect()
        changes_at = since["reconciled_at"][0] if since.height else None
        bad = later.filter((pl.col("reconciled_at") == changes_at) & pl.col("differs")) if changes_at else later.head(0)
        rows = pl.concat(
            [mine.filter(pl.col("run_id") == run_id), bad.with_columns(expected=pl.lit(0, pl.Int64))]
        ).collect()
        cells = rows.group_by("entity", "day").agg(rows=pl.col("expected").sum(), differs=pl.col("differs").any())
        days = cells["day"].unique().drop_nulls().sort(descending=True).head(31).sort().to_list()
        by_kind = {
            entity: {day: (count, bad) for day, count, bad in part.select("day", "rows", "differs").iter_rows()}
            for (entity,), part in cells.sort("entity").group_by("entity", maintain_order=True)
        }
        return {"at": at, "changes_at": changes_at, "days": [None, *days], "kinds": list(by_kind.items())}

    def _of_tenant(self, table: Any) -> pl.LazyFrame:
        return self._lake.scan(table).filter(pl.col("tenant_id") == self._tenant_id)
