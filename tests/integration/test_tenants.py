"""No statement reaches another tenant: with its ids, nothing comes back and nothing changes."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import _lru_cache_wrapper
from typing import Any

import numpy as np
import polars as pl
import pytest
from repetition import Trials, often, representatives
from statements import constants

from c360_pipeline.core.projection import graph as model
from c360_pipeline.queries import all_queries
from c360_pipeline.reads.accounts import read_accounts, read_tickets
from c360_pipeline.reads.journeys import account_of_user, explanation, first_event_of_user, journey_of_event
from c360_pipeline.reads.recommend import RecommendationRequest, Recommender
from c360_pipeline.stores.neo4j import cypher
from c360_pipeline.stores.neo4j.graph import Graph

AT = datetime(2025, 11, 1, tzinfo=UTC)
OURS, THEIRS = "acme", "globex"
ATTEMPTS, SEED = often(75, 1_000), 5
PEOPLE = 12
NODE_KINDS = (model.USER, model.SESSION, model.ACTION, model.PRODUCT, model.CATEGORY, model.CORRELATION, model.JOURNEY)
RELATIONSHIP_KINDS = (
    model.HAS_SESSION, model.HAS_ACTION, model.ON_PRODUCT, model.IN_CATEGORY, model.VIEWED, model.PURCHASED,
    model.HAS_KEY, model.PART_OF, model.IN_JOURNEY, model.SIMILAR_TO, model.ALSO_VIEWED, model.LEADS_TO,
)  # fmt: skip


def node_rows(kind: model.NodeKind, tenant: str, ids: list[str]) -> pl.DataFrame:
    values = {pl.String: "x", pl.Int64: 1, pl.Float64: 1.5, pl.Datetime: AT}
    columns = {n: [values[type(t)]] * len(ids) for n, t in kind.properties.items()}
    owned = {"user_id": ids} if kind is model.ACTION else {}
    return pl.DataFrame({"tenant_id": [tenant] * len(ids), **columns, **owned, kind.key[0]: ids}, schema=kind.schema)


def relationship_rows(kind: model.RelationshipKind, tenant: str, ids: list[str]) -> pl.DataFrame:
    source, target = kind.key_columns[1:]
    values = {pl.Int64: 1, pl.Float64: 0.5, pl.Datetime: AT, pl.String: "x"}
    rest = {n: [values[type(t)]] * len(ids) for n, t in kind.properties.items()}
    return pl.DataFrame({"tenant_id": [tenant] * len(ids), source: ids, target: ids, **rest}, schema=kind.schema)


def theirs_among(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with a value of the other tenant."""
    return [row for row in rows if any(THEIRS in str(value) for value in row.values())]


class Tenants:
    """Two tenants with the same shape and no id in common."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        for tenant in (OURS, THEIRS):
            ids = self.ids(tenant)
            for node in NODE_KINDS:
                graph.writer.merge(node, node_rows(node, tenant, ids))
            for relationship in RELATIONSHIP_KINDS:
                graph.writer.merge(relationship, relationship_rows(relationship, tenant, ids))
            # Each buys what the next one buys too, so that there is something to recommend.
            shifted = pl.Series([*ids[1:], ids[0]])
            graph.writer.merge(
                model.PURCHASED, relationship_rows(model.PURCHASED, tenant, ids).with_columns(to_id=shifted)
            )
        self.before = self.state()

    @staticmethod
    def ids(tenant: str) -> list[str]:
        return [f"{tenant}-{n}" for n in range(PEOPLE)]

    def state(self) -> list[Any]:
        """All that there is, with every property."""
        nodes = "MATCH (n) RETURN elementId(n) AS id, labels(n) AS labels, properties(n) AS p ORDER BY id"
        ends = "MATCH (a)-[r]->(b) RETURN elementId(r) AS id, type(r) AS t, properties(r) AS p ORDER BY id"
        return [self.graph.query(nodes), self.graph.query(ends)]

    def attempts(self, rng: np.random.Generator) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Ways to reach their rows as us; each returns what came back."""
        graph, their = self.graph, str(rng.choice(self.ids(THEIRS)))
        one = pl.DataFrame({"tenant_id": [OURS], "id": [their]})
        yield "journey_of_event", lambda: journey_of_event(graph, OURS, their)
        yield "explanation", lambda: explanation(graph, OURS, their, their)
        yield "first_event_of_user", lambda: first_event_of_user(graph, OURS, their)
        yield "account_of_user", lambda: account_of_user(graph, OURS, their)
        ours = Recommender(graph, OURS)
        yield "recommend", lambda: theirs_among(map(asdict, ours.recommend(RecommendationRequest(their, 10))))
        yield "trending", lambda: theirs_among(ours.trending(timedelta(days=30), None, 10)[1])
        yield "similar_products", lambda: ours.similar_products(their)
        yield "read_accounts", lambda: theirs_among(read_accounts(graph.run, OURS, AT).to_dicts())
        yield "read_tickets", lambda: theirs_among(read_tickets(graph.run, OURS).to_dicts())
        yield "untie", lambda: graph.writer.unlink(one)
        yield (
            "absorb",
            lambda: graph.writer.absorb(
                node_rows(model.JOURNEY, OURS, [self.ids(OURS)[0]]),
                pl.DataFrame({"tenant_id": [OURS], "journey_id": [their], "merged_into": [self.ids(OURS)[0]]}),
            ),
        )
        for node in NODE_KINDS:
            key = node_rows(node, OURS, [their])
            rest = [name for name, dtype in node.properties.items() if dtype == pl.String and name not in node.key]
            key = key.with_columns(pl.lit("stolen").alias(name) for name in rest)
            if "first_seen" in key.columns:
                key = key.with_columns(first_seen=pl.lit(None, key.schema["first_seen"]))
            yield (
                f"delete {node.name}",
                lambda node=node, key=key: graph.writer.delete(node, key.select(node.key_columns)),
            )
            yield f"update {node.name}", lambda node=node, key=key: graph.writer.update(node, key)
            for read in (graph.audit.rows, graph.audit.audited_rows):
                yield (
                    f"read {node.name}",
                    lambda node=node, read=read: [
                        row for row in read(node, OURS).rows() if any(str(v).startswith(THEIRS) for v in row)
                    ],
                )
            yield f"mistyped {node.name}", lambda node=node: graph.writer.delete_mistyped(node, OURS, node.key[0])
        for kind in RELATIONSHIP_KINDS:
            ends = relationship_rows(kind, OURS, [their])
            yield (
                f"delete {kind.name}",
                lambda kind=kind, ends=ends: graph.writer.delete(kind, ends.select(kind.key_columns)),
            )
            yield f"merge {kind.name}", lambda kind=kind, ends=ends: _refused(graph.writer.merge, kind, ends)
            yield f"move {kind.name}", lambda kind=kind, ends=ends: _refused(graph.writer.move, kind, ends)
            for read in (graph.audit.rows, graph.audit.audited_rows):
                yield (
                    f"read {kind.name}",
                    lambda kind=kind, read=read: [
                        row for row in read(kind, OURS).rows() if any(str(v).startswith(THEIRS) for v in row)
                    ],
                )
        for query in all_queries().values():
            yield f"query {query.name}", lambda query=query: [
                row for row in graph.query(query.statement, tenant_id=OURS, **query.values({}, AT))
                if any(str(v).startswith(THEIRS) for v in row.values())
            ]  # fmt: skip

    def reached(self, count: int) -> list[str]:
        """The attempts that got through, of as many in random order."""
        rng, found, done = np.random.default_rng(SEED), [], 0
        while done < count:
            ways = list(self.attempts(rng))
            for n in rng.permutation(len(ways)):
                name, attempt = ways[n]
                if attempt():
                    found.append(name)
                done += 1
            if self.state() != self.before:
                found.append(f"changed by attempts {done - len(ways)} to {done}")
                return found
        return found


def _refused(write: Callable[..., None], kind: model.RelationshipKind, ends: pl.DataFrame) -> bool:
    from c360_pipeline.errors import InvariantError

    with pytest.raises(InvariantError, match="found no node"):
        write(kind, ends)
    return False


@pytest.mark.repeats
def test_attempts_with_ids_of_another_tenant_reach_nothing(graph: Graph, trials: Trials) -> None:
    trials(ATTEMPTS, SEED)
    assert Tenants(graph).reached(ATTEMPTS) == []


ATTEMPTED = ("reads.journeys.", "stores.neo4j.writer.")
CONSTANTS = sorted(
    name for name, statement in constants().items()
    if name.startswith(ATTEMPTED) and "$tenant_id" in statement
)  # fmt: skip


BUILDERS = ("delete_statement", "update_statement", "read_statement", "move_statement")


def without_tenant(statement: str) -> str:
    """The same statement for all tenants."""
    open_ = re.sub(r"tenant_id: \$tenant_id(, )?", "", statement)
    return open_.replace("n.tenant_id = $tenant_id AND ", "").replace(" {}", "")


@pytest.mark.parametrize("name", representatives(CONSTANTS, "reads.journeys.READ_EXPLANATION"))
def test_a_statement_that_forgets_the_tenant_is_caught(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tenants = Tenants(graph)
    module, _, constant = name.rpartition(".")
    monkeypatch.setattr(f"c360_pipeline.{module}.{constant}", without_tenant(constants()[name]))
    assert tenants.reached(1), name


@pytest.mark.parametrize("name", representatives(BUILDERS, "delete_statement"))
def test_a_builder_that_forgets_the_tenant_is_caught(graph: Graph, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tenants = Tenants(graph)
    build = getattr(cypher, name)
    assert isinstance(build, _lru_cache_wrapper)
    monkeypatch.setattr(cypher, name, lambda *kinds, **options: without_tenant(build(*kinds, **options)))
    try:
        caught = bool(tenants.reached(1))
    except pytest.fail.Exception:  # a write that should have been refused was not
        caught = True
    assert caught
