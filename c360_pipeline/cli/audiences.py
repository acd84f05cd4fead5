"""`c360 audiences …`: groups of customers by what they are and did, as documents in git or pages say."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from c360_pipeline.cli.audit import note_command
from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import load_settings

if TYPE_CHECKING:
    from c360_pipeline.core.audiences.definition import Audience
    from c360_pipeline.reads.audiences import Audiences
    from c360_pipeline.stages.audiences.refresh import Members
    from c360_pipeline.stores.postgres.control import ControlDb

audiences_app = typer.Typer(help="Audiences: who is in them, and where they are sent.", no_args_is_help=True)
Documents = Annotated[list[Path], typer.Argument(help="JSON files of audiences, or folders of them", exists=True)]
Name = Annotated[str, typer.Argument(help="of the audience, as `list` shows it")]
Tenant = Annotated[str | None, typer.Option(help="whose; may be left out when there is one")]
SHOWN = 50


@audiences_app.command("plan")
def plan(documents: Documents, as_json: AsJson = False) -> None:
    """Say what documents would change: who enters, who leaves. Nothing is written."""
    control = _control()
    wanted = list(_read(documents))
    found = []
    with _graph_members() as members:
        for audience in wanted:
            _require(control, audience)
            tried = members.tried([audience], control.privacy.purposes(), datetime.now(UTC))
            found.append({
                "tenant": audience.tenant, "audience": audience.audience, "change": _change(control, audience),
                **tried.sizes(audience.audience), "customers": tried.customers,
            })  # fmt: skip
    if as_json:
        print_json(found)
        return
    table = Table("audience", "change", "members", "enter", "leave", "of customers")
    for one in found:
        numbers = (f"{one[name]:,}" for name in ("members", "enter", "leave", "customers"))
        table.add_row(f"{one['tenant']}/{one['audience']}", str(one["change"]), *numbers)
    out.print(table)
    empty = [one["audience"] for one in found if not one["members"]]
    if empty:
        err.print(f"Nobody would be in {', '.join(map(str, empty))}: `c360 audiences size FILE --each` says why.",
                  soft_wrap=True)  # fmt: skip


@audiences_app.command("apply")
def apply(
    documents: Documents,
    note: Annotated[str, typer.Option(help="why, for those who look at it later")] = "",
    as_json: AsJson = False,
) -> None:
    """Let documents say who is in their audiences, from the next run on."""
    from c360_pipeline.core.privacy.audit import Action

    control = _control()
    wanted = list(_read(documents))
    for audience in wanted:
        _require(control, audience)
    done = []
    for audience in wanted:
        note_command(control, audience.tenant, Action.APPLIED_AUDIENCE, what=audience.audience)
        version, is_new = control.audiences.apply(audience, note)
        done.append({"tenant": audience.tenant, "audience": audience.audience, "version": version, "changed": is_new})
    if as_json:
        print_json(done)
        return
    for one in done:
        what = f"v{one['version']} applies" if one["changed"] else f"v{one['version']} applied already"
        out.print(f"{one['tenant']}/{one['audience']}: {what}", highlight=False)
    err.print("The next run works out who is in them; `c360 audiences refresh` does now.", soft_wrap=True)


@audiences_app.command("refresh")
def refresh(as_json: AsJson = False) -> None:
    """Work out now who is in all audiences, in lake and graph; a run does so, too."""
    from c360_pipeline.connections import open_graph, open_lake
    from c360_pipeline.stages.projection.audiences import bring_up_audiences

    settings = load_settings()
    lake, control = open_lake(settings), _control()
    with control.locks.shared_run(_waiting), open_graph(settings) as graph:
        done, faults = bring_up_audiences(lake, control, graph, datetime.now(UTC))
    if as_json:
        print_json({"changed": done.moved, "unread": faults})
    else:
        for name, (entered, left) in done.moved.items():
            out.print(f"{name}: {entered:,} entered, {left:,} left", highlight=False)
        if not done.moved:
            out.print("Nobody entered, and nobody left.")
        for name, why in faults.items():
            err.print(f"{name} stays as it was: {why}", soft_wrap=True)
    if faults:
        raise typer.Exit(1)


@audiences_app.command("deliver")
def deliver(as_json: AsJson = False) -> None:
    """Send now what destinations have not been told; a run does so, too."""
    from c360_pipeline.connections import open_lake
    from c360_pipeline.stages.audiences.deliver import Deliveries
    from c360_pipeline.stages.audiences.sinks import OpenSink

    settings = load_settings()
    control = _control()
    active, unread = control.audiences.active()
    with control.locks.shared_run(_waiting):
        deliveries = Deliveries(open_lake(settings), OpenSink(settings, control))
        done = list(deliveries.all(active, control.audiences.versions(), control.locks.named, unread))
    if as_json:
        print_json([vars(one) for one in done])
    elif not done:
        err.print("No audience has a destination: `deliver` in its document names them (docs/audiences.md).")
    for one in done if not as_json else []:
        out.print(f"{one.name}: {one.told}", highlight=False)
        if one.error:
            err.print(f"{one.name}: {one.waiting:,} changes wait: {one.error}", soft_wrap=True)
    if any(one.error for one in done):
        raise typer.Exit(1)


@audiences_app.command("list")
def list_audiences(tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Show all audiences: how many are in them, and who came and went within 7 days."""
    found = [(whose, one) for whose in _tenants(tenant) for one in _reads(whose).summaries(datetime.now(UTC))]
    if as_json:
        print_json([{"tenant": whose, **vars(one)} for whose, one in found])
        return
    if not found:
        err.print("There are no audiences: `c360 audiences apply FILE` makes one (docs/audiences.md).")
        return
    table = Table("audience", "who", "members", "entered", "left", "destinations")
    for whose, one in found:
        state = "" if one.is_active else " (ended)"
        table.add_row(f"{whose}/{one.name}{state}", one.who, f"{one.members:,}", f"{one.entered:,}", f"{one.left:,}",
                      str(one.destinations))  # fmt: skip
    out.print(table)


@audiences_app.command("show")
def show(name: Name, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Show an audience's document, who is in it, and what its destinations were told."""
    from c360_pipeline.reads.audiences import read_or_none

    whose, version = _named(name, tenant)
    reads = _reads(whose)
    total, first = reads.members(name, SHOWN)
    deliveries, (refused, letters) = reads.deliveries(name), reads.refused(name, SHOWN)
    if as_json:
        print_json({"document": version.document, "version": version.version, "active": version.active_version,
                    "members": total, "deliveries": deliveries, "refused": letters})  # fmt: skip
        return
    audience, who = read_or_none(version)
    said = audience.document() if audience else version.document
    out.print(json.dumps(said, indent=2, ensure_ascii=False), highlight=False, soft_wrap=True)
    out.print(f"v{version.version}: {who}", highlight=False, soft_wrap=True)
    out.print(f"{total:,} members" + (f", {min(total, SHOWN):,} of them: " if total else ""), highlight=False)
    out.print(", ".join(one["user_id"] for one in first), highlight=False, soft_wrap=True)
    for one in deliveries:
        out.print(f"{one['destination']}: {one['members']:,} members at {one['ended_at']:%Y-%m-%d %H:%M} UTC, "
                  f"{one['withheld']:,} withheld, {one['waiting']:,} waiting {one['error']}", highlight=False,
                  soft_wrap=True)  # fmt: skip
    if refused:
        first_refused, again = letters[0], f"c360 audiences replay {name} {letters[0]['destination']}"
        err.print(f"{refused:,} changes were refused: {first_refused['user_id']}: {first_refused['reason']}. "
                  f"`{again}` sends them again.", soft_wrap=True)  # fmt: skip


@audiences_app.command("size")
def size(
    what: Annotated[str, typer.Argument(help="name of an audience, or a JSON file of one")],
    tenant: Tenant = None,
    each: Annotated[bool, typer.Option("--each", help="of each condition as well")] = False,
    as_json: AsJson = False,
) -> None:
    """Count who would be in an audience now; nothing is written."""
    from c360_pipeline.core.audiences.definition import read_audience
    from c360_pipeline.core.audiences.told import told
    from c360_pipeline.reads.audiences import parts_of

    path = Path(what)
    (audience,) = _read([path]) if path.is_file() else (read_audience(_named(what, tenant)[1].document),)
    parts = {"audience": audience} | (parts_of(audience) if each else {})
    control = _control()
    with _graph_members() as members:
        tried = members.tried(list(parts.values()), control.privacy.purposes(), datetime.now(UTC))
    sizes = {text: tried.sizes(part.audience)["members"] for text, part in parts.items()}
    if as_json:
        print_json({"customers": tried.customers, "members": sizes.pop("audience"), "each": sizes})
        return
    out.print(f"{sizes.pop('audience'):,} of {tried.customers:,} customers: {told(audience.who)}", highlight=False,
              soft_wrap=True)  # fmt: skip
    for text, count in sizes.items():
        out.print(f"{count:>10,}  {text}", highlight=False, soft_wrap=True)


@audiences_app.command("end")
def end(name: Name, tenant: Tenant = None) -> None:
    """Let nobody be in an audience: the next run closes it, and tells its destinations that all left."""
    from c360_pipeline.core.privacy.audit import Action

    whose, _ = _named(name, tenant)
    note_command(_control(), whose, Action.ENDED_AUDIENCE, what=name)
    if not _control().audiences.end(whose, name):
        raise ConfigError(f"{whose}/{name} was ended already.")
    out.print(f"{whose}/{name}: nobody is in it from the next run on; `apply` brings it back.", highlight=False)


@audiences_app.command("replay")
def replay(
    name: Name,
    destination: Annotated[str, typer.Argument(help="as the document names it")],
    tenant: Tenant = None,
) -> None:
    """Let the next delivery send again what a destination refused."""
    from c360_pipeline.connections import open_lake
    from c360_pipeline.stages.audiences.deliver import Deliveries
    from c360_pipeline.stages.audiences.sinks import OpenSink

    whose, _ = _named(name, tenant)
    settings, control = load_settings(), _control()
    count = Deliveries(open_lake(settings), OpenSink(settings, control)).replay(whose, name, destination)
    if not count:
        raise ConfigError(f"{destination} of {whose}/{name} refused nothing.")
    out.print(f"{count:,} changes go with the next delivery; `c360 audiences deliver` sends them now.")


def _waiting() -> None:
    err.print("Waiting for a command that has the stores for itself.")


def _control() -> "ControlDb":
    from c360_pipeline.connections import open_control

    return open_control(load_settings())


def _reads(tenant: str) -> "Audiences":
    from c360_pipeline.connections import open_lake
    from c360_pipeline.reads.audiences import Audiences

    return Audiences(open_lake(load_settings()), _control().audiences, tenant)


@contextmanager
def _graph_members() -> "Iterator[Members]":
    """The table of members, the graph open meanwhile."""
    from c360_pipeline.connections import open_graph, open_lake
    from c360_pipeline.stages.audiences.facts import FactsOfTenants
    from c360_pipeline.stages.audiences.refresh import Members

    settings = load_settings()
    lake = open_lake(settings)
    with open_graph(settings) as graph:
        yield Members(lake, FactsOfTenants(lake, graph.run))


def _read(paths: list[Path]) -> "Iterator[Audience]":
    """Audiences of files; a folder's in the order of their names.

    Raises:
        ConfigError: a file is no audience, or two are the same one.
    """
    from c360_pipeline.core.audiences.definition import read_audience

    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not files:
        raise ConfigError(f"No *.json in {', '.join(map(str, paths))}.")
    known: dict[tuple[str, str], Path] = {}
    for file in files:
        try:
            audience = read_audience(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ConfigError(f"{file} is no JSON: {error}.") from None
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
        other = known.setdefault((audience.tenant, audience.audience), file)
        if other != file:
            raise ConfigError(f"{file} and {other} are both {audience.tenant}/{audience.audience}.")
        yield audience


def _require(control: "ControlDb", audience: "Audience") -> None:
    """Go on only where labels are known and destinations may be sent to."""
    from c360_pipeline.stages.audiences.sinks import require_possible

    require_possible(load_settings(), control, audience)


def _change(control: "ControlDb", audience: "Audience") -> str:
    known = {(one.tenant_id, one.name): one for one in control.audiences.newest()}
    held = known.get((audience.tenant, audience.audience))
    if held is None or held.active_version is None:
        return "new"
    return "none" if held.document == audience.document() else f"changed since v{held.version}"


def _tenants(tenant: str | None) -> list[str]:
    return [tenant] if tenant else sorted({one.tenant_id for one in _control().audiences.versions()})


def _named(name: str, tenant: str | None) -> tuple[str, Any]:
    """The tenant of an audience, and its document.

    Raises:
        ConfigError: there is no such audience, or several tenants have one.
    """
    found = {one.tenant_id: one for one in _control().audiences.newest(tenant) if one.name == name}
    if not found:
        names = ", ".join(sorted({one.name for one in _control().audiences.newest(tenant)})) or "none yet"
        raise ConfigError(f"There is no audience {name!r} (there are: {names}).")
    if len(found) > 1:
        raise ConfigError(f"{', '.join(sorted(found))} have that audience: choose one with --tenant.")
    return next(iter(found.items()))
