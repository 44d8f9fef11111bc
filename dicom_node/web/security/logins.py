"""Logins: a random token in a signed cookie, known to the index by its digest. Ends by logout, time and idleness."""

import hashlib
import secrets
import time

from starlette.requests import Request
from starlette.responses import Response

from config.settings import Settings
from dicom_node.web.context import WebContext, context_of
from dicom_node.web.security.roles import User, roles_of
from storage import web_users
from storage.web_users import Account

VISIT_S = 3600.0
"""A login form is good for this long."""


def is_over_tls(settings: Settings) -> bool:
    """Whether browsers reach the pages by https, here or at the proxy."""
    return bool(settings.web.tls_certificate or settings.web.behind_proxy)


def cookie_name(settings: Settings, what: str) -> str:
    """With the prefix that lets no other host and no plain connection set it, if that is possible."""
    return f"__Host-{what}" if is_over_tls(settings) else what


def set_cookie(response: Response, settings: Settings, what: str, value: str) -> None:
    """A cookie that no script reads, that no other site's request brings, and that ends with the browser."""
    secure = is_over_tls(settings)
    response.set_cookie(cookie_name(settings, what), value, path="/", httponly=True, samesite="strict", secure=secure)


def forget_cookie(response: Response, settings: Settings, what: str) -> None:
    """Remove a cookie."""
    secure = is_over_tls(settings)
    response.delete_cookie(cookie_name(settings, what), path="/", httponly=True, samesite="strict", secure=secure)


def digest(token: str) -> str:
    """What the index knows of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def begin(context: WebContext, account: Account, address: str, now: float) -> str:
    """A new login. Returns its token."""
    token = secrets.token_urlsafe(32)
    expires_at = now + context.settings.web.session_hours * 3600
    with context.database.transaction() as tx:
        web_users.begin_login(tx, digest(token), account.user_id, address, now, expires_at)
    return token


def user_of(request: Request) -> User | None:
    """Who is logged in, by the request's cookie."""
    context = context_of(request)
    settings = context.settings
    signed = request.cookies.get(cookie_name(settings, "login"), "")
    token = context.keys.token(signed, settings.web.idle_minutes * 60) if signed else None
    if token is None:
        return None
    with context.database.read() as tx:
        account = web_users.who_is(tx, digest(token), time.time())
    if account is None or (web_users.is_of_provider(account.name) and context.provider is None):
        return None
    return User(account.user_id, account.name, roles_of(account.roles), token)


def visit_of(request: Request) -> str:
    """The token of a visitor who is not logged in, for the login form; empty without one."""
    context = context_of(request)
    signed = request.cookies.get(cookie_name(context.settings, "visit"), "")
    return (context.keys.token(signed, VISIT_S) if signed else None) or ""
