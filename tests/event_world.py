"""Events of three tenants with a catalogue, in archive and graph: what tests of the projection damage and repair."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from c360_pipeline.core.catalog.recommendation_tables import RECOMMENDATIONS_GIVEN
from c360_pipeline.core.catalog.tables import CATALOG, EVENTS
from c360_pipeline.core.reconciliation.compare import combined_digest
from c360_pipeline.core.silos.control_rows import ControlRows
from c360_pipeline.core.stitching.keys import KeyPolicy, KeyRule
from c360_pipeline.stages.projection.corrections import bring_up
from c360_pipeline.stages.projection.events import EventGraph, ProductGraph
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.proofs import Proof
from c360_pipeline.stages.reconciliation.prove import Proved, prove
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import digests, summarise
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph

START = datetime(2025, 10, 1, tzinfo=UTC)
TENANTS = ("acme", "globex", "initech")
DAYS = 6
POLICY = KeyPolicy((KeyRule("*", "user", "userId"), KeyRule("*", "session", "sessionId")))
Finding = tuple[str, str, str, str]
"""Tenant, entity, kind, key."""


class World:
    """Events of three tenants and a catalogue, stitched and projected, without silos.

    Attributes:
        count: events that were landed.
        proof: of the last time that graph and archive were equal.
        is_shared: whether an earlier test made it, with all that its fixtures add.
    """

    policy = POLICY
    is_shared = False

    def __init__(self, lake: Lake, graph: Graph) -> None:
        self.lake, self.graph = lake, graph
        self.archive = Archive(lake, ControlRows((), (), {}, {}, ()))
        self.count = 0
        self.proof: Proof | None = None

    def land(self, count: int, seed: int = 1) -> pl.DataFrame:
        """Put events into the archive and stitch them."""
        rng = np.random.default_rng([seed, self.count])
        rows = []
        for n in range(self.count, self.count + count):
            tenant = TENANTS[n % 3]
            user = f"u{rng.integers(0, 60)}"
            at = START + timedelta(minutes=int(rng.integers(0, DAYS * 24 * 60)))
            item = f"p{rng.integers(0, 40)}" if rng.random() < 0.8 else None
            rows.append((f"e{n:06}", tenant, user, f"{user}-s{rng.integers(0, 5)}", at,
                         ("view", "purchase", "search")[rng.integers(0, 3)], item, [], at.date(), at))  # fmt: skip
        self.count += count
        kinds = EVENTS.empty().schema
        names = ["event_id", "tenant_id", "user_id", "session_id", "ts", "action", "item_id", "attrs", "event_date",
                 "landed_at"]  # fmt: skip
        entries = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
        given = {name: entries if name == "attrs" else kinds[name] for name in names}
        events = pl.DataFrame(rows, schema=given, orient="row").with_columns(pl.col("attrs").cast(kinds["attrs"]))
        whole = events.with_columns(
            pl.lit(None, kinds[name]).alias(name) for name in kinds if name not in names
        ).select(list(kinds))  # fmt: skip
        self.lake.commits.insert_new(EVENTS, whole)
        Journeys(self.lake).add(whole, POLICY)
        return whole

    def catalogue(self) -> None:
        """Products of all tenants; some items of events are not among them."""
        rows = [(t, f"p{n}", f"Product {n}", f"c{n % 4}", n + 0.5, "x") for t in TENANTS for n in range(30)]
        self.lake.commits.insert_new(CATALOG, pl.DataFrame(rows, schema=CATALOG.empty().schema, orient="row"))

    def project(self) -> None:
        """Bring the graph up."""
        ProductGraph(self.lake, self.graph).project()
        EventGraph(self.lake, self.graph, ()).project()
        bring_up(self.lake, self.graph)

    def findings(self, *, repair: bool = False, force: bool = False) -> set[Finding]:
        """What is found, each once."""
        found = summarise(reconcile(self.archive, self.graph, repair=repair, force=force))["findings"]
        named = [(f["tenant_id"], f["entity"], f["kind"], f["key"]) for f in found]
        assert len(named) == len(set(named))
        if not named:
            assert self.prove().differing == []
        return set(named)

    def prove(self) -> Proved:
        """What a run compares: what changed since the last time that this found both sides equal."""
        proved = prove(self.archive, self.graph, self.proof, small=0)
        if not proved.differing:
            self.proof = proved.proof
        return proved

    def state(self) -> dict[str, object]:
        """What shows at once that something was written: counts of the graph, versions of the lake's tables.

        What the API recommended is noted whoever asks, and nothing is made of it here.
        """
        names = [name for name in self.lake.table_names() if name != RECOMMENDATIONS_GIVEN.name]
        versions = {name: str(self.lake.versions.version(name)) for name in names}
        return {**self.graph.counts.all(), **versions}

    def digest(self) -> str:
        return combined_digest(digests(self.lake, reconcile(self.archive, self.graph)))
