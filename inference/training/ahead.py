"""Load samples before they are needed, so that the network does not wait for a disk; measure how long it waited."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")

DEPTH = 4
THREADS = 2


class Ahead(Generic[T]):
    """Loads samples in the order in which they will be requested.

    load: returns a sample by its number; called from other threads.  waited_s: seconds spent waiting for samples.
    """

    def __init__(self, load: Callable[[int], T], depth: int = DEPTH) -> None:
        self._load, self._depth = load, depth
        self._upcoming: deque[int] = deque()
        self._loading: deque[tuple[int, Future[T]]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self.waited_s = 0.0

    def expect(self, samples: Sequence[int]) -> None:
        """Begin to load these samples, in this order, and drop those expected before. An empty list stops loading."""
        for _, future in self._loading:
            future.cancel()
        self._loading.clear()
        self._upcoming = deque(samples)
        if samples and self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ahead")
        if not samples and self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._refill()

    def take(self, sample: int) -> T:
        """Return a sample; it is loaded at once if it was not the next one expected."""
        started = time.perf_counter()
        try:
            if not self._loading or self._loading[0][0] != sample:
                return self._load(sample)
            return self._loading.popleft()[1].result()
        finally:
            self.waited_s += time.perf_counter() - started
            self._refill()

    def _refill(self) -> None:
        while self._pool is not None and self._upcoming and len(self._loading) < self._depth:
            sample = self._upcoming.popleft()
            self._loading.append((sample, self._pool.submit(self._load, sample)))
