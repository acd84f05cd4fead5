"""Audiences and their documents, as control rows have them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from c360_pipeline.core.audiences.definition import Audience, read_audience
from c360_pipeline.errors import ConfigError
from c360_pipeline.stores.postgres.documents import document_hash
from c360_pipeline.stores.postgres.sessions import Sessions

READ_ACTIVE = """
    SELECT a.tenant_id, a.name, v.document FROM audiences a JOIN audience_versions v
        ON (v.tenant_id, v.name, v.version) = (a.tenant_id, a.name, a.active_version)
    ORDER BY a.tenant_id, a.name
"""
READ_ROWS = """
    SELECT a.tenant_id, a.name, a.active_version, v.version, v.document, v.note, v.created_at
    FROM audiences a JOIN audience_versions v ON (v.tenant_id, v.name) = (a.tenant_id, a.name)
    WHERE %(tenant_id)s::text IS NULL OR a.tenant_id = %(tenant_id)s
    ORDER BY a.tenant_id, a.name, v.version
"""
MAKE_AUDIENCE = """
    INSERT INTO audiences (tenant_id, name) VALUES (%(tenant_id)s, %(name)s) ON CONFLICT DO NOTHING
"""
# An audience has one writer of documents at a time; the document that its newest version has is that version.
LOCK_AUDIENCE = """
    SELECT active_version FROM audiences WHERE tenant_id = %(tenant_id)s AND name = %(name)s FOR UPDATE
"""
FIND_NEWEST = """
    SELECT version, document_hash FROM audience_versions
    WHERE tenant_id = %(tenant_id)s AND name = %(name)s ORDER BY version DESC LIMIT 1
"""
ADD_VERSION = """
    INSERT INTO audience_versions (tenant_id, name, version, document, document_hash, note)
    VALUES (%(tenant_id)s, %(name)s, %(version)s, %(document)s, %(document_hash)s, %(note)s)
"""
SET_ACTIVE = """
    UPDATE audiences SET active_version = %(version)s WHERE tenant_id = %(tenant_id)s AND name = %(name)s
"""


@dataclass(frozen=True)
class AudienceVersion:
    """A version of an audience's document.

    Attributes:
        tenant_id: whose customers.
        name: of the audience.
        active_version: the one that says who is in it; None where nobody is.
        version: this one.
        document: that it is.
        note: why it was made.
        created_at: when.
    """

    tenant_id: str
    name: str
    active_version: int | None
    version: int
    document: Mapping[str, Any]
    note: str
    created_at: datetime


class AudienceRows:
    """Audiences.

    Args:
        sessions: of the control database.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def active(self) -> tuple[list[Audience], dict[str, str]]:
        """All that have members, and by name of those whose document this release can't read, why.

        One that can't be read stops no other: its members stay as they are.
        """
        found, faults = [], {}
        with self._sessions.session() as connection:
            rows = list(connection.execute(READ_ACTIVE))
        for row in rows:
            try:
                found.append(read_audience(row["document"]))
            except ConfigError as error:
                faults[f"{row['tenant_id']}/{row['name']}"] = str(error)
        return found, faults

    def versions(self, tenant_id: str | None = None) -> list[AudienceVersion]:
        """Every version of every audience, the oldest first."""
        with self._sessions.session() as connection:
            return [AudienceVersion(**row) for row in connection.execute(READ_ROWS, {"tenant_id": tenant_id})]

    def newest(self, tenant_id: str | None = None) -> list[AudienceVersion]:
        """Of each audience the active version, else the newest."""
        found: dict[tuple[str, str], AudienceVersion] = {}
        for one in self.versions(tenant_id):
            known = found.get((one.tenant_id, one.name))
            if known is None or known.version != one.active_version:
                found[one.tenant_id, one.name] = one
        return list(found.values())

    def apply(self, audience: Audience, note: str) -> tuple[int, bool]:
        """Let a document say who is in an audience from now on; returns its version, and whether anything changed."""
        document = audience.document()
        values: dict[str, Any] = {
            "tenant_id": audience.tenant, "name": audience.audience, "note": note, "document": Jsonb(document),
            "document_hash": document_hash(document),
        }  # fmt: skip
        with self._sessions.session() as connection, connection.transaction():
            connection.execute(MAKE_AUDIENCE, values)
            locked = connection.execute(LOCK_AUDIENCE, values).fetchone()
            newest = connection.execute(FIND_NEWEST, values).fetchone()
            if newest is None or newest["document_hash"] != values["document_hash"]:
                values["version"] = (newest["version"] if newest else 0) + 1
                connection.execute(ADD_VERSION, values)
            else:
                values["version"] = newest["version"]
            is_new = locked is None or locked["active_version"] != values["version"]
            if is_new:
                connection.execute(SET_ACTIVE, values)
        return values["version"], is_new

    def end(self, tenant_id: str, name: str) -> bool:
        """Let nobody be in an audience; False where there is none, or nobody is."""
        values = {"tenant_id": tenant_id, "name": name, "version": None}
        with self._sessions.session() as connection, connection.transaction():
            locked = connection.execute(LOCK_AUDIENCE, values).fetchone()
            if locked is None or locked["active_version"] is None:
                return False
            connection.execute(SET_ACTIVE, values)
        return True
