"""`c360 …`: what there is to do, each command a few lines over the module that does it.

Exit codes: 0 done; 1 the work found something wrong; 2 bad usage or input; 3 a service can't be reached.
"""

import os
import shlex
import signal
import socket
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from c360_pipeline.cli.api import api, keys_app
from c360_pipeline.cli.audiences import audiences_app
from c360_pipeline.cli.audit import audit
from c360_pipeline.cli.backup import backup, restore
from c360_pipeline.cli.cypher_script import cypher_script_app
from c360_pipeline.cli.dead_letters import letters_app
from c360_pipeline.cli.doctor import doctor
from c360_pipeline.cli.graph import diff, digest, dump, load, rebuild, reconcile
from c360_pipeline.cli.insights import show_insights
from c360_pipeline.cli.journey import journey_app
from c360_pipeline.cli.keys import identifier_keys_app
from c360_pipeline.cli.metrics import metrics
from c360_pipeline.cli.output import AsJson, RunProgress, ServiceProgress, as_date, err, out, print_json
from c360_pipeline.cli.privacy import erase, export, retain
from c360_pipeline.cli.projections import graph_projection_app
from c360_pipeline.cli.query import query
from c360_pipeline.cli.silos import clear_database, grants, plan
from c360_pipeline.cli.sources import sources_app
from c360_pipeline.cli.stream import stream_app
from c360_pipeline.cli.suppress import suppress_app
from c360_pipeline.cli.visitor import visitor_app
from c360_pipeline.errors import C360Error, ConfigError, ConflictError, UnavailableError, named
from c360_pipeline.logs import configure_logging, slow_statements_told
from c360_pipeline.settings import c360_home, load_settings, logs_are_json, merged_environment, project_path

app = typer.Typer(
    help="One graph per customer, provably equal to its archive.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(journey_app, name="journey")
app.add_typer(visitor_app, name="visitor")
app.add_typer(letters_app, name="dead-letters")
app.add_typer(suppress_app, name="suppress")
app.add_typer(keys_app, name="api-keys")
app.add_typer(identifier_keys_app, name="keys")
app.add_typer(stream_app, name="stream")
app.add_typer(cypher_script_app, name="cypher-script")
app.add_typer(graph_projection_app, name="graph-projection")
app.add_typer(sources_app, name="sources")
app.add_typer(audiences_app, name="audiences")
app.command()(api)
app.command()(doctor)
app.command()(plan)
app.command()(grants)
app.command()(clear_database)
app.command()(query)
app.command("insights")(show_insights)
app.command()(metrics)
app.command()(audit)
for command in (reconcile, rebuild, diff, digest, dump, load, backup, restore, export, erase, retain):
    app.command()(command)

CONNECTION_NAMES = ("NEO4J_", "ETL_DB_", "AWS_", "C360_", "KAFKA_", "CASSANDRA_", "FLINK_")


def main() -> None:
    """Run the command line; errors that we raise on purpose become one line on stderr and an exit code."""
    os.umask(0o077)  # what is written is about customers
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name != "c360_pipeline.devstack":
            raise
        err.print(
            "error: this command needs the embedded services or the sample data: `pip install c360-pipeline-devstack`. "
            "Whatever works on servers of your own (see .env.example) does without.", soft_wrap=True,
        )  # fmt: skip
        sys.exit(2)
    except C360Error as error:
        err.print(f"error: {error}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("stopped")
        sys.exit(130)
    except Exception as error:
        found = named(error)
        if found is None:
            raise
        err.print(f"error: {found}", highlight=False, soft_wrap=True)
        sys.exit(found.exit_code)
    finally:
        if told := slow_statements_told():
            err.print(told, soft_wrap=True)


@app.callback()
def _logs() -> None:
    # Here and not in `main`, for who calls `app` from a process of their own: stdout is for what a command answers.
    configure_logging(as_json=logs_are_json(), slow_statements=c360_home() / "logs" / "slow-statements.log")


@app.command()
def up(
    streaming: Annotated[bool, typer.Option("--streaming", help="Kafka, Cassandra and Flink, too")] = False,
) -> None:
    """Start the embedded Postgres, S3 and Neo4j, and leave them running."""
    from c360_pipeline.devstack import silo_samples, stack
    from c360_pipeline.devstack.services import PREFERRED_PORTS, STREAMING_PORTS
    from c360_pipeline.settings import postgres_login

    with ServiceProgress() as progress:
        started = stack.up(
            c360_home(), progress, ports=PREFERRED_PORTS | STREAMING_PORTS if streaming else PREFERRED_PORTS
        )
    if streaming and not STREAMING_PORTS.keys() <= {s.service for s in stack.status(c360_home())}:
        raise ConfigError("The services run without the real-time path: `c360 down`, then `c360 up --streaming`.")
    err.print("All services are ready." if started else "All services were running already.")
    settings = load_settings()
    if moved := silo_samples.follow_server(postgres_login(settings, settings.etl_db_name)):
        err.print(f"{moved} sample databases are read at Postgres' new port.")
    _print_status(as_json=False)


@app.command()
def down() -> None:
    """Stop the embedded services and the UI of a demo, their data stays; graphs of earlier instants go."""
    from c360_pipeline.devstack import stack, web
    from c360_pipeline.devstack.rebuild import remove_instants

    servers = [web.stop(server, c360_home()) for server in web.SERVERS]
    stopped = [*servers, remove_instants(c360_home()), stack.down(c360_home())]
    err.print("Stopped." if any(stopped) else "Nothing was running.")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show each embedded service with port, process, memory and version."""
    if not _print_status(as_json=as_json):
        raise typer.Exit(3)


def _print_status(*, as_json: bool) -> bool:
    from c360_pipeline.devstack import stack

    services = stack.status(c360_home())
    if as_json:
        print_json([s.as_dict() for s in services])
    elif not services:
        err.print("No embedded service runs. Start them with `c360 up`.")
    else:
        table = Table("service", "state", "address", "pid", "memory", "version")
        for s in services:
            memory = f"{s.memory_bytes / 2**20:,.0f} MiB"
            table.add_row(s.service, s.state, f"127.0.0.1:{s.port}", str(s.pid), memory, s.version)
        out.print(table)
        if any(s.service == "postgres" and s.state == "ready" for s in services):
            _tell_unfinished_erasure()
    return bool(services) and all(s.state == "ready" for s in services)


def _tell_unfinished_erasure() -> None:
    """Say that an erasure has not ended, and the way out: files of these people wait for it."""
    from c360_pipeline.connections import open_control

    try:
        found = open_control(load_settings()).privacy.unfinished_erasure()
    except (ConflictError, ConfigError, UnavailableError) as error:
        err.print(str(error), highlight=False, soft_wrap=True)
    else:
        if found:
            err.print(str(found), highlight=False, soft_wrap=True)


def _compile_scanner() -> None:
    """Read a line of nothing, as an event and as a record of a source."""
    from c360_pipeline.core.landing.decode import decode, decode_records
    from c360_pipeline.core.landing.lines import Delivery, LineBlock
    from c360_pipeline.core.sources.location import Location
    from c360_pipeline.core.sources.records import Framing
    from c360_pipeline.core.sources.source import Source
    from c360_pipeline.stages.sources.presets import compiled

    block, now = LineBlock(Delivery("", ""), 1, 0, b"{}\n"), datetime.now(UTC)
    decode(block, now)
    mapping = compiled({"extends": "segment@1", "tenant": {"const": "none"}}, "none", 1)
    decode_records(block, now, Source("none", Location("s3://none/*"), Framing(), mapping))


@app.command()
def install(
    spark: Annotated[bool, typer.Option("--spark", help="the jars by which Spark reaches S3; prints where")] = False,
) -> None:
    """Fetch the programs of the embedded services: Neo4j and GDS (Maven), the S3 gateway (Go); compile the scanner."""
    if spark:
        from c360_pipeline.devstack.distributions import install_spark_jars

        with err.status("looking for the jars of Spark") as shown:
            out.print(f"C360_SPARK_JARS={install_spark_jars(lambda line: shown.update(line[:100]))}", soft_wrap=True)
        return
    from c360_pipeline.devstack.class_archive import make_class_archive
    from c360_pipeline.devstack.distributions import install as fetch
    from c360_pipeline.devstack.doctor import require

    require()
    with err.status("looking for the programs of the embedded services") as shown:
        fetch(lambda line: shown.update(line[:100]))
        made = make_class_archive(lambda line: shown.update(line[:100]))
        shown.update("compiling the scanner of events and records")
        try:
            _compile_scanner()
        except Exception as error:
            # An install does not fail by it.
            err.print(f"The scanner was not compiled ahead ({type(error).__name__}): the first run does it, a minute.")
    if not made:
        err.print("Neo4j starts without an archive of its classes, some seconds later. `c360 install` tries again.")


@app.command()
def env(as_json: AsJson = False) -> None:
    r"""Print the connection settings as environment variables: eval "$(c360 env)"."""
    load_settings()
    found = {k: v for k, v in merged_environment(c360_home()).items() if k.startswith(CONNECTION_NAMES)}
    if as_json:
        print_json(found)
    else:
        sys.stdout.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(found.items()))


@app.command()
def seed(
    source: Annotated[str, typer.Option(help="sample or movielens")] = "sample",
) -> None:
    """Create and fill the sample source databases and the control database."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.devstack import silo_samples
    from c360_pipeline.settings import postgres_login

    settings = load_settings()
    login = postgres_login(settings, settings.etl_db_name)
    silo_samples.seed(login, open_control(settings), source, lambda line: err.print(line, highlight=False))


@app.command()
def generate(
    out_: Annotated[str, typer.Option("--out", help="a folder, s3://bucket/prefix/, or kafka://")],
    events: Annotated[int, typer.Option(help="good events")] = 20_000,
    tenants: Annotated[int, typer.Option(help="customer organisations")] = 3,
    seed_: Annotated[int, typer.Option("--seed", help="equal seeds give equal files")] = 1,
    malformed_rate: Annotated[float, typer.Option(help="broken lines per good event")] = 0.02,
    duplicate_rate: Annotated[float, typer.Option(help="repeated lines per good event")] = 0.03,
    late_rate: Annotated[float, typer.Option(help="share of events that arrive late")] = 0.01,
    source: Annotated[str, typer.Option("--from", help="sample, movielens or planted")] = "sample",
    rate: Annotated[float | None, typer.Option(help="messages a second into Kafka")] = None,
) -> None:
    """Write realistic events, a catalogue, and the truth about every line."""
    from c360_pipeline.devstack.event_samples import SampleRequest

    request = SampleRequest(events, tenants, seed_, malformed_rate, duplicate_rate, late_rate)
    with tempfile.TemporaryDirectory() as scratch:
        is_remote = out_.startswith(("s3://", "kafka://"))
        if not is_remote and "://" in out_:
            raise ConfigError(f"--out {out_!r}: a folder, s3://bucket/prefix/ or kafka:// is right.")
        counts = _write_sample(source, request, Path(scratch) if is_remote else Path(out_))
        if out_.startswith("s3://"):
            _upload(sorted(Path(scratch).iterdir()), out_)
        elif is_remote:
            from c360_pipeline.cli.stream import send_files

            send_files(sorted(Path(scratch).glob("*.jsonl*")), rate)
    err.print(f"{out_}: " + ", ".join(f"{number:,} {kind}" for kind, number in counts.items()), highlight=False)


def _write_sample(source: str, request: Any, folder: Path) -> dict[str, int]:
    from c360_pipeline.devstack.event_samples import write_sample
    from c360_pipeline.devstack.movielens import write_movielens
    from c360_pipeline.devstack.planted_samples import write_planted

    if source not in ("sample", "movielens", "planted"):
        raise ConfigError(f"--from {source!r}: sample, movielens or planted is right.")
    with err.status("writing events") as shown:

        def report(lines: int) -> None:
            shown.update(f"{lines:,} lines written")

        if source == "movielens":
            return write_movielens(folder, report).counts
        if source == "planted":
            return write_planted(folder, request.events, request.tenants, request.seed, report).counts
        return write_sample(request, folder, report).counts


def _upload(paths: list[Path], address: str) -> None:
    from c360_pipeline.connections import open_landing

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    folder = prefix if not prefix or prefix.endswith("/") else prefix + "/"
    landing = open_landing(load_settings().model_copy(update={"bucket": bucket}))
    for path in paths:
        landing.put_file(path, folder)


@app.command()
def land(
    paths: Annotated[list[Path], typer.Argument(help="event files, catalogues, or folders of them")],
    day: Annotated[
        str | None, typer.Option("--date", help="landing date, YYYY-MM-DD; that of a file that is corrected")
    ] = None,
) -> None:
    """Upload files to the landing area, where the next run takes them up.

    A name that is taken by other content gets another one, unless a row of overwrite_rules says that it is replaced.
    """
    from c360_pipeline.connections import open_control, open_landing
    from c360_pipeline.stores.s3.landing import EVENTS_PREFIX, folder_for

    files = landing_candidates(paths)
    settings = load_settings()
    landing = open_landing(settings)
    rules = open_control(settings).overwrite_rules()
    arrived = as_date(day, "--date") if day else datetime.now(UTC).date()
    for path in files:
        folder = folder_for(path, arrived)
        overwrite = rules.replaces(f"{folder}{path.name}".removeprefix(EVENTS_PREFIX))
        err.print(landing.put_file(path, folder, overwrite=overwrite), highlight=False)


def landing_candidates(paths: list[Path]) -> list[Path]:
    """The files to land: those named, and of folders those that landing reads.

    Raises:
        ConfigError: a path that does not exist or can't be landed.
    """
    from c360_pipeline.stores.s3.landing import is_landable

    files: list[Path] = []
    for path in paths:
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        usable = [f for f in found if f.is_file() and is_landable(f, is_named=f == path)]
        if not usable:
            raise ConfigError(
                f"{path}: there is nothing to land; *.jsonl, *.ndjson and *.json (also packed, as .gz, .zst or .zip) "
                "and *.csv are."
            )
        files += usable
    return files


@app.command()
def run(
    select: Annotated[
        str, typer.Option(help="assets, with commas between them or in Dagster's selection syntax")
    ] = "*",
    partition: Annotated[str | None, typer.Option(help="land this date's files, again if they landed before")] = None,
    force_removal: Annotated[bool, typer.Option("--force-removal", help="let more than 5 % of a label go")] = False,
    as_json: AsJson = False,
) -> None:
    """Materialise assets through Dagster and run their checks."""
    from c360_pipeline.runs import materialise

    with RunProgress() as progress:
        outcome = materialise(c360_home(), select, partition, progress, force_removal=force_removal)
    if as_json:
        print_json(
            {
                "run_id": outcome.run_id,
                "succeeded": outcome.succeeded,
                "rows": outcome.rows,
                "failed_checks": outcome.failed_checks,
                "warned_checks": outcome.warned_checks,
                "reasons": outcome.reasons,
                "summary": outcome.summary,
                "error": outcome.error,
            }
        )
    report_outcome(outcome)
    raise typer.Exit(outcome.exit_code)


def report_outcome(outcome: Any) -> None:
    """Say on stderr how a run ended."""
    for check in outcome.failed_checks:
        err.print(f"check failed: {check}", highlight=False)
    for reason in outcome.reasons:
        err.print(f"  {reason}", highlight=False, markup=False)
    for check in outcome.warned_checks:
        err.print(f"warning: {check}", highlight=False)
    if outcome.error:
        err.print(f"error: {outcome.error}", highlight=False)
    for line in outcome.summary:
        err.print(line, highlight=False, markup=False)
    err.print(f"run {outcome.run_id} {'succeeded' if outcome.succeeded else 'failed'}", highlight=False)


@app.command()
def dev(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port of the UI")] = 3000,
) -> None:
    """Open the Dagster UI with its daemon, on the same instance as `c360 run`."""
    from c360_pipeline.runs import close_abandoned_runs, dagster_home, instance

    require_free(host, port)
    with instance(c360_home()) as dagster:
        close_abandoned_runs(dagster)
    environment = {**os.environ, "DAGSTER_HOME": str(dagster_home(c360_home())), "C360_HOME": str(c360_home())}
    arguments = ["dev", "-w", str(project_path("workspace.yaml")), "-h", host, "-p", str(port)]
    # In the background of a script SIGINT is ignored, and Dagster would take that over for SIGTERM, too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execve(Path(sys.executable).parent / "dagster", ["dagster", *arguments], environment)  # noqa: S606


def require_free(host: str, port: int) -> None:
    """Go on only where a server can listen.

    Raises:
        ConfigError: something else listens there, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"Port {port} of {host} can't be used ({error.strerror}). Choose another with --port."
            ) from None


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="sample or movielens")] = "sample",
    keep: Annotated[bool, typer.Option(help="leave services and UI running")] = False,
) -> None:
    """Start everything, load a sample, run all assets and print what came of it."""
    from c360_pipeline.demo import Demo

    Demo(data, out, ServiceProgress, RunProgress).show(keep=keep)
