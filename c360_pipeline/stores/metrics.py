"""Figures of the last run as files for Prometheus: the text format, taken up by node exporter's textfile collector.

Runs end, so that there is nothing to scrape; each stage replaces its file whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

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
        gauges: dict[str, Gauge] = {}
        for figure in figures:
            names = sorted(figure.labels)
            gauge = gauges.get(figure.name)
            if gauge is None:
                gauge = gauges[figure.name] = Gauge(f"c360_{figure.name}", figure.help, names, registry=registry)
            (gauge.labels(**figure.labels) if names else gauge).set(figure.value)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{stage}.prom"
        write_to_textfile(str(path), registry)
        return path


def by_tenant(name: str, text: str, values: Mapping[str, float]) -> list[Figure]:
    """A figure per tenant: of the largest, the rest as one."""
    ordered = sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))
    kept, rest = ordered[:MAX_TENANTS], ordered[MAX_TENANTS:]
    figures = [Figure(name, text, value, {"tenant": tenant}) for tenant, value in kept]
    return [*figures, Figure(name, text, max(v for _, v in rest), {"tenant": "other"})] if rest else figures
