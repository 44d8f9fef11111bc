"""`dicom-node run`: start receiver, scheduler, sender and workers together, and restart what dies.

Each child is a process of its own, so that a series that kills a worker stops nothing else. State lives in the
database only: a child can be killed and started again at any moment.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from config.settings import Settings
from dicom_node.errors import NodeError
from dicom_node.logs import KEY_VARIABLE, log_key

log = structlog.get_logger()

# A child that ends with this status must not be restarted: its configuration is wrong (EX_CONFIG of sysexits.h).
DO_NOT_RESTART = 78
LONGEST_PAUSE_S = 30.0
DRAIN_S = 60.0
PARENT_VARIABLE = "DICOM_NODE_PARENT_PID"
PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One supervised process.

    lock: descriptor of the node's lock, which the process keeps open as long as it lives.
    pause_s: wait before the next restart; doubles while it keeps dying at once.
    """

    name: str
    arguments: list[str]
    lock: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restart_at: float = 0.0
    pause_s: float = field(default=0.5)

    def start(self) -> None:
        """Start the process."""
        environment = {**os.environ, PARENT_VARIABLE: str(os.getpid()), KEY_VARIABLE: log_key()}
        command = [sys.executable, "-m", "dicom_node", *self.arguments]
        self.process = subprocess.Popen(command, env=environment, pass_fds=(self.lock,))
        self.started = time.monotonic()
        log.info("child started", child=self.name, pid=self.process.pid)


def children_of(settings: Settings, config_file: Path | None, lock: int) -> list[Child]:
    """The processes of one node."""
    config = ["--config", str(config_file)] if config_file else []
    receivers = settings.receiver.processes
    children = [
        Child("receive" if receivers == 1 else f"receive-{number}", ["receive", *config], lock)
        for number in range(receivers)
    ]
    children += [Child(name, [name, *config], lock) for name in ("schedule", "deliver")]
    for number, device in enumerate(settings.worker.devices):
        children.append(Child(f"work-{number}", ["work", "--device", device, *config], lock))
    return children


def run(settings: Settings, config_file: Path | None, stop: threading.Event, lock: int) -> None:
    """Keep all children running until `stop` is set, then drain them.

    lock: see node_lock.only_node.
    Raises NodeError when a child says that its configuration cannot work.
    """
    children = children_of(settings, config_file, lock)
    for child in children:
        child.start()
    try:
        while not stop.wait(0.2):
            for child in children:
                _tend(child)
    finally:
        _drain(children)


def _tend(child: Child) -> None:
    now = time.monotonic()
    if child.process is None:
        if now >= child.restart_at:
            child.start()
        return
    status = child.process.poll()
    if status is None:
        return
    if status == DO_NOT_RESTART:
        raise NodeError(f"{child.name} cannot run with this configuration; its message is above")
    child.pause_s = 0.5 if now - child.started > LONGEST_PAUSE_S else min(child.pause_s * 2, LONGEST_PAUSE_S)
    child.process, child.restart_at = None, now + child.pause_s
    log.error("child died", child=child.name, status=status, restart_in_s=child.pause_s)


def _drain(children: list[Child]) -> None:
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + DRAIN_S
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def die_with_parent() -> None:
    """In a child: be told to stop when the supervisor is gone, so that no half node keeps the port."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
