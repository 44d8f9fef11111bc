"""Copies of stored files on this machine, in bounded room: what was used last stays. Processes share it.

A copy may go at any moment. Whoever works with one has a hard link of its own, which stays.
"""

import contextlib
import os
import shutil
import threading
from pathlib import Path

from storage.private import make_folder

STEP = 16
"""The copies are counted when this part of the room has been filled anew; then that much is made free."""


class Cache:
    """A folder of copies, each under the generated name of its file.

    max_bytes: of all copies; each process may exceed it by a sixteenth before it counts. reserve_bytes: of the disk,
    for others: the copies take less if it would not be left free.
    """

    def __init__(self, folder: Path, max_bytes: int, reserve_bytes: int = 0) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._reserve_bytes = reserve_bytes
        self._step = max_bytes // STEP
        self._added = self._step  # the first copy is counted with what is there
        self._lock = threading.Lock()

    def link(self, name: str, target: Path) -> bool:
        """Give a copy another name, which no clearing removes. False if there is no copy."""
        try:
            os.link(self._folder / name, target)
            os.utime(target)  # it was used now
        except FileNotFoundError:
            return False
        return True

    def add(self, name: str, file: Path) -> None:
        """Keep a file as a copy too. If there is no room for it, it is not kept."""
        size = file.stat().st_size
        if size > self._max_bytes:
            return
        make_folder(self._folder)
        with contextlib.suppress(OSError):
            os.link(file, self._folder / name)
        with self._lock:
            self._added += size
            is_due = self._added > self._step
            self._added = 0 if is_due else self._added
        if is_due:
            self._clear()

    def forget(self, name: str) -> None:
        """Remove a copy; harmless if there is none."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._folder / name)

    def _clear(self) -> None:
        """Remove the copies that were not used for longest, until there is room for the next ones."""
        found = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):  # another process clears too
                stat = entry.stat()
                found.append((stat.st_mtime, stat.st_size, entry.name))
        left = sum(size for _, size, _ in found)
        room = min(self._max_bytes, left + shutil.disk_usage(self._folder).free - self._reserve_bytes)
        for _, size, name in sorted(found):
            if left <= room - self._step:
                return
            self.forget(name)
            left -= size
