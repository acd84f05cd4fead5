"""Sends changes of audiences to a webhook: signed, tried again, and never to where it may not."""

import base64
import hashlib
import hmac
import ipaddress
import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from pydantic import SecretStr
from requests.adapters import HTTPAdapter
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from c360_pipeline.errors import ConfigError, UnavailableError

ATTEMPTS = 4
SECONDS = 10.0
"""How long one attempt may take."""
LONGEST_WAIT = 30.0
"""Seconds that an answer may ask to wait before the next attempt."""
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
OF_THE_BATCH = frozenset({400, 409, 410, 413, 422})
"""Statuses by which a server says that it does not want what it was sent, rather than anything."""
SAID = 200
"""Characters of a reason that are kept."""
MOST_BYTES = 1_000_000
"""Of an answer."""


class _TryAgainError(Exception):
    """The server asks for another attempt."""

    def __init__(self, said: str, seconds: float | None) -> None:
        super().__init__(said)
        self.seconds = seconds


@dataclass(frozen=True)
class Refused:
    """A server does not want a batch.

    Attributes:
        reason: what it said.
    """

    reason: str


class Webhook:
    """A server that takes changes.

    Args:
        url: where it takes them.
        secret: that requests are signed with, by the rules of standardwebhooks.com; `whsec_` and Base64, or any text.
        may_be_inside: whether its host was opened as it is, so that it may lead to an address inside.
    """

    def __init__(self, url: str, secret: SecretStr, *, may_be_inside: bool = True) -> None:
        self._url = url
        self._key = _key_of(secret.get_secret_value())
        self._session = requests.Session()
        # No proxy and no login of this machine's user: the operator has named where members go, and nothing else.
        self._session.trust_env = False
        if not may_be_inside:
            for scheme in ("http://", "https://"):
                self._session.mount(scheme, _OutsideAdapter())

    def __enter__(self) -> "Webhook":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def post(self, message_id: str, body: Mapping[str, Any]) -> Refused | Mapping[str, str]:
        """Send a batch.

        Args:
            message_id: the same whenever this batch is sent again.
            body: JSON.

        Returns:
            `Refused` where the server does not want this batch; else, by user, why it does not want a change of it.

        Raises:
            UnavailableError: it does not answer, also after some attempts, or answers nobody.
        """
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type((requests.RequestException, _TryAgainError)),
                stop=stop_after_attempt(ATTEMPTS), wait=_wait, reraise=True,
            ):  # fmt: skip
                with attempt:
                    return self._post_once(message_id, content)
        except _TryAgainError as error:
            raise UnavailableError(f"{self._where} answered {error}, {ATTEMPTS} times.") from None
        except requests.RequestException as error:
            # Messages of requests hold the whole address, and what is behind the host may be a secret.
            raise UnavailableError(f"{self._where} does not answer ({type(error).__name__}).") from None
        raise AssertionError("the last attempt returns or raises")

    @property
    def _where(self) -> str:
        return f"The webhook at {urlsplit(self._url).netloc}"

    def _post_once(self, message_id: str, content: bytes) -> Refused | Mapping[str, str]:
        moment = str(int(time.time()))
        signed = hmac.new(self._key, f"{message_id}.{moment}.".encode() + content, hashlib.sha256).digest()
        headers = {
            "Content-Type": "application/json", "webhook-id": message_id, "webhook-timestamp": moment,
            "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
        }  # fmt: skip
        # A server that sends elsewhere would be one that nobody has named.
        with self._session.post(
            self._url, data=content, headers=headers, timeout=SECONDS, allow_redirects=False, stream=True
        ) as answer:
            status = answer.status_code
            # What it says stays there: it may quote whom it was sent.
            if 200 <= status < 300:
                return _refused_changes(_first_bytes(answer))
            if status in AGAIN:
                raise _TryAgainError(str(status), _seconds_asked(answer.headers.get("Retry-After")))
            if status in OF_THE_BATCH:
                return Refused(f"answered {status}")
            raise UnavailableError(f"{self._where} answered {status}: it takes nothing like this; look at its address.")


def _first_bytes(answer: requests.Response) -> bytes:
    """An answer, as far as it comes within the time and the size that one may have."""
    held, until = b"", time.monotonic() + SECONDS
    for piece in answer.iter_content(8_192):
        held += piece
        if len(held) > MOST_BYTES or time.monotonic() > until:
            raise requests.Timeout("an answer without an end")
    return held


class _OutsideConnection(HTTPConnection):
    """A connection that ends before anything is sent where it leads inside: names may lead elsewhere by then."""

    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn())


class _OutsideTlsConnection(HTTPSConnection):
    """The same by TLS."""

    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn())


class _OutsidePool(HTTPConnectionPool):
    ConnectionCls = _OutsideConnection


class _OutsideTlsPool(HTTPSConnectionPool):
    ConnectionCls = _OutsideTlsConnection


class _OutsideAdapter(HTTPAdapter):
    """Sends to no address inside."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make connections that look where they lead."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _OutsidePool, "https": _OutsideTlsPool}


def _checked(connected: socket.socket) -> socket.socket:
    address = str(connected.getpeername()[0])
    if is_inside(address):
        connected.close()
        raise ConfigError("The webhook's host leads to an address inside, and is not named as it is.")
    return connected


def is_inside(address: str) -> bool:
    """Whether an address is of this machine, of its network segment, or of a private network."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    real = mapped or found
    return not real.is_global or real.is_multicast


def leads_inside(host: str) -> bool:
    """Whether a host is, or leads to, an address inside, as `is_inside` says.

    Raises:
        ConfigError: nobody knows the host.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), None)
    except OSError:
        raise ConfigError(f"Nobody knows the host {host!r}.") from None
    return any(is_inside(str(info[4][0])) for info in found)


def server_of(url: str) -> tuple[str, int]:
    """Host and port of an address.

    Raises:
        ConfigError: it has none.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise ConfigError("The address of a webhook has a port that is none.") from None
    if not parts.hostname:
        raise ConfigError("The address of a webhook names no host.")
    return parts.hostname, port


def message_id(change_ids: Sequence[str]) -> str:
    """The id of a batch: the same for the same changes."""
    return f"msg_{hashlib.sha256(' '.join(change_ids).encode()).hexdigest()[:32]}"


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _TryAgainError) and error.seconds is not None:
        return min(error.seconds, LONGEST_WAIT)
    return wait_random_exponential(multiplier=0.2, max=5.0)(state)


def _seconds_asked(value: str | None) -> float | None:
    return float(value) if value is not None and value.strip().isdecimal() else None


def _refused_changes(content: bytes) -> dict[str, str]:
    """What `{"refused": [{"user_id": …, "reason": …}]}` says; any other answer refuses nothing."""
    try:
        said = json.loads(content)
    except ValueError:
        return {}
    refused = said.get("refused") if isinstance(said, dict) else None
    entries = [one for one in refused if isinstance(one, dict)] if isinstance(refused, list) else []
    return {str(one["user_id"]): _plain(str(one.get("reason", "refused"))) for one in entries if "user_id" in one}


def _plain(text: str) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text[: 2 * SAID]).split())[:SAID]


def _key_of(secret: str) -> bytes:
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise ConfigError("The secret of a webhook begins with whsec_ and goes on with what is no Base64.") from None
