"""Acknowledging an alarm of the watches, from the page Models."""

import time

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dicom_node.web.context import context_of
from dicom_node.web.pages.watches import LONGEST_REASON
from dicom_node.web.security.guard import current_user, field, require
from dicom_node.web.security.roles import Role
from storage import watch_alarms
from storage.errors import IllegalMove, NotFound


@require(Role.OPERATOR)
def acknowledge(request: Request) -> Response:
    """Acknowledge an alarm with a reason; its audit row says who did it."""
    number, reason = field(request, "alarm"), field(request, "reason").strip()
    if not (number.isdecimal() and len(number) <= 18) or not 0 < len(reason) <= LONGEST_REASON:
        raise HTTPException(400, "Say why the alarm may stand: the audit trail states it.")
    try:
        with context_of(request).database.transaction() as tx:
            watch_alarms.acknowledge(tx, int(number), current_user(request).name, reason, time.time())
    except (NotFound, IllegalMove) as error:
        raise HTTPException(400, f"{error}.") from None
    return RedirectResponse("/models", 303)


ROUTES = [Route("/models/acknowledge", acknowledge, methods=["POST"])]
