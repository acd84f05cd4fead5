"""The graph against its floor: `make bench-graph`.

Events of one tenant with a catalogue are put into the archive, stitched and projected into an empty graph, each kind
against a bare `UNWIND … CREATE` of the same rows in batches of the same size, and against one statement per row. Then
the graph is compared with its archive: as it is, and with 100 damages. And it is rebuilt by import.
"""

import argparse
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from synthetic_archive import DAYS, archive_of, archive_rows, fill, rebuild, services, timed

NOTE = Console(stderr=True)
BATCH_ROWS = 5_000
ROW_BY_ROW = 1_000
DAMAGES = 100


def events(count: int, seed: int) -> pl.DataFrame:
    """Rows of the archive: users with sessions, views and purchases of products, one in five a purchase."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, max(count // 20, 1), count)
    second = np.sort(rng.integers(0, DAYS * 86_400, count))
    return archive_rows(pl.DataFrame({
        "n": np.arange(count), "user": user, "second": second, "item": rng.integers(0, products_of(count), count),
        "session": rng.integers(0, 5, count), "is_purchase": rng.integers(0, 5, count) == 0,
    }))  # fmt: skip


def products_of(count: int) -> int:
    """How many products so many events touch."""
    return max(count // 50, 1)


def make_lake(folder: Path, count: int) -> None:
    """Put events that are stitched and a catalogue into a lake on disk."""
    from c360_pipeline.stores.delta.lake import Lake

    (folder / "lake").mkdir()
    fill(Lake(f"{folder}/lake", {}, folder / "cache"), events(count, 1), products_of(count))


class World:
    """Such a lake, made by a process of its own, whose memory is not ours; and an empty graph."""

    def __init__(self, folder: Path, graph: Any, count: int) -> None:
        from c360_pipeline.stores.delta.lake import Lake

        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as maker:
            maker.submit(make_lake, folder, count).result()
        self.lake, self.graph = Lake(f"{folder}/lake", {}, folder / "cache"), graph
        self.archive = archive_of(self.lake)

    def project(self) -> None:
        """Bring the whole archive into the graph, as a run does."""
        from c360_pipeline.stages.projection.events import EventGraph, ProductGraph
        from c360_pipeline.stages.projection.journeys import JourneyGraph

        ProductGraph(self.lake, self.graph).project()
        EventGraph(self.lake, self.graph, ()).project()
        JourneyGraph(self.lake, self.graph).project()


class Floor:
    """The same rows by statements that check nothing."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def create(self, kind: Any, frame: pl.DataFrame) -> None:
        """`UNWIND … CREATE`; ends of relationships are found by the index."""
        for batch in frame.iter_slices(BATCH_ROWS):
            self.graph.run(f"UNWIND $rows AS row {self.statement(kind)}", rows=_rows(batch))

    def row_by_row(self, kind: Any, frame: pl.DataFrame) -> None:
        """One statement per row, as the documents do it."""
        for row in _rows(frame):
            self.graph.run(f"WITH $row AS row {self.statement(kind)}", row=row)

    @staticmethod
    def statement(kind: Any) -> str:
        """Identifiers are those of our own kinds."""
        from c360_pipeline.core.projection.graph import NodeKind

        if isinstance(kind, NodeKind):
            return f"CREATE (n:{':'.join((kind.label, *kind.extra_labels))}) SET n = row"
        source = ", ".join(f"{k}: row.from_{k}" for k in kind.source.key)
        target = ", ".join(f"{k}: row.to_{k}" for k in kind.target.key)
        properties = ", ".join(f"{name}: row.{name}" for name in kind.properties)
        return (
            f"MATCH (a:{kind.source.label} {{tenant_id: row.tenant_id, {source}}}) "
            f"MATCH (b:{kind.target.label} {{tenant_id: row.tenant_id, {target}}}) "
            f"CREATE (a)-[:{kind.type} {{{properties}}}]->(b)"
        )


def _rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    from c360_pipeline.stores.neo4j.writer import to_rows

    return to_rows(frame)


def compare_writes(world: World) -> None:
    """Print rows per second of every kind: ours, bare, one by one."""
    expected = [(kind, frame.select(list(kind.schema))) for kind, frame in world.archive.expected()]
    kinds = [(kind, frame) for kind, frame in expected if frame.height and not kind.is_owned]
    floor = Floor(world.graph)
    table = Table("writing", "rows", "ours, rows/s", "bare CREATE, rows/s", "of the floor", "row by row, rows/s")
    world.graph.writer.clear()
    bare = {}
    for kind, frame in kinds:
        NOTE.print("bare", kind.name)
        bare[kind.name] = timed(lambda kind=kind, frame=frame: floor.create(kind, frame))
    world.graph.writer.clear()
    for kind, frame in kinds:
        NOTE.print("one by one", kind.name)
        some = frame.head(ROW_BY_ROW)
        single = timed(lambda kind=kind, some=some: floor.row_by_row(kind, some))
        world.graph.writer.delete(kind, some.select(kind.key_columns))
        NOTE.print("ours", kind.name)
        ours = timed(lambda kind=kind, frame=frame: world.graph.writer.merge(kind, frame))
        table.add_row(
            kind.name, f"{frame.height:,}", f"{frame.height / ours:,.0f}", f"{frame.height / bare[kind.name]:,.0f}",
            f"{bare[kind.name] / ours:.2f}", f"{some.height / single:,.0f}",
        )  # fmt: skip
    Console().print(table)


def compare_reads(world: World) -> None:
    """Print how long the projection takes, reconciliation with and without damages, and the way by import."""
    from c360_pipeline.stages.reconciliation.reconcile import reconcile
    from c360_pipeline.stages.reconciliation.results import summarise

    world.graph.writer.clear()
    projected = timed(world.project)
    NOTE.print(f"projected in {projected:.1f} s, peak memory {peak_bytes() / 2**20:,.0f} MiB")
    found: dict[str, Any] = {}

    def look() -> None:
        found.update(summarise(reconcile(world.archive, world.graph)))

    equal = timed(look)
    if found["findings"]:
        raise RuntimeError(f"the graph is not its archive: {found['findings'][:3]}")
    world.graph.run("MATCH (e:Event) WITH e LIMIT $n SET e.type = 'stolen'", n=DAMAGES)
    damaged = timed(look)
    table = Table("whole graph", "seconds", "rows/s", "ratio", "aim")
    rows = found["rows"]
    table.add_row("projection from an empty graph", f"{projected:.1f}", f"{rows / projected:,.0f}", "", "")
    table.add_row("reconciliation, equal", f"{equal:.1f}", f"{rows / equal:,.0f}", f"{equal / projected:.2f}", "0.20")
    table.add_row(
        f"reconciliation, {len(found['findings'])} damages", f"{damaged:.1f}", f"{rows / damaged:,.0f}",
        f"{damaged / equal:.2f}", "1.30",
    )  # fmt: skip
    peak = peak_bytes() / 2**20
    imported = timed(lambda: rebuild(world.archive, NOTE.print))
    table.add_row(
        "import, swap, indexes", f"{imported:.1f}", f"{rows / imported:,.0f}", f"{projected / imported:.1f}", "8.0"
    )
    Console().print(table)
    Console().print(f"{rows:,} rows compared; peak memory of this process {peak:,.0f} MiB (aim 1,536)")


def peak_bytes() -> int:
    """The most memory that this process had, without that of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument(
        "--written", type=int, default=200_000, help="events whose rows are written in three ways, or 0"
    )
    chosen = parser.parse_args()
    from c360_pipeline.connections import open_graph
    from c360_pipeline.settings import load_settings

    with services() as home, open_graph(load_settings(home)) as graph:
        graph.schema.apply()
        # The whole graph first: the peak of memory is that of one projection and two comparisons.
        for count, compare in ((chosen.events, compare_reads), (chosen.written, compare_writes)):
            if not count:
                continue
            NOTE.print(f"{count:,} events")
            with tempfile.TemporaryDirectory() as folder:
                compare(World(Path(folder), graph, count))


if __name__ == "__main__":
    main()
