"""What stands before every endpoint: who is it, may they, and did the form come from one of our pages.

An endpoint is a plain function that takes the request and returns a response. It runs in a thread, because it asks the
index. Its form has been read and checked: `form(request)`. One that is declared `async` runs in the event loop.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dicom_node.web.context import context_of
from dicom_node.web.security import logins
from dicom_node.web.security.roles import Role, User

Endpoint = Callable[[Request], Response] | Callable[[Request], Awaitable[Response]]
Guarded = Callable[[Request], Awaitable[Response]]
SAFE = ("GET", "HEAD")
MAX_FIELDS, MAX_FIELD_BYTES = 100, 64 * 1024
FORM_FIELD, FORM_HEADER = "csrf", "X-CSRF-Token"


def require(role: Role | str) -> Callable[[Endpoint], Guarded]:
    """For somebody who is logged in and has this role. Others are sent to the login, or told that they may not."""
    needed = Role(role)

    def wrap(endpoint: Endpoint) -> Guarded:
        async def guarded(request: Request) -> Response:
            user = await run_in_threadpool(logins.user_of, request)
            request.state.user = user
            if user is None:
                return _to_login(request)
            if not user.may(needed):
                raise HTTPException(403, f"This needs the role {needed}.")
            await _check_form(request, user.token)
            response = await _run(endpoint, request)
            return _renewed(request, response, user)

        return marked(guarded, endpoint, str(needed))

    return wrap


def open_to_all(endpoint: Endpoint) -> Guarded:
    """For anybody: the login itself. Its form is checked against the visitor's cookie."""

    async def guarded(request: Request) -> Response:
        request.state.user = None
        await _check_form(request, logins.visit_of(request))
        return await _run(endpoint, request)

    return marked(guarded, endpoint, "anybody")


def current_user(request: Request) -> User:
    """Who is logged in, in an endpoint that needs a role."""
    user: User = request.state.user
    return user


def form(request: Request) -> FormData:
    """The fields of the request's form; each value is text."""
    found: FormData = request.state.form
    return found


def field(request: Request, name: str, default: str = "") -> str:
    """One field of the form as text."""
    value = form(request).get(name)
    return value if isinstance(value, str) else default


def form_token(request: Request) -> str:
    """The token that this visitor's forms must bring back."""
    user: User | None = getattr(request.state, "user", None)
    visit: str = getattr(request.state, "visit", "") or logins.visit_of(request)
    return context_of(request).keys.form_token(user.token if user else visit)


def address_of(request: Request) -> str:
    """Where the request comes from."""
    return request.client.host if request.client else ""


async def _check_form(request: Request, token: str) -> None:
    """Read the form. Raises HTTPException unless it comes from one of our own pages, given to this visitor."""
    request.state.form = FormData()
    if request.method in SAFE:
        return
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "The form came from another site.")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, "The form came from another site.")
    request.state.form = await request.form(max_files=0, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    given = request.headers.get(FORM_HEADER) or field(request, FORM_FIELD)
    if not token or not context_of(request).keys.is_form_token(given, token):
        raise HTTPException(403, "The form is no longer valid. Go back, load the page again, and repeat it.")


async def _run(endpoint: Endpoint, request: Request) -> Response:
    if inspect.iscoroutinefunction(endpoint):
        return cast(Response, await endpoint(request))
    return cast(Response, await run_in_threadpool(endpoint, request))


def marked(guarded: Guarded, endpoint: Endpoint, whom: str) -> Guarded:
    """The guarded endpoint, with its name and whom it lets in (`for_whom`)."""
    guarded.__name__ = endpoint.__name__
    guarded.__doc__ = endpoint.__doc__
    guarded.for_whom = whom  # type: ignore[attr-defined]
    return guarded


def for_whom(endpoint: Any) -> str | None:
    """The role that an endpoint needs, "anybody", or None if nothing guards it."""
    return getattr(endpoint, "for_whom", None)


def _to_login(request: Request) -> Response:
    if request.method in SAFE and "HX-Request" not in request.headers:
        return RedirectResponse("/login", 303)
    # htmx would put the login page into the middle of another one.
    return Response("Log in again.", 401, {"HX-Redirect": "/login"})


def _renewed(request: Request, response: Response, user: User) -> Response:
    """Whoever does something stays logged in. What a page does by itself does not count: it says so."""
    context = context_of(request)
    by_itself = "X-By-Itself" in request.headers or response.media_type == "text/event-stream"
    if not getattr(request.state, "logged_out", False) and not by_itself:
        logins.set_cookie(response, context.settings, "login", context.keys.sign(user.token))
    return response
