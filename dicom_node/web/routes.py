"""All pages, in the order of the navigation. A new page: its module in pages/, and its name here."""

from types import ModuleType

from starlette.routing import BaseRoute, Mount

from dicom_node.web.pages import (
    account,
    acknowledging,
    audit,
    login,
    models,
    not_analysed,
    oidc,
    pauses,
    peers,
    pictures,
    series,
    settings,
    today,
    worklist,
)
from dicom_node.web.pages.navigation import Entry
from dicom_node.web.static_files import CachedFiles

# In the order of the navigation, one on each line.
PAGES: tuple[ModuleType, ...] = (
    today,
    worklist,
    series,
    pictures,
    not_analysed,
    models,
    acknowledging,
    audit,
    peers,
    pauses,
    settings,
    account,
    login,
    oidc,
)


def routes() -> list[BaseRoute]:
    """Every route of the application."""
    found: list[BaseRoute] = [route for page in PAGES for route in page.ROUTES]
    return [*found, Mount("/static", CachedFiles(), name="static")]


def navigation() -> list[Entry]:
    """The entries of the navigation."""
    return [page.NAVIGATION for page in PAGES if hasattr(page, "NAVIGATION")]
