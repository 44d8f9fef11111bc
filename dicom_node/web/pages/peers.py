"""Peers: who sends, who was refused and why, where results go, and whether each of them answers."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from config.settings import Destination, Settings, Source
from dicom_node.errors import NodeError
from dicom_node.gateways.kinds import gateway
from dicom_node.runtime.certificate_expiry import DAY_S, expiries
from dicom_node.scu import own_receiver
from dicom_node.scu.store import EchoAnswer, echo
from dicom_node.web.context import context_of
from dicom_node.web.pages.navigation import Entry
from dicom_node.web.pages.render import render
from dicom_node.web.security.audited import audited
from dicom_node.web.security.guard import field, require
from dicom_node.web.security.roles import Role
from storage import pauses, senders
from storage.senders import Sender
from storage.status import status

NAVIGATION = Entry("Peers", "/peers")
DAYS = 7
ECHO_S = 10.0
OWN = ""
"""The name of the node's own receiver in the form."""
_echoes = threading.BoundedSemaphore(2)


@dataclass(frozen=True)
class SourceRow:
    """One AE title: as the settings name it, as it was seen, or both. last_at: of its latest series or image, ever."""

    ae_title: str
    source: Source | None
    sent: Sender | None
    last_at: float | None


@require(Role.VIEWER)
def peers(request: Request) -> Response:
    """The page."""
    return render(request, "peers.html", **_values(request))


@require(Role.OPERATOR)
def ask(request: Request) -> Response:
    """Ask a destination, or the node's own receiver, whether it answers: a DICOM peer by C-ECHO."""
    context, name = context_of(request), field(request, "destination")
    asking = _asking(context.settings, name)
    if not _echoes.acquire(blocking=False):
        raise HTTPException(429, "Two peers are being asked already. Try again in a moment.")
    try:
        answer = asking()
    finally:
        _echoes.release()
    outcome = "ANSWERED" if answer.ok else "SILENT"
    audited(request, "web.echo", outcome=outcome, destination=name or "the node's own receiver")
    if "HX-Request" in request.headers:
        return render(request, "echo.html", answer=answer)
    return render(request, "peers.html", **_values(request, {name: answer}))


def _values(request: Request, answers: dict[str, EchoAnswer] | None = None) -> dict[str, Any]:
    context, now = context_of(request), time.time()
    settings, day, since = context.settings, now - DAY_S, now - DAYS * DAY_S
    with context.database.read() as tx:
        seen, last = senders.senders(tx, day), senders.last_series(tx)
        refused, images = senders.refusals(tx, since), senders.refused_images(tx)
        counts = status(tx, now)["destinations"]
        paused = {(str(one.kind), one.name): one for one in pauses.all_of(tx)}
    return {
        "settings": settings,
        "sources": list(_sources(settings, seen, last)),
        "refusals": refused,
        "refused_images": images,
        "counts": counts,
        "paused": paused,
        "certificates": expiries(settings, now),
        "answers": answers or {},
        "days": DAYS,
        "now": now,
    }


def _sources(settings: Settings, seen: list[Sender], last: dict[str, float]) -> Iterator[SourceRow]:
    by_title = {sender.ae_title: sender for sender in seen}
    named = {source.ae_title: source for source in settings.sources}
    strangers = sorted((by_title.keys() | last.keys()) - named.keys(), key=lambda title: -last.get(title, 0.0))
    for title in (*named, *strangers):
        sent = by_title.get(title)
        last_at = max(last.get(title, 0.0), sent.last_at if sent else 0.0)
        yield SourceRow(title, named.get(title), sent, last_at or None)


def _asking(settings: Settings, name: str) -> Callable[[], EchoAnswer]:
    """The question to ask, and as whom. Raises HTTPException."""
    patience = {"connect_timeout_s": ECHO_S, "response_timeout_s": ECHO_S}
    caller = settings.sender.model_copy(update=patience)
    if name == OWN:
        try:
            title = own_receiver.calling_ae(settings)
        except NodeError as error:
            raise HTTPException(409, f"{error}") from None
        return partial(echo, own_receiver.address(settings), caller.model_copy(update={"calling_ae_title": title}))
    found = settings.destination(name)
    if found is None:
        raise HTTPException(404, "There is no destination of that name.")
    if isinstance(found, Destination):
        return partial(echo, found, caller)
    try:
        return gateway(found, settings.model_copy(update={"sender": caller})).test
    except NodeError as error:
        raise HTTPException(409, f"{error}") from None


ROUTES = [Route("/peers", peers, methods=["GET"]), Route("/peers/echo", ask, methods=["POST"])]
