"""Graph against archive: `c360 reconcile`, `rebuild`, `diff`, `digest`, `dump` and `load`."""

from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from c360_pipeline.cli.embedded import rebuild_graph
from c360_pipeline.cli.output import AsJson, as_instant, err, local_folder, out, print_json
from c360_pipeline.settings import c360_home, load_settings

INSTANT = "an instant such as 2025-11-03T12:00Z, or a version of the archive's events"


def reconcile(
    repair: Annotated[bool, typer.Option(help="bring the graph back to its archive")] = False,
    force: Annotated[bool, typer.Option(help="repair even where more than 5 % of a label differ")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the graph with its archive, row by row; exit code 1 when they differ."""
    from c360_pipeline.connections import open_control, open_graph, open_lake
    from c360_pipeline.stages.reconciliation.expected import Archive
    from c360_pipeline.stages.reconciliation.reconcile import reconcile as compare
    from c360_pipeline.stages.reconciliation.results import publish, summarise

    settings = load_settings()
    control, lake = open_control(settings), open_lake(settings)
    control.identifiers.require_no_rotation()
    archive = Archive(lake, control.read())
    # A run projects what the archive read here does not hold yet: a repair in between would take that for ghosts.
    with control.locks.exclusive_run(), open_graph(settings) as graph, err.status("comparing") as shown:

        def observe(kind: str, tenant: str) -> None:
            shown.update(f"comparing {kind} of {tenant}")

        results = compare(archive, graph, repair=repair, force=force, observe=observe)
        publish(lake, results, f"reconcile {uuid4()}")
        found = summarise(results)
        left = summarise(compare(archive, graph, observe=observe)) if repair and found["findings"] else found
    print_json({"found": found, "left": left}) if as_json else print_reconciliation(found, left, repair=repair)
    if left["findings"]:
        raise typer.Exit(1)


def print_reconciliation(found: dict[str, Any], left: dict[str, Any], *, repair: bool) -> None:
    """Print findings and the verdict."""
    for finding in found["findings"]:
        whose = finding["tenant_id"] or "no tenant:"
        said = "{entity} {kind} {key} {difference}".format(**finding)
        out.print(f"{whose} {said}".rstrip(), highlight=False, markup=False, soft_wrap=True)
    if repair and found["findings"]:
        repaired = len(found["findings"]) - len(left["findings"])
        out.print(f"{repaired:,} of {len(found['findings']):,} findings repaired.")
    verdict = "equal to its archive" if not left["findings"] else f"different in {len(left['findings']):,} rows"
    out.print(f"{left['rows']:,} rows compared, the graph is {verdict}.", highlight=False)


def rebuild(
    online: Annotated[bool, typer.Option("--online", help="by statements, on a server that goes on running")] = False,
    as_of: Annotated[str | None, typer.Option(help=f"a second graph, as it was: {INSTANT}")] = None,
    as_json: AsJson = False,
) -> None:
    """Rebuild the graph from its archive, and prove it.

    The embedded server gets a new store by import and stops for some seconds; the old store is kept until the new one
    is proved. A server of your own, or any with --online, goes on running, and readers see the graph grow.
    """
    if as_of is not None:
        rebuild_as_of(as_of, as_json=as_json)
        return
    from c360_pipeline.connections import open_control, open_graph, open_lake
    from c360_pipeline.stages.reconciliation.expected import Archive
    from c360_pipeline.stages.reconciliation.reconcile import reconcile as compare
    from c360_pipeline.stages.reconciliation.results import graph_digest, publish, summarise

    settings = load_settings()
    control, lake = open_control(settings), open_lake(settings)
    control.identifiers.require_no_rotation()
    archive = Archive(lake, control.read())
    with control.locks.exclusive_run(), err.status("reading the graph") as shown:
        with open_graph(settings) as graph:
            before = graph_digest(compare(archive, graph))

        def observe(what: str) -> None:
            shown.update(f"rebuilding: {what}")

        results = rebuild_graph(settings, c360_home(), archive, observe, online=online)
        publish(lake, results, f"rebuild {uuid4()}")
    after, found = graph_digest(results), summarise(results)
    if as_json:
        print_json({"digest_before": before, "digest": after, "found": found})
    else:
        verdict = "the same as before" if before == after else f"other than before ({before}): the graph had drifted"
        out.print(f"The graph is rebuilt. Digest of the graph {after}, {verdict}.", highlight=False, soft_wrap=True)
        print_reconciliation(found, found, repair=False)
    if found["findings"]:
        raise typer.Exit(1)


def _archive_at(text: str) -> Any:
    """The archive as of an option's value, and that instant."""
    from c360_pipeline.connections import open_control, open_lake
    from c360_pipeline.stages.reconciliation.expected import Archive
    from c360_pipeline.stages.reconciliation.pinned import PinnedVersions

    settings = load_settings()
    lake, rows = open_lake(settings), open_control(settings).read()
    instant = as_instant(text, lake)
    return Archive(lake, rows, PinnedVersions.as_of(lake, rows, instant)), instant


def rebuild_as_of(text: str, *, as_json: bool) -> None:
    """Start a second embedded server with the graph of an earlier instant."""
    from c360_pipeline.devstack.rebuild import start_instant
    from c360_pipeline.stages.reconciliation.results import graph_digest, summarise

    with err.status("reading the archive") as shown:
        archive, instant = _archive_at(text)
        started = start_instant(c360_home(), archive, lambda what: shown.update(what))
    found = summarise(started.results)
    digest_then = graph_digest(started.results)
    if as_json:
        print_json({"as_of": instant, "uri": started.uri, "home": started.home, "digest": digest_then, "found": found})
    else:
        out.print(
            f"The graph as of {instant.isoformat()} is at {started.uri}, digest of the graph {digest_then}.",
            soft_wrap=True,
        )
        out.print(f'Ask it:  eval "$(C360_HOME={started.home} c360 env)"', highlight=False, soft_wrap=True)
        out.print("`c360 down` stops and removes it.", highlight=False)
    if found["findings"]:
        raise typer.Exit(1)


def diff(
    before: Annotated[str, typer.Argument(help=INSTANT)],
    after: Annotated[str, typer.Argument(help="end of the period; now if not said")] = "now",
    limit: Annotated[int, typer.Option(help="nodes and relationships to name")] = 100,
    as_json: AsJson = False,
) -> None:
    """Say what of the graph came, went or changed between two instants, from the archive."""
    from c360_pipeline.stages.reconciliation.archive_diff import difference

    with err.status("reading the archive") as shown:
        (earlier, _), (later, _) = _archive_at(before), _archive_at(after)
        found = difference(earlier, later, lambda what: shown.update(f"comparing {what}"))
    counts = found.group_by("entity", "change", maintain_order=True).len("rows")
    if as_json:
        print_json({"counts": counts.to_dicts(), "changes": found.head(limit).to_dicts()})
        return
    for row in found.head(limit).iter_rows(named=True):
        said = "{entity} {change} {key} {difference}".format(**row)
        out.print(said.rstrip(), highlight=False, soft_wrap=True)
    for entity, change, count in counts.iter_rows():
        out.print(f"{count:,} {entity} {change}", highlight=False)
    err.print(f"{found.height:,} differences", highlight=False)


def digest(
    by_day: Annotated[bool, typer.Option("--by-day", help="of each day of the graph, too")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the canonical digest of lake and graph: equal digests, equal content."""
    from c360_pipeline.connections import open_control, open_graph, open_lake
    from c360_pipeline.core.reconciliation.compare import combined_digest
    from c360_pipeline.stages.reconciliation.expected import Archive
    from c360_pipeline.stages.reconciliation.reconcile import reconcile as compare
    from c360_pipeline.stages.reconciliation.results import digests, digests_by_day

    settings = load_settings()
    lake = open_lake(settings)
    archive = Archive(lake, open_control(settings).read())
    with open_graph(settings) as graph, err.status("reading lake and graph"):
        results = compare(archive, graph)
        parts = digests(lake, results)
    days = digests_by_day(results) if by_day else []
    if as_json:
        print_json({"digest": combined_digest(parts), "parts": parts, **({"days": days} if by_day else {})})
        return
    for row in days:
        said = "{tenant_id} {entity} {day} archive {archive} graph {graph}".format(**row)
        out.print(said, highlight=False, soft_wrap=True)
    out.print(combined_digest(parts), highlight=False)


def dump(
    folder: Annotated[Path, typer.Argument(help="where the dump file goes", callback=local_folder)],
) -> None:
    """Write the embedded Neo4j's database into a dump file; the server stops meanwhile."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.devstack.graph_store import dump as dump_database

    with open_control(load_settings()).locks.exclusive_run(), err.status("writing the dump"):
        path = dump_database(c360_home(), folder.absolute())
    out.print(f"{path}: {path.stat().st_size:,} bytes", highlight=False, soft_wrap=True)


def load(
    folder: Annotated[Path, typer.Argument(help="where the dump file is", callback=local_folder)],
) -> None:
    """Replace the embedded Neo4j's database by a dump; the next run brings it up to the archive."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.devstack.graph_store import load as load_database

    with open_control(load_settings()).locks.exclusive_run(), err.status("loading the dump"):
        load_database(c360_home(), folder.absolute())
    err.print("Loaded. `c360 run` brings the graph up to its archive, `c360 reconcile` proves it.")
