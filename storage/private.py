"""Files and folders that only the node's own user may read: they hold patient data."""

import contextlib
import os
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o600, 0o700
OTHERS = 0o077


def make_folder(folder: Path) -> None:
    """Create a folder and the parents that it lacks, for their owner alone. Folders that exist stay as they are."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(FOLDER_MODE, exist_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_file(path: Path) -> None:
    """Create an empty file for its owner alone; if it exists, take away the rights of others."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
    except FileExistsError:
        _take_from_others(path)


def tighten(folder: Path) -> None:
    """Take away the rights of others to a folder and everything below it, which an earlier version may have granted.

    The folder itself comes last: once it is closed to others, the work is complete and is not repeated.
    What belongs to another user stays as it is.
    """
    if not folder.stat().st_mode & OTHERS:
        return
    for below, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _take_from_others(Path(below, name))
    _take_from_others(folder)


def _take_from_others(path: Path) -> None:
    with contextlib.suppress(OSError):
        mode = path.lstat().st_mode
        if mode & OTHERS and not path.is_symlink():
            path.chmod(mode & 0o777 & ~OTHERS)
