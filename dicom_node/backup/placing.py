"""Putting one file into a backup or out of it: by a hard link if that is possible, else by a copy that is read and
made durable."""

import hashlib
import os
import stat
from collections import Counter
from pathlib import Path

from dicom_node.backup.manifest import private_file, sha256_of
from storage.errors import CorruptFile
from storage.private import fsync_folder, make_folder

CHUNK = 1 << 20
LINKED, KEPT, COPIED = "linked", "kept", "copied"


class Placing:
    """Puts files below a folder. earlier: the folder of an earlier backup; what it holds already is linked from there.

    Stored files have random names and are never altered, so the same name with the same size is the same file.
    counts: how many files were linked, kept from the earlier backup, and copied.
    """

    def __init__(self, root: Path, earlier: Path | None = None) -> None:
        self.root = root
        self.counts: Counter[str] = Counter()
        self._earlier = earlier
        self._folders: set[Path] = {root}

    def place(self, source: Path, path: str, size: int | None = None, sha256: str | None = None) -> str:
        """Put a file at `path` below the root. Returns its SHA-256: the given one, or else that of the bytes.

        size, sha256: what is known of it. A copy must have this digest; a link, this size.
        Raises CorruptFile if it has not, FileNotFoundError if the source is not there, OSError.
        """
        target = self.root / path
        self._make_folder(target.parent)
        if size is not None and source.stat().st_size != size:
            raise CorruptFile(f"{path} has another size than was recorded")
        if _link(source, target):
            self.counts[LINKED] += 1
            return sha256 or sha256_of(target)
        if sha256 and self._link_earlier(path, size, target):
            self.counts[KEPT] += 1
            return sha256
        self.counts[COPIED] += 1
        return copy(source, target, sha256)

    def place_copy(self, source: Path, path: str) -> str:
        """As `place`, of a file that may be altered where it is: never a link to that one. Returns its SHA-256."""
        target = self.root / path
        self._make_folder(target.parent)
        sha256, size = sha256_of(source), source.stat().st_size
        earlier = self._earlier / path if self._earlier else None
        is_kept = earlier is not None and earlier.is_file() and sha256_of(earlier) == sha256
        if is_kept and self._link_earlier(path, size, target):
            self.counts[KEPT] += 1
            return sha256
        self.counts[COPIED] += 1
        return copy(source, target, sha256)

    def _link_earlier(self, path: str, size: int | None, target: Path) -> bool:
        earlier = self._earlier / path if self._earlier else None
        try:
            return earlier is not None and earlier.stat().st_size == size and _link(earlier, target)
        except OSError:
            return False

    def _make_folder(self, folder: Path) -> None:
        while folder not in self._folders:
            make_folder(folder)
            self._folders.add(folder)
            folder = folder.parent

    def sync(self) -> None:
        """Make the names of all placed files durable."""
        for folder in sorted(self._folders, reverse=True):
            fsync_folder(folder)


def copy(source: Path, target: Path, sha256: str | None = None) -> str:
    """Copy a file durably. Returns its SHA-256. Raises CorruptFile if that is not the given one, and copies nothing."""
    digest = hashlib.sha256()
    with source.open("rb") as old, private_file(target) as new:
        try:
            while data := old.read(CHUNK):
                digest.update(data)
                new.write(data)
            new.flush()
            os.fsync(new.fileno())
            if sha256 and digest.hexdigest() != sha256:
                raise CorruptFile(f"{source} is not what was recorded: its SHA-256 differs")
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return digest.hexdigest()


def _link(source: Path, target: Path) -> bool:
    """Whether a hard link could be made: not to another file system, not to a file of somebody else's, and never to a
    symbolic link, which may show something else tomorrow."""
    try:
        if not stat.S_ISREG(source.lstat().st_mode):
            return False
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True
