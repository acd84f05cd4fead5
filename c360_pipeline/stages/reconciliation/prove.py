"""The proof of a run: what changed since the proof before, row by row, and the number of everything else.

What changed is compared whole. Of all the rest the database's own counts are compared with those that the archive asks
for: where one differs, the kinds that it is of are compared row by row too. And every row is compared at least once a
day (docs/adr/0064).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.graph import DAY, Kind, NodeKind
from c360_pipeline.core.reconciliation.compare import without_days
from c360_pipeline.stages.projection.refused import RefusedRows
from c360_pipeline.stages.reconciliation.changed import ChangedRows, ChangesOfArchive
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.parts import PART_ROWS
from c360_pipeline.stages.reconciliation.pinned import PinnedVersions
from c360_pipeline.stages.reconciliation.proofs import Proof
from c360_pipeline.stages.reconciliation.reconcile import (
    Reconciled,
    Sides,
    compared,
    in_flight,
    reconcile,
    unmatched,
)
from c360_pipeline.stores.neo4j import cypher
from c360_pipeline.stores.neo4j.graph import Graph

EVERYTHING_WITHIN = timedelta(days=1)
"""Within it every row is compared."""
SMALL_GRAPH = 250_000
"""Nodes and relationships of a graph that is compared whole each time: it takes two seconds or so."""


@dataclass(frozen=True)
class Proved:
    """What a run has compared.

    Attributes:
        results: by tenant and kind.
        proof: to be kept, where nothing differs.
    """

    results: list[Reconciled]
    proof: Proof

    @property
    def differing(self) -> list[Reconciled]:
        """Results that are not equal."""
        return [result for result in self.results if not result.comparison.is_equal]


def prove(
    archive: Archive,
    graph: Graph,
    last: Proof | None,
    *,
    beside_others: bool = False,
    small: int = SMALL_GRAPH,
    within: timedelta = EVERYTHING_WITHIN,
    observe: Callable[[str, str], None] = lambda kind, tenant: None,
) -> Proved:
    """Compare what changed since a proof, and count the rest; or compare everything.

    Args:
        archive: what the graph should hold.
        graph: what it holds.
        last: the proof before; None for none.
        beside_others: as in `reconcile`.
        small: a graph of fewer nodes and relationships is compared whole.
        within: every row is compared at least once in this time.
        observe: called with each kind and tenant that is compared.
    """
    snapshot = PinnedVersions.of(graph, archive.lake)
    now, at = archive.at(snapshot), datetime.now(UTC)  # what is damaged from here on may not be seen
    reason = _why_everything(last, now, graph, small, within)
    if last is None or reason is not None:
        results = reconcile(archive, graph, pinned=snapshot, beside_others=beside_others, observe=observe)
        counts: Counter[str] = Counter()
        for result in results:
            if not result.kind.is_owned:
                counts[result.kind.name] += result.archived
        return Proved(results, _proof(now, results, dict(counts), at, at, reason))
    changes = list(ChangesOfArchive(now.at(last.pinned), now, graph).kinds())
    results, counted = _of_changes(now, graph, last, changes, beside_others=beside_others, observe=observe)
    return Proved(results, _proof(now, results, counted, at, last.everything_at, None))


def _proof(
    now: Archive, results: Iterable[Reconciled], counts: Mapping[str, int | None], at: datetime,
    everything_at: datetime, reason: str | None,
) -> Proof:  # fmt: skip
    rows = sum(result.comparison.expected_count for result in results)
    return Proof(now.pinned, now.control_id, counts, rows, at, everything_at, reason)


def _why_everything(
    last: Proof | None, now: Archive, graph: Graph, small: int, within: timedelta
) -> str | None:  # fmt: skip
    """Why every row is to be compared; None where what changed is enough."""
    if last is None:
        return "it is the first comparison"
    if datetime.now(UTC) - last.everything_at >= within:
        return f"it was last done at {last.everything_at:%Y-%m-%d %H:%M} UTC"
    if last.control != now.control_id:
        return "labels, mappings or properties have changed"
    if _is_before(last.pinned, now):
        return "the graph is not the one of the last comparison, or was made again"
    if now.pinned.unprojected != last.pinned.unprojected or (now.pinned.unprojected and now.has_events):
        return "a part of the graph is made for the first time"
    if (came := now.event_count() - now.at(last.pinned).event_count()) > PART_ROWS:
        return f"{came:,} events have come since the last comparison"
    if graph.counts.total() < small:
        return f"the graph has fewer than {small:,} nodes and relationships"
    return None


def _is_before(then: PinnedVersions, now: Archive) -> bool:
    """Whether a graph, or the lake, does not know the moment any more, or has gone back behind it."""
    pinned = now.pinned
    pairs: list[tuple[Version, Version | None]] = [
        *((version, pinned.versions.get(name)) for name, version in then.versions.items()),
        *((version, pinned.silos.get(name)) for name, version in then.silos.items()),
    ]
    went_back = any(
        later is None or later.table_id != earlier.table_id or later.number < earlier.number for earlier, later in pairs
    )
    commits = pinned.commits or {}
    went_back |= any(commits.get(tenant, 0) < number for tenant, number in (then.commits or {}).items())
    return went_back or not now.still_knows(then)


def _of_changes(
    now: Archive,
    graph: Graph,
    last: Proof,
    changes: Sequence[ChangedRows],
    *,
    beside_others: bool,
    observe: Callable[[str, str], None],
) -> tuple[list[Reconciled], dict[str, int | None]]:
    """What is found; a difference in what changed counts only when the kind, compared whole, has it too."""
    queue = RefusedRows(now.lake, graph.refusals)
    results = []
    for one in changes:
        if one.named is not None and one.rows is not None and one.named.height:
            for side in _sides(one, one.named, one.rows, graph, observe):
                found, _ = compared(now, graph, queue, side)
                results.append(Reconciled(side.tenant_id, side.kind, found))
    counts = {one.kind.name: _count(one, last.counts.get(one.kind.name, 0)) for one in changes if not one.kind.is_owned}
    whole = {one.kind for one in changes if one.named is None}
    whole |= {result.kind for result in results if not result.comparison.is_equal}
    whole |= _miscounted(now, graph, {one.kind: counts.get(one.kind.name) for one in changes}, queue)
    if whole:
        kinds = _with_those_beside(whole, changes)
        again = reconcile(now, graph, pinned=now.pinned, beside_others=beside_others, only=kinds, observe=observe)
        seen = {result.kind for result in again}
        results = [result for result in results if result.kind not in seen]
        # Only a comparison of everything says how it is day by day.
        results += [replace(result, comparison=without_days(result.comparison)) for result in again]
        for kind in (kind for kind in seen if not kind.is_owned):
            counts[kind.name] = sum(result.archived for result in again if result.kind == kind)
    return results, counts


def missing_products(archive: Archive, graph: Graph, last: Proof | None) -> pl.DataFrame:
    """tenant_id, id of products that events since a proof are about, or all events, and that the graph lacks.

    Args:
        archive: pinned to the graph's checkpoints.
        graph: what is looked at.
        last: the proof before; None for none.
    """
    rows = None
    if last is not None and not archive.pinned.unprojected and not _is_before(last.pinned, archive):
        rows = next(ChangesOfArchive(archive.at(last.pinned), archive, graph).of_products()).rows
    keys = archive.product_keys() if rows is None else rows.select("tenant_id", "id")
    return unmatched(archive, graph, model.PRODUCT, keys, is_all=rows is None).filter(found="missing").drop("found")


def _count(one: ChangedRows, before: int | None) -> int | None:
    if one.total is not None:
        return one.total
    return before + one.gained if before is not None and one.gained is not None else None


def _sides(
    one: ChangedRows, named: pl.DataFrame, rows: pl.DataFrame, graph: Graph, observe: Callable[[str, str], None]
) -> Iterable[Sides]:
    """Both sides of the rows that may differ, tenant by tenant."""
    kind = one.kind
    start = kind.key[0] if isinstance(kind, NodeKind) else f"from_{kind.source.key[0]}"
    for (tenant,), names in named.partition_by("tenant_id", as_dict=True).items():
        observe(kind.name, str(tenant))
        if cypher.is_paged(kind):
            found = graph.audit.audited_named_rows(kind, str(tenant), names[start].unique().to_list())
        else:
            found = graph.audit.audited_rows(kind, str(tenant))
        theirs = found.join(names, on=names.columns, how="semi")
        ours = rows.filter(pl.col("tenant_id") == tenant).select(list(kind.schema))
        no_day = pl.lit(None, pl.Date).alias(DAY)
        yield Sides(kind, str(tenant), ours.with_columns(no_day), theirs.with_columns(no_day))


def _miscounted(now: Archive, graph: Graph, counts: Mapping[Kind, int | None], queue: RefusedRows) -> set[Kind]:
    """Kinds whose label or type the database has more or fewer of than the archive asks for."""
    together: defaultdict[tuple[bool, str], list[Kind]] = defaultdict(list)
    for kind in counts:
        for name in () if kind.is_owned else _counted_as(kind):
            together[isinstance(kind, NodeKind), name].append(kind)
    held = {True: graph.counts.label_counts(), False: graph.counts.type_counts()}
    found: list[tuple[list[Kind], int]] = []
    for (is_label, name), kinds in together.items():
        known = [count for kind in kinds if (count := counts[kind]) is not None]
        lacking = sum(known) - held[is_label].get(name, 0)
        if len(known) == len(kinds) and lacking and not 0 < lacking <= _refused(kinds, queue):
            found.append((kinds, abs(lacking)))
    if not found:
        return set()
    moving = in_flight(now, graph).keys
    return {kind for kinds, differing in found if not _explained(kinds, differing, moving) for kind in kinds}


def _refused(kinds: Iterable[Kind], queue: RefusedRows) -> float:
    """How many rows of these kinds the graph may lack, because it does not take them, or a node at their ends."""
    keys = {name: len(found) for name, found in queue.refused.items() if found}
    ends = {end.name for kind in kinds if not isinstance(kind, NodeKind) for end in (kind.source, kind.target)}
    return float("inf") if ends & keys.keys() else sum(keys.get(kind.name, 0) for kind in kinds)


def _explained(kinds: Iterable[Kind], differing: int, moving: Mapping[Kind, tuple[pl.DataFrame, ...]]) -> bool:
    """Whether what is on its way may be all that a count differs by."""
    keys = [(kind, frame) for kind in kinds for frame in moving.get(kind, ()) if frame.height]
    if any(set(kind.key_columns) - set(frame.columns) for kind, frame in keys):
        return True  # nobody knows how many rows these are
    return sum(frame.height for _, frame in keys) >= differing


def _with_those_beside(kinds: set[Kind], changes: Iterable[ChangedRows]) -> set[Kind]:
    """Kinds, and those that share a label or a type with them, which the database counts together."""
    said = {name for kind in kinds for name in _counted_as(kind)}
    return kinds | {one.kind for one in changes if said & set(_counted_as(one.kind))}


def _counted_as(kind: Kind) -> tuple[str, ...]:
    return (kind.label, *kind.extra_labels) if isinstance(kind, NodeKind) else (kind.type,)


def summary(proved: Proved) -> dict[str, Any]:
    """Plain values for metadata: what was compared, why, and what waits for the next comparison of everything."""
    proof = proved.proof
    return {
        "compared": "everything" if proof.reason else "what changed since the last comparison, and counts of the rest",
        "reason": proof.reason or "every row was compared within a day",
        "everything_compared_at": f"{proof.everything_at:%Y-%m-%d %H:%M} UTC",
        "not_counted": ", ".join(proof.uncounted) or "nothing",
    }
