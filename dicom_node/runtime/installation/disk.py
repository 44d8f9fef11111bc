"""The disk of the data folder: room, file system, and how long it takes to make an image durable."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.engine import make_url

from config.settings import Settings
from dicom_node.runtime.installation.found import Found, good, look, wrong
from storage.private import fsync_folder

MIB, GIB = 1024**2, 1024**3
LITTLE_GIB = 20
IMAGE_BYTES = 512 * 1024
"""About one CT slice."""
TRIES = 15
SLOW_S = 0.03
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "lustre")


def disk(settings: Settings) -> Iterator[Found]:
    """Nothing stays on the disk."""
    folder = settings.data_dir.resolve()
    there = next(part for part in (folder, *folder.parents) if part.exists())
    yield _room(settings, there)
    yield _file_system(settings, there)
    if there == folder:
        yield _speed(folder)


def _room(settings: Settings, there: Path) -> Found:
    free = shutil.disk_usage(there).free
    says, low = f"{free / GIB:.1f} GiB free below {settings.data_dir}", settings.storage.low_disk_mb
    if free < low * MIB:
        return wrong("disk space", f"{says}: the node refuses images", "make room, or lower [storage] low_disk_mb")
    if free < LITTLE_GIB * GIB:
        return look("disk space", says, "a chest CT takes 0.1 to 0.5 GiB: make room, or set [storage] retention_days")
    return good("disk space", says)


def _file_system(settings: Settings, there: Path) -> Found:
    kind = file_system_of(there)
    says, part = f"{settings.data_dir} is on {kind or 'an unknown file system'}", "file system"
    on_sqlite = make_url(settings.database_url).get_backend_name() == "sqlite"
    if kind in NETWORK and on_sqlite:
        return wrong(part, f"{says}; SQLite's locks do not hold there", "use a local disk, or an index in PostgreSQL")
    if kind in ("tmpfs", "ramfs"):
        return wrong(part, f"{says}: all is gone when the machine stops", "set data_dir to a folder on a disk")
    if kind == "overlay":
        return look(part, f"{says}: all is gone with the container", f"mount a volume at {settings.data_dir}")
    return good(part, says)


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that holds a path, "ext4" for example; empty if the system does not tell.

    mounts: the content of /proc/self/mounts.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    rows = [line.split() for line in mounts.splitlines()]
    holding = [(len(row[1]), number, row[2]) for number, row in enumerate(rows) if path.is_relative_to(row[1])]
    return max(holding)[2] if holding else ""


def _speed(folder: Path) -> Found:
    part = "disk speed"
    try:
        times = sync_times_s(folder)
    except OSError as error:
        return wrong(
            part, f"cannot write to {folder}: {error.strerror}", "run this as the node's user; see permissions"
        )
    median, worst = statistics.median(times), max(times)
    says = f"an image of 0.5 MiB is durable in {median * 1e3:.1f} ms (median of {TRIES}, worst {worst * 1e3:.0f} ms)"
    if median > SLOW_S:
        do = "senders wait this long for each image of an association: use an SSD, or one with power-loss protection"
        return look(part, says, do)
    return good(part, says)


def sync_times_s(folder: Path) -> list[float]:
    """How long writing an image takes until it and its name are on the disk, several times. Raises OSError."""
    data, times = os.urandom(IMAGE_BYTES), []
    with tempfile.TemporaryDirectory(prefix=".install-check-", dir=folder) as scratch:
        for number in range(TRIES):
            began = time.perf_counter()
            with open(Path(scratch, str(number)), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fsync_folder(Path(scratch))
            times.append(time.perf_counter() - began)
    return times
