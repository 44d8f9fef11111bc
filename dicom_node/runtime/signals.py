"""Signals to a node's processes: to stop, to read the configuration again; that the supervisor is gone; and: ready."""

import ctypes
import os
import signal
import sys
import threading
import time

PARENT_VARIABLE = "DICOM_NODE_PARENT_PID"
"""Names the supervisor in the environment of its children."""
READY_VARIABLE = "DICOM_NODE_READY_FD"
"""Names, in the environment of a child, the descriptor to which it writes once it does its work."""
PR_SET_PDEATHSIG = 1
LOOK_EVERY_S = 0.5
"""How long a process may sleep through a signal to stop."""


def is_child() -> bool:
    """True in a process that the supervisor started."""
    return PARENT_VARIABLE in os.environ


def die_with_parent() -> None:
    """In a child: be told to stop when the supervisor is gone, so that no half node keeps the port."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or sys.platform != "linux":
        return
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it is for the supervisor, even if the whole group gets it
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)


def say_ready() -> None:
    """In a child whose supervisor waits for it: its work has begun."""
    descriptor = os.environ.pop(READY_VARIABLE, None)
    if descriptor is not None:
        with os.fdopen(int(descriptor), "wb", buffering=0) as pipe:
            pipe.write(b"1")


class Stop(threading.Event):
    """An event that a signal's handler sets while the main thread waits for it.

    The kernel may give a signal to any thread, for instance to that of an association which has just begun. Python
    runs the handler only in the main thread, once that wakes. So the main thread must never sleep without a limit.
    """

    def __init__(self) -> None:
        super().__init__()
        # An Event's own lock cannot be taken twice. A handler that sets it while the main thread, inside `wait`, holds
        # that lock would wait for ever for the very code that it has interrupted.
        self._cond = threading.Condition(threading.RLock())

    def wait(self, timeout: float | None = None) -> bool:
        """As Event.wait. timeout: seconds; None waits until the event is set."""
        ends = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = LOOK_EVERY_S if ends is None else min(LOOK_EVERY_S, ends - time.monotonic())
            if left <= 0:
                break
            super().wait(left)
        return self.is_set()


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def reload_on_hangup() -> threading.Event:
    """An event that SIGHUP sets: read the configuration again."""
    asked = Stop()
    signal.signal(signal.SIGHUP, lambda *_: asked.set())
    return asked
