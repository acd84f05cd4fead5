"""`c360 audit`: who looked at whom, and who changed what; and how commands are noted there."""

import getpass
import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.settings import load_settings

if TYPE_CHECKING:
    from c360_pipeline.core.privacy.audit import Action
    from c360_pipeline.stores.postgres.control import ControlDb

SHOWN_DIGITS = 12
"""Of what stands for a person."""


def note_command(control: "ControlDb", tenant_id: str, action: "Action", *subjects: str, what: str = "") -> None:
    """Note what a command does for a tenant.

    Raises:
        UnavailableError: the control database can't be reached.
    """
    from c360_pipeline.core.privacy.audit import Entry

    actor = f"command line ({_operator()})"
    control.audit.add([Entry.now(tenant_id, actor, "", action, one, what) for one in subjects or (None,)])


def _operator() -> str:
    """The user of the machine; in a container it may have a number alone."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def audit(
    tenant: Annotated[str, typer.Option(help="whose customers")],
    person: Annotated[
        str | None, typer.Option(help="only what is about this user, visitor or account, in any spelling")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="entries at most, the newest first")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show who looked at whom, and who changed what; the log names people by a hash alone."""
    from dataclasses import asdict

    from c360_pipeline.connections import open_control

    control = open_control(load_settings())
    found = control.audit.of(tenant, limit, person)
    if as_json:
        print_json([{**asdict(line), "at": line.at.isoformat()} for line in found])
        return
    if not found:
        err.print(f"Nothing is noted of {tenant!r}" + (" about this person." if person else "."), highlight=False)
        return
    table = Table("when (UTC)", "who", "role", "did", "about", "person")
    for line in found:
        about = (line.subject_hash or "")[:SHOWN_DIGITS]
        table.add_row(f"{line.at:%Y-%m-%d %H:%M:%S}", line.actor, line.role, line.action, line.what, about)
    out.print(table)
