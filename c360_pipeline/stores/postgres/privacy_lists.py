"""Who never lands: suppressed users and rows, retention rules, and whether an erasure is under way."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString
from unicodedata import normalize

import polars as pl

from c360_pipeline.core.arrays.row_hashes import user_hash
from c360_pipeline.core.contract.identifier_keys import IdentifierKeys
from c360_pipeline.core.contract.identifiers import normal_text
from c360_pipeline.core.landing.suppressed import PEOPLE, ROWS, Suppressed, SuppressedRows
from c360_pipeline.core.privacy.purposes import Purpose
from c360_pipeline.errors import ConflictError
from c360_pipeline.stores.postgres.identifier_keys import IdentifierVersions
from c360_pipeline.stores.postgres.sessions import Sessions, StandingSession

READ_SUPPRESSED = "SELECT tenant_id, user_hash FROM suppressed_users ORDER BY tenant_id, user_hash"
SUPPRESS = """
    INSERT INTO suppressed_users (tenant_id, user_hash, reason) VALUES (%(tenant_id)s, %(user_hash)s, %(reason)s)
    ON CONFLICT DO NOTHING
"""
UNSUPPRESS = "DELETE FROM suppressed_users WHERE tenant_id = %(tenant_id)s AND user_hash = %(user_hash)s"
READ_SUPPRESSED_ROWS = "SELECT lake_table, row_hash FROM suppressed_rows"
SUPPRESS_ROWS = """
    INSERT INTO suppressed_rows (lake_table, row_hash) SELECT %(lake_table)s, unnest(%(hashes)s::text[])
    ON CONFLICT DO NOTHING
"""
READ_RETENTION = "SELECT tenant_id, label, action, days FROM retention_rules ORDER BY tenant_id, label, action"
READ_PURPOSES = "SELECT tenant_id, feature, purpose FROM feature_purposes ORDER BY tenant_id, feature, purpose"
READ_ERASURE = "SELECT started_at, files FROM erasures_under_way"
READ_ERASURE_AT_WORK = """
    SELECT e.started_at FROM erasures_under_way e WHERE EXISTS (
        SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
        WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.granted AND l.objsubid = 1
          AND (l.classid::bigint << 32) + l.objid::bigint = hashtext('c360 stores')::bigint
    )
"""
"""Of an erasure that was broken off, nobody holds the lock any more (`locks`)."""
BEGIN_ERASURE = "INSERT INTO erasures_under_way (files) VALUES ('{}') ON CONFLICT DO NOTHING"
NAME_ERASED_FILES = "UPDATE erasures_under_way SET files = %(files)s"
END_ERASURE = "DELETE FROM erasures_under_way"


@dataclass(frozen=True)
class UnfinishedErasure:
    """An erasure that is at work or was broken off.

    Attributes:
        started_at: when.
        files: addresses of the landing files that it rewrites; empty before that is decided.
    """

    started_at: datetime
    files: frozenset[str]

    def __str__(self) -> str:
        return (
            f"The erasure that began {self.started_at:%Y-%m-%d %H:%M} UTC has not ended. If `c360 erase` was broken "
            "off, call it again with the same people; these files land with the next run then."
        )


class PrivacyLists:
    """The lists by which people stay out.

    Args:
        sessions: of the control database.
        identifiers: which secrets cover the hashes.
    """

    def __init__(self, sessions: Sessions | StandingSession, identifiers: IdentifierVersions) -> None:
        self._sessions = sessions
        self._identifiers = identifiers

    def suppressed_users(self) -> Suppressed:
        """The users whose events never land.

        Raises:
            ConfigError: this machine does not have the secrets that cover the list.
        """
        with self._identifiers.listed(self._sessions, "suppressed_users") as (connection, identifiers):
            rows = [(r["tenant_id"], r["user_hash"]) for r in connection.execute(READ_SUPPRESSED)]
        return Suppressed(pl.DataFrame(rows, schema=PEOPLE, orient="row"), identifiers)

    def covered(self, hashes: pl.DataFrame) -> pl.DataFrame:
        """Hashes of people as they stand on the list: tenant_id and user_hash, without secrets and then with them."""
        with self._sessions.session() as connection:
            return _covered(hashes, self._identifiers.in_effect(connection))

    def purposes(self) -> tuple[Purpose, ...]:
        """What people must not have refused for features to use what they did."""
        with self._sessions.session() as connection:
            return tuple(Purpose(**row) for row in connection.execute(READ_PURPOSES))

    def suppress(self, tenant_id: str, user_id: str, reason: str) -> bool:
        """Put a user on the list, in every spelling of the id; False when they were on it."""
        return self._change_suppressed(SUPPRESS, tenant_id, normal_text(user_id), reason)

    def suppress_traces(self, hashes: pl.DataFrame, reason: str) -> None:
        """Put visitors and visits of somebody on the list.

        Args:
            hashes: tenant_id and user_hash, as `trace_hash` makes it, without secrets.
            reason: why.
        """
        with self._identifiers.listed(self._sessions, "suppressed_users") as (connection, identifiers):
            for tenant_id, user_hash_ in _covered(hashes, identifiers).iter_rows():
                connection.execute(SUPPRESS, {"tenant_id": tenant_id, "user_hash": user_hash_, "reason": reason})

    def unsuppress(self, tenant_id: str, user_id: str) -> bool:
        """Take a user off the list; False when they were not on it."""
        spellings = (normal_text(user_id), normalize("NFC", user_id))
        # An entry of before there was a normal form is of the id as it was given.
        gone = [self._change_suppressed(UNSUPPRESS, tenant_id, spelling, "") for spelling in spellings]
        return any(gone)

    def _change_suppressed(self, statement: LiteralString, tenant_id: str, user_id: str, reason: str) -> bool:
        user = pl.DataFrame({"tenant_id": [tenant_id], "user_id": [user_id]})
        hashes = user.select("tenant_id", user_hash=user_hash())
        with self._identifiers.listed(self._sessions, "suppressed_users") as (connection, identifiers):
            values = _covered(hashes, identifiers).row(0, named=True)
            return connection.execute(statement, {**values, "reason": reason}).rowcount > 0

    def suppressed_rows(self) -> SuppressedRows:
        """The rows of silos that are never read again.

        Raises:
            ConfigError: this machine does not have the secrets that cover the list.
        """
        with self._identifiers.listed(self._sessions, "suppressed_rows") as (connection, identifiers):
            rows = [(r["lake_table"], r["row_hash"]) for r in connection.execute(READ_SUPPRESSED_ROWS)]
        return SuppressedRows(pl.DataFrame(rows, schema=ROWS, orient="row"), identifiers)

    def suppress_rows(self, lake_table: str, hashes: pl.Series) -> None:
        """Put rows of a silo's table on that list; there is no way off it but by hand.

        Args:
            lake_table: the table.
            hashes: as `row_name_hash` makes them, without secrets.
        """
        with self._identifiers.listed(self._sessions, "suppressed_rows") as (connection, identifiers):
            covered = hashes.to_frame("row_hash").select(identifiers.covered_digests(pl.col("row_hash"), 0))
            values = {"lake_table": lake_table, "hashes": covered.to_series().to_list()}
            connection.execute(SUPPRESS_ROWS, values)

    def retention_rules(self) -> pl.DataFrame:
        """tenant_id, label, action, days."""
        schema = {"tenant_id": pl.String, "label": pl.String, "action": pl.String, "days": pl.Int64}
        with self._sessions.session() as connection:
            return pl.DataFrame(connection.execute(READ_RETENTION).fetchall(), schema=schema)

    def begin_erasure(self) -> None:
        """Note that people are being erased, until `end_erasure`."""
        self._sessions.execute(BEGIN_ERASURE)

    def name_erased_files(self, addresses: Iterable[str]) -> None:
        """Note which landing files an erasure rewrites: they do not land until it has ended."""
        self._sessions.execute(NAME_ERASED_FILES, files=sorted(addresses))

    def end_erasure(self) -> None:
        """Note that nobody is being erased any more."""
        self._sessions.execute(END_ERASURE)

    def is_erasing(self) -> bool:
        """Whether people are being erased now; of an erasure that was broken off, nobody is."""
        return bool(self._sessions.execute(READ_ERASURE_AT_WORK))

    def require_no_erasure(self) -> None:
        """Go on only where nobody is being erased now.

        Raises:
            ConflictError: an erasure is at work.
        """
        if since := self._sessions.execute(READ_ERASURE_AT_WORK).get("started_at"):
            raise ConflictError(f"People are being erased since {since:%Y-%m-%d %H:%M} UTC; try again later.")

    def unfinished_erasure(self) -> UnfinishedErasure | None:
        """The erasure that is at work or was broken off; None where there is none.

        Raises:
            ConflictError: an earlier version began it, and did not note which files it rewrites.
        """
        found = self._sessions.execute(READ_ERASURE)
        if not found:
            return None
        if found["files"] is None:
            raise ConflictError(
                f"People are being erased since {found['started_at']:%Y-%m-%d %H:%M} UTC: a landing now could bring "
                "them back. If `c360 erase` was broken off, call it again with the same people."
            )
        return UnfinishedErasure(found["started_at"], frozenset(found["files"]))


def _covered(hashes: pl.DataFrame, identifiers: IdentifierKeys) -> pl.DataFrame:
    """tenant_id and user_hash as they stand on the list."""
    return hashes.select("tenant_id", user_hash=identifiers.covered_digests(pl.col("user_hash"), 0))
