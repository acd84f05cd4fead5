"""`c360 backup` and `c360 restore`."""

from pathlib import Path
from typing import Annotated

import typer

from c360_pipeline.cli.embedded import postgres_tools, rebuild_graph
from c360_pipeline.cli.output import AsJson, err, local_folder, out, print_json
from c360_pipeline.errors import ConfigError, InvariantError
from c360_pipeline.settings import c360_home, identifier_keys_place, load_settings


def backup(
    folder: Annotated[Path, typer.Argument(help="an empty folder, or one that is not there", callback=local_folder)],
    verify: Annotated[bool, typer.Option("--verify", help="only read the backup that is there, end to end")] = False,
    as_json: AsJson = False,
) -> None:
    """Back up lake, landing area, dead letters and control database while all run, with the digest of the graph."""
    from dataclasses import asdict

    from c360_pipeline.connections import open_bucket, open_control, open_graph, open_lake
    from c360_pipeline.stages.reconciliation.expected import Archive
    from c360_pipeline.stages.reconciliation.reconcile import reconcile
    from c360_pipeline.stages.recovery import backup as backups

    tools = postgres_tools()
    with err.status("reading the graph") as shown:

        def observe(what: str) -> None:
            shown.update(what)

        if verify:
            manifest = backups.verify(folder, tools, observe)
        else:
            settings = load_settings()
            control, lake = open_control(settings), open_lake(settings)
            control.identifiers.require_no_rotation()
            with control.locks.exclusive_run():
                with open_graph(settings) as graph:
                    results = reconcile(Archive(lake, control.read()), graph)
                manifest = backups.take(open_bucket(settings), lake, control, results, folder, tools, observe)
    if as_json:
        print_json({**asdict(manifest), "digest": manifest.digest})
        return
    said = f"{manifest.objects:,} objects, {manifest.bytes:,} bytes, {len(manifest.versions)} tables"
    out.print(f"{folder}: {said}, verified. Digest of the backup {manifest.digest}.", highlight=False, soft_wrap=True)


def restore(
    folder: Annotated[Path, typer.Argument(help="of a backup", callback=local_folder)],
    as_json: AsJson = False,
) -> None:
    """Restore a backup into empty services, and prove lake and graph to be what they were."""
    from c360_pipeline.connections import open_bucket, open_control, open_graph, open_lake
    from c360_pipeline.stages.reconciliation.expected import Archive
    from c360_pipeline.stages.reconciliation.results import graph_digest
    from c360_pipeline.stages.recovery import backup as backups

    tools, settings = postgres_tools(), load_settings()
    control, lake, bucket = open_control(settings), open_lake(settings), open_bucket(settings)
    with err.status("verifying the backup") as shown:

        def observe(what: str) -> None:
            shown.update(what)

        manifest = backups.verify(folder, tools, observe)
        with open_graph(settings) as graph:
            if graph.counts.label_counts() and not bucket.has(backups.RESTORING):
                raise ConfigError("The graph is not empty. A backup is restored into empty services only.")
        with control.locks.exclusive_run():
            backups.put_back(bucket, control, folder, manifest, tools, observe)
            control.ensure()  # one of an earlier release lacks tables of this one
            results = rebuild_graph(settings, c360_home(), Archive(lake, control.read()), observe)
        observe("computing digests")
        found = backups.lake_digests(lake, manifest.versions)
        after = graph_digest(results)
    if found != manifest.digests or after != manifest.graph_digest:
        differing = [name for name, digest in manifest.digests.items() if found.get(name) != digest]
        raise InvariantError(
            f"What was restored differs from the backup: {', '.join(differing) or 'the graph'}. "
            f"The graph has the digest {after}, the backup says {manifest.graph_digest}."
        )
    backups.finish(bucket, lake, manifest)
    missing = [one for one in control.identifiers.versions() if not one.is_held]
    if missing:
        named = ", ".join(f"{one.version} (fingerprint {one.fingerprint})" for one in missing)
        err.print(
            f"Identifiers are hashed with secrets that this machine does not have: version {named}. Put them into "
            f"{identifier_keys_place()} before the next run.", highlight=False, soft_wrap=True,
        )  # fmt: skip
    if as_json:
        print_json({"digest": manifest.digest, "graph_digest": after, "objects": manifest.objects})
    else:
        out.print(
            f"{manifest.objects:,} objects restored, the graph rebuilt; the backup's digest {manifest.digest} holds.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
