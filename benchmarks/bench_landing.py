"""Landing against its floor and its peers, on the same events, in the same run: `make bench`.

From gz JSON lines in the embedded S3 to committed Delta in the embedded S3, each contender in a process of its own:

- ours: everything that `landing` does: contract, identity, dedup against the archive, dead letters, accounts;
- ours-rows: the same without the objects that keep each rejected line's bytes (they are in Delta too);
- floor: `polars.read_ndjson` and `write_delta`, no contract, no dedup;
- dlt: its filesystem source into its Delta destination;
- pydantic: `json.loads` and a model per line, appended to Delta in batches of 100,000.

Floor and peers get the file without the lines that they fail on. The second table is records of a source through its
mapping (`landing_records`), the third what one batch costs into archives of different sizes.
"""

import argparse
import gzip
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import landing_records
from landing_records import IN_BENCH_ENVIRONMENT, RECORDS
from rich.console import Console
from rich.table import Table

CONTENDERS = ("ours", "ours-rows", "floor", "dlt", "pydantic")
DIRTY, CLEAN = "landing/events/date=2025-11-02/", "clean/"
PEERS = Path(__file__).parent.parent / ".venv" / "bench"
NOTE = Console(stderr=True)


def main() -> None:
    """Prepare the files, run the contenders, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--archive", type=int, default=50_000_000, help="events in the large archive; 0 leaves it out")
    parser.add_argument("--batch", type=int, default=250_000, help="events of the batch into an archive")
    parser.add_argument("--records", type=int, default=1_000_000, help="records of a source; 0 leaves them out")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(measured(RUNNERS[arguments.run])))
        return
    from c360_pipeline.devstack import stack
    from c360_pipeline.settings import c360_home, merged_environment

    with stack.attached(c360_home(), lambda _: None, ports={"postgres": 0, "s3": 0, "neo4j": 0}):
        os.environ |= merged_environment(c360_home())
        chosen = [name for name in CONTENDERS if name in arguments.contenders.split(",")]
        if chosen:
            os.environ["C360_BUCKET"] = f"bench-{uuid4().hex[:12]}"
            size = upload(arguments.events)
            NOTE.print(
                f"{arguments.events:,} events of {size / arguments.events:.0f} bytes, 1 % more lines are malformed"
            )
            show(chosen, arguments.events, [contend(name, arguments.repeat) for name in chosen])
        if arguments.records:
            compare_records(arguments.records, arguments.repeat)
        if arguments.archive:
            compare_archives(arguments.archive, arguments.batch, arguments.repeat)


def show(names: list[str], events: int, results: list[list[dict[str, float]]]) -> None:
    """Print medians and ratios."""
    table = Table("", "seconds", "events/s", "of the floor", "ours is", "peak memory")
    seconds = {name: statistics.median(r["seconds"] for r in runs) for name, runs in zip(names, results, strict=True)}
    for name, runs in zip(names, results, strict=True):
        table.add_row(
            name,
            f"{seconds[name]:.2f}",
            f"{events / seconds[name]:,.0f}",
            f"{seconds['floor'] / seconds[name]:.2f}" if "floor" in seconds else "",
            f"{seconds[name] / seconds['ours']:.2f} x" if "ours" in seconds else "",
            f"{max(r['peak_bytes'] for r in runs) / 2**20:,.0f} MiB",
        )
    Console().print(table)


def compare_records(count: int, repeat: int) -> None:
    """Records through a mapping, the same events in the own form, and peers."""
    from c360_pipeline.connections import open_landing
    from c360_pipeline.settings import load_settings

    os.environ["C360_BUCKET"] = f"bench-{uuid4().hex[:12]}"
    sizes = landing_records.upload_records(open_landing(load_settings()), count)
    table = Table("records", "bytes each", "seconds", "records/s", "MB/s", "mapped is", "peak memory")
    runs = {name: contend(name, repeat) for name in RECORDS}
    rates = {}
    for name, measures in runs.items():
        read = count // 10 if name == "dlt-records" else count
        seconds = statistics.median(one["seconds"] for one in measures)
        each = sizes.get(name, sizes["mapped"]) / count
        rates[name] = read / seconds
        times = rates["mapped"] * sizes["mapped"] / count / (rates[name] * each)
        table.add_row(
            name, f"{each:.0f}", f"{seconds:.2f}", f"{rates[name]:,.0f}", f"{rates[name] * each / 1e6:.1f}",
            f"{times:.2f} x its bytes/s", f"{max(one['peak_bytes'] for one in measures) / 2**20:,.0f} MiB",
        )  # fmt: skip
    Console().print(f"{count:,} records of Segment, 1 % of them broken off", table)


def contend(name: str, repeat: int) -> list[dict[str, float]]:
    """Run a contender some times in processes of its own; dlt, which takes minutes, once."""
    runs = []
    for _ in range(1 if name.startswith("dlt") else repeat):
        python = PEERS / "bin" / "python" if name in ("dlt", *IN_BENCH_ENVIRONMENT) else sys.executable
        command = [str(python), __file__, "--run", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        NOTE.print(f"{name}: {runs[-1]['seconds']:.2f} s")
    return runs


def measured(run: Callable[[], Callable[[], None]]) -> dict[str, float]:
    """Seconds of what `run` returns, which has imported and compiled what it needs, and the process's peak memory."""
    work = run()
    started = time.perf_counter()
    work()
    return {
        "seconds": time.perf_counter() - started,
        "peak_bytes": peak_memory(),
    }


def peak_memory() -> int:
    """Bytes that this process had in memory at most; getrusage counts those before exec too."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def upload(events: int) -> int:
    """Put the events into the bucket, as they are and without what others fail on; returns their bytes."""
    from c360_pipeline.connections import open_landing
    from c360_pipeline.settings import load_settings

    with tempfile.TemporaryDirectory() as scratch:
        dirty, clean, size = write_files(Path(scratch), events)
        landing = open_landing(load_settings())
        landing.put_file(dirty, DIRTY)
        landing.put_file(clean, CLEAN)
    return size


def write_files(folder: Path, events: int) -> tuple[Path, Path, int]:
    """One file with 1 % malformed lines, and the same without them; and the bytes of the latter."""
    from c360_pipeline.devstack.event_samples import SampleRequest, generate

    dirty, clean, size = folder / "events.jsonl.gz", folder / "clean.jsonl.gz", 0
    with gzip.open(dirty, "wb", 6) as all_lines, gzip.open(clean, "wb", 6) as good_lines:
        for delivery in generate(SampleRequest(events, 3, 1, 0.01, 0.0, 0.01)):
            all_lines.write(delivery.line + b"\n")
            if delivery.kind == "event":
                good_lines.write(delivery.line + b"\n")
                size += len(delivery.line) + 1
    return dirty, clean, size


def storage() -> tuple[str, dict[str, str]]:
    """The bucket, and the options of its store."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL")
    options = {name: os.environ[name] for name in names}
    return os.environ["C360_BUCKET"], {**options, "AWS_ALLOW_HTTP": "true", "conditional_put": "etag"}


def ours() -> Callable[[], None]:
    """`c360 run --select landed_events`, without Dagster."""
    return lander(keep_objects=True)


def ours_rows_only() -> Callable[[], None]:
    """The same; the bytes of rejected lines are kept in Delta only."""
    return lander(keep_objects=False)


def lander(*, keep_objects: bool) -> Callable[[], None]:
    """Land into a lake of its own."""
    import numpy as np

    from c360_pipeline.core.contract.columns import parse_block
    from c360_pipeline.core.landing.suppressed import Suppressed
    from c360_pipeline.stages.landing.ingest import Ingest, waiting_files
    from c360_pipeline.stores.delta.lake import Lake
    from c360_pipeline.stores.s3.landing import Landing

    bucket, options = storage()
    landing = Landing(
        bucket,
        endpoint_url=options["AWS_ENDPOINT_URL"],
        access_key_id=options["AWS_ACCESS_KEY_ID"],
        secret_access_key=options["AWS_SECRET_ACCESS_KEY"],
        region=options["AWS_REGION"],
    )
    if not keep_objects:
        landing.put_dead_letters = lambda letters: None  # type: ignore[method-assign]  # the point
    lake = Lake(f"s3://{bucket}/{uuid4().hex}", options, Path(tempfile.mkdtemp()))
    parse_block(b"{}\n", np.array([0, 3]), datetime.now(UTC))
    nobody = Suppressed()
    ingest = Ingest(landing, lake, nobody)

    def land() -> None:
        new, _ = waiting_files(lake, landing.event_files())
        ingest.land(new, lambda lines: None)

    return land


def floor() -> Callable[[], None]:
    """Read and write, nothing else."""
    import polars as pl

    bucket, options = storage()

    def run() -> None:
        content = read_object(bucket, options)
        frame = pl.read_ndjson(io.BytesIO(gzip.decompress(content)))
        frame.write_delta(f"s3://{bucket}/{uuid4().hex}", storage_options=options)

    return run


def read_object(bucket: str, options: dict[str, str], key: str = f"{CLEAN}clean.jsonl.gz") -> bytes:
    """An object, of which nothing else is said the clean file, packed."""
    import botocore.session

    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=options["AWS_ENDPOINT_URL"],
        aws_access_key_id=options["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=options["AWS_SECRET_ACCESS_KEY"],
        region_name=options["AWS_REGION"],
    )
    content: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    return content


def mapped() -> Callable[[], None]:
    """Records of a source through its mapping."""
    bucket, options = storage()
    return landing_records.lander(bucket, options, landing_records.segment_source(bucket))


def own_form() -> Callable[[], None]:
    """The same events in the own form."""
    return landing_records.lander(*storage(), None)


def orjson_records() -> Callable[[], None]:
    """A parser and a model."""
    bucket, options = storage()
    key = f"{landing_records.CLEAN}2.jsonl.gz"
    return landing_records.orjson_records(lambda: read_object(bucket, options, key), bucket, options)


def dlt_pipeline(folder: str = CLEAN) -> Callable[[], None]:
    """The source and the destination of dlt, with its defaults."""
    import dlt
    from dlt.common.configuration.specs import AwsCredentials
    from dlt.sources.filesystem import filesystem, read_jsonl

    bucket, options = storage()
    credentials = AwsCredentials(
        aws_access_key_id=options["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=options["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=options["AWS_ENDPOINT_URL"],
        region_name=options["AWS_REGION"],
    )
    source = filesystem(bucket_url=f"s3://{bucket}/{folder}", credentials=credentials, file_glob="*.jsonl.gz")
    pipeline = dlt.pipeline(
        f"bench_{uuid4().hex[:8]}",
        destination=dlt.destinations.filesystem(bucket_url=f"s3://{bucket}/dlt", credentials=credentials),
        dataset_name=f"d{uuid4().hex[:8]}",
        pipelines_dir=tempfile.mkdtemp(),
    )

    def run() -> None:
        pipeline.run((source | read_jsonl()).with_name("events"), table_format="delta")

    return run


def pydantic_lines() -> Callable[[], None]:
    """What one writes on the first day."""
    import pyarrow as pa
    from deltalake import write_deltalake
    from pydantic import BaseModel, Field, ValidationError

    class Event(BaseModel):
        tenantId: str = Field(min_length=1)
        userId: str = Field(min_length=1)
        sessionId: str = Field(min_length=1)
        ts: datetime
        action: str = Field(min_length=1)
        itemId: str | None = None
        attrs: dict[str, str | int | float | bool] = Field(default_factory=dict)
        eventId: str | None = None

    names = ("tenantId", "userId", "sessionId", "action", "itemId", "eventId")
    schema = pa.schema(
        [
            *((name, pa.string()) for name in names),
            ("ts", pa.timestamp("us", "UTC")),
            ("attrs", pa.map_(pa.string(), pa.string())),
        ]
    )
    bucket, options = storage()

    def batches() -> Iterator[list[dict[str, Any]]]:
        rows: list[dict[str, Any]] = []
        with gzip.open(io.BytesIO(read_object(bucket, options))) as lines:
            for line in lines:
                try:
                    event = Event(**json.loads(line))
                except (ValueError, ValidationError):
                    continue
                rows.append(event.model_dump() | {"attrs": [(k, str(v)) for k, v in event.attrs.items()]})
                if len(rows) == 100_000:
                    yield rows
                    rows = []
        yield rows

    def run() -> None:
        address = f"s3://{bucket}/{uuid4().hex}"
        for rows in batches():
            write_deltalake(address, pa.Table.from_pylist(rows, schema=schema), mode="append", storage_options=options)

    return run


def compare_archives(size: int, batch: int, repeat: int) -> None:
    """What a batch costs into an empty archive and into one of `size` events."""
    from c360_pipeline.core.catalog.tables import EVENTS
    from c360_pipeline.stores.delta.lake import Lake

    os.environ["C360_BUCKET"] = f"bench-{uuid4().hex[:12]}"
    upload(1_000)
    bucket, options = storage()
    with tempfile.TemporaryDirectory() as cache:
        large = Lake(f"s3://{bucket}/large", options, Path(cache) / "large")
        fill(large, options, size)
        started = time.perf_counter()
        large.held(EVENTS, EVENTS.empty(), ["event_id"])
        NOTE.print(f"an index of {large.count(EVENTS):,} keys from nothing: {time.perf_counter() - started:.1f} s")
        table = Table("archive", "events", "seconds per batch", "of empty")
        seconds: dict[str, list[float]] = {"empty": [], "large": []}
        warm_up = Lake(f"s3://{bucket}/{uuid4().hex}", options, Path(cache) / "warm-up")
        land_seconds(warm_up, land_file(bucket, options, 1_000, repeat))
        for number in range(repeat):
            files = land_file(bucket, options, batch, number)
            for name in seconds:
                lake = (
                    large
                    if name == "large"
                    else Lake(f"s3://{bucket}/{uuid4().hex}", options, Path(cache) / str(number))
                )
                seconds[name].append(land_seconds(lake, files))
                NOTE.print(f"{name}: {seconds[name][-1]:.2f} s")
        of_empty = statistics.median(seconds["empty"])
        for name, runs in seconds.items():
            median = statistics.median(runs)
            table.add_row(name, f"{size if name == 'large' else 0:,}", f"{median:.2f}", f"{median / of_empty:.2f} x")
    Console().print(f"a batch of {batch:,} events, a third of them with an id of their producer", table)


def land_file(bucket: str, options: dict[str, str], events: int, number: int) -> Any:
    """Upload events of one day that no archive holds; returns the landing area and the file."""
    from c360_pipeline.connections import open_landing
    from c360_pipeline.settings import load_settings

    landing = open_landing(load_settings())
    rows = (
        {
            "tenantId": f"tenant-{n % 3}", "userId": f"user-{n % 9973}", "sessionId": f"session-{number}-{n // 7}",
            "ts": 1762077600000 + n, "action": "view", "itemId": f"sku-{n % 499}",
            "attrs": {"ip": f"198.51.100.{n % 250}", "deviceId": f"device-{n % 12007}", "cookieId": f"c-{n // 7}"},
            **({"eventId": f"event-{number}-{n}"} if n % 3 == 0 else {}),
        }
        for n in range(events)
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"batch-{number}.jsonl.gz"
        with gzip.open(path, "wt", 1) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        uri = landing.put_file(path, f"landing/events/date=2025-11-{10 + number:02}/")
    return landing, [file for file in landing.event_files() if file.uri == uri]


def land_seconds(lake: Any, landed: Any) -> float:
    """Seconds to land one file."""
    from c360_pipeline.core.landing.suppressed import Suppressed
    from c360_pipeline.stages.landing.ingest import Ingest

    landing, files = landed
    nobody = Suppressed()
    started = time.perf_counter()
    Ingest(landing, lake, nobody).land(files, lambda lines: None)
    return time.perf_counter() - started


def fill(lake: Any, options: dict[str, str], size: int) -> None:
    """Append `size` events of the last year, a week at a time."""
    import polars as pl
    from deltalake import write_deltalake

    from c360_pipeline.core.catalog.tables import EVENTS

    weeks, first_day = 52, date(2025, 11, 2) - timedelta(days=364)
    for week in range(weeks):
        count = size * (week + 1) // weeks - size * week // weeks
        number = pl.int_range(count, dtype=pl.Int64, eager=True) + size * week // weeks
        start = datetime.combine(first_day + timedelta(days=7 * week), datetime.min.time(), UTC)
        rows = pl.DataFrame({"n": number}).with_columns(
            ts=pl.lit(start).cast(pl.Datetime("us", "UTC")) + pl.duration(seconds=pl.col("n") % 604_800),
            text=pl.col("n").cast(pl.String),
        )
        events = rows.select(
            event_id=pl.col("text").chash.sha2_256(),  # type: ignore[attr-defined]  # registered by polars_hash
            tenant_id=pl.lit("tenant-") + (pl.col("n") % 3).cast(pl.String),
            user_id=pl.lit("user-") + (pl.col("n") % 9973).cast(pl.String),
            session_id=pl.lit("session-") + (pl.col("n") // 7).cast(pl.String),
            ts="ts",
            action=pl.lit("view"),
            item_id=pl.lit("sku-") + (pl.col("n") % 499).cast(pl.String),
            attrs=pl.concat_list(pl.struct(key=pl.lit("ip"), value=pl.lit("198.51.100.1"))).cast(
                pl.Map(pl.String, pl.String)
            ),
            event_date=pl.col("ts").dt.date(),
            content_hash=pl.lit(None, pl.String),
            source_uri=pl.lit(f"s3://bench/landing/events/date={start.date()}/week.jsonl"),
            source_etag=pl.lit("etag"),
            source_line=pl.col("n"),
            landed_at=pl.lit(start).cast(pl.Datetime("us", "UTC")),
        )
        write_deltalake(
            lake.uri(EVENTS.name),
            events,
            mode="append",
            partition_by=list(EVENTS.partition_by),
            storage_options=options,
        )
        if (week + 1) % 13 == 0:
            NOTE.print(f"{week + 1} of {weeks} weeks of the large archive")


RUNNERS = {
    "ours": ours,
    "ours-rows": ours_rows_only,
    "floor": floor,
    "dlt": dlt_pipeline,
    "pydantic": pydantic_lines,
    "mapped": mapped,
    "own-form": own_form,
    "dlt-records": partial(dlt_pipeline, landing_records.TENTH),
    "orjson-records": orjson_records,
}

if __name__ == "__main__":
    main()
