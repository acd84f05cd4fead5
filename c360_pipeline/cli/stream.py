"""`c360 stream …`: the real-time path."""

import gzip
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from c360_pipeline.cli.output import AsJson, as_date, err, out, print_json
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import Settings, c360_home, load_settings

if TYPE_CHECKING:
    from c360_pipeline.streaming.cluster import StreamStatus

stream_app = typer.Typer(help="The real-time path: Kafka, Flink, Cassandra.", no_args_is_help=True)
SINK_NAMES = ("neo4j", "cassandra", "s3")


@stream_app.command()
def start(
    sink: Annotated[list[str] | None, typer.Option(help="neo4j, cassandra or s3; all of them if not said")] = None,
) -> None:
    """Start the job where the last one ended, and wait until it runs; does nothing where it runs."""
    sinks = sink or list(SINK_NAMES)
    if wrong := [name for name in sinks if name not in SINK_NAMES]:
        raise ConfigError(f"--sink {wrong[0]!r}: {', '.join(SINK_NAMES)} are right.")
    with err.status("handing the job over") as shown:
        seen = start_job(c360_home(), load_settings(), sinks, shown.update)
    err.print(f"job {seen.job_id} runs: {seen.address}", highlight=False)


def start_job(home: Path, settings: Settings, sinks: Sequence[str], report: Callable[[str], None]) -> "StreamStatus":
    """Start the job on the cluster of the settings, and wait until it runs."""
    from c360_pipeline.connections import open_control, open_graph
    from c360_pipeline.devstack.distributions import flink_home, flink_jars
    from c360_pipeline.devstack.streaming_services import flink_variables
    from c360_pipeline.streaming.cluster import StreamCluster

    # Where there is no secret of identifiers yet, one is made here, and not by a worker of the cluster.
    open_control(settings).identifiers.current()
    with open_graph(settings) as graph:
        graph.schema.apply()
    cluster = StreamCluster(settings)
    connector = next(flink_jars().glob("flink-sql-connector-kafka-*.jar"))
    job = cluster.start(flink_home(), flink_variables(home), sinks, connector, report)
    report("waiting until it runs")
    cluster.wait_until_running(job)
    return cluster.status()


@stream_app.command()
def stop() -> None:
    """Stop the job with a savepoint, from which the next one begins."""
    from c360_pipeline.streaming.cluster import StreamCluster

    with err.status("making a savepoint"):
        location = StreamCluster(load_settings()).stop()
    err.print(f"stopped, with {location}" if location else "No job runs.", highlight=False)


@stream_app.command()
def status(as_json: AsJson = False) -> None:
    """Show the job, its lag, its newest checkpoint and what its operators counted."""
    from c360_pipeline.streaming.cluster import StreamCluster

    seen = StreamCluster(load_settings()).status()
    if as_json:
        print_json(seen.as_dict())
    else:
        table = Table("what", "now")
        table.add_row("job", f"{seen.state} {seen.job_id or ''}")
        table.add_row("messages behind", f"{sum(seen.lag.values()):,}")
        age = seen.checkpoint_age_seconds
        table.add_row("newest checkpoint", "none" if age is None else f"{age:.0f} s ago")
        for name, number in seen.counts.items():
            table.add_row(name, f"{number:,}")
        table.add_row("Flink", seen.address)
        out.print(table)
    if seen.job_id is None:
        raise typer.Exit(1)


@stream_app.command()
def verify(
    hours: Annotated[
        float | None, typer.Option(help="messages of so many hours; all that Kafka has if not said")
    ] = None,
    landing_minutes: Annotated[float, typer.Option(help="how long a message may wait to land")] = 60.0,
    repair: Annotated[
        bool, typer.Option("--repair", help="write what the graph and Cassandra lack, and compare again")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare what was sent with the archive, the graph and Cassandra, event by event; exit code 1 names drift."""
    from c360_pipeline.streaming.verify import compared

    with err.status("reading Kafka and the stores"):
        found = compared(load_settings(), hours, timedelta(minutes=landing_minutes), repair=repair)
    if as_json:
        print_json(found.as_dict())
    else:
        out.print(", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in found.counts.items()))
        table = Table("store", "events", "waiting to land", "missing", "altered", "extra", "digest")
        for p in found.places:
            drift = (f"{kind.events:,}" for kind in p.differing.values())
            table.add_row(p.name, f"{p.events:,}", f"{p.waiting:,}", *drift, p.digest[:16])
        out.print(table)
        for p in found.places:
            for name, kind in p.differing.items():
                for tenant, event in kind.first.select("tenant_id", "event_id").head(5).iter_rows():
                    out.print(f"{p.name}: {name} {tenant} {event}", highlight=False)
        if repair:
            err.print(f"{found.repaired:,} events were written.")
    if not found.is_equal:
        err.print(
            "What the archive lacks, `c360 run` lands; what the graph holds otherwise, `c360 reconcile --repair` mends."
        )
        raise typer.Exit(1)


@stream_app.command()
def replay(
    first: Annotated[str, typer.Option("--from", help="date of events, YYYY-MM-DD")],
    last: Annotated[str, typer.Option("--to", help="last date, included, YYYY-MM-DD")],
    tenant: Annotated[str, typer.Option(help="the tenant")],
    rate: Annotated[float | None, typer.Option(help="messages a second")] = None,
) -> None:
    """Send events of the archive to Kafka again, for stores that lack them; nothing is there twice afterwards."""
    from c360_pipeline.connections import open_lake
    from c360_pipeline.streaming.producer import EventProducer, send
    from c360_pipeline.streaming.replay import REPLAY, archived_lines

    begin, end = as_date(first, "--from"), as_date(last, "--to")
    settings = load_settings()
    with err.status("sending") as shown, EventProducer(settings, headers=REPLAY) as producer:
        lines = archived_lines(open_lake(settings), tenant, begin, end)
        sent = send(producer, lines, rate, lambda n: shown.update(f"{n:,} messages sent"))
    err.print(f"{sent:,} events were sent.")


def send_files(paths: Sequence[Path], rate: float | None) -> int:
    """Send the lines of event files to Kafka, with progress."""
    from c360_pipeline.streaming.cluster import StreamCluster
    from c360_pipeline.streaming.producer import EventProducer, key_of, send

    settings = load_settings()
    StreamCluster(settings).make_topics()
    keyed = ((line, key_of(line)) for line in sample_lines(paths))
    with err.status("sending") as shown, EventProducer(settings) as producer:
        return send(producer, keyed, rate, lambda sent: shown.update(f"{sent:,} messages sent"))


def sample_lines(paths: Sequence[Path]) -> Iterator[bytes]:
    """Lines of event files, without their ends."""
    for path in paths:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                yield line.rstrip(b"\n")
