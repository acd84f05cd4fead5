"""All identifiers of an installation go from one version of their secret to the next.

Whoever does this has the stores for themselves. It can be stopped at any point and called again: a table says up to
which version it was rotated, a node of the graph is found by its hash of before, and the lists change in the
transaction that ends it (docs/adr/0061).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import (
    EVENT_KEYS,
    JOURNEY_CONFLICTS,
    JOURNEY_KEYS,
    JOURNEY_LOG,
    JOURNEY_SPLITS,
    QUARANTINED_KEYS,
    RECONCILIATION_FINDINGS,
)
from c360_pipeline.core.contract.identifier_keys import IdentifierKeys
from c360_pipeline.core.projection.graph import correlation_id
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.stitching.rotation import rotated_hashes, rotated_rows
from c360_pipeline.stages.projection.corrections import bring_up
from c360_pipeline.stages.projection.journeys import PROJECTION as JOURNEY_PROJECTION
from c360_pipeline.stages.reconciliation.reconcile import OF_KEYS
from c360_pipeline.stages.stitching.commit import ROTATED, log_name
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb

TABLES = (JOURNEY_LOG, EVENT_KEYS, JOURNEY_SPLITS, JOURNEY_CONFLICTS, QUARANTINED_KEYS, JOURNEY_KEYS)
"""That hold hashes of keys. The last tells which nodes the graph has: it stays as it is until these are renamed."""
RENAMED_AT_ONCE = 5_000
RENAME = Statement("""
    UNWIND $rows AS row MATCH (c:Correlation {tenant_id: $tenant_id, id: row.id}) SET c.id = row.new
""")


@dataclass(frozen=True)
class Rotated:
    """What a rotation did.

    Attributes:
        version: of the secret that identifiers are hashed with now.
        rows: of tables, by name, those that were rewritten now.
        nodes: of the graph that were looked at.
        listed: entries of the lists of blocked keys and of suppressed people and rows.
    """

    version: int
    rows: dict[str, int]
    nodes: int
    listed: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def rotate(control: ControlDb, lake: Lake, graph: Graph, observe: Callable[[str], None]) -> Rotated:
    """Make the next secret, or go on with a rotation that was broken off, and bring all hashes to it.

    Args:
        control: says which version holds, and has the lists.
        lake: with log and tables.
        graph: with the nodes of keys.
        observe: told what is done.

    Raises:
        ConfigError: the secrets are not all on this machine.
    """
    if not control.identifiers.is_rotating():
        observe("bringing tables and graph up to the log")
        bring_up(lake, graph)
    rotation = control.identifiers.begin_rotation()
    keys, since = rotation.after, rotation.before.version
    rows, nodes = {}, 0
    for table in TABLES:
        if table is JOURNEY_KEYS and not _is_done(lake, table, keys):
            observe("graph")
            nodes = _rename_nodes(lake, graph, keys, since)
            _carry_checkpoints(lake, graph)
        observe(table.name)
        rows[table.name] = _rewritten(lake, table, keys, since)
    observe("findings")
    # What was found once names nodes by their hashes of then.
    lake.commits.rewrite(RECONCILIATION_FINDINGS, _without_hashes, {ROTATED: keys.version})
    observe("lists")
    listed = control.identifiers.end_rotation(rotation)
    return Rotated(keys.version, rows, nodes, listed)


def _carry_checkpoints(lake: Lake, graph: Graph) -> None:
    """The graph is as far as it was, in the log that has other hashes now; one that is older would tell."""
    name = log_name(lake.commits.snapshot(JOURNEY_LOG))
    for tenant, version in graph.checkpoints.of(JOURNEY_PROJECTION).items():
        graph.checkpoints.save(JOURNEY_PROJECTION, tenant, Version(name, version.number))


def _without_hashes(findings: pl.DataFrame) -> pl.DataFrame:
    return findings.filter(~pl.col("label").is_in([kind.name for kind in OF_KEYS]))


def _is_done(lake: Lake, table: Table, keys: IdentifierKeys) -> bool:
    return (lake.commits.snapshot(table).transaction_version(ROTATED) or 0) >= keys.version


def _rewritten(lake: Lake, table: Table, keys: IdentifierKeys, since: int) -> int:
    """Rows of a table that were brought to the newest version; 0 where they are."""
    if _is_done(lake, table, keys):
        return 0
    lake.commits.rewrite(table, lambda rows: rotated_rows(rows, keys, since), {ROTATED: keys.version})
    return lake.count(table)


def _rename_nodes(lake: Lake, graph: Graph, keys: IdentifierKeys, since: int) -> int:
    """Nodes of keys get their new ids; those that have them already are not found by the old ones."""
    count = 0
    new = pl.concat_str("key_type", pl.lit(":"), rotated_hashes(pl.col("key_hash"), keys, since))
    for batch in lake.batches(JOURNEY_KEYS):
        named = batch.select("tenant_id", id=correlation_id(), new=new)
        for (tenant,), of_tenant in named.partition_by("tenant_id", as_dict=True, include_key=False).items():
            for some in of_tenant.iter_slices(RENAMED_AT_ONCE):
                graph.run(RENAME, tenant_id=tenant, rows=some.to_dicts())
        count += named.height
    return count
