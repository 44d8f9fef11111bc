"""What Ray keeps alive on a host: it holds one worker process, the same command as anywhere else.

The worker is a process of its own, so that a model that crashes takes nothing of Ray with it. It ends in an orderly
way, handing its job back, when the actor is gone for whatever reason: see `signals.die_with_parent`.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

from dicom_node.runtime.signals import PARENT_VARIABLE

DRAIN_S = 60.0
"""A worker that was asked to end has this long, as one below a supervisor."""
SOON_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 10.0, 300.0
"""A worker that ended sooner after its start than that waits for the next one: twice as long each time."""
OF_RAY = ("RAY_", "OMP_NUM_THREADS")
"""What Ray puts into the environment of its processes. A worker is to know nothing of it: threads are a setting."""


@dataclass(frozen=True)
class WorkerState:
    """One worker, as its actor knows it. pid: 0 if it does not run; since: Unix seconds of its last start.

    starts: how often this actor has started it; status: exit status of the last one that ended, if any did.
    """

    host: str
    pid: int
    since: float
    starts: int
    status: int | None


class WorkerActor:
    """Holds one worker process.

    configuration: this host's own file. pool, number: which worker it is. device: see inference/device.py.
    Few short strings on purpose: Ray keeps them, and restarts the actor with them.
    """

    def __init__(self, configuration: str, pool: str, number: str, device: str) -> None:
        self._arguments = ["work", "--config", configuration, "--device", device, "--number", number]
        self._pool = pool
        self._process: subprocess.Popen[bytes] | None = None
        self._since = 0.0
        self._starts = 0
        # Of the monotonic clock: a clock that is set back must not keep a worker away.
        self._started, self._pause_s = 0.0, 0.0
        self._status: int | None = None
        self._ends_at: float | None = None

    def run(self) -> WorkerState:
        """Start the worker unless it runs. To be called again and again: Ray restarts an actor, but no work in it."""
        if self._ends_at is None and not self._runs() and time.monotonic() >= self._started + self._pause_s:
            environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_RAY)}
            environment[PARENT_VARIABLE] = str(os.getpid())
            command = [sys.executable, "-m", "dicom_node", *self._arguments]
            self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
            now = time.monotonic()
            # One that ends soon each time, such as without its GPU, is started less and less often.
            soon = self._starts and now - self._started < self._pause_s + SOON_S
            self._pause_s = min(2 * self._pause_s or FIRST_PAUSE_S, LONGEST_PAUSE_S) if soon else 0.0
            self._started, self._since, self._starts = now, time.time(), self._starts + 1
        return self.look()

    def look(self) -> WorkerState:
        """How the worker is."""
        pid = self._process.pid if self._process is not None and self._runs() else 0
        return WorkerState(socket.gethostname(), pid, self._since, self._starts, self._status)

    def end(self) -> bool:
        """Let the worker finish or hand back its job. To be called until it says True: it has ended."""
        if self._process is None or not self._runs():
            return True
        if self._ends_at is None:
            self._process.send_signal(signal.SIGTERM)
            self._ends_at = time.monotonic() + DRAIN_S
        elif time.monotonic() > self._ends_at:
            self._process.kill()
        return False

    def _runs(self) -> bool:
        if self._process is None:
            return False
        status = self._process.poll()
        if status is not None:
            self._status = status
        return status is None
