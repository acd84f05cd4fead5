"""Which secrets identifiers are hashed with: their versions and fingerprints, never the secrets themselves."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

import polars as pl
from psycopg import sql
from pydantic import SecretStr

from c360_pipeline.core.contract.identifier_keys import IdentifierKeys
from c360_pipeline.core.contract.identifier_secrets import chain, fingerprint
from c360_pipeline.core.stitching.rotation import rotated_hashes
from c360_pipeline.errors import ConflictError
from c360_pipeline.stores.postgres.sessions import Connection, Sessions, StandingSession

READ_VERSIONS = """
    SELECT version, fingerprint, covers_hashes, took_effect_at, took_effect_at IS NOT NULL AS is_in_effect
    FROM identifier_keys ORDER BY version
"""
CLAIM = """
    UPDATE identifier_keys SET fingerprint = %(fingerprint)s WHERE version = %(version)s AND fingerprint IS NULL
"""
BEGIN_ROTATION = """
    INSERT INTO identifier_keys (version, fingerprint, covers_hashes)
    VALUES (%(version)s, %(fingerprint)s, %(version)s = 1) ON CONFLICT DO NOTHING
"""
END_ROTATION = """
    UPDATE identifier_keys SET took_effect_at = now() WHERE version = %(version)s AND took_effect_at IS NULL
"""


BROKEN_OFF = (
    "Identifiers go from one secret to the next, and that was broken off: call `c360 keys rotate` again, which goes on "
    "where it was."
)
Listed = tuple[Connection, IdentifierKeys]
Change = Callable[[pl.Expr, IdentifierKeys, int], pl.Expr]
LISTS: tuple[tuple[str, str, Change], ...] = (
    ("blocked_keys", "key_hash", rotated_hashes),
    ("parted_keys", "key_hash", rotated_hashes),
    ("parted_keys", "other_hash", rotated_hashes),
    ("suppressed_users", "user_hash", lambda hashes, keys, since: keys.covered_digests(hashes, since)),
    ("audit_log", "subject_hash", lambda hashes, keys, since: keys.covered_digests(hashes, since)),
    ("suppressed_rows", "row_hash", lambda hashes, keys, since: keys.covered_digests(hashes, since)),
)
"""Lists by hash: table, column, and what brings a hash to the next secret."""


@dataclass(frozen=True)
class Secrets:
    """Where the secrets are.

    Attributes:
        read: the secrets by version, as they are now.
        make: makes the secret of a version where it is missing.
        place: names where they are, for people.
        made: told of a version whose secret was made, and is the installation's.
    """

    read: Callable[[], Mapping[int, SecretStr]]
    make: Callable[[int], SecretStr]
    place: Callable[[], str]
    made: Callable[[int], None]


@dataclass(frozen=True)
class VersionSeen:
    """A version of the secret, as people are shown it.

    Attributes:
        version: 1, 2, 3.
        fingerprint: what tells it apart; None for one that nothing was hashed with yet.
        took_effect_at: from when on all hashes are of it; None while a rotation is under way.
        is_held: whether this machine has it.
    """

    version: int
    fingerprint: str | None
    took_effect_at: datetime | None
    is_held: bool


@dataclass(frozen=True)
class Rotation:
    """Identifiers that go from one version to the next.

    Attributes:
        before: the secrets that hashes are made with.
        after: these, and the next.
    """

    before: IdentifierKeys
    after: IdentifierKeys


class IdentifierVersions:
    """The versions of secrets that identifiers are hashed with.

    Args:
        sessions: of the control database.
        secrets: where they are.
    """

    def __init__(self, sessions: Sessions | StandingSession, secrets: Secrets) -> None:
        self._sessions = sessions
        self._secrets = secrets

    def current(self) -> IdentifierKeys:
        """The secrets that hashes are made with now.

        Raises:
            ConfigError: one of them is not on this machine.
            ConflictError: a rotation was broken off.
        """
        with self._sessions.session() as connection:
            return self.read(connection)

    def read(self, connection: Connection) -> IdentifierKeys:
        """The same, within a transaction."""
        rows = self._rows(connection)
        if rows and not rows[-1]["is_in_effect"]:
            raise ConflictError(BROKEN_OFF)
        return self._keys(rows)

    def in_effect(self, connection: Connection) -> IdentifierKeys:
        """The same for lists of people, which go to the next version when a rotation ends, and are right until then."""
        return self._keys([row for row in self._rows(connection) if row["is_in_effect"]])

    @contextmanager
    def listed(self, sessions: Sessions | StandingSession, table: LiteralString) -> Iterator[Listed]:
        """A transaction with a list whose hashes no rotation changes meanwhile, and the secrets that cover it.

        Args:
            sessions: of the control database.
            table: of `LISTS`.
        """
        with sessions.session() as connection:
            connection.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(sql.Identifier(table)))
            yield connection, self.in_effect(connection)

    def begin_rotation(self) -> Rotation:
        """Make the next secret, or take up the one of a rotation that was broken off.

        Raises:
            ConfigError: secrets come from the environment, which has no next one; or one is not on this machine.
        """
        with self._sessions.session() as connection:
            rows = self._rows(connection)
            if rows and not rows[-1]["is_in_effect"]:
                return Rotation(self._keys(rows[:-1]), self._keys(rows))
            version = len(rows) + 1
            self._name(connection, BEGIN_ROTATION, version)
            return Rotation(self._keys(rows), self._keys(self._rows(connection)))

    def versions(self) -> list[VersionSeen]:
        """All versions, the oldest first."""
        held = {version: fingerprint(secret) for version, secret in self._secrets.read().items()}
        with self._sessions.session() as connection:
            rows = connection.execute(READ_VERSIONS).fetchall()
        return [
            VersionSeen(
                row["version"], row["fingerprint"], row["took_effect_at"],
                row["version"] in held and row["fingerprint"] in (None, held[row["version"]]),
            )
            for row in rows
        ]  # fmt: skip

    def require_no_rotation(self) -> None:
        """Go on only where no rotation was broken off: then tables and graph are of two secrets.

        Raises:
            ConflictError: one was.
        """
        if self.is_rotating():
            raise ConflictError(BROKEN_OFF)

    def is_rotating(self) -> bool:
        """Whether a rotation began and has not ended."""
        with self._sessions.session() as connection:
            rows = connection.execute(READ_VERSIONS).fetchall()
        return bool(rows) and not rows[-1]["is_in_effect"]

    def end_rotation(self, rotation: Rotation) -> int:
        """Bring the lists to the next secret, and say that it holds everywhere; returns how many entries these have."""
        keys, since = rotation.after, rotation.before.version
        with self._sessions.session() as connection:
            for table, *_ in LISTS:
                # Who puts somebody on a list now waits, and then takes the next secret.
                connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(sql.Identifier(table)))
            # Whoever lost its session meanwhile may find it ended by another: lists must not be covered twice.
            if not connection.execute(END_ROTATION, {"version": keys.version}).rowcount:
                raise ConflictError("Another process has ended this rotation meanwhile: `c360 keys show` says how.")
            return sum(self._rotate_list(connection, *one, keys, since) for one in LISTS)

    @staticmethod
    def _rotate_list(
        connection: Connection, table: str, column: str, change: Change, keys: IdentifierKeys, since: int
    ) -> int:
        names = {"table": sql.Identifier(table), "column": sql.Identifier(column)}
        listed = connection.execute(sql.SQL("SELECT DISTINCT {column} AS old FROM {table}").format(**names)).fetchall()
        if not listed:
            return 0
        old = pl.DataFrame(listed, schema={"old": pl.String})
        new = old.select("old", new=change(pl.col("old"), keys, since))
        update = sql.SQL(
            "UPDATE {table} AS t SET {column} = n.new FROM unnest(%(old)s::text[], %(new)s::text[]) AS n (old, new) "
            "WHERE t.{column} = n.old"
        ).format(**names)
        values = {name: new[name].to_list() for name in ("old", "new")}
        return connection.execute(update, values).rowcount

    def _rows(self, connection: Connection) -> list[dict[str, object]]:
        rows = connection.execute(READ_VERSIONS).fetchall()
        if rows and rows[0]["fingerprint"] is None:
            # Of a new database: whoever asks first says which secret it is.
            self._name(connection, CLAIM, 1)
            rows = connection.execute(READ_VERSIONS).fetchall()
        return rows

    def _name(self, connection: Connection, statement: LiteralString, version: int) -> None:
        """Say which secret a version has, made where there is none; the first to say so decides."""
        is_new = version not in self._secrets.read()
        self._secrets.make(version)
        # As it was read back: what is named here can be read again.
        named = {"version": version, "fingerprint": fingerprint(self._secrets.read()[version])}
        if connection.execute(statement, named).rowcount and is_new:
            self._secrets.made(version)

    def _keys(self, rows: list[dict[str, object]]) -> IdentifierKeys:
        if not rows:
            return IdentifierKeys()
        named = {int(str(row["version"])): str(row["fingerprint"]) for row in rows}
        secrets = chain(self._secrets.read(), named, self._secrets.place)
        return IdentifierKeys(secrets, covers_hashes=bool(rows[0]["covers_hashes"]))
