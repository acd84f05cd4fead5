"""Dagster resources: each opens one store.

They carry no address and no secret: those are read from the environment when a step runs, so that neither shows in
the UI, in run configuration or in the event log (docs/adr/0005). Keep asset logic out of this folder.
"""

from contextlib import AbstractContextManager

import dagster as dg

from c360_pipeline.core.silos import SourceDatabase
from c360_pipeline.settings import Settings, c360_home, load_settings, postgres_login, resolve_secret
from c360_pipeline.stores.control import ControlDb
from c360_pipeline.stores.gds import Gds
from c360_pipeline.stores.graph import Graph
from c360_pipeline.stores.lake import Lake
from c360_pipeline.stores.landing import Landing
from c360_pipeline.stores.silos import Silo


def open_landing(settings: Settings) -> Landing:
    """The landing area, its bucket there."""
    landing = Landing(
        settings.bucket,
        endpoint_url=settings.aws_endpoint_url,
        access_key_id=settings.aws_access_key_id,
        secret_access_key=settings.aws_secret_access_key.get_secret_value(),
        region=settings.aws_region,
    )
    landing.ensure_bucket()
    return landing


def open_lake(settings: Settings) -> Lake:
    """The lake in the same bucket."""
    options = {
        "AWS_ACCESS_KEY_ID": settings.aws_access_key_id,
        "AWS_SECRET_ACCESS_KEY": settings.aws_secret_access_key.get_secret_value(),
        "AWS_REGION": settings.aws_region,
        # Commits are put with If-None-Match, so that two writers can't make the same version.
        "conditional_put": "etag",
    }
    if settings.aws_endpoint_url:
        options |= {"AWS_ENDPOINT_URL": settings.aws_endpoint_url}
        if settings.aws_endpoint_url.startswith("http://"):
            options |= {"AWS_ALLOW_HTTP": "true"}
    return Lake(f"s3://{settings.bucket}/lake", options, c360_home() / "cache")


def open_control(settings: Settings) -> ControlDb:
    """The control database, its tables there."""
    control = ControlDb(postgres_login(settings, settings.etl_db_name))
    control.ensure()
    return control


def open_graph(settings: Settings) -> Graph:
    """The graph; enter it before use."""
    return Graph(*_neo4j_login(settings))


def open_gds(settings: Settings) -> Gds:
    """The graph's algorithms."""
    return Gds(*_neo4j_login(settings))


def _neo4j_login(settings: Settings) -> tuple[str, str, str, str]:
    return (
        settings.neo4j_uri,
        settings.neo4j_user,
        settings.neo4j_password.get_secret_value(),
        settings.neo4j_database,
    )


class LandingResource(dg.ConfigurableResource[Landing]):
    """Opens the landing area."""

    def open(self) -> Landing:
        """The landing area."""
        return open_landing(load_settings())


class LakeResource(dg.ConfigurableResource[Lake]):
    """Opens the lake."""

    def open(self) -> Lake:
        """The lake."""
        return open_lake(load_settings())


class ControlResource(dg.ConfigurableResource[ControlDb]):
    """Opens the control database."""

    def open(self) -> ControlDb:
        """The control database."""
        return open_control(load_settings())


class SilosResource(dg.ConfigurableResource[Silo]):
    """Opens source databases as the control rows name them."""

    def open(self, database: SourceDatabase) -> Silo:
        """One source database, its password taken from where the row points."""
        return Silo(database, resolve_secret(database.password_ref))


class GraphResource(dg.ConfigurableResource[Graph]):
    """Opens the graph."""

    def open(self) -> AbstractContextManager[Graph]:
        """The graph, to be entered."""
        return open_graph(load_settings())


class GdsResource(dg.ConfigurableResource[Gds]):
    """Opens the graph's algorithms."""

    def open(self) -> Gds:
        """The GDS library."""
        return open_gds(load_settings())
