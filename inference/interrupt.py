"""Lets work that nobody waits for be left between two of its steps, when something comes that somebody waits for."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")

_asked = threading.local()


class Interrupted(Exception):
    """Work was left undone because it was asked to stop; nothing is wrong with it."""


@contextmanager
def interruptible(stop: Callable[[], bool]) -> Iterator[None]:
    """Let every `checkpoint` that this thread passes in the block raise Interrupted once `stop()` is true."""
    _asked.stop = stop
    try:
        yield
    finally:
        _asked.stop = None


def checkpoint() -> None:
    """A place where work may be left. Raises Interrupted, and only inside `interruptible`."""
    stop: Callable[[], bool] | None = getattr(_asked, "stop", None)
    if stop is not None and stop():
        raise Interrupted


def as_interruptible(work: Callable[[], Result]) -> Callable[[], Result]:
    """Work for another thread, which is left at its checkpoints when this thread's would be."""
    stop: Callable[[], bool] | None = getattr(_asked, "stop", None)
    if stop is None:
        return work

    def run() -> Result:
        with interruptible(stop):
            return work()

    return run
