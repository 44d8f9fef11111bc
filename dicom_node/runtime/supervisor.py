"""`dicom-node run`: start receiver, scheduler, sender and workers together, and restart what dies.

Each child is a process of its own, so that a series that kills a worker stops nothing else. State lives in the
database only: a child can be killed and started again at any moment.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from prometheus_client.multiprocess import mark_process_dead

from config.settings import Settings
from dicom_node.errors import NodeError, PortTaken
from dicom_node.logs import KEY_VARIABLE, log_key

log = structlog.get_logger()

# A child that ends with this status must not be restarted: its configuration is wrong (EX_CONFIG of sysexits.h).
DO_NOT_RESTART = 78
LONGEST_PAUSE_S = 30.0
DRAIN_S = 60.0
PARENT_VARIABLE = "DICOM_NODE_PARENT_PID"
COUNTS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder of prometheus_client's counts, see metrics.py."""
PR_SET_PDEATHSIG = 1
LOOK_EVERY_S = 0.5
"""How long a process may sleep through a signal to stop."""


@dataclass
class Child:
    """One supervised process.

    lock: descriptor of the node's lock, which the process keeps open as long as it lives.
    variables: added to its environment.
    pause_s: wait before the next restart; doubles while it keeps dying at once.
    """

    name: str
    arguments: list[str]
    lock: int
    variables: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restart_at: float = 0.0
    pause_s: float = field(default=0.5)

    def start(self) -> None:
        """Start the process."""
        environment = {**os.environ, **self.variables, PARENT_VARIABLE: str(os.getpid()), KEY_VARIABLE: log_key()}
        command = [sys.executable, "-m", "dicom_node", *self.arguments]
        self.process = subprocess.Popen(command, env=environment, pass_fds=(self.lock,))
        self.started = time.monotonic()
        log.info("child started", child=self.name, pid=self.process.pid)


def children_of(settings: Settings, config_file: Path | None, lock: int) -> list[Child]:
    """The processes of one node."""
    config = ["--config", str(config_file)] if config_file else []
    receivers = settings.receiver.processes
    counting = {COUNTS_VARIABLE: str(settings.metrics_dir.resolve())} if settings.metrics.port else {}
    children = [
        Child("receive" if receivers == 1 else f"receive-{number}", ["receive", *config], lock, counting)
        for number in range(receivers)
    ]
    children += [Child(name, [name, *config], lock) for name in ("schedule", "deliver")]
    if counting:
        children.append(Child("metrics", ["metrics", *config], lock, counting))
    for number, device in enumerate(settings.worker.devices):
        children.append(Child(f"work-{number}", ["work", "--device", device, *config], lock))
    return children


def run(settings: Settings, config_file: Path | None, stop: threading.Event, lock: int) -> None:
    """Keep all children running until `stop` is set, then drain them.

    lock: see node_lock.only_node.
    Raises NodeError when a child says that its configuration cannot work.
    """
    children = children_of(settings, config_file, lock)
    if settings.receiver.processes > 1:
        _refuse_taken_ports(settings)
    if settings.metrics.port:
        shutil.rmtree(settings.metrics_dir, ignore_errors=True)
        settings.metrics_dir.mkdir(parents=True)
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
    _forget_counts(child)
    child.pause_s = 0.5 if now - child.started > LONGEST_PAUSE_S else min(child.pause_s * 2, LONGEST_PAUSE_S)
    child.process, child.restart_at = None, now + child.pause_s
    log.error("child died", child=child.name, status=status, restart_in_s=child.pause_s)


def _refuse_taken_ports(settings: Settings) -> None:
    """Receivers that share a port would share it with a stranger's program too. Raises PortTaken."""
    receiver = settings.receiver
    ports = [receiver.port] * receiver.plain + [receiver.tls_port] * (receiver.tls_certificate is not None)
    for port in ports:
        family, _, _, _, address = socket.getaddrinfo(receiver.host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                probe.listen()
            except OSError as error:
                raise PortTaken(f"cannot listen on {receiver.host}:{port}: {error.strerror}") from error


def _forget_counts(child: Child) -> None:
    """What a process that died had open is open no more."""
    folder = child.variables.get(COUNTS_VARIABLE)
    if folder is not None and child.process is not None:
        mark_process_dead(child.process.pid, folder)  # type: ignore[no-untyped-call]


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


class Stop(threading.Event):
    """An event that a signal's handler sets while the main thread waits for it.

    The kernel may give a signal to any thread, for instance to that of an association which has just begun. Python
    runs the handler in the main thread only, and not before that wakes: so it must not sleep without an end.
    """

    def wait(self, timeout: float | None = None) -> bool:
        """As Event.wait. timeout: seconds; None waits until the event is set."""
        if timeout is not None:
            return super().wait(timeout)
        while not super().wait(LOOK_EVERY_S):
            pass
        return True


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
