"""A silo: one operational Postgres database, read as Arrow over ADBC; what is left out is never selected."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import adbc_driver_postgresql.dbapi as adbc
import polars as pl
import psycopg
import pyarrow as pa
from adbc_driver_postgresql import StatementOptions
from psycopg import sql
from pydantic import SecretStr

from c360_pipeline.core.silos.control_rows import LAKE_TYPES, Column, FoundTable, SourceDatabase, SourceTable, typed
from c360_pipeline.core.silos.plan import Extract
from c360_pipeline.errors import ContractError, UnavailableError

CONNECT_SECONDS = 10
BATCH_BYTES = 8 * 1024 * 1024
"""Bytes of rows that the driver hands over at once, as the server sends them."""
SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
SETTINGS = {
    "client_encoding": "UTF8", "row_security": "off", "TimeZone": "UTC", "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres", "extra_float_digits": "1", "bytea_output": "hex",
}  # fmt: skip
"""What reading relies on; set by statement in the transaction of the snapshot, so that it holds behind a pooler."""
ASKED_BACK = {
    **SETTINGS, "transaction_isolation": "repeatable read", "transaction_read_only": "on",
}  # fmt: skip
OVERLAP = "1 hour"
"""Of a view, whose rows do not tell which transaction wrote them, so much is read again."""
TIMES = ("timestamp", "timestamptz", "date")

READ_COLUMNS = """
    WITH RECURSIVE found AS (
        SELECT a.attnum, a.attname, a.attnotnull, t.typname, t.typbasetype,
               CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END AS typmod,
               has_column_privilege(a.attrelid, a.attnum, 'SELECT') AS readable
        FROM pg_attribute a
        JOIN pg_class c ON c.oid = a.attrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_type t ON t.oid = a.atttypid
        WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
          AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT f.attnum, f.attname, f.attnotnull, b.typname, b.typbasetype,
               CASE WHEN f.typmod < 0 AND b.typtype = 'd' THEN b.typtypmod ELSE f.typmod END, f.readable
        FROM found f JOIN pg_type b ON b.oid = f.typbasetype
    )
    SELECT attname AS name, typname AS pg_type,
           CASE WHEN typname = 'numeric' AND typmod >= 4 THEN ((typmod - 4) >> 16) & 65535 END AS precision,
           CASE WHEN typname = 'numeric' AND typmod >= 4 THEN (((typmod - 4) & 2047) # 1024) - 1024 END AS scale,
           readable
    FROM found WHERE typbasetype = 0 ORDER BY attnum
"""
READ_SIZE = """
    SELECT CASE WHEN c.relkind = 'p'
                THEN (SELECT coalesce(sum(greatest(l.reltuples, 0)), 0)
                      FROM pg_partition_tree(c.oid) p JOIN pg_class l ON l.oid = p.relid WHERE p.isleaf)
                ELSE c.reltuples END::bigint,
           c.relkind IN ('r', 'p', 'm'), row_security_active(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""


@dataclass(frozen=True)
class Position:
    """Where a snapshot stands: the largest cursor, as text, and the transactions that it sees."""

    cursor: str | None
    snapshot: str

    @property
    def horizon(self) -> int:
        """Transactions from here on may not have been seen."""
        return int(self.snapshot.split(":")[0])

    @property
    def next_transaction(self) -> int:
        """The first transaction that had no id yet."""
        return int(self.snapshot.split(":")[1])


class Silo:
    """A source database.

    Args:
        database: its control row.
        password: what the row's reference points at.
    """

    def __init__(self, database: SourceDatabase, password: SecretStr) -> None:
        self.database = database
        self._password = password

    def found(self, tables: Iterable[SourceTable]) -> dict[int, FoundTable]:
        """What the database has under the names of the tables, by table_id.

        Raises:
            UnavailableError: the database can't be reached.
        """
        try:
            with psycopg.connect(**self._login(), client_encoding="UTF8") as connection:
                return {table.table_id: _found(connection, table) for table in tables}
        except psycopg.Error as error:
            raise UnavailableError(f"{self._where} can't be reached or read: {self._masked(str(error))}") from None

    @property
    def _where(self) -> str:
        database = self.database
        return (
            f"The silo {database.db_name} at {database.host}:{database.port} "
            f"(source_databases row {database.database_id})"
        )

    @contextmanager
    def snapshot(self) -> Iterator["SiloSnapshot"]:
        """A connection that sees the database as it is at its first read, until it is left.

        Raises:
            UnavailableError: the database can't be reached, or does not take or keep a setting that reading relies on.
        """
        try:
            connection = adbc.connect(self._uri())
        except adbc.Error as error:
            raise UnavailableError(f"{self._where} can't be reached: {self._masked(str(error))}") from None
        with closing(connection):
            self._settle(connection)
            yield SiloSnapshot(connection, self._masked)

    def _settle(self, connection: adbc.Connection) -> None:
        """Set what reading relies on, and ask it back: a pooler may drop or share what a session was told."""
        names = list(ASKED_BACK)
        try:
            with closing(connection.cursor()) as cursor:
                cursor.execute(SNAPSHOT)
                for name, value in SETTINGS.items():
                    cursor.execute(
                        sql.SQL("SET LOCAL {} = {}").format(sql.Identifier(name), sql.Literal(value)).as_string(None)
                    )
                asked = sql.SQL(", ").join(
                    sql.SQL("current_setting({})").format(sql.Literal(name)) for name in names
                )  # fmt: skip
                cursor.execute(sql.SQL("SELECT {}").format(asked).as_string(None))
                found = dict(zip(names, cursor.fetchone() or (), strict=False))
        except adbc.Error as error:
            raise UnavailableError(f"{self._where} refuses a setting: {self._masked(str(error))}") from None
        if other := {name: found.get(name) for name, value in ASKED_BACK.items() if found.get(name) != value}:
            raise UnavailableError(
                f"{self._where} does not keep what reading relies on: it says {other}, "
                f"{ {name: ASKED_BACK[name] for name in other} } is right. Where a pooler is in between, give "
                "source_databases the address of the server, or let the pooler keep transactions together."
            )

    def _uri(self) -> str:
        # All as parameters: a host may be an IPv6 address or the folder of a socket.
        return "postgresql://?" + urlencode({**self._login(), "client_encoding": "UTF8"}, quote_via=quote)

    def _login(self) -> dict[str, Any]:
        """As libpq takes it. A server that asks for the password in clear text gets it over TLS or not at all."""
        database = self.database
        is_encrypted = database.sslmode in ("require", "verify-ca", "verify-full")
        return {
            "host": database.host, "port": database.port, "dbname": database.db_name, "user": database.user,
            "password": self._password.get_secret_value(), "sslmode": database.sslmode,
            "connect_timeout": CONNECT_SECONDS,
            **({} if is_encrypted else {"require_auth": "!password"}),
        }  # fmt: skip

    def _masked(self, message: str) -> str:
        """The message without the password, plain or percent-encoded."""
        password = self._password.get_secret_value()
        for form in (quote(password), quote(password, safe=""), password):
            message = message.replace(form, "***") if form else message
        return message


def _found(connection: psycopg.Connection[Any], table: SourceTable) -> FoundTable:
    names = {"schema": table.schema_name, "table": table.table_name}
    columns = {row[0]: Column(*row) for row in connection.execute(READ_COLUMNS, names)}
    size = connection.execute(READ_SIZE, names).fetchone()
    if size is None:
        return FoundTable({})
    rows, is_stored, hides_rows = size
    can_count = all(column.readable for column in columns.values())
    if rows <= 0 and can_count and is_stored and not hides_rows:
        # The table was never analysed, so it is new or small; before PostgreSQL 14 that is told as 0 rows.
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table.schema_name, table.table_name))
        counted = connection.execute(query).fetchone()
        return FoundTable(columns, counted[0] if counted else None, is_stored, hides_rows)
    return FoundTable(columns, rows if rows > 0 else None, is_stored, hides_rows)


class SiloSnapshot:
    """One moment of a silo; all reads see the same.

    Args:
        connection: in a transaction with the isolation level REPEATABLE READ.
        masked: takes the password out of a message.

    Attributes:
        is_whole: whether it still is that moment; a read that failed has ended its transaction.
    """

    def __init__(self, connection: adbc.Connection, masked: Callable[[str], str]) -> None:
        self._connection = connection
        self._masked = masked
        self.is_whole = True

    def rows(self, extract: Extract, since: Position | None = None) -> Iterator[pl.DataFrame]:
        """The rows of a table in bounded batches, typed as in the lake.

        Args:
            extract: which columns of which table.
            since: only rows that may have changed since another snapshot stood there: those with that cursor or a
                larger one or none, and those that a transaction has written which that snapshot did not see.

        Raises:
            ContractError: a value that the lake can't hold.
            UnavailableError: the database refuses the read, or is gone.
        """
        query = sql.SQL("SELECT {} FROM {}{}").format(
            sql.SQL(", ").join(_selected(column) for column in extract.columns), _table(extract),
            sql.SQL("") if since is None else sql.SQL(" WHERE ") + _changed_since(extract, since),
        )  # fmt: skip
        for batch in self._batches(query, extract):
            try:
                yield typed(batch, extract.columns, extract.table.key_columns)
            except ContractError as error:
                raise ContractError(f"{extract.name} (source_tables row {extract.table.table_id}): {error}") from None

    def keys(self, extract: Extract) -> Iterator[pl.DataFrame]:
        """The keys of all rows of a table in bounded batches."""
        columns = [column for column in extract.columns if column.name in extract.table.key_columns]
        query = sql.SQL("SELECT {} FROM {}").format(
            sql.SQL(", ").join(_selected(column) for column in columns), _table(extract)
        )
        for batch in self._batches(query, extract):
            yield typed(batch, columns, extract.table.key_columns)

    def count(self, extract: Extract) -> int:
        """Rows of a table."""
        return int(self._value(sql.SQL("SELECT count(*) AS value FROM {}").format(_table(extract)), extract))

    def position(self, extract: Extract) -> Position:
        """Where the snapshot stands."""
        snapshot = self._value(sql.SQL("SELECT txid_current_snapshot()::text AS value"), extract)
        if extract.table.cursor_column is None:
            return Position(None, snapshot)
        query = sql.SQL("SELECT max({})::text AS value FROM {}").format(
            sql.Identifier(_cursor(extract).at_source), _table(extract)
        )
        return Position(self._value(query, extract), snapshot)

    def _value(self, query: sql.Composable, extract: Extract) -> Any:
        return pl.concat(self._batches(query, extract)).item()

    def _batches(self, query: sql.Composable, extract: Extract) -> Iterator[pl.DataFrame]:
        try:
            with closing(self._connection.cursor()) as cursor:
                cursor.adbc_statement.set_options(**{StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(BATCH_BYTES)})
                cursor.execute(query.as_string(None))
                reader = cursor.fetch_record_batch()
                yield _frame(reader.schema.empty_table())
                for batch in reader:
                    yield _frame(pa.Table.from_batches([batch]))
        except (adbc.Error, pa.ArrowException, OSError) as error:
            self.is_whole = False
            where = f"{extract.name} (source_tables row {extract.table.table_id})"
            raise UnavailableError(f"Reading {where} failed: {self._masked(str(error)).strip()}") from None


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101 - a table, not an array, is a frame
    return frame


def _table(extract: Extract) -> sql.Composable:
    return sql.Identifier(extract.table.schema_name, extract.table.table_name)


def _cursor(extract: Extract) -> Column:
    return next(column for column in extract.columns if column.name == extract.table.cursor_column)


def _changed_since(extract: Extract, since: Position) -> sql.Composable:
    column = _cursor(extract)
    cursor = sql.Identifier(column.at_source)
    conditions: list[sql.Composable] = [sql.SQL("{} IS NULL").format(cursor)]
    if since.cursor is not None:
        value = sql.SQL("{}::{}").format(sql.Literal(since.cursor), sql.Identifier(column.pg_type))
        if not extract.is_stored and column.pg_type in TIMES:
            value = sql.SQL("{} - interval {}").format(value, sql.Literal(OVERLAP))
        conditions.append(sql.SQL("{} >= {}").format(cursor, value))
    if extract.is_stored:
        # A cursor is set before its transaction commits, sometimes long before: the transaction tells.
        horizon = sql.Literal(str(since.horizon % 2**32))
        conditions.append(sql.SQL("age(xmin) <= age({}::xid)").format(horizon))
    return sql.SQL(" OR ").join(conditions)


def _selected(column: Column) -> sql.Composable:
    """The column as the driver can carry it: types without a counterpart in Arrow travel as text."""
    source, name = sql.Identifier(column.at_source), sql.Identifier(column.name)
    if column.pg_type not in LAKE_TYPES or column.pg_type == "oid":
        return sql.SQL("{}::text AS {}").format(source, name)
    return source if column.at_source == column.name else sql.SQL("{} AS {}").format(source, name)
