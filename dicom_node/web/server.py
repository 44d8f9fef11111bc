"""The application and the process that serves it.

It is a process of its own, so that no page can hold up an image: it asks the index by short read-only questions, and
its own writes (audit rows, acts) are short transactions.
"""

import asyncio
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from config.settings import Settings
from dicom_node.errors import NodeError
from dicom_node.web import monitoring
from dicom_node.web.certificate import Certificate
from dicom_node.web.connections import bounded
from dicom_node.web.context import WebContext
from dicom_node.web.dicomweb import server as dicomweb
from dicom_node.web.dicomweb.access import Folded
from dicom_node.web.dicomweb.told import Headers
from dicom_node.web.live import Streams
from dicom_node.web.pages.render import render
from dicom_node.web.routes import navigation, routes
from dicom_node.web.security.keys import Keys
from dicom_node.web.security.shield import HEADERS, Shield
from storage.database import Database
from storage.errors import (
    DatabaseBusy,
    DatabaseReadOnly,
    IllegalMove,
    NotFound,
    StaleLease,
    StorageError,
    StorageFull,
    StoreReplaced,
    StoreUnavailable,
)
from storage.files import FileStore

if TYPE_CHECKING:
    from dicom_node.web.security.provider import Provider

log = structlog.get_logger()

THREADS = 12
"""Requests that are worked on at once; others wait for one of them."""
DRAIN_S = 3
NO_INDEX = (
    (DatabaseBusy, "The index is busy. Try again in a moment."),
    (StorageFull, "The disk is full: a look at patient data could not be recorded, so nothing is shown."),
    (DatabaseReadOnly, "The index cannot be written: a look at patient data could not be recorded."),
    (StoreUnavailable, "The store of the images does not answer. Try again in a moment."),
    (StoreReplaced, "Index or files were replaced under the node. It starts again when they belong together."),
)
LOOK_EVERY_S = 5.0
"""How often the certificate's files are looked at."""


def build_app(context: WebContext) -> Starlette:
    """The pages of one node."""
    web = context.settings.web
    app = Starlette(
        routes=[
            *routes(),
            *(monitoring.ROUTES if web.monitoring else []),
            *(dicomweb.ROUTES if web.dicomweb.enabled else []),
        ],
        middleware=[Middleware(Shield, settings=context.settings)],
        exception_handlers={
            HTTPException: _refusal,  # type: ignore[dict-item]
            StorageError: _without_index,  # type: ignore[dict-item]
            Exception: _mistake,
        },
    )
    app.state.web = context
    app.state.navigation = navigation()
    app.state.streams = Streams(web.max_streams)
    app.state.dicomweb_headers, app.state.dicomweb_folded = Headers(), Folded()
    app.state.ending = threading.Event()
    return app


def serve(
    settings: Settings,
    database: Database,
    files: FileStore,
    stop: threading.Event,
    config_file: Path | None = None,
) -> None:
    """Answer until `stop` is set. Raises NodeError if the port is taken or the certificate does not fit."""
    where = f"{settings.web.host}:{settings.web.port}"
    try:
        provider = _provider(settings)
        keys = Keys.of(settings.data_dir)
        app = build_app(WebContext(settings, database, files, keys, config_file, provider=provider))
        certificate = Certificate.of(settings)
        server = uvicorn.Server(_uvicorn(settings, app, certificate))
        threading.Thread(target=_end_when, args=(stop, app, server, certificate), name="web stop", daemon=True).start()
        log.info("pages listen", host=settings.web.host, port=settings.web.port)
        asyncio.run(_serve(server))
    except (OSError, SystemExit) as error:
        raise NodeError(f"cannot serve the pages at {where}: {error}") from error


def _provider(settings: Settings) -> "Provider | None":
    """Raises OSError if its authorities cannot be read; NodeError if the libraries are not installed."""
    if not settings.web.oidc.issuer:
        return None
    try:
        from dicom_node.web.security.provider import Provider
    except ModuleNotFoundError as error:
        raise NodeError(f"[web.oidc] needs {error.name}: pip install 'dicom-node[sso]'") from None

    return Provider(settings.web.oidc)


async def _serve(server: uvicorn.Server) -> None:
    from anyio import to_thread

    to_thread.current_default_thread_limiter().total_tokens = THREADS
    await server._serve()  # without uvicorn's own handling of signals: ours is in place


def _end_when(stop: threading.Event, app: Starlette, server: uvicorn.Server, certificate: Certificate | None) -> None:
    while not stop.wait(LOOK_EVERY_S):
        if certificate is not None:
            certificate.look()
    app.state.ending.set()
    server.should_exit = True


def _uvicorn(settings: Settings, app: Starlette, certificate: Certificate | None) -> uvicorn.Config:
    web = settings.web
    served = ProxyHeadersMiddleware(app, trusted_hosts=list(web.behind_proxy)) if web.behind_proxy else app  # type: ignore[arg-type]
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # its messages quote what browsers send
    return uvicorn.Config(
        served,
        host=web.host,
        port=web.port,
        http=bounded(web.max_connections),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=DRAIN_S,
        ssl_certfile=web.tls_certificate,
        ssl_keyfile=web.tls_key,
        ssl_context_factory=(lambda _config, _default: certificate.context) if certificate else None,
    )


def _refusal(request: Request, error: HTTPException) -> Response:
    """An error that a person caused, or met, in words."""
    words = {404: "There is no such page.", 405: "That cannot be done here."}
    text = (
        words.get(error.status_code, error.detail)
        if error.detail in ("Not Found", "Method Not Allowed")
        else error.detail
    )
    return render(request, "refusal.html", status=error.status_code, headers=error.headers, text=text)


def _mistake(request: Request, error: Exception) -> Response:
    """A mistake of ours: the log says where, and nobody sees more."""
    log.error("a page failed", route=getattr(request.scope.get("route"), "path", "none"), exc_info=error)
    # This answer does not pass the shield.
    return Response("This page failed; the node's log says where.\n", 500, HEADERS | {"Cache-Control": "no-store"})


def _without_index(request: Request, error: StorageError) -> Response:
    """What the index refuses, or cannot do: in words."""
    if isinstance(error, NotFound):
        return render(request, "refusal.html", status=404, text="That is not there, or no longer.")
    if isinstance(error, IllegalMove | StaleLease):
        return render(request, "refusal.html", status=409, text="It has moved on meanwhile. Look at it again.")
    log.warning("the index does not answer the pages", error=type(error).__name__)
    text = next(
        (words for kind, words in NO_INDEX if isinstance(error, kind)), "The index cannot be used. Its log says why."
    )
    return render(request, "refusal.html", status=503, text=text)
