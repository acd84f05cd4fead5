"""Databases of a Postgres server: made where they are missing."""

from typing import Any

import psycopg
from psycopg import sql

from c360_pipeline.errors import UnavailableError

FIND_DATABASE = "SELECT 1 FROM pg_database WHERE datname = %s"


def ensure_database(connection: dict[str, Any]) -> bool:
    """Create the database that `connection` names where it is missing; two workers may do so at once.

    Args:
        connection: host, port, dbname, user, password as psycopg takes them.

    Returns:
        Whether it was made.

    Raises:
        UnavailableError: the server can't be reached.
    """
    name = str(connection["dbname"])
    try:
        with psycopg.connect(**{**connection, "dbname": "postgres"}, autocommit=True, connect_timeout=10) as server:
            if server.execute(FIND_DATABASE, (name,)).fetchone():
                return False
            server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
        return False
    except psycopg.OperationalError as error:
        where = f"{connection['host']}:{connection['port']}"
        raise UnavailableError(
            f"Postgres at {where} can't be reached: {error}. Start the embedded one with `c360 up`."
        ) from None
    return True


def database_exists(connection: dict[str, Any]) -> bool:
    """Whether there is the database that `connection` names."""
    with psycopg.connect(**{**connection, "dbname": "postgres"}, connect_timeout=10) as server:
        return server.execute(FIND_DATABASE, (connection["dbname"],)).fetchone() is not None
