"""Dagster's own storage in Postgres, with the same settings as everything else; named in dagster.yaml.

Plain `dagster dev`, `dagster asset materialize` and `c360 run` so share one instance without a variable to set.
"""

from typing import Any, Self

import psycopg
from dagster._config import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import get_conn_string
from psycopg import sql

from c360_pipeline.errors import UnavailableError
from c360_pipeline.settings import Settings, load_settings


class InstanceStorage(DagsterPostgresStorage):
    """Runs, events and schedules in the database `C360_DAGSTER_DB` beside the control database."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """There is nothing to configure here."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:  # noqa: ARG003
        """Connect, after making the database where it is missing.

        Raises:
            UnavailableError: Postgres can't be reached.
        """
        settings = load_settings()
        _ensure_database(settings)
        url = get_conn_string(
            username=settings.etl_db_user,
            password=settings.etl_db_password.get_secret_value(),
            hostname=settings.etl_db_host,
            port=str(settings.etl_db_port),
            db_name=settings.dagster_db_name,
        )
        return cls(postgres_url=url, should_autocreate_tables=True, inst_data=inst_data)


def _ensure_database(settings: Settings) -> None:
    login = {
        "host": settings.etl_db_host,
        "port": settings.etl_db_port,
        "user": settings.etl_db_user,
        "password": settings.etl_db_password.get_secret_value(),
        "connect_timeout": 10,
    }
    try:
        with psycopg.connect(dbname="postgres", autocommit=True, **login) as connection:
            name = settings.dagster_db_name
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.errors.DuplicateDatabase:
        return
    except psycopg.OperationalError as error:
        raise UnavailableError(
            f"Postgres at {settings.etl_db_host}:{settings.etl_db_port}, where Dagster keeps its runs, can't be "
            f"reached: {error}. Start the embedded one with `c360 up`."
        ) from None
