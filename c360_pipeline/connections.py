"""Opens the stores with the addresses and passwords that the settings hold.

Without Dagster, so that a command which needs a store only does not wait for the import of everything.
"""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import structlog

from c360_pipeline.core.silos.control_rows import SourceDatabase
from c360_pipeline.settings import (
    Settings,
    c360_home,
    identifier_keys_place,
    identifier_secrets,
    keep_identifier_secret,
    postgres_login,
    source_secret,
    strictest_sslmode,
)
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.identifier_keys import Secrets
from c360_pipeline.stores.s3.bucket import Bucket
from c360_pipeline.stores.s3.landing import Landing

if TYPE_CHECKING:
    from c360_pipeline.stores.postgres.silo import Silo


log = structlog.get_logger()


def _tell_of_secret(version: int) -> None:
    """A person should hear of a secret that was made."""
    advice = "keep a copy with your backups, and copy it to every machine of this installation"
    log.warning("identifier_secret_made", version=version, place=identifier_keys_place(), advice=advice)


IDENTIFIER_SECRETS = Secrets(identifier_secrets, keep_identifier_secret, identifier_keys_place, _tell_of_secret)


def s3_login(settings: Settings) -> dict[str, Any]:
    """Address, login and region of S3; holds the secret, so never log it."""
    return {
        "endpoint_url": settings.aws_endpoint_url,
        "access_key_id": settings.aws_access_key_id,
        "secret_access_key": settings.aws_secret_access_key.get_secret_value(),
        "region": settings.aws_region,
    }


def open_landing(settings: Settings) -> Landing:
    """The landing area, its bucket there."""
    landing = Landing(settings.bucket, **s3_login(settings))
    landing.ensure_bucket()
    return landing


def open_bucket(settings: Settings) -> Bucket:
    """The objects of the bucket, which is there."""
    _bucket_made(settings)
    return Bucket(settings.bucket, **s3_login(settings))


def open_lake(settings: Settings) -> Lake:
    """The lake in the same bucket, which is there."""
    _bucket_made(settings)
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


@cache
def _bucket_made(settings: Settings) -> None:
    """Make the bucket, once per process: a run may begin with the lake."""
    open_landing(settings)


def open_control(settings: Settings) -> ControlDb:
    """The control database, its tables there."""
    control = ControlDb(postgres_login(settings, settings.etl_db_name), IDENTIFIER_SECRETS)
    control.ensure()
    return control


def open_silo(database: SourceDatabase) -> "Silo":
    """One source database, its password taken from where the control row points."""
    # Flink's environment has no client of silos.
    from c360_pipeline.stores.postgres.silo import Silo

    secret = source_secret(database.password_ref, database.host, database.port)
    return Silo(replace(database, sslmode=strictest_sslmode(database.sslmode)), secret)


def open_graph(settings: Settings) -> Graph:
    """The graph; enter it before use."""
    return Graph(*neo4j_login(settings))


def neo4j_login(settings: Settings) -> tuple[str, str, str, str]:
    """Address, user, password and database of the graph; holds the password, so never log it."""
    return (
        settings.neo4j_uri,
        settings.neo4j_user,
        settings.neo4j_password.get_secret_value(),
        settings.neo4j_database,
    )
