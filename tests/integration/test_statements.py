"""Every Cypher statement of the package: the server understands it, it scans nothing, and it names its tenant."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from statements import constants, made_elsewhere

from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.graph import NodeKind
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.stores.neo4j import cypher
from c360_pipeline.stores.neo4j.graph import Graph

AT = datetime(2025, 11, 1, 12, tzinfo=UTC)
KINDS = [
    *(p.kind for p in model.EVENT_PROJECTIONS), model.PRODUCT, model.CATEGORY, model.IN_CATEGORY, model.CORRELATION,
    model.JOURNEY, model.HAS_KEY, model.PART_OF, model.EVENT_STATUS, model.USER_COMMUNITY, model.SIMILAR_TO,
    model.ALSO_VIEWED, model.LEADS_TO, model.AUDIENCE, model.IN_AUDIENCE,
]  # fmt: skip
OF_ALL_TENANTS = {
    "about the server": {
        "serving.backend.SHORTEST_READY", "stores.neo4j.schema.AWAIT_INDEX", "stores.neo4j.schema.SHOW_CONSTRAINTS",
        "stores.neo4j.schema.SHOW_INDEXES_NOT_ONLINE", "stores.neo4j.schema.SHOW_KEY_CONSTRAINTS",
        "stores.neo4j.schema.SHOW_INDEXES_OF_CONTROL_ROWS",
    },
    "about checkpoints, of which there are a few dozen": {
        f"stores.neo4j.checkpoints.{name}"
        for name in ("CARRY_CHECKPOINTS", "FORGET_CHECKPOINT", "FORGET_CHECKPOINTS", "READ_CHECKPOINTS",
                     "READ_CHECKPOINTS_UNDER", "SAVE_CHECKPOINT")
    },
    "counts everything, or says which tenants there are": {
        "stores.neo4j.counts.READ_LABELS", "stores.neo4j.counts.READ_TYPES", "stores.neo4j.counts.READ_TENANTS",
        "stores.neo4j.counts.COUNT_NODES", "stores.neo4j.counts.COUNT_RELATIONSHIPS",
        "stores.neo4j.counts.READ_WAITING",
        "reads.journeys.READ_TENANTS_WITH_EVENT",
    },
    "about what was found to be of no tenant, or about everything": {
        "stores.neo4j.writer.CLEAR", "stores.neo4j.writer.REMOVE_NODES", "stores.neo4j.writer.REMOVE_RELATIONSHIPS",
    },
    "about graphs in the server's memory, by their name": {
        "stores.neo4j.projections.DROP_PROJECTION", "stores.neo4j.projections.LIST_PROJECTIONS",
    },
    "about a script that is run in a database of its own": {
        f"stages.recovery.cypher_script.{name}" for name in ("FIND_CLAIM", "CLAIM", "END_CLAIM")
    },
    "about events that have not landed, of which there are few": {
        "stages.realtime.unlanded_events.READ_OVERDUE", "stages.realtime.unlanded_events.READ_UNLANDED",
        "stages.realtime.unlanded_events.READ_VISITORS_AHEAD", "stages.realtime.said.READ_UNTOLD",
    },
}  # fmt: skip
"""Statements without a tenant, by the reason."""
LOOKS_AT_ALL = {
    "stages.recovery.cypher_script.FIND_CLAIM", "stages.recovery.cypher_script.CLAIM",
    "stages.recovery.cypher_script.END_CLAIM",
    "stores.neo4j.counts.READ_TENANTS", "stores.neo4j.counts.READ_WITHOUT_COMMUNITY",
    "stores.neo4j.writer.CLEAR",
    "stores.neo4j.checkpoints.READ_CHECKPOINTS", "stores.neo4j.checkpoints.READ_CHECKPOINTS_UNDER",
    "stores.neo4j.checkpoints.FORGET_CHECKPOINT", "stores.neo4j.checkpoints.FORGET_CHECKPOINTS",
    "stores.neo4j.checkpoints.CARRY_CHECKPOINTS", "stores.neo4j.checkpoints.SAVE_CHECKPOINT",
    "stages.realtime.unlanded_events.READ_UNLANDED", "stages.realtime.unlanded_events.READ_OVERDUE",
    "stages.realtime.unlanded_events.READ_VISITORS_AHEAD", "stages.realtime.said.READ_UNTOLD",
    "reads.accounts.READ_NEWEST", "reads.accounts.READ_ACCOUNTS", "reads.accounts.READ_TICKETS",
    "reads.customer_pages.COUNT_EVENTS",
}  # fmt: skip
"""Statements whose answer is about everything there is, or about labels of which there are few nodes."""
OF_SILO_LABELS = {
    *(f"queries.{name}" for name in ("activity_by_hour", "churn_risk", "customer_story", "customer_value", "devices",
                                     "favourite_genres", "near_hacked_accounts", "plan_revenue", "popular_media",
                                     "shared_cards", "top_streamers")),
    "stages.audiences.facts.READ_ACCOUNTS_OF_USERS",
}  # fmt: skip
"""Queries over labels of control rows, which have an index of their key and what `graph_indexes` names: where they
begin with another property, they look at all nodes of the label."""
OF_A_TENANT = {"queries.power_users", "stores.neo4j.projections.PROJECT_USERS_AND_PRODUCTS"}
"""About all users of a tenant."""
SCANS = ("LabelScan", "LabelsScan", "AllNodesScan", "TypeScan", "AllRelationshipsScan")
NODE = re.compile(r"\(\w*((?::\w+)+)\s*(\{[^}]*\})?[^()]*?\)")
"""A node with a label in a pattern, and the properties that it must have."""


def values_of(statement: str) -> dict[str, object]:
    """Values for the parameters of a statement, of types that it could have."""
    lists = (
        "refusals",
        "visitors",
        "named",
        "rows",
        "exclude",
        "ids",
        "user_ids",
        "journey_ids",
        "keys",
        "names",
        "known",
        "pairs",
    )
    numbers = ("most", "top_k", "buyer_weight", "similar_user_weight", "shown_users", "longest", "batch_rows", "limit",
               "min_products", "skip", "size", "length", "purchase_weight", "recent", "half_life", "newest_sessions",
               "newest_events", "most_buyers", "shown_categories")  # fmt: skip
    names = re.findall(r"\$(\w+)", statement)
    values = {name: [] if name in lists else 1 if name in numbers else "x" for name in names}
    values |= {name: True for name in ("with_bare",) if name in values} | {"interest": {"view": 0.5}}
    return values | {name: AT for name in ("now", "since", "before") if name in values}


def plan_of(graph: Graph, statement: str) -> dict[str, Any]:
    with graph._client.session() as session:
        plan: dict[str, Any] = session.run(f"EXPLAIN {statement}", values_of(statement)).consume().plan or {}
    return plan


def scans(graph: Graph, statement: str) -> list[str]:
    """Operators of a plan that look at all nodes of a label, or at all relationships."""

    def walk(plan: Any) -> Iterator[str]:
        yield plan.get("operatorType", "").partition("@")[0]
        for child in plan.get("children", ()):
            yield from walk(child)

    return [name for name in walk(plan_of(graph, statement)) if name.endswith(SCANS)]


def made_from(kind: model.Kind) -> list[Statement]:
    made = [cypher.merge_statement(kind), cypher.delete_statement(kind), cypher.read_statement(kind),
            cypher.read_statement(kind, audited=True)]  # fmt: skip
    return [*made, cypher.update_statement(kind) if isinstance(kind, NodeKind) else cypher.move_statement(kind)]


def test_statements_are_made_where_tests_find_them() -> None:
    assert made_elsewhere() == []
    assert len(constants()) > 60


@pytest.mark.parametrize("name", constants())
def test_the_server_understands_a_statement_and_it_does_not_scan(graph: Graph, name: str) -> None:
    statement = constants()[name]
    if ".SHOW_" in name:
        graph.run(statement, **values_of(statement))  # the server explains no commands
        return
    found = scans(graph, statement)
    assert not found or name in LOOKS_AT_ALL | OF_SILO_LABELS | OF_A_TENANT


def test_the_server_understands_what_asks_for_users_of_a_label(graph: Graph) -> None:
    statement = cypher.linked_users_statement("Account")
    assert statement.count("tenant_id: $tenant_id") == 2
    assert graph.run(statement, tenant_id="t", property="plan") == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_server_understands_every_statement_of_a_kind_and_none_scans(graph: Graph, kind: model.Kind) -> None:
    found = {statement: scans(graph, statement) for statement in made_from(kind)}
    # The status of events is written for all of them, by an index that it shares with their key.
    assert kind is model.EVENT_STATUS or not any(found.values()), found


def test_every_statement_names_the_tenant_of_every_node_that_it_matches() -> None:
    of_all = set().union(*OF_ALL_TENANTS.values())
    without = {
        name: [match[0] for match in NODE.finditer(statement) if "tenant_id" not in (match[2] or "")]
        for name, statement in constants().items()
        if name not in of_all
    }
    assert not {name: nodes for name, nodes in without.items() if nodes}
    assert [name for name in without if "$tenant_id" not in constants()[name]] == []
    assert of_all <= constants().keys(), "is no statement any more"
    assert constants().keys() >= LOOKS_AT_ALL | OF_SILO_LABELS | OF_A_TENANT, "is no statement any more"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_statement_of_a_kind_names_the_tenant_of_every_node(kind: model.Kind) -> None:
    for statement in made_from(kind):
        nodes = [match for match in NODE.finditer(statement) if "$tenant_id" not in (match[2] or "")]
        assert not nodes or "n.tenant_id = $tenant_id" in statement, statement
