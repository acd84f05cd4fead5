"""Notes what people do by API and pages: looks a moment later and together, changes before they are made."""

import threading
from collections import deque
from collections.abc import Iterable

import psycopg
import structlog
from cachetools import TTLCache

from c360_pipeline.core.privacy.audit import Action, Entry
from c360_pipeline.errors import C360Error
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
        self._log, self._own_log = log, own_log
        self._waiting: deque[Entry] = deque()
        self._noted: TTLCache[tuple[str, str, Action, str | None, str], bool] = TTLCache(100_000, AGAIN_SECONDS)
        self._dropped = 0
        self._lock, self._due, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._logger = structlog.get_logger("c360.audit")
        self._thread = threading.Thread(target=self._write_all, name="audit-log")
        self._thread.start()

    def looked(self, key: ApiKey, action: Action, subjects: Iterable[str | None] = (None,), what: str = "") -> None:
        """Note a look; returns at once. The same one within ten minutes is noted once."""
        with self._lock:
            for subject in dict.fromkeys(subjects):
                name = (key.tenant_id, actor_of(key), action, subject, what)
                if name in self._noted:
                    continue
                if len(self._waiting) >= MOST_WAITING:
                    self._dropped += 1
                    continue
                self._noted[name] = True
                self._waiting.append(Entry.now(key.tenant_id, actor_of(key), key.role, action, subject, what))
        self._due.set()

    def changes(self, key: ApiKey, action: Action, subjects: Iterable[str | None] = (None,), what: str = "") -> None:
        """Note a change that is about to be made; it says what was asked for, not that it went well.

        Raises:
            C360Error: it can't be noted, and so is not to be made.
        """
        actor = actor_of(key)
        self._log.add([Entry.now(key.tenant_id, actor, key.role, action, one, what) for one in dict.fromkeys(subjects)])

    def close(self) -> None:
        """Write what waits, and end."""
        self._closing.set()
        self._due.set()
        self._thread.join()

    def _write_all(self) -> None:
        while not self._closing.is_set():
            self._due.wait()
            self._closing.wait(WRITE_SECONDS)
            self._due.clear()
            if not self.write_waiting():
                self._closing.wait(PAUSE_SECONDS)
                self._due.set()
        self.write_waiting()

    def write_waiting(self) -> bool:
        """Write what waits; what can't be written waits on, and the log says why."""
        while self._waiting:
            batch = [self._waiting[place] for place in range(min(BATCH, len(self._waiting)))]
            try:
                self._own_log.add(batch)
            except (C360Error, psycopg.Error) as error:
                self._logger.warning("not_noted", entries=len(self._waiting), dropped=self._dropped, why=str(error))
                return False
            except Exception as error:
                # The next entries are not to wait for a thread that is gone.
                self._logger.exception("not_noted", entries=len(self._waiting), error=type(error).__name__)
                return False
            for _ in batch:
                self._waiting.popleft()
        return True
