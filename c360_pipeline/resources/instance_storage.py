"""Dagster's own storage in Postgres, with the same settings as everything else; named in dagster.yaml.

Plain `dagster dev`, `dagster asset materialize` and `c360 run` so share one instance without a variable to set.
"""

from typing import Any, Self

from dagster._config import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import get_conn_string
from sqlalchemy import create_engine

from c360_pipeline.settings import load_settings, postgres_login
from c360_pipeline.stores.postgres.databases import ensure_database


class InstanceStorage(DagsterPostgresStorage):
    """Runs, events and schedules in the database `C360_DAGSTER_DB` beside the control database."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """There is nothing to configure here."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """Connect, after making the database where it is missing.

        Raises:
            UnavailableError: Postgres can't be reached.
        """
        settings = load_settings()
        ensure_database(postgres_login(settings, settings.dagster_db_name))
        url = get_conn_string(
            username=settings.etl_db_user,
            password=settings.etl_db_password.get_secret_value(),
            hostname=settings.etl_db_host,
            port=str(settings.etl_db_port),
            db_name=settings.dagster_db_name,
        )
        storage = cls(postgres_url=url, should_autocreate_tables=True, inst_data=inst_data)
        # Dagster opens a connection for each statement, a quarter of the time of a run that has nothing to do. One that
        # Postgres has closed meanwhile, in a restart, is noticed before it is used.
        for part in (storage.event_log_storage, storage.run_storage, storage.schedule_storage):
            part._engine = create_engine(  # type: ignore[union-attr]  # nothing else sets it but for the web server
                url, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=20, pool_pre_ping=True
            )
        return storage
