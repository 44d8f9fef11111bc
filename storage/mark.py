"""What the files folder says about itself: which store it is, how old it is, and how far the audit trail had come.

    store.json   {"store": UUID, "epoch": number}: replaced as a whole and made durable before the index says the same
    store.head   number and hash of the last audit row: overwritten with every commit, not synced

After a power failure `store.head` may be behind the index; it is never ahead of it. So an index without the row
named there is older than the files.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from storage.errors import StorageError, StoreReplaced
from storage.private import FILE_MODE, fsync_folder

IDENTITY, HEAD = "store.json", "store.head"


@dataclass(frozen=True)
class Identity:
    """Of an index or of a files folder. store: UUID, hex. epoch: grows with each start and each minute of work."""

    store: str
    epoch: int


class Mark:
    """The mark of one files folder. Nothing is opened or written before `open` and `write`."""

    def __init__(self, root: Path) -> None:
        self._identity, self._head = root / IDENTITY, root / HEAD
        self._fd = -1
        self._file: tuple[int, int] | None = None

    def read(self) -> Identity | None:
        """The identity, None if there is none. Raises StorageError for one that cannot be read."""
        try:
            return identity_of(self._identity.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self._identity} cannot be read: {type(error).__name__}; restore it") from error

    def write(self, identity: Identity) -> None:
        """Replace the identity, durably. Raises PermissionError; StorageError if writing fails for another reason."""
        new = self._identity.with_name(f"{IDENTITY}.new")
        with _named(self._identity):
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
            try:
                os.write(fd, json.dumps(asdict(identity)).encode())
                os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(new, self._identity)
            fsync_folder(self._identity.parent)

    def open(self) -> None:
        """Hold the note open from now on, so that `check` can tell this folder from another under its name."""
        if self._fd < 0:
            with _named(self._head):
                self._fd = os.open(self._head, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            found = os.fstat(self._fd)
            self._file = found.st_dev, found.st_ino

    def check(self) -> None:
        """Raises StoreReplaced if the name of the opened folder now belongs to another folder, or to none."""
        if self._file is None:
            return
        try:
            found = os.stat(self._head)
        except OSError:
            raise StoreReplaced("the files folder was removed or renamed") from None
        if (found.st_dev, found.st_ino) != self._file:
            raise StoreReplaced("the files folder was replaced")

    def note(self, head: tuple[int, str]) -> None:
        """Write down how far the audit trail has come, in one write; does nothing before `open`."""
        if self._fd >= 0:
            os.pwrite(self._fd, self._line(head), 0)

    @staticmethod
    def _line(head: tuple[int, str]) -> bytes:
        line = f"{head[0]:020d} {head[1]}"
        return f"{line} {zlib.crc32(line.encode()):08x}\n".encode()

    def sync(self) -> None:
        """Make the note durable."""
        if self._fd >= 0:
            os.fsync(self._fd)

    def noted(self) -> tuple[int, str] | None:
        """What was noted last; None if there is nothing, or only a part."""
        try:
            return head_of(self._head.read_bytes())
        except OSError:
            return None

    def close(self) -> None:
        """Hold the note no longer."""
        fd, self._fd, self._file = self._fd, -1, None
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def identity_of(data: bytes) -> Identity:
    """The identity in the bytes of store.json. Raises ValueError, KeyError or TypeError for others."""
    value = json.loads(data)
    return Identity(str(value["store"]), int(value["epoch"]))


def head_of(data: bytes) -> tuple[int, str] | None:
    """What the bytes of store.head note; None if there is nothing, or only a part."""
    try:
        line, _, check = data.decode("ascii").strip().rpartition(" ")
        number, _, digest = line.partition(" ")
        return (int(number), digest) if int(check, 16) == zlib.crc32(line.encode()) else None
    except ValueError:
        return None


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise  # names the file by itself
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
