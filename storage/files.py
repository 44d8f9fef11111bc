"""Durable files under generated names. Nothing that came over the network becomes part of a path.

A file is created under its final name and needs no rename: only a row in the index makes it real, and the
sweep sets aside what no row names. Paths are relative to the store's root, with forward slashes.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from types import TracebackType

from storage.errors import CorruptFile, StorageError, StorageFull
from storage.private import FILE_MODE, make_folder

FULL = {errno.ENOSPC, errno.EDQUOT}
SUFFIX = ".dcm"
QUARANTINE = "quarantine"
UNREADABLE = f"{QUARANTINE}/unreadable"
"""Files that may have been acknowledged and cannot be read: kept until a person deletes them."""
DAY_S = 86_400


@dataclass(frozen=True)
class StoredFile:
    """A file in the store. path: relative to its root. sha256: hex over all its bytes. size: bytes."""

    path: str
    sha256: str
    size: int


@contextlib.contextmanager
def _full_is_named() -> Iterator[None]:
    """Turn "no space" and "over quota" into StorageFull; other system errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull("no space left in the file store") from error
        raise


class NewFile:
    """A file being written. Ends with `commit` or `discard`; used as a context manager, it discards
    itself unless it was committed."""

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
        """Where the bytes lie."""
        return Path(self._path)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. If there is no space, removes the file and raises StorageFull."""
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
        """What `commit` will return, before the bytes are durable.

        It allows the file's fsync and the commit of its row to overlap: success may be answered only after both.
        """
        return StoredFile(self._relative, self._sha.hexdigest(), self._size)

    def commit(self) -> StoredFile:
        """Make the bytes and the name durable. Raises StorageFull, with the file removed."""
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
        """Remove the file; harmless when repeated."""
        self._close()
        self._committed = False
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._committed:
            self.discard()


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


class FileStore:
    """A folder of files named root/year/month/day/<random>.dcm (UTC).

    clock: Unix seconds; it only chooses the folder of a new file.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        self.root = Path(root).resolve()
        self._clock = clock
        self._folder: _DayFolder | None = None
        make_folder(self.root)
        fsync_folder(self.root.parent)

    def create(self) -> NewFile:
        """Open a new, empty file under a generated name. Raises StorageFull."""
        day = int(self._clock() // DAY_S)
        folder = self._folder
        with _full_is_named():
            if folder is None or folder.day != day:
                folder = self._folder = self._make_durably(day)
            return NewFile(folder, f"{uuid.uuid4().hex}{SUFFIX}")

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

    def write_durably(self, chunks: Iterable[bytes]) -> StoredFile:
        """Write a whole file; it is durable when this returns. Raises StorageFull with nothing left behind."""
        with self.create() as new:
            for chunk in chunks:
                new.write(chunk)
            return new.commit()

    def absolute(self, path: str) -> Path:
        """The file of a stored path. Raises StorageError for a path that leads out of the store."""
        found = (self.root / path).resolve()
        if not found.is_relative_to(self.root) or found == self.root:
            raise StorageError("a stored path leads out of the file store")
        return found

    def read_verified(self, path: str, sha256: str) -> bytes:
        """The bytes of a stored file. Raises CorruptFile if it is missing or its SHA-256 differs."""
        try:
            data = self.absolute(path).read_bytes()
        except FileNotFoundError as error:
            raise CorruptFile(f"stored file {path} is missing") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptFile(f"stored file {path} is not what was stored: its SHA-256 differs")
        return data

    def make_durable(self, path: str, sha256: str) -> None:
        """Make sure that a stored file outlives a power failure, whoever wrote it.

        Raises CorruptFile if it is missing or its SHA-256 differs.
        """
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

    def remove(self, path: str) -> bool:
        """Delete a stored file. Returns False if it was gone already."""
        try:
            self.absolute(path).unlink()
        except FileNotFoundError:
            return False
        return True

    def folders(self, older_than: float) -> Iterator[tuple[int, list[str]]]:
        """Folder by folder: the number of its files, and the paths of those last written before `older_than`.

        older_than: Unix seconds. It spares files that are still being received and have no row yet.
        """
        for folder, below, names in os.walk(self.root):
            if Path(folder) == self.root and QUARANTINE in below:
                below.remove(QUARANTINE)
            base = Path(folder).relative_to(self.root).as_posix()
            start = "" if base == "." else f"{base}/"
            stored = sorted(name for name in names if name.endswith(SUFFIX))
            yield len(stored), [f"{start}{name}" for name in stored if _modified_before(f"{folder}/{name}", older_than)]

    def quarantine_of(self, moment: float) -> str:
        """The folder, below the root, for files that are set aside on that day (UTC)."""
        return f"{QUARANTINE}/{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}"

    def set_aside(self, path: str, folder: str) -> None:
        """Move a stored file to a folder of the quarantine, where it keeps its own path; harmless if it is gone."""
        self._move(path, f"{folder}/{path}")

    def take_back(self, path: str) -> str:
        """Move a file of the quarantine to where it was, durably. Returns its path there."""
        _, _, stored = path.split("/", 2)
        self._move(path, stored)
        return stored

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
        """The folders of the quarantine, oldest first, each with the paths of its files, all below the root."""
        found = []
        for day in sorted(filter(_is_a_day, (self.root / QUARANTINE).glob("*"))):
            paths = sorted(path.relative_to(self.root).as_posix() for path in day.rglob(f"*{SUFFIX}"))
            found.append((day.relative_to(self.root).as_posix(), paths))
        return found

    def unreadable(self) -> list[str]:
        """The paths, below the root, of the files that are kept although they cannot be read."""
        found = (self.root / UNREADABLE).rglob(f"*{SUFFIX}")
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def keep_unreadable(self, path: str) -> str:
        """Move a file, stored or of the quarantine, to those that are never deleted. Returns its path there."""
        stored = path.split("/", 2)[2] if is_quarantined(path) else path
        kept = f"{UNREADABLE}/{stored}"
        if kept != path:
            self._move(path, kept)
        return kept

    def delete_quarantine(self, folder: str) -> int:
        """Delete a folder of the quarantine with its files. Returns how many there were."""
        day = self.absolute(folder)
        count = sum(1 for _ in day.rglob(f"*{SUFFIX}"))
        shutil.rmtree(day)
        return count

    def free_bytes(self) -> int:
        """Bytes that the file system still has free for us."""
        return shutil.disk_usage(self.root).free


def is_quarantined(path: str) -> bool:
    """True for the path of a file that was set aside."""
    return path.startswith(f"{QUARANTINE}/")


def _is_a_day(folder: Path) -> bool:
    try:
        return date.fromisoformat(folder.name).isoformat() == folder.name
    except ValueError:
        return False


def _modified_before(path: str, moment: float) -> bool:
    try:
        return moment == float("inf") or os.stat(path).st_mtime < moment
    except FileNotFoundError:
        return False
