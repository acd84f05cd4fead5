"""What all commands share: consoles, JSON, progress, dates, the lock."""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import load_settings

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What steers a terminal, or turns the direction of text: in data it is an attack, or a mistake that is to be seen."""


class PlainConsole(Console):
    """A console on which values of data steer nothing; brackets in them are text, too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Its pieces; those of rich's own that steer are marked as such."""
        for segment in super().render(renderable, options):
            if segment.control or not _STEERING.search(segment.text):
                yield segment
            else:
                yield Segment(_STEERING.sub(lambda found: ascii(found[0])[1:-1], segment.text), segment.style)


out = PlainConsole(width=None if sys.stdout.isatty() else 120)
err = PlainConsole(stderr=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(value, default=str, indent=2) + "\n")


class ServiceProgress:
    """Shows the start of the services, one line each."""

    def __init__(self) -> None:
        self._progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err)
        self._tasks: dict[str, Any] = {}
        self._fetching: Any = None

    def __enter__(self) -> "ServiceProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take an event of `stack.up`."""
        name = event.get("service") or ("downloads" if event["state"] == "fetching" else None)
        if name is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=1)
        detail = event.get("message") or event.get("version") or ""
        done = 1 if event["state"] == "ready" else 0
        self._progress.update(self._tasks[name], description=f"{name}: {event['state']} {detail}"[:110], completed=done)


class RunProgress:
    """Shows the steps of a run with a bar; without a terminal, a line per step."""

    def __init__(self) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=err)
        self._task = self._progress.add_task("starting", total=None)
        self._started: dict[str, float] = {}

    def __enter__(self) -> "RunProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, step: Any) -> None:
        """Take a step of `runs.materialise`."""
        if step.state == "started":
            self._started[step.name] = time.monotonic()
            self._progress.update(self._task, description=step.name, total=step.total or None)
            return
        seconds = time.monotonic() - self._started.get(step.name, time.monotonic())
        self._progress.update(self._task, completed=step.number, total=step.total or None)
        self._progress.console.print(f"{step.state:7} {step.name} {seconds:.1f} s", highlight=False)


@contextmanager
def exclusive() -> Iterator[None]:
    """Wait for other runs to end, and keep them waiting."""
    from c360_pipeline.connections import open_control

    with open_control(load_settings()).locks.exclusive_run():
        yield


def as_date(text: str, option: str) -> date:
    """A date of an option.

    Raises:
        ConfigError: it is none.
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} {text!r}: a date such as 2025-11-03 is right.") from None


def as_instant(text: str, lake: Any) -> datetime:
    """An instant of an option: `now`, a time, or a version of the archive's events, which means its commit.

    Raises:
        ConfigError: it is none, or there is no such version.
    """
    if text == "now":
        return datetime.now(UTC)
    if text.isdecimal():
        from c360_pipeline.core.catalog.tables import EVENTS

        commits = {int(entry["version"]): int(entry["timestamp"]) for entry in lake.versions.history(EVENTS)}
        if int(text) not in commits:
            known = f"there are {min(commits)} to {max(commits)}" if commits else "nothing has landed yet"
            raise ConfigError(f"There is no version {text} of the events: {known}.")
        return datetime.fromtimestamp(commits[int(text)] / 1000, UTC)
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r}: an instant such as 2025-11-03T12:00Z, or the number of a version.") from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def local_folder(path: Path) -> Path:
    """A folder of this machine, as an argument names it.

    Raises:
        ConfigError: it is an address: it would become a folder called `s3:`.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise ConfigError(f"{path}: a folder of this machine is right; copy it to or from an object store yourself.")
    return path
