"""HTTP connections that cannot be used up: a request must begin, and arrive, in time; idle ones make room for others.

uvicorn waits without end for a request's first bytes, and answers 503 to everybody when it has too many connections.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0
"""From a connection, or the first byte of a further request, to the end of the request's headers."""


def bounded(max_connections: int) -> type[asyncio.Protocol]:
    """uvicorn's protocol with these bounds."""

    class Bounded(H11Protocol):
        """One connection."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.born = self.loop.time()
            # Noted before a proxy's header changes what counts as the client.
            self.app_state = {**self.app_state, "peer": self.client[0] if self.client else ""}
            self._expect_request()
            _make_room(self.connections, max_connections)

        def data_received(self, data: bytes) -> None:
            if self.is_waiting and self._timer is None:
                self._expect_request()
            super().data_received(data)
            if not self.is_waiting:
                self._forget_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_timer()
            super().connection_lost(exc)

        @property
        def is_waiting(self) -> bool:
            """No request of it is being answered."""
            return self.cycle is None or self.cycle.response_complete

        def _expect_request(self) -> None:
            self._timer = self.loop.call_later(REQUEST_S, self._too_slow)

        def _forget_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if self.is_waiting:
                self.transport.abort()

    return Bounded


def _make_room(connections: Iterable[Any], most: int) -> None:
    """Above the limit, close the oldest idle connection of the address that has the most of them."""
    open_ones = [one for one in connections if not one.transport.is_closing()]
    idle = [one for one in open_ones if one.is_waiting]
    if len(open_ones) <= most or not idle:
        return
    counted = Counter(one.client[0] if one.client else "" for one in idle)
    busiest = counted.most_common(1)[0][0]
    oldest = min((one for one in idle if (one.client[0] if one.client else "") == busiest), key=_age)
    oldest.transport.abort()


def _age(connection: Any) -> float:
    born: float = connection.born
    return born
