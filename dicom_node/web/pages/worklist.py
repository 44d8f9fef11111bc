"""Worklist: the series of the node, newest first, whatever is asked for; new ones appear by themselves.

What is asked about equipment and outcomes stands in the address, so that it can be kept as a bookmark. What names a
patient never does: it comes by POST.
"""

import hashlib
import json
import math
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dicom_node.web.context import context_of
from dicom_node.web.pages.navigation import Entry
from dicom_node.web.pages.render import render, render_text
from dicom_node.web.pages.watched import Watched
from dicom_node.web.pages.worklist_words import STANDINGS, headline, meaning_of, outcome_of
from dicom_node.web.security.audited import audited
from dicom_node.web.security.guard import field, require
from dicom_node.web.security.roles import Role
from storage import worklist
from storage.listings import Said, Standing
from storage.pseudonyms import Pseudonyms
from storage.worklist import Order, Page, Place, Search

NAVIGATION = Entry("Worklist", "/worklist")
# Fields of the form and the address, by the name in `Search`. None of them names a patient.
FIELDS = {
    "source": "source",
    "scanner": "scanner",
    "outcome": "standing",
    "reason": "reason_code",
    "model": "model",
    "finding": "finding",
}
LARGEST = 2**62
MOST_GROUPED = 3
MOST_CHOICES = 200
LONGEST = 324


@require(Role.VIEWER)
def show(request: Request) -> Response:
    """The page."""
    return _page(request, _search({**request.query_params, "text": ""}))


@require(Role.VIEWER)
def ask(request: Request) -> Response:
    """What the form asks for. Without a name of a patient it becomes an address."""
    given = _given(request)
    search = _search(given)
    if search.text:
        return _page(request, search, given.get("after", ""))
    return RedirectResponse(f"/worklist?{urlencode(_address(search) | _after(given))}".rstrip("?"), 303)


@require(Role.VIEWER)
def lines(request: Request) -> Response:
    """The lines anew, for a page that is kept up to date; nothing if they are the same."""
    search = replace(_search(_given(request)), text="")
    page = _find(request, search, None)
    text = render_text(request, "worklist_lines.html", **_lines(search, page, live=True))
    if field(request, "held") == _digest(page):
        return Response(status_code=204)
    for series in _watched_of(request).add(request, [line.series_pk for line in page.lines]):
        audited(request, "web.read", page="worklist", live=True, series=series)
    return Response(text, media_type="text/html")


def _page(request: Request, search: Search, after: str | None = None) -> Response:
    given_after = after if after is not None else request.query_params.get("after", "")
    place = _place(given_after)
    page = _find(request, search, place)
    with context_of(request).database.read() as tx:
        choices = worklist.choices(tx)
        pending = worklist.count(tx, Search(standing=Standing.PENDING))
    live = place is None and not search.text and search.order is Order.RECEIVED and not search.backwards
    shown = list(dict.fromkeys(line.series_pk for line in page.lines))
    audited(request, "web.read", page="worklist", live=live or None, searched=bool(search.text) or None, series=shown)
    values: dict[str, Any] = {
        "search": search,
        "page": page,
        "headline": headline(search, page, pending),
        "choices": {name: found[:MOST_CHOICES] for name, found in choices.items()},
        "standings": STANDINGS,
        "reason_pairs": sorted(((code, meaning_of(code)) for code in choices["reason_code"]), key=lambda pair: pair[1]),
        "same": _same,
        "hidden": _hidden(search),
        "zone": datetime.now().astimezone().strftime("%Z"),
        "findings": {Said.POSITIVE: "positive", Said.NEGATIVE: "negative"},
        "days": (_day(search.since), _day(search.until - 1 if search.until is not None else None)),
        "place": place,
        "next": json.dumps([page.next.value, page.next.listing, *page.next.group]) if page.next else "",
        "longest": LONGEST,
        "pseudonyms": bool(context_of(request).settings.storage.pseudonym_key.get_secret_value()),
    }
    return render(request, "worklist.html", **values, **_lines(search, page, live=live))


def _lines(search: Search, page: Page, *, live: bool) -> dict[str, Any]:
    return {
        "lines": [(line, outcome_of(line)) for line in page.lines],
        "live": live,
        "digest": _digest(page),
        "by": search.order,
        "backwards": search.backwards,
    }


def _watched_of(request: Request) -> Watched:
    state = request.app.state
    if not hasattr(state, "watched"):
        state.watched = Watched()
    found: Watched = state.watched
    return found


def _digest(page: Page) -> str:
    return hashlib.sha256(repr(page.lines).encode("utf-8", "replace")).hexdigest()[:16]


def _find(request: Request, search: Search, place: Place | None) -> Page:
    context = context_of(request)
    key = context.settings.storage.pseudonym_key.get_secret_value()
    with context.database.read() as tx:
        return worklist.find(tx, search, place, Pseudonyms(key).of(search.text))


def _given(request: Request) -> dict[str, str]:
    names = ("text", "from", "to", "sort", "back", "after", *FIELDS)
    return {name: field(request, name) for name in names}


def _search(given: dict[str, str]) -> Search:
    """What was asked for; what cannot be meant is left out."""
    texts: dict[str, Any] = {name: given.get(field_, "").strip()[:LONGEST] for field_, name in FIELDS.items()}
    texts["standing"] = texts["standing"] if texts["standing"] in Standing.__members__ else ""
    texts["finding"] = texts["finding"] if texts["finding"] in Said.__members__ else ""
    since, until = midnight(given.get("from", "")), midnight(given.get("to", ""), 1)
    sort, _, back = given.get("sort", "").partition("-")
    order = Order(sort) if sort in set(Order) else Order.RECEIVED
    text = given.get("text", "").strip()[:LONGEST]
    return Search(text=text, since=since, until=until, order=order, backwards=back == "back", **texts)


def _address(search: Search) -> dict[str, str]:
    """The fields of an address that asks for the same."""
    found = {field_: getattr(search, name) for field_, name in FIELDS.items()}
    found |= {"from": _day(search.since), "to": _day(None if search.until is None else search.until - 1)}
    plain = search.order is Order.RECEIVED and not search.backwards
    found["sort"] = "" if plain else f"{search.order}{'-back' if search.backwards else ''}"
    return {name: value for name, value in found.items() if value}


def _same(values: list[str]) -> list[tuple[str, str]]:
    """Choices that are shown as they are."""
    return [(value, value) for value in values]


def _hidden(search: Search) -> Markup:
    """Fields that bring a form back to the same search."""
    fields = {**_address(search), "text": search.text}
    held = '<input type="hidden" name="{}" value="{}">'
    return Markup("").join(Markup(held).format(name, value) for name, value in fields.items() if value)


def _after(given: dict[str, str]) -> dict[str, str]:
    return {"after": given["after"]} if _place(given.get("after", "")) else {}


def _place(text: str) -> Place | None:
    """Where to go on, as `next` of a page says it; None if it does not."""
    try:
        value, listing, *group = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    if type(value) not in (int, float) or type(listing) is not int or not all(isinstance(one, str) for one in group):
        return None
    number = float(value) if abs(value) < LARGEST else math.inf
    if not math.isfinite(number) or not 0 <= listing < LARGEST or len(group) > MOST_GROUPED:
        return None
    return Place(number, listing, tuple(group))


def midnight(day: str, days: int = 0) -> float | None:
    """The beginning of a day in this machine's zone, so many days later; None if it is not one."""
    try:
        found = datetime.strptime(day, "%Y-%m-%d") + timedelta(days=days)
        return found.timestamp()
    except (ValueError, OverflowError):
        return None


def _day(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")


ROUTES = [
    Route("/worklist", show, methods=["GET"]),
    Route("/worklist", ask, methods=["POST"]),
    Route("/worklist/lines", lines, methods=["POST"]),
]
