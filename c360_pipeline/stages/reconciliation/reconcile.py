"""Reconciliation of a graph with its archive: what differs, by name, and its repair."""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import polars as pl

from c360_pipeline.core.catalog.changes import difference
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.graph import DAY, Kind, NodeKind, RelationshipKind
from c360_pipeline.core.projection.refused import REFUSED, row_keys, stands_on
from c360_pipeline.core.projection.removal_limit import REMOVAL_SHARE, is_beyond_removal_limit
from c360_pipeline.core.reconciliation.compare import (
    Comparison,
    compare,
    only_ghosts,
    strange,
    together,
)
from c360_pipeline.errors import RemovalLimitError
from c360_pipeline.stages.projection.events import properties_of
from c360_pipeline.stages.projection.refused import RefusedRows
from c360_pipeline.stages.realtime.unlanded_events import events_of_visitors, unlanded_events
from c360_pipeline.stages.reconciliation.expected import Archive, InFlight
from c360_pipeline.stages.reconciliation.parts import PART_ROWS, ArchiveParts, Slice
from c360_pipeline.stages.reconciliation.pinned import PinnedVersions
from c360_pipeline.stores.local.scratch import scratch_folder
from c360_pipeline.stores.neo4j.audit import Orphan
from c360_pipeline.stores.neo4j.graph import Graph

READERS = 2
"""Statements that read the graph at once."""

REFUSED_TEXT = f"refused by the graph, see `c360 dead-letters list --reason {REFUSED}`"
OF_KEYS: dict[Kind, tuple[str, ...]] = {
    model.CORRELATION: ("id",),
    model.HAS_KEY: ("to_id",),
    model.PART_OF: ("from_id",),
}
"""Columns that hold a key as `type:hash`."""
NO_TENANT = ""
"""Whose what is that bears no tenant that the archive knows."""


@dataclass(frozen=True)
class Reconciled:
    """The comparison of one kind of one tenant.

    Attributes:
        tenant_id: whose; `NO_TENANT` for nodes and relationships of no tenant that the archive knows.
        kind: of the rows.
        comparison: both sides.
        archived: rows that the archive has, whether they were compared or are on their way.
        is_repaired: whether what differs was brought back.
        refused: keys of findings that the graph would not take all the same.
    """

    tenant_id: str
    kind: Kind
    comparison: Comparison
    archived: int = 0
    is_repaired: bool = False
    refused: tuple[str, ...] = ()

    def findings(self) -> pl.DataFrame:
        """The findings, and of each whether it was `repaired`."""
        is_repaired = pl.lit(self.is_repaired) & ~pl.col("key").is_in(list(self.refused))
        return self.comparison.findings.with_columns(repaired=is_repaired)


@dataclass(frozen=True)
class _Repair:
    """What brings rows of a kind of a tenant back.

    Attributes:
        kind: of the rows.
        tenant_id: whose.
        upserts: rows as the archive has them.
        deletes: key columns of rows that go first.
        mistyped: key columns that have values of another type somewhere; such nodes are nobody's.
    """

    kind: Kind
    tenant_id: str
    upserts: pl.DataFrame
    deletes: pl.DataFrame
    mistyped: tuple[str, ...]


def reconcile(
    archive: Archive,
    graph: Graph,
    *,
    repair: bool = False,
    force: bool = False,
    pinned: PinnedVersions | None = None,
    beside_others: bool = False,
    only: Collection[Kind] | None = None,
    observe: Callable[[str, str], None] = lambda kind, tenant: None,
) -> list[Reconciled]:
    """Compare every kind, tenant by tenant; repairs what differs when asked to.

    The archive is read as of the graph's checkpoints, and what later commits touch is left out on both sides: writers
    may go on meanwhile. All is compared before anything is repaired.

    Args:
        archive: what the graph should hold.
        graph: what it holds.
        repair: whether to bring the graph back.
        force: whether more may be repaired than the removal limit lets pass.
        pinned: the versions that the archive is read at; that of the graph's checkpoints where it is not given.
        beside_others: other runs are at work. What no projection has brought into the graph yet, one of them is just
            bringing for the first time: it is not held against the graph.
        only: kinds that are looked at, with all that they stand on; every kind where nothing is said.
        observe: called with each kind and tenant before it is compared.

    Returns:
        What was found, before the repair.

    Raises:
        RemovalLimitError: too much of a kind differs to be repaired without `force`; nothing was repaired.
    """
    snapshot = pinned or PinnedVersions.of(graph, archive.lake)
    as_of, on_their_way = archive.at(snapshot), snapshot.on_their_way if beside_others else frozenset[Kind]()
    queue = RefusedRows(archive.lake, graph.refusals)
    results: list[Reconciled] = []
    repairs: list[_Repair] = []
    held: Counter[Kind] = Counter()
    tenants: set[str] = set()
    for side in _sides(as_of, graph, only, observe):
        held[side.kind] += side.theirs.height
        tenants.add(side.tenant_id)
        archived = side.ours.height
        if side.kind in on_their_way or _is_on_its_way(side.kind, on_their_way, snapshot, graph):
            side = replace(side, ours=side.theirs)
        found, step = compared(as_of, graph, queue, side)
        results.append(Reconciled(side.tenant_id, side.kind, found, archived))
        repairs += [step] if step else []
    results = _whole(results)
    orphans = _orphans(as_of, graph, held, tenants)
    results += [Reconciled(NO_TENANT, kind, only_ghosts([one.text for one in lost])) for kind, lost in orphans]
    if not repair:
        return results
    if not force:
        _check_removal_limit(results)
    # Orphans first, for they may stand where a node should be; relationships last, for they stand on nodes.
    for kind, lost in orphans:
        graph.writer.remove(kind, [orphan.element_id for orphan in lost])
    for step in sorted(repairs, key=lambda one: not isinstance(one.kind, NodeKind)):
        _carry_out(graph, step)
        queue.resolve(step.kind, step.upserts, "written by a repair")
    queue.publish()
    return [_as_repaired(result, graph) for result in results]


def _whole(results: Iterable[Reconciled]) -> list[Reconciled]:
    """One result of each kind and tenant."""
    parts: dict[tuple[str, Kind], list[Reconciled]] = {}
    for result in results:
        parts.setdefault((result.tenant_id, result.kind), []).append(result)
    return [
        Reconciled(tenant, kind, together([one.comparison for one in some]), sum(one.archived for one in some))
        for (tenant, kind), some in parts.items()
    ]


def _is_on_its_way(kind: Kind, kinds: frozenset[Kind], snapshot: PinnedVersions, graph: Graph) -> bool:
    """Whether a property of users is being written for the first time, or made another: asked when it was read."""
    if not model.is_of_users(kind) or kind is model.USER_COMMUNITY:
        return False
    return model.USER in kinds or properties_of(graph) != snapshot.properties


def _as_repaired(result: Reconciled, graph: Graph) -> Reconciled:
    findings, unwritten = result.comparison.findings, graph.refusals.unwritten(result.kind)
    left = tuple(findings.filter(pl.col("key").is_in(list(unwritten)))["key"])
    return replace(result, is_repaired=findings.height > 0, refused=left)


def _with_refusals(found: Comparison, kind: Kind, refused: pl.DataFrame) -> Comparison:
    """Say of rows that are missing because the graph refuses them, or their nodes, that this is so."""
    if refused.is_empty():
        return found
    is_refused = (pl.col("kind") == "missing") & pl.col("key").is_in(list(row_keys(kind, refused)))
    said = pl.when(is_refused).then(pl.lit(REFUSED_TEXT)).otherwise("difference").alias("difference")
    return replace(found, findings=found.findings.with_columns(said))


@dataclass(frozen=True)
class Sides:
    """The rows of a kind of a tenant with `DAY`, as the archive and as the graph has them."""

    kind: Kind
    tenant_id: str
    ours: pl.DataFrame
    theirs: pl.DataFrame


def _sides(
    archive: Archive, graph: Graph, only: Collection[Kind] | None, observe: Callable[[str, str], None]
) -> Iterator[Sides]:
    """Both sides of every kind and tenant, a large archive's part by part; the graph is read some steps ahead."""
    ahead: deque[tuple[Kind, str, pl.DataFrame, Future[pl.DataFrame]]] = deque()

    def next_sides() -> Sides:
        kind, tenant, ours, theirs = ahead.popleft()
        observe(kind.name, tenant)
        return Sides(kind, tenant, ours, theirs.result())

    with ThreadPoolExecutor(READERS) as pool, _slices(archive, only) as slices:
        for kind, tenant, ours, (start, end) in _by_tenant(slices):
            ahead.append((kind, tenant, ours, pool.submit(graph.audit.audited_rows, kind, tenant, start, end)))
            if len(ahead) > READERS:
                yield next_sides()
        while ahead:
            yield next_sides()


@contextmanager
def _slices(archive: Archive, only: Collection[Kind] | None) -> Iterator[Iterator[Slice]]:
    """All kinds whole, or of a large archive in parts that are on disk meanwhile."""
    if archive.event_count() <= PART_ROWS:
        yield (Slice(kind, rows) for kind, rows in archive.expected(only))
        return
    with scratch_folder(archive.lake.cache) as folder:
        yield ArchiveParts(archive, folder, PART_ROWS).slices(only)


def _by_tenant(slices: Iterable[Slice]) -> Iterator[tuple[Kind, str, pl.DataFrame, tuple[str | None, str | None]]]:
    """Of each slice the rows of every tenant, and between which ids the graph is to be read.

    The graph may hold rows of tenants that the archive has none of: they are asked for, too.
    """
    known: set[str] = set()
    seen: dict[Kind, set[str]] = {}
    for found in slices:
        kind, rows, part = found.kind, found.rows, found.part
        parts = {str(tenant): some for (tenant,), some in rows.partition_by("tenant_id", as_dict=True).items()}
        known |= parts.keys() | set(part.tenants if part else ())
        if part:
            seen.setdefault(kind, set()).update(part.tenants)
        bounds = (part.start, part.end) if part else (None, None)
        for tenant in part.tenants if part else sorted(known):
            yield kind, tenant, parts.get(tenant, rows.clear()).select(*kind.schema, DAY), bounds
    for kind, tenants in seen.items():
        nothing = pl.DataFrame(schema={**kind.schema, DAY: pl.Date})
        for tenant in sorted(known - tenants):
            yield kind, tenant, nothing, (None, None)


def compared(archive: Archive, graph: Graph, queue: RefusedRows, sides: Sides) -> tuple[Comparison, _Repair | None]:
    """The comparison of both sides, without what is on its way, and what brings the graph back."""
    kind, ours, theirs = sides.kind, sides.ours, sides.theirs
    if queue.put_aside:
        ours, theirs = (rows.filter(~stands_on(kind, rows, queue.put_aside)) for rows in (ours, theirs))
    found = _compared_rows(kind, ours, theirs)
    # A node that is rebuilt needs the properties that others own, too.
    if found.is_equal and ours.height == theirs.height:
        return found, None
    moving = in_flight(archive, graph)
    ours, theirs = moving.left_out(kind, ours), moving.left_out(kind, theirs)
    found = _compared_rows(kind, ours, theirs)
    if queue.waiting:
        found = _with_refusals(found, kind, ours.filter(stands_on(kind, ours, queue.waiting)))
    return found, _repair_of(kind, sides.tenant_id, ours, theirs)


def in_flight(archive: Archive, graph: Graph) -> InFlight:
    """What archive and graph may differ in as of now; to be asked for when both sides were read.

    An event that lands in between has lost its mark before it is committed here: so the marks are read first.
    """
    unlanded = unlanded_events(graph)
    return archive.newer(graph).and_of(unlanded, events_of_visitors(graph, unlanded))


def unmatched(
    archive: Archive, graph: Graph, kind: NodeKind, keys: pl.DataFrame, *, is_all: bool = True
) -> pl.DataFrame:
    """Keys of nodes that archive or graph lacks, though nobody is bringing them there: what a check may fail on.

    Args:
        archive: pinned to the graph's checkpoints.
        graph: what is looked at.
        kind: of the nodes.
        keys: key columns of nodes of the kind as the archive has them.
        is_all: whether these are all: only then are nodes looked for that the archive lacks.

    Returns:
        Key columns and `found`: "missing", "ghost", or "repeated" where rows of the archive share a node; rows that the
        graph is known to refuse are left out.
    """
    only_key = NodeKind(kind.label, kind.key, {name: kind.properties[name] for name in kind.key})
    columns = kind.key_columns
    if is_all:
        tenants = {*keys["tenant_id"].unique(), *graph.counts.tenants_of(kind.label)}
        held = [graph.audit.rows(only_key, tenant).select(columns) for tenant in sorted(tenants)]
    else:
        named = keys.partition_by("tenant_id", as_dict=True).items()
        held = [
            graph.audit.named_rows(only_key, str(tenant), ids[kind.key[0]].to_list()).select(columns)
            for (tenant,), ids in named
        ]
    theirs = pl.concat([keys.clear(), *held])
    found = _unmatched(kind, keys, theirs)
    if found.is_empty():
        return found
    moving = in_flight(archive, graph)
    ours, theirs = moving.left_out(kind, keys), moving.left_out(kind, theirs)
    return _unmatched(
        kind, ours.filter(~stands_on(kind, ours, RefusedRows(archive.lake, graph.refusals).refused)), theirs
    )


def _unmatched(kind: NodeKind, ours: pl.DataFrame, theirs: pl.DataFrame) -> pl.DataFrame:
    columns = kind.key_columns
    found = {
        "missing": ours.join(theirs, on=columns, how="anti"),
        "ghost": theirs.join(ours, on=columns, how="anti"),
        "repeated": ours.filter(pl.struct(columns).is_duplicated()),
    }
    return pl.concat(rows.unique().with_columns(found=pl.lit(name)) for name, rows in found.items())


def _compared_rows(kind: Kind, ours: pl.DataFrame, theirs: pl.DataFrame) -> Comparison:
    if kind.is_owned:
        # Nodes that are missing, or ghosts, are told by the kind that makes them.
        ours, theirs = _with_key_of(ours, theirs, kind), _with_key_of(theirs, ours, kind)
    return compare(ours, theirs, kind.key_columns, later=kind.later, identifiers=OF_KEYS.get(kind, ()))


def _with_key_of(rows: pl.DataFrame, others: pl.DataFrame, kind: Kind) -> pl.DataFrame:
    return rows.join(others.select(kind.key_columns), on=kind.key_columns, how="semi")


def _check_removal_limit(results: Iterable[Reconciled]) -> None:
    expected, differing = Counter[str](), Counter[str]()
    for result in results:
        expected[result.kind.name] += result.comparison.expected_count
        differing[result.kind.name] += result.comparison.findings.height
    stopped = [name for name, count in differing.items() if is_beyond_removal_limit(count, expected[name])]
    if stopped:
        raise RemovalLimitError(
            f"{', '.join(stopped)}: more than {REMOVAL_SHARE:.0%} differ, which looks like another graph or another "
            "archive. Nothing was repaired. If it is right, repair with `c360 reconcile --repair --force`."
        )


def _repair_of(kind: Kind, tenant_id: str, ours: pl.DataFrame, theirs: pl.DataFrame) -> _Repair:
    key = kind.key_columns
    mistyped = tuple(name for name in key if strange(name) in theirs.columns)
    odd = [strange(name) for name in mistyped]
    theirs = theirs.filter(pl.all_horizontal(pl.lit(value=True), *(pl.col(name).is_null() for name in odd)))
    unknown = [c for c in theirs.columns if c not in ours.columns]
    columns = [c for c in ours.columns if c != DAY]
    as_ours = theirs.filter(pl.all_horizontal(pl.lit(value=True), *(pl.col(name).is_null() for name in unknown)))
    differing = ours.join(difference(as_ours, ours.select(columns), key).upserted.select(key), on=key, how="semi")
    repeated = theirs.filter(pl.struct(key).is_duplicated()).select(key)
    ghosts = difference(theirs.select(key), ours.select(key), key).deleted
    # Of a row that is there twice, both go and one comes back.
    upserts = pl.concat([differing, ours.join(repeated, on=key, how="semi")]).select(list(kind.schema)).unique()
    return _Repair(kind, tenant_id, upserts, pl.concat([ghosts, repeated]).unique(), mistyped)


def _carry_out(graph: Graph, step: _Repair) -> None:
    if isinstance(step.kind, NodeKind) and step.kind.is_owned:
        graph.writer.update(step.kind, step.upserts)
        return
    if isinstance(step.kind, NodeKind):
        for name in step.mistyped:
            graph.writer.delete_mistyped(step.kind, step.tenant_id, name)
    graph.writer.delete(step.kind, step.deletes)
    graph.writer.merge(step.kind, step.upserts)


def _orphans(
    archive: Archive, graph: Graph, held: Counter[Kind], compared: set[str]
) -> list[tuple[Kind, list[Orphan]]]:
    """Nodes and relationships of declared labels and types that no tenant has.

    The database counts labels and types by itself: only where there are more than were read is anything looked for.
    A tenant whose first events are on their way is one.
    """
    odd_nodes: list[NodeKind] = []
    of_type: dict[str, list[RelationshipKind]] = {}
    for kind, count in held.items():
        if isinstance(kind, RelationshipKind):
            of_type.setdefault(kind.type, []).append(kind)
        elif not kind.is_owned and any(
            graph.counts.label_count(label) != count for label in (kind.label, *kind.extra_labels)
        ):
            odd_nodes.append(kind)
    odd_types = [
        kinds for name, kinds in of_type.items() if graph.counts.type_count(name) != sum(held[kind] for kind in kinds)
    ]
    if not odd_nodes and not odd_types:
        return []
    tenants = sorted(compared | in_flight(archive, graph).tenants)
    found: list[tuple[Kind, list[Orphan]]] = []
    found += [(kind, graph.audit.orphan_nodes(kind, tenants)) for kind in odd_nodes]
    found += [(kinds[0], graph.audit.orphan_relationships(kinds, tenants)) for kinds in odd_types]
    return [(kind, orphans) for kind, orphans in found if orphans]
