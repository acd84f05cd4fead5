"""A silo: one operational Postgres database, read as Arrow over ADBC; excluded columns are never selected."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from urllib.parse import quote, urlencode

import adbc_driver_postgresql.dbapi as adbc
import polars as pl
import psycopg
from psycopg import sql
from pydantic import SecretStr

from c360_pipeline.core.silos import LAKE_TYPES, Column, Extract, SourceDatabase, SourceTable, lake_type
from c360_pipeline.errors import UnavailableError

READ_COLUMNS = """
    SELECT a.attname AS name, coalesce(base.typname, t.typname) AS pg_type,
           CASE WHEN t.typname = 'numeric' AND a.atttypmod >= 4 THEN ((a.atttypmod - 4) >> 16) & 65535 END AS precision,
           CASE WHEN t.typname = 'numeric' AND a.atttypmod >= 4 THEN (a.atttypmod - 4) & 2047 END AS scale
    FROM pg_attribute a
    JOIN pg_class c ON c.oid = a.attrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_type base ON base.oid = t.typbasetype
    WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""


class Silo:
    """A source database.

    Args:
        database: its control row.
        password: what the row's reference points at.
    """

    def __init__(self, database: SourceDatabase, password: SecretStr) -> None:
        self.database = database
        self._password = password

    def columns(self, tables: Iterable[SourceTable]) -> dict[int, Mapping[str, Column]]:
        """What columns the tables have, by table_id and name; none for a table that does not exist.

        Raises:
            UnavailableError: the database can't be reached.
        """
        database = self.database
        try:
            with psycopg.connect(
                host=database.host, port=database.port, dbname=database.db_name, user=database.user,
                password=self._password.get_secret_value(), connect_timeout=10,
            ) as connection:  # fmt: skip
                return {
                    table.table_id: {
                        row[0]: Column(*row)
                        for row in connection.execute(
                            READ_COLUMNS, {"schema": table.schema_name, "table": table.table_name}
                        )
                    }
                    for table in tables
                }
        except psycopg.OperationalError as error:
            raise UnavailableError(
                f"The silo {database.db_name} at {database.host}:{database.port} "
                f"(source_databases row {database.database_id}) can't be reached: {error}"
            ) from None

    def extract(self, plan: Extract) -> pl.DataFrame:
        """The rows of a table, typed as in the lake, ordered by key.

        Raises:
            UnavailableError: the database can't be reached or refuses the read.
        """
        query = sql.SQL("SELECT {} FROM {} ORDER BY {}").format(
            sql.SQL(", ").join(_selected(column) for column in plan.columns),
            sql.Identifier(plan.table.schema_name, plan.table.table_name),
            sql.SQL(", ").join(sql.Identifier(k) for k in plan.table.key_columns),
        )
        try:
            with closing(adbc.connect(self._uri())) as connection, closing(connection.cursor()) as cursor:
                cursor.execute(query.as_string(None))
                frame = pl.from_arrow(cursor.fetch_arrow_table())
        except adbc.Error as error:
            raise UnavailableError(
                f"Reading {plan.table.schema_name}.{plan.table.table_name} of {plan.db_name} failed: "
                f"{self._masked(str(error))}"
            ) from None
        assert isinstance(frame, pl.DataFrame)  # noqa: S101 - a table, not an array, is a frame
        return frame.select(pl.col(c.name).cast(lake_type(c)) for c in plan.columns)

    def _uri(self) -> str:
        database = self.database
        # All as parameters: a host may be an IPv6 address or the folder of a socket.
        parameters = {
            "host": database.host, "port": database.port, "dbname": database.db_name, "user": database.user,
            "password": self._password.get_secret_value(),
        }  # fmt: skip
        return "postgresql://?" + urlencode(parameters, quote_via=quote)

    def _masked(self, message: str) -> str:
        """The message without the password, plain or percent-encoded."""
        password = self._password.get_secret_value()
        for form in (quote(password), quote(password, safe=""), password):
            message = message.replace(form, "***") if form else message
        return message


def _selected(column: Column) -> sql.Composable:
    """The column as the driver can carry it: types without a counterpart in Arrow travel as text."""
    name = sql.Identifier(column.name)
    if column.pg_type in LAKE_TYPES and column.pg_type != "oid":
        return name
    return sql.SQL("{}::text AS {}").format(name, name)
