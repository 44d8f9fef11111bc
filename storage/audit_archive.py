"""Moving the oldest audit rows out of the index into files, without breaking the chain.

An archive holds a whole piece of the chain from its beginning, or from the end of the archive before. Its digest is
recorded in the index together with an audit row, `audit.archived`, which the chain itself protects from then on. Only
what a recorded archive holds can be deleted: triggers refuse all else. After a crash the next run goes on.

    one line of JSON for each row, all its columns by name; compressed with gzip; named after its first and last row
"""

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, delete, func, insert, select

from storage import audit
from storage.database import Database
from storage.errors import CorruptFile, NotFound, StorageError
from storage.models import audit as rows
from storage.models import audit_archives
from storage.private import FILE_MODE, fsync_folder, make_folder

AT_ONCE = 2000
"""Rows that are read, or deleted in one transaction: nobody waits long for one."""
COLUMNS = ("id", *audit.CONTENT, "previous", "hash")
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Archive:
    """A file of audit rows, as the index records it. See `AuditArchive`."""

    last_id: int
    rows: int
    previous: str
    hash: str
    file: str
    sha256: str


def archives(tx: Connection) -> list[Archive]:
    """The archives, the oldest first."""
    columns = [audit_archives.c[name] for name in Archive.__dataclass_fields__]
    return [Archive(**row) for row in tx.execute(select(*columns).order_by(audit_archives.c.last_id)).mappings()]


def archive(
    database: Database,
    folder: Path,
    before: float,
    now: float,
    detail: dict[str, object],
    report: Progress = lambda what, rows: None,
) -> Archive:
    """Write the rows that are older than `before` (Unix seconds) to a file, record it, and delete them from the index.

    They are a piece of the chain: it ends at the first row that is not older. The last row of all always stays.
    detail: more for the audit row, such as who did it. report: gets what is done, and with how many rows.
    Raises NotFound if no row is that old; StorageError if the chain does not hold or the file cannot be written.
    """
    with alone_in(folder):
        return _archive(database, folder, before, now, detail, report)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Whoever writes archives in a folder waits for the other who does. Creates the folder."""
    make_folder(folder)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _archive(
    database: Database, folder: Path, before: float, now: float, detail: dict[str, object], report: Progress
) -> Archive:
    _delete_archived(database, report)
    with database.read() as tx:
        start, head = audit.archived(tx), audit.head(tx)
    try:
        made = _write(database, folder, start, min(before, now), head[0], report)
    except OSError as error:
        raise StorageError(f"{folder}: the archive cannot be written: {error.strerror}") from error
    with database.transaction() as tx:
        tx.execute(insert(audit_archives).values(**vars(made), archived_at=now))
        about = {name: value for name, value in vars(made).items() if name != "previous"}
        audit.append(tx, now, "audit.archived", outcome="ARCHIVED", detail={**about, **detail})
    if database.mark is not None:
        database.mark.sync()  # after a power failure the files must not name a row that is gone from the index
    _delete_archived(database, report)
    return made


def _write(
    database: Database, folder: Path, start: tuple[int, str], before: float, head: int, report: Progress
) -> Archive:
    """A durable file with the rows after `start` (number and hash of a row) that are to be archived."""
    unfinished = folder / "audit.unfinished"
    first, number, last = 0, 0, start
    with new_file(unfinished) as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        for row in _old_rows(database, start[0], before, head):
            reason = audit.why_broken(last[1], row)
            if reason is not None:
                raise StorageError(f"row {row['id']} of the audit trail: {reason}; nothing was archived")
            packed.write(line_of(row))
            first = first or row["id"]
            number, last = number + 1, (row["id"], row["hash"])
            if number % AT_ONCE == 0:
                report("written", number)
    if not number:
        unfinished.unlink()
        raise NotFound("no row of the audit trail is that old")
    name = f"audit-{first:012d}-{last[0]:012d}.jsonl.gz"
    os.replace(unfinished, folder / name)
    fsync_folder(folder)
    return Archive(last[0], number, start[1], last[1], name, sha256_of(folder / name))


def line_of(row: Mapping[str, Any]) -> bytes:
    """A row as an archive holds it."""
    return json.dumps({name: row[name] for name in COLUMNS}, ensure_ascii=False).encode() + b"\n"


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file for its owner alone, durable when the block ends."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _old_rows(database: Database, after: int, before: float, head: int) -> Iterator[dict[str, Any]]:
    while True:
        with database.read() as tx:
            some = select(rows).where(rows.c.id > after, rows.c.id < head).order_by(rows.c.id).limit(AT_ONCE)
            found = [dict(row) for row in tx.execute(some).mappings()]
        for row in found:
            if row["at"] >= before:
                return
            yield row
        if not found:
            return
        after = found[-1]["id"]


def _delete_archived(database: Database, report: Progress) -> None:
    """Delete what archives hold, also what an earlier run left."""
    with database.read() as tx:
        last, _ = audit.archived(tx)
        first = tx.scalar(select(func.min(rows.c.id)))
    while first is not None and first <= last:
        upto = min(first + AT_ONCE - 1, last)
        with database.transaction() as tx:
            tx.execute(delete(rows).where(rows.c.id <= upto))
        report("deleted", upto)
        first = upto + 1


def archived_rows(folder: Path, one: Archive) -> Iterator[dict[str, Any]]:
    """The rows of an archive, in their order.

    Raises CorruptFile if the file is not there, or is not what was recorded; that is known before the first row.
    """
    path = folder / one.file
    try:
        if sha256_of(path) != one.sha256:
            raise CorruptFile(f"archive {path}: it was altered")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)
    except OSError as error:
        raise CorruptFile(f"archive {path}: {error.strerror or 'it cannot be read'}") from error


def problems(folder: Path, held: Sequence[Archive], see: Callable[[dict[str, Any]], None]) -> Iterator[str]:
    """Walk the archives, and say what is wrong. see: gets each row."""
    previous = audit.FIRST
    for one in held:
        if one.previous != previous:
            yield f"archive {one.file}: the one before it is missing"
        previous = one.hash
        try:
            yield from _problem(folder, one, see)
        except CorruptFile as error:
            yield str(error)


def _problem(folder: Path, one: Archive, see: Callable[[dict[str, Any]], None]) -> Iterator[str]:
    previous, count = one.previous, 0
    for row in archived_rows(folder, one):
        reason = audit.why_broken(previous, row)
        if reason is not None:
            yield f"archive {one.file}, row {row['id']}: {reason}"
            return
        previous, count = row["hash"], count + 1
        see(row)
    if (count, previous) != (one.rows, one.hash):
        yield f"archive {one.file}: it does not end where the index says"


def sha256_of(path: Path) -> str:
    """SHA-256 hex of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
