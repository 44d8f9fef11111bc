"""Logging in and out."""

import secrets
import time

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dicom_node.web.context import context_of
from dicom_node.web.pages.render import render
from dicom_node.web.pages.words import duration
from dicom_node.web.security import logins
from dicom_node.web.security.audited import audited
from dicom_node.web.security.guard import address_of, current_user, field, open_to_all, require
from dicom_node.web.security.passwords import TooBusy
from dicom_node.web.security.roles import NAME, Role
from storage import audit, web_users

WRONG = "No account has this name and password."


@open_to_all
def login_form(request: Request) -> Response:
    """The form; whoever is logged in already goes on to Today."""
    if logins.user_of(request) is not None:
        return RedirectResponse("/", 303)
    return login_page(request, 200)


@open_to_all
def log_in(request: Request) -> Response:
    """Check name and password; a new login if they fit, whatever login there was before."""
    context, name, address = context_of(request), field(request, "name").strip(), address_of(request)
    wait_s = context.throttle.wait_s(name, address)
    if wait_s > 0:
        return login_page(request, 429, f"Too many wrong passwords. Try again in {duration(max(1.0, wait_s))}.")
    with context.database.read() as tx:
        account = web_users.find(tx, name) if NAME.fullmatch(name) else None
    try:
        right = context.passwords.check(field(request, "password"), account.password_hash if account else None)
    except TooBusy:
        return login_page(request, 503, "Too many logins at once. Try again.")
    if account is None or not right:
        context.throttle.failed(name, address)
        note(request, account.name if account else None, "login-refused", "REFUSED")
        return login_page(request, 401, WRONG)
    context.throttle.succeeded(name, address)
    end_former(request)
    token = logins.begin(context, account, address, time.time())
    note(request, account.name, "login", "DONE")
    response = RedirectResponse("/", 303)
    logins.set_cookie(response, context.settings, "login", context.keys.sign(token))
    logins.forget_cookie(response, context.settings, "visit")
    return response


@require(Role.VIEWER)
def log_out(request: Request) -> Response:
    """End this login, here and in the index."""
    context, user = context_of(request), current_user(request)
    with context.database.transaction() as tx:
        web_users.end_login(tx, logins.digest(user.token))
        audited(request, "web.logout", tx=tx)
    request.state.logged_out = True
    response = RedirectResponse("/login", 303)
    logins.forget_cookie(response, context.settings, "login")
    response.headers["Clear-Site-Data"] = '"cache"'
    return response


def login_page(request: Request, status: int, problem: str = "") -> Response:
    """The form. problem: what went wrong, in a sentence."""
    context = context_of(request)
    with context.database.read() as tx:
        anybody = bool(web_users.everyone(tx)) or context.provider is not None
    visit = logins.visit_of(request) or secrets.token_urlsafe(32)
    request.state.visit = visit
    response = render(request, "login.html", status=status, problem=problem, anybody=anybody, sso=context.provider)
    logins.set_cookie(response, context.settings, "visit", context.keys.sign(visit))
    return response


def end_former(request: Request) -> None:
    """A login that this browser had, or that somebody planted in it, is not taken over."""
    former = logins.user_of(request)
    if former is not None:
        with context_of(request).database.transaction() as tx:
            web_users.end_login(tx, logins.digest(former.token))


def note(request: Request, name: str | None, what: str, outcome: str, **detail: object) -> None:
    """name: of an existing account; what else was typed may be a password, and is not kept."""
    with context_of(request).database.transaction() as tx:
        peer = audit.Peer(address=address_of(request))
        audit.append(tx, time.time(), f"web.{what}", peer=peer, outcome=outcome, detail={"user": name, **detail})


ROUTES = [
    Route("/login", login_form, methods=["GET"]),
    Route("/login", log_in, methods=["POST"]),
    Route("/logout", log_out, methods=["POST"]),
]
