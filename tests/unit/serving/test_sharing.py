"""Tenants beside each other."""

import asyncio
import statistics
import threading

import pytest
from fastapi import HTTPException

from c360_pipeline.serving.sharing import (
    ACTIVE_SECONDS,
    AT_ONCE,
    BESIDE_OTHERS,
    HEAVY_SHARE,
    MOST_WAITING,
    SHARE,
    THREADS,
    Kept,
    SharedThreads,
    Turns,
    current_tenant,
)


class Gatekeeper:
    """Calls that go on once they are let."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.running: list[str] = []

    def call(self, tenant: str) -> str:
        self.running.append(tenant)
        self.gate.wait(30)
        return tenant


async def ask(threads: SharedThreads, tenant: str, keeper: Gatekeeper, *, is_heavy: bool = False) -> str:
    current_tenant.set(tenant)
    return await threads.run(lambda: keeper.call(tenant), is_heavy=is_heavy)


async def settled(keeper: Gatekeeper, count: int) -> None:
    while len(keeper.running) < count:
        await asyncio.sleep(0)


@pytest.mark.parametrize(("is_heavy", "most"), [(False, SHARE), (True, HEAVY_SHARE)])
def test_one_tenant_leaves_threads_to_the_others(is_heavy: bool, most: int) -> None:
    async def scenario() -> None:
        threads, flood, other = SharedThreads(), Gatekeeper(), Gatekeeper()
        flooding = [asyncio.create_task(ask(threads, "acme", flood, is_heavy=is_heavy)) for _ in range(5 * THREADS)]
        await settled(flood, most)
        other.gate.set()
        async with asyncio.timeout(10):
            assert await ask(threads, "globex", other) == "globex"
        assert len(flood.running) == most
        flood.gate.set()
        assert await asyncio.gather(*flooding) == ["acme"] * len(flooding)
        threads.close()

    asyncio.run(scenario())


def test_who_is_cancelled_gives_the_thread_back_when_the_call_ends_and_not_before() -> None:
    async def scenario() -> None:
        threads, keeper = SharedThreads(), Gatekeeper()
        begun = [asyncio.create_task(ask(threads, "acme", keeper)) for _ in range(SHARE)]
        await settled(keeper, SHARE)
        waiting = asyncio.create_task(ask(threads, "acme", keeper))
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(keeper.running) == SHARE
        keeper.gate.set()
        assert await waiting == "acme"
        threads.close()

    asyncio.run(scenario())


def test_an_answer_is_worked_out_once_for_all_and_an_error_is_nobody_elses() -> None:
    async def scenario() -> None:
        kept, made = Kept(60.0), []

        async def make() -> int:
            made.append(1)
            await asyncio.sleep(0)
            if len(made) == 1:
                raise ValueError("once")
            return len(made)

        answers = await asyncio.gather(*(kept.get("a", make) for _ in range(20)), return_exceptions=True)
        assert isinstance(answers[0], ValueError)
        assert answers[1:] == [2] * 19
        assert await kept.get("b", make) == 3

    asyncio.run(scenario())


def test_an_answer_grows_old() -> None:
    async def scenario() -> None:
        kept, made = Kept(0.0), []

        async def make() -> int:
            made.append(1)
            return len(made)

        assert [await kept.get("a", make), await kept.get("a", make)] == [1, 2]

    asyncio.run(scenario())


class Tasks:
    """Requests that take a turn and hold it until they are told to end."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns = Turns(lambda: self.now)
        self.working: list[str] = []

    async def request(self, tenant: str, end: asyncio.Event) -> None:
        async with self.turns.turn(tenant):
            self.working.append(tenant)
            try:
                await end.wait()
            finally:
                self.working.remove(tenant)

    async def begin(self, tenant: str, count: int, end: asyncio.Event) -> list[asyncio.Task[None]]:
        begun = [asyncio.create_task(self.request(tenant, end)) for _ in range(count)]
        await passed()
        return begun


async def passed() -> None:
    """Let everything happen that can."""
    for _ in range(200):
        await asyncio.sleep(0)


def test_a_tenant_alone_has_more_turns_than_beside_others() -> None:
    async def scenario() -> None:
        tasks, end, again = Tasks(), asyncio.Event(), asyncio.Event()
        first = await tasks.begin("acme", AT_ONCE + 5, end)
        assert len(tasks.working) == AT_ONCE
        other = await tasks.begin("globex", 1, asyncio.Event())
        assert tasks.working.count("globex") == 1, "what the first one has begun keeps nobody waiting"
        end.set()
        await asyncio.gather(*first)
        second = await tasks.begin("acme", AT_ONCE, again)
        assert tasks.working.count("acme") == BESIDE_OTHERS
        other[0].cancel()
        await passed()
        tasks.now += 2 * ACTIVE_SECONDS
        second += await tasks.begin("acme", 1, again)
        second[0].cancel()  # whoever ends lets the next ones in
        await passed()
        assert tasks.working.count("acme") == AT_ONCE
        again.set()
        await asyncio.gather(*second, return_exceptions=True)
        assert not tasks.working
        assert not tasks.turns._waiting

    asyncio.run(scenario())


def test_a_flood_rests_beside_others_and_who_asks_one_after_the_other_does_not() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        turns, working, seen, left = Turns(loop.time), set[int](), list[int](), 20 * BESIDE_OTHERS

        async def one_of_many(number: int) -> None:
            nonlocal left
            async with turns.turn("acme"):
                working.add(number)
                await asyncio.sleep(0.01)
                working.remove(number)
            left -= 1

        async def one_after_the_other() -> None:
            while left:
                async with turns.turn("globex"):
                    seen.append(len(working))
                    await asyncio.sleep(0.001)
                assert not turns._working["globex"], "its turn has ended with its request"

        flood = [asyncio.create_task(one_of_many(number)) for number in range(left)]
        await one_after_the_other()
        await asyncio.gather(*flood)
        assert statistics.mean(seen) < BESIDE_OTHERS / 2, "most of the time most of its turns rest"
        async with asyncio.timeout(10):
            while turns._waiting:  # the last turns rest
                await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_who_gives_up_waiting_takes_no_turn_along() -> None:
    async def scenario() -> None:
        tasks, end = Tasks(), asyncio.Event()
        begun = await tasks.begin("acme", 2 * AT_ONCE, end)
        for task in begun[AT_ONCE:]:
            task.cancel()
        begun[0].cancel()
        await passed()
        assert len(tasks.working) == AT_ONCE - 1
        begun += await tasks.begin("acme", 1, end)
        assert len(tasks.working) == AT_ONCE
        end.set()
        await asyncio.gather(*begun, return_exceptions=True)
        assert not tasks.turns._waiting

    asyncio.run(scenario())


def test_more_than_may_wait_are_refused() -> None:
    async def scenario() -> None:
        tasks, end = Tasks(), asyncio.Event()
        begun = await tasks.begin("acme", AT_ONCE + MOST_WAITING + 3, end)
        end.set()
        ended = await asyncio.gather(*begun, return_exceptions=True)
        refused = [error for error in ended if error is not None]
        assert [error.status_code for error in refused if isinstance(error, HTTPException)] == [429, 429, 429]

    asyncio.run(scenario())
