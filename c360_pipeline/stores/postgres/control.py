"""The control database: what to read from which silo and what it becomes; its other parts say what was done."""

import re
from importlib import resources
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from c360_pipeline.core.landing.overwrites import OverwriteRule, OverwriteRules
from c360_pipeline.core.projection.user_properties import UserProperty
from c360_pipeline.core.silos.control_rows import ControlRows, IndexRow, RelationshipRow, SourceDatabase, SourceTable
from c360_pipeline.stores.postgres.audiences import AudienceRows
from c360_pipeline.stores.postgres.audit_log import AuditLog
from c360_pipeline.stores.postgres.databases import ensure_database
from c360_pipeline.stores.postgres.event_sources import EventSources
from c360_pipeline.stores.postgres.identifier_keys import IdentifierVersions, Secrets
from c360_pipeline.stores.postgres.key_rules import KeyRules
from c360_pipeline.stores.postgres.locks import Locks
from c360_pipeline.stores.postgres.privacy_lists import PrivacyLists
from c360_pipeline.stores.postgres.run_log import RunHistory
from c360_pipeline.stores.postgres.sessions import Connection, Sessions

READ_DATABASES = """
    SELECT database_id, tenant_id, db_name, host, port, db_user AS "user", password_ref, sslmode
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
READ_INDEXES = "SELECT node_label AS label, properties FROM graph_indexes WHERE is_active ORDER BY index_id"
READ_PROPERTIES = "SELECT tenant_id, property, trait, type FROM user_properties ORDER BY tenant_id, property"
READ_OVERWRITE_RULES = "SELECT path_pattern, on_overwrite FROM overwrite_rules"
READ_COLUMN_NAMES = "SELECT table_id, column_name, lake_name FROM column_names"
FIND_SCHEMA = "SELECT to_regclass('control_schema') IS NOT NULL AS is_there"
READ_SCHEMA_VERSION = "SELECT max(version) AS version FROM control_schema"
TAKE_SCHEMA_LOCK = "SELECT pg_advisory_xact_lock(hashtext('c360 control schema'))"
FIND_USE = """
    SELECT EXISTS (SELECT FROM source_databases) OR EXISTS (SELECT FROM suppressed_users)
        OR EXISTS (SELECT FROM etl_run_logs) OR EXISTS (SELECT FROM blocked_keys)
        OR EXISTS (SELECT FROM parted_keys) AS is_used
"""
NOTE_SCHEMA_VERSION = "INSERT INTO control_schema (version) VALUES (%(version)s) ON CONFLICT DO NOTHING"
SCHEMA_VERSION = 23
"""Of `ddl/control.sql`: raised with every change of it, so that databases that are there get the change, once."""


class ControlDb:
    """The control database; each question is one short connection.

    Attributes:
        locks: who may have the stores.
        identifiers: which secrets identifiers are hashed with.
        key_rules: which attributes of events are keys.
        sources: of events, and their mappings.
        audiences: and their documents.
        privacy: who never lands.
        audit: who looked at whom, and who changed what.
        runs: what was done.

    Args:
        login: host, port, dbname, user, password as psycopg takes them.
        secrets: where the secrets are that identifiers are hashed with.
    """

    def __init__(self, login: dict[str, Any], secrets: Secrets) -> None:
        self._sessions = Sessions(login)
        self.identifiers = IdentifierVersions(self._sessions, secrets)
        self.locks = Locks(self._sessions)
        self.key_rules = KeyRules(self._sessions, self.identifiers)
        self.sources = EventSources(self._sessions)
        self.audiences = AudienceRows(self._sessions)
        self.privacy = PrivacyLists(self._sessions, self.identifiers)
        self.audit = AuditLog(self._sessions, self.identifiers)
        self.runs = RunHistory(self._sessions)

    @property
    def login(self) -> dict[str, Any]:
        """host, port, dbname, user and password; never log it."""
        return self._sessions.login

    def execute(self, statement: LiteralString, **values: Any) -> dict[str, Any]:
        """Run one statement; returns its first row, empty when it has none."""
        return self._sessions.execute(statement, **values)

    def is_used(self) -> bool:
        """Whether anybody has named a source, suppressed a user or run anything."""
        return bool(self._sessions.execute(FIND_USE)["is_used"])

    def ensure(self) -> None:
        """Create the database, the control tables and the default key rules where they are missing."""
        ensure_database(self.login)
        with self._sessions.session() as connection:
            # Statements that change tables wait for everybody, and everybody for them: only where there is a change.
            if _schema_version(connection) >= SCHEMA_VERSION:
                return
            # One at a time: CREATE TABLE IF NOT EXISTS of two sessions at once can fail.
            connection.execute(TAKE_SCHEMA_LOCK)
            if _schema_version(connection) < SCHEMA_VERSION:
                connection.execute(_script().encode())
                connection.execute(NOTE_SCHEMA_VERSION, {"version": SCHEMA_VERSION})

    def drop_tables(self) -> None:
        """Remove every table of the schema, with what it holds; tables of others in the same database stay."""
        names = re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", _script())
        statement = sql.SQL("DROP TABLE IF EXISTS {} CASCADE").format(sql.SQL(", ").join(map(sql.Identifier, names)))
        with self._sessions.session() as connection:
            connection.execute(TAKE_SCHEMA_LOCK)
            connection.execute(statement)

    def overwrite_rules(self) -> OverwriteRules:
        """What it means that a file of events comes again under its name."""
        with self._sessions.session() as connection:
            return OverwriteRules(tuple(OverwriteRule(**row) for row in connection.execute(READ_OVERWRITE_RULES)))

    def read(self) -> ControlRows:
        """All active control rows, as one consistent picture."""
        with self._sessions.session() as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            names = {(r["table_id"], r["column_name"]): r["lake_name"] for r in connection.execute(READ_COLUMN_NAMES)}

            properties = tuple(UserProperty(**row) for row in connection.execute(READ_PROPERTIES))

            def in_lake(table_id: int, column: str | None) -> str | None:
                return names.get((table_id, column or ""), column)

            return ControlRows(
                databases=tuple(SourceDatabase(**row) for row in connection.execute(READ_DATABASES)),
                tables=tuple(
                    SourceTable(
                        **{
                            **row,
                            "key_columns": tuple(in_lake(row["table_id"], c) for c in row["key_columns"]),
                            "cursor_column": in_lake(row["table_id"], row["cursor_column"]),
                        }
                    )
                    for row in connection.execute(READ_TABLES)
                ),
                excluded={
                    (r["table_id"], in_lake(r["table_id"], r["column_name"]) or ""): r["reason"]
                    for r in connection.execute(READ_EXCLUSIONS)
                },
                renamed=names,
                labels={r["table_id"]: r["node_label"] for r in connection.execute(READ_LABELS)},
                relationships=tuple(RelationshipRow(**row) for row in connection.execute(READ_RELATIONSHIPS)),
                indexes=tuple(
                    IndexRow(row["label"], tuple(row["properties"])) for row in connection.execute(READ_INDEXES)
                ),
                properties=properties,
            )


def _script() -> str:
    return resources.files("c360_pipeline.ddl").joinpath("control.sql").read_text(encoding="utf-8")


def _schema_version(connection: Connection) -> int:
    found = connection.execute(FIND_SCHEMA).fetchone()
    if not (found and found["is_there"]):
        return 0
    row = connection.execute(READ_SCHEMA_VERSION).fetchone()
    return int(row["version"] or 0) if row else 0
