"""Does a node run on this machine's data folder, and does it take images? Checked from outside, leaving no trace."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from config.settings import Settings
from dicom_node.runtime.node_lock import lock_path, noted_parts
from storage.errors import StorageError
from storage.stores import files_of

MIB = 1024**2
LISTEN = "0A"
"""A listening socket in /proc/net/tcp."""


@dataclass(frozen=True)
class Liveness:
    """runs: its processes live. accepts: it takes images. why_not: in words, empty if it does."""

    runs: bool
    accepts: bool
    why_not: str


def look(settings: Settings) -> Liveness:
    """Look at the node's lock, its ports and the disk, and ask an object store. It connects to no port of the node."""
    if not _is_locked(lock_path(settings.data_dir)):
        return Liveness(False, False, "it does not run")
    parts = noted_parts(lock_path(settings.data_dir))
    if parts and "receive" not in parts:
        return Liveness(True, False, f"this host runs only {', '.join(parts)}")
    receiver = settings.receiver
    wanted = [receiver.port] * receiver.plain + [receiver.tls_port] * (receiver.tls_certificate is not None)
    listening = _listening_ports()
    silent = [port for port in wanted if listening is not None and port not in listening]
    if silent:
        return Liveness(True, False, f"nothing listens on port {silent[0]}; its log says why")
    files = files_of(settings, make=False)
    try:
        files.ask()
    except StorageError as error:
        return Liveness(True, False, f"the object store is away: {error}")
    if files.free_bytes() < settings.storage.low_disk_mb * MIB:
        return Liveness(True, False, f"less than {settings.storage.low_disk_mb} MB are free below {settings.data_dir}")
    return Liveness(True, True, "")


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _listening_ports() -> set[int] | None:
    """TCP ports that somebody listens on; None if the system does not tell."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        rows = [line.split() for line in lines]
        found |= {int(row[1].rsplit(":", 1)[1], 16) for row in rows if row[3] == LISTEN}
    return found or None
