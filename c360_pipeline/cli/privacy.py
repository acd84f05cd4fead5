"""`c360 export`, `c360 erase` and `c360 retain`."""

import json
import shlex
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from c360_pipeline.cli.audit import note_command
from c360_pipeline.cli.embedded import remake_embedded, remove_instants
from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import Settings, c360_home, load_settings, postgres_login

if TYPE_CHECKING:
    from c360_pipeline.stages.privacy.certificate import Certificate
    from c360_pipeline.stages.privacy.mentions import Companion

SHOWN = 20
"""User ids that are named."""


def stores_of(settings: Settings) -> Any:
    """All stores that may hold a person."""
    from c360_pipeline.connections import open_bucket, open_control, open_graph, open_lake, open_landing
    from c360_pipeline.stages.audiences.sinks import OpenSink
    from c360_pipeline.stages.privacy.stores import Stores
    from c360_pipeline.stages.reconciliation.expected import Archive
    from c360_pipeline.stores.postgres.databases import database_exists

    home, control, lake = c360_home(), open_control(settings), open_lake(settings)
    remake_graph = remake_embedded(settings, home, lambda: Archive(lake, control.read()))
    logins = {"control database": settings.etl_db_name, "dagster": settings.dagster_db_name}
    folders = {"logs": home / "logs", "dagster files": home / "dagster", "graph logs": home / "neo4j" / "logs"}
    return Stores(
        bucket=open_bucket(settings),
        landing=open_landing(settings),
        lake=lake,
        control=control,
        open_graph=lambda: open_graph(settings),
        databases={
            name: login
            for name, database in logins.items()
            if database_exists(login := postgres_login(settings, database))
        },
        files={name: folder for name, folder in folders.items() if folder.is_dir()},
        cache=home / "cache",
        remake_graph=remake_graph,
        graph_files=home / "neo4j" if remake_graph else None,
        open_user_events=_opens_user_events(settings),
        open_sink=OpenSink(settings, control),
    )


def _opens_user_events(settings: Settings) -> Any:
    """What opens Cassandra's table; None where there is no real-time path."""
    if settings.cassandra_hosts is None:
        return None
    from c360_pipeline.streaming.clients import open_user_events

    return lambda: open_user_events(settings)


def export(
    tenant: Annotated[str, typer.Option(help="the tenant")],
    user: Annotated[str, typer.Option(help="the user as events name them, in any spelling")],
    out_folder: Annotated[Path | None, typer.Option("--out", help="folder for person.json and person.html")] = None,
) -> None:
    """Give a person all that is held of them, as JSON and as a page; changes nothing."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.core.privacy.audit import Action
    from c360_pipeline.core.privacy.erasure import Person
    from c360_pipeline.stages.privacy.export import export as gather

    settings = load_settings()
    note_command(open_control(settings), tenant, Action.EXPORTED, user)
    with err.status("opening the stores") as shown:
        found = gather(stores_of(settings), Person.named(tenant, user), lambda what: shown.update(what))
    if found.is_empty:
        raise ConfigError(f"Nothing is held of {user!r} of {tenant!r}. Is the tenant spelt right?")
    folder = out_folder or Path(f"export-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    for path in found.write(folder):
        err.print(str(path), highlight=False, soft_wrap=True)
    rows = sum(len(rows) for rows in found.rows.values())
    said = {"events": len(found.events), "rows of source databases": rows, "dead letters": len(found.dead_letters),
            "visitors of theirs": len(found.visitors)}  # fmt: skip
    err.print(", ".join(f"{count:,} {name}" for name, count in said.items() if count), highlight=False)
    _name_shared(found.shared_visitors)
    _tell("Data of others names them, and is not handed over", found.mentions)


class Mentions(StrEnum):
    """What becomes of data of others that names people who are erased."""

    KEEP = "keep"
    REDACT = "redact"
    ASK = "ask"


def erase(
    tenant: Annotated[str, typer.Option(help="the tenant")],
    user: Annotated[list[str], typer.Option(help="the user as events name them; can be repeated")],
    with_journey: Annotated[
        bool, typer.Option("--with-journey", help="the other user ids in their journeys, too: before a login, say")
    ] = False,
    mentions: Annotated[
        Mentions,
        typer.Option(
            envvar="C360_ERASE_MENTIONS",
            help="events of others that name them: keep counts them, redact takes the name out, ask stops before",
        ),
    ] = Mentions.KEEP,
    certificate: Annotated[Path | None, typer.Option(help="file for the certificate")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what is there of them")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase people from every store, keep them out, and prove by a search that nothing of theirs is left."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.core.privacy.audit import Action
    from c360_pipeline.core.privacy.erasure import Person
    from c360_pipeline.stages.privacy.erasure import Erasure

    def keep(issued: Any) -> None:
        path = certificate or Path(f"erasure-{issued.certificate_id}.json")
        path.write_text(json.dumps(issued.as_dict(), indent=2), encoding="utf-8")
        err.print(f"certificate {path}", highlight=False, soft_wrap=True)

    settings = load_settings()
    people, control = [Person.named(tenant, one) for one in user], open_control(settings)
    with control.locks.exclusive_run(), err.status("opening the stores") as shown:
        erasure = Erasure(stores_of(settings), c360_home() / "erasure", lambda what: shown.update(what))
        others = erasure.companions(people)
        if with_journey:
            people += [Person(one.tenant_id, one.user_id) for one in others]
            others = erasure.companions(people)
        shared = erasure.shared_visitors(people)
        if not dry_run:
            if mentions == Mentions.ASK and not erasure.is_under_way():
                _require_no_mention(erasure.mentions(people))
            note_command(control, tenant, Action.ERASED, *(person.user_id for person in people))
            remove_instants(c360_home())  # graphs of earlier instants show them still
            issued = erasure.erase(people, keep, redact=mentions == Mentions.REDACT)
        else:
            searched, named = erasure.look(people)
    if dry_run:
        found = [one.as_dict() for one in searched]
        print_json(found) if as_json else out.print(_searched_table(found))
        _tell("Data of others names them", named)
    else:
        _show(issued, as_json=as_json)
    _name_shared(shared)
    _offer(tenant, others)
    if not dry_run and not issued.is_clean:
        raise typer.Exit(1)


def _require_no_mention(mentions: dict[str, int]) -> None:
    if mentions:
        raise ConfigError(
            f"Data of others names them: {_counted(mentions)}. Say what becomes of it: --mentions keep, or "
            "--mentions redact."
        )


def _verdict(issued: "Certificate") -> str:
    """What is left, and what to do about it."""
    if issued.hits_left:
        where = ", ".join(f"{store} ({hits:,})" for store, hits in issued.hits_left.items())
        return f"SOMETHING IS LEFT in {where}: `left_in` of the certificate says where. Erase again."
    if issued.findings:
        what = ", ".join(f"{entity} ({count:,})" for entity, count in issued.differing.items())
        return (
            f"Nothing of theirs is left, but graph and archive of their tenant differ: {what}. "
            "Repair with `c360 reconcile --repair`, and erase again for a certificate that proves it."
        )
    return "Nothing of theirs is left."


def _show(issued: "Certificate", *, as_json: bool) -> None:
    """What an erasure did."""
    if as_json:
        print_json(issued.as_dict())
        return
    out.print(_certificate_table(issued.stores))
    out.print(_verdict(issued), highlight=False, soft_wrap=True)
    if issued.visitors:
        said = "what they did before they were known is erased, too"
        err.print(f"Visitors that were theirs alone: {issued.visitors:,}; {said}.", highlight=False, soft_wrap=True)
    _tell("Data of others names them, and stays", issued.mentions)
    if issued.redacted:
        err.print(f"Their name was taken out of {issued.redacted:,} events of others.", highlight=False)


def _tell(what: str, mentions: dict[str, int]) -> None:
    if mentions:
        err.print(f"{what}: {_counted(mentions)}.", highlight=False, soft_wrap=True)


def _counted(mentions: dict[str, int]) -> str:
    return ", ".join(f"{count:,} rows of {table}" for table, count in mentions.items())


def _name_shared(visitors: list[str]) -> None:
    """Say which devices they share with others: what nobody known did there stays, but for visits of theirs alone."""
    if visitors:
        named = ", ".join(visitors[:SHOWN]) + (", …" if len(visitors) > SHOWN else "")
        err.print(
            f"Visitors that others were named with, too ({len(visitors):,}), whose other visits stay: {named}",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip


def _offer(tenant: str, others: "list[Companion]") -> None:
    """Say which other ids were in the journeys of people who are erased: only now this can be told."""
    if not others:
        return
    err.print(f"Other user ids in their journeys, which stay ({len(others):,}):", highlight=False)
    for one in others[:SHOWN]:
        err.print(f"  {one.user_id}: {one.events:,} events", highlight=False, soft_wrap=True, markup=False)
    named = " ".join(f"--user {shlex.quote(one.user_id)}" for one in others[:SHOWN])
    err.print(
        f"If these are the same people: c360 erase --tenant {shlex.quote(tenant)} {named}",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


def _searched_table(found: list[dict[str, Any]]) -> Table:
    table = Table("store", "searched", "hits", "such as")
    for one in found:
        table.add_row(
            one["store"], f"{one['searched']:,} {one['what']}", f"{one['hits']:,}", "".join(one["places"][:1])
        )
    return table


def _certificate_table(stores: list[dict[str, Any]]) -> Table:
    table = Table("store", "searched", "hits before", "hits after")
    for one in stores:
        searched = f"{one['searched']:,} {one['what']}"
        table.add_row(one["store"], searched, f"{one['hits_before']:,}", f"{one['hits_after']:,}")
    return table


def retain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what has expired")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what is older than `retention_rules` say, views after a year by default, from archive and graph."""
    from c360_pipeline.connections import open_bucket, open_control, open_graph, open_lake
    from c360_pipeline.stages.privacy.retention import find_expired
    from c360_pipeline.stages.privacy.retention import retain as carry_out

    settings, now = load_settings(), datetime.now(UTC)
    control, lake = open_control(settings), open_lake(settings)
    control.identifiers.require_no_rotation()
    with control.locks.exclusive_run(), err.status("looking for what has expired") as shown:
        if dry_run:
            found = find_expired(lake, control.privacy.retention_rules(), now)
        else:
            with open_graph(settings) as graph:
                found = carry_out(
                    lake, open_bucket(settings), control, graph, now, lambda what: shown.update(what),
                    _opens_user_events(settings),
                )  # fmt: skip
    if as_json:
        print_json({"dry_run": dry_run, "events": found.events.to_dicts(), "dead_letters": found.letters.to_dicts()})
        return
    for tenant, action, count in found.events.iter_rows():
        out.print(f"{tenant} {action}: {count:,} events", highlight=False)
    for error_class, count in found.letters.iter_rows():
        out.print(f"{error_class}: {count:,} dead letters", highlight=False)
    total = sum(found.events["len"]) + sum(found.letters["len"])
    err.print(f"{total:,} {'have expired' if dry_run else 'removed'}", highlight=False)
