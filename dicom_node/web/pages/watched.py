"""Which patients somebody saw on a page that is kept up to date: one audit row a minute, not one for each line."""

import threading
import time
from collections.abc import Callable, Iterable

from starlette.requests import Request

from dicom_node.web.security.guard import address_of, current_user

EVERY_S = 60.0
MOST_WATCHERS = 1000


class Watched:
    """What each user has seen since the last audit row. clock: seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], set[int]] = {}
        self._noted: dict[tuple[str, str], tuple[float, set[int]]] = {}

    def add(self, request: Request, series: Iterable[int]) -> list[list[int]]:
        """Note what a page showed. Returns what is to be audited now: the series that came since the last row."""
        who = current_user(request).name, address_of(request)
        return self.add_for(who, set(series))

    def add_for(self, who: tuple[str, str], shown: set[int]) -> list[list[int]]:
        """The same, by user and address. The first look is always audited."""
        now = self._clock()
        with self._lock:
            noted_at, before = self._noted.get(who, (float("-inf"), set()))
            waiting = self._seen.setdefault(who, set())
            waiting |= shown - before
            if not waiting or now - noted_at < EVERY_S:
                return []
            due = sorted(waiting)
            self._noted[who] = now, set(shown)
            waiting.clear()
            while len(self._noted) > MOST_WATCHERS:
                oldest = next(iter(self._noted))
                del self._noted[oldest]
                self._seen.pop(oldest, None)
            return [due]
