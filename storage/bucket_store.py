"""The file store in a bucket. The names are those that a folder would have; so a folder can be copied to a bucket.

What arrives is written to a bounded spool on this machine. `commit` stores it in the bucket, and only the server's
answer makes it durable. What is read comes through a bounded cache.
"""

import contextlib
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from storage.bucket import Bucket
from storage.bucket_mark import BucketMark
from storage.cache import Cache
from storage.errors import CorruptFile, StorageError, StorageFull
from storage.files import QUARANTINE, SUFFIX, UNREADABLE, FileStore, Kept, NewFile, StoredFile, is_a_day
from storage.mark import Mark
from storage.private import FILE_MODE, make_folder
from storage.workspace import Workspace

AT_ONCE = 8
"""Objects that are fetched at the same time."""
MOST_DAYS = 400
DAY_S = 86_400


class Spool:
    """How much of the spool is in use. max_bytes: of this process."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._used = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Raises StorageFull if there is no room for this many bytes more."""
        with self._lock:
            if self._used + count > self._max_bytes:
                raise StorageFull("the spool of the object store is full")
            self._used += count

    def give_back(self, count: int) -> None:
        """These bytes have left the spool."""
        with self._lock:
            self._used -= count


class BucketFile(NewFile):
    """A file being written to the spool. path: its name in the store. keep: stores the whole file in the bucket."""

    def __init__(self, spooled: Path, path: str, spool: Spool, keep: Callable[[StoredFile, Path], None]) -> None:
        self._spooled = spooled
        self._stored = path
        self._spool = spool
        self._keep = keep
        self._sha = hashlib.sha256()
        self._size = 0
        self._is_committed = False
        try:
            self._fd = os.open(spooled, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        except OSError as error:
            raise StorageFull("the spool of the object store cannot be written") from error

    @property
    def path(self) -> Path:
        return self._spooled

    @property
    def size(self) -> int:
        return self._size

    @property
    def is_committed(self) -> bool:
        return self._is_committed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        try:
            self._spool.take(view.nbytes)
            self._size += view.nbytes
            self._sha.update(view)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.discard()
            raise StorageFull("the spool of the object store cannot be written") from error
        except StorageFull:
            self.discard()
            raise

    def describe(self) -> StoredFile:
        return StoredFile(self._stored, self._sha.hexdigest(), self._size)

    def commit(self) -> StoredFile:
        described = self.describe()
        try:
            self._keep(described, self._spooled)
        except BaseException:
            self.discard()
            raise
        self.discard()
        self._is_committed = True
        return described

    def discard(self) -> None:
        """Free the spool. What reached the bucket without an answer is swept, as after a crash."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        os.close(fd)
        self._spool.give_back(self._size)
        with contextlib.suppress(OSError):
            os.unlink(self._spooled)


class BucketStore(FileStore):
    """The objects of a bucket that are named year/month/day/<random>.dcm (UTC).

    local: a folder on this machine for spool, cache and the note of the audit trail. cache_bytes: of all processes.
    spool_bytes: of this process. reserve_bytes: of the disk, that the cache must leave free. clock: Unix seconds; it
    only chooses the folder of a new file.
    """

    row_may_come_first = False
    lists_slowly = True

    def __init__(
        self,
        bucket: Bucket,
        local: Path,
        cache_bytes: int,
        spool_bytes: int,
        reserve_bytes: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.where = bucket.where
        self._bucket = bucket
        self._local = local
        self._cache = Cache(local / "cache", cache_bytes, reserve_bytes)
        self._workspace = Workspace(local / "passing")
        self._spool = Spool(spool_bytes)
        self._clock = clock

    def create(self) -> BucketFile:
        self.check()
        name = f"{uuid.uuid4().hex}{SUFFIX}"
        path = f"{_day(self._clock())}/{name}"
        return BucketFile(self._workspace.file(name), path, self._spool, self._keep)

    def _keep(self, file: StoredFile, spooled: Path) -> None:
        """Store a whole file in the bucket; durable when this returns."""
        try:
            self._bucket.put_new(file.path, spooled)
        except FileExistsError:
            self._expect(file)
        self._cache.add(_name(file.path), spooled)

    def _expect(self, file: StoredFile) -> None:
        """The name is taken: by this file, if the answer to an earlier request was lost. Raises StorageError if not."""
        with self._workspace.folder() as folder:
            if self._bucket.download(file.path, folder / "there") != file.sha256:
                raise StorageError(f"there is another object {file.path}: it must not be overwritten")

    @contextlib.contextmanager
    def at_hand(self, kept: Sequence[Kept], trusted: Collection[str] = ()) -> Iterator[list[Path]]:
        with self._workspace.folder() as folder:
            pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch")
            try:
                paths = list(pool.map(partial(self._bring, folder), kept))
            finally:
                pool.shutdown(cancel_futures=True)
            yield paths

    def _bring(self, folder: Path, item: Kept) -> Path:
        """A link in `folder` to the copy of a stored file, which is fetched if there is none or a damaged one.

        Copies are never synced: after a power failure, any may be torn. Without a digest, none is known to be good.
        """
        name = _name(item.path)
        target = folder / name
        if self._cache.link(name, target):
            if _sha256(target) == item.sha256:
                return target
            self._cache.forget(name)
            target.unlink()
        self._fetch(item, target)
        self._cache.add(name, target)
        return target

    def _fetch(self, item: Kept, target: Path) -> None:
        """Fetch a stored file from the bucket. Raises CorruptFile."""
        found = self._bucket.download(item.path, target)
        if found is None:
            raise CorruptFile(f"stored file {item.path} is missing")
        if item.sha256 and found != item.sha256:
            raise CorruptFile(f"stored file {item.path} is not what was stored: its SHA-256 differs")

    def absolute(self, path: str) -> Path:
        raise StorageError(
            f"the images lie in {self.where}, and this reads them from a folder: copy them to one, with the bucket's "
            "own tools, and name that folder"
        )

    def read_verified(self, path: str, sha256: str) -> bytes:
        with self.at_hand([StoredFile(path, sha256, 0)]) as (file,):
            return file.read_bytes()

    def make_durable(self, path: str, sha256: str) -> None:
        with self._workspace.folder() as folder:
            self._fetch(StoredFile(path, sha256, 0), folder / _name(path))  # the copy here proves nothing

    def size_of(self, path: str) -> int | None:
        found = self._bucket.describe(path)
        return found.size if found is not None else None

    def written_at(self, path: str) -> float:
        found = self._bucket.describe(path)
        return found.written_at if found is not None else 0.0

    def remove(self, path: str) -> bool:
        return self.remove_all([path]) == 1

    def remove_all(self, paths: Sequence[str]) -> int:
        """As in a folder; which of them were gone already is not known."""
        for path in paths:
            self._cache.forget(_name(path))
        self._bucket.delete(paths)
        return len(paths)

    def folders(self, older_than: float, since: float = 0.0) -> Iterator[tuple[int, list[str]]]:
        for folder in self._days(since):
            for page in self._bucket.pages(folder):
                stored = [one for one in page if one.key.endswith(SUFFIX)]
                yield len(stored), [one.key for one in stored if one.written_at < older_than]

    def _days(self, since: float) -> list[str]:
        """The folders that hold what was stored since then: of single days, or of years."""
        now = self._clock()
        if now - since > MOST_DAYS * DAY_S:
            return [folder for folder in self._bucket.folders("") if folder.isdigit()]
        return [_day(since + number * DAY_S) for number in range(max(0, int((now - since) // DAY_S)) + 3)]

    def _move(self, source: str, target: str) -> None:
        self._bucket.move(source, target)

    def quarantined(self) -> list[tuple[str, list[str]]]:
        days = [folder for folder in self._bucket.folders(QUARANTINE) if is_a_day(_name(folder))]
        return [(day, self._names(day)) for day in days]

    def unreadable(self) -> list[str]:
        return self._names(UNREADABLE)

    def _names(self, folder: str) -> list[str]:
        return [one.key for page in self._bucket.pages(folder) for one in page if one.key.endswith(SUFFIX)]

    def delete_quarantine(self, folder: str) -> int:
        count = 0
        for page in self._bucket.pages(folder):
            self._bucket.delete([one.key for one in page])
            count += sum(one.key.endswith(SUFFIX) for one in page)
        return count

    def is_empty(self) -> bool:
        return not any(one.key.endswith(SUFFIX) for page in self._bucket.pages("", size=10) for one in page)

    def mark(self) -> Mark:
        return BucketMark(self._bucket, self._local)

    def free_bytes(self) -> int:
        make_folder(self._local)
        return shutil.disk_usage(self._local).free

    def check(self) -> None:
        self._bucket.check()

    def ask(self) -> None:
        self._bucket.ask()


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y/%m/%d}"


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
