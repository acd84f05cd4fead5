"""Sessions of the control database: one for each question, or one that stays open."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from c360_pipeline.errors import UnavailableError

Connection = psycopg.Connection[dict[str, Any]]


class Sessions:
    """A session for each question.

    Args:
        login: host, port, dbname, user, password as psycopg takes them.
    """

    def __init__(self, login: dict[str, Any]) -> None:
        self._login = login

    @property
    def login(self) -> dict[str, Any]:
        """host, port, dbname, user and password; never log it."""
        return self._login

    def opened(self) -> Connection:
        """A new connection, to be closed by the caller.

        Raises:
            UnavailableError: the server can't be reached.
        """
        where = "{dbname} at {host}:{port}".format(**self._login)
        try:
            return psycopg.connect(**self._login, connect_timeout=10, row_factory=dict_row)
        except psycopg.OperationalError as error:
            raise UnavailableError(
                f"The control database {where} can't be reached: {error}. "
                "Start the embedded one with `c360 up` and fill it with `c360 seed`."
            ) from None

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """A connection whose transaction is committed when the block ends without an error."""
        with self.opened() as connection:
            yield connection

    def execute(self, statement: LiteralString, **values: Any) -> dict[str, Any]:
        """Run one statement; returns its first row, empty when it has none."""
        with self.session() as connection:
            cursor = connection.execute(statement, values)
            return (cursor.fetchone() if cursor.description else None) or {}


class StandingSession:
    """One connection that stays open, for one thread that asks many times a second.

    Args:
        login: as `Sessions` takes it.
    """

    def __init__(self, login: dict[str, Any]) -> None:
        self._sessions = Sessions(login)
        self._standing: Connection | None = None

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """The connection, in a transaction; opened again after it broke."""
        if self._standing is None:
            self._standing = self._sessions.opened()
        try:
            with self._standing.transaction():
                yield self._standing
        except psycopg.OperationalError:
            self.close()
            raise

    def execute(self, statement: LiteralString, **values: Any) -> dict[str, Any]:
        """Run one statement; returns its first row, empty when it has none."""
        with self.session() as connection:
            cursor = connection.execute(statement, values)
            return (cursor.fetchone() if cursor.description else None) or {}

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._standing is not None:
            self._standing.close()
            self._standing = None
