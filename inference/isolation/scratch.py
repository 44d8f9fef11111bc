"""A folder for one run of a model: empty before, gone afterwards, even if the node was killed in between."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# A folder younger than this may be one that is about to be locked.
_SETTLED_S = 60.0
_PREFIX = "dicom-node-model-"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new empty folder. Also removes those whose process was killed before it could."""
    parent = Path(tempfile.gettempdir())
    for former in parent.glob(f"{_PREFIX}*"):
        _remove_if_left_over(former)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True) as name:
        held = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(held)


def _remove_if_left_over(folder: Path) -> None:
    """Nobody holds its lock: whoever made it is gone. Another user's folder is left alone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        state = os.fstat(descriptor)
        if state.st_uid == os.geteuid() and time.time() - state.st_ctime > _SETTLED_S:
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)


def used_bytes(folder: Path) -> int:
    """What the files below a folder take on the disk. A file that goes meanwhile does not count."""
    used = 0
    for place, _, names in os.walk(folder, onerror=None):
        for name in names:
            with contextlib.suppress(OSError):
                used += os.lstat(os.path.join(place, name)).st_blocks * 512
    return used
