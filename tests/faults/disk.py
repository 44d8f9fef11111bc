"""A disk that is really full: a small tmpfs, filled to the page."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = os.sysconf("SC_PAGESIZE")


class Disk:
    """A file system of its own, and a ballast that takes what is to be taken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"
        self._ballast.touch()

    def leave(self, pages: int) -> None:
        """Fill it so that so many pages are left, or as many as there are."""
        self.free()
        with self._ballast.open("r+b") as ballast:
            while (free := os.statvfs(self.folder).f_bavail) > pages:
                try:
                    os.posix_fallocate(ballast.fileno(), 0, (free - pages) * PAGE)
                    return
                except OSError as error:  # somebody wrote meanwhile
                    if error.errno != errno.ENOSPC:
                        raise

    def protect(self, *, on: bool) -> None:
        """Make it read-only, as Linux does with a file system that has failed; or writable again."""
        subprocess.run(["mount", "-o", "remount,ro" if on else "remount,rw", str(self.folder)], check=True)

    def free(self) -> None:
        """Give everything back."""
        self._ballast.write_bytes(b"")


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Disk]:
    """Mounts a tmpfs; skips if that is not permitted."""
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
