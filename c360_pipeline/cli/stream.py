"""`c360 stream …`: the real-time path."""

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import c360_home, load_settings

stream_app = typer.Typer(help="The real-time path: Kafka, Flink, Cassandra.", no_args_is_help=True)
SINK_NAMES = ("neo4j", "cassandra", "s3")


@stream_app.command()
def start(
    sink: Annotated[list[str] | None, typer.Option(help="neo4j, cassandra or s3; all of them if not said")] = None,
) -> None:
    """Start the job where the last one ended, and wait until it runs; does nothing where it runs."""
    from c360_pipeline.connections import open_graph
    from c360_pipeline.devstack.distributions import flink_home, flink_jars
    from c360_pipeline.devstack.streaming_services import flink_variables
    from c360_pipeline.streaming.cluster import StreamCluster

    sinks = sink or list(SINK_NAMES)
    if wrong := [name for name in sinks if name not in SINK_NAMES]:
        raise ConfigError(f"--sink {wrong[0]!r}: {', '.join(SINK_NAMES)} are right.")
    settings = load_settings()
    with open_graph(settings) as graph:
        graph.apply_schema()
    cluster = StreamCluster(settings)
    connector = next(flink_jars().glob("flink-sql-connector-kafka-*.jar"))
    with err.status("handing the job over") as shown:
        job = cluster.start(flink_home(), flink_variables(c360_home()), sinks, connector, shown.update)
        shown.update("waiting until it runs")
        cluster.wait_until_running(job)
    err.print(f"job {job} runs: {cluster.status().address}", highlight=False)


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


def send_files(paths: Sequence[Path], rate: float | None) -> int:
    """Send the lines of event files to Kafka, with progress."""
    from c360_pipeline.streaming.cluster import StreamCluster
    from c360_pipeline.streaming.producer import EventProducer, send_lines

    settings = load_settings()
    StreamCluster(settings).make_topics()
    with err.status("sending") as shown, EventProducer(settings) as producer:
        return send_lines(producer, _lines(paths), rate, lambda sent: shown.update(f"{sent:,} messages sent"))


def _lines(paths: Sequence[Path]) -> Iterator[bytes]:
    for path in paths:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                yield line.rstrip(b"\n")
