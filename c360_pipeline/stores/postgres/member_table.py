"""A table of somebody else's database that holds the members of audiences."""

from typing import Any

import psycopg
from psycopg import sql

from c360_pipeline.errors import ConfigError, UnavailableError

FIND_TABLE = "SELECT to_regclass(%(table)s) IS NOT NULL"
"""Who may not make tables may well write one."""
WAITS = "-c statement_timeout=60000 -c lock_timeout=10000"
"""Milliseconds that a statement, and a lock, are waited for."""
MAKE_TABLE = """
    CREATE TABLE IF NOT EXISTS {table} (
        tenant_id text NOT NULL, audience text NOT NULL, user_id text NOT NULL, entered_at timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, audience, user_id)
    )
"""
ENTER = """
    INSERT INTO {table} (tenant_id, audience, user_id, entered_at)
    SELECT %(tenant_id)s, %(audience)s, * FROM unnest(%(users)s::text[], %(moments)s::timestamptz[])
    ON CONFLICT (tenant_id, audience, user_id) DO UPDATE SET entered_at = excluded.entered_at
"""
LEAVE = """
    DELETE FROM {table} WHERE tenant_id = %(tenant_id)s AND audience = %(audience)s AND user_id = ANY(%(users)s)
"""


class MemberTable:
    """The rows of one audience.

    Args:
        login: as psycopg takes it; never log it.
        table: schema and name, of lower-case letters, digits and underscores.
        tenant_id: whose audience.
        audience: its name.
    """

    def __init__(self, login: dict[str, Any], table: str, tenant_id: str, audience: str) -> None:
        self._login = login
        self._name, self._table = table, sql.Identifier(*table.split("."))
        self._named = {"tenant_id": tenant_id, "audience": audience}
        self._where = f"{table} of {login['dbname']} at {login['host']}:{login['port']}"
        self._connection: psycopg.Connection | None = None

    def __enter__(self) -> "MemberTable":
        try:
            self._connection = psycopg.connect(**self._login, connect_timeout=10, options=WAITS)
            found = self._connection.execute(FIND_TABLE, {"table": self._name}).fetchone()
            if not (found and found[0]):
                self._connection.execute(self._statement(MAKE_TABLE))
            self._connection.commit()
        except psycopg.Error as error:
            self.close()
            raise _explained(self._where, error) from None
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session."""
        if self._connection is not None:
            self._connection.close()

    def write(self, entered: list[tuple[str, Any]], left: list[str]) -> None:
        """Insert and remove members, in one transaction.

        Args:
            entered: user and when it entered.
            left: users.

        Raises:
            UnavailableError: the server does not answer, or refuses.
        """
        if self._connection is None:
            raise RuntimeError("enter the table first")
        users, moments = [user for user, _ in entered], [moment for _, moment in entered]
        try:
            with self._connection.transaction():
                self._connection.execute(self._statement(LEAVE), {**self._named, "users": left})
                values = {**self._named, "users": users, "moments": moments}
                self._connection.execute(self._statement(ENTER), values)
        except psycopg.Error as error:
            raise _explained(self._where, error) from None

    def _statement(self, text: Any) -> sql.Composed:
        return sql.SQL(text).format(table=self._table)


def _explained(where: str, error: psycopg.Error) -> UnavailableError | ConfigError:
    if isinstance(error, psycopg.errors.InsufficientPrivilege | psycopg.errors.InvalidSchemaName):
        return ConfigError(
            f"{where} can't be written: {error.diag.message_primary}. Let the login of the database create the table "
            "in its schema, or create it and grant SELECT, INSERT, UPDATE and DELETE."
        )
    return UnavailableError(f"{where} does not take members: {type(error).__name__}.")
