"""What runs over the silos did, how far tables were read, which plan and which script came of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from psycopg.types.json import Jsonb

from c360_pipeline.stores.postgres.sessions import Sessions

TAKE_SILO_LOCK = "SELECT pg_advisory_xact_lock(hashtext('c360 silos'))"
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
READ_SCRIPTS = """
    SELECT script_id, file_name, sha256, statements, created_at, last_run_time
    FROM cypher_scripts ORDER BY script_id DESC
"""
NOTE_SCRIPT = """
    UPDATE cypher_scripts SET made_from = %(made_from)s, last_run_time = now() WHERE script_id = %(script_id)s
"""


class RunHistory:
    """The log of runs, applied plans, states of extraction, scripts.

    Args:
        sessions: of the control database.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @contextmanager
    def logged_run(self, run_id: str) -> Iterator["RunLog"]:
        """A row of `etl_run_logs` that says running, then done, partial or failed.

        One at a time: others wait. Rows that still say running belong to a run that was killed; they are closed first.
        """
        with self._sessions.session() as lock:
            lock.execute(TAKE_SILO_LOCK)
            self._sessions.execute(END_KILLED_RUNS)
            self._sessions.execute(END_KILLED_TABLES)
            log = RunLog(self._sessions, int(self._sessions.execute(START_RUN, run_id=run_id)["log_id"]))
            try:
                yield log
            except BaseException as error:
                self._sessions.execute(
                    FINISH_RUN, log_id=log.log_id, status="failed", error=f"{type(error).__name__}: {error}"
                )
                raise
            status = "partial" if log.set_aside else "done"
            said = "; ".join(f"{name}: {why}" for name, why in log.set_aside.items()) or None
            self._sessions.execute(FINISH_RUN, log_id=log.log_id, status=status, error=said)

    def applied_plan(self) -> dict[str, Any] | None:
        """The document of the last plan that a run has carried out."""
        found: dict[str, Any] | None = self._sessions.execute(READ_APPLIED_PLAN).get("document")
        return found

    def save_applied_plan(self, plan_hash: str, document: dict[str, Any], run_id: str) -> None:
        """Note that a run has carried out a plan."""
        self._sessions.execute(SAVE_APPLIED_PLAN, plan_hash=plan_hash, document=Jsonb(document), run_id=run_id)

    def extraction_state(self, table_id: int) -> "ExtractionState | None":
        """How far an incremental table was read."""
        found = self._sessions.execute(READ_STATE, table_id=table_id)
        return ExtractionState(**found) if found else None

    def save_extraction_state(self, table_id: int, state: "ExtractionState") -> None:
        """Note how far an incremental table was read."""
        self._sessions.execute(SAVE_STATE, table_id=table_id, **asdict(state))

    def last_script(self) -> dict[str, Any]:
        """script_id, file_name, sha256 and made_from of the newest script; empty when there is none."""
        return self._sessions.execute(READ_LAST_SCRIPT)

    def scripts(self) -> list[dict[str, Any]]:
        """script_id, file_name, sha256, statements, created_at and last_run_time of every script, the newest first."""
        with self._sessions.session() as connection:
            return connection.execute(READ_SCRIPTS).fetchall()

    def add_script(self, file_name: str, sha256: str, made_from: str, statements: int) -> None:
        """Register a script whose content was just brought into the graph."""
        self._sessions.execute(
            ADD_SCRIPT, file_name=file_name, sha256=sha256, made_from=made_from, statements=statements
        )

    def note_script(self, script_id: int, made_from: str) -> None:
        """Note that a script's content was brought into the graph again."""
        self._sessions.execute(NOTE_SCRIPT, script_id=script_id, made_from=made_from)


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


class RunLog:
    """The log of one run over the silos.

    Args:
        sessions: of the control database.
        log_id: of its row in `etl_run_logs`.

    Attributes:
        set_aside: by the name of a table or mapping that was wanted and not carried out, why.
    """

    def __init__(self, sessions: Sessions, log_id: int) -> None:
        self._sessions = sessions
        self.log_id = log_id
        self.set_aside: dict[str, str] = {}

    def note_plan(self, plan_hash: str) -> None:
        """Say which plan the run carries out."""
        self._sessions.execute(NOTE_PLAN, log_id=self.log_id, plan_hash=plan_hash)

    def start_table(self, db_name: str, table_name: str, mode: str) -> int:
        """Add a row to `etl_table_logs` that says running; returns its id."""
        row = self._sessions.execute(
            START_TABLE, log_id=self.log_id, db_name=db_name, table_name=table_name, snapshot_mode=mode
        )
        return int(row["table_log_id"])

    def finish_table(self, table_log_id: int, counts: TableCounts, seconds: float, error: str | None = None) -> None:
        """Say what became of a table."""
        self._sessions.execute(
            FINISH_TABLE, table_log_id=table_log_id, status="failed" if error else "done", snapshot_mode=counts.mode,
            rows_read=counts.rows_read, rows_changed=counts.rows_loaded + counts.rows_deleted,
            rows_loaded=counts.rows_loaded, rows_deleted=counts.rows_deleted, bytes_read=counts.bytes_read,
            seconds=seconds, error=error,
        )  # fmt: skip
