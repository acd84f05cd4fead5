"""`c360 api` and `c360 api-keys …`: serving, and who may ask."""

import resource
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from c360_pipeline.cli.audit import note_command
from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import Settings, load_settings, serving_address

if TYPE_CHECKING:
    from c360_pipeline.stores.postgres.api_keys import ApiKey, ApiKeys
    from c360_pipeline.streaming.lag import StreamSeen

Days = Annotated[int, typer.Option(min=0, help="until it expires; 0 for never")]
keys_app = typer.Typer(help="Keys of the API: each belongs to one tenant and has one role.", no_args_is_help=True)
SWITCH_SECONDS = 0.0005
"""A thread that read from a store waits as long for the interpreter; by default it is ten times that, at each read."""
GRACE_SECONDS = 15
FILES_OF_OUR_OWN = 200
"""Files and connections to stores that the API has open beside those of its clients."""


def api(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port")] = 8000,
) -> None:
    """Serve the API and the pages for people, until Ctrl-C; what was taken by then is stored before it ends."""
    import uvicorn

    from c360_pipeline.connections import open_control, open_graph, open_lake, open_landing
    from c360_pipeline.serving.app import create_app
    from c360_pipeline.serving.backend import Backend
    from c360_pipeline.serving.connections import limited_to
    from c360_pipeline.serving.sign_in import SignIn, provider_of

    settings = load_settings()
    provider = provider_of(settings, serving_address())
    sys.setswitchinterval(SWITCH_SECONDS)
    with open_graph(settings) as graph:
        stores = open_lake(settings), open_landing(settings), open_control(settings)
        backend = Backend(graph, *stores, stream=_stream_of(settings))
        err.print(f"http://{host}:{port}/app for people, http://{host}:{port}/docs for programs")
        app = create_app(backend, settings.api_rate, SignIn(provider) if provider else None)
        uvicorn.run(
            app, host=host, port=port, log_level="warning", access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS, http=limited_to(_places(settings.api_connections)), ws="none",
        )  # fmt: skip


def _places(wanted: int) -> int:
    """How many connections there can be: as many as wanted, or as the system lets this process open files for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + FILES_OF_OUR_OWN
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            err.print(f"{soft - FILES_OF_OUR_OWN:,} connections at most, not {wanted:,}: `ulimit -n` is {hard:,}.")
            return max(soft - FILES_OF_OUR_OWN, 1)
    return wanted


def _stream_of(settings: Settings) -> "Callable[[str], StreamSeen] | None":
    """What looks at the real-time path; None where there is none."""
    if settings.kafka_bootstrap_servers is None or settings.flink_rest_url is None:
        return None
    from c360_pipeline.streaming.lag import seen_by

    return partial(seen_by, settings)


@keys_app.command()
def create(
    tenant: Annotated[str, typer.Option(help="whose data it opens")],
    role: Annotated[str, typer.Option(help="ingest, viewer, analyst, operator, privacy or admin")] = "viewer",
    note: Annotated[str, typer.Option(help="who has it")] = "",
    days: Days = 365,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once: only its digest is kept.

    ingest tracks events. viewer reads, analyst makes audiences as well, operator undoes what links customers, privacy
    reads the audit log. admin may do all of it.
    """
    from c360_pipeline.connections import open_control
    from c360_pipeline.core.privacy.audit import Action
    from c360_pipeline.core.privacy.roles import NAMED_ROLES, ROLES
    from c360_pipeline.stores.postgres.api_keys import ApiKeys

    if role not in ROLES or not tenant.strip():
        raise ConfigError(f"--role {role!r}: {', '.join(NAMED_ROLES)} are right; --tenant must be named.")
    control = open_control(load_settings())
    note_command(control, tenant, Action.MADE_KEY, what=role)
    _print_once(*ApiKeys(control.login).add(tenant, role, note, days or None), as_json=as_json)


@keys_app.command()
def rotate(
    key_id: int,
    grace_hours: Annotated[int, typer.Option(min=0, help="for so long the old key opens still")] = 24,
    days: Days = 365,
    as_json: AsJson = False,
) -> None:
    """Make a key that stands in for another, and print it, once; the old one expires after a while."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.core.privacy.audit import Action
    from c360_pipeline.stores.postgres.api_keys import ApiKeys

    control = open_control(load_settings())
    keys = ApiKeys(control.login)
    before = _valid_key(keys, key_id)
    note_command(control, before.tenant_id, Action.MADE_KEY, what=f"{before.role}, in the place of key {key_id}")
    made = keys.rotate(key_id, grace_hours, days or None)
    if made is None:
        raise _no_such_key(key_id)
    _print_once(*made, as_json=as_json)


def _valid_key(keys: "ApiKeys", key_id: int) -> "ApiKey":
    """A key that is not revoked.

    Raises:
        ConfigError: there is none of this number.
    """
    found = next((one for one in keys.all() if one.key_id == key_id and one.revoked_at is None), None)
    if found is None:
        raise _no_such_key(key_id)
    return found


def _no_such_key(key_id: int) -> ConfigError:
    return ConfigError(f"There is no key {key_id} that opens anything; `c360 api-keys list` says which there are.")


def _print_once(key: str, made: "ApiKey", *, as_json: bool) -> None:
    """The key alone, so that a script can take it; when it expires goes to the error stream."""
    expires = f"{made.expires_at:%Y-%m-%d %H:%M}" if made.expires_at else ""
    if as_json:
        print_json({"key": key, "key_id": made.key_id, "tenant_id": made.tenant_id, "role": made.role,
                    "expires_at": str(made.expires_at or "")})  # fmt: skip
        return
    out.print(key, highlight=False, soft_wrap=True)
    if expires:
        err.print(f"It expires on {expires} UTC: `c360 api-keys rotate {made.key_id}` makes the next.", highlight=False)


@keys_app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Every key, without what it is recognised by."""
    from dataclasses import asdict

    from c360_pipeline.connections import open_control
    from c360_pipeline.stores.postgres.api_keys import ApiKeys

    found = ApiKeys(open_control(load_settings()).login).all()
    if as_json:
        moments = ("created_at", "revoked_at", "expires_at")
        print_json([{**asdict(k), **{name: str(getattr(k, name) or "") for name in moments}} for k in found])
        return
    table = Table("id", "tenant", "role", "note", "made", "expires", "revoked")
    for k in found:
        shown = [f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (k.created_at, k.expires_at, k.revoked_at)]
        table.add_row(str(k.key_id), k.tenant_id, k.role, k.note, *shown)
    out.print(table)


@keys_app.command()
def revoke(key_id: int) -> None:
    """Revoke an API key, within ten seconds."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.core.privacy.audit import Action
    from c360_pipeline.stores.postgres.api_keys import ApiKeys

    control = open_control(load_settings())
    keys = ApiKeys(control.login)
    note_command(control, _valid_key(keys, key_id).tenant_id, Action.REVOKED_KEY, what=f"key {key_id}")
    if not keys.revoke(key_id):
        raise _no_such_key(key_id)
    err.print(f"API key {key_id} is revoked.")


@keys_app.command("end-sessions")
def end_sessions(
    person: Annotated[str | None, typer.Option(help="as the audit log names them; all where it is left out")] = None,
) -> None:
    """End sessions of people who signed in to the pages with their own account, within ten seconds."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.core.privacy.audit import Action
    from c360_pipeline.stores.postgres.api_keys import ApiKeys

    control = open_control(load_settings())
    keys, wanted = ApiKeys(control.login), person.removeprefix("person ") if person else None
    people = keys.people_in_session(wanted)
    if not people:
        raise ConfigError("Nobody who signed in has a session" + (f" as {person!r}" if person else "") + ".")
    for tenant_id, name in people:
        note_command(control, tenant_id, Action.ENDED_SESSIONS, what=f"person {name}")
    err.print(f"{keys.end_sessions(wanted):,} sessions are ended.", highlight=False)
