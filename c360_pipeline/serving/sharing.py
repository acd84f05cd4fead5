"""Tenants beside each other: none takes all threads, and what is heavy is worked out once for all who ask at a time."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar

from cachetools import LRUCache, TTLCache
from fastapi import HTTPException

THREADS = 10
"""Requests that ask the graph at once: as many as it has connections. One that is given up holds its thread."""
SHARE = 7
"""Threads that one tenant may have at once: some are always left to the others."""
HEAVY_SHARE = 2
"""Of these, for what scans tables."""
MOST_WAITING = 200
"""Requests of one tenant that wait for a thread; more are refused, so that they do not take all connections."""
TENANTS = 10_000
"""Tenants, or answers, that are remembered."""
T = TypeVar("T")
current_tenant: ContextVar[str] = ContextVar("current_tenant", default="")
"""Whose request is served; set where its key is admitted."""


class SharedThreads:
    """Threads for what waits for a store, shared between tenants; of one event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "c360-api")
        self._shares: LRUCache[tuple[str, bool], asyncio.Semaphore] = LRUCache(TENANTS)
        self._waiting: Counter[str] = Counter()

    async def run(self, call: Callable[[], T], *, is_heavy: bool) -> T:
        """Run a call once its tenant has a thread to spare; who is cancelled keeps it until the call has ended.

        Raises:
            HTTPException: 429, too many requests of the tenant wait already.
        """
        loop = asyncio.get_running_loop()
        # What is heavy waits for its own share first: it holds no thread of the others meanwhile.
        taken = [*([self._share(is_heavy=True)] if is_heavy else []), self._share(is_heavy=False)]
        with self.in_line():
            for number, share in enumerate(taken):
                try:
                    await share.acquire()
                except BaseException:
                    _release(taken[:number])
                    raise
        try:
            job = self._threads.submit(call)
        except BaseException:
            _release(taken)
            raise

        def ended(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop has ended with the process
                loop.call_soon_threadsafe(_release, taken)

        job.add_done_callback(ended)
        return await asyncio.wrap_future(job)

    @contextmanager
    def in_line(self) -> Iterator[None]:
        """A place among the requests of a tenant that wait.

        Raises:
            HTTPException: 429, there is none.
        """
        tenant = current_tenant.get()
        if self._waiting[tenant] >= MOST_WAITING:
            raise HTTPException(429, f"{MOST_WAITING} requests of yours wait already.", {"Retry-After": "1"})
        self._waiting[tenant] += 1
        try:
            yield
        finally:
            self._waiting[tenant] -= 1
            if not self._waiting[tenant]:
                del self._waiting[tenant]

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _share(self, *, is_heavy: bool) -> asyncio.Semaphore:
        key = (current_tenant.get(), is_heavy)
        if key not in self._shares:
            self._shares[key] = asyncio.Semaphore(HEAVY_SHARE if is_heavy else SHARE)
        return self._shares[key]


def _release(shares: list[asyncio.Semaphore]) -> None:
    for share in shares:
        share.release()


class Kept:
    """Answers that are some seconds old at most; who asks while one is worked out gets that one.

    Args:
        seconds: how old.
    """

    def __init__(self, seconds: float) -> None:
        self._answers: TTLCache[Hashable, Any] = TTLCache(TENANTS, seconds)
        self._locks: LRUCache[Hashable, asyncio.Lock] = LRUCache(TENANTS)

    async def get(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """The answer under a key, made where there is none that is young enough; an error is nobody else's answer."""
        if key not in self._locks:
            self._locks[key] = asyncio.Lock()
        async with self._locks[key]:
            held: tuple[T] | None = self._answers.get(key)
            if held is None:
                held = self._answers[key] = (await make(),)
            return held[0]
