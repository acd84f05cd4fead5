"""Fetches the programs that the Python lock can't carry: Neo4j and GDS jars (Maven) and the S3 gateway (Go).

They are kept per version in the user's cache folder, so every clone and every test run shares them.
A folder appears by one rename, after it is complete: an interrupted download leaves nothing half done.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from c360_pipeline.errors import ConfigError, UnavailableError
from c360_pipeline.settings import project_path

NEO4J_VERSION = "5.26.30"
GDS_VERSION = "2.13.9"
VERSITYGW_VERSION = "v1.8.0"
SPARK_JARS_VERSION = "delta-4.3.1-hadoop-3.4.2"
"""As in spark/pom.xml."""
KAFKA_VERSION = "4.3.1"
CASSANDRA_VERSION = "5.0.9"
FLINK_VERSION = "2.3.0"
COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"

FLINK_LOCK = "requirements-flink.lock"
SUMS = Path(__file__).parent / "sums"
"""sha256 of the jars, and the sums of the Go modules, that this version was tested with (docs/security.md)."""
_NATIVE = re.compile(r"-(linux|osx|windows|natives)[-_]")
LEAST_ARCHIVE_BYTES = 64 * 1024 * 1024

Report = Callable[[str], None]


def cache_folder() -> Path:
    """Where fetched programs are kept: `C360_CACHE`, else `c360` in the user's cache folder."""
    if configured := os.environ.get("C360_CACHE"):
        return Path(configured).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "c360"


def neo4j_distribution() -> Path:
    """The folder with `lib/` (server) and `plugins/` (GDS)."""
    return cache_folder() / f"neo4j-community-{NEO4J_VERSION}-gds-{GDS_VERSION}"


def neo4j_class_archive() -> Path:
    """What the JVM has loaded of these jars, kept as it lies in memory: the server starts in half the time."""
    return neo4j_distribution() / "classes.jsa"


def is_class_archive(archive: Path) -> bool:
    """Whether a file is the archive of the server's classes, some 150 MB; that of one of its tools has some 14 MB."""
    return archive.is_file() and archive.stat().st_size >= LEAST_ARCHIVE_BYTES


def versitygw_binary() -> Path:
    """The S3 gateway's executable."""
    return cache_folder() / f"versitygw-{VERSITYGW_VERSION}" / "versitygw"


def spark_jars() -> Path:
    """The folder with the jars by which Spark reads and writes S3."""
    return cache_folder() / f"spark-jars-{SPARK_JARS_VERSION}"


def kafka_jars() -> Path:
    """The folder with the jars of a Kafka broker."""
    return cache_folder() / f"kafka-{KAFKA_VERSION}"


def cassandra_jars() -> Path:
    """The folder with the jars of Cassandra."""
    return cache_folder() / f"cassandra-{CASSANDRA_VERSION}"


def flink_jars() -> Path:
    """The folder with Flink's Kafka connector and its S3 file system."""
    return cache_folder() / f"flink-jars-{FLINK_VERSION}"


def flink_environment() -> Path:
    """The virtual environment of Flink, whose packages have other versions than ours; it changes with its lock."""
    locked = hashlib.sha256(project_path(FLINK_LOCK).read_bytes()).hexdigest()[:12]
    return cache_folder() / f"flink-{FLINK_VERSION}-{locked}"


def flink_home() -> Path:
    """Flink's distribution, which the Python package carries."""
    return next((flink_environment() / "lib").glob("python3.*")) / "site-packages" / "pyflink"


def install_spark_jars(report: Report) -> Path:
    """Fetch the jars of Spark where they are missing; returns their folder.

    Raises:
        ConfigError: mvn is not installed.
        UnavailableError: a download failed; the message holds the end of the tool's output.
    """
    if not spark_jars().exists():
        with file_lock(cache_folder() / "install.lock", report):
            _install_jars(Path(__file__).parents[1] / "spark", spark_jars(), report)
    return spark_jars()


def install_streaming(report: Report) -> None:
    """Fetch Kafka, Cassandra and Flink where they are missing: 0.5 GB of jars, 1 GB of Python packages.

    Args:
        report: called with one line of progress at a time.

    Raises:
        ConfigError: mvn is not installed.
        UnavailableError: a download failed; the message holds the end of the tool's output.
    """
    here = Path(__file__).parent
    wanted = (("kafka", kafka_jars()), ("cassandra", cassandra_jars()), ("flink", flink_jars()))
    if not all(folder.exists() for _, folder in wanted):
        with file_lock(cache_folder() / "install.lock", report):
            for name, folder in wanted:
                _install_jars(here / name, folder, report)
    if not (flink_environment() / "complete").exists():
        _install_flink(report)


def _install_jars(project: Path, target: Path, report: Report) -> None:
    if target.exists():
        return
    with _appears_whole(target) as folder:
        _copy_dependencies(project, folder, report)
        require_known(folder, project.name)


def require_known(folder: Path, name: str) -> None:
    """Look at jars before they are used: each is, byte by byte, the one that this version was tested with.

    Args:
        folder: with the jars.
        name: of their list in `sums/`.

    Raises:
        UnavailableError: one is another, or is not in the list.
    """
    listed = (SUMS / f"{name}.sha256").read_text(encoding="utf-8").splitlines()
    known = {path: digest for digest, _, path in (line.partition("  ") for line in listed)}
    wrong = []
    for jar in sorted(folder.rglob("*.jar")):
        path = jar.relative_to(folder).as_posix()
        # Libraries for other systems than ours have names of their own.
        if path in known or not _NATIVE.search(path):
            with jar.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != known.get(path):
                    wrong.append(path)
    if wrong:
        raise UnavailableError(
            f"{len(wrong)} jars of {name} are not those that this version was tested with, such as {wrong[0]}: nothing "
            "of them is used. Empty the local Maven repository and try again; if that does not help, whoever serves "
            "your packages has changed them."
        )


def _copy_dependencies(project: Path, folder: Path, report: Report, *options: str) -> None:
    """Fetch the jars that a pom names, and theirs."""
    _run_reporting(
        ["mvn", "-B", "-f", str(project / "pom.xml"), COPY_DEPENDENCIES, "-DincludeScope=runtime", *options,
         f"-DoutputDirectory={folder}"],
        partial(_report_jar, report, project.name),
    )  # fmt: skip


def _install_flink(report: Report) -> None:
    """An environment names its own folder, so it can't be made elsewhere and moved: a file says that it is complete."""
    folder = flink_environment()
    with file_lock(folder.with_suffix(".lock")):
        if (folder / "complete").exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        uv = str(Path(sys.executable).parent / "uv")
        _run_reporting([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], report)
        report("flink: Python packages, 1 GB")
        _run_reporting(
            [
                uv,
                "pip",
                "sync",
                "--quiet",
                "--require-hashes",
                "--compile-bytecode",
                "--python",
                str(folder / "bin" / "python"),
                str(project_path(FLINK_LOCK)),
            ],
            report,
        )
        (folder / "complete").touch()


@contextmanager
def file_lock(path: Path, report: Report = lambda line: None) -> Iterator[None]:
    """Held by one process at a time, and left by one that dies.

    Args:
        path: of the lock.
        report: called once where another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that fetches the same ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def missing_distributions() -> list[str]:
    """Names of what `install` would fetch."""
    wanted = {"Neo4j and GDS jars": neo4j_distribution(), "S3 gateway": versitygw_binary()}
    return [name for name, path in wanted.items() if not path.exists()]


def install(report: Report) -> None:
    """Fetch what is missing; does nothing where all is there.

    Args:
        report: called with one line of progress at a time.

    Raises:
        ConfigError: mvn or go is not installed.
        UnavailableError: a download failed; the message holds the end of the tool's output.
    """
    if not missing_distributions():
        return
    # One at a time for the whole cache: Maven and Go, too, write folders that all clones share.
    with file_lock(cache_folder() / "install.lock", report):
        if not neo4j_distribution().exists():
            _install_neo4j(report)
        if not versitygw_binary().exists():
            _install_versitygw(report)


def _install_neo4j(report: Report) -> None:
    poms = Path(__file__).parent
    with _appears_whole(neo4j_distribution()) as folder:
        for pom, target in (("neo4j", "lib"), ("gds", "gds")):
            _copy_dependencies(poms / pom, folder / target, report, "-Dmdep.prependGroupId=true")
        _keep_plugin_jars(folder)
        require_known(folder, "neo4j")


def _report_jar(report: Report, pom: str, line: str) -> None:
    if line.startswith("Downloaded"):
        report(f"{pom} jars: {line.split('/')[-1]}")


def _keep_plugin_jars(folder: Path) -> None:
    """Move the jars whose artifact the server does not bring itself from `gds/` to `plugins/`.

    Two versions of one artifact on the class path break the server at start. File names begin with the group:
    `org.neo4j:annotations` and `org.neo4j.gds:annotations` are different artifacts, and GDS needs its own.
    """
    served = {artifact(jar.name) for jar in (folder / "lib").iterdir()}
    (folder / "plugins").mkdir()
    for jar in (folder / "gds").iterdir():
        if artifact(jar.name) not in served:
            jar.rename(folder / "plugins" / jar.name)
    shutil.rmtree(folder / "gds")


def artifact(jar: str) -> str:
    """A jar's group and artifact id: `org.a.core-2.18.6.jar` is `org.a.core`; a native classifier stays."""
    match = re.fullmatch(
        r"(.+?)-\d[\w.+]*?(?:-(?:M\d+|RC\d+|GA|Final|jre|android))?(-(?:linux|osx|windows).*)?\.jar", jar
    )
    return match[1] + (match[2] or "") if match else jar


def _install_versitygw(report: Report) -> None:
    with _appears_whole(versitygw_binary().parent) as folder:
        _run_reporting(
            ["go", "install", f"github.com/versity/versitygw/cmd/versitygw@{VERSITYGW_VERSION}"],
            lambda line: report(f"S3 gateway: {line.removeprefix('go: downloading ')}"),
            environment={"GOBIN": str(folder), "GOFLAGS": "-buildvcs=false"},
        )
        require_known_modules(folder / "versitygw")


def require_known_modules(program: Path) -> None:
    """Look at what a Go program was built of: each module is the one that this version was tested with.

    Raises:
        UnavailableError: one is another.
    """
    known = set((SUMS / "versitygw.sum").read_text(encoding="utf-8").splitlines())
    told = subprocess.run(["go", "version", "-m", str(program)], capture_output=True, text=True, check=True).stdout
    built = {" ".join(line.split()[1:]) for line in told.splitlines() if line.split()[:1] in (["mod"], ["dep"])}
    if wrong := sorted(built ^ known):
        raise UnavailableError(
            f"The S3 gateway is not built of what this version was tested with, but for example of {wrong[0]}: it is "
            "not used. Empty Go's module cache (`go clean -modcache`) and try again."
        )


@contextmanager
def _appears_whole(target: Path) -> Iterator[Path]:
    """A scratch folder that becomes `target` when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
        folder = Path(scratch) / "whole"
        folder.mkdir()
        yield folder
        try:
            folder.rename(target)
        except OSError:
            # Another process fetched the same version meanwhile: its folder is as good as ours.
            if not target.exists():
                raise


def _run_reporting(command: list[str], report: Report, environment: dict[str, str] | None = None) -> None:
    if not shutil.which(command[0]):
        raise ConfigError(f"`{command[0]}` is not installed. `c360 doctor` names the command that installs it.")
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    ) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            report(lines[-1])
    if process.returncode:
        tail = "\n".join(lines[-15:])
        raise UnavailableError(f"`{' '.join(command[:2])}` ended with {process.returncode}:\n{tail}")
