"""Recommendations that were given lately, as they were sent; those of a user are dropped when the user acts."""

from cachetools import TTLCache

KEPT_SECONDS = 60.0
MOST_USERS = 100_000


class RecommendationCache:
    """Responses by tenant, user and wish. Used from one thread, that of the event loop."""

    def __init__(self) -> None:
        self._kept: TTLCache[tuple[str, str], dict[str, bytes]] = TTLCache(MOST_USERS, KEPT_SECONDS)

    def get(self, tenant_id: str, user_id: str, wish: str) -> bytes | None:
        """A response that is at most a minute old."""
        return self._kept.get((tenant_id, user_id), {}).get(wish)

    def put(self, tenant_id: str, user_id: str, wish: str, response: bytes) -> None:
        """Keep a response; the age of a user's is that of the first."""
        kept = self._kept.get((tenant_id, user_id))
        if kept is None:
            self._kept[tenant_id, user_id] = {wish: response}
        else:
            kept[wish] = response

    def drop(self, tenant_id: str, user_id: str) -> None:
        """Forget what was sent for a user."""
        self._kept.pop((tenant_id, user_id), None)
