"""`c360 keys …`: the secrets that identifiers are hashed with."""

import secrets as randomness
from typing import Annotated

import typer
from rich.table import Table

from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.settings import identifier_keys_place, load_settings

identifier_keys_app = typer.Typer(help="Secrets that identifiers are hashed with.", no_args_is_help=True)


@identifier_keys_app.command("show")
def show(as_json: AsJson = False) -> None:
    """Show the versions of the secret, by fingerprint, and which of them this machine has."""
    from c360_pipeline.connections import open_control

    versions = open_control(load_settings()).identifiers.versions()
    if as_json:
        print_json([vars(one) for one in versions])
        return
    if not versions:
        err.print(
            "Identifiers are hashed without a secret: who has a list of values finds those that are here. "
            "`c360 keys rotate` makes the first one.", soft_wrap=True,
        )  # fmt: skip
        return
    table = Table("version", "fingerprint", "in effect since", f"in {identifier_keys_place()}")
    for one in versions:
        since = f"{one.took_effect_at:%Y-%m-%d %H:%M}" if one.took_effect_at else "rotation broken off"
        held = "yes" if one.is_held else "MISSING" if one.fingerprint else "not made yet"
        table.add_row(str(one.version), one.fingerprint or "not used yet", since, held)
    out.print(table)


@identifier_keys_app.command("new")
def new(
    version: Annotated[int, typer.Argument(min=1, help="that it is to be")] = 1,
) -> None:
    """Print a new secret, for C360_IDENTIFIER_KEYS or its file; nothing is kept."""
    out.print(f"{version}:{randomness.token_hex(32)}", highlight=False)


@identifier_keys_app.command("rotate")
def rotate(as_json: AsJson = False) -> None:
    """Hash all identifiers with a new secret, in log, tables, graph and lists, and prove that nothing else changed.

    It can be stopped and called again. Secrets in a file get the new one there; where they come from the environment,
    add what `c360 keys new` prints before. Every machine of the installation needs it afterwards.
    """
    from c360_pipeline.connections import open_control, open_graph, open_lake
    from c360_pipeline.core.reconciliation.compare import combined_digest
    from c360_pipeline.stages.privacy.rotation import rotate as rotate_all
    from c360_pipeline.stages.reconciliation.expected import Archive
    from c360_pipeline.stages.reconciliation.reconcile import reconcile
    from c360_pipeline.stages.reconciliation.results import digests, summarise

    settings = load_settings()
    control, lake = open_control(settings), open_lake(settings)
    with control.locks.exclusive_run(), open_graph(settings) as graph, err.status("comparing") as shown:
        archive = Archive(lake, control.read())
        is_new = not control.identifiers.is_rotating()
        before = combined_digest(digests(lake, reconcile(archive, graph))) if is_new else None
        done = rotate_all(control, lake, graph, lambda what: shown.update(f"rotating: {what}"))
        shown.update("comparing")
        results = reconcile(archive, graph)
        after, found = combined_digest(digests(lake, results)), summarise(results)["findings"]
    is_same = before in (None, after) and not found
    if as_json:
        print_json({**done.as_dict(), "digest_before": before, "digest": after, "findings": found})
    else:
        rows = ", ".join(f"{count:,} of {name}" for name, count in done.rows.items())
        out.print(f"Identifiers are hashed with version {done.version} of the secret.", highlight=False)
        out.print(f"Rows rewritten: {rows}; {done.nodes:,} nodes; {done.listed:,} entries of lists.", soft_wrap=True)
        compared = (
            "the same as before" if before else "of a graph that equals its archive; what it was before is not known"
        )
        verdict = compared if is_same else f"OTHER than before ({before}), {len(found):,} findings"
        out.print(f"Digest {after}, {verdict}.", highlight=False, soft_wrap=True)
        err.print(
            f"Copy {identifier_keys_place()} to every machine of this installation, and to your backups. Versions of "
            "tables of before hold the old hashes until maintenance removes them.", highlight=False, soft_wrap=True,
        )  # fmt: skip
    if not is_same:
        raise typer.Exit(1)
