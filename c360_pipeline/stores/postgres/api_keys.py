"""Keys of the API: each belongs to one tenant and has one role; only their digests are kept."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg.rows import class_row

from c360_pipeline.core.privacy.roles import Permission, allowed
from c360_pipeline.errors import UnavailableError

CONNECT_SECONDS = 3
ADD = """
    INSERT INTO api_keys (tenant_id, role, key_digest, note, expires_at)
    VALUES (%(tenant_id)s, %(role)s, %(key_digest)s, %(note)s, now() + make_interval(days => %(days)s))
    RETURNING key_id, tenant_id, role, note, created_at, revoked_at, expires_at
"""
READ = "SELECT key_id, tenant_id, role, note, created_at, revoked_at, expires_at FROM api_keys ORDER BY key_id"
FIND = """
    SELECT key_id, tenant_id, role, note, created_at, revoked_at, expires_at FROM api_keys
    WHERE key_digest = %(key_digest)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""
BEGIN_SESSION = """
    WITH ended AS (DELETE FROM page_sessions WHERE expires_at < now() OR session_digest = %(before)s)
    INSERT INTO page_sessions (session_digest, key_id, expires_at)
    SELECT %(digest)s, key_id, now() + make_interval(secs => %(seconds)s) FROM api_keys
    WHERE key_digest = %(key_digest)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""
FIND_SESSION = """
    SELECT s.key_id, coalesce(k.tenant_id, s.tenant_id) AS tenant_id, coalesce(k.role, s.role) AS role,
        coalesce(k.note, s.person) AS note, coalesce(k.created_at, s.created_at) AS created_at, k.revoked_at,
        CASE WHEN s.key_id IS NULL THEN s.expires_at ELSE k.expires_at END AS expires_at
    FROM page_sessions s LEFT JOIN api_keys k USING (key_id)
    WHERE s.session_digest = %(digest)s AND s.expires_at > now() AND k.revoked_at IS NULL
        AND (k.expires_at IS NULL OR k.expires_at > now())
"""
BEGIN_SESSION_OF_PERSON = """
    WITH ended AS (DELETE FROM page_sessions WHERE expires_at < now())
    INSERT INTO page_sessions (session_digest, tenant_id, role, person, expires_at)
    VALUES (%(digest)s, %(tenant_id)s, %(role)s, %(person)s, now() + make_interval(secs => %(seconds)s))
"""
END_SESSION = "DELETE FROM page_sessions WHERE session_digest = %(digest)s"
ROTATE = """
    WITH old AS (
        UPDATE api_keys SET expires_at = least(expires_at, now() + make_interval(hours => %(grace_hours)s))
        WHERE key_id = %(key_id)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
        RETURNING tenant_id, role, note
    )
    INSERT INTO api_keys (tenant_id, role, key_digest, note, expires_at)
    SELECT tenant_id, role, %(key_digest)s, note, now() + make_interval(days => %(days)s) FROM old
    RETURNING key_id, tenant_id, role, note, created_at, revoked_at, expires_at
"""
REVOKE = "UPDATE api_keys SET revoked_at = now() WHERE key_id = %(key_id)s AND revoked_at IS NULL"
OF_PEOPLE = "FROM page_sessions WHERE key_id IS NULL AND (%(person)s::text IS NULL OR person = %(person)s)"
FIND_PEOPLE = f"SELECT DISTINCT tenant_id, person {OF_PEOPLE} ORDER BY tenant_id, person"
END_SESSIONS_OF_PEOPLE = f"DELETE {OF_PEOPLE}"


@dataclass(frozen=True)
class ApiKey:
    """A key, without what it is recognised by; or what somebody may who signed in to the pages.

    Attributes:
        key_id: number, by which it is revoked; None of a person who signed in.
        tenant_id: whose data it opens.
        role: of `core.privacy.roles.ROLES`.
        note: who has it, or is it.
        created_at: when it was made.
        revoked_at: since when it is revoked; None while it is valid.
        expires_at: from when on it opens nothing; None where it does not expire.
    """

    key_id: int | None
    tenant_id: str
    role: str
    note: str
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None

    def may(self, permission: Permission) -> bool:
        """Whether its role allows something."""
        return allowed(self.role, permission)


class ApiKeys:
    """The keys of the control database.

    Args:
        login: of the control database, as psycopg takes it.
    """

    def __init__(self, login: dict[str, Any]) -> None:
        self._login = {"connect_timeout": CONNECT_SECONDS, **login}

    def add(self, tenant_id: str, role: str, note: str = "", days: int | None = None) -> tuple[str, ApiKey]:
        """Make a key; returns it, to be shown once, and what is kept of it.

        Args:
            tenant_id: whose data it opens.
            role: of `core.privacy.roles.ROLES`.
            note: who has it.
            days: until it expires; None for never.
        """
        key = _new_key()
        values = {"tenant_id": tenant_id, "role": role, "key_digest": digest_of(key), "note": note, "days": days}
        with psycopg.connect(**self._login, row_factory=class_row(ApiKey)) as connection:
            made = connection.execute(ADD, values).fetchone()
        if made is None:
            raise AssertionError("INSERT … RETURNING returns the row")
        return key, made

    def rotate(self, key_id: int, grace_hours: int, days: int | None = None) -> tuple[str, ApiKey] | None:
        """Make a key that stands in for another, which opens for some hours still; None where that opens nothing.

        Args:
            key_id: of the old one.
            grace_hours: until it expires.
            days: until the new one expires; None for never.
        """
        key = _new_key()
        values = {"key_id": key_id, "key_digest": digest_of(key), "grace_hours": grace_hours, "days": days}
        with psycopg.connect(**self._login, row_factory=class_row(ApiKey)) as connection:
            made = connection.execute(ROTATE, values).fetchone()
        return None if made is None else (key, made)

    def all(self) -> list[ApiKey]:
        """Every key, those that were revoked among them."""
        with psycopg.connect(**self._login, row_factory=class_row(ApiKey)) as connection:
            return connection.execute(READ).fetchall()

    def find(self, key: str) -> ApiKey | None:
        """The key that somebody shows; None when there is none or it was revoked.

        Raises:
            UnavailableError: the database can't be reached.
        """
        return self._find(FIND, {"key_digest": digest_of(key)})

    def begin_session(self, key: str, seconds: int, before: str = "") -> str | None:
        """Log a browser in; returns what its cookie is to hold, None where the key opens nothing any more.

        Args:
            key: that was shown.
            seconds: until the session ends by itself.
            before: what the cookie held; that session ends.
        """
        token = secrets.token_urlsafe(32)
        values = {
            "digest": digest_of(token),
            "key_digest": digest_of(key),
            "seconds": seconds,
            "before": digest_of(before),
        }
        with psycopg.connect(**self._login) as connection:
            return token if connection.execute(BEGIN_SESSION, values).rowcount else None

    def begin_session_of_person(self, tenant_id: str, role: str, person: str, seconds: int) -> str:
        """Log somebody's browser in who signed in elsewhere; returns what its cookie is to hold.

        Args:
            tenant_id: whose customers they may see.
            role: of `core.privacy.roles.ROLES`.
            person: who they are.
            seconds: until the session ends by itself.

        Raises:
            UnavailableError: the database can't be reached.
        """
        token = secrets.token_urlsafe(32)
        values = {"digest": digest_of(token), "tenant_id": tenant_id, "role": role, "person": person,
                  "seconds": seconds}  # fmt: skip
        try:
            with psycopg.connect(**self._login) as connection:
                connection.execute(BEGIN_SESSION_OF_PERSON, values)
        except psycopg.OperationalError as error:
            raise UnavailableError("The control database can't be reached.") from error
        return token

    def find_session(self, token: str) -> ApiKey | None:
        """The key that a browser logged in with; None when its session has ended or the key was revoked.

        Raises:
            UnavailableError: the database can't be reached.
        """
        return self._find(FIND_SESSION, {"digest": digest_of(token)})

    def end_session(self, token: str) -> bool:
        """Log a browser out; False when it was not logged in."""
        with psycopg.connect(**self._login) as connection:
            return connection.execute(END_SESSION, {"digest": digest_of(token)}).rowcount > 0

    def _find(self, statement: LiteralString, values: dict[str, str]) -> ApiKey | None:
        try:
            with psycopg.connect(**self._login, row_factory=class_row(ApiKey)) as connection:
                return connection.execute(statement, values).fetchone()
        except psycopg.OperationalError as error:
            raise UnavailableError("The control database can't be reached.") from error

    def revoke(self, key_id: int) -> bool:
        """Revoke a key; False when there is none that is valid."""
        with psycopg.connect(**self._login) as connection:
            return connection.execute(REVOKE, {"key_id": key_id}).rowcount > 0

    def people_in_session(self, person: str | None) -> list[tuple[str, str]]:
        """Tenant and name of somebody who signed in and has a session, or of all who do."""
        with psycopg.connect(**self._login) as connection:
            return [(row[0], row[1]) for row in connection.execute(FIND_PEOPLE, {"person": person})]

    def end_sessions(self, person: str | None) -> int:
        """End the sessions of somebody who signed in, or of all who did; returns how many."""
        with psycopg.connect(**self._login) as connection:
            return connection.execute(END_SESSIONS_OF_PEOPLE, {"person": person}).rowcount


def _new_key() -> str:
    return f"c360_{secrets.token_urlsafe(32)}"


def digest_of(key: str) -> str:
    """The sha256 of a key: 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()
