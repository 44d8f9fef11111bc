"""Today: how is the node, in words; then the counts."""

import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dicom_node.runtime.liveness import look
from dicom_node.web.context import context_of
from dicom_node.web.pages.navigation import Entry
from dicom_node.web.pages.render import render
from dicom_node.web.security.guard import require
from dicom_node.web.security.roles import Role
from storage.status import status

NAVIGATION = Entry("Today", "/")


@require(Role.VIEWER)
def today(request: Request) -> Response:
    """The first page."""
    context = context_of(request)
    with context.database.read() as tx:
        counts = status(tx, time.time())
    return render(request, "today.html", counts=counts, alive=look(context.settings))


ROUTES = [Route("/", today)]
