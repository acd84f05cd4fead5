"""Dagster resources: each opens one store.

They carry no address and no secret: those are read from the environment when a step runs, so that neither shows in
the UI, in run configuration or in the event log (docs/adr/0005). Keep asset logic out of this folder.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Self

import dagster as dg
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from c360_pipeline.connections import open_control, open_graph, open_lake, open_landing, open_silo
from c360_pipeline.core.silos.control_rows import SourceDatabase
from c360_pipeline.errors import UnavailableError
from c360_pipeline.settings import c360_home, load_settings
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.local.metrics import Metrics
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.silo import Silo
from c360_pipeline.stores.s3.landing import Landing
from c360_pipeline.stores.webhook import Notifier

if TYPE_CHECKING:
    from c360_pipeline.streaming.agreement import Agreement

RESTART_SECONDS = 20.0
"""For how long runs and sensors wait for a database that is being restarted."""


class LandingResource(dg.ConfigurableResource[Landing]):
    """Opens the landing area."""

    def open(self) -> Landing:
        """The landing area."""
        return open_landing(load_settings())


class LakeResource(dg.ConfigurableResource[Lake]):
    """Opens the lake. Runs that have it keep away who wants the stores for itself: a rebuild, an erasure, a restore."""

    @contextmanager
    def yield_for_execution(  # type: ignore[override]  # assets get the resource, not what it opens
        self, context: dg.InitResourceContext
    ) -> Iterator[Self]:
        """Share the stores for as long as a run lasts; sensors and schedules only look."""
        if context.run is None:
            yield self
            return
        said = "A command has the stores for itself (rebuild, erase, restore, load): waiting until it is done."
        with _open_control().locks.shared_run(lambda: _log_of(context).info(said)):
            yield self

    def open(self) -> Lake:
        """The lake."""
        return open_lake(load_settings())


class ExclusiveLakeResource(dg.ConfigurableResource[Lake]):
    """Opens the lake for a run that wants the stores for itself."""

    @contextmanager
    def yield_for_execution(  # type: ignore[override]  # ops get the resource, not what it opens
        self, context: dg.InitResourceContext
    ) -> Iterator[Self]:
        """Wait until nobody else is at work, and keep others away for as long as the run lasts."""
        _log_of(context).info("Waiting until no run and no command is at work.")
        with _open_control().locks.exclusive_run():
            yield self

    def open(self) -> Lake:
        """The lake."""
        return open_lake(load_settings())


class ControlResource(dg.ConfigurableResource[ControlDb]):
    """Opens the control database."""

    def open(self) -> ControlDb:
        """The control database; one that is being restarted is waited for."""
        return _open_control()


class SilosResource(dg.ConfigurableResource[Silo]):
    """Opens source databases as the control rows name them."""

    def open(self, database: SourceDatabase) -> Silo:
        """One source database, its password taken from where the row points."""
        return open_silo(database)


class GraphResource(dg.ConfigurableResource[Graph]):
    """Opens the graph."""

    def open(self) -> AbstractContextManager[Graph]:
        """The graph, to be entered."""
        return open_graph(load_settings())


class MetricsResource(dg.ConfigurableResource[Metrics]):
    """Opens the folder of figures for Prometheus."""

    def open(self) -> Metrics:
        """The folder, in the state folder."""
        return Metrics(c360_home() / "metrics")


class StreamResource(dg.ConfigurableResource[None]):
    """The real-time path, where there is one."""

    def compare(self, hours: float, landing: timedelta) -> "Agreement | None":
        """What was sent against what the stores hold; None where no real-time path is set up.

        Args:
            hours: messages that are not older.
            landing: how old a message may be that has not landed.
        """
        settings = load_settings()
        if settings.kafka_bootstrap_servers is None or settings.cassandra_hosts is None:
            return None
        # Its clients are an extra of their own.
        from c360_pipeline.streaming.verify import compared

        return compared(settings, hours, landing)


class NotifierResource(dg.ConfigurableResource[Notifier]):
    """Tells people, by the webhook that `C360_NOTIFY_WEBHOOK` names and in the log."""

    def open(self) -> Notifier:
        """The notifier."""
        settings = load_settings()
        return Notifier(settings.notify_webhook, settings.dagster_url)


def _log_of(context: dg.InitResourceContext) -> logging.Logger:
    return context.log or logging.getLogger(__name__)


def _open_control() -> ControlDb:
    for attempt in Retrying(
        retry=retry_if_exception_type(UnavailableError), stop=stop_after_delay(RESTART_SECONDS), wait=wait_fixed(0.5),
        reraise=True,
    ):  # fmt: skip
        with attempt:
            return open_control(load_settings())
    raise AssertionError("the last attempt returns or raises")
