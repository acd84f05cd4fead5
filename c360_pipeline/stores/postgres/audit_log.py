"""The audit log of the control database: it names nobody whom it is about, and is kept for `DAYS_KEPT`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from c360_pipeline.core.privacy.audit import DAYS_KEPT, Entry, subject_hashes
from c360_pipeline.stores.postgres.identifier_keys import IdentifierVersions
from c360_pipeline.stores.postgres.sessions import Connection, Sessions, StandingSession

FORGET = "DELETE FROM audit_log WHERE at < now() - make_interval(days => %(days)s)"
ADD = """
    INSERT INTO audit_log (tenant_id, actor, role, action, subject_hash, what, at)
    SELECT * FROM unnest(%(tenant_id)s::text[], %(actor)s::text[], %(role)s::text[], %(action)s::text[],
                         %(subject_hash)s::text[], %(what)s::text[], %(at)s::timestamptz[])
"""
READ = """
    SELECT audit_id, at, actor, role, action, subject_hash, what FROM audit_log
    WHERE tenant_id = %(tenant_id)s AND (%(subject_hash)s::text IS NULL OR subject_hash = %(subject_hash)s)
      AND (%(before)s::bigint IS NULL OR audit_id < %(before)s)
    ORDER BY audit_id DESC LIMIT %(limit)s
"""


@dataclass(frozen=True)
class Line:
    """An entry as it was kept.

    Attributes:
        audit_id: number, in the order of writing.
        at: when (UTC).
        actor: who.
        role: of the key; empty on the command line.
        action: what, see `core.privacy.audit.Action`.
        subject_hash: stands for the person that it is about; None where it is about nobody.
        what: what else it is about.
    """

    audit_id: int
    at: datetime
    actor: str
    role: str
    action: str
    subject_hash: str | None
    what: str


class AuditLog:
    """Writes and reads the log.

    Args:
        sessions: of the control database.
        identifiers: which secrets cover the hashes.
    """

    def __init__(self, sessions: Sessions | StandingSession, identifiers: IdentifierVersions) -> None:
        self._sessions = sessions
        self._identifiers = identifiers

    def add(self, entries: Sequence[Entry]) -> None:
        """Write entries, and forget those whose time is over.

        Raises:
            ConfigError: this machine does not have the secrets that cover the hashes.
            UnavailableError: the database can't be reached.
        """
        if not entries:
            return
        hashes = subject_hashes([one.tenant_id for one in entries], [one.subject for one in entries])
        names = ("tenant_id", "actor", "role", "action", "what", "at")
        values = {name: [getattr(one, name) for one in entries] for name in names}
        with self._covering(hashes) as (connection, covered):
            connection.execute(FORGET, {"days": DAYS_KEPT})
            connection.execute(ADD, {**values, "subject_hash": covered})

    def of(self, tenant_id: str, limit: int, subject: str | None = None, before: int | None = None) -> list[Line]:
        """Entries of a tenant, the newest first.

        Args:
            tenant_id: whose.
            limit: entries at most.
            subject: only those about this person, in any spelling.
            before: only those with a lower number.
        """
        with self._covering(subject_hashes([tenant_id], [subject])) as (connection, asked):
            values = {"tenant_id": tenant_id, "subject_hash": asked[0], "before": before, "limit": limit}
            return [Line(**row) for row in connection.execute(READ, values)]

    @contextmanager
    def _covering(self, hashes: pl.Series) -> Iterator[tuple[Connection, list[str | None]]]:
        """A transaction, and hashes as they stand in the log; what is about nobody needs no secret."""
        if hashes.null_count() == len(hashes):
            with self._sessions.session() as connection:
                yield connection, hashes.to_list()
            return
        with self._identifiers.listed(self._sessions, "audit_log") as (connection, keys):
            covered = hashes.to_frame("hash").select(keys.covered_digests(pl.col("hash"), 0))
            yield connection, covered.to_series().to_list()
