"""Which attributes of events are keys, and which keys are blocked."""

from typing import Any

import polars as pl
import psycopg

from c360_pipeline.core.contract.identifiers import word_of
from c360_pipeline.core.stitching.keys import JourneyLimit, KeyPolicy, KeyRule
from c360_pipeline.errors import ConfigError
from c360_pipeline.stores.postgres.identifier_keys import IdentifierVersions
from c360_pipeline.stores.postgres.sessions import Sessions

READ_KEY_RULES = """
    SELECT tenant_id, key_type, source_attribute AS source, mode, is_unique, max_partners, window_seconds,
        pattern
    FROM correlation_key_rules ORDER BY rule_id
"""
KEEP_USERS_APART = """
    INSERT INTO correlation_key_rules (tenant_id, key_type, source_attribute, is_unique, max_partners, pattern)
    SELECT %(tenant_id)s, said.* FROM (VALUES
        ('user', 'userId', true, 1000, NULL),
        ('user', 'attrs.same_as', true, 1000, NULL),
        ('visitor', 'anonymousId', false, 1000, NULL),
        ('visitor', 'userId', false, 1000, '^(anon|anonymous|visitor|guest)[-_:.]'),
        ('visitor', 'attrs.same_as', false, 1000, '^(anon|anonymous|visitor|guest)[-_:.]')
    ) AS said
    WHERE NOT EXISTS (
        SELECT FROM correlation_key_rules
        WHERE key_type IN ('user', 'visitor') AND (tenant_id = %(tenant_id)s OR (tenant_id = '*' AND is_unique))
    ) ON CONFLICT DO NOTHING
"""
"""Not where somebody has said otherwise, for the tenant or for all."""
READ_LIMITS = "SELECT tenant_id, soft_max_keys, hard_max_keys FROM journey_limits ORDER BY tenant_id"
READ_BLOCKED = "SELECT tenant_id, key_type, key_hash FROM blocked_keys"
READ_PARTED = "SELECT tenant_id, key_type, key_hash, other_hash FROM parted_keys"
READ_NOBODY = "SELECT tenant_id, value FROM nobody_values"
BLOCK_KEY = """
    INSERT INTO blocked_keys (tenant_id, key_type, key_hash, reason)
    VALUES (%(tenant_id)s, %(key_type)s, %(key_hash)s, %(reason)s) ON CONFLICT DO NOTHING
"""
UNBLOCK_KEY = """
    DELETE FROM blocked_keys WHERE tenant_id = %(tenant_id)s AND key_type = %(key_type)s AND key_hash = %(key_hash)s
"""
PART_KEYS = """
    INSERT INTO parted_keys (tenant_id, key_type, key_hash, other_hash, reason)
    SELECT %(tenant_id)s, %(key_type)s, %(key_hash)s, %(other_hash)s, %(reason)s WHERE NOT EXISTS (
        SELECT FROM parted_keys WHERE tenant_id = %(tenant_id)s AND key_type = %(key_type)s
        AND key_hash = %(other_hash)s AND other_hash = %(key_hash)s
    ) ON CONFLICT DO NOTHING
"""
UNPART_KEYS = """
    DELETE FROM parted_keys WHERE tenant_id = %(tenant_id)s AND key_type = %(key_type)s
    AND (key_hash, other_hash) IN ((%(key_hash)s, %(other_hash)s), (%(other_hash)s, %(key_hash)s))
"""


def _rule(row: dict[str, Any]) -> KeyRule:
    try:
        pl.Series([""]).str.contains(row["pattern"] or "")
    except pl.exceptions.ComputeError as error:
        raise ConfigError(
            f"correlation_key_rules: the pattern {row['pattern']!r} of {row['tenant_id']}, {row['key_type']}, "
            f"{row['source']} is no regular expression (syntax of the Rust crate regex)."
        ) from error
    return KeyRule(**row)


class KeyRules:
    """Rules for keys, limits of journeys, blocked and parted keys.

    Args:
        sessions: of the control database.
        identifiers: which secrets keys are hashed with.
    """

    def __init__(self, sessions: Sessions, identifiers: IdentifierVersions) -> None:
        self._sessions = sessions
        self._identifiers = identifiers

    def policy(self) -> KeyPolicy:
        """Which attributes of events are keys, and what keys may do, as one consistent picture.

        Raises:
            ConfigError: this machine does not have the secrets that keys are hashed with; a pattern is none.
            ConflictError: a rotation of these was broken off.
        """
        self._identifiers.current()  # who asks first says which secret it is: with a commit of its own
        with self._sessions.session() as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            return KeyPolicy(
                rules=tuple(_rule(row) for row in connection.execute(READ_KEY_RULES)),
                limits=tuple(JourneyLimit(**row) for row in connection.execute(READ_LIMITS)),
                blocked=frozenset(
                    (r["tenant_id"], r["key_type"], r["key_hash"]) for r in connection.execute(READ_BLOCKED)
                ),
                parted=frozenset(
                    (r["tenant_id"], r["key_type"], r["key_hash"], r["other_hash"])
                    for r in connection.execute(READ_PARTED)
                ),
                nobody=frozenset((r["tenant_id"], word_of(r["value"])) for r in connection.execute(READ_NOBODY)),
                identifiers=self._identifiers.read(connection),
            )

    def keep_users_apart(self, tenant_id: str) -> bool:
        """Make two users of a tenant one only where an event names both; False where the tenant has rules of its own.

        Ids of users that were made up for visitors (`anon-7`) are keys of visitors then.
        """
        with self._sessions.session() as connection:
            return connection.execute(KEEP_USERS_APART, {"tenant_id": tenant_id}).rowcount > 0

    def block(self, tenant_id: str, key_type: str, key_hash: str, reason: str) -> bool:
        """Put a key on the list of those that never link; False when it was on it."""
        values = {"tenant_id": tenant_id, "key_type": key_type, "key_hash": key_hash}
        with self._sessions.session() as connection:
            return connection.execute(BLOCK_KEY, {**values, "reason": reason}).rowcount > 0

    def unblock(self, tenant_id: str, key_type: str, key_hash: str) -> bool:
        """Take a key off that list; False when it was not on it."""
        values = {"tenant_id": tenant_id, "key_type": key_type, "key_hash": key_hash}
        with self._sessions.session() as connection:
            return connection.execute(UNBLOCK_KEY, values).rowcount > 0

    def part(self, tenant_id: str, key_type: str, key_hash: str, other_hash: str, reason: str) -> bool:
        """Note that two unique keys are not one person, whatever events say; False when it was noted."""
        values = {"tenant_id": tenant_id, "key_type": key_type, "key_hash": key_hash, "other_hash": other_hash}
        with self._sessions.session() as connection:
            return connection.execute(PART_KEYS, {**values, "reason": reason}).rowcount > 0

    def unpart(self, tenant_id: str, key_type: str, key_hash: str, other_hash: str) -> bool:
        """Let events say again that two unique keys are one person; False when they could."""
        values = {"tenant_id": tenant_id, "key_type": key_type, "key_hash": key_hash, "other_hash": other_hash}
        with self._sessions.session() as connection:
            return connection.execute(UNPART_KEYS, values).rowcount > 0
