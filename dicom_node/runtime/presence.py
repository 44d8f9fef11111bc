"""This host among those that share an index in PostgreSQL: it says that it lives, and notices what differs.

SQLite has one host: `only_host` keeps a second one from opening the index through a shared mount.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import structlog
from sqlalchemy.engine import make_url

from config.settings import Settings
from config.shown import all_shown
from dicom_node.errors import NodeError
from storage import audit, hosts
from storage.database import Database
from storage.errors import StorageError
from storage.hosts import BEAT_S, Host
from storage.private import FILE_MODE, make_folder
from storage.server_time import BOUND_S

log = structlog.get_logger()

# What may differ from host to host: its own ports, devices, memory and disks.
OWN = (
    "data_dir", "receiver.host", "receiver.port", "receiver.tls_", "receiver.processes", "receiver.ae_title",
    "receiver.plain", "receiver.max_", "worker.devices", "worker.nice", "worker.threads", "worker.read_ahead_mb",
    "storage.database_url", "storage.low_disk_mb", "storage.s3.", "metrics.", "web.", "logging.", "sender.commitment.",
    "cluster.",
)  # fmt: skip
WATCH_S = 25.0
"""Longer than two beats: how long a start looks whether another host keeps its index."""


def host_name() -> str:
    """This machine's name, as the audit trail and `status` say it."""
    return socket.gethostname()


def place(settings: Settings) -> str:
    """What tells the nodes of one machine apart."""
    return str(settings.data_dir.resolve())


def in_common(settings: Settings) -> dict[str, str]:
    """The settings that all hosts should share, as text, secrets hidden."""
    return {key: value for key, value in all_shown(settings).items() if not key.startswith(OWN)}


def differing(one: str, other: str) -> list[str]:
    """The names of the settings that two hosts have differently; those that only one of them knows do not count."""
    first, second = json.loads(one), json.loads(other)
    return sorted(key for key in first.keys() & second.keys() if first[key] != second[key])


class Presence:
    """Says every few seconds that this host lives. parts: the processes that it runs."""

    def __init__(self, settings: Settings, database: Database, parts: Sequence[str]) -> None:
        self._database = database
        self._ended = threading.Event()
        self._warned = False
        now = database.now()
        shared = json.dumps(in_common(settings), ensure_ascii=False)
        _, schema = database.schema()
        self._host = Host(
            host_name(), place(settings), tuple(parts), version("dicom-node"), str(schema), shared, now, now, 0.0
        )

    def begin(self) -> None:
        """Register this host, and say in log and audit trail what it has differently from others.

        Raises StorageError.
        """
        host = replace(self._host, ahead_s=self._database.host_is_ahead_s())
        with self._database.transaction() as tx:
            others = hosts.others_alive(tx, host.name, host.place, host.started_at)
            hosts.register(tx, host)
            found = {other.name: differing(host.configuration, other.configuration) for other in others}
            found = {name: settings for name, settings in found.items() if settings}
            if found:
                audit.append(tx, host.started_at, "host.differs", outcome="DIFFERS", detail={host.name: found})
        for name, settings in found.items():
            log.warning("another host has other settings", host=name, settings=settings)

    def start(self) -> None:
        """Say that this host lives, from a thread of its own."""
        threading.Thread(target=self._keep_on, name="presence", daemon=True).start()

    def _keep_on(self) -> None:
        while not self._ended.wait(BEAT_S):
            ahead_s = self._database.host_is_ahead_s()
            if (abs(ahead_s) > BOUND_S) is not self._warned:
                self._warned = not self._warned
                log.warning("the clock of this machine", ahead_s=round(ahead_s), allowed_s=BOUND_S, wrong=self._warned)
            try:
                self._beat(ahead_s)
            except StorageError as error:
                log.warning("this host could not say that it lives", error=type(error).__name__)

    def _beat(self, ahead_s: float) -> None:
        with self._database.transaction() as tx:
            hosts.beat(tx, self._host, self._database.now(), ahead_s)

    def end(self) -> None:
        """This host stops in order."""
        self._ended.set()
        with contextlib.suppress(StorageError), self._database.transaction() as tx:
            hosts.leave(tx, self._host, self._database.now())


@contextlib.contextmanager
def present(settings: Settings, parts: Sequence[str], *, registered: bool = False) -> Iterator[None]:
    """While the body runs, this host says that it lives. Nothing happens with SQLite.

    registered: it has said what it is already. Raises StorageError if it cannot.
    """
    url = settings.database_url
    if make_url(url).get_backend_name() == "sqlite":
        yield
        return
    with contextlib.closing(Database(url)) as database:
        presence = Presence(settings, database, parts)
        if not registered:
            presence.begin()
        presence.start()
        try:
            yield
        finally:
            presence.end()


@contextlib.contextmanager
def only_host(settings: Settings, stop: threading.Event, watch_s: float = WATCH_S) -> Iterator[None]:
    """Hold a SQLite index for this host while the body runs. Nothing happens with PostgreSQL.

    A file beside the index is locked and named after its host. Not every shared mount passes locks on: so the file is
    also touched again and again, and a host that finds another's name in it first looks whether that goes on.
    Raises NodeError if another host keeps the index.
    """
    url = make_url(settings.database_url)
    if url.get_backend_name() != "sqlite":
        yield
        return
    path = Path(f"{url.database}.host")
    make_folder(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    ended = threading.Event()
    try:
        _take_index(fd, path, stop, watch_s)

        def touch() -> None:
            while not ended.wait(BEAT_S):
                with contextlib.suppress(OSError):
                    os.utime(path)

        threading.Thread(target=touch, name="host", daemon=True).start()
        yield
        os.ftruncate(fd, 0)  # an orderly end: the next host need not look
    finally:
        ended.set()
        os.close(fd)


def _take_index(fd: int, path: Path, stop: threading.Event, watch_s: float) -> None:
    held = os.pread(fd, 300, 0).decode(errors="replace")
    mine = host_name()
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise NodeError(_one_host(path, held)) from None
    if held and held != mine:
        log.warning("this index was another host's; looking whether it still is", host=held, seconds=watch_s)
        before, until = os.stat(path).st_mtime_ns, time.monotonic() + watch_s
        while time.monotonic() < until:
            if os.stat(path).st_mtime_ns != before:
                raise NodeError(_one_host(path, held))
            if stop.wait(0.2):
                raise NodeError("stopped while another host's index was looked at")
    os.ftruncate(fd, 0)
    os.pwrite(fd, mine.encode(), 0)


def _one_host(path: Path, host: str) -> str:
    return (
        f"host {host or 'unknown'} keeps the index {str(path).removesuffix('.host')}. SQLite is for one host: stop the "
        "node there, or keep the index in PostgreSQL ([storage] database_url), which several hosts can share"
    )
