"""The job on its cluster: started where it ended, stopped with a savepoint, and what it says of itself."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import requests
from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from c360_pipeline.connections import open_bucket
from c360_pipeline.errors import UnavailableError
from c360_pipeline.settings import Settings
from c360_pipeline.streaming.clients import (
    DEAD_LETTER_TOPIC,
    GROUP,
    JOB,
    TOPIC,
    TOPICS_OF_SOURCES,
    flink_address,
    kafka_options,
)
from c360_pipeline.streaming.topic import partitions_of
from c360_pipeline.streaming.topic_sources import topics_of_sources

PARTITIONS = 4
ALIVE = ("INITIALIZING", "CREATED", "RUNNING", "RESTARTING", "FAILING", "RECONCILING")
STATE_PREFIX = "flink/"
SECONDS = 10.0
STOP_SECONDS = 180.0
ENTRY = Path(__file__).with_name("entry.py")
COUNTERS = ("events", "dead_letters", "late", "left_out", "waiting", "written", "refused", "batches", "retries")
"""Of the operators in `job`."""
DEDUPLICATE = "Deduplicate"
"""Flink's operator that lets the first event of a name pass; a number in brackets follows in its metrics."""
READ, PASSED = "numRecordsIn", "numRecordsOut"
BATCH_MS = "batch_ms"
NOT_COORDINATED = ("NOT_COORDINATOR", "COORDINATOR_LOAD_IN_PROGRESS", "COORDINATOR_NOT_AVAILABLE")


def _is_coordinator_missing(error: BaseException) -> bool:
    return isinstance(error, KafkaException) and error.args[0].name() in NOT_COORDINATED


COORDINATED = Retrying(
    retry=retry_if_exception(_is_coordinator_missing), stop=stop_after_delay(20), wait=wait_fixed(0.25), reraise=True
)
"""A broker that has just started takes some seconds to know who keeps the offsets of a group."""


@dataclass(frozen=True)
class StreamStatus:
    """What `c360 stream status` shows.

    Attributes:
        job_id: of the job that runs; None where none does.
        state: Flink's, such as RUNNING; `stopped` without a job.
        lag: messages of each partition, as topic/partition, that the last checkpoint has not taken in.
        checkpoint_age_seconds: since the newest checkpoint was complete; None before the first.
        counts: by operator and counter, since the job was started.
        batch_ms: by sink: milliseconds of its newest batch, of the slowest writer.
        address: Flink's own page of the job.
    """

    job_id: str | None
    state: str
    lag: dict[str, int]
    checkpoint_age_seconds: float | None
    counts: dict[str, int]
    batch_ms: dict[str, int]
    address: str

    @property
    def success_ratio(self) -> dict[str, float]:
        """By sink that has tried to write: the share of events that its store took."""
        found = {}
        for sink in self.batch_ms:
            written, refused = (self.counts.get(f"{sink}.{name}", 0) for name in ("written", "refused"))
            if written + refused:
                found[sink] = written / (written + refused)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(vars(self))


class StreamCluster:
    """Kafka's topics, and Flink with the job.

    Args:
        settings: addresses and logins.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rest = flink_address(settings)

    @cached_property
    def topics(self) -> tuple[str, ...]:
        """The topic of events, and those of sources.

        Raises:
            UnavailableError: the control database does not answer.
        """
        return (TOPIC, *topics_of_sources(self._settings))

    def _topics_of(self, job_id: str) -> tuple[str, ...]:
        """The topics of sources that a job reads."""
        parameters = self._get(f"/jobs/{job_id}/config")["execution-config"]["user-config"]
        return tuple(topic for topic in parameters.get(TOPICS_OF_SOURCES, "").split(",") if topic)

    def make_topics(self) -> None:
        """Make the topics that are missing; in a broker of one node each has one copy.

        Raises:
            UnavailableError: Kafka does not answer.
        """
        client = AdminClient(kafka_options(self._settings))
        try:
            there = client.list_topics(timeout=SECONDS)
            copies = min(3, len(there.brokers))
            missing = [
                NewTopic(name, num_partitions=PARTITIONS, replication_factor=copies)
                for name in (TOPIC, DEAD_LETTER_TOPIC) if name not in there.topics
            ]  # fmt: skip
            for name, made in (client.create_topics(missing) if missing else {}).items():
                _made(name, made)
        except KafkaException as error:
            raise self._silent(error) from error

    def job_id(self) -> str | None:
        """Of the job that runs; None where none does."""
        jobs = self._get("/jobs/overview")["jobs"]
        return next((job["jid"] for job in jobs if job["name"] == JOB and job["state"] in ALIVE), None)

    def start(
        self,
        flink: Path,
        variables: Mapping[str, str],
        sinks: Sequence[str],
        connector: Path,
        report: Callable[[str], None],
    ) -> str:
        """Start the job where the last one ended; one that runs goes on, unless sources name other topics by now.

        Args:
            flink: the distribution, whose command line hands the job over.
            variables: environment of that command.
            sinks: names of those to write to, of `neo4j`, `cassandra` and `s3`.
            connector: jar of the Kafka connector.
            report: called with where the job begins.

        Returns:
            Its id.

        Raises:
            UnavailableError: Flink does not take it; the message holds the end of what it said.
        """
        if (running := self.job_id()) is not None:
            if self._topics_of(running) == self.topics[1:]:
                return running
            report("stopping it with a savepoint: sources name other topics now")
            self.stop()
        self.make_topics()
        state = self.newest_state()
        report(f"from {state}" if state else "from the offsets that were committed, else from the first message")
        # A claimed state is deleted once the job has a newer one; -n: a sink that is left out leaves what it had.
        begin = ["-s", state, "-cm", "claim", "-n"] if state else []
        command = [str(flink / "bin" / "flink"), "run", "--detached", *begin, "--jarfile", str(connector),
                   "-py", str(ENTRY), *sinks, *(f"topic={topic}" for topic in self.topics[1:])]  # fmt: skip
        ended = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, check=False, cwd="/"
        )
        found = re.search(r"JobID ([0-9a-f]{32})", ended.stdout)
        if ended.returncode or not found:
            # What Python said comes before what Java says of it.
            said = (ended.stdout + ended.stderr).partition("org.apache.flink.client.program.Program")[0]
            tail = "\n".join(said.splitlines()[-15:])
            raise UnavailableError(f"Flink does not take the job:\n{tail}")
        return found[1]

    def wait_until_running(self, job_id: str, seconds: float = 120.0) -> None:
        """Until every task of the job runs.

        Raises:
            UnavailableError: it does not, or the job ended.
        """

        def runs() -> bool:
            job = self._get(f"/jobs/{job_id}")
            if job["state"] in ("FAILED", "CANCELED", "FINISHED"):
                raise UnavailableError(f"The job ended: {job['state']}. {self.cause(job_id)}")
            return job["state"] == "RUNNING" and all(v["status"] == "RUNNING" for v in job["vertices"])

        try:
            wait_until(runs, seconds, "The job does not run yet.")
        except UnavailableError as error:
            raise UnavailableError(f"{error} {self.cause(job_id)}".strip()) from error

    def stop(self) -> str | None:
        """Stop the job with a savepoint, and say where it is; None where no job runs.

        Raises:
            UnavailableError: the job does not stop.
        """
        job = self.job_id()
        if job is None:
            return None
        asked = self._post(f"/jobs/{job}/stop", {"drain": False})["request-id"]
        location: str | None = None

        def is_done() -> bool:
            nonlocal location
            answer = self._get(f"/jobs/{job}/savepoints/{asked}")
            if answer["status"]["id"] != "COMPLETED":
                return False
            operation = answer["operation"]
            if "failure-cause" in operation:
                raise UnavailableError(f"The job made no savepoint: {operation['failure-cause']['class']}")
            location = operation["location"]
            return self.job_id() is None

        wait_until(is_done, STOP_SECONDS, "The job does not stop.")
        return location

    def newest_state(self) -> str | None:
        """The newest savepoint or checkpoint that is complete; None before the first."""
        found = open_bucket(self._settings).objects(STATE_PREFIX)
        complete = [(one.modified_at, one.path) for one in found if one.path.endswith("/_metadata")]
        if not complete:
            return None
        return f"s3://{self._settings.bucket}/{max(complete)[1].removesuffix('/_metadata')}"

    def status(self) -> StreamStatus:
        """What there is to know."""
        job = self.job_id()
        if job is None:
            return StreamStatus(None, "stopped", self.lag(), None, {}, {}, self._rest)
        # Flink answers with what it knew when it was last asked, and then finds out: what is shown is of this second.
        self._metrics(job)
        lag = self.lag()
        newest = (self._get(f"/jobs/{job}/checkpoints").get("latest") or {}).get("completed")
        age = None if newest is None else time.time() - newest["latest_ack_timestamp"] / 1000
        state = self._get(f"/jobs/{job}")["state"]
        page = f"{self._rest}/#/job/running/{job}"
        metrics = self._metrics(job)
        batch_ms = {operator: int(values["max"]) for (operator, name), values in metrics.items() if name == BATCH_MS}
        return StreamStatus(job, state, lag, age, _counts(metrics), batch_ms, page)

    def counts(self, job_id: str) -> dict[str, int]:
        """Our counters, summed over the subtasks: `validate.events`, `neo4j.written` and so on."""
        return _counts(self._metrics(job_id))

    def _metrics(self, job_id: str) -> dict[tuple[str, str], dict[str, float]]:
        """By operator and name: sum, max and so on over its subtasks."""
        found = {}
        for vertex in self._get(f"/jobs/{job_id}")["vertices"]:
            path = f"/jobs/{job_id}/vertices/{vertex['id']}/subtasks/metrics"
            names = [m["id"] for m in self._get(path) if _is_ours(m["id"])]
            for metric in self._get(f"{path}?get={','.join(names)}") if names else []:
                operator, _, name = metric["id"].rpartition(".")
                found[operator.split(".")[0].partition("[")[0], name] = metric
        return found

    def lag(self) -> dict[str, int]:
        """Messages of each partition, as topic/partition, behind which the committed offsets are."""
        return {
            f"{topic}/{partition}": end - (done if done >= 0 else begin)
            for (topic, partition), (begin, end, done) in self.offsets().items()
        }

    def offsets(self) -> dict[tuple[str, int], tuple[int, int, int]]:
        """By topic and partition: its first offset, the one after its last, and the committed one (negative for none).

        Raises:
            UnavailableError: Kafka does not answer.
        """
        consumer = Consumer({**kafka_options(self._settings), "group.id": GROUP, "enable.auto.commit": False})
        try:
            places = partitions_of(consumer, self.topics)
            found = COORDINATED(consumer.committed, places, timeout=SECONDS)
            committed = {(c.topic, c.partition): c.offset for c in found}
            return {
                (p.topic, p.partition): (
                    *consumer.get_watermark_offsets(p, timeout=SECONDS), committed[p.topic, p.partition]
                )
                for p in places
            }  # fmt: skip
        except KafkaException as error:
            raise self._silent(error) from error
        finally:
            consumer.close()

    def _silent(self, error: KafkaException) -> UnavailableError:
        return UnavailableError(f"Kafka at {self._settings.kafka_bootstrap_servers} does not answer: {error}")

    def cause(self, job_id: str) -> str:
        """Why a job failed, in the words of its first exception."""
        entries = self._get(f"/jobs/{job_id}/exceptions").get("exceptionHistory", {}).get("entries", [])
        said = str(entries[0]["stacktrace"]).splitlines() if entries else []
        return " ".join(line for line in said if not line.startswith(("\t", " ")))

    def _get(self, path: str) -> Any:
        return self._asked("GET", path, None)

    def _post(self, path: str, body: Any) -> Any:
        return self._asked("POST", path, body)

    def _asked(self, method: str, path: str, body: Any) -> Any:
        try:
            answer = requests.request(method, self._rest + path, json=body, timeout=SECONDS)
            answer.raise_for_status()
            return answer.json()
        except requests.RequestException as error:
            raise UnavailableError(f"Flink at {self._rest} does not answer: {error}. `c360 up --streaming`?") from error


def _is_ours(metric: str) -> bool:
    operator, _, name = metric.rpartition(".")
    return name in (*COUNTERS, BATCH_MS) or (operator.startswith(f"{DEDUPLICATE}[") and name in (READ, PASSED))


def _counts(metrics: Mapping[tuple[str, str], Mapping[str, float]]) -> dict[str, int]:
    counts = {f"{operator}.{name}": int(of["sum"]) for (operator, name), of in metrics.items() if name in COUNTERS}
    read, passed = (int(metrics.get((DEDUPLICATE, name), {}).get("sum", 0)) for name in (READ, PASSED))
    return dict(sorted({**counts, "validate.duplicates": read - passed}.items()))


def wait_until(is_done: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Ask until something is so.

    Raises:
        UnavailableError: it is not in time.
    """
    deadline = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > deadline:
            raise UnavailableError(f"{otherwise} {seconds:.0f} s were waited for.")
        time.sleep(0.2)


def _made(name: str, made: Any) -> None:
    try:
        made.result(SECONDS)
    except KafkaException as error:
        # Another process made it meanwhile.
        if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
            raise UnavailableError(f"Kafka does not make the topic {name}: {error}") from error
