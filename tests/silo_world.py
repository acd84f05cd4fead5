"""A silo with its control rows and a lake, as tests of silos use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import polars as pl
import psycopg
from psycopg import sql

from c360_pipeline.connections import open_silo
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.settings import Settings, postgres_login
from c360_pipeline.stages.silos.run import Loaded, SiloRun
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.control import ControlDb

ADD_DATABASE = """
    INSERT INTO source_databases (tenant_id, db_name, host, port, db_user, password_ref)
    VALUES ('acme', %(name)s, %(host)s, %(port)s, %(user)s, 'env:C360_SOURCE_TEST') RETURNING database_id
"""
ADD_TABLE = """
    INSERT INTO source_tables (database_id, schema_name, table_name, key_columns, cursor_column, snapshot_mode)
    VALUES (%(database)s, %(schema)s, %(table)s, %(key)s, %(cursor)s, %(mode)s) RETURNING table_id
"""
ADD_LABEL = "INSERT INTO node_label_mappings (table_id, node_label) VALUES (%s, %s)"
ADD_MAPPING = """
    INSERT INTO relationship_mappings (from_label, to_label, relationship_type, join_condition, via_label)
    VALUES (%s, %s, %s, %s, %s)
"""
EXCLUDE = "INSERT INTO field_exclusion_rules (table_id, column_name, reason) VALUES (%s, %s, 'private')"
READ_TABLE_LOGS = """
    SELECT table_name, status, snapshot_mode, rows_read, rows_loaded, rows_deleted, error
    FROM etl_table_logs ORDER BY table_log_id
"""
READ_RUN_LOGS = "SELECT run_id, status, plan_hash, error FROM etl_run_logs ORDER BY log_id"


@dataclass
class World:
    """A silo, the control database and a lake."""

    login: dict[str, Any]
    name: str
    database: int
    control: ControlDb
    lake: Lake
    source: psycopg.Connection[Any]
    runs: int = 0
    said: list[str] = field(default_factory=list)

    def add(self, table: str, key: str = "id", label: str | None = None, **more: str) -> int:
        """A control row."""
        values = {"schema": "public", "cursor": None, "mode": "full", **more}
        row = self.control.execute(ADD_TABLE, database=self.database, table=table, key=key.split(","), **values)
        if label:
            self.configure(ADD_LABEL, row["table_id"], label)
        return int(row["table_id"])

    def configure(self, statement: str, *values: object) -> None:
        """Run a statement in the control database."""
        with psycopg.connect(**self.login) as connection:
            connection.execute(statement.encode(), values)

    def rows_of(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of the control database."""
        with psycopg.connect(**self.login) as connection:
            return connection.execute(statement.encode()).fetchall()

    def load(self, *, force: bool = True) -> Loaded:
        """One run; what goes from a source goes from the lake."""
        self.runs += 1
        with self.control.runs.logged_run(f"run-{self.runs}") as log:
            said = self.said.append
            return SiloRun(self.control, self.lake, open_silo, f"run-{self.runs}", log, said, force=force).load()

    def table(self, name: str, *key: str) -> Table:
        """The lake table."""
        found = self.lake.stored_table(f"silos/{self.name}/{name}", ("tenant_id", *(key or ("id",))))
        assert found is not None
        return found

    def held(self, name: str) -> pl.DataFrame:
        """The rows of the lake table, by id."""
        return self.lake.read(self.table(name)).sort("id")

    def logged(self) -> list[tuple[Any, ...]]:
        """What the log says of each table: name, status, mode, rows read, loaded and deleted, error."""
        return self.rows_of(READ_TABLE_LOGS)


@contextmanager
def a_silo(settings: Settings, control: ControlDb, lake: Lake) -> Iterator[World]:
    """A database of its own with a row in the control database."""
    login = postgres_login(settings, settings.etl_db_name)
    name = f"silo_{uuid4().hex[:8]}"
    with psycopg.connect(**{**login, "dbname": "postgres"}, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        row = control.execute(ADD_DATABASE, name=name, host=login["host"], port=login["port"], user=login["user"])
        with psycopg.connect(**{**login, "dbname": name}, autocommit=True) as source:
            yield World(login, name, row["database_id"], control, lake, source)
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


AWKWARD = """
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN price AS numeric(12, 2) CHECK (value >= 0);
    CREATE DOMAIN discount AS price;
    CREATE TABLE awkward (
        id int PRIMARY KEY, whole numeric(20, 0), exact numeric(38, 10), free numeric, huge numeric(60, 5),
        negative_scale numeric(5, -2), amount discount, at timestamptz, local timestamp, day date, clock time,
        span interval, uid uuid, doc jsonb, raw_doc json, numbers int[], words text[], bytes bytea, address inet,
        network cidr, numbers_range int4range, padded char(5), feeling mood, money_in money, flag bool,
        single real, double float8, small int2, big int8, object oid, "select" text,
        "Grüße ""quoted"" x" text, bits bit(3)
    );
    INSERT INTO awkward VALUES (
        1, 12345678901234567890, 1234567890123456789012345678.0123456789, 'NaN', 12345678901234567890123456789.5, 12300,
        9.99, '2024-02-29 23:59:59.123456+02', '2024-02-29 23:59:59.123456', '2024-02-29', '23:59:59.5',
        '1 mon 2 days 03:04:05', '0a0a0a0a-0000-0000-0000-00000000000a', '{"a": [1, null]}', '{"a":  1}', '{1,NULL,3}',
        '{a,"b,c"}', '\\x00ff', '10.0.0.1/8', '10.0.0.0/8', '[1,5)', 'ab', 'ok', 12.34, true, 1.5, 0.1, -5,
        9223372036854775807, 7, 'reserved', 'named', '101'
    ), (2, NULL, NULL, NULL, NULL, NULL, NULL, 'infinity', '-infinity', 'infinity', NULL, NULL, NULL, NULL, NULL, NULL,
        NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'NaN', '-Infinity', NULL, NULL, NULL, NULL, NULL, NULL)
"""
