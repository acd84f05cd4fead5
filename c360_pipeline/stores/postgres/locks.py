"""Who may have the stores: commands and runs of Dagster keep each other away (docs/adr/0033)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg

from c360_pipeline.stores.postgres.sessions import Sessions

TAKE_COMMAND_LOCK = "SELECT pg_advisory_xact_lock(hashtext('c360 run'))"
TAKE_STORES_LOCK = "SELECT pg_advisory_xact_lock(hashtext('c360 stores'))"
SHARE_STORES_LOCK = "SELECT pg_advisory_xact_lock_shared(hashtext('c360 stores'))"
TRY_TO_SHARE_STORES_LOCK = "SELECT pg_try_advisory_xact_lock_shared(hashtext('c360 stores')) AS taken"

TAKE_NAMED_LOCK = "SELECT pg_advisory_xact_lock(hashtext('c360 named'), hashtext(%(name)s))"

COUNT_SHARERS = """
    SELECT count(*) AS number FROM pg_locks
    WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND ((classid::bigint << 32) | objid::bigint) = hashtext('c360 stores')::bigint
"""


class Locks:
    """Locks that end with the session that holds them, so a crash ends them, too.

    Args:
        sessions: of the control database.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

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
            waiting: called before this waits for one who has them.
        """
        with self._holding() as connection:
            taken = connection.execute(TRY_TO_SHARE_STORES_LOCK).fetchone()
            if taken is None or not taken["taken"]:
                waiting()
                connection.execute(SHARE_STORES_LOCK)
            yield

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Wait until nobody else has this name, and keep others away from it."""
        with self._holding() as connection:
            connection.execute(TAKE_NAMED_LOCK, {"name": name})
            yield

    def runs_at_work(self) -> int:
        """How many runs share the stores now."""
        return int(self._sessions.execute(COUNT_SHARERS)["number"])

    @contextmanager
    def _holding(self, *locks: LiteralString) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        """A session that holds locks until it ends; where the server ends it, work that needs it no more goes on."""
        connection = self._sessions.opened()
        try:
            for lock in locks:
                connection.execute(lock)
            yield connection
        finally:
            connection.close()
