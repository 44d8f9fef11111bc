"""What every request passes first: is it meant for us, is it small enough, does it come and go fast enough; and what
every answer carries.

Nothing of a request but its method and its route's pattern is logged: paths and queries may hold what a person typed.
"""

import asyncio
import time
from ipaddress import ip_address, ip_network

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from config.settings import Settings
from dicom_node.web.security.logins import is_over_tls

log = structlog.get_logger()

MAX_BODY_BYTES = 256 * 1024
BODY_S = 20.0
"""A form must have arrived whole within this time."""
SEND_S = 30.0
"""A browser must take each part of an answer within this time."""
PICTURES = ("picture", "first", "overlay", "hounsfield")
"""Names of the routes whose answers are one step of a viewer."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with "no-referrer" forms come with the origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


class Shield:
    """ASGI middleware, the outermost one."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        web = settings.web
        self._names = {name.casefold() for name in (web.names or (*THIS_MACHINE, web.host))}
        self._proxies = [ip_network(network, strict=False) for network in web.behind_proxy]
        self._headers = dict(HEADERS)
        if is_over_tls(settings):
            self._headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, self._headers, time.monotonic())
        refused = self._refused(scope)
        if refused:
            await _say(answer, *refused)
        else:
            body = _Body(receive)
            try:
                await self._app(scope, body.receive, answer.send)
            except _TooLarge:
                await _say(answer, 413, "The form is too large.")
            except _TooSlow:
                await _say(answer, 408, "The form took too long.")
        _log(scope, answer)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        if self._proxies and not self._is_proxy(scope):
            return 403, "Only the reverse proxy may connect."
        if _host_of(headers.get("host", "")) not in self._names:
            return 421, "This node is not known by that name; see names in [web]."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return 413, "The form is too large."
        return None

    def _is_proxy(self, scope: Scope) -> bool:
        """The peer of the connection, which the protocol notes before a header changes it."""
        peer = scope.get("state", {}).get("peer") or (scope.get("client") or ("",))[0]
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._proxies)


class _TooLarge(Exception):
    """More came than any form of ours has."""


class _TooSlow(Exception):
    """It came too slowly."""


class _Body:
    """The request's body, bounded in size and time."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._size = 0
        self._deadline = time.monotonic() + BODY_S
        self._whole = False

    async def receive(self) -> Message:
        """The next part; after the last one, the end of the connection."""
        if self._whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - time.monotonic()))
        except TimeoutError:
            raise _TooSlow from None
        self._size += len(message.get("body", b""))
        if self._size > MAX_BODY_BYTES:
            raise _TooLarge
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message


class _Answer:
    """The answer on its way: with our headers, and never waiting for a browser that does not read."""

    def __init__(self, send: Send, headers: dict[str, str], started: float) -> None:
        self._send = send
        self._headers = headers
        self.started = started
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        """Send one part. Raises OSError if the browser does not take it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        try:
            await asyncio.wait_for(self._send(message), SEND_S)
        except TimeoutError:
            raise ConnectionError("the browser does not read") from None


async def _say(answer: _Answer, status: int, text: str) -> None:
    if answer.status is not None:
        raise ConnectionError(text)  # too late for another answer: the connection ends
    body = text.encode() + b"\n"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await answer.send({"type": "http.response.start", "status": status, "headers": headers})
    await answer.send({"type": "http.response.body", "body": body})


def _host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    host = header.casefold().strip()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _log(scope: Scope, answer: _Answer) -> None:
    route = scope.get("route")
    # Pictures come by the dozen a second while somebody looks through a series.
    write = log.debug if getattr(route, "name", "") in PICTURES and answer.status == 200 else log.info
    write(
        "page",
        method=scope["method"] if scope["method"].isalpha() and len(scope["method"]) < 8 else "?",
        route=getattr(route, "path", "none"),
        status=answer.status,
        ms=round((time.monotonic() - answer.started) * 1000),
    )
