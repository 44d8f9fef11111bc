"""The hospital's identity provider: OpenID Connect's authorization code flow with PKCE (extra `sso`).

Its answers are not trusted further than needed: bounded in size and time, no redirect followed, only https beyond this
machine, and an ID token counts only with a signature by one of the provider's public keys. RFC 6749, RFC 7636, OpenID
Connect Core 1.0 section 3.1.3.7.
"""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import httpx
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from config.rules import is_private_url
from config.settings import OidcSettings
from dicom_node.scu.tls import client_context
from dicom_node.web.security.flow import Flow, ProviderAway, Refused, UsedFlows
from dicom_node.web.security.throttle import LoginThrottle

ALGORITHMS = [f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)]
"""Asymmetric ones only: with HS256, the public key would be a password that everybody knows; "none" is no signature."""
PATIENCE_S = 10.0
"""One login's questions to the provider take no longer, all together."""
MAX_ANSWER_BYTES = 512 * 1024
KEPT_S = 3600.0
"""How long the provider's description of itself counts."""
LEEWAY_S = 60.0
"""How far the two clocks may differ."""
ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")
MAX_SECRET_BYTES = 4096


class Provider:
    """What [web.oidc] names. One for each web process."""

    def __init__(self, settings: OidcSettings) -> None:
        self.settings = settings
        self.used = UsedFlows()
        self.throttle, self.strangers = LoginThrottle(), LoginThrottle()
        self.callback = settings.address.rstrip("/") + "/login/oidc/callback"
        self._trusted = client_context(settings.authorities)
        self._described: tuple[float, dict[str, str]] = (0.0, {})
        self._describing = asyncio.Lock()

    async def address_for(self, flow: Flow) -> str:
        """Where to send the browser. Raises ProviderAway."""
        async with self._asking() as client:
            described = await self._description(client)
        address: str = prepare_grant_uri(
            described["authorization_endpoint"],
            self.settings.client_id,
            "code",
            redirect_uri=self.callback,
            scope=list(self.settings.scopes),
            state=flow.state,
            nonce=flow.nonce,
            code_challenge=create_s256_code_challenge(flow.verifier),
            code_challenge_method="S256",
        )
        return address

    async def claims_of(self, code: str, flow: Flow) -> Mapping[str, object]:
        """What the provider vouches for in exchange for a code. Raises ProviderAway or Refused."""
        async with self._asking() as client:
            described = await self._description(client)
            answer = await self._exchange(client, described, code, flow)
            keys = await _asked(client, "GET", described["jwks_uri"])
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise ProviderAway("it sent no ID token")
        return checked_claims(token, keys, self.settings, flow, time.time())

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        try:
            async with (
                asyncio.timeout(PATIENCE_S),
                httpx.AsyncClient(verify=self._trusted, trust_env=False, headers=headers, timeout=PATIENCE_S) as client,
            ):
                yield client
        except TimeoutError:
            raise ProviderAway("it does not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ProviderAway(f"it cannot be reached ({type(error).__name__})") from None

    async def _description(self, client: httpx.AsyncClient) -> dict[str, str]:
        """Where the provider answers what."""
        async with self._describing:
            asked_at, described = self._described
            if described and time.monotonic() - asked_at < KEPT_S:
                return described
            address = self.settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
            described = described_by(await _asked(client, "GET", address), self.settings)
            self._described = (time.monotonic(), described)
            return described

    async def _exchange(
        self, client: httpx.AsyncClient, described: dict[str, str], code: str, flow: Flow
    ) -> dict[str, Any]:
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": self.callback}
        form |= {"client_id": self.settings.client_id, "code_verifier": flow.verifier}
        secret = _secret(self.settings)
        if secret and described["posts_secret"]:
            form["client_secret"] = secret
        elif secret:  # RFC 6749, 2.3.1: both are encoded as in a form
            auth = httpx.BasicAuth(quote_plus(self.settings.client_id), quote_plus(secret))
            return await _asked(client, "POST", described["token_endpoint"], data=form, auth=auth)
        return await _asked(client, "POST", described["token_endpoint"], data=form)


def checked_claims(
    token: str, keys: dict[str, Any], settings: OidcSettings, flow: Flow, now: float
) -> Mapping[str, object]:
    """The claims of an ID token. keys: the provider's JWKS. now: Unix seconds. Raises Refused."""
    try:
        claims = jwt.decode(token, KeySet.import_key_set({"keys": _public(keys)}), algorithms=ALGORITHMS).claims
    except (JoseError, ValueError, TypeError, KeyError):
        raise Refused("The ID token is not signed by a key of the provider.") from None
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience if isinstance(audience, list) else []
    if claims.get("iss") != settings.issuer:
        raise Refused("The ID token is of another provider.")
    if settings.client_id not in audiences:
        raise Refused("The ID token is meant for another program.")
    if (len(audiences) > 1 or "azp" in claims) and claims.get("azp") != settings.client_id:
        raise Refused("The ID token is meant for another program.")
    if not _is_current(claims, now):
        raise Refused("The ID token has expired, or is not valid yet.")
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), flow.nonce.encode()):
        raise Refused("The ID token belongs to another login.")
    return claims


def _is_current(claims: Mapping[str, object], now: float) -> bool:
    """Whether a token has its times, and is between them."""
    ends, issued, begins = claims.get("exp"), claims.get("iat"), claims.get("nbf", 0)
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (ends, issued, begins)):
        return False
    return bool(ends > now - LEEWAY_S and issued <= now + LEEWAY_S and begins <= now + LEEWAY_S)  # type: ignore[operator]


def _public(keys: dict[str, Any]) -> list[Any]:
    """The keys that may sign: never a shared secret, and none that is for encryption."""
    listed = keys.get("keys")
    usable = [key for key in listed if isinstance(key, dict)] if isinstance(listed, list) else []
    return [key for key in usable if key.get("kty") in ("RSA", "EC") and key.get("use", "sig") == "sig"]


def described_by(found: dict[str, Any], settings: OidcSettings) -> dict[str, str]:
    """Where a provider says that it answers what. Raises ProviderAway if it is another provider's description, or names
    an address that others can read."""
    if found.get("issuer") != settings.issuer:
        raise ProviderAway("it calls itself by another name than issuer in [web.oidc]")
    addresses = {}
    for name in ENDPOINTS:
        address = found.get(name)
        if not isinstance(address, str) or not is_private_url(address):
            raise ProviderAway(f"its {name} is missing, or not https")
        addresses[name] = address
    methods = found.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
    addresses["posts_secret"] = "" if "client_secret_basic" in methods else "yes"
    return addresses


async def _asked(client: httpx.AsyncClient, method: str, address: str, **options: Any) -> dict[str, Any]:
    """The JSON object that an address answers with. Raises ProviderAway or httpx's errors."""
    body = bytearray()
    auth = options.pop("auth", None)
    request = client.build_request(method, address, **options)
    response = await client.send(request, auth=auth, stream=True, follow_redirects=False)
    try:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ProviderAway("its answer is compressed, which was not asked for")
        async for part in response.aiter_raw():
            body += part
            if len(body) > MAX_ANSWER_BYTES:
                raise ProviderAway("its answer is too large")
    finally:
        await response.aclose()
    if method == "POST" and response.status_code in (400, 401):
        raise Refused("The provider does not accept this login, or not this node.")
    return _object(bytes(body), response.status_code)


def _object(body: bytes, status: int) -> dict[str, Any]:
    if status != 200:
        raise ProviderAway(f"it answers with status {status}")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ProviderAway("its answer is not JSON")
    return found


def _secret(settings: OidcSettings) -> str:
    """The client's secret; a file is read anew each time, so that it can be exchanged."""
    if settings.credentials is None:
        return settings.client_secret.get_secret_value()
    try:
        with Path(settings.credentials).open("rb") as file:
            return file.read(MAX_SECRET_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError):
        raise ProviderAway("this node cannot read credentials") from None
