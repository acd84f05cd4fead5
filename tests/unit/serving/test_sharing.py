"""Tenants beside each other."""

import asyncio
import threading

import pytest

from c360_pipeline.serving.sharing import HEAVY_SHARE, SHARE, THREADS, Kept, SharedThreads, current_tenant


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
