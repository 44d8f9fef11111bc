"""One's own account: its roles, another password, an end to all logins."""

import time

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dicom_node.web.context import context_of
from dicom_node.web.pages.render import render
from dicom_node.web.security import logins
from dicom_node.web.security.audited import audited
from dicom_node.web.security.guard import address_of, current_user, field, require
from dicom_node.web.security.passwords import SHORTEST, TooBusy
from dicom_node.web.security.roles import Role
from storage import web_users


@require(Role.VIEWER)
def account(request: Request) -> Response:
    """The page."""
    return _page(request)


@require(Role.VIEWER)
def change_password(request: Request) -> Response:
    """Another password: the present one must be known, and all logins end but a new one here."""
    context, user, address = context_of(request), current_user(request), address_of(request)
    if context.throttle.wait_s(user.name, address) > 0:
        return _page(request, 429, "Too many wrong passwords. Try again later.")
    with context.database.read() as tx:
        held = web_users.get(tx, user.name)
    try:
        right = context.passwords.check(field(request, "present"), held.password_hash)
    except TooBusy:
        return _page(request, 503, "Too many logins at once. Try again.")
    if not right:
        context.throttle.failed(user.name, address)
        return _page(request, 403, "That is not your present password.")
    if field(request, "new") != field(request, "again"):
        return _page(request, 400, "The new password and its repetition differ.")
    try:
        password_hash = context.passwords.hash(field(request, "new"))
    except ValueError as error:
        return _page(request, 400, f"The new password does not do: {error}.")
    with context.database.transaction() as tx:
        web_users.set_password(tx, user.user_id, password_hash, time.time())
        audited(request, "web.password-changed", tx=tx)
    request.state.logged_out = True
    response = RedirectResponse("/account", 303)
    token = logins.begin(context, held, address, time.time())
    logins.set_cookie(response, context.settings, "login", context.keys.sign(token))
    return response


@require(Role.VIEWER)
def end_logins(request: Request) -> Response:
    """Log out everywhere."""
    context, user = context_of(request), current_user(request)
    with context.database.transaction() as tx:
        web_users.end_logins_of(tx, user.user_id)
        audited(request, "web.logged-out-everywhere", tx=tx)
    request.state.logged_out = True
    response = RedirectResponse("/login", 303)
    logins.forget_cookie(response, context.settings, "login")
    return response


@require(Role.VIEWER)
def here(request: Request) -> Response:
    """What a page asks while somebody works with what it has already: like every request, it keeps the login."""
    return Response(status_code=204)


def _page(request: Request, status: int = 200, problem: str = "") -> Response:
    roles = [(role, role in current_user(request).roles) for role in Role]
    return render(request, "account.html", status=status, problem=problem, roles=roles, shortest=SHORTEST)


ROUTES = [
    Route("/here", here, methods=["GET"]),
    Route("/account", account, methods=["GET"]),
    Route("/account/password", change_password, methods=["POST"]),
    Route("/account/logins", end_logins, methods=["POST"]),
]
