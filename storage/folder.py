"""The file store in a folder.

A file is created under its final name and needs no rename: only a row in the index makes it real.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from storage.errors import CorruptFile, StorageError, StorageFull
from storage.files import QUARANTINE, SUFFIX, UNREADABLE, FileStore, Kept, NewFile, StoredFile, is_a_day
from storage.mark import Mark
from storage.private import FILE_MODE, fsync_folder, make_folder

FULL = {errno.ENOSPC, errno.EDQUOT}
DAY_S = 86_400


@contextlib.contextmanager
def _full_is_named() -> Iterator[None]:
    """Turn "no space" and "over quota" into StorageFull; other system errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull("no space left in the file store") from error
        raise


class FolderFile(NewFile):
    """A file being written, under its final name from the start."""

    def __init__(self, folder: "_DayFolder", name: str) -> None:
        self._path = f"{folder.path}/{name}"
        self._folder = folder
        self._relative = f"{folder.relative}/{name}"
        self._sha = hashlib.sha256()
        self._size = 0
        self._committed = False
        with _full_is_named():
            # O_EXCL: a name that exists already means a broken generator; it must never be overwritten.
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)

    @property
    def path(self) -> Path:
        return Path(self._path)

    @property
    def size(self) -> int:
        return self._size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._sha.update(view)
        self._size += view.nbytes
        try:
            with _full_is_named():
                while view:
                    view = view[os.write(self._fd, view) :]
        except (OSError, StorageFull):
            self.discard()
            raise

    def describe(self) -> StoredFile:
        return StoredFile(self._relative, self._sha.hexdigest(), self._size)

    def commit(self) -> StoredFile:
        try:
            with _full_is_named():
                os.fsync(self._fd)
                self._close()
                self._folder.sync()
        except (OSError, StorageFull):
            self.discard()
            raise
        self._committed = True
        return self.describe()

    def discard(self) -> None:
        self._close()
        self._committed = False
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def is_committed(self) -> bool:
        return self._committed


class _DayFolder:
    """The folder of a day's files, held open; its names are made durable after every file.

    relative: below the root. day: its number since 1970. It is closed once the last file begun in it is finished.
    """

    _fd = -1

    def __init__(self, root: Path, relative: str, day: int) -> None:
        self.path = str(root / relative)
        self.relative = relative
        self.day = day
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync(self) -> None:
        """Make the names in it durable."""
        os.fsync(self._fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class FolderStore(FileStore):
    """A folder of files named root/year/month/day/<random>.dcm (UTC).

    clock: Unix seconds; it only chooses the folder of a new file. make: create the folder if it is not there.
    """

    row_may_come_first = True
    lists_slowly = False

    def __init__(self, root: Path, clock: Callable[[], float] = time.time, *, make: bool = True) -> None:
        self.root = Path(root).resolve()
        self.where = str(root)
        self._clock = clock
        self._folder: _DayFolder | None = None
        if make:
            make_folder(self.root)
            fsync_folder(self.root.parent)

    def create(self) -> FolderFile:
        day = int(self._clock() // DAY_S)
        folder = self._folder
        with _full_is_named():
            if folder is None or folder.day != day:
                folder = self._folder = self._make_durably(day)
            return FolderFile(folder, f"{uuid.uuid4().hex}{SUFFIX}")

    def _make_durably(self, day: int) -> _DayFolder:
        """Create a day's folder below the root, and make its name and those of its parents durable.

        Each process does so for itself: another may have created the folder an instant ago, and it may not be
        durable yet.
        """
        relative = datetime.fromtimestamp(day * DAY_S, UTC).strftime("%Y/%m/%d")
        folder = self.root / relative
        make_folder(folder)
        for parent in folder.parents:
            fsync_folder(parent)
            if parent == self.root:
                break
        return _DayFolder(self.root, relative, day)

    @contextlib.contextmanager
    def at_hand(self, kept: Sequence[Kept], trusted: Collection[str] = ()) -> Iterator[list[Path]]:
        for item in kept:
            if item.sha256 and item.path not in trusted:
                self.read_verified(item.path, item.sha256)
        paths = [self.absolute(item.path) for item in kept]
        for item, path in zip(kept, paths, strict=True):
            if not path.exists():
                raise CorruptFile(f"stored file {item.path} is missing")
        yield paths

    def absolute(self, path: str) -> Path:
        found = (self.root / path).resolve()
        if not found.is_relative_to(self.root) or found == self.root:
            raise StorageError("a stored path leads out of the file store")
        return found

    def read_verified(self, path: str, sha256: str) -> bytes:
        try:
            data = self.absolute(path).read_bytes()
        except FileNotFoundError as error:
            raise CorruptFile(f"stored file {path} is missing") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptFile(f"stored file {path} is not what was stored: its SHA-256 differs")
        return data

    def make_durable(self, path: str, sha256: str) -> None:
        self.read_verified(path, sha256)
        file = self.absolute(path)
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        for folder in file.parents:
            fsync_folder(folder)
            if folder == self.root:
                break

    def size_of(self, path: str) -> int | None:
        try:
            return self.absolute(path).stat().st_size
        except FileNotFoundError:
            return None

    def written_at(self, path: str) -> float:
        return os.stat(self.absolute(path)).st_mtime

    def remove(self, path: str) -> bool:
        try:
            self.absolute(path).unlink()
        except FileNotFoundError:
            return False
        return True

    def folders(self, older_than: float, since: float = 0.0) -> Iterator[tuple[int, list[str]]]:
        for folder, below, names in os.walk(self.root):
            if Path(folder) == self.root and QUARANTINE in below:
                below.remove(QUARANTINE)
            base = Path(folder).relative_to(self.root).as_posix()
            start = "" if base == "." else f"{base}/"
            stored = sorted(name for name in names if name.endswith(SUFFIX))
            yield len(stored), [f"{start}{name}" for name in stored if _modified_before(f"{folder}/{name}", older_than)]

    def _move(self, source: str, target: str) -> None:
        old, new = self.absolute(source), self.absolute(target)
        new.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(old, new)
        for folder in new.parents:
            fsync_folder(folder)
            if folder == self.root:
                break
        fsync_folder(old.parent)

    def quarantined(self) -> list[tuple[str, list[str]]]:
        found = []
        for day in sorted(path for path in (self.root / QUARANTINE).glob("*") if is_a_day(path.name)):
            paths = sorted(path.relative_to(self.root).as_posix() for path in day.rglob(f"*{SUFFIX}"))
            found.append((day.relative_to(self.root).as_posix(), paths))
        return found

    def unreadable(self) -> list[str]:
        found = (self.root / UNREADABLE).rglob(f"*{SUFFIX}")
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def delete_quarantine(self, folder: str) -> int:
        day = self.absolute(folder)
        count = sum(1 for _ in day.rglob(f"*{SUFFIX}"))
        shutil.rmtree(day)
        return count

    def is_empty(self) -> bool:
        return next(self.root.rglob(f"*{SUFFIX}"), None) is None

    def mark(self) -> Mark:
        return Mark(self.root)

    def free_bytes(self) -> int:
        there = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        return shutil.disk_usage(there).free

    def check(self) -> None:
        """A folder is not away: what is wrong with it is told by the next access."""

    ask = check


def _modified_before(path: str, moment: float) -> bool:
    try:
        return moment == float("inf") or os.stat(path).st_mtime < moment
    except FileNotFoundError:
        return False
