"""Tenants beside each other: none takes all threads, and what is heavy is worked out once for all who ask at a time."""

import asyncio
import time
from collections import Counter, deque
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
"""Requests of one tenant that are worked on at once while no other asks for anything."""
BESIDE_OTHERS = 3
"""The same beside others: they are soon next, and one that takes long does not stop the rest of its own."""
REST, MOST_REST_SECONDS = 3.0, 0.2
"""Beside others, a turn of a tenant that has more requests waiting rests so many times as long as it took before the
next one has it: a flood leaves the event loop to whoever asks little, and a long query does not shut its tenant out."""
ACTIVE_SECONDS = 1.0
"""For as long after a request a tenant counts as one that asks."""
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
    """Whose request is worked on: a tenant that sends many waits for itself, and more so beside others.

    Of one event loop.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._active: TTLCache[str, None] = TTLCache(TENANTS, ACTIVE_SECONDS, clock)
        self._working: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, tenant_id: str) -> AsyncIterator[None]:
        """A turn of a tenant, once it has one.

        Raises:
            HTTPException: 429, too many of its requests wait already.
        """
        self._active[tenant_id] = None
        waiting = self._waiting.setdefault(tenant_id, deque())
        if len(waiting) >= MOST_WAITING:
            raise HTTPException(429, f"{MOST_WAITING} requests of yours wait already.", {"Retry-After": "1"})
        if waiting or self._working[tenant_id] >= self._most():
            await self._granted(tenant_id, waiting)
        else:
            self._working[tenant_id] += 1
        began = self._clock()
        try:
            yield
        finally:
            self._active[tenant_id] = None
            if self._waiting.get(tenant_id) and self._are_several():
                rest = min(REST * (self._clock() - began), MOST_REST_SECONDS)
                asyncio.get_running_loop().call_later(rest, self._end, tenant_id)
            else:
                self._end(tenant_id)

    def _end(self, tenant_id: str) -> None:
        self._working[tenant_id] -= 1
        self._grant(tenant_id)

    def _are_several(self) -> bool:
        self._active.expire()
        return len(self._active) > 1

    def _most(self) -> int:
        return BESIDE_OTHERS if self._are_several() else AT_ONCE

    async def _granted(self, tenant_id: str, waiting: "deque[asyncio.Future[None]]") -> None:
        turn = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._working[tenant_id] -= 1  # it was granted and is not taken
            else:
                with suppress(ValueError):  # passed over already
                    waiting.remove(turn)
            self._grant(tenant_id)
            raise

    def _grant(self, tenant_id: str) -> None:
        """Give turns to those who wait longest; forget a tenant for whom nothing is to be done."""
        waiting = self._waiting.get(tenant_id, deque())
        while waiting and self._working[tenant_id] < self._most():
            turn = waiting.popleft()
            if not turn.done():
                self._working[tenant_id] += 1
                turn.set_result(None)
        if not waiting and not self._working[tenant_id]:
            self._waiting.pop(tenant_id, None)
            del self._working[tenant_id]


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

    def forget(self, key: Hashable) -> None:
        """Let the next who asks for a key get a new answer."""
        self._answers.pop(key, None)
