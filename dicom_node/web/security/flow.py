"""A login by the identity provider, from our side: what the browser keeps meanwhile, and whose account it is.

The flow's cookie is SameSite=Lax, because the provider sends the browser back from another site, and no Strict cookie
comes with that. It holds nothing but this one flow, ends after FLOW_S, and is good for one answer.
"""

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from config.settings import OidcSettings
from dicom_node.web.context import context_of
from dicom_node.web.security.logins import cookie_name, is_over_tls
from dicom_node.web.security.roles import NAME, Role
from storage.web_users import PROVIDER_PREFIX

FLOW_S = 600.0
"""Time for a person to log in at the provider."""
COOKIE = "flow"
MOST_USED_KEPT = 10_000


class Refused(Exception):
    """The provider's answer lets nobody in; its text says why, to the person and to the audit trail. name: of the
    account, once the provider has vouched for it."""

    def __init__(self, text: str, name: str | None = None) -> None:
        super().__init__(text)
        self.name = name


class ProviderAway(Exception):
    """The provider does not answer, or not as one does; its text says how."""


@dataclass(frozen=True)
class Flow:
    """One login under way: three random texts. state comes back in the address, nonce in the ID token; verifier shows
    that who asks for the token is who began (PKCE)."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def new(cls) -> "Flow":
        """A new one."""
        return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48))


@dataclass(frozen=True)
class Person:
    """Whom the provider vouches for. name: of the account, with PROVIDER_PREFIX. mark: of issuer and subject; it stands
    in place of the password's hash and is none, so that no password fits. roles: empty if the map has no group of
    theirs.
    """

    name: str
    mark: str
    roles: tuple[str, ...]


class UsedFlows:
    """Which flows have had their answer. clock: seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._used: OrderedDict[str, float] = OrderedDict()

    def use(self, flow: Flow) -> bool:
        """Whether this is its first answer."""
        with self._lock:
            while self._used and (next(iter(self._used.values())) < self._clock() or len(self._used) > MOST_USED_KEPT):
                self._used.popitem(last=False)
            if flow.state in self._used:
                return False
            self._used[flow.state] = self._clock() + FLOW_S
            return True


def keep(request: Request, response: Response, flow: Flow) -> None:
    """Give the browser the cookie of its flow."""
    context = context_of(request)
    value = context.keys.sign(".".join(("flow", flow.state, flow.nonce, flow.verifier)))
    name, secure = cookie_name(context.settings, COOKIE), is_over_tls(context.settings)
    response.set_cookie(name, value, max_age=int(FLOW_S), path="/", httponly=True, samesite="lax", secure=secure)


def forget(request: Request, response: Response) -> None:
    """Remove the cookie of the flow."""
    settings = context_of(request).settings
    name, secure = cookie_name(settings, COOKIE), is_over_tls(settings)
    response.delete_cookie(name, path="/", httponly=True, samesite="lax", secure=secure)


def flow_of(request: Request) -> Flow | None:
    """The flow that this browser began, if the answer's state is that flow's."""
    context = context_of(request)
    signed = request.cookies.get(cookie_name(context.settings, COOKIE), "")
    kind, *parts = ((context.keys.token(signed, FLOW_S) if signed else None) or "").split(".")
    if kind != "flow" or len(parts) != 3:
        return None
    flow, given = Flow(*parts), request.query_params.get("state", "")
    return flow if hmac.compare_digest(flow.state.encode(), given.encode()) else None


def person_of(claims: Mapping[str, object], settings: OidcSettings) -> Person:
    """Whom checked claims are about. Raises Refused if they give no subject or no usable name."""
    subject, name = claims.get("sub"), claims.get(settings.name_claim)
    if not isinstance(subject, str) or not subject:
        raise Refused("The ID token names no subject.")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise Refused("The provider gave no name that an account can have: 1 to 64 letters, digits and . _ - @.")
    mark = "oidc " + hashlib.sha256(f"{settings.issuer}\n{subject}".encode()).hexdigest()
    return Person(PROVIDER_PREFIX + name, mark, _roles(claims.get(settings.roles_claim), settings))


def _roles(groups: object, settings: OidcSettings) -> tuple[str, ...]:
    named = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
    given = {settings.roles[group] for group in named if isinstance(group, str) and group in settings.roles}
    return tuple(str(role) for role in Role if role in given)
