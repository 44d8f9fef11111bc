"""Today: how is the node, in words; then what came and went in the last 24 hours."""

import time
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dicom_node.web.charts import stacked
from dicom_node.web.context import WebContext, context_of
from dicom_node.web.health import examine
from dicom_node.web.hours import Hour, LastHours
from dicom_node.web.live import Shared, stream
from dicom_node.web.pages.navigation import Entry
from dicom_node.web.pages.render import render, templates
from dicom_node.web.pages.words import hour
from dicom_node.web.security.guard import require
from dicom_node.web.security.roles import Role
from storage.activity import Activity
from storage.turnarounds import of_days

NAVIGATION = Entry("Today", "/")
LABEL_EVERY = 3


class Today:
    """What the page shows, the same for everybody."""

    def __init__(self, context: WebContext) -> None:
        self._context = context
        self._hours = LastHours()
        self.shared = Shared(self.text)

    def text(self) -> str:
        """The part of the page that is kept up to date."""
        return templates().get_template("today_live.html").render(self.values(time.time()))

    def values(self, now: float) -> dict[str, Any]:
        """now: Unix seconds. Raises StorageError."""
        context = self._context
        health = examine(context.settings, context.database, context.files, now)
        with context.database.read() as tx:
            hours = self._hours.read(tx, now)
            days = of_days(tx, [_day(now), _day(now - 86400)])
        rows = [[("failed", h.failed), ("withheld", h.not_analysed), ("analysed", h.analysed)] for h in _whats(hours)]
        return {
            "now": now,
            "health": health,
            "counts": health.counts,
            "last": Activity.total(_whats(hours)),
            "hours": hours,
            "chart": stacked(rows),
            "labels": [hour(one.begins) for one in hours[::LABEL_EVERY]],
            "days": days,
            "zone": datetime.fromtimestamp(now).astimezone().strftime("%Z"),
        }


@require(Role.VIEWER)
def today(request: Request) -> Response:
    """The first page."""
    return render(request, "today.html", live=_today_of(request).text())


@require(Role.VIEWER)
async def live(request: Request) -> Response:
    """What changes on it."""
    return stream(request, _today_of(request).shared)


def _today_of(request: Request) -> Today:
    state = request.app.state
    if not hasattr(state, "today"):
        state.today = Today(context_of(request))
    found: Today = state.today
    return found


def _whats(hours: list[Hour]) -> list[Activity]:
    return [hour.what for hour in hours]


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


ROUTES = [Route("/", today), Route("/live/today", live)]
