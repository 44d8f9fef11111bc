"""What a file store is, wherever its files lie: `storage/folder.py` keeps them in a folder, others elsewhere.

Files have generated names: nothing that came over the network becomes part of a path. Only a row in the index makes a
file real, and the sweep sets aside what no row names. Paths are relative to the store's root, with forward slashes.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self

from storage.mark import Mark

SUFFIX = ".dcm"
QUARANTINE = "quarantine"
UNREADABLE = f"{QUARANTINE}/unreadable"
"""Files that may have been acknowledged and cannot be read: kept until a person deletes them."""


@dataclass(frozen=True)
class StoredFile:
    """A file in the store. path: relative to its root. sha256: hex over all its bytes. size: bytes."""

    path: str
    sha256: str
    size: int


class Kept(Protocol):
    """Whatever names a stored file: a row of an instance or of a result's object, for example."""

    @property
    def path(self) -> str:
        """Relative to the store's root."""

    @property
    def sha256(self) -> str:
        """Hex over all bytes; empty if it is not known, and then not checked."""


class NewFile(ABC):
    """A file being written. Ends with `commit` or `discard`; used as a context manager, it discards
    itself unless it was committed."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """Where the bytes lie on this machine until the file is committed."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes written so far."""

    @abstractmethod
    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. If there is no space, removes the file and raises StorageFull."""

    @abstractmethod
    def describe(self) -> StoredFile:
        """What `commit` will return, before the bytes are durable.

        It allows the making durable and the commit of its row to overlap: success may be answered only after both.
        """

    @abstractmethod
    def commit(self) -> StoredFile:
        """Make the bytes and the name durable. Raises StorageFull or StoreUnavailable, with the file removed."""

    @abstractmethod
    def discard(self) -> None:
        """Remove the file; harmless when repeated."""

    @property
    @abstractmethod
    def is_committed(self) -> bool:
        """True once it is durable."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self.is_committed:
            self.discard()


class FileStore(ABC):
    """The stored files of a node.

    where: the store in words, for messages. row_may_come_first: a file may be made durable while its row is committed;
    a crash may then leave a row without its file, so a start looks for the files of all rows. Otherwise the file comes
    first. lists_slowly: a list of all files takes requests over the network.
    """

    where: str
    row_may_come_first: ClassVar[bool]
    lists_slowly: ClassVar[bool]

    @abstractmethod
    def create(self) -> NewFile:
        """Open a new, empty file under a generated name. Raises StorageFull, StoreUnavailable."""

    def write_durably(self, chunks: Iterable[bytes]) -> StoredFile:
        """Write a whole file; it is durable when this returns. Raises as `create`, with nothing left behind."""
        with self.create() as new:
            for chunk in chunks:
                new.write(chunk)
            return new.commit()

    @abstractmethod
    def at_hand(self, kept: Sequence[Kept], trusted: Collection[str] = ()) -> AbstractContextManager[list[Path]]:
        """Local files with the bytes of stored ones, in their order, for as long as the block runs.

        trusted: paths whose SHA-256 need not be checked here, if the store is this machine's own.
        Raises CorruptFile if one is missing or its SHA-256 differs, StoreUnavailable.
        """

    @abstractmethod
    def absolute(self, path: str) -> Path:
        """The lasting local file of a stored path, whether or not it is there.

        Raises StorageError for a path that leads out of the store, and if files do not lie in a folder.
        """

    @abstractmethod
    def read_verified(self, path: str, sha256: str) -> bytes:
        """The bytes of a stored file. Raises CorruptFile if it is missing or its SHA-256 differs; StoreUnavailable."""

    @abstractmethod
    def make_durable(self, path: str, sha256: str) -> None:
        """Make sure that a stored file outlives a power failure, whoever wrote it.

        Raises CorruptFile if it is missing or its SHA-256 differs; StoreUnavailable.
        """

    @abstractmethod
    def size_of(self, path: str) -> int | None:
        """Bytes of a stored file; None if it is missing."""

    @abstractmethod
    def written_at(self, path: str) -> float:
        """Unix seconds of the moment when a stored file was written."""

    @abstractmethod
    def remove(self, path: str) -> bool:
        """Delete a stored file. Returns False if it is known to have been gone already."""

    def remove_all(self, paths: Sequence[str]) -> int:
        """Delete stored files. Returns how many."""
        return sum(self.remove(path) for path in paths)

    @abstractmethod
    def folders(self, older_than: float, since: float = 0.0) -> Iterator[tuple[int, list[str]]]:
        """A part of the store at a time: the number of its files, and the paths of those written before `older_than`.

        older_than: Unix seconds. It spares files that are still being received and have no row yet.
        since: Unix seconds; a store that lists slowly leaves out the files of days before.
        """

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

    def keep_unreadable(self, path: str) -> str:
        """Move a file, stored or of the quarantine, to those that are never deleted. Returns its path there."""
        stored = path.split("/", 2)[2] if is_quarantined(path) else path
        kept = f"{UNREADABLE}/{stored}"
        if kept != path:
            self._move(path, kept)
        return kept

    @abstractmethod
    def _move(self, source: str, target: str) -> None:
        """Give a file another path, durably; harmless if it is gone."""

    @abstractmethod
    def quarantined(self) -> list[tuple[str, list[str]]]:
        """The folders of the quarantine, oldest first, each with the paths of its files, all below the root."""

    @abstractmethod
    def unreadable(self) -> list[str]:
        """The paths, below the root, of the files that are kept although they cannot be read."""

    @abstractmethod
    def delete_quarantine(self, folder: str) -> int:
        """Delete a folder of the quarantine with its files. Returns how many there were."""

    @abstractmethod
    def is_empty(self) -> bool:
        """True if there is no file at all, set aside or not."""

    @abstractmethod
    def mark(self) -> Mark:
        """What these files say about themselves; see mark.py."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Bytes of this machine's disk that are still free for new files."""

    @abstractmethod
    def check(self) -> None:
        """Raises StoreUnavailable while the store is known to be away. Quick: it asks only if that is to be seen."""

    @abstractmethod
    def ask(self) -> None:
        """Ask the store now whether it answers. Raises StoreUnavailable if it does not."""


def is_quarantined(path: str) -> bool:
    """True for the path of a file that was set aside."""
    return path.startswith(f"{QUARANTINE}/")


def is_a_day(name: str) -> bool:
    """True for the name of a folder of the quarantine that is deleted when it is old."""
    try:
        return date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False
