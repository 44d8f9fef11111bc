"""Pausing and resuming a source or a destination, from the Peers page."""

import time

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dicom_node.errors import NodeError
from dicom_node.runtime.pausing import set_paused
from dicom_node.web.context import context_of
from dicom_node.web.security.guard import address_of, current_user, field, require
from dicom_node.web.security.roles import Role
from storage import audit
from storage.errors import IllegalMove
from storage.pauses import Pausable


@require(Role.OPERATOR)
def pause(request: Request) -> Response:
    """Pause a peer; its own audit row says who did it, and from where."""
    return _set(request, paused=True)


@require(Role.OPERATOR)
def resume(request: Request) -> Response:
    """Resume a peer."""
    return _set(request, paused=False)


def _set(request: Request, *, paused: bool) -> Response:
    context = context_of(request)
    if field(request, "sure") != "yes" or field(request, "kind") not in list(Pausable):
        raise HTTPException(400, "Confirm what is to be done.")
    peer = Pausable(field(request, "kind")), field(request, "name")
    where = audit.Peer(address=address_of(request))
    try:
        with context.database.transaction() as tx:
            set_paused(tx, context.settings, peer, current_user(request).name, time.time(), paused=paused, where=where)
    except (NodeError, IllegalMove) as error:
        raise HTTPException(400, f"{error}.") from None
    return RedirectResponse("/peers", 303)


ROUTES = [Route("/peers/pause", pause, methods=["POST"]), Route("/peers/resume", resume, methods=["POST"])]
