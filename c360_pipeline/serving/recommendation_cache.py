"""Recommendations that were given lately, as they were sent; those of a user are dropped when the user acts."""

from cachetools import TTLCache

from c360_pipeline.reads.recommend import RecommendationRequest

KEPT_SECONDS = 60.0
MOST_USERS = 100_000
MAX_VARIANTS = 16
"""Of one user."""

VariantKey = tuple[int, str | None]


class RecommendationCache:
    """Responses by tenant, user and request. Used from one thread, that of the event loop."""

    def __init__(self) -> None:
        self._kept: TTLCache[tuple[str, str], dict[VariantKey, bytes]] = TTLCache(MOST_USERS, KEPT_SECONDS)
        self._generations: TTLCache[tuple[str, str], int] = TTLCache(MOST_USERS, KEPT_SECONDS)
        self._acting: TTLCache[tuple[str, str], bool] = TTLCache(MOST_USERS, KEPT_SECONDS)

    def get(self, tenant_id: str, wanted: RecommendationRequest) -> bytes | None:
        """A response that is at most a minute old."""
        return None if wanted.exclude else self._kept.get((tenant_id, wanted.user_id), {}).get(_key(wanted))

    def generation(self, tenant_id: str, user_id: str) -> int:
        """A number that changes when the user acts: taken before a response is made, it tells whether it is old."""
        return self._generations.get((tenant_id, user_id), 0)

    def put(self, tenant_id: str, wanted: RecommendationRequest, response: bytes, generation: int) -> None:
        """Keep a response, unless the user has acted since it was begun; the age of a user's is that of the first.

        A response to a request that excludes products is not kept: there are too many of these.
        """
        user = (tenant_id, wanted.user_id)
        if wanted.exclude or user in self._acting or generation != self.generation(*user):
            return
        kept = self._kept.get(user)
        if kept is None or len(kept) >= MAX_VARIANTS:
            self._kept[user] = {_key(wanted): response}
        else:
            kept[_key(wanted)] = response

    def drop(self, tenant_id: str, user_id: str, *, is_shown: bool) -> None:
        """Forget what was sent for a user; where the graph does not show yet what the user did, keep nothing new."""
        user = (tenant_id, user_id)
        self._kept.pop(user, None)
        self._generations[user] = self.generation(*user) + 1
        if not is_shown:
            self._acting[user] = True


def _key(wanted: RecommendationRequest) -> VariantKey:
    return wanted.top_k, wanted.category
