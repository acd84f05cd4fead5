"""Who is not to be shown by those who write to the graph between two landings."""

import time
from collections.abc import Sequence

import polars as pl
import psycopg

from c360_pipeline.core.contract.events import Event
from c360_pipeline.core.landing.classify import TRACES, split_suppressed
from c360_pipeline.core.landing.suppressed import Suppressed
from c360_pipeline.errors import ConfigError, ConflictError, UnavailableError
from c360_pipeline.stores.postgres.privacy_lists import PrivacyLists

SUPPRESSION_SECONDS = 5.0
"""How old the list of suppressed people may be for what is shown."""
STORED_SECONDS = 1.0
"""And for what is stored."""
Who = tuple[str, str | None, str | None, str | None]
"""Tenant, user, visitor and session of an event."""


def who(event: Event) -> Who:
    """By what an event is told to be of somebody who is suppressed."""
    return event.tenant_id, event.user_id, event.anonymous_id, event.session_id


class Suppression:
    """The list of suppressed people, read again every few seconds; of one thread.

    Args:
        lists: of the control database.
    """

    def __init__(self, lists: PrivacyLists) -> None:
        self._lists = lists
        self._read_at, self._users = float("-inf"), Suppressed()

    def hidden(self, events: Sequence[Event]) -> set[Who]:
        """Of events, those `who` are suppressed, somebody who is erased now included.

        The list is at most `STORED_SECONDS` old, and read anew while somebody is being erased. Where the control
        database can't be reached, the last one counts.

        Raises:
            UnavailableError: there is none, because the control database could not be reached yet.
        """
        is_known = self._read_at > float("-inf")
        try:
            is_old = time.monotonic() - self._read_at > STORED_SECONDS
            if is_old or self._lists.is_erasing():
                self._users, self._read_at = self._lists.suppressed_users(), time.monotonic()
        except (UnavailableError, psycopg.Error) as error:
            if not is_known:
                raise UnavailableError(f"Nobody can tell who asked to be forgotten: {error}") from error
        except ConfigError as error:
            # The list is of a secret that this machine lacks: whoever came on it since can't be told.
            raise UnavailableError(f"Nobody can tell who asked to be forgotten: {error}") from error
        return self._found(events)

    def _found(self, events: Sequence[Event]) -> set[Who]:
        columns = ("tenant_id", "user_id", *TRACES)
        rows = pl.DataFrame(list(set(map(who, events))), schema=dict.fromkeys(columns, pl.String), orient="row")
        return set(split_suppressed(rows, self._users)[1].iter_rows())

    def split(self, events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
        """Part events into those that may be written and those of suppressed people.

        Raises:
            ConflictError: somebody is being erased now.
            UnavailableError: the control database can't be reached.
        """
        try:
            self._lists.require_no_erasure()
        except ConflictError:
            self._read_at = float("-inf")  # who is erased now is not in the list as it was
            raise
        if time.monotonic() - self._read_at > SUPPRESSION_SECONDS:
            self._users, self._read_at = self._lists.suppressed_users(), time.monotonic()
        left_out = self._found(events)
        kept = [event for event in events if who(event) not in left_out]
        return kept, [event for event in events if who(event) in left_out]
