"""Sources of events and their mappings, as control rows have them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from c360_pipeline.errors import ConfigError
from c360_pipeline.stores.postgres.documents import document_hash
from c360_pipeline.stores.postgres.sessions import Sessions

FRESH_WITHIN_DAYS = 1
"""Days that a source may be silent, unless its row says otherwise: a whole day without a file is worth a look."""
READ_SOURCES = """
    SELECT s.source_id, s.name, s.location, s.framing, s.columns, s.records, s.active_version, s.is_active,
        s.from_table, s.from_topic, s.login_ref, s.fresh_within_days,
        (SELECT max(version) FROM event_mappings m WHERE m.source_id = s.source_id) AS newest_version
    FROM event_sources s ORDER BY s.name
"""
READ_MAPPING = """
    SELECT version, document, note, created_at FROM event_mappings
    WHERE source_id = %(source_id)s AND version = %(version)s
"""
READ_MAPPINGS = """
    SELECT version, document, note, created_at FROM event_mappings
    WHERE source_id = %(source_id)s ORDER BY version
"""
ADD_SOURCE = """
    INSERT INTO event_sources (name, location, framing, columns, records, from_table, from_topic, login_ref,
        fresh_within_days)
    VALUES (%(name)s, %(location)s, %(framing)s, %(columns)s, %(records)s, %(from_table)s,
        %(from_topic)s, %(login_ref)s, %(fresh_within_days)s)
    ON CONFLICT (name) DO NOTHING RETURNING source_id
"""
# A source has one writer of mappings at a time; the same document again is the version that it is.
LOCK_SOURCE = "SELECT source_id FROM event_sources WHERE name = %(name)s FOR UPDATE"
FIND_DOCUMENT = """
    SELECT max(version) AS version FROM event_mappings
    WHERE source_id = %(source_id)s AND document_hash = %(document_hash)s
"""
ADD_MAPPING = """
    INSERT INTO event_mappings (source_id, version, document, document_hash, note)
    SELECT %(source_id)s, coalesce(max(version), 0) + 1, %(document)s, %(document_hash)s, %(note)s
    FROM event_mappings WHERE source_id = %(source_id)s
    RETURNING version
"""
APPLY = "UPDATE event_sources SET active_version = %(version)s, is_active = true WHERE name = %(name)s"
PAUSE = "UPDATE event_sources SET is_active = false WHERE name = %(name)s"


@dataclass(frozen=True)
class SourceRow:
    """A row of `event_sources`.

    Attributes:
        source_id: number of the row.
        name: of the source.
        location: of its files.
        framing: of their records.
        columns: of a table without a header.
        records: path to records within one value.
        active_version: of the mapping that new files are read by; None before the first.
        is_active: whether its files land.
        from_table: database.schema.table whose rows are its records; None where these are files of a producer.
        from_topic: topic of Kafka whose messages are its records; None where these are files or rows.
        login_ref: of the login for its bucket; None for the product's own.
        fresh_within_days: days that it may be silent; None where it may be so for ever.
        newest_version: of its mappings; None where there is none.
    """

    source_id: int
    name: str
    location: str
    framing: str
    columns: list[str] | None
    records: str | None
    active_version: int | None
    is_active: bool
    from_table: str | None
    from_topic: str | None
    login_ref: str | None
    fresh_within_days: int | None
    newest_version: int | None


@dataclass(frozen=True)
class MappingRow:
    """A row of `event_mappings`.

    Attributes:
        version: of the source's mappings.
        document: what records become.
        note: why it was made.
        created_at: when.
    """

    version: int
    document: Mapping[str, Any]
    note: str
    created_at: datetime


class EventSources:
    """Sources and mappings.

    Args:
        sessions: of the control database.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def rows(self) -> list[SourceRow]:
        """All sources, by name."""
        with self._sessions.session() as connection:
            return [SourceRow(**row) for row in connection.execute(READ_SOURCES)]

    def active_names(self) -> list[str]:
        """Names of the active sources, those among them that are faulty."""
        return [row.name for row in self.rows() if row.is_active]

    def row(self, name: str) -> SourceRow:
        """One source.

        Raises:
            ConfigError: there is no such source.
        """
        known = self.rows()
        for row in known:
            if row.name == name:
                return row
        names = ", ".join(row.name for row in known) or "none yet"
        raise ConfigError(f"There is no source {name!r} (there are: {names}). `c360 sources add` makes one.")

    def mapping(self, source: SourceRow, version: int) -> MappingRow:
        """A version of a source's mapping.

        Raises:
            ConfigError: there is no such version.
        """
        with self._sessions.session() as connection:
            found = connection.execute(READ_MAPPING, {"source_id": source.source_id, "version": version}).fetchone()
        if found is None:
            raise ConfigError(
                f"source {source.name} has no mapping v{version}; the newest is v{source.newest_version}."
            )
        return MappingRow(**found)

    def mappings(self, source: SourceRow) -> list[MappingRow]:
        """Every version of a source's mapping, the oldest first."""
        with self._sessions.session() as connection:
            return [MappingRow(**row) for row in connection.execute(READ_MAPPINGS, {"source_id": source.source_id})]

    def add(
        self,
        name: str,
        location: str,
        framing: str,
        columns: list[str] | None,
        records: str | None,
        from_table: str | None = None,
        *,
        from_topic: str | None = None,
        login_ref: str | None = None,
        fresh_within_days: int | None = FRESH_WITHIN_DAYS,
    ) -> bool:
        """Make a source, not active; False where there is one of that name."""
        values = {
            "name": name, "location": location, "framing": framing, "columns": columns, "records": records,
            "from_table": from_table, "from_topic": from_topic, "login_ref": login_ref,
            "fresh_within_days": fresh_within_days,
        }  # fmt: skip
        with self._sessions.session() as connection:
            return connection.execute(ADD_SOURCE, values).fetchone() is not None

    def add_mapping(self, name: str, document: Mapping[str, Any], note: str) -> int:
        """Add a version of a source's mapping; a document that it has already is the version that it is."""
        said = {"document_hash": document_hash(document), "note": note, "document": Jsonb(document)}
        with self._sessions.session() as connection, connection.transaction():
            locked = connection.execute(LOCK_SOURCE, {"name": name}).fetchone()
            if locked is None:
                raise ConfigError(f"There is no source {name!r}. `c360 sources add` makes one.")
            found = connection.execute(FIND_DOCUMENT, {**said, **locked}).fetchone()
            if found and found["version"]:
                return int(found["version"])
            made = connection.execute(ADD_MAPPING, {**said, **locked}).fetchone()
            return int(made["version"]) if made else 0

    def apply(self, name: str, version: int) -> None:
        """New files are read by this version from now on; the source is active."""
        with self._sessions.session() as connection:
            connection.execute(APPLY, {"name": name, "version": version})

    def pause(self, name: str) -> None:
        """Its files land no more; what landed stays."""
        with self._sessions.session() as connection:
            connection.execute(PAUSE, {"name": name})
