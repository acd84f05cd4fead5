"""Sign-in of people by OpenID Connect: the company's own accounts open the pages (docs/security.md).

Authorization code flow with PKCE; Authlib speaks it. Who somebody is for us, tenant and role, are claims that the
provider gives.

Source: OpenID Connect Core 1.0, sections 3.1 and 5.3; RFC 7636 (PKCE).
"""

import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry
from pydantic import SecretStr

from c360_pipeline.core.privacy.roles import NAMED_ROLES, ROLES, Permission
from c360_pipeline.errors import C360Error, ConfigError, UnavailableError
from c360_pipeline.settings import Settings

BEGIN_AGAIN = "This sign-in was begun in another window, or took longer than ten minutes. Begin again."
SCOPE = "openid email profile"
TIMEOUT_SECONDS = 4.0
KNOWN_SECONDS = 3_600.0
"""How old what the provider says of itself may be, its keys among it; an unknown key is asked for at once."""
AWAY_SECONDS = 5.0
"""After it did not answer it is not asked."""
LEEWAY_SECONDS = 60
"""By which clocks may differ."""
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
"""Of signatures that are believed: those of a private key that the provider alone has."""
LONGEST_CLAIM = 1_024
_ROLES_OF_PEOPLE = tuple(role for role in NAMED_ROLES if Permission.READ in ROLES[role])


class SignInError(C360Error):
    """Somebody may not sign in; the message is for them, and says whom to ask."""


class Person(NamedTuple):
    """Who signed in.

    Attributes:
        tenant_id: whose customers they may see.
        role: of `core.privacy.roles`.
        name: the e-mail address that the provider has verified, and its id of them; the id alone where it has not.
    """

    tenant_id: str
    role: str
    name: str


class Begun(NamedTuple):
    """A sign-in that has begun.

    Attributes:
        address: of the provider, where the browser is sent to.
        kept: what the browser has to show when it comes back; nobody else knows it.
    """

    address: str
    kept: str


@dataclass(frozen=True)
class Provider:
    """An OpenID provider, and what its claims mean.

    Attributes:
        issuer: its address; what it says of itself is below it.
        client_id: what it calls this installation.
        client_secret: by which this installation shows that it is the one; None for a public client.
        callback: address of ours that it sends people back to.
        tenant: whose customers everybody sees who signs in; None where a claim says it.
        tenant_claim: that says it.
        role_claim: whose value, or one of whose values, is a role or a group.
        roles: roles of groups, which alone count then; where it is empty, values of the claim are roles themselves.
    """

    issuer: str
    client_id: str
    client_secret: SecretStr | None = field(repr=False)
    callback: str
    tenant: str | None
    tenant_claim: str
    role_claim: str
    roles: Mapping[str, str]

    @property
    def host(self) -> str:
        """For people."""
        return urlsplit(self.issuer).hostname or self.issuer


def provider_of(settings: Settings, address: str) -> Provider | None:
    """The provider that settings name; None where they name none.

    Args:
        settings: `C360_OIDC_…`.
        address: of the pages, as people reach them.

    Raises:
        ConfigError: a part is missing, a role is none, or the provider is asked without TLS on another machine.
    """
    if settings.oidc_issuer is None:
        return None
    if not settings.oidc_client_id:
        raise ConfigError("C360_OIDC_ISSUER needs C360_OIDC_CLIENT_ID: what the provider calls this installation.")
    place = urlsplit(settings.oidc_issuer)
    if place.scheme != "https" and place.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"C360_OIDC_ISSUER ({settings.oidc_issuer}) has to be an https address.")
    named = [part.strip().partition("=") for part in (settings.oidc_roles or "").split(",") if part.strip()]
    roles = {group.strip(): role.strip() for group, _, role in named}
    for group, role in roles.items():
        if role not in _ROLES_OF_PEOPLE:
            raise ConfigError(f"C360_OIDC_ROLES: {group}={role}: a role is {', '.join(_ROLES_OF_PEOPLE)}.")
    return Provider(
        settings.oidc_issuer.rstrip("/"), settings.oidc_client_id, settings.oidc_client_secret,
        f"{address}/app/login/callback", settings.oidc_tenant, settings.oidc_tenant_claim, settings.oidc_role_claim,
        roles,
    )  # fmt: skip


class SignIn:
    """Sends people to a provider, and finds out who comes back.

    Args:
        provider: which.
    """

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self._known: tuple[dict[str, Any], KeySet, float] | None = None
        self._away_until = float("-inf")

    def begin(self) -> Begun:
        """Begin a sign-in.

        Raises:
            UnavailableError: the provider does not answer.
        """
        said, _ = self._provider_says()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        with self._session() as session:
            address, _ = session.create_authorization_url(
                said["authorization_endpoint"], state=state, nonce=nonce, code_verifier=verifier
            )
        return Begun(str(address), f"{state}.{nonce}.{verifier}")

    def finish(self, query: str, kept: str | None) -> Person:
        """Who comes back.

        Args:
            query: of the address that the provider sent them to.
            kept: what their browser shows, of `begin`.

        Raises:
            SignInError: it is another browser, the provider refused them, or says nothing that is a tenant or a role.
            UnavailableError: the provider does not answer.
        """
        match (kept or "").split("."):
            case [state, nonce, verifier] if state and nonce and verifier:
                pass
            case _:
                raise SignInError(BEGIN_AGAIN)
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        if not hmac.compare_digest(state.encode(), asked.get("state", "").encode()):
            raise SignInError(BEGIN_AGAIN)
        if "code" not in asked:
            raise SignInError(
                f"{self.provider.host} refused the sign-in ({asked.get('error', 'no reason given')[:100]})."
            )
        return self._person(self._claims(asked["code"], nonce, verifier))

    def _claims(self, code: str, nonce: str, verifier: str) -> dict[str, Any]:
        """What the provider says of whom it gave a code to."""
        said, keys = self._provider_says()
        try:
            with self._session() as session:
                token = session.fetch_token(said["token_endpoint"], code=code, code_verifier=verifier)
                claims = self._validated(said, keys, token, nonce)
                if not self._is_told(claims) and "userinfo_endpoint" in said:
                    more = session.get(said["userinfo_endpoint"])
                    more.raise_for_status()
                    told = more.json()
                    # Core 5.3.2: of somebody else it is not to be used.
                    claims |= told if isinstance(told, dict) and told.get("sub") == claims["sub"] else {}
        except requests.RequestException as error:
            raise self._away(error) from error
        except (AuthlibBaseError, JoseError, KeyError, ValueError) as error:
            raise SignInError(
                f"What {self.provider.host} answered can't be believed ({type(error).__name__}). Begin again; if it "
                "stays so, whoever runs this installation finds more in its log."
            ) from error
        return claims

    def _validated(self, said: dict[str, Any], keys: KeySet, token: dict[str, Any], nonce: str) -> dict[str, Any]:
        offered = said.get("id_token_signing_alg_values_supported") or ["RS256"]
        registry = JWSRegistry(algorithms=[one for one in ALGORITHMS if one in offered], strict_check_header=False)
        try:
            decoded = jwt.decode(token["id_token"], key=keys, registry=registry)
        except (InvalidKeyIdError, ValueError):
            _, keys = self._provider_says(anew=True)
            decoded = jwt.decode(token["id_token"], key=keys, registry=registry)
        options = {
            "iss": {"essential": True, "values": [said["issuer"]]},
            "aud": {"essential": True, "values": [self.provider.client_id]},
            "sub": {"essential": True}, "exp": {"essential": True}, "iat": {"essential": True},
        }  # fmt: skip
        known = {"nonce": nonce, "client_id": self.provider.client_id, "access_token": token.get("access_token")}
        claims = CodeIDToken(decoded.claims, decoded.header, options, known)
        claims.validate(leeway=LEEWAY_SECONDS)
        return dict(claims)

    def _is_told(self, claims: Mapping[str, Any]) -> bool:
        """Whether the ID token says all that we want to know; most providers leave some to the userinfo endpoint."""
        wanted = ("email", self.provider.role_claim, *(() if self.provider.tenant else (self.provider.tenant_claim,)))
        return all(name in claims for name in wanted)

    def _person(self, claims: Mapping[str, Any]) -> Person:
        host = self.provider.host
        tenant = self.provider.tenant or claims.get(self.provider.tenant_claim)
        if not isinstance(tenant, str) or not 0 < len(tenant) <= LONGEST_CLAIM:
            raise SignInError(f"{host} does not say which tenant you belong to (claim {self.provider.tenant_claim}).")
        told = claims.get(self.provider.role_claim)
        groups = [told] if isinstance(told, str) else told if isinstance(told, list) else []
        # A group of the company may be called like a role by chance.
        roles = self.provider.roles or {role: role for role in _ROLES_OF_PEOPLE}
        role = strongest([roles[str(group)] for group in groups if str(group) in roles])
        if role is None:
            raise SignInError(
                f"{host} gives you no role here (claim {self.provider.role_claim}): one of "
                f"{', '.join(_ROLES_OF_PEOPLE)}, and one that allows what your others do."
            )
        # An address that nobody has verified could be anybody's, and some providers do not say.
        email, subject = claims.get("email"), str(claims["sub"])
        is_theirs = isinstance(email, str) and claims.get("email_verified") is True
        return Person(tenant, role, (f"{email} ({subject})" if is_theirs else subject)[:LONGEST_CLAIM])

    def _provider_says(self, *, anew: bool = False) -> tuple[dict[str, Any], KeySet]:
        """What the provider says of itself, and its keys."""
        now = time.monotonic()
        if now < self._away_until:
            raise UnavailableError(f"{self.provider.host} did not answer a moment ago: try again.")
        if anew or self._known is None or now - self._known[2] > KNOWN_SECONDS:
            try:
                said = _document(f"{self.provider.issuer}/.well-known/openid-configuration")
                keys = KeySet.import_key_set(_document(said["jwks_uri"]))  # type: ignore[arg-type]  # as it came
            except requests.RequestException as error:
                raise self._away(error) from error
            except (KeyError, ValueError, JoseError) as error:
                raise ConfigError(f"{self.provider.issuer} is no OpenID provider: {type(error).__name__}.") from error
            if said.get("issuer", "").rstrip("/") != self.provider.issuer:
                raise ConfigError(f"C360_OIDC_ISSUER is {self.provider.issuer}, and calls itself {said.get('issuer')}.")
            self._known = said, keys, now
        return self._known[0], self._known[1]

    def _session(self) -> OAuth2Session:
        secret = self.provider.client_secret
        return OAuth2Session(
            self.provider.client_id, secret.get_secret_value() if secret else None, scope=SCOPE,
            redirect_uri=self.provider.callback, code_challenge_method="S256", default_timeout=TIMEOUT_SECONDS,
            token_endpoint_auth_method="client_secret_basic" if secret else "none",
        )  # fmt: skip

    def _away(self, error: Exception) -> UnavailableError:
        self._away_until = time.monotonic() + AWAY_SECONDS
        return UnavailableError(
            f"{self.provider.host} does not answer ({type(error).__name__}): nobody can sign in. A key still opens the "
            "pages."
        )


def strongest(roles: Sequence[str]) -> str | None:
    """The role that allows all that the others do; None where there is none, or no role of people at all."""
    known = [role for role in roles if role in _ROLES_OF_PEOPLE]
    return next((one for one in known if all(ROLES[one] >= ROLES[other] for other in known)), None)


def _document(address: str) -> dict[str, Any]:
    answer = requests.get(address, timeout=TIMEOUT_SECONDS)
    answer.raise_for_status()
    document: dict[str, Any] = answer.json()
    return document
