"""Files that every kind of sample has: gzipped event lines, a catalogue, and the truth about each line."""

import csv
import gzip
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from c360_pipeline.devstack.people import Product

TRUTH_FILE = "_truth.ndjson"
"""Not `.jsonl`: wherever a sample is put, landing does not take the truth for events."""
CATALOG_COLUMNS = ("tenant_id", "id", "name", "category", "price")


@dataclass(frozen=True)
class LineTruth:
    """What its maker knows of a line of an event file.

    Attributes:
        file: name of the file.
        line: counted from 1.
        kind: `event`, `duplicate` or `malformed`.
        journey: name of the journey that it belongs to; stitching must find the same partition under other names.
        error_class: of a malformed line.
        original_file: of a duplicate, the file of the event that it repeats.
        original_line: of a duplicate, the line of that event.
    """

    file: str
    line: int
    kind: str
    journey: str | None = None
    error_class: str | None = None
    original_file: str | None = None
    original_line: int | None = None


@dataclass(frozen=True)
class Written:
    """A sample on disk; `counts` are lines by kind."""

    event_files: list[Path]
    catalog_file: Path
    truth_file: Path
    counts: dict[str, int]


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write lines gzipped; equal lines give equal bytes."""
    with ExitStack() as stack:
        raw: IO[bytes] = stack.enter_context(path.open("wb"))
        # Without a name and a time in its header the same content always has the same hash.
        packed = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=5))
        packed.writelines(line + b"\n" for line in lines)


def write_truth(file: IO[str], truths: Iterable[LineTruth]) -> None:
    """Append truths as JSON lines."""
    file.writelines(json.dumps(asdict(truth)) + "\n" for truth in truths)


def write_catalog(path: Path, catalog: Iterable[Product]) -> Path:
    """Write products as the CSV that landing/catalog takes."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CATALOG_COLUMNS)
        writer.writerows([p.tenant_id, p.id, p.name, p.category, p.price] for p in catalog)
    return path
