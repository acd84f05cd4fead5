"""What proves by repetition: how often here, how often in `make soak`, and the table that a soak prints.

A law that held in N independent trials fails in less than 3/N of them, with 95 % confidence: the bound that the table
gives ("rule of three").
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import settings

IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
REPEATS, SEED = "repeats", "seed"
Trials = Callable[[int, int | None], None]


def often(here: int, soak: int) -> int:
    """How often something is done: `here` by `make test`, `soak` by `make soak`."""
    return soak if IS_SOAK else here


def representatives(values: Iterable[Any], *here: object) -> list[Any]:
    """Parameters of a test: those named by `make test`, every one by `make soak`.

    Args:
        values: all of them.
        here: of the values, which stand for the others.
    """
    every = list(values)
    assert all(one in every for one in here)
    return [
        value if value in here
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.soak)
        for value in every
    ]  # fmt: skip


@pytest.fixture
def trials(record_property: Callable[[str, object], None]) -> Trials:
    """Says how many independent trials a test made, and from which seed."""

    def told(count: int, seed: int | None = None) -> None:
        record_property(REPEATS, count)
        if seed is not None:
            record_property(SEED, seed)

    return told


@pytest.fixture(autouse=True)
def _examples(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """A property that holds was tried with as many examples as its settings say."""
    if request.node.get_closest_marker("property"):
        # Where Hypothesis keeps the settings of one test; it publishes no other way to them.
        own = getattr(request.function, "_hypothesis_internal_use_settings", settings.default)
        record_property(REPEATS, own.max_examples)


class SoakReport:
    """Gathers what tests say of their trials, and prints it as a table."""

    def __init__(self, session_seed: object) -> None:
        self._seed = session_seed
        self._rows: list[tuple[str, int, object, float, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One row for each test that was called."""
        if report.when == "call":
            said: dict[str, Any] = dict(report.user_properties)
            name = report.nodeid.partition("tests/")[2] or report.nodeid
            self._rows.append((name, said.get(REPEATS, 1), said.get(SEED, ""), report.duration, report.outcome))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table, as docs/reliability.md has it."""
        if not self._rows:
            return
        terminalreporter.write_sep("=", "soak")
        for line in self.lines():
            terminalreporter.write_line(line)

    def lines(self) -> list[str]:
        """Markdown."""
        head = [
            "| Test | N | Seed | Seconds | Outcome | Fails in less than |",
            "| --- | ---: | --- | ---: | --- | ---: |",
        ]
        rows = [
            f"| {name} | {count:,} | {seed} | {seconds:,.0f} | {outcome} | {f'{3 / count:.2g}' if count > 3 else ''} |"
            for name, count, seed, seconds, outcome in sorted(self._rows)
        ]
        return [f"Seed of the properties: {self._seed}.", "", *head, *rows]
