"""`c360 journey …`: what belongs together, why, and how to take it apart."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from c360_pipeline.cli.audit import note_command
from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import load_settings

if TYPE_CHECKING:
    from c360_pipeline.core.privacy.audit import Action

journey_app = typer.Typer(help="Stitched customer journeys.", no_args_is_help=True)
Tenant = Annotated[str | None, typer.Option(help="needed when tenants share the id")]


@journey_app.command("show")
def show(
    event_id: Annotated[str, typer.Argument(help="id of any event of the journey")],
    tenant: Tenant = None,
    as_of: Annotated[str | None, typer.Option(help="ISO 8601; as stitching saw it then, from its log")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the journey that an event belongs to, and the keys that link it together."""
    from c360_pipeline.connections import open_graph, open_lake
    from c360_pipeline.reads.journeys import journey_of_event, tenants_with_event
    from c360_pipeline.stages.stitching.history import JourneyHistory

    settings = load_settings()
    if as_of is not None:
        history = JourneyHistory(open_lake(settings))
        owner = _one_tenant(history.tenants_of(event_id), repr(event_id), tenant)
        events = history.journey_at(owner, event_id, _instant(as_of))
    else:
        with open_graph(settings) as graph:
            owner = _one_tenant(tenants_with_event(graph, event_id), repr(event_id), tenant)
            events = journey_of_event(graph, owner, event_id)
    if not events:
        raise ConfigError(f"There is no stitched event {event_id!r}.")
    print_json(events) if as_json else out.print(_journey_table(events))


@journey_app.command("explain")
def explain(
    first: Annotated[str, typer.Argument(help="id of an event")],
    second: Annotated[str, typer.Argument(help="id of another")],
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Show the shortest chain of events and keys between two events; exit code 1 when there is none, and why."""
    from c360_pipeline.connections import open_graph, open_lake
    from c360_pipeline.reads.journeys import explanation, tenants_with_event
    from c360_pipeline.stages.stitching.why_apart import why_apart

    settings = load_settings()
    with open_graph(settings) as graph:
        shared = [t for t in tenants_with_event(graph, first) if t in tenants_with_event(graph, second)]
        owner = _one_tenant(shared, f"{first!r} together with {second!r}", tenant)
        chain = explanation(graph, owner, first, second)
    reasons = why_apart(open_lake(settings), owner, first, second) if chain is None else []
    if as_json:
        print_json({"tenant_id": owner, "chain": chain, "why_apart": reasons})
    elif chain:
        out.print(_chain_tree(chain))
    if chain is None:
        err.print(
            f"No chain of keys links {first} and {second}: they are in different journeys, or in one by weak keys."
        )
        for reason in reasons:
            err.print(reason, highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(1)


@journey_app.command("unmerge")
def unmerge(
    key: Annotated[str, typer.Argument(help="type:hash, as the graph has it, or type=value")],
    tenant: Tenant = None,
    other: Annotated[
        str | None,
        typer.Option("--from", help="another user: events do not make these two one any more"),
    ] = None,
    reason: Annotated[str, typer.Option(help="kept with the control row")] = "unmerged",
    undo: Annotated[bool, typer.Option("--undo", help="let the key link again")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key link nothing any more, and take apart what it alone held together; old ids come back.

    With --from, two users whom an alias or merge call made one are two again.
    """
    from c360_pipeline.connections import open_control, open_graph, open_lake
    from c360_pipeline.stages.projection.corrections import block_key, part_keys

    settings = load_settings()
    control, lake = open_control(settings), open_lake(settings)
    with control.locks.exclusive_run(), open_graph(settings) as graph:

        def told(tenant_id: str, name: str, people: list[str]) -> None:
            note_command(control, tenant_id, _did(is_pair=other is not None, undo=undo), *people, what=name)

        if other is None:
            found = block_key(control, lake, graph, key, tenant, reason, undo=undo, told=told)
        else:
            found = part_keys(control, lake, graph, key, other, tenant, reason, undo=undo, told=told)
    if as_json:
        print_json(found.as_dict())
    else:
        _print_changes(found.merges, found.splits)
        does = f"links {'again' if undo else 'nothing any more'}"
        if other is not None:
            does = f"and {other} {'may be one person again' if undo else 'are two people'}"
        err.print(
            f"{found.key} of {found.tenant_id} {does}: "
            f"{found.splits.height:,} split off, {found.merges.height:,} merged, {found.report.reread:,} reread.",
            highlight=False,
        )
        if found.is_still_one:
            err.print(
                "They are in one journey still: events say of both that they are a third person. Part that one from "
                "them, too.", highlight=False,
            )  # fmt: skip


def _did(*, is_pair: bool, undo: bool) -> "Action":
    """How the audit log names it."""
    from c360_pipeline.core.privacy.audit import Action

    if is_pair:
        return Action.JOINED_KEYS if undo else Action.PARTED_KEYS
    return Action.UNBLOCKED_KEY if undo else Action.BLOCKED_KEY


@journey_app.command("rebase")
def rebase(
    tenant: Annotated[str | None, typer.Option(help="only this tenant")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="show what would merge and split, and change nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Stitch all events again under today's rules; ids stay where journeys stay."""
    from c360_pipeline.connections import open_control, open_graph, open_lake
    from c360_pipeline.stages.projection.corrections import apply_rules, rebase_plans

    settings = load_settings()
    control, lake = open_control(settings), open_lake(settings)
    with control.locks.exclusive_run(), err.status("stitching all events under today's rules"):
        plans = rebase_plans(control, lake, tenant)
        if not plan:
            with open_graph(settings) as graph:
                apply_rules(control, lake, graph, plans)
    if as_json:
        print_json([found.as_dict() for found in plans])
        return
    for found in plans:
        _print_changes(found.merges, found.splits)
        for row in found.keys.iter_rows(named=True):
            out.print("{tenant_id}  {len} {key_type} keys: {before} -> {status}".format(**row), highlight=False)
        out.print(
            f"{found.tenant_id}: {found.merges.height:,} journeys {'would merge' if plan else 'merged'}, "
            f"{found.splits.height:,} {'would split' if plan else 'split'} off, {found.moved.height:,} events of "
            f"{found.journeys:,} journeys {'would move' if plan else 'moved'}.",
            highlight=False,
        )


@journey_app.command("conflicts")
def conflicts(
    tenant: Annotated[str | None, typer.Option(help="only this tenant")] = None, as_json: AsJson = False
) -> None:
    """List links that wait for review: a unique key or the size of a journey refused them."""
    from c360_pipeline.connections import open_lake
    from c360_pipeline.core.catalog.tables import JOURNEY_CONFLICTS

    found = open_lake(load_settings()).read(JOURNEY_CONFLICTS).sort("found_at", descending=True)
    rows = [row for row in found.to_dicts() if tenant in (None, row["tenant_id"])]
    if as_json:
        print_json(rows)
        return
    table = Table("tenant", "event", "key", "reason", "went to", "not to")
    for row in rows:
        table.add_row(
            escape(row["tenant_id"]), escape(row["event_id"]), f"{row['key_type']}:{row['key_hash']}", row["reason"],
            row["journey_id"], row["refused_journey_id"],
        )  # fmt: skip
    out.print(table if rows else "Nothing waits for review.")


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--as-of {text!r} is no instant: 2026-01-31T12:00:00Z is right.") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _one_tenant(tenants: list[str], what: str, chosen: str | None) -> str:
    if chosen is not None and chosen not in tenants:
        raise ConfigError(f"{chosen} has no stitched event {what}; {', '.join(tenants) or 'nobody'} has.")
    if chosen is None and len(tenants) > 1:
        raise ConfigError(f"Event {what} exists for {', '.join(tenants)}: choose one with --tenant.")
    if not tenants:
        raise ConfigError(f"There is no stitched event {what}.")
    return chosen or tenants[0]


def _journey_table(events: list[dict[str, Any]]) -> Table:
    """The events of a journey by time."""
    table = Table("time", "user", "session", "action", "product", "keys", title=f"journey {events[0]['journey_id']}")
    for e in events:
        table.add_row(
            _at(e["ts"]), *(escape(e[name] or "") for name in ("user_id", "session_id", "action", "product_id")),
            " ".join(sorted(e["key_types"])),
        )  # fmt: skip
    return table


def _chain_tree(chain: list[dict[str, Any]]) -> Tree:
    """Events and the keys between them, one below the other."""
    tree = Tree(_link(chain[0]))
    for node in chain[1:]:
        tree.add(_link(node))
    return tree


def _link(node: dict[str, Any]) -> Text:
    if "key" in node:
        return Text(f"shares the {node['key_type']} {node['key']}", style="dim")
    return Text(f"{node['event_id']}  {_at(node['ts'])}  {node['action']} {_who(node)}")


def _who(node: dict[str, Any]) -> str:
    """Who acted, or whom it counts for and why."""
    if node["customer_id"] == node["user_id"]:
        return f"by {node['user_id']}" if node["user_id"] else "by a visitor who did not log in"
    return f"before a login of {node['customer_id']}"


def _at(ts: Any) -> str:
    native = ts.to_native() if hasattr(ts, "to_native") else ts
    return native if isinstance(native, str) else str(native.strftime("%Y-%m-%d %H:%M:%S"))


def _print_changes(merges: Any, splits: Any) -> None:
    for row in merges.iter_rows(named=True):
        out.print("{tenant_id}  {loser} goes into {survivor}".format(**row), highlight=False)
    for row in splits.iter_rows(named=True):
        out.print(
            "{tenant_id}  {split_off} splits off {journey_id} with {event_count} events".format(**row), highlight=False
        )
