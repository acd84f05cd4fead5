"""Figures of the last run as files for Prometheus: the text format, taken up by node exporter's textfile collector.

Runs end, so that there is nothing to scrape; each stage replaces its file whole.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, write_to_textfile
from prometheus_client.core import GaugeMetricFamily
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
    """

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


class Metrics:
    """The files of all stages.

    Args:
        folder: of the files; node exporter is pointed at it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, stage: str, figures: Iterable[Figure]) -> Path:
        """Write the figures of a stage to `<stage>.prom`; returns the file."""
        registry = CollectorRegistry()
        registry.register(Collected(list(figures)))
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{stage}.prom"
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
    found: dict[str, GaugeMetricFamily] = {}
    for figure in figures:
        names = sorted(figure.labels)
        family = found.get(figure.name)
        if family is None:
            family = found[figure.name] = GaugeMetricFamily(f"c360_{figure.name}", figure.help, labels=names)
        family.add_metric([figure.labels[name] for name in names], figure.value)
    yield from found.values()


def by_tenant(name: str, text: str, values: Mapping[str, float]) -> list[Figure]:
    """A figure per tenant: of the largest, the rest as one."""
    ordered = sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))
    kept, rest = ordered[:MAX_TENANTS], ordered[MAX_TENANTS:]
    figures = [Figure(name, text, value, {"tenant": tenant}) for tenant, value in kept]
    return [*figures, Figure(name, text, max(v for _, v in rest), {"tenant": "other"})] if rest else figures
