"""A small identity provider on a real socket: OpenID Connect's code flow with PKCE, and what a bad one might answer."""

import asyncio
import hashlib
import hmac
import json
import secrets
import threading
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.programs import free_port, listening, wait_for

CLIENT, SECRET = "dicom-node", "a secret: with %/+ in it"


class IdentityProvider:
    """groups: of the person who logs in. claims: what the next ID tokens say otherwise. sign: how they are signed.
    answers: what an address answers in place of the right thing."""

    def __init__(self, port: int, scheme: str = "http") -> None:
        self.port = port
        self.issuer = f"{scheme}://localhost:{port}"
        self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
        self.reset()

    def reset(self) -> None:
        """As a good provider."""
        self.name, self.subject, self.groups = "ada", "subject-ada", ["radiology"]
        self.claims: dict[str, Any] = {}
        self.sign = self.signed
        self.answers: dict[str, Response] = {}
        self.codes: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []
        self.shows_a_page = self.drips = False
        self.methods: list[str] | None = None  # of authentication at its token endpoint; unsaid, it is "basic"

    def signed(self, claims: dict[str, Any]) -> str:
        """As it should be."""
        return jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.key)

    def unsigned(self, claims: dict[str, Any]) -> str:
        """With the algorithm "none"."""
        return _packed({"alg": "none"}, claims) + "."

    def signed_by_the_public_key(self, claims: dict[str, Any]) -> str:
        """With HS256 and what everybody knows as the shared secret."""
        return _hs256({"alg": "HS256", "kid": "one", "typ": "JWT"}, claims, self.key.as_pem(private=False))

    def signed_by_another_key(self, claims: dict[str, Any]) -> str:
        """By a key that is not the provider's, under the name of the one that is."""
        return jwt.encode({"alg": "RS256", "kid": "one"}, claims, RSAKey.generate_key(2048))

    def describe(self, request: Request) -> Response:
        """Where it answers what."""
        return self.answers.get("describe") or JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
            }
            | ({"token_endpoint_auth_methods_supported": self.methods} if self.methods else {})
        )

    def authorize(self, request: Request) -> Response:
        """Logs everybody in, at once or by a page of its own."""
        asked, code = dict(request.query_params), secrets.token_urlsafe(8)
        assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
        self.codes[code] = asked
        back = f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"
        return HTMLResponse(f'<a href="{escape(back)}">Yes</a>') if self.shows_a_page else RedirectResponse(back, 302)

    async def token(self, request: Request) -> Response:
        """A code for an ID token: once, to the right client, with the right verifier."""
        form = await request.form()
        self.asked.append(str(form["code"]))
        asked = self.codes.pop(str(form["code"]), None)
        if "token" in self.answers:
            return self.answers["token"]
        challenge = urlsafe_b64encode(hashlib.sha256(str(form["code_verifier"]).encode()).digest()).rstrip(b"=")
        basic = None if self.methods == ["client_secret_post"] else "Basic " + _basic(CLIENT, SECRET)
        posted = SECRET if basic is None else None
        right = (
            asked and asked["code_challenge"] == challenge.decode() and asked["redirect_uri"] == form["redirect_uri"]
        )
        known = request.headers.get("authorization") == basic and form.get("client_secret") == posted
        if not asked or not right or not known:
            return JSONResponse({"error": "invalid_grant"}, 400)
        return JSONResponse({"access_token": "x", "token_type": "Bearer", "id_token": self.sign(self._claims(asked))})

    def keys(self, request: Request) -> Response:
        """Its public keys."""
        if self.drips:
            return StreamingResponse(_drips())
        return self.answers.get("keys") or JSONResponse({"keys": [self.key.as_dict(private=False)]})

    def _claims(self, asked: dict[str, str]) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "sub": self.subject, "nonce": asked["nonce"], "iat": now}
        more = {"exp": now + 300, "preferred_username": self.name, "groups": self.groups}
        return {key: value for key, value in (claims | more | self.claims).items() if value is not None}

    @property
    def settings(self) -> dict[str, Any]:
        """[web.oidc] of a node that uses it, but for the address of the node."""
        roles = {"radiology": "reader", "night": "operator", "it": "administrator"}
        return {"issuer": self.issuer, "client_id": CLIENT, "client_secret": SECRET, "roles": roles}


@contextmanager
def identity_provider(certificate: tuple[Path, Path] | None = None) -> Iterator[IdentityProvider]:
    """One on a port of this machine. certificate: and its key, for TLS."""
    found = IdentityProvider(free_port(), "https" if certificate else "http")
    app = Starlette(
        routes=[
            Route("/.well-known/openid-configuration", found.describe),
            Route("/authorize", found.authorize),
            Route("/token", found.token, methods=["POST"]),
            Route("/keys", found.keys),
        ]
    )
    config = uvicorn.Config(app, host="127.0.0.1", port=found.port, log_config=None, lifespan="off")
    if certificate:
        config.ssl_certfile, config.ssl_keyfile = certificate
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: listening(found.port), 20, "the provider listens")
        yield found
    finally:
        server.should_exit = True
        thread.join(20)


async def _drips() -> AsyncIterator[bytes]:
    for _ in range(40):
        yield b" "
        await asyncio.sleep(0.1)


def _basic(name: str, secret: str) -> str:
    return b64encode(f"{quote_plus(name)}:{quote_plus(secret)}".encode()).decode()


def _hs256(header: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    text = _packed(header, claims)
    return f"{text}.{_encoded(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


def _packed(header: dict[str, Any], claims: dict[str, Any]) -> str:
    return ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))


def _encoded(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()
