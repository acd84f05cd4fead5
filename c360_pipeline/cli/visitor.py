"""`c360 visitor …`: whom a browser or device counts for, and how to part it from a customer."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c360_pipeline.cli.audit import note_command
from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.settings import load_settings

if TYPE_CHECKING:
    from c360_pipeline.stages.visitors.decisions import Decisions
    from c360_pipeline.stores.postgres.control import ControlDb

visitor_app = typer.Typer(help="Browsers and devices, and the customers they count for.", no_args_is_help=True)
Tenant = Annotated[str | None, typer.Option(help="needed when tenants share the id")]
AnonymousId = Annotated[str, typer.Argument(help="as the producer knows the browser or device")]


@visitor_app.command("show")
def show(anonymous_id: AnonymousId, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Show which users a visitor was seen with, and for whom what it did before a login counts."""
    from c360_pipeline.connections import open_lake
    from c360_pipeline.stages.visitors.decisions import Decisions

    found = Decisions(open_lake(load_settings())).visitor(anonymous_id, tenant)
    if as_json:
        print_json(vars(found))
        return
    named = ", ".join(f"{user} ({count:,} events)" for user, count in found.users.items()) or "nobody"
    out.print(f"{found.tenant_id}: {found.events:,} events, {found.anonymous_events:,} of them without a user.")
    out.print(f"Seen with {named}.", highlight=False)
    if found.is_split:
        told = "It is split: what it did before logins counts for nobody. `c360 visitor split … --undo` ends that."
    elif found.user_id:
        told = f"What it did before a login counts for {found.user_id}."
    elif found.users:
        told = "It is shared: in each session, what was done before a login counts for the next user who logged in."
    else:
        told = "Nobody logged in: what it did counts for nobody yet."
    out.print(told, highlight=False)


@visitor_app.command("split")
def split(
    anonymous_id: AnonymousId,
    tenant: Tenant = None,
    reason: Annotated[str, typer.Option(help="kept with the decision")] = "split",
    undo: Annotated[bool, typer.Option("--undo", help="let the visitor count again")] = False,
    as_json: AsJson = False,
) -> None:
    """Let what a visitor did before logins count for nobody; `--undo` brings it back."""

    def decide(control: "ControlDb", decisions: "Decisions") -> None:
        from c360_pipeline.core.privacy.audit import Action

        visitor = decisions.visitor(anonymous_id, tenant)
        did = Action.JOINED_VISITOR if undo else Action.SPLIT_VISITOR
        note_command(control, visitor.tenant_id, did, anonymous_id)
        decisions.split(visitor, reason, undo=undo)

    _carry_out(decide, as_json=as_json)


@visitor_app.command("gap")
def gap(
    tenant: Annotated[str, typer.Option(help="whose sessions")],
    minutes: Annotated[int | None, typer.Argument(help="without an event that end a session; none: 30")] = None,
    reason: Annotated[str, typer.Option(help="kept with the decision")] = "",
    as_json: AsJson = False,
) -> None:
    """Set how long a pause ends a session that no producer named; sessions of the past follow."""
    _carry_out(lambda _, decisions: decisions.set_gap(tenant, minutes, reason), as_json=as_json)


def _carry_out(decide: "Callable[[ControlDb, Decisions], None]", *, as_json: bool) -> None:
    """Decide, and bring tables, journeys and graph up to it, while nobody else is at work."""
    from c360_pipeline.connections import open_control, open_graph, open_lake
    from c360_pipeline.stages.projection.everything import bring_up_visitors
    from c360_pipeline.stages.visitors.decisions import Decisions

    settings = load_settings()
    control, lake = open_control(settings), open_lake(settings)
    with control.locks.exclusive_run(), open_graph(settings) as graph:
        policy = control.key_rules.policy()
        decide(control, Decisions(lake))
        changed = bring_up_visitors(lake, graph, policy, control.read())
    _tell(changed, as_json=as_json)


def _tell(changed: dict[str, int], *, as_json: bool) -> None:
    said: dict[str, Any] = {name: count for name, count in changed.items() if count}
    if as_json:
        print_json(said)
    elif said:
        err.print("Changed: " + ", ".join(f"{count:,} {name}" for name, count in said.items()) + ".", highlight=False)
    else:
        err.print("Nothing counts otherwise because of it.")
