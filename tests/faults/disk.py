"""A disk that is really full: a small tmpfs, filled to the last page."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = os.sysconf("SC_PAGESIZE")


class Disk:
    """A separate file system, and a ballast file that takes up its space."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"
        self._ballast.touch()

    def leave(self, pages: int) -> None:
        """Fill it so that at most this many pages are left."""
        self.free()
        with self._ballast.open("r+b") as ballast:
            while (free := os.statvfs(self.folder).f_bavail) > pages:
                try:
                    os.posix_fallocate(ballast.fileno(), 0, (free - pages) * PAGE)
                    return
                except OSError as error:  # another process wrote in the meantime
                    if error.errno != errno.ENOSPC:
                        raise

    def protect(self, *, on: bool) -> None:
        """Make it read-only, as Linux does with a failed file system, or writable again."""
        subprocess.run(["mount", "-o", "remount,ro" if on else "remount,rw", str(self.folder)], check=True)

    def free(self) -> None:
        """Free all of its space."""
        self._ballast.write_bytes(b"")


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Disk]:
    """Mount a tmpfs; skip the test if that is not permitted."""
    folder.mkdir(parents=True)
    options = f"size={megabytes}m,mode=0700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs root to mount it: {mounted.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
