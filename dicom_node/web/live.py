"""Pages that stay up to date by server-sent events.

One text is made every few seconds, for all who watch, and only while somebody does. Streams are few: above the limit
a browser is told to come back later, and its page stays as it was when it was opened.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from dicom_node.web.security import logins
from dicom_node.web.security.guard import current_user

EVERY_S = 3.0
ASK_AGAIN_S = 15.0
"""How often a stream checks that its user is still logged in."""
LONGEST_S = 600.0
PER_USER = 8


class Streams:
    """The open streams of this process; used in the event loop only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    def may_open(self, user: str) -> bool:
        """False if there are too many, in all or of this user."""
        return self._open.total() < self._most and self._open[user] < PER_USER

    def opened(self, user: str) -> None:
        """One more."""
        self._open[user] += 1

    def closed(self, user: str) -> None:
        """One fewer."""
        self._open[user] -= 1
        self._open += Counter()  # forgets those that have none

    @property
    def count(self) -> int:
        """How many are open."""
        return self._open.total()


class Shared:
    """A text that is the same for all who watch. make: asks the index; it runs in a thread."""

    def __init__(self, make: Callable[[], str], every_s: float = EVERY_S) -> None:
        self._make = make
        self._every_s = every_s
        self._lock = asyncio.Lock()
        self._made_at = float("-inf")
        self._text = ""

    async def text(self) -> str:
        """As it was at most `every_s` seconds ago."""
        async with self._lock:
            if time.monotonic() - self._made_at >= self._every_s:
                self._text = await run_in_threadpool(self._make)
                self._made_at = time.monotonic()
            return self._text


def stream(request: Request, shared: Shared, every_s: float = EVERY_S) -> Response:
    """The answer to a browser's EventSource: the text now, and again whenever it has changed."""
    streams: Streams = request.app.state.streams
    if not streams.may_open(current_user(request).name):
        return PlainTextResponse("Too many pages are kept up to date.", 503, {"Retry-After": "30"})
    return StreamingResponse(_events(request, shared, streams, every_s), media_type="text/event-stream")


async def _events(request: Request, shared: Shared, streams: Streams, every_s: float) -> AsyncIterator[str]:
    user, sent, asked, began = current_user(request).name, "", time.monotonic(), time.monotonic()
    if not streams.may_open(user):
        return
    streams.opened(user)
    try:
        while time.monotonic() - began < LONGEST_S and not request.app.state.ending.is_set():
            text = await shared.text()
            yield event(text) if text != sent else ": nothing new\n\n"
            sent = text
            await asyncio.sleep(every_s)
            if time.monotonic() - asked > ASK_AGAIN_S:
                asked = time.monotonic()
                if await run_in_threadpool(logins.user_of, request) is None:
                    return
    finally:
        streams.closed(user)


def event(text: str) -> str:
    """One server-sent event. text: any lines."""
    return "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"
