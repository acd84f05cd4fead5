"""Recommendations that were given lately, as they were sent; those of somebody are dropped when they act."""

from cachetools import TTLCache

from c360_pipeline.reads.recommend import RecommendationRequest

KEPT_SECONDS = 60.0
MOST_USERS = 100_000
MAX_VARIANTS = 16
"""Of one user or visitor."""

VariantKey = tuple[int, str | None, int | None]
Somebody = tuple[str, str | None, str | None]
"""tenant, user, visitor."""


class RecommendationCache:
    """Responses by tenant, user and request. Used from one thread, that of the event loop."""

    def __init__(self) -> None:
        self._kept: TTLCache[Somebody, dict[VariantKey, bytes]] = TTLCache(MOST_USERS, KEPT_SECONDS)
        self._generations: TTLCache[Somebody, int] = TTLCache(MOST_USERS, KEPT_SECONDS)
        self._acting: TTLCache[Somebody, bool] = TTLCache(MOST_USERS, KEPT_SECONDS)

    def get(self, tenant_id: str, wanted: RecommendationRequest) -> bytes | None:
        """A response that is at most a minute old."""
        return None if wanted.exclude else self._kept.get(_somebody(tenant_id, wanted), {}).get(_key(wanted))

    def generation(self, tenant_id: str, wanted: RecommendationRequest) -> int:
        """A number that changes when they act: taken before a response is made, it tells whether it is old."""
        return self._generations.get(_somebody(tenant_id, wanted), 0)

    def put(self, tenant_id: str, wanted: RecommendationRequest, response: bytes, generation: int) -> None:
        """Keep a response, unless they have acted since it was begun; the age of somebody's is that of the first.

        A response to a request that excludes products is not kept: there are too many of these.
        """
        user = _somebody(tenant_id, wanted)
        if wanted.exclude or user in self._acting or generation != self._generations.get(user, 0):
            return
        kept = self._kept.get(user)
        if kept is None or len(kept) >= MAX_VARIANTS:
            self._kept[user] = {_key(wanted): response}
        else:
            kept[_key(wanted)] = response

    def drop(self, tenant_id: str, user_id: str | None, anonymous_id: str | None, *, is_shown: bool) -> None:
        """Forget what was sent for somebody; where the graph does not show yet what they did, keep nothing new.

        Args:
            tenant_id: whose.
            user_id: who acted; None before a login.
            anonymous_id: the visitor who acted; None where none was named.
            is_shown: whether the graph shows it.
        """
        acted = [(tenant_id, user_id, None), (tenant_id, None, anonymous_id)]
        for somebody in acted:
            if somebody == (tenant_id, None, None):
                continue
            self._kept.pop(somebody, None)
            self._generations[somebody] = self._generations.get(somebody, 0) + 1
            if not is_shown:
                self._acting[somebody] = True


def _somebody(tenant_id: str, wanted: RecommendationRequest) -> Somebody:
    return tenant_id, wanted.user_id, wanted.anonymous_id


def _key(wanted: RecommendationRequest) -> VariantKey:
    return wanted.top_k, wanted.category, wanted.most_of_category
