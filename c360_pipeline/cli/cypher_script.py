"""`c360 cypher-script …`: the scripts that rebuild the silos' part of the graph in an empty database."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from c360_pipeline.cli.output import AsJson, err, local_folder, out, print_json
from c360_pipeline.errors import ConfigError, InvariantError
from c360_pipeline.settings import Settings, load_settings, operator_secret
from c360_pipeline.stores.local.scratch import scratch_folder
from c360_pipeline.stores.s3.bucket import file_sha256

cypher_script_app = typer.Typer(help="Scripts that rebuild the silos' part of the graph.", no_args_is_help=True)
ScriptId = Annotated[int | None, typer.Argument(help="its id, as `list` shows it; the newest if not given")]


@cypher_script_app.command("list")
def list_scripts(as_json: AsJson = False) -> None:
    """Show the registered scripts, the newest first."""
    from c360_pipeline.connections import open_control

    scripts = open_control(load_settings()).runs.scripts()
    if as_json:
        print_json(scripts)
        return
    if not scripts:
        err.print("No script is registered yet: `c360 run` writes one after each run in which silos changed.")
        return
    table = Table("id", "written", "statements", "sha256", "file")
    for row in scripts:
        table.add_row(
            str(row["script_id"]), f"{row['created_at']:%Y-%m-%d %H:%M:%S}", f"{row['statements']:,}",
            row["sha256"][:16], row["file_name"],
        )  # fmt: skip
    out.print(table)


@cypher_script_app.command("get")
def get_script(
    script_id: ScriptId = None,
    out_: Annotated[Path | None, typer.Option("--out", help="file; standard output if not given")] = None,
) -> None:
    """Write a script to a file or to standard output, once its sha256 was found to be the registered one."""
    settings = load_settings()
    with scratch_folder() as scratch:
        path = _fetched(settings, script_id, scratch)
        if out_ is None:
            with path.open("rb") as file:
                while piece := file.read(1024 * 1024):
                    typer.get_binary_stream("stdout").write(piece)
            return
        shutil.copyfile(path, local_folder(out_))
    err.print(f"{out_}: {out_.stat().st_size:,} bytes", highlight=False)


@cypher_script_app.command("run")
def run_script(
    uri: Annotated[str, typer.Option(help="address of an empty database, bolt://host:port")],
    script_id: ScriptId = None,
    user: Annotated[str, typer.Option(help="its login")] = "neo4j",
    password_ref: Annotated[
        str, typer.Option(help="where its password is: env:NAME or file:/path")
    ] = "env:C360_SCRIPT_PASSWORD",  # noqa: S107 - where it is, not what it is
    database: Annotated[str, typer.Option(help="its name on the server")] = "neo4j",
) -> None:
    """Run a script in an empty database; what is there once it stopped half-way is completed by running it again."""
    from c360_pipeline.stages.recovery.cypher_script import run_script as carry_out
    from c360_pipeline.stores.neo4j.graph import Graph

    settings = load_settings()
    with (
        scratch_folder() as scratch,
        Graph(uri, user, operator_secret(password_ref).get_secret_value(), database) as graph,
        err.status("fetching") as shown,
    ):
        path = _fetched(settings, script_id, scratch)
        done = carry_out(path, file_sha256(path), graph, lambda number: shown.update(f"{number:,} statements"))
    err.print(f"{done:,} statements were run at {uri}.", highlight=False)


def _fetched(settings: Settings, script_id: int | None, folder: Path) -> Path:
    """A registered script as a file, proved to be what was registered."""
    from c360_pipeline.connections import open_bucket, open_control

    scripts = open_control(settings).runs.scripts()
    row = next((one for one in scripts if script_id in (None, one["script_id"])), None)
    if row is None:
        named = "" if script_id is None else f" {script_id}"
        raise ConfigError(f"There is no script{named}: `c360 cypher-script list` shows them, `c360 run` writes them.")
    bucket = open_bucket(settings)
    key = str(row["file_name"]).removeprefix(f"s3://{bucket.name}/")
    if not bucket.has(key):
        raise ConfigError(f"{row['file_name']} is gone: `c360 run --select cypher_script` writes the newest again.")
    path = folder / "script.cypher"
    with path.open("wb") as file:
        for piece in bucket.pieces(key):
            file.write(piece)
    if (found := file_sha256(path)) != row["sha256"]:
        raise InvariantError(f"{row['file_name']} has the sha256 {found}, and {row['sha256']} was registered.")
    return path
