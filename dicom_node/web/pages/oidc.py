"""Logging in by the hospital's identity provider: there, and back."""

import time
from typing import TYPE_CHECKING

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dicom_node.web.context import context_of
from dicom_node.web.pages.login import end_former, login_page, note
from dicom_node.web.pages.render import render
from dicom_node.web.security import flow, logins
from dicom_node.web.security.flow import Flow, Person, ProviderAway, Refused
from dicom_node.web.security.guard import address_of, open_to_all
from storage import web_users
from storage.web_users import Account

if TYPE_CHECKING:
    from dicom_node.web.security.provider import Provider

log = structlog.get_logger()

STRANGE = "This answer belongs to no login that this browser began here. Begin again."
MAX_CODE = 4096
LOCAL = "Log in with a local account meanwhile."
NO_GROUP = "None of your groups may see this node's pages. Ask whoever runs it for one that may."
OTHER_PERSON = "Another person had this account name before. An administrator must remove that account first."


@open_to_all
async def begin(request: Request) -> Response:
    """Send the browser to the provider."""
    provider, begun = _provider(request), Flow.new()
    try:
        address = await provider.address_for(begun)
    except ProviderAway as error:
        return await _say_away(request, error)
    response = RedirectResponse(address, 303)
    flow.keep(request, response, begun)
    return response


@open_to_all
async def come_back(request: Request) -> Response:
    """The provider's answer, by way of the browser: a new login, or a sentence why not."""
    provider, address = _provider(request), address_of(request)
    begun = flow.flow_of(request)
    if begun is None or not provider.used.use(begun):
        return await _refuse_stranger(request, provider)
    if provider.throttle.wait_s("", address) > 0:
        return await _form(request, 429, "Too many refused logins. Try again in a few minutes.")
    try:
        person = await _person(request, provider, begun)
        response = await run_in_threadpool(_let_in, request, person)
    except ProviderAway as error:
        provider.throttle.failed("", address)
        await _note_refused(request, f"provider: {error}")
        return await _say_away(request, error)
    except Refused as error:
        provider.throttle.failed("", address)
        return await _refuse(request, str(error), error.name)
    flow.forget(request, response)
    return response


async def _person(request: Request, provider: "Provider", begun: Flow) -> Person:
    code = request.query_params.get("code", "")
    if "error" in request.query_params or not 0 < len(code) <= MAX_CODE:
        raise Refused("The provider did not let you in.")
    return flow.person_of(await provider.claims_of(code, begun), provider.settings)


def _let_in(request: Request, person: Person) -> Response:
    """A new login of this person. Raises Refused."""
    context, now = context_of(request), time.time()
    account = _account(request, person, now)
    end_former(request)
    token = logins.begin(context, account, address_of(request), now)
    note(request, account.name, "login", "DONE", by="oidc", roles=list(person.roles))
    # No redirect: after one that began at another site, the browser would keep the Strict cookie back.
    response = render(request, "oidc_done.html")
    logins.set_cookie(response, context.settings, "login", context.keys.sign(token))
    logins.forget_cookie(response, context.settings, "visit")
    return response


def _account(request: Request, person: Person, now: float) -> Account:
    """The person's account with the roles of today. Raises Refused; who has lost all roles is logged out everywhere."""
    with context_of(request).database.transaction() as tx:
        account = web_users.find(tx, person.name)
        if account is not None and account.password_hash == person.mark:
            web_users.set_roles(tx, account.user_id, person.roles)
            if not person.roles:
                web_users.end_logins_of(tx, account.user_id)
        elif account is None and person.roles:
            web_users.add(tx, person.name, person.roles, person.mark, now)
        found = web_users.find(tx, person.name)
    if found is not None and found.password_hash != person.mark:
        raise Refused(OTHER_PERSON, person.name)
    if found is None or not person.roles:
        raise Refused(NO_GROUP, person.name)
    return found


def _provider(request: Request) -> "Provider":
    provider = context_of(request).provider
    if provider is None:
        raise HTTPException(404)
    return provider


async def _refuse_stranger(request: Request, provider: "Provider") -> Response:
    """Anybody can send such answers by the thousand: the audit trail is spared the most of them."""
    address = address_of(request)
    if provider.strangers.wait_s("", address) > 0:
        return await _form(request, 403, STRANGE)
    provider.strangers.failed("", address)
    return await _refuse(request, STRANGE)


async def _refuse(request: Request, why: str, name: str | None = None) -> Response:
    await _note_refused(request, why, name)
    return await _form(request, 403, why)


async def _note_refused(request: Request, why: str, name: str | None = None) -> None:
    await run_in_threadpool(note, request, name, "login-refused", "REFUSED", by="oidc", why=why)


async def _say_away(request: Request, error: ProviderAway) -> Response:
    log.warning("the identity provider does not help", reason=str(error))
    return await _form(request, 503, f"The hospital's login cannot be used now: {error}. {LOCAL}")


async def _form(request: Request, status: int, problem: str) -> Response:
    response = await run_in_threadpool(login_page, request, status, problem)
    flow.forget(request, response)
    return response


ROUTES = [
    Route("/login/oidc", begin, methods=["GET"]),
    Route("/login/oidc/callback", come_back, methods=["GET"]),
]
