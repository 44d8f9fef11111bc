"""Settings: what the node runs with, where each value comes from, and what changed when. Secrets are hidden."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from config.errors import ConfigError
from config.settings import Settings
from config.shown import DEFAULT, all_shown, origins
from dicom_node.web.context import context_of
from dicom_node.web.pages.navigation import Entry
from dicom_node.web.pages.render import render
from dicom_node.web.security.guard import require
from dicom_node.web.security.roles import Role
from storage import audit

NAVIGATION = Entry("Settings", "/settings")
EVENTS = ("node.configuration-changed", "node.configuration-refused", "node.started", "node.stopped")
LATEST = 20


@dataclass(frozen=True)
class Row:
    """One setting. name: without its section. origin: where its value comes from. about: what it is for."""

    name: str
    value: str
    origin: str
    about: str

    @property
    def is_given(self) -> bool:
        """Somebody set it."""
        return self.origin != DEFAULT


@require(Role.VIEWER)
def settings_page(request: Request) -> Response:
    """The page."""
    context = context_of(request)
    try:
        come_from = origins(context.settings, context.config_file)
    except ConfigError:
        come_from = {}
    sections = list(_sections(context.settings, come_from))
    with context.database.read() as tx:
        history = [row for event in EVENTS for row in audit.search(tx, event=event, limit=LATEST)]
    history = sorted(history, key=lambda row: row["id"], reverse=True)[:LATEST]
    given = sum(row.is_given for _, rows in sections for row in rows)
    return render(request, "settings.html", sections=sections, history=history, given=given)


def _sections(settings: Settings, come_from: dict[str, str]) -> Iterator[tuple[str, list[Row]]]:
    found: dict[str, list[Row]] = {}
    for key, value in all_shown(settings).items():
        section, _, name = key.rpartition(".")
        row = Row(name, value, come_from.get(key, ""), _about(key))
        found.setdefault(section or "the node", []).append(row)
    yield from found.items()


def _about(key: str) -> str:
    """What the settings' own text says about it."""
    table: Any = Settings
    parts = key.split(".")
    for part in parts[:-1]:
        table = table.model_fields[part].annotation
    text = table.model_fields[parts[-1]].description if issubclass(table, BaseModel) else ""
    return " ".join((text or "").split())


ROUTES = [Route("/settings", settings_page)]
