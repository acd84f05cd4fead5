"""Who may ask for what: keys, roles, rates, sizes of bodies, headers."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from anyio import CapacityLimiter, to_thread
from cachetools import LRUCache, TTLCache
from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from c360_pipeline.core.privacy.roles import Permission, who_may
from c360_pipeline.errors import UnavailableError
from c360_pipeline.serving.problems import problem, unforeseen
from c360_pipeline.serving.sharing import Turns, current_tenant
from c360_pipeline.serving.sign_in import Person
from c360_pipeline.stores.postgres.api_keys import ApiKey, ApiKeys, digest_of

MOST_BODY_BYTES = 64 * 1024
SESSION_SECONDS = 12 * 3_600
SIGNED_IN_SECONDS = 8 * 3_600
"""Of a person who signed in: what the provider said of them counts for a working day."""
KEY_SECONDS = 10.0
"""For so long a key that was looked up is not looked up again; a key that is revoked is valid for so long."""
STANDING_SECONDS = 60.0
"""While the control database can't be asked, a key opens what it opened so many seconds ago at most."""
LOOK_UPS = parse("100/second")
"""Of keys that opened nothing so far, all together: who has no key makes the control database no work to speak of."""
STRANGERS = parse("100/second")
"""Requests that need no key, all together."""
PAUSE_SECONDS, MOST_PAUSED = 1.0, 100
"""How long a refusal for asking too often takes, and how many of them do: their connections are taken meanwhile."""
T = TypeVar("T")
LOOK_UPS_AT_ONCE = 4
LOOK_UP_SECONDS = 5.0
SESSION, SAFE_SESSION = "c360_session", "__Host-c360_session"
"""Names of the cookie: the second, which browsers send over TLS and to this host alone, wherever people come by TLS."""
SIGN_IN, SAFE_SIGN_IN = "c360_sign_in", "__Host-c360_sign_in"
SIGN_INS, SIGN_INS_AT_ONCE, SIGN_IN_STEP_SECONDS = parse("120/minute"), 2, 15.0
"""Steps of sign-ins that one address takes; that ask the provider at once; and how long one may take."""
SIGN_IN_SECONDS = 600
"""That a sign-in may take."""
WRONG_KEYS = parse("10/minute")
"""Of one address, before it has to wait."""
LONGEST_KEY = 200
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

bearer = HTTPBearer(auto_error=False, description="a key from `c360 api-keys create`")
header = APIKeyHeader(name="X-API-Key", auto_error=False)


class Gate:
    """Looks keys up and counts requests.

    Args:
        keys: of the control database.
        rate: of a tenant, such as `1000/second`.
        by_tls: people reach the pages by TLS, through a proxy.
        clock: seconds, monotonic.
    """

    def __init__(
        self, keys: ApiKeys, rate: str, *, by_tls: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.by_tls = by_tls
        self._clock = clock
        self._keys = keys
        self._rate: RateLimitItem = parse(rate)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._known: TTLCache[str, ApiKey | None] = TTLCache(10_000, KEY_SECONDS)
        self._valid: LRUCache[str, tuple[ApiKey, float]] = LRUCache(10_000)
        self._threads = CapacityLimiter(LOOK_UPS_AT_ONCE)
        self._signing_in = CapacityLimiter(SIGN_INS_AT_ONCE)
        self._paused = 0
        self.turns = Turns()

    async def admit(self, key: str | None, session: str | None, permission: Permission) -> ApiKey:
        """The key that a request shows, or that its browser logged in with.

        Raises:
            HTTPException: 401 without a key that opens anything, 403 where its role does not allow this, 429 beyond the
                rate.
        """
        found = await self.look_up(key) if key else await self.look_up_session(session) if session else None
        if found is None:
            raise HTTPException(401, "A key is needed: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
        if not found.may(permission):
            raise HTTPException(
                403, f"The key has the role {found.role}. To {permission}, it needs the role {who_may(permission)}."
            )
        if not self._limiter.hit(self._rate, found.tenant_id):
            reset = self._limiter.get_window_stats(self._rate, found.tenant_id).reset_time
            wait = max(1, round(reset - time.time()))
            await self.pause()
            raise HTTPException(429, f"The limit is {self._rate}.", {"Retry-After": str(wait)})
        return found

    async def pause(self) -> None:
        """Let who asks too often wait: otherwise each refusal is followed by the next question at once."""
        if self._paused < MOST_PAUSED:
            self._paused += 1
            try:
                await asyncio.sleep(PAUSE_SECONDS)
            finally:
                self._paused -= 1

    async def admit_stranger(self) -> None:
        """Let somebody ask who needs no key.

        Raises:
            HTTPException: 429, strangers ask too often.
        """
        if not self._limiter.hit(STRANGERS, "strangers"):
            await self.pause()
            raise HTTPException(429, "Too many requests without a key.", {"Retry-After": "1"})

    async def look_up(self, key: str) -> ApiKey | None:
        """A key that opens something, or None; what the database said of a key counts for some seconds.

        Raises:
            HTTPException: 429, there were too many look-ups.
            TimeoutError: the control database does not answer.
            UnavailableError: it can't be reached.
        """
        return await self._looked_up(key, "key", self._keys.find)

    async def look_up_session(self, token: str) -> ApiKey | None:
        """The key of a browser that is logged in, or None; raises what `look_up` does."""
        return await self._looked_up(token, "session", self._keys.find_session)

    async def _looked_up(self, shown: str, kind: str, find: Callable[[str], ApiKey | None]) -> ApiKey | None:
        if len(shown) > LONGEST_KEY or not shown.isascii():
            return None
        # A key in a cookie opens nothing, nor the other way round.
        digest = f"{kind} {digest_of(shown)}"
        if digest in self._known:
            return self._known[digest]
        # Strangers do not use up what customers need: a key that was valid is looked up whatever others try.
        if digest not in self._valid and not self._limiter.hit(LOOK_UPS, "look-up"):
            await self.pause()
            raise HTTPException(429, "Too many keys that are not known.", {"Retry-After": "1"})
        try:
            async with asyncio.timeout(LOOK_UP_SECONDS):
                found = await to_thread.run_sync(find, shown, limiter=self._threads, abandon_on_cancel=True)
        except (TimeoutError, UnavailableError):
            found = self._lately_valid(digest)
            if found is None:
                raise
        else:
            if found is None:
                self._valid.pop(digest, None)
            else:
                self._valid[digest] = (found, self._clock())
        self._known[digest] = found
        return found

    def _lately_valid(self, digest: str) -> ApiKey | None:
        """The key as it was found `STANDING_SECONDS` ago at most: the control database may be away for a moment."""
        found, at = self._valid.get(digest, (None, 0.0))
        if found is None or self._clock() - at > STANDING_SECONDS:
            return None
        return None if found.expires_at and found.expires_at <= datetime.now(UTC) else found

    async def log_in(self, key: str, before: str | None, address: str) -> tuple[str, ApiKey] | None:
        """What the cookie of a browser is to hold that shows a key, and the key; None where it may not read.

        Raises:
            HTTPException: 429, the address has shown too many wrong keys.
            TimeoutError: the control database does not answer.
            UnavailableError: it can't be reached.
        """
        if not self._limiter.test(WRONG_KEYS, "log-in", address):
            raise HTTPException(429, "Too many wrong keys; try again in a minute.", {"Retry-After": "60"})
        found = await self.look_up(key)
        if found is None or not found.may(Permission.READ):
            self._limiter.hit(WRONG_KEYS, "log-in", address)
            return None
        begin = partial(self._keys.begin_session, key, SESSION_SECONDS, before or "")
        token = await to_thread.run_sync(begin, limiter=self._threads)
        return None if token is None else (token, found)

    async def signing_in(self, request: Request, step: Callable[[], T]) -> T:
        """A step of somebody's sign-in, which asks the provider; on threads of its own, for strangers take it.

        Raises:
            HTTPException: 429, the address begins or ends too many.
            TimeoutError: the provider does not answer.
        """
        address = request.client.host if request.client else ""
        if not self._limiter.hit(SIGN_INS, "sign-in", address):
            raise HTTPException(429, "Too many sign-ins; try again in a minute.", {"Retry-After": "60"})
        async with asyncio.timeout(SIGN_IN_STEP_SECONDS):
            return await to_thread.run_sync(step, limiter=self._signing_in, abandon_on_cancel=True)

    async def sign_in(self, person: Person) -> str:
        """What the cookie of a browser is to hold whose user signed in.

        Raises:
            UnavailableError: the control database can't be reached.
        """
        begin = partial(self._keys.begin_session_of_person, *person, SIGNED_IN_SECONDS)
        return await to_thread.run_sync(begin, limiter=self._threads)

    async def log_out(self, token: str) -> None:
        """End the session of a browser, everywhere; other processes know within `KEY_SECONDS`."""
        await to_thread.run_sync(self._keys.end_session, token, limiter=self._threads)
        digest = f"session {digest_of(token)}"
        self._known[digest] = None
        self._valid.pop(digest, None)


def comes_by_tls(request: Request) -> bool:
    """Whether people reach the pages by TLS: the request says so, or `C360_API_URL` does, of a proxy before it."""
    gate: Gate = request.app.state.gate
    return gate.by_tls or request.url.scheme == "https"


def session_name(request: Request) -> str:
    """The name of the cookie."""
    return SAFE_SESSION if comes_by_tls(request) else SESSION


def sign_in_name(request: Request) -> str:
    """The name of the cookie of a sign-in that is under way."""
    return SAFE_SIGN_IN if comes_by_tls(request) else SIGN_IN


def session_of(request: Request) -> str | None:
    """What the cookie of a browser holds."""
    return request.cookies.get(session_name(request))


def refuse_other_sites(request: Request) -> None:
    """Refuse what a page of another origin lets a browser send, of another port of this host, too.

    Browsers say where a request comes from; what says nothing is no browser.

    Raises:
        HTTPException: 403.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        is_ours = site in ("same-origin", "none")
    else:
        is_ours = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not is_ours:
        raise HTTPException(403, "Another site asked for this. Open the page itself, and try again.")


def needs(permission: Permission) -> Callable[..., AsyncIterator[ApiKey]]:
    """A dependency: the key of a request, if its role allows it. The request is its tenant's turn until it ends."""

    async def admitted(
        request: Request,
        by_bearer: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)] = None,
        by_header: Annotated[str | None, Security(header)] = None,
    ) -> AsyncIterator[ApiKey]:
        # A page of somebody else can't make a browser change anything: its cookie counts for reading only.
        is_ours = request.method in ("GET", "HEAD") or "hx-request" in request.headers
        session = session_of(request) if is_ours else None
        gate: Gate = request.app.state.gate
        key = await gate.admit(by_bearer.credentials if by_bearer else by_header, session, permission)
        async with gate.turns.turn(key.tenant_id):
            current_tenant.set(key.tenant_id)
            yield key

    return admitted


async def admit_stranger(request: Request) -> None:
    """A dependency: a request that needs no key."""
    gate: Gate = request.app.state.gate
    await gate.admit_stranger()


Reader = Annotated[ApiKey, Depends(needs(Permission.READ))]
Ingester = Annotated[ApiKey, Depends(needs(Permission.TRACK))]
Analyst = Annotated[ApiKey, Depends(needs(Permission.AUDIENCES))]
Operator = Annotated[ApiKey, Depends(needs(Permission.IDENTITY))]
Auditor = Annotated[ApiKey, Depends(needs(Permission.AUDIT))]


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

        try:
            body = await _whole_body(receive)
        except (EOFError, OverflowError) as error:
            status = 413 if isinstance(error, OverflowError) else 400
            await problem(status, str(error), headers={"Connection": "close"})(scope, receive, send_guarded)
            return
        try:
            await self._app(scope, _once(body, receive), send_guarded)
        except Exception as error:
            # Here, where answers get their headers and are counted; a half answer can only be broken off.
            if is_answered:
                raise
            await unforeseen(error, Request(scope))(scope, receive, send_guarded)


async def _whole_body(receive: Receive) -> bytes:
    """The body.

    Raises:
        EOFError: the client went before it was whole: half a request is none.
        OverflowError: it is too large, told as soon as that is known.
    """
    pieces, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise EOFError("The request ended before it was whole.")
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > MOST_BODY_BYTES:
            raise OverflowError(f"A body may have {MOST_BODY_BYTES:,} bytes.")
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
