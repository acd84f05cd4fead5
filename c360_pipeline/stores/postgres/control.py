"""The control database: what to read from which silo and what it becomes, and the log of what was done."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, LiteralString

import polars as pl
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from c360_pipeline.core.arrays.row_hashes import user_hash
from c360_pipeline.core.silos.control_rows import ControlRows, RelationshipRow, SourceDatabase, SourceTable
from c360_pipeline.core.stitching.keys import JourneyLimit, KeyPolicy, KeyRule
from c360_pipeline.errors import ConflictError, UnavailableError
from c360_pipeline.stores.postgres.databases import ensure_database

READ_DATABASES = """
    SELECT database_id, tenant_id, db_name, host, port, db_user AS "user", password_ref
    FROM source_databases WHERE is_active ORDER BY database_id
"""
READ_TABLES = """
    SELECT t.table_id, t.database_id, t.schema_name, t.table_name, t.key_columns, t.cursor_column, t.snapshot_mode,
           t.drift_policy
    FROM source_tables t JOIN source_databases d USING (database_id)
    WHERE d.is_active AND t.is_active ORDER BY t.table_id
"""
READ_EXCLUSIONS = "SELECT table_id, column_name, reason FROM field_exclusion_rules WHERE is_excluded"
READ_LABELS = "SELECT table_id, node_label FROM node_label_mappings"
READ_RELATIONSHIPS = """
    SELECT mapping_id, from_label, to_label, relationship_type, join_condition, via_label
    FROM relationship_mappings WHERE is_active ORDER BY mapping_id
"""
READ_KEY_RULES = """
    SELECT tenant_id, key_type, source_attribute AS source, mode, is_unique, max_partners, window_seconds
    FROM correlation_key_rules ORDER BY rule_id
"""
READ_LIMITS = "SELECT tenant_id, soft_max_keys, hard_max_keys FROM journey_limits ORDER BY tenant_id"
READ_BLOCKED = "SELECT tenant_id, key_type, key_hash FROM blocked_keys"
BLOCK_KEY = """
    INSERT INTO blocked_keys (tenant_id, key_type, key_hash, reason)
    VALUES (%(tenant_id)s, %(key_type)s, %(key_hash)s, %(reason)s) ON CONFLICT DO NOTHING
"""
UNBLOCK_KEY = """
    DELETE FROM blocked_keys WHERE tenant_id = %(tenant_id)s AND key_type = %(key_type)s AND key_hash = %(key_hash)s
"""
READ_SUPPRESSED = "SELECT tenant_id, user_hash FROM suppressed_users ORDER BY tenant_id, user_hash"
SUPPRESS = """
    INSERT INTO suppressed_users (tenant_id, user_hash, reason) VALUES (%(tenant_id)s, %(user_hash)s, %(reason)s)
    ON CONFLICT DO NOTHING
"""
UNSUPPRESS = "DELETE FROM suppressed_users WHERE tenant_id = %(tenant_id)s AND user_hash = %(user_hash)s"
FIND_SCHEMA = "SELECT to_regclass('control_schema') IS NOT NULL AS is_there"
READ_SCHEMA_VERSION = "SELECT max(version) AS version FROM control_schema"
TAKE_SCHEMA_LOCK = "SELECT pg_advisory_xact_lock(hashtext('c360 control schema'))"
TAKE_SILO_LOCK = "SELECT pg_advisory_xact_lock(hashtext('c360 silos'))"
TAKE_COMMAND_LOCK = "SELECT pg_advisory_xact_lock(hashtext('c360 run'))"
TAKE_STORES_LOCK = "SELECT pg_advisory_xact_lock(hashtext('c360 stores'))"
SHARE_STORES_LOCK = "SELECT pg_advisory_xact_lock_shared(hashtext('c360 stores'))"
TRY_TO_SHARE_STORES_LOCK = "SELECT pg_try_advisory_xact_lock_shared(hashtext('c360 stores')) AS taken"
START_RUN = """
    INSERT INTO etl_run_logs (run_id, status) VALUES (%(run_id)s, 'running') RETURNING log_id
"""
END_KILLED_RUNS = """
    UPDATE etl_run_logs SET status = 'failed', finished_at = clock_timestamp(), error = 'the run was killed'
    WHERE status = 'running'
"""
END_KILLED_TABLES = """
    UPDATE etl_table_logs t SET status = 'failed', error = 'the run was killed'
    FROM etl_run_logs r WHERE r.log_id = t.log_id AND t.status = 'running' AND r.status <> 'running'
"""
FINISH_RUN = """
    UPDATE etl_run_logs SET status = %(status)s, finished_at = clock_timestamp(), error = %(error)s
    WHERE log_id = %(log_id)s
"""
NOTE_PLAN = "UPDATE etl_run_logs SET plan_hash = %(plan_hash)s WHERE log_id = %(log_id)s"
START_TABLE = """
    INSERT INTO etl_table_logs (log_id, db_name, table_name, status, snapshot_mode, rows_read, rows_changed, seconds)
    VALUES (%(log_id)s, %(db_name)s, %(table_name)s, 'running', %(snapshot_mode)s, 0, 0, 0)
    RETURNING table_log_id
"""
FINISH_TABLE = """
    UPDATE etl_table_logs
    SET status = %(status)s, snapshot_mode = %(snapshot_mode)s, rows_read = %(rows_read)s,
        rows_changed = %(rows_changed)s, rows_loaded = %(rows_loaded)s, rows_deleted = %(rows_deleted)s,
        bytes_read = %(bytes_read)s, seconds = %(seconds)s, error = %(error)s, logged_at = clock_timestamp()
    WHERE table_log_id = %(table_log_id)s
"""
READ_APPLIED_PLAN = "SELECT document FROM applied_plans ORDER BY plan_id DESC LIMIT 1"
SAVE_APPLIED_PLAN = """
    INSERT INTO applied_plans (plan_hash, document, run_id) VALUES (%(plan_hash)s, %(document)s, %(run_id)s)
"""
READ_STATE = """
    SELECT lake_version, cursor_value, snapshot, reads FROM extraction_states WHERE table_id = %(table_id)s
"""
SAVE_STATE = """
    INSERT INTO extraction_states (table_id, lake_version, cursor_value, snapshot, reads)
    VALUES (%(table_id)s, %(lake_version)s, %(cursor_value)s, %(snapshot)s, %(reads)s)
    ON CONFLICT (table_id) DO UPDATE
    SET lake_version = excluded.lake_version, cursor_value = excluded.cursor_value, snapshot = excluded.snapshot,
        reads = excluded.reads, saved_at = now()
"""
READ_LAST_SCRIPT = "SELECT script_id, file_name, sha256, made_from FROM cypher_scripts ORDER BY script_id DESC LIMIT 1"
ADD_SCRIPT = """
    INSERT INTO cypher_scripts (file_name, sha256, made_from, statements, last_run_time)
    VALUES (%(file_name)s, %(sha256)s, %(made_from)s, %(statements)s, now())
"""
NOTE_SCRIPT = """
    UPDATE cypher_scripts SET made_from = %(made_from)s, last_run_time = now() WHERE script_id = %(script_id)s
"""
FIND_USE = """
    SELECT EXISTS (SELECT FROM source_databases) OR EXISTS (SELECT FROM suppressed_users)
        OR EXISTS (SELECT FROM etl_run_logs) OR EXISTS (SELECT FROM blocked_keys) AS is_used
"""
READ_SUPPRESSED_ROWS = "SELECT lake_table, row_hash FROM suppressed_rows"
SUPPRESS_ROWS = """
    INSERT INTO suppressed_rows (lake_table, row_hash) SELECT %(lake_table)s, unnest(%(hashes)s::text[])
    ON CONFLICT DO NOTHING
"""
READ_RETENTION = "SELECT tenant_id, label, action, days FROM retention_rules ORDER BY tenant_id, label, action"
READ_ERASURE = "SELECT started_at FROM erasures_under_way"
BEGIN_ERASURE = "INSERT INTO erasures_under_way DEFAULT VALUES ON CONFLICT DO NOTHING"
END_ERASURE = "DELETE FROM erasures_under_way"
SCHEMA_VERSION = 6


class ControlDb:
    """The control database; each method is one short connection.

    Args:
        connection: host, port, dbname, user, password as psycopg takes them.
    """

    def __init__(self, connection: dict[str, Any]) -> None:
        self._connection = connection

    @property
    def login(self) -> dict[str, Any]:
        """host, port, dbname, user and password; never log it."""
        return self._connection

    def is_used(self) -> bool:
        """Whether anybody has named a source, suppressed a user or run anything."""
        return bool(self.execute(FIND_USE)["is_used"])

    @contextmanager
    def _connect(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        with self._opened() as connection:
            yield connection

    def _opened(self) -> psycopg.Connection[dict[str, Any]]:
        where = "{dbname} at {host}:{port}".format(**self._connection)
        try:
            return psycopg.connect(**self._connection, connect_timeout=10, row_factory=dict_row)
        except psycopg.OperationalError as error:
            raise UnavailableError(
                f"The control database {where} can't be reached: {error}. "
                "Start the embedded one with `c360 up` and fill it with `c360 seed`."
            ) from None

    def ensure(self) -> None:
        """Create the database, the control tables and the default key rules where they are missing."""
        ensure_database(self._connection)
        with self._connect() as connection:
            # One at a time: CREATE TABLE IF NOT EXISTS of two sessions at once can fail.
            connection.execute(TAKE_SCHEMA_LOCK)
            if _schema_version(connection) < SCHEMA_VERSION:
                script = resources.files("c360_pipeline.ddl").joinpath("control.sql").read_text(encoding="utf-8")
                connection.execute(script.encode())

    @contextmanager
    def command_run(self) -> Iterator[None]:
        """Wait until no other command is at work, and keep others away; a crash ends it, too."""
        with self._holding(TAKE_COMMAND_LOCK):
            yield

    @contextmanager
    def exclusive_run(self) -> Iterator[None]:
        """Wait until neither a command nor a run of Dagster is at work, and keep both away: the stores are ours."""
        with self._holding(TAKE_COMMAND_LOCK, TAKE_STORES_LOCK):
            yield

    @contextmanager
    def shared_run(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Keep whoever wants the stores for itself away, beside other runs.

        Args:
            waiting: told before this waits for one who has them.
        """
        with self._holding() as connection:
            taken = connection.execute(TRY_TO_SHARE_STORES_LOCK).fetchone()
            if taken is None or not taken["taken"]:
                waiting()
                connection.execute(SHARE_STORES_LOCK)
            yield

    @contextmanager
    def _holding(self, *locks: LiteralString) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        """A session that holds locks until it ends; where the server ends it, work that needs it no more goes on."""
        connection = self._opened()
        try:
            for lock in locks:
                connection.execute(lock)
            yield connection
        finally:
            connection.close()

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
                excluded={(r["table_id"], r["column_name"]): r["reason"] for r in connection.execute(READ_EXCLUSIONS)},
                labels={r["table_id"]: r["node_label"] for r in connection.execute(READ_LABELS)},
                relationships=tuple(RelationshipRow(**row) for row in connection.execute(READ_RELATIONSHIPS)),
            )

    def key_policy(self) -> KeyPolicy:
        """Which attributes of events are keys, and what keys may do, as one consistent picture."""
        with self._connect() as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            return KeyPolicy(
                rules=tuple(KeyRule(**row) for row in connection.execute(READ_KEY_RULES)),
                limits=tuple(JourneyLimit(**row) for row in connection.execute(READ_LIMITS)),
                blocked=frozenset(
                    (r["tenant_id"], r["key_type"], r["key_hash"]) for r in connection.execute(READ_BLOCKED)
                ),
            )

    def block_key(self, tenant_id: str, key_type: str, key_hash: str, reason: str) -> bool:
        """Put a key on the list of those that never tie; False when it was on it."""
        values = {"tenant_id": tenant_id, "key_type": key_type, "key_hash": key_hash}
        with self._connect() as connection:
            return connection.execute(BLOCK_KEY, {**values, "reason": reason}).rowcount > 0

    def unblock_key(self, tenant_id: str, key_type: str, key_hash: str) -> bool:
        """Take a key off that list; False when it was not on it."""
        values = {"tenant_id": tenant_id, "key_type": key_type, "key_hash": key_hash}
        with self._connect() as connection:
            return connection.execute(UNBLOCK_KEY, values).rowcount > 0

    def suppressed_users(self) -> pl.DataFrame:
        """The users whose events never land: tenant_id and user_hash, as `core.landing.decode.user_hash` makes it."""
        with self._connect() as connection:
            rows = [(r["tenant_id"], r["user_hash"]) for r in connection.execute(READ_SUPPRESSED)]
        return pl.DataFrame(rows, schema={"tenant_id": pl.String, "user_hash": pl.String}, orient="row")

    def begin_erasure(self) -> None:
        """Note that people are being erased, until `end_erasure`: nothing lands meanwhile."""
        self.execute(BEGIN_ERASURE)

    def end_erasure(self) -> None:
        """Note that nobody is being erased any more."""
        self.execute(END_ERASURE)

    def require_no_erasure(self) -> None:
        """Go on only where nobody is being erased.

        Raises:
            ConflictError: an erasure is under way, or was broken off.
        """
        if since := self.execute(READ_ERASURE).get("started_at"):
            raise ConflictError(
                f"People are being erased since {since:%Y-%m-%d %H:%M} UTC: a landing now could bring them back. If "
                "`c360 erase` was broken off, call it again with the same people."
            )

    def suppressed_rows(self) -> pl.DataFrame:
        """The rows of silos that are never read again: lake_table and row_hash, as `row_name_hash` makes it."""
        with self._connect() as connection:
            rows = [(r["lake_table"], r["row_hash"]) for r in connection.execute(READ_SUPPRESSED_ROWS)]
        return pl.DataFrame(rows, schema={"lake_table": pl.String, "row_hash": pl.String}, orient="row")

    def suppress_rows(self, lake_table: str, hashes: Sequence[str]) -> None:
        """Put rows of a silo's table on that list; there is no way off it but by hand."""
        self.execute(SUPPRESS_ROWS, lake_table=lake_table, hashes=list(hashes))

    def retention_rules(self) -> pl.DataFrame:
        """tenant_id, label, action, days."""
        schema = {"tenant_id": pl.String, "label": pl.String, "action": pl.String, "days": pl.Int64}
        with self._connect() as connection:
            return pl.DataFrame(connection.execute(READ_RETENTION).fetchall(), schema=schema)

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
    def logged_run(self, run_id: str) -> Iterator["RunLog"]:
        """A row of `etl_run_logs` that says running, then done or failed.

        One at a time: others wait. Rows that still say running belong to a run that was killed; they are closed first.
        """
        with self._connect() as lock:
            lock.execute(TAKE_SILO_LOCK)
            self.execute(END_KILLED_RUNS)
            self.execute(END_KILLED_TABLES)
            log = RunLog(self, int(self.execute(START_RUN, run_id=run_id)["log_id"]))
            try:
                yield log
            except BaseException as error:
                self.execute(FINISH_RUN, log_id=log.log_id, status="failed", error=f"{type(error).__name__}: {error}")
                raise
            self.execute(FINISH_RUN, log_id=log.log_id, status="done", error=None)

    def execute(self, statement: LiteralString, **values: Any) -> dict[str, Any]:
        """Run one statement; returns its first row, empty when it has none."""
        with self._connect() as connection:
            cursor = connection.execute(statement, values)
            return (cursor.fetchone() if cursor.description else None) or {}

    def applied_plan(self) -> dict[str, Any] | None:
        """The document of the last plan that a run has carried out."""
        found: dict[str, Any] | None = self.execute(READ_APPLIED_PLAN).get("document")
        return found

    def save_applied_plan(self, plan_hash: str, document: dict[str, Any], run_id: str) -> None:
        """Note that a run has carried out a plan."""
        self.execute(SAVE_APPLIED_PLAN, plan_hash=plan_hash, document=Jsonb(document), run_id=run_id)

    def last_script(self) -> dict[str, Any]:
        """script_id, file_name, sha256 and made_from of the newest script; empty when there is none."""
        return self.execute(READ_LAST_SCRIPT)

    def add_script(self, file_name: str, sha256: str, made_from: str, statements: int) -> None:
        """Register a script whose content was just brought into the graph."""
        self.execute(ADD_SCRIPT, file_name=file_name, sha256=sha256, made_from=made_from, statements=statements)

    def note_script(self, script_id: int, made_from: str) -> None:
        """Note that a script's content was brought into the graph again."""
        self.execute(NOTE_SCRIPT, script_id=script_id, made_from=made_from)

    def extraction_state(self, table_id: int) -> "ExtractionState | None":
        """How far an incremental table was read."""
        found = self.execute(READ_STATE, table_id=table_id)
        return ExtractionState(**found) if found else None

    def save_extraction_state(self, table_id: int, state: "ExtractionState") -> None:
        """Note how far an incremental table was read."""
        self.execute(SAVE_STATE, table_id=table_id, **asdict(state))


@dataclass(frozen=True)
class ExtractionState:
    """How far an incremental table was read.

    Attributes:
        lake_version: of the lake table when it held everything up to here.
        cursor_value: the largest cursor that was read, as Postgres writes it; None when there was no row.
        snapshot: `pg_current_snapshot()` of the read.
        reads: sha256 of what was read; another means that the lake table holds something else.
    """

    lake_version: str
    cursor_value: str | None
    snapshot: str
    reads: str


@dataclass(frozen=True)
class TableCounts:
    """What loading a table did.

    Attributes:
        mode: `full` or `incremental`, as it was done.
        rows_read: from the source.
        rows_loaded: new or altered.
        rows_deleted: gone from the source.
        bytes_read: of the rows in memory.
    """

    mode: str
    rows_read: int = 0
    rows_loaded: int = 0
    rows_deleted: int = 0
    bytes_read: int = 0


class StandingControlDb(ControlDb):
    """The control database over one connection that stays open, for one thread that asks many times a second."""

    _standing: psycopg.Connection[dict[str, Any]] | None = None

    @contextmanager
    def _connect(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        if self._standing is None:
            self._standing = self._opened()
        try:
            with self._standing.transaction():
                yield self._standing
        except psycopg.OperationalError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._standing is not None:
            self._standing.close()
            self._standing = None


class RunLog:
    """The log of one run over the silos.

    Args:
        control: the control database.
        log_id: of its row in `etl_run_logs`.
    """

    def __init__(self, control: ControlDb, log_id: int) -> None:
        self._control = control
        self.log_id = log_id

    def note_plan(self, plan_hash: str) -> None:
        """Say which plan the run carries out."""
        self._control.execute(NOTE_PLAN, log_id=self.log_id, plan_hash=plan_hash)

    def start_table(self, db_name: str, table_name: str, mode: str) -> int:
        """Add a row to `etl_table_logs` that says running; returns its id."""
        row = self._control.execute(
            START_TABLE, log_id=self.log_id, db_name=db_name, table_name=table_name, snapshot_mode=mode
        )
        return int(row["table_log_id"])

    def finish_table(self, table_log_id: int, counts: TableCounts, seconds: float, error: str | None = None) -> None:
        """Say what became of a table."""
        self._control.execute(
            FINISH_TABLE, table_log_id=table_log_id, status="failed" if error else "done", snapshot_mode=counts.mode,
            rows_read=counts.rows_read, rows_changed=counts.rows_loaded + counts.rows_deleted,
            rows_loaded=counts.rows_loaded, rows_deleted=counts.rows_deleted, bytes_read=counts.bytes_read,
            seconds=seconds, error=error,
        )  # fmt: skip


def _schema_version(connection: psycopg.Connection[dict[str, Any]]) -> int:
    found = connection.execute(FIND_SCHEMA).fetchone()
    if not (found and found["is_there"]):
        return 0
    row = connection.execute(READ_SCHEMA_VERSION).fetchone()
    return int(row["version"] or 0) if row else 0
