"""`c360 api` and `c360 api-keys …`: serving, and who may ask."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from c360_pipeline.streaming.lag import StreamSeen

keys_app = typer.Typer(help="Keys of the API: each belongs to one tenant and has one role.", no_args_is_help=True)
GRACE_SECONDS = 15


def api(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port")] = 8000,
) -> None:
    """Serve the API and the pages for people, until Ctrl-C; what was taken by then is stored before it ends."""
    import uvicorn

    from c360_pipeline.connections import open_control, open_graph, open_lake, open_landing
    from c360_pipeline.serving.app import create_app
    from c360_pipeline.serving.backend import Backend

    settings = load_settings()
    with open_graph(settings) as graph:
        stores = open_lake(settings), open_landing(settings), open_control(settings)
        backend = Backend(graph, *stores, stream=_stream_of(settings))
        err.print(f"http://{host}:{port}/app for people, http://{host}:{port}/docs for programs")
        uvicorn.run(
            create_app(backend, settings.api_rate), host=host, port=port, log_level="warning", access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )  # fmt: skip


def _stream_of(settings: Settings) -> "Callable[[str], StreamSeen] | None":
    """What looks at the real-time path; None where there is none."""
    if settings.kafka_bootstrap_servers is None or settings.flink_rest_url is None:
        return None
    from c360_pipeline.streaming.lag import seen_by

    return partial(seen_by, settings)


@keys_app.command()
def create(
    tenant: Annotated[str, typer.Option(help="whose data it opens")],
    role: Annotated[str, typer.Option(help="ingest, read or admin")] = "read",
    note: Annotated[str, typer.Option(help="who has it")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once: only its digest is kept."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.stores.postgres.api_keys import ROLES, ApiKeys

    if role not in ROLES or not tenant.strip():
        raise ConfigError(f"--role {role!r}: {', '.join(ROLES)} are right; --tenant must be named.")
    key, made = ApiKeys(open_control(load_settings()).login).add(tenant, role, note)
    if as_json:
        print_json({"key": key, "key_id": made.key_id, "tenant_id": tenant, "role": role})
    else:
        out.print(key, highlight=False, soft_wrap=True)


@keys_app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Every key, without what it is recognised by."""
    from dataclasses import asdict

    from c360_pipeline.connections import open_control
    from c360_pipeline.stores.postgres.api_keys import ApiKeys

    found = ApiKeys(open_control(load_settings()).login).all()
    if as_json:
        shown = [asdict(k) for k in found]
        print_json([{**k, "created_at": str(k["created_at"]), "revoked_at": str(k["revoked_at"] or "")} for k in shown])
        return
    table = Table("id", "tenant", "role", "note", "made", "revoked")
    for k in found:
        revoked = f"{k.revoked_at:%Y-%m-%d %H:%M}" if k.revoked_at else ""
        table.add_row(str(k.key_id), k.tenant_id, k.role, k.note, f"{k.created_at:%Y-%m-%d %H:%M}", revoked)
    out.print(table)


@keys_app.command()
def revoke(key_id: int) -> None:
    """Revoke an API key, within ten seconds."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.stores.postgres.api_keys import ApiKeys

    if not ApiKeys(open_control(load_settings()).login).revoke(key_id):
        raise ConfigError(f"There is no key {key_id} that opens anything; `c360 api-keys list` says which there are.")
    err.print(f"API key {key_id} is revoked.")
