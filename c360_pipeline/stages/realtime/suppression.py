"""Who is not to be shown by those who write to the graph between two landings."""

import time
from collections.abc import Sequence

import polars as pl

from c360_pipeline.core.contract.events import Event
from c360_pipeline.core.landing.classify import split_suppressed
from c360_pipeline.errors import ConflictError
from c360_pipeline.stores.postgres.privacy_lists import PrivacyLists

SUPPRESSION_SECONDS = 5.0
"""How old the list of suppressed people may be."""


class Suppression:
    """The list of suppressed people, read again every few seconds; of one thread.

    Args:
        lists: of the control database.
    """

    def __init__(self, lists: PrivacyLists) -> None:
        self._lists = lists
        self._read_at, self._users = float("-inf"), pl.DataFrame()

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
        people = {(event.tenant_id, event.user_id) for event in events}
        rows = pl.DataFrame(list(people), schema={"tenant_id": pl.String, "user_id": pl.String}, orient="row")
        _, hidden = split_suppressed(rows, self._users)
        left_out = set(hidden.iter_rows())
        kept = [event for event in events if (event.tenant_id, event.user_id) not in left_out]
        return kept, [event for event in events if (event.tenant_id, event.user_id) in left_out]
