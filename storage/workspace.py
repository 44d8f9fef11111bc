"""A folder for the passing files of one process: gone when the process is gone, however it ended."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from storage.private import make_folder


class Workspace:
    """Folders below `root`, one for each process, made when it is first needed.

    A process holds a lock on its folder. What a killed one left behind is removed when another one begins.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder: Path | None = None
        self._lock = threading.Lock()

    def file(self, name: str) -> Path:
        """The path of a file that is to be made."""
        return self._own() / name

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder, removed with what it holds when the block ends."""
        with tempfile.TemporaryDirectory(dir=self._own(), ignore_cleanup_errors=True) as name:
            yield Path(name)

    def _own(self) -> Path:
        with self._lock:
            if self._folder is None:
                make_folder(self._root)
                self._remove_abandoned()
                self._folder = self._made()
            return self._folder

    def _made(self) -> Path:
        """A new folder, locked for as long as this process lives."""
        while True:
            folder = Path(tempfile.mkdtemp(dir=self._root))
            # Until it is locked, another process may take the folder for an abandoned one.
            held = _locked(folder)
            if held is not None and folder.exists():
                return folder  # the descriptor stays open
            if held is not None:
                os.close(held)

    def _remove_abandoned(self) -> None:
        for folder in self._root.iterdir():
            held = _locked(folder)
            if held is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(held)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder; None if somebody else holds it, or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
