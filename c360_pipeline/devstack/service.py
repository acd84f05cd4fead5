"""One embedded server: its command, its probe, its port and its password."""

import json
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import neo4j
import psycopg
from botocore.exceptions import BotoCoreError, ClientError

from c360_pipeline.errors import UnavailableError
from c360_pipeline.settings import write_private

LOOPBACK = "127.0.0.1"
BELOW_EPHEMERAL = range(15_000, 32_000)


SECRET_VARIABLE = re.compile(
    r"^(NEO4J|ETL_DB|AWS|KAFKA|CASSANDRA)_|^C360_(SOURCE|NOTIFY|IDENTIFIER)_|PASS|SECRET|TOKEN|CREDENTIAL|API_?KEY",
    re.IGNORECASE,
)
"""Names of variables that servers have no business with."""
WITH_PASSWORD = ("postgres", "s3", "neo4j", "kafka", "cassandra")


NOT_READY = (
    UnavailableError,
    psycopg.Error,
    neo4j.exceptions.Neo4jError,
    neo4j.exceptions.DriverError,
    BotoCoreError,
    ClientError,
)
"""What a probe raises while its service is not ready."""


@dataclass(frozen=True)
class Service:
    """One embedded server.

    Attributes:
        name: `postgres`, `s3` or `neo4j`.
        port: TCP port on the loopback interface.
        prepare: commands with their environment to run to completion before the server starts.
        command: the server's command line; it stays in the foreground.
        environment: variables of the server only.
        probe: returns the server's version once it answers a real query, raises one of `NOT_READY` before.
        stop_signal: asks for an orderly stop.
        connection: settings by which others reach it.
        needs_settings: it runs code of ours, which reads settings; the others get no secret of the environment.
        logs: folder of logs of its own, which say more than its output.
    """

    name: str
    port: int
    prepare: Callable[[], list[tuple[list[str], dict[str, str]]]]
    command: list[str]
    environment: dict[str, str]
    probe: Callable[[], str]
    stop_signal: signal.Signals
    connection: dict[str, str]
    needs_settings: bool = False
    logs: Path | None = None

    def variables(self, more: Mapping[str, str]) -> dict[str, str]:
        """The environment of its processes: ours, without what is secret where it needs none.

        Args:
            more: that it has besides.
        """
        return {**(os.environ if self.needs_settings else without_secrets()), **more}


def without_secrets() -> dict[str, str]:
    """Our environment, for programs that have no business with what is secret in it."""
    return {name: value for name, value in os.environ.items() if not SECRET_VARIABLE.search(name)}


_by_chance: set[int] = set()
"""Ports that this process got by chance."""


def free_port(preferred: int) -> int:
    """`preferred` where nothing listens there, else one by chance. 0 is always one by chance.

    By chance is below what systems give to outgoing connections: between now and the server's start, one of these would
    take it. Two servers that a process is about to start never get the same one.
    """
    chosen = [port for port in random.SystemRandom().sample(BELOW_EPHEMERAL, 100) if port not in _by_chance]
    for port in (preferred, *chosen) if preferred else chosen:
        with socket.socket() as candidate:
            # As servers do: a port in TIME_WAIT is free to listen on.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((LOOPBACK, port))
            except OSError:
                continue
            if port != preferred:
                _by_chance.add(port)
            return port
    raise OSError("no TCP port is free on the loopback interface")


def passwords(home: Path) -> dict[str, str]:
    """Generated once per state folder and kept readable by the owner only (mode 600)."""
    path = home / "passwords.json"
    stored: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [name for name in WITH_PASSWORD if name not in stored]
    if missing:
        stored |= {name: secrets.token_hex(24) for name in missing}
        write_private(path, json.dumps(stored))
    return stored


def with_parent(stop: signal.Signals, *, as_user: pwd.struct_passwd | None = None) -> list[str]:
    """A command prefix: the kernel sends `stop` to the server when its supervisor dies, even by kill -9.

    PostgreSQL refuses to run as root. For `as_user` the prefix changes to that user and leaves it one
    capability, to read through folders (a clone below /root) that are closed to others.
    """
    if not shutil.which("setpriv"):
        return []
    prefix = ["setpriv", "--pdeathsig", stop.name.removeprefix("SIG")]
    if as_user:
        prefix += [
            f"--reuid={as_user.pw_uid}", f"--regid={as_user.pw_gid}", "--clear-groups",
            "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
        ]  # fmt: skip
    return [*prefix, "--"]
