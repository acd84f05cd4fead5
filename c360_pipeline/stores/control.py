"""The control database: what to read from which silo and what it becomes, and the log of what was done."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any, LiteralString

import polars as pl
import psycopg
from psycopg.rows import dict_row

from c360_pipeline.core.keys import KeyRule
from c360_pipeline.core.row_hashes import user_hash
from c360_pipeline.core.silos import ControlRows, RelationshipRow, SourceDatabase, SourceTable
from c360_pipeline.errors import UnavailableError
from c360_pipeline.stores.postgres import ensure_database

READ_DATABASES = """
    SELECT database_id, tenant_id, db_name, host, port, db_user AS "user", password_ref
    FROM source_databases WHERE is_active ORDER BY database_id
"""
READ_TABLES = """
    SELECT t.table_id, t.database_id, t.schema_name, t.table_name, t.key_columns
    FROM source_tables t JOIN source_databases d USING (database_id)
    WHERE d.is_active AND t.is_active ORDER BY t.table_id
"""
READ_EXCLUSIONS = "SELECT table_id, column_name FROM field_exclusion_rules WHERE is_excluded"
READ_LABELS = "SELECT table_id, node_label FROM node_label_mappings"
READ_RELATIONSHIPS = """
    SELECT mapping_id, from_label, to_label, relationship_type, join_condition, via_label
    FROM relationship_mappings WHERE is_active ORDER BY mapping_id
"""
READ_KEY_RULES = "SELECT tenant_id, key_type, source_attribute, mode FROM correlation_key_rules ORDER BY rule_id"
READ_SUPPRESSED = "SELECT tenant_id, user_hash FROM suppressed_users ORDER BY tenant_id, user_hash"
SUPPRESS = """
    INSERT INTO suppressed_users (tenant_id, user_hash, reason) VALUES (%(tenant_id)s, %(user_hash)s, %(reason)s)
    ON CONFLICT DO NOTHING
"""
UNSUPPRESS = "DELETE FROM suppressed_users WHERE tenant_id = %(tenant_id)s AND user_hash = %(user_hash)s"
FIND_TABLES = "SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'suppressed_users'"
TAKE_SCHEMA_LOCK = "SELECT pg_advisory_xact_lock(hashtext('c360 control schema'))"
TAKE_RUN_LOCK = "SELECT pg_advisory_xact_lock(hashtext('c360 run'))"
START_RUN = "INSERT INTO etl_run_logs (run_id, status) VALUES (%(run_id)s, 'running') RETURNING log_id"
FINISH_RUN = """
    UPDATE etl_run_logs SET status = %(status)s, finished_at = clock_timestamp(), error = %(error)s
    WHERE log_id = %(log_id)s
"""
LOG_TABLE = """
    INSERT INTO etl_table_logs (log_id, db_name, table_name, status, rows_read, rows_changed, seconds)
    VALUES (%(log_id)s, %(db_name)s, %(table_name)s, 'done', %(rows_read)s, %(rows_changed)s, %(seconds)s)
"""


class ControlDb:
    """The control database; each method is one short connection.

    Args:
        connection: host, port, dbname, user, password as psycopg takes them.
    """

    def __init__(self, connection: dict[str, Any]) -> None:
        self._connection = connection

    @contextmanager
    def _connect(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        where = "{dbname} at {host}:{port}".format(**self._connection)
        try:
            connection = psycopg.connect(**self._connection, connect_timeout=10, row_factory=dict_row)
        except psycopg.OperationalError as error:
            raise UnavailableError(
                f"The control database {where} can't be reached: {error}. "
                "Start the embedded one with `c360 up` and fill it with `c360 seed`."
            ) from None
        with connection:
            yield connection

    def ensure(self) -> None:
        """Create the database, the control tables and the default key rules where they are missing."""
        ensure_database(self._connection)
        with self._connect() as connection:
            # One at a time: CREATE TABLE IF NOT EXISTS of two sessions at once can fail.
            connection.execute(TAKE_SCHEMA_LOCK)
            if not connection.execute(FIND_TABLES).fetchone():
                script = resources.files("c360_pipeline.ddl").joinpath("control.sql").read_text(encoding="utf-8")
                connection.execute(script.encode())

    @contextmanager
    def exclusive_run(self) -> Iterator[None]:
        """Wait until no other run holds the lock, and hold it; it ends with the connection, even after a crash."""
        with self._connect() as connection:
            connection.execute(TAKE_RUN_LOCK)
            yield

    def read(self) -> ControlRows:
        """All active control rows, as one consistent picture."""
        with self._connect() as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            return ControlRows(
                databases=tuple(SourceDatabase(**row) for row in connection.execute(READ_DATABASES)),
                tables=tuple(
                    SourceTable(**{**row, "key_columns": tuple(row["key_columns"])})
                    for row in connection.execute(READ_TABLES)
                ),
                excluded=frozenset((r["table_id"], r["column_name"]) for r in connection.execute(READ_EXCLUSIONS)),
                labels={r["table_id"]: r["node_label"] for r in connection.execute(READ_LABELS)},
                relationships=tuple(RelationshipRow(**row) for row in connection.execute(READ_RELATIONSHIPS)),
            )

    def key_rules(self) -> list[KeyRule]:
        """Which attributes of events are keys."""
        with self._connect() as connection:
            return [
                KeyRule(r["tenant_id"], r["key_type"], r["source_attribute"], r["mode"])
                for r in connection.execute(READ_KEY_RULES)
            ]

    def suppressed_users(self) -> pl.DataFrame:
        """The users whose events never land: tenant_id and user_hash, as `core.landing.user_hash` makes it."""
        with self._connect() as connection:
            rows = [(r["tenant_id"], r["user_hash"]) for r in connection.execute(READ_SUPPRESSED)]
        return pl.DataFrame(rows, schema={"tenant_id": pl.String, "user_hash": pl.String}, orient="row")

    def suppress(self, tenant_id: str, user_id: str, reason: str) -> bool:
        """Put a user on the list; False when they were on it."""
        return self._change_suppressed(SUPPRESS, tenant_id, user_id, reason)

    def unsuppress(self, tenant_id: str, user_id: str) -> bool:
        """Take a user off the list; False when they were not on it."""
        return self._change_suppressed(UNSUPPRESS, tenant_id, user_id, "")

    def _change_suppressed(self, statement: LiteralString, tenant_id: str, user_id: str, reason: str) -> bool:
        user = pl.DataFrame({"tenant_id": [tenant_id], "user_id": [user_id]}).with_columns(
            pl.col(pl.String).str.normalize("NFC")
        )
        values = {**user.select("tenant_id", user_hash=user_hash()).row(0, named=True), "reason": reason}
        with self._connect() as connection:
            return connection.execute(statement, values).rowcount > 0

    @contextmanager
    def logged_run(self, run_id: str) -> Iterator[int]:
        """A row of `etl_run_logs` that says running, then done or failed; yields its log_id."""
        with self._connect() as connection:
            row = connection.execute(START_RUN, {"run_id": run_id}).fetchone()
        log_id = int(row["log_id"]) if row else 0
        try:
            yield log_id
        except BaseException as error:
            self._finish_run(log_id, "failed", f"{type(error).__name__}: {error}")
            raise
        self._finish_run(log_id, "done", None)

    def _finish_run(self, log_id: int, status: str, error: str | None) -> None:
        with self._connect() as connection:
            connection.execute(FINISH_RUN, {"log_id": log_id, "status": status, "error": error})

    def log_table(
        self, log_id: int, *, db_name: str, table_name: str, rows_read: int, rows_changed: int, seconds: float
    ) -> None:
        """Add a row to `etl_table_logs`."""
        values = {
            "log_id": log_id, "db_name": db_name, "table_name": table_name, "rows_read": rows_read,
            "rows_changed": rows_changed, "seconds": seconds,
        }  # fmt: skip
        with self._connect() as connection:
            connection.execute(LOG_TABLE, values)
