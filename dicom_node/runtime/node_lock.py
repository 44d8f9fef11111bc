"""One node at a time on a data folder: a lock that its processes share and that ends with the last of them.

If a node's supervisor is killed, its children drain for a while and keep the port and the work in hand. A node that is
started meanwhile waits for them: reconciling while they run would take back what they hold.
"""

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from dicom_node.errors import NodeError
from storage.private import FILE_MODE, make_folder

log = structlog.get_logger()

PATIENCE_S = 90.0
"""Longer than a drain takes."""
POLL_S = 0.2


def lock_path(data_dir: Path) -> Path:
    """The file that a node on this machine keeps locked."""
    # By machine: several may share the files, with an index in PostgreSQL.
    return data_dir / f"node-{socket.gethostname()}.lock"


@contextmanager
def only_node(data_dir: Path, stop: threading.Event, patience_s: float = PATIENCE_S) -> Iterator[int]:
    """Hold this machine's lock on the data folder. Yields its descriptor, for the children to inherit.

    Raises NodeError if another node keeps running there, or if `stop` is set meanwhile.
    """
    make_folder(data_dir)
    fd = os.open(lock_path(data_dir), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        _lock(fd, stop, patience_s)
        yield fd
    finally:
        os.close(fd)


def note_parts(fd: int, parts: Sequence[str]) -> None:
    """Write into the lock's file which processes the node runs, for those who look at it from outside."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, ",".join(parts).encode(), 0)


def noted_parts(path: Path) -> tuple[str, ...]:
    """What `note_parts` wrote; nothing if the node was started by another version."""
    try:
        return tuple(part for part in path.read_text(encoding="ascii").split(",") if part)
    except (OSError, UnicodeDecodeError):
        return ()


def _lock(fd: int, stop: threading.Event, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    told = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not told:
                log.warning("another node runs on this data folder, waiting for it to end")
                told = True
        if time.monotonic() >= deadline:
            raise NodeError("another node runs on this data folder; stop it first")
        if stop.wait(POLL_S):
            raise NodeError("stopped while another node ran on this data folder")
