"""Notes what people do by API and pages: looks a moment later and together, changes before they are made."""

import threading
from collections.abc import Iterable

from cachetools import TTLCache

from c360_pipeline.core.privacy.audit import Action, Entry
from c360_pipeline.stages.realtime.later import WrittenLater
from c360_pipeline.stores.postgres.api_keys import ApiKey
from c360_pipeline.stores.postgres.audit_log import AuditLog

WRITE_SECONDS = 1.0
PAUSE_SECONDS = 10.0
"""Before it is tried again where the control database did not answer."""
AGAIN_SECONDS = 600.0
"""Within it, the same look of the same key is noted once."""
MOST_WAITING = 50_000
BATCH = 1_000


def actor_of(key: ApiKey) -> str:
    """Who a key is, in the log."""
    if key.key_id is None:
        return f"person {key.note}"
    return f"key {key.key_id}" + (f" ({key.note})" if key.note else "")


class AuditWriter:
    """Takes entries from any thread.

    Args:
        log: for changes, which are noted by who makes them.
        own_log: for looks; used by the writer's thread alone.
    """

    def __init__(self, log: AuditLog, own_log: AuditLog) -> None:
        self._log = log
        self._noted: TTLCache[tuple[str, str, Action, str | None, str], bool] = TTLCache(100_000, AGAIN_SECONDS)
        self._lock = threading.Lock()
        self._later = WrittenLater("audit-log", own_log.add, BATCH, MOST_WAITING, WRITE_SECONDS, PAUSE_SECONDS)

    def looked(self, key: ApiKey, action: Action, subjects: Iterable[str | None] = (None,), what: str = "") -> None:
        """Note a look; returns at once. The same one within ten minutes is noted once."""
        actor = actor_of(key)
        with self._lock:
            for subject in dict.fromkeys(subjects):
                name = (key.tenant_id, actor, action, subject, what)
                if name in self._noted:
                    continue
                if self._later.take(Entry.now(key.tenant_id, actor, key.role, action, subject, what)):
                    self._noted[name] = True

    def changes(self, key: ApiKey, action: Action, subjects: Iterable[str | None] = (None,), what: str = "") -> None:
        """Note a change that is about to be made; it says what was asked for, not that it went well.

        Raises:
            C360Error: it can't be noted, and so is not to be made.
        """
        actor = actor_of(key)
        self._log.add([Entry.now(key.tenant_id, actor, key.role, action, one, what) for one in dict.fromkeys(subjects)])

    def close(self) -> None:
        """Write what waits, and end."""
        self._later.close()

    def write_waiting(self) -> bool:
        """Write what waits; what can't be written waits on, and the log says why."""
        return self._later.write_waiting()
