"""Templates: everything from outside is escaped, and a name that is missing is an error, not an empty space."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from dicom_node.web.pages import words
from dicom_node.web.security.guard import FORM_FIELD, form_token
from dicom_node.web.security.roles import User

ROOT = Path(__file__).resolve().parents[1]
STATIC = ROOT / "static"


@cache
def templates() -> Environment:
    """The templates of the pages, compiled once."""
    made = Environment(
        loader=FileSystemLoader(ROOT / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["static"] = static_url
    made.filters.update(words.FILTERS)
    return made


def render(
    request: Request, name: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """A page or a part of one. values: what the template names."""
    return HTMLResponse(render_text(request, name, **values), status, dict(headers or {}))


def render_text(request: Request, name: str, **values: Any) -> str:
    """The text of a template for this request's user."""
    user: User | None = getattr(request.state, "user", None)
    token = form_token(request)
    shared = {
        "user": user,
        "path": request.url.path,
        "navigation": [entry for entry in request.app.state.navigation if user and user.may(entry.role)],
        "csrf_token": token,
        "csrf_field": lambda: Markup('<input type="hidden" name="{}" value="{}">').format(FORM_FIELD, token),
    }
    return templates().get_template(name).render(shared | values)


@cache
def static_url(name: str) -> str:
    """The address of a file under static/; it changes with its content, so that browsers may keep it."""
    content = (STATIC / name).read_bytes()
    return f"/static/{name}?v={hashlib.sha256(content).hexdigest()[:12]}"
