"""The routes' common ground: threads for what waits, the cache, figures."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from anyio import to_thread
from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Histogram

from c360_pipeline.core.audiences.definition import Audience
from c360_pipeline.core.privacy.audit import Action
from c360_pipeline.reads.recommend import RecommendationRequest
from c360_pipeline.serving import models
from c360_pipeline.serving.backend import Backend
from c360_pipeline.serving.recommendation_cache import RecommendationCache
from c360_pipeline.serving.sharing import Kept, SharedThreads
from c360_pipeline.stores.postgres.api_keys import ApiKey

SECONDS = 10.0
"""For how long a request may take; the graph ends its statement at the same time."""


CHECK_SECONDS = 3.0


PAGE_SECONDS, HEALTH_SECONDS = 10.0, 2.0


P = ParamSpec("P")


T = TypeVar("T")


class ApiMetrics:
    """What Prometheus gets of requests; routes by their pattern, so that no label grows with the customers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "c360_api_request_seconds", "Seconds of requests.", ["method", "route", "status"], registry=self.registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1, 3, 10),
        )  # fmt: skip
        self.cached = Counter("c360_api_recommendations", "Recommendations, by where from.", ["source"],
                              registry=self.registry)  # fmt: skip
        self.tracked = Counter("c360_api_tracked_events", "Events that were stored.", ["graph"], registry=self.registry)


class Api:
    """The routes' common ground: threads for what waits, the cache, figures.

    Args:
        backend: the stores.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.cache = RecommendationCache()
        self.metrics = ApiMetrics()
        self._threads = SharedThreads()
        self._pages, self._health = Kept(PAGE_SECONDS), Kept(HEALTH_SECONDS)

    async def ask(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what waits for a store in a thread, within the time that a request has.

        Raises:
            TimeoutError: it takes longer.
        """
        async with asyncio.timeout(SECONDS):
            return await self._threads.run(partial(work, *args, **kwargs), is_heavy=False)

    async def ask_heavy(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for what scans tables: of a tenant, only few at once.

        Raises:
            TimeoutError: it takes longer, or those before it do.
        """
        async with asyncio.timeout(SECONDS):
            return await self._threads.run(partial(work, *args, **kwargs), is_heavy=True)

    async def apply_audience(self, key: ApiKey, audience: Audience, note: str) -> tuple[int, bool]:
        """Let a document say who is in an audience, from the next run on; its version, and whether that is new.

        Raises:
            ConfigError: it names a label or a destination that it may not.
            TimeoutError: it can't be noted in the audit log, and so is not done.
        """
        await self.ask(self.backend.require_audience, audience)
        await self.ask(self.backend.audit.changes, key, Action.APPLIED_AUDIENCE, what=audience.audience)
        applied = await self.ask(self.backend.control.audiences.apply, audience, note)
        self.forget_page(key.tenant_id, "audiences")
        return applied

    async def end_audience(self, key: ApiKey, name: str) -> None:
        """Let nobody be in an audience, from the next run on.

        Raises:
            HTTPException: 404, there is none, or it was ended already.
            TimeoutError: it can't be noted in the audit log, and so is not done.
        """
        if await self.ask(self.backend.audiences(key.tenant_id).version, name) is None:
            raise HTTPException(404, "There is no such audience.")
        await self.ask(self.backend.audit.changes, key, Action.ENDED_AUDIENCE, what=name)
        if not await self.ask(self.backend.control.audiences.end, key.tenant_id, name):
            raise HTTPException(404, "There is no such audience, or it was ended already.")
        self.forget_page(key.tenant_id, "audiences")

    async def page(self, tenant_id: str, name: str, work: Callable[[], T]) -> T:
        """What a heavy page shows, `PAGE_SECONDS` old at most; it is worked out once for all who look at it."""
        async with asyncio.timeout(SECONDS):
            return await self._pages.get((tenant_id, name), lambda: self.ask_heavy(work))

    def forget_page(self, tenant_id: str, name: str) -> None:
        """Let a page be worked out anew: what it shows was changed."""
        self._pages.forget((tenant_id, name))

    async def services(self) -> dict[str, bool]:
        """By service whether it answers, `HEALTH_SECONDS` old at most: who asks needs no key, and must cost nothing."""

        async def asked() -> dict[str, bool]:
            checks = self.backend.services()
            found = await asyncio.gather(*map(self.answers, checks.values()))
            return dict(zip(checks, found, strict=True))

        return await self._health.get("services", asked)

    async def answers(self, check: Callable[[], bool]) -> bool:
        """Whether a service answers within some seconds."""
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                return await to_thread.run_sync(check, abandon_on_cancel=True)
        except TimeoutError:
            return False

    def close(self) -> None:
        """Begin nothing more, and write what was tracked and not stored yet."""
        self._threads.close()
        self.backend.close()

    async def recommend(self, tenant_id: str, wanted: RecommendationRequest) -> bytes:
        """The response to a request, from the cache where it is a minute old at most."""
        known = self.cache.get(tenant_id, wanted)
        generation = self.cache.generation(tenant_id, wanted)
        self.metrics.cached.labels("cache" if known else "graph").inc()
        if known is not None:
            return known
        recommender = self.backend.recommender(tenant_id)
        found = await self.ask(recommender.recommended, wanted)
        made = models.Recommendations(recommendations=found.products).model_dump_json().encode()
        self.backend.note_given(tenant_id, wanted, found)
        # Where consent is needed, a refusal of anybody may change what is right for everybody; what is for a user is
        # dropped when the user acts, by the user's id alone.
        if not recommender.needs_consent and not found.is_user_by_now:
            self.cache.put(tenant_id, wanted, made, generation)
        return made

    async def track(self, tenant_id: str, interactions: list[models.Interaction]) -> models.Tracked:
        """Store what users did, and forget what was recommended to them."""
        done = await self.ask(self.backend.track, tenant_id, interactions)
        for user_id, anonymous_id in {(one.user_id, one.anonymous_id) for one in interactions}:
            self.cache.drop(tenant_id, user_id, anonymous_id, is_shown=done.is_shown)
        graph: Any = "suppressed" if done.uri is None else "updated" if done.is_shown else "pending"
        self.metrics.tracked.labels(graph).inc(len(done.event_ids))
        return models.Tracked(event_ids=done.event_ids, stored=done.uri, graph=graph, suppressed=done.suppressed)
