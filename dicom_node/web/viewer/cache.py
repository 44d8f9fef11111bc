"""What several requests need is made once and kept, up to a number of bytes, whatever is opened."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class ByteCache:
    """Values by key. Above `most_bytes`, those that were not asked for longest are let go."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._making: dict[Hashable, Future[Any]] = {}
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """What the kept values take."""
        return self._bytes

    def get(self, key: Hashable, make: Callable[[], T], size_of: Callable[[T], int]) -> T:
        """The kept value, or that of `make`. Requests that come while it is made wait for it; errors go to all of them.

        size_of: its bytes.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                value: T = self._kept[key][0]
                return value
            waiting = self._making.get(key)
            if waiting is None:
                self._making[key] = made = Future[Any]()
        if waiting is not None:
            awaited: T = waiting.result()
            return awaited
        return self._make(key, made, make, size_of)

    def forget(self, key: Hashable) -> None:
        """Let a value go, if it is kept: it no longer holds."""
        with self._lock:
            self._bytes -= self._kept.pop(key, (None, 0))[1]

    def _make(self, key: Hashable, made: Future[Any], make: Callable[[], T], size_of: Callable[[T], int]) -> T:
        try:
            value = make()
            size = size_of(value)
        except BaseException as error:
            with self._lock:
                del self._making[key]
            made.set_exception(error)
            raise
        with self._lock:
            del self._making[key]
            self._keep(key, value, size)
        made.set_result(value)
        return value

    def _keep(self, key: Hashable, value: object, size: int) -> None:
        if size > self.most_bytes:
            return
        self._kept[key] = value, size
        self._bytes += size
        while self._bytes > self.most_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed
