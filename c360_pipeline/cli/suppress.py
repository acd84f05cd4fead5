"""`c360 suppress …`: the list of users whose events never land."""

from typing import Annotated

import typer

from c360_pipeline.cli.audit import note_command
from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import load_settings

suppress_app = typer.Typer(help="Users whose events never land.", no_args_is_help=True)


@suppress_app.command("add")
def suppress_user(
    tenant: Annotated[str, typer.Option(help="the tenant")],
    user: Annotated[str, typer.Option(help="the user as events name them")],
    reason: Annotated[str, typer.Option(help="why, for those who look at the list later")] = "",
) -> None:
    """Let no further event of a user land; events that landed stay until their day is backfilled."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.core.privacy.audit import Action

    control = open_control(load_settings())
    note_command(control, tenant, Action.SUPPRESSED, user)
    added = control.privacy.suppress(tenant, user, reason)
    err.print("suppressed" if added else "was suppressed already")


@suppress_app.command("remove")
def unsuppress_user(
    tenant: Annotated[str, typer.Option(help="the tenant")],
    user: Annotated[str, typer.Option(help="the user as events name them")],
) -> None:
    """Let events of a user land again."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.core.privacy.audit import Action

    control = open_control(load_settings())
    note_command(control, tenant, Action.UNSUPPRESSED, user)
    if not control.privacy.unsuppress(tenant, user):
        raise ConfigError(f"{user!r} of {tenant!r} is not suppressed.")
    err.print("not suppressed any more")


@suppress_app.command("list")
def list_suppressed(as_json: AsJson = False) -> None:
    """List who is suppressed, by tenant and hash: the list names nobody."""
    from c360_pipeline.connections import open_control

    rows = open_control(load_settings()).privacy.suppressed_users().listed.to_dicts()
    if as_json:
        print_json(rows)
    else:
        out.print("\n".join("{tenant_id} {user_hash}".format(**row) for row in rows) or "nobody", highlight=False)
