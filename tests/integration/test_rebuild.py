"""The graph rebuilt by import, graphs of earlier instants, and what lies between two instants."""

import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from event_world import World

from c360_pipeline.connections import open_graph
from c360_pipeline.core.catalog.tables import CATALOG, EVENTS
from c360_pipeline.core.projection.graph import DAY, Kind, NodeKind, RelationshipKind
from c360_pipeline.devstack import graph_store, stack
from c360_pipeline.devstack import rebuild as rebuilding
from c360_pipeline.devstack.graph_store import AdminError, StagedStore, dump, load
from c360_pipeline.devstack.pause import paused
from c360_pipeline.devstack.rebuild import rebuild_by_import, remove_instants, start_instant
from c360_pipeline.errors import ConfigError, InvariantError, UnavailableError
from c360_pipeline.settings import Settings
from c360_pipeline.stages.reconciliation.archive_diff import difference
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.pinned import PinnedVersions
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import graph_digest, summarise
from c360_pipeline.stores.neo4j.graph import Graph

NAMES = ("a:b", "a,b", "ключ", "a`b", 'a "b"', "a;b", "a{b}", "two\nlines", "\t", "名前", "🎉", "1st", "$", "x" * 1000)
"""Of columns; files can't carry most of them as names."""
ODD = NodeKind(
    "Odd", ("id",),
    {
        "id": pl.Int64(), "text": pl.String(), "real": pl.Float64(), "flag": pl.Boolean(), "day": pl.Date(),
        "local": pl.Datetime("us"), "at": pl.Datetime("us", "UTC"), "raw": pl.Binary(), "with blank": pl.String(),
        **dict.fromkeys(NAMES, pl.String()),
    },
)  # fmt: skip
TIED = RelationshipKind("TIED", ODD, ODD, {"text": pl.String(), "real": pl.Float64()})
TEXTS = [
    "plain",
    "",
    None,
    'a "quoted" one',
    "comma, semicolon; tab\t",
    "two\nlines\r\n",
    "back\\slash",
    "\\",
    "ünïcödé 🎉",
    " ",
]
REALS = [0.1, -0.0, 1e300, 5e-324, float("inf"), float("-inf"), None, 1 / 3, 2.0**53, -1.5]


class OddArchive(Archive):
    """With nodes and relationships of every type of property."""

    def at(self, pinned: PinnedVersions) -> "OddArchive":
        return OddArchive(self.lake, self.control, pinned)

    def expected(self, only: Collection[Kind] | None = None) -> Iterator[tuple[Kind, pl.DataFrame]]:
        pairs = list(super().expected(only))
        nothing = pl.lit(None, pl.Date).alias(DAY)
        count = len(TEXTS)
        odd = pl.DataFrame(
            {
                "tenant_id": ["acme"] * count, "id": [0, -1, 2**62, *range(3, count)], "text": TEXTS, "real": REALS,
                "flag": [True, False, None] * 3 + [True], "day": [date(1969, 12, 31), date(1, 1, 1), None] * 3 + [None],
                "local": [datetime(2025, 1, 1, 0, 0, 0, 1), None] * 5,  # noqa: DTZ001 - it is local
                "at": [datetime(1960, 1, 1, 0, 0, 0, 999_999, UTC), None] * 5,
                "raw": [b"\x00\x7f\x80\xff;,", None, b"0", b"a", b""] * 2, "with blank": [None] * 9 + ["x"],
                **{name: [f"{number}", *TEXTS[1:]] for number, name in enumerate(NAMES)},
            },
            schema=ODD.schema,
        )  # fmt: skip
        linked = odd.select("tenant_id", from_id="id", to_id=pl.col("id").reverse(), text="text", real="real")
        yield from (pair for pair in pairs if isinstance(pair[0], NodeKind))
        yield ODD, odd.with_columns(nothing)
        yield from (pair for pair in pairs if not isinstance(pair[0], NodeKind))
        yield TIED, linked.with_columns(nothing)


@pytest.fixture
def again(home: Path, settings: Settings) -> Callable[[Archive], str]:
    """Makes the graph again by import; returns its digest."""

    def make(archive: Archive) -> str:
        pinned = archive.at(PinnedVersions.now(archive.lake, archive.control))
        return graph_digest(rebuild_by_import(home, pinned, lambda: open_graph(settings)))

    return make


def stores(home: Path) -> list[str]:
    """Folders of stores that there are."""
    folder = home / "neo4j"
    return [n for n in ("data",) if (folder / n).exists()] + sorted(
        p.name for p in (folder / "stores").glob("*") if p.is_dir()
    )


def test_the_import_makes_the_same_graph_and_the_next_run_has_nothing_to_do(
    world: World, again: Callable[[Archive], str], home: Path, graph: Graph
) -> None:
    before = set(digests(world, graph).items())
    archive = OddArchive(world.lake, world.archive.control)
    again(archive)
    read = graph.audit.rows(ODD, "acme").sort("id")
    wanted = dict(archive.expected())[ODD].drop(DAY).sort("id")
    assert read.equals(wanted.select(read.columns), null_equal=True)
    assert graph.audit.rows(TIED, "acme").height == len(TEXTS)
    assert not [n for n in graph.run("MATCH (n:Odd) UNWIND keys(n) AS k RETURN DISTINCT k") if "c360" in n["k"]]
    assert set(digests(world, graph).items()) == before
    assert len(stores(home)) == 1
    assert StagedStore(home).plan is None

    graph.run("MATCH (n:Odd) DETACH DELETE n")
    graph.statistics.statements = 0
    world.project()
    assert graph.statistics.statements < 30  # checkpoints only
    world.land(60)
    world.project()
    assert world.findings() == set()


def digests(world: World, graph: Graph) -> dict[str, str]:
    """By kind, as reconciled."""
    results = reconcile(world.archive, graph)
    return {f"{r.tenant_id} {r.kind.name} {n}": r.comparison.found_digest for n, r in enumerate(results)}


class BrokenOff(BaseException):
    """What a kill at some point looks like from here."""


STAGES = ("run_admin", "use_neo4j_data", "paused", "note_made", "reconcile")


@pytest.mark.soak
def test_a_rebuild_that_was_broken_off_goes_on(
    world: World, again: Callable[[Archive], str], home: Path, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise BrokenOff

    first = graph_digest(reconcile(world.archive, graph))
    imports = []
    for stage in STAGES:
        with monkeypatch.context() as patch:
            patch.setattr(graph_store if hasattr(graph_store, stage) else rebuilding, stage, breaks)
            with pytest.raises(BrokenOff):
                again(world.archive)
        plan = StagedStore(home).plan
        assert plan is not None
        imports.append(plan.data)
        # A server that has not swapped shows the graph of before; one that has, the new one.
        assert graph.counts.label_counts()["Action"] == world.count
        if stage in ("run_admin", "note_made"):
            landed = world.count
            world.land(30)  # another moment: what was begun for this one is thrown away
            with monkeypatch.context() as patch:
                patch.setattr(graph_store, "import_archive", breaks)
                with pytest.raises(BrokenOff):
                    again(world.archive)
            # What was not proved is out of use again.
            assert graph.counts.label_counts()["Action"] == landed
            assert graph_digest(reconcile(world.archive, graph)) == first
            world.project()
            first = graph_digest(reconcile(world.archive, graph))
    assert again(world.archive) == first
    assert again(world.archive) == first  # of the moment that is in use, too
    assert len(stores(home)) == 1
    assert len(set(imports)) == 3


@pytest.mark.soak
def test_a_store_that_differs_is_taken_out_again(
    world: World, again: Callable[[Archive], str], home: Path, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note_and_damage(archive: Archive, opened: Graph) -> None:
        rebuilding_note(archive, opened)
        opened.run("MATCH (e:Event) WITH e ORDER BY e.id LIMIT 1 SET e.type = 'stolen'")

    rebuilding_note = rebuilding.note_made
    before, used = graph_digest(reconcile(world.archive, graph)), stores(home)
    with monkeypatch.context() as patch:
        patch.setattr(rebuilding, "note_made", note_and_damage)
        with pytest.raises(InvariantError, match="stolen"):
            again(world.archive)
    assert graph_digest(reconcile(world.archive, graph)) == before
    assert stores(home) == used


@pytest.mark.soak
def test_a_store_that_does_not_start_is_taken_out_again(
    world: World, again: Callable[[Archive], str], home: Path, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: StagedStore, plan: graph_store.Plan) -> None:
        (home / "neo4j" / plan.data / "databases" / "system").write_text("no folder")

    before = graph_digest(reconcile(world.archive, graph))
    with monkeypatch.context() as patch:
        patch.setattr(StagedStore, "_take_server_files", spoil)
        with pytest.raises(UnavailableError):
            again(world.archive)
    assert graph_digest(reconcile(world.archive, graph)) == before


@pytest.mark.soak
def test_an_earlier_instant_runs_beside_the_graph_of_now(world: World, home: Path, graph: Graph) -> None:
    then = graph_digest(reconcile(world.archive, graph))
    instant = datetime.now(UTC)
    world.land(90)
    world.lake.commits.merge(CATALOG, world.lake.read(CATALOG).head(1).with_columns(name=pl.lit("Another name")))
    world.project()
    now = graph_digest(reconcile(world.archive, graph))
    earlier = world.archive.at(PinnedVersions.as_of(world.lake, world.archive.control, instant))
    try:
        started = start_instant(home, earlier)
        assert summarise(started.results)["findings"] == []
        assert graph_digest(started.results) == then != now
        assert {s.service for s in stack.status(started.home)} == {"neo4j"}
        assert start_instant(home, earlier).home == started.home
    finally:
        assert remove_instants(home)
    assert not list((home / "as-of").iterdir())
    assert graph_digest(reconcile(world.archive, graph)) == now


def test_the_difference_of_two_instants_names_what_came_and_changed(world: World) -> None:
    instant = datetime.now(UTC)
    new = world.land(90)
    world.lake.commits.merge(CATALOG, world.lake.read(CATALOG).head(1).with_columns(name=pl.lit("Another name")))
    earlier = world.archive.at(PinnedVersions.as_of(world.lake, world.archive.control, instant))
    found = difference(earlier, world.archive)
    events = found.filter(pl.col("entity") == "Action")
    assert set(events["change"]) == {"came"}
    assert set(events["key"]) == {f"{t} {e}" for t, e in new.select("tenant_id", "event_id").iter_rows()}
    products = found.filter(pl.col("entity") == "Product", pl.col("change") == "changed")
    assert products["difference"].to_list() == ["name: before Product 0, after Another name"]
    assert difference(world.archive, world.archive).is_empty()


@pytest.mark.leaves_world
def test_instants_before_the_first_and_after_the_last_commit(world: World) -> None:
    control = world.archive.control
    nothing = world.archive.at(PinnedVersions.as_of(world.lake, control, datetime(2020, 1, 1, tzinfo=UTC)))
    assert sum(frame.height for _, frame in nothing.expected()) == 0
    last = world.archive.at(PinnedVersions.as_of(world.lake, control, datetime(2100, 1, 1, tzinfo=UTC)))
    assert difference(last, world.archive).is_empty()


def test_an_instant_whose_files_are_gone_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    instant = datetime.now(UTC)
    world.land(3)
    kept = EVENTS.retention
    object.__setattr__(EVENTS, "retention", kept * 0)
    try:
        with pytest.raises(ConfigError, match="events does not tell any more"):
            PinnedVersions.as_of(world.lake, world.archive.control, instant)
    finally:
        object.__setattr__(EVENTS, "retention", kept)


@pytest.mark.soak
def test_a_dump_is_loaded_again(world: World, home: Path, graph: Graph, tmp_path: Path) -> None:
    before = graph_digest(reconcile(world.archive, graph))
    path = dump(home, tmp_path / "dumps")
    assert path.stat().st_size > 0
    graph.writer.clear()
    load(home, path.parent)
    assert graph_digest(reconcile(world.archive, graph)) == before
    with pytest.raises(AdminError, match="load"):
        load(home, tmp_path)
    assert graph_digest(reconcile(world.archive, graph)) == before


HOLDER = """
import sys, time
from pathlib import Path
from c360_pipeline.devstack.pause import paused
with paused(Path(sys.argv[1]), "neo4j"):
    print("paused", flush=True)
    time.sleep(600)
"""


@pytest.mark.soak
def test_a_paused_server_starts_again_when_its_holder_is_killed(home: Path, world: World) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(home)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "paused"
        assert {s.service: s.state for s in stack.status(home)}["neo4j"] == "paused"
        holder.send_signal(signal.SIGKILL)
    with paused(home, "neo4j"):  # waits its turn, and for the server before and after
        pass
    assert world.findings() == set()


def test_there_is_nothing_to_pause_where_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="c360 up"), paused(tmp_path, "neo4j"):
        pass
