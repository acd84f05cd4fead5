"""Tenants beside each other: none takes all threads, and what is heavy is worked out once for all who ask at a time."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
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
AT_ONCE = 8
"""Requests of one tenant that are worked on at once; what the event loop does for them is shared, too."""
MOST_WAITING = 200
"""Requests of one tenant that wait for their turn; more are refused, so that they do not take all connections."""
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

    async def run(self, call: Callable[[], T], *, is_heavy: bool) -> T:
        """Run a call once its tenant has a thread to spare; who is cancelled keeps it until the call has ended."""
        loop = asyncio.get_running_loop()
        # What is heavy waits for its own share first: it holds no thread of the others meanwhile.
        taken = [*([self._share(is_heavy=True)] if is_heavy else []), self._share(is_heavy=False)]
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


class Turns:
    """Whose request is worked on: a tenant that sends many waits for itself; of one event loop."""

    def __init__(self) -> None:
        self._turns: LRUCache[str, asyncio.Semaphore] = LRUCache(TENANTS)
        self._waiting: Counter[str] = Counter()

    @asynccontextmanager
    async def turn(self, tenant_id: str) -> AsyncIterator[None]:
        """A turn of a tenant, once it has one.

        Raises:
            HTTPException: 429, too many of its requests wait already.
        """
        if self._waiting[tenant_id] >= MOST_WAITING:
            raise HTTPException(429, f"{MOST_WAITING} requests of yours wait already.", {"Retry-After": "1"})
        if tenant_id not in self._turns:
            self._turns[tenant_id] = asyncio.Semaphore(AT_ONCE)
        turns = self._turns[tenant_id]
        self._waiting[tenant_id] += 1
        try:
            await turns.acquire()
        finally:
            self._waiting[tenant_id] -= 1
            if not self._waiting[tenant_id]:
                del self._waiting[tenant_id]
        try:
            yield
        finally:
            turns.release()


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
