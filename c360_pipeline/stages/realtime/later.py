"""Work that nobody waits for: asked for from any thread, done a moment later and together in a thread of its own."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import psycopg
import structlog

from c360_pipeline.errors import C360Error

T = TypeVar("T")


class Later:
    """A thread that works when it is asked to.

    Args:
        name: of the thread.
        work: does all that there is to do; False where some of it is left, to be tried again after a pause.
        gather_seconds: for how long more is waited for after the first has asked.
        pause_seconds: before it is tried again.
    """

    def __init__(self, name: str, work: Callable[[], bool], gather_seconds: float, pause_seconds: float) -> None:
        self._work, self._gather_seconds, self._pause_seconds = work, gather_seconds, pause_seconds
        self._due, self._now, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    @property
    def is_closing(self) -> bool:
        """Whether the work is to end."""
        return self._closing.is_set()

    def ask(self, *, at_once: bool = False) -> None:
        """Let it work soon, or as soon as it can."""
        if at_once:
            self._now.set()
        self._due.set()

    def close(self) -> None:
        """End, after the work that is under way."""
        self._closing.set()
        self.ask(at_once=True)
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._now.wait(self._gather_seconds)
            self._due.clear()
            self._now.clear()
            if self.is_closing:
                return
            if not self._work():
                self._closing.wait(self._pause_seconds)
                self._due.set()


class WrittenLater(Generic[T]):
    """Takes items from any thread, and writes them in batches.

    A process that is killed loses what it had not written yet. What comes while too many wait is dropped and counted.

    Args:
        name: of the thread, and of what the log says of it.
        write: writes a batch, all or none; again where that failed.
        batch: items of a batch; where so many wait, they are written before their time.
        most: that wait.
        gather_seconds: for how long more is waited for after the first item.
        pause_seconds: before it is tried again where that failed.
    """

    def __init__(
        self, name: str, write: Callable[[list[T]], None], batch: int, most: int, gather_seconds: float,
        pause_seconds: float,
    ) -> None:  # fmt: skip
        self._write, self._batch, self._most = write, batch, most
        self._waiting: deque[T] = deque()
        self._dropped = 0
        self._writing = threading.Lock()
        self._log = structlog.get_logger(f"c360.{name}")
        self._later = Later(name, self.write_waiting, gather_seconds, pause_seconds)

    def take(self, item: T) -> bool:
        """Take an item; returns at once, False where it is dropped."""
        if len(self._waiting) >= self._most:
            self._dropped += 1
            return False
        self._waiting.append(item)
        self._later.ask(at_once=len(self._waiting) >= self._batch)
        return True

    def close(self) -> None:
        """Write what waits, and end."""
        self._later.close()
        self.write_waiting()

    def write_waiting(self) -> bool:
        """Write what waits; what can't be written waits on, and the log says why. One thread at a time does."""
        with self._writing:
            while self._waiting:
                batch = [self._waiting[place] for place in range(min(self._batch, len(self._waiting)))]
                try:
                    self._write(batch)
                except (C360Error, psycopg.Error) as error:
                    self._log.warning("not_written", waiting=len(self._waiting), dropped=self._dropped, why=str(error))
                    return False
                except Exception:
                    # The next items are not to wait for a thread that is gone.
                    self._log.exception("not_written", waiting=len(self._waiting), dropped=self._dropped)
                    return False
                for _ in batch:
                    self._waiting.popleft()
        return True
