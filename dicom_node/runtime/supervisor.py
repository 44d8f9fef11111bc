"""`dicom-node run`: start receiver, scheduler, sender and workers together, and restart what dies.

Each child is a process of its own, so that a series that kills a worker stops nothing else. State lives in the
database only: a child can be killed and started again at any moment.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from prometheus_client.multiprocess import mark_process_dead

from config.load import read
from config.settings import Settings
from config.shown import all_shown, differences
from dicom_node.errors import NodeError, PortTaken
from dicom_node.logs import KEY_VARIABLE, log_key
from dicom_node.runtime import configuration
from dicom_node.runtime.index import open_index
from dicom_node.runtime.presence import host_name
from dicom_node.runtime.reloading import Change, Copy, Read, compare
from dicom_node.runtime.service_manager import ServiceManager
from dicom_node.runtime.signals import PARENT_VARIABLE, READY_VARIABLE
from storage import audit
from storage.errors import StorageError

log = structlog.get_logger()

# A child that ends with this status must not be restarted: its configuration is wrong (EX_CONFIG of sysexits.h).
DO_NOT_RESTART = 78
LONGEST_PAUSE_S = 30.0
DRAIN_S = 60.0
COUNTS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder of prometheus_client's counts, see metrics.py."""
TICK_S = 0.2
TRIAL_S, SOON_S = 30.0, 15.0
"""A new configuration is on trial for this long: if a child gives up within it, the configuration is taken back."""


@dataclass
class Child:
    """One supervised process.

    lock: descriptor of the node's lock, which the process keeps open while it lives.
    variables: added to its environment.
    pause_s: wait before the next restart; doubles while it keeps dying at once.
    ends_at: when a process that was asked to end for a new configuration is killed; None for all others.
    tells: it says when it is ready; the others are at once.
    works: it has begun its work, and has not been seen to end.
    """

    name: str
    arguments: list[str]
    lock: int
    variables: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restart_at: float = 0.0
    pause_s: float = field(default=0.5)
    ends_at: float | None = None
    tells: bool = False
    works: bool = False
    _told: int | None = None

    def start(self) -> None:
        """Start the process."""
        environment = {**os.environ, **self.variables, PARENT_VARIABLE: str(os.getpid()), KEY_VARIABLE: log_key()}
        command = [sys.executable, "-m", "dicom_node", *self.arguments]
        self._forget_pipe()
        self._told, told = os.pipe()
        os.set_blocking(self._told, False)
        environment[READY_VARIABLE] = str(told)
        self.process = subprocess.Popen(command, env=environment, pass_fds=(self.lock, told))
        os.close(told)
        self.started, self.works = time.monotonic(), not self.tells
        log.info("child started", child=self.name, pid=self.process.pid)

    def is_ready(self) -> bool:
        """False while it is starting."""
        if not self.tells or self._told is None:
            return True
        try:
            self.works = bool(os.read(self._told, 1))  # nothing: it has ended, and nobody need wait for it
        except BlockingIOError:
            return False
        self._forget_pipe()
        return True

    def _forget_pipe(self) -> None:
        if self._told is not None:
            os.close(self._told)
        self._told = None

    def ask_to_end(self) -> None:
        """Let it drain; what it leaves undone after DRAIN_S is lost with it."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.ends_at = time.monotonic() + DRAIN_S


PARTS = ("receive", "schedule", "deliver", "forward-audit", "cluster", "metrics", "web", "work")
PARTS_VARIABLE = "DICOM_NODE_PARTS"
"""Tells the children which processes their host runs."""


def parts_of(settings: Settings, only: str | None = None) -> tuple[str, ...]:
    """The kinds of processes that a host runs: those that the settings ask for, or of these only the ones named.

    only: names with commas between them. Raises NodeError for a name that there is not, or if nothing is left.
    """
    if only is None:
        return kinds_of(_all_children(settings, None, 0))
    wanted = {name.strip() for name in only.split(",")}
    if not wanted <= set(PARTS):
        raise NodeError(f"--only {','.join(sorted(wanted - set(PARTS)))!r}: there are {', '.join(PARTS)}")
    parts = tuple(part for part in kinds_of(_all_children(settings, None, 0)) if part in wanted)
    if not parts:
        raise NodeError(f"--only {only}: the configuration switches these processes off")
    return parts


def kinds_of(children: Sequence[Child]) -> tuple[str, ...]:
    """The commands that children run, each once."""
    return tuple(dict.fromkeys(child.arguments[0] for child in children))


def children_of(
    settings: Settings, config_file: Path | None, lock: int, parts: Sequence[str] | None = None
) -> list[Child]:
    """The processes of one node. parts: the kinds that it runs; all that the settings ask for if None."""
    wanted = parts_of(settings) if parts is None else parts
    children = [child for child in _all_children(settings, config_file, lock) if child.arguments[0] in wanted]
    for child in children:
        child.variables[PARTS_VARIABLE] = ",".join(wanted)
    return children


def _all_children(settings: Settings, config_file: Path | None, lock: int) -> list[Child]:
    config = ["--config", str(config_file)] if config_file else []
    receivers = settings.receiver.processes
    counting = {COUNTS_VARIABLE: str(settings.metrics_dir.resolve())} if settings.is_measured else {}
    children = [
        Child(
            "receive" if receivers == 1 else f"receive-{number}", ["receive", *config], lock, dict(counting), tells=True
        )
        for number in range(receivers)
    ]
    children += [Child(name, [name, *config], lock) for name in ("schedule", "deliver")]
    if settings.audit.syslog.host:
        children.append(Child("forward-audit", ["forward-audit", *config], lock))
    if settings.metrics.port:
        children.append(Child("metrics", ["metrics", *config], lock, dict(counting)))
    if settings.web.port:
        children.append(Child("web", ["web", *config], lock, dict(counting)))
    if settings.cluster.address:
        children.append(Child("cluster", ["cluster", "keep", *config], lock))
    for number, device in enumerate(settings.worker.devices):
        children.append(Child(f"work-{number}", ["work", "--device", device, "--number", str(number), *config], lock))
    return children


class Supervisor:
    """Keeps the children of one node running.

    config_file: the site's file, or None; the children read a copy of it (see reloading.py).
    lock: see node_lock.only_node. read: how a configuration is read and checked. parts: see `children_of`.
    manager: who is told that the node is ready, lives and stops.
    """

    def __init__(
        self,
        settings: Settings,
        config_file: Path | None,
        lock: int,
        read: Read = read,
        parts: Sequence[str] | None = None,
        manager: ServiceManager | None = None,
    ) -> None:
        self._manager = manager or ServiceManager()
        self._settings = settings
        self._read = read
        self._copy = Copy(config_file, settings.data_dir) if config_file else None
        self.children = children_of(settings, self._copy.path if self._copy else None, lock, parts)
        self._receives = any(child.arguments[0] == "receive" for child in self.children)
        self._to_restart: list[Child] = []
        self._former: Settings | None = None
        self._changed_at = 0.0

    def run(self, stop: threading.Event, reload: threading.Event) -> None:
        """Keep all children running until `stop` is set, then drain them; read the configuration at each `reload`.

        Raises NodeError when a child says that its configuration cannot work.
        """
        if self._receives and self._settings.receiver.processes > 1:
            _refuse_taken_ports(self._settings)
        if self._settings.is_measured:
            shutil.rmtree(self._settings.metrics_dir, ignore_errors=True)
            self._settings.metrics_dir.mkdir(parents=True)
        for child in self.children:
            child.start()
        try:
            while not stop.wait(TICK_S):
                if reload.is_set():
                    reload.clear()
                    self._reload()
                self._restart_next()
                for child in self.children:
                    self._tend(child)
                self._tell()
        finally:
            self._manager.stopping()
            _drain(self.children, self._manager.alive)
            if self._copy is not None:
                self._copy.remove()

    def _tell(self) -> None:
        away = [child.name for child in self.children if not (child.is_ready() and child.works)]
        if not away:
            self._manager.ready()
        self._manager.says(f"starting or down: {', '.join(away)}" if away else "all processes run")
        self._manager.alive()

    def _tend(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.restart_at:
                child.start()
            return
        status = child.process.poll()
        if status is None:
            if child.ends_at is not None and now > child.ends_at:
                child.process.kill()
            return
        child.works = False
        _forget_counts(child)
        if child.ends_at is not None:
            child.process, child.ends_at, child.pause_s = None, None, 0.5
            child.start()
            return
        gave_up = status == DO_NOT_RESTART or (status == 1 and now - child.started < SOON_S)
        if not (gave_up and self._take_back(child)) and status == DO_NOT_RESTART:
            raise NodeError(f"{child.name} cannot run with this configuration; its message is above")
        child.pause_s = 0.5 if now - child.started > LONGEST_PAUSE_S else min(child.pause_s * 2, LONGEST_PAUSE_S)
        child.process, child.restart_at = None, now + child.pause_s
        log.error("child died", child=child.name, status=status, restart_in_s=child.pause_s)

    def _restart_next(self) -> None:
        """One child after the other reads the new configuration, so that not all of them are away at once."""
        if self._to_restart and all(child.ends_at is None and child.is_ready() for child in self.children):
            self._to_restart.pop(0).ask_to_end()
            self._changed_at = time.monotonic()

    def _reload(self) -> None:
        """Take a new configuration if it is good; else go on with the old one, and say why."""
        if self._copy is None:
            log.warning("nothing to reload: this node has no configuration file; its settings are in the environment")
            return
        try:
            content = self._copy.source.read_bytes()
        except OSError as error:
            self._refuse([f"{self._copy.source} cannot be read: {error.strerror}"])
            return
        new, mistakes = self._read(self._copy.source)
        if new is None or mistakes:
            self._refuse([str(mistake) for mistake in mistakes])
            return
        change = compare(self._settings, new)
        if change.waiting:
            log.warning("settings that need a restart of the node stay as they are", settings=list(change.waiting))
        if not change.applied:
            log.info("configuration read again: nothing to change")
            return
        self._former = self._settings
        changes = differences(all_shown(self._settings), all_shown(change.settings))
        self._copy.take(content)
        self._apply(change)
        log.info("configuration changed", settings=list(change.applied))
        detail = {"settings": change.applied, "need_restart": change.waiting, "changes": changes}
        self._audit("configuration-changed", "CHANGED", detail, kept=self._settings)

    def _apply(self, change: Change) -> None:
        self._settings = change.settings
        for child in self.children:
            child.variables.update(change.kept)
        self._to_restart = list(self.children)

    def _refuse(self, mistakes: list[str]) -> None:
        log.error("the new configuration is wrong: the node goes on with the old one", mistakes=mistakes)
        self._audit("configuration-refused", "REFUSED", {"mistakes": len(mistakes)})

    def _take_back(self, child: Child) -> bool:
        """Go back to the former configuration, with which a child could work. False if there was no recent change."""
        if self._copy is None or self._former is None or time.monotonic() > self._changed_at + DRAIN_S + TRIAL_S:
            return False
        log.error("the new configuration does not work: the node goes back to the former one", child=child.name)
        former, self._former = self._former, None
        self._copy.give_back()
        self._apply(compare(self._settings, former))
        self._to_restart = [one for one in self.children if one is not child]
        self._audit("configuration-refused", "REFUSED", {"child": child.name})
        return True

    def _audit(self, event: str, outcome: str, detail: Mapping[str, object], kept: Settings | None = None) -> None:
        try:
            with (
                contextlib.closing(open_index(self._settings, create=False, upgrade=False)) as database,
                database.transaction() as tx,
            ):
                host = host_name() if database.is_server else ""
                detail = {**detail, "host": host} if host else detail
                audit.append(tx, database.now(), f"node.{event}", outcome=outcome, detail=detail)
                if kept is not None:
                    configuration.keep(tx, kept, host)
        except (NodeError, StorageError) as error:
            log.warning("not in the audit trail", happened=event, error=type(error).__name__)


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
    """What a process had open when it died is no longer open."""
    folder = child.variables.get(COUNTS_VARIABLE)
    if folder is not None and child.process is not None:
        mark_process_dead(child.process.pid, folder)  # type: ignore[no-untyped-call]


def _drain(children: list[Child], still_alive: Callable[[], None]) -> None:
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + DRAIN_S
    for process in running:
        while not _has_ended(process) and time.monotonic() < deadline:
            still_alive()
        process.kill()  # does nothing to one that has ended
        process.wait()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(TICK_S)
    return process.returncode is not None
