"""How the node says who it is to an HTTP peer. Secrets come from a file or an environment variable, at each use."""

import base64
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote_plus, urlencode

from config.gateways.http import HttpDestination
from dicom_node.errors import NodeError

MAX_SECRET_BYTES = 1 << 16
MAX_TOKEN_ANSWER_BYTES = 1 << 18
RENEW_BEFORE_S = 30.0
"""A token is renewed this long before it expires."""
DEFAULT_TOKEN_S = 300.0
"""How long a token is used if its server does not say."""
FORM = "application/x-www-form-urlencoded"


class NoSecret(NodeError):
    """The secret cannot be read, or no token was given. The text never holds one."""


class Identity(Protocol):
    """Who the node is, for one peer."""

    def headers(self) -> Mapping[str, str]:
        """The headers that say so. Raises NodeError."""
        ...

    def renew(self) -> bool:
        """The peer refused them. Returns True if new ones may help."""
        ...


Exchange = Callable[..., Any]
"""`HttpPeer.exchange`."""


def secret_of(destination: HttpDestination) -> str:
    """The password, token or client's secret of a destination. Raises NoSecret."""
    return read_secret(destination.credentials, destination.credentials_variable)


def read_secret(file: Path | None, variable: str) -> str:
    """What an environment variable or a file holds. Raises NoSecret."""
    if variable:
        found = os.environ.get(variable, "")
        where = f"the variable {variable}"
    elif file is not None:
        try:
            with file.open(encoding="utf-8") as opened:
                found = opened.read(MAX_SECRET_BYTES).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise NoSecret(
                f"{file} cannot be read: {getattr(error, 'strerror', '') or 'it is not UTF-8 text'}"
            ) from None
        where = str(file)
    else:
        raise NoSecret("the settings name no credentials")
    if not found or not found.isprintable():
        raise NoSecret(f"{where} holds no secret in one line")
    return found


def basic(user: str, secret: str) -> dict[str, str]:
    """The header of a user and a password."""
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{secret}'.encode()).decode()}"}


class Fixed:
    """An identity that is in the settings and the file that they name."""

    def __init__(self, destination: HttpDestination) -> None:
        self._destination = destination

    def headers(self) -> Mapping[str, str]:
        """Nothing, user and password, or a bearer token. Raises NoSecret."""
        if self._destination.auth == "basic":
            return basic(self._destination.user, secret_of(self._destination))
        if self._destination.auth == "bearer":
            token = secret_of(self._destination)
            if not token.isascii():
                raise NoSecret("the bearer token holds characters that no token has")
            return {"Authorization": f"Bearer {token}"}
        return {}

    def renew(self) -> bool:
        """The file is read each time anyway."""
        return False


class Tokens:
    """Tokens of a server (RFC 6749), kept until shortly before they expire or are refused.

    ask: gives the form that a token is asked for with, and the headers of the request. Raises NodeError.
    """

    def __init__(
        self, token_url: str, ask: Callable[[], tuple[Mapping[str, str], Mapping[str, str]]], exchange: Exchange
    ) -> None:
        self._token_url = token_url
        self._ask = ask
        self._exchange = exchange
        self._token = ""
        self._good_until = 0.0

    def headers(self) -> Mapping[str, str]:
        """The bearer token in use. Raises NodeError if none is given."""
        if not self._token or time.monotonic() >= self._good_until:
            self._token, good_for_s = self._get()
            self._good_until = time.monotonic() + good_for_s
        return {"Authorization": f"Bearer {self._token}"}

    def renew(self) -> bool:
        """Forget the token."""
        self._token = ""
        return True

    def _get(self) -> tuple[str, float]:
        """A new token and for how many seconds it is used."""
        form, headers = self._ask()
        sent = {"Content-Type": FORM, "Accept": "application/json", **headers}
        answer = self._exchange("POST", self._token_url, urlencode(form).encode(), sent, MAX_TOKEN_ANSWER_BYTES)
        if not answer.ok:
            raise NoSecret(f"no token: {answer.words}")
        return _token_of(answer.body)


def _token_of(body: bytes) -> tuple[str, float]:
    try:
        said = json.loads(body)
        token, lasts_s = str(said["access_token"]), float(said.get("expires_in", DEFAULT_TOKEN_S))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise NoSecret("no token: the answer of its server cannot be understood") from None
    if not token or not token.isascii() or not token.isprintable():
        raise NoSecret("no token: the answer of its server holds none")
    return token, max(1.0, lasts_s - RENEW_BEFORE_S)


def client_credentials(destination: HttpDestination) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Form and headers that ask for a token by client credentials (RFC 6749, 4.4). Raises NoSecret."""
    secret = secret_of(destination)
    form = {"grant_type": "client_credentials"}
    if destination.scope:
        form["scope"] = destination.scope
    if destination.token_by == "post":
        return {**form, "client_id": destination.user, "client_secret": secret}, {}
    return form, basic(quote_plus(destination.user), quote_plus(secret))


def identity_of(destination: HttpDestination, exchange: Exchange) -> Identity:
    """The identity that the settings of a destination name."""
    if destination.auth == "oauth2":
        return Tokens(destination.token_url, lambda: client_credentials(destination), exchange)
    return Fixed(destination)
