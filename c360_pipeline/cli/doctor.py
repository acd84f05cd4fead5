"""`c360 doctor`: what this machine lacks, and the command that installs it."""

import shutil
from dataclasses import dataclass

import typer

from c360_pipeline.cli.embedded import HAS_EMBEDDED
from c360_pipeline.cli.output import AsJson, out, print_json
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import load_settings


@dataclass(frozen=True)
class Finding:
    """One requirement: what was found, and how to install it where it is missing."""

    name: str
    found: str | None
    install: str

    @property
    def is_met(self) -> bool:
        """Whether it is there."""
        return self.found is not None


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine lacks, and the command that installs it."""
    if HAS_EMBEDDED:
        from c360_pipeline.devstack.doctor import examine

        findings = [Finding(f.name, f.found, f.install) for f in examine()]
    else:
        findings = of_a_production_machine()
    if as_json:
        print_json([{"name": f.name, "found": f.found, "install": f.install} for f in findings])
    else:
        for f in findings:
            out.print(f"ok       {f.name}" if f.is_met else f"missing  {f.name}: {f.install}", highlight=False)
    if not all(f.is_met for f in findings):
        raise typer.Exit(1)


def of_a_production_machine() -> list[Finding]:
    """Where the embedded services are not installed: settings of servers, and the tools of a backup."""
    try:
        load_settings()
        settings, advice = "complete", ""
    except ConfigError as error:
        settings, advice = None, str(error)
    return [
        Finding("settings of Neo4j, Postgres and S3", settings, advice),
        Finding("pg_dump, for `c360 backup`", shutil.which("pg_dump"), "apt-get install -y postgresql-client"),
    ]
