"""Who may ask for what: keys, roles, rates, sizes of bodies, headers."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from cachetools import TTLCache
from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from c360_pipeline.serving.problems import problem, unforeseen
from c360_pipeline.stores.postgres.api_keys import ApiKey, ApiKeys, digest_of

MOST_BODY_BYTES = 64 * 1024
KEY_SECONDS = 10.0
"""For so long a key that was looked up is not looked up again; a key that is revoked is valid for so long."""
LOOK_UPS = parse("100/second")
"""Of all tenants together: who has no key makes the control database no work to speak of."""
LOOK_UPS_AT_ONCE = 4
LOOK_UP_SECONDS = 5.0
COOKIE = "c360_key"
LONGEST_KEY = 200
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

bearer = HTTPBearer(auto_error=False, description="a key from `c360 api-keys create`")
header = APIKeyHeader(name="X-API-Key", auto_error=False)
cookie = APIKeyCookie(name=COOKIE, auto_error=False)


class Gate:
    """Looks keys up and counts requests.

    Args:
        keys: of the control database.
        rate: of a tenant, such as `1000/second`.
    """

    def __init__(self, keys: ApiKeys, rate: str) -> None:
        self._keys = keys
        self._rate: RateLimitItem = parse(rate)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._known: TTLCache[str, ApiKey | None] = TTLCache(10_000, KEY_SECONDS)
        self._threads = CapacityLimiter(LOOK_UPS_AT_ONCE)

    async def admit(self, key: str | None, role: str) -> ApiKey:
        """The key that a request shows.

        Raises:
            HTTPException: 401 without a key that opens anything, 403 without the role, 429 beyond the rate.
        """
        found = await self.look_up(key) if key else None
        if found is None:
            raise HTTPException(401, "A key is needed: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
        if not found.may(role):
            raise HTTPException(403, f"The key has the role {found.role}; {role} is needed.")
        if not self._limiter.hit(self._rate, found.tenant_id):
            reset = self._limiter.get_window_stats(self._rate, found.tenant_id).reset_time
            wait = max(1, round(reset - time.time()))
            raise HTTPException(429, f"The limit is {self._rate}.", {"Retry-After": str(wait)})
        return found

    async def look_up(self, key: str) -> ApiKey | None:
        """A key that opens something, or None; what the database said of a key counts for some seconds.

        Raises:
            HTTPException: 429, there were too many look-ups.
            TimeoutError: the control database does not answer.
            UnavailableError: it can't be reached.
        """
        if len(key) > LONGEST_KEY or not key.isascii():
            return None
        digest = digest_of(key)
        if digest in self._known:
            return self._known[digest]
        if not self._limiter.hit(LOOK_UPS, "look-up"):
            raise HTTPException(429, "Too many keys that are not known.", {"Retry-After": "1"})
        async with asyncio.timeout(LOOK_UP_SECONDS):
            found = await to_thread.run_sync(self._keys.find, key, limiter=self._threads, abandon_on_cancel=True)
        self._known[digest] = found
        return found


def needs(role: str) -> Callable[..., Awaitable[ApiKey]]:
    """A dependency: the key of a request, which has a role."""

    async def admitted(
        request: Request,
        by_bearer: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)] = None,
        by_header: Annotated[str | None, Security(header)] = None,
        by_cookie: Annotated[str | None, Security(cookie)] = None,
    ) -> ApiKey:
        # A page of somebody else can't make a browser change anything: its cookie counts for reading only.
        of_cookie = by_cookie if request.method in ("GET", "HEAD") or "hx-request" in request.headers else None
        shown = by_bearer.credentials if by_bearer else by_header or of_cookie
        gate: Gate = request.app.state.gate
        return await gate.admit(shown, role)

    return admitted


Reader = Annotated[ApiKey, Depends(needs("read"))]
Ingester = Annotated[ApiKey, Depends(needs("ingest"))]


def own_tenant(key: ApiKey, tenant_id: str | None) -> str:
    """The tenant of a key; another one's data is not there.

    Raises:
        HTTPException: 404, another tenant was asked for.
    """
    if tenant_id is not None and tenant_id != key.tenant_id:
        raise HTTPException(404, "There is no such tenant.")
    return key.tenant_id


class Guard:
    """Refuses bodies that are too large, counting what comes, and adds headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        is_answered = False

        async def send_guarded(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        body = await _whole_body(receive)
        if body is None:
            answer = problem(413, f"A body may have {MOST_BODY_BYTES:,} bytes.", headers={"Connection": "close"})
            await answer(scope, receive, send_guarded)
            return
        try:
            await self._app(scope, _once(body, receive), send_guarded)
        except Exception as error:
            # Here, where answers get their headers and are counted; a half answer can only be broken off.
            if is_answered:
                raise
            await unforeseen(error, Request(scope))(scope, receive, send_guarded)


async def _whole_body(receive: Receive) -> bytes | None:
    """The body, or None as soon as it is too large."""
    pieces, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > MOST_BODY_BYTES:
            return None
        more = message.get("more_body", False)
    return b"".join(pieces)


def _once(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read, and then what else comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
