"""Figures of the last run as files for Prometheus: the text format, taken up by node exporter's textfile collector.

Runs end, so that there is nothing to scrape; each stage replaces its file whole.
"""

import fcntl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

MAX_TENANTS = 100
"""More are put together as `other`: a label must not grow with the customers."""


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        name: without the prefix `c360_`; with its unit.
        help: one sentence.
        value: now.
        labels: by name.
        is_total: it is counted up from run to run, so that `rate()` tells how much came; an idle run adds nothing.
    """

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    is_total: bool = False


class Metrics:
    """The files of all stages.

    Args:
        folder: of the files; node exporter is pointed at it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, stage: str, figures: Iterable[Figure]) -> Path:
        """Write the figures of a stage to `<stage>.prom`, totals added to what is there; returns the file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{stage}.prom"
        with (self._folder / f"{stage}.lock").open("w") as lock:
            # Runs of one stage may end at once, and each adds what it did.
            fcntl.flock(lock, fcntl.LOCK_EX)
            registry = CollectorRegistry()
            registry.register(Collected(_summed(figures, path)))
            write_to_textfile(str(path), registry)
        return path

    def read(self) -> Iterator[Metric]:
        """The figures of all stages, and how old each stage's are."""
        found: dict[str, Metric] = {}
        ages = []
        for path in sorted(self._folder.glob("*.prom")):
            ages.append(Figure("figures_age_seconds", "Seconds since a stage wrote figures.",
                               time.time() - path.stat().st_mtime, {"stage": path.stem}))  # fmt: skip
            for family in text_string_to_metric_families(path.read_text(encoding="utf-8")):
                known = found.setdefault(family.name, family)
                if known is not family:
                    known.samples.extend(family.samples)
        yield from found.values()
        yield from families(ages)


@dataclass(frozen=True, eq=False)
class Collected(Collector):
    """Figures as a registry of Prometheus takes them."""

    figures: list[Figure]

    def collect(self) -> Iterator[Metric]:
        """One family for each name."""
        return families(self.figures)


def families(figures: Iterable[Figure]) -> Iterator[Metric]:
    """The figures, those of one name together."""
    found: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for figure in figures:
        names = sorted(figure.labels)
        family = found.get(figure.name)
        if family is None:
            kind = CounterMetricFamily if figure.is_total else GaugeMetricFamily
            family = found[figure.name] = kind(f"c360_{figure.name}", figure.help, labels=names)
        family.add_metric([figure.labels[name] for name in names], figure.value)
    yield from found.values()


def _summed(figures: Iterable[Figure], path: Path) -> list[Figure]:
    """Figures with totals added to those of a file, and the totals that are only there."""
    kept: dict[tuple[str, frozenset[tuple[str, str]]], Figure] = {}
    for family in text_string_to_metric_families(path.read_text(encoding="utf-8")) if path.exists() else ():
        if family.type == "counter":
            for sample in family.samples:
                name = family.name.removeprefix("c360_")
                figure = Figure(name, family.documentation, sample.value, dict(sample.labels), is_total=True)
                kept[name, frozenset(figure.labels.items())] = figure
    gauges = []
    for figure in figures:
        key = (figure.name, frozenset(figure.labels.items()))
        if figure.is_total:
            kept[key] = replace(figure, value=figure.value + (kept[key].value if key in kept else 0.0))
        else:
            gauges.append(figure)
    return [*gauges, *kept.values()]


def by_tenant(name: str, text: str, values: Mapping[str, float]) -> list[Figure]:
    """A figure per tenant: of the largest, the rest as one."""
    ordered = sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))
    kept, rest = ordered[:MAX_TENANTS], ordered[MAX_TENANTS:]
    figures = [Figure(name, text, value, {"tenant": tenant}) for tenant, value in kept]
    return [*figures, Figure(name, text, max(v for _, v in rest), {"tenant": "other"})] if rest else figures
