"""Which index belongs to which files. Both hold the identity of the store and an epoch; see mark.py.

The files' mark is raised first and the index immediately after, so after a crash the files may be one epoch ahead but
never behind. Within an epoch, the end of the audit trail decides: the files note it with every commit.
"""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, exists, select, text
from sqlalchemy.engine import make_url

from storage import audit
from storage.database import BUSY_TIMEOUT_S, Database
from storage.errors import DatabaseReadOnly, StoreMismatch, StoreReplaced, StoreUnavailable
from storage.facts import has_facts, set_fact
from storage.files import FileStore
from storage.mark import Identity, Mark
from storage.models import conflicts, instances, properties, result_objects
from storage.moved import is_elsewhere, refuse_moved
from storage.orphans import freely_swept, survey

STORE, EPOCH = "store", "epoch"
EPOCH_LOCK = 0x65706F6368  # "epoch": the key of PostgreSQL's advisory lock while the epoch is raised
ADOPT = "'dicom-node index adopt'"
CORRECT = "Correct data_dir or storage.database_url if one of them names the wrong place"


def open_store(
    url: str, files: FileStore, *, create: bool = True, upgrade: bool = True, busy_timeout_s: float = BUSY_TIMEOUT_S
) -> Database:
    """The index at this URL, its schema up to date: that of these files.

    From then on every transaction checks that both are still what was opened.
    create: make the index if there is none. The processes of a node must not: the node made one when it started.
    upgrade: bring an index of an earlier version up to date. Only the start of a node may: processes of the former
    version may still be at work on it.
    Raises StoreMismatch, before anything is changed, if they do not belong together; DatabaseOutdated; WrongClock.
    """
    mark = files.mark()
    refuse_lost_index(url, files)
    if not create and is_missing(url):
        raise StoreMismatch(_index_is_empty(str(make_url(url).database), files.where))
    database = Database(url, busy_timeout_s, create=create)
    with _named_faults(database):
        try:
            held, found, reason = _compare(database, files, mark)
        except StoreUnavailable:
            if create and upgrade:
                raise
            # The node has compared them when it started. Until the store is back, nothing can be acknowledged.
            with database.read() as tx:
                held = found = identity_of(tx)
            reason = None
        if reason is not None:
            raise StoreMismatch(reason)
        if held is None and not create:
            raise StoreMismatch(_index_is_empty(database.where, files.where))
        if upgrade and create:
            database.migrate()
        else:
            database.refuse_other_schema()
        database.refuse_wrong_clock()
    if held is not None and found is not None:
        database.bind(mark)
    return database


def _compare(database: Database, files: FileStore, mark: Mark) -> tuple[Identity | None, Identity | None, str | None]:
    """The identities of index and files, and why they do not belong together; None if they do."""
    noted = mark.noted()  # before the index is read: other processes commit and note meanwhile
    with database.read() as tx:
        held = identity_of(tx)
        found = mark.read()
        reason = is_elsewhere(tx, database.where) or _mismatch(tx, held, found, noted, files.where, database.where)
        return held, found, reason


@contextlib.contextmanager
def _named_faults(database: Database) -> Iterator[None]:
    """If an index cannot be opened, say where it is and what to do."""
    try:
        yield
    except DatabaseReadOnly as error:
        raise DatabaseReadOnly(
            f"the index {database.where} cannot be written: the user that runs the node needs write permission for it "
            "and for its folder, on a file system that is not read-only"
        ) from error


def look(url: str, files: FileStore) -> tuple[Identity | None, Identity | None, str | None]:
    """The identities of index and files, and why they do not belong together; None if they do. Changes nothing."""
    mark = files.mark()
    try:
        refuse_lost_index(url, files)
        if is_missing(url):
            return None, mark.read(), None
        database = Database(url)
        with _named_faults(database):
            return _compare(database, files, mark)
    except StoreMismatch as error:
        return None, mark.read(), str(error)


def open_for_adoption(url: str, files: FileStore, *, merge: bool) -> Database:
    """Open index and files even if they do not belong together; the index is made if there is none.

    Raises StoreMismatch if they belong to different nodes, unless `merge`.
    """
    held, found, reason = look(url, files)
    if held is not None and found is not None and held.store != found.store and not merge:
        raise StoreMismatch(str(reason))
    database = Database(url)
    with _named_faults(database):
        refuse_moved(database)
        database.migrate()
    return database


def claim(database: Database, files: FileStore) -> Identity:
    """What the node does when it starts: raise the epoch of a store, or give index and files without an identity one.

    Raises StoreMismatch if index and files without an identity do not agree.
    """
    with database.read() as tx:
        held = identity_of(tx)
    if held is None:
        _refuse_strangers(database, files)
    with _named_faults(database):
        return raise_epoch(database, files)


def raise_epoch(database: Database, files: FileStore) -> Identity:
    """Raise the epoch of index and files by one, and make the note of the audit trail durable."""
    mark = database.mark or files.mark()
    with _alone(database):
        database.check()
        with database.read() as tx:
            held = identity_of(tx)
        known = [identity for identity in (held, mark.read()) if identity is not None]
        store = known[0].store if known else uuid.uuid4().hex
        raised = Identity(store, max([0, *(identity.epoch for identity in known)]) + 1)
        mark.write(raised)
        with database.transaction() as tx:
            set_fact(tx, STORE, raised.store)
            set_fact(tx, EPOCH, str(raised.epoch))
    database.bind(mark)
    with database.read() as tx:
        mark.note(audit.head(tx))
    mark.sync()
    return raised


@contextlib.contextmanager
def _alone(database: Database) -> Iterator[None]:
    """One host at a time raises the epoch. The mark may lie behind a network: no row is locked meanwhile.

    A SQLite index has one node, whose scheduler is the only one to do it while it runs.
    """
    with contextlib.ExitStack() as held:
        if database.url.get_backend_name() == "postgresql":
            tx = held.enter_context(database.read())
            tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": EPOCH_LOCK})
        yield


class Epoch:
    """Raises the epoch of a running node, so that the age of a copy of index or files is known to about a minute."""

    def __init__(self, database: Database, files: FileStore) -> None:
        self._database = database
        self._files = files
        self._head = self._audit_head()

    def raise_after_work(self) -> None:
        """Raise it if anything has been recorded since the last time.

        Raises StoreReplaced if the files are no longer those of the index: nothing must make them belong together.
        """
        head = self._audit_head()
        if head != self._head:
            with self._database.read() as tx:
                held = identity_of(tx)
            found = self._files.mark().read()
            if held is None or found is None or held.store != found.store:
                raise StoreReplaced(f"the files in {self._files.where} are no longer those of this index")
            self._head = head
            raise_epoch(self._database, self._files)

    def _audit_head(self) -> tuple[int, str]:
        with self._database.read() as tx:
            return audit.head(tx)


def identity_of(tx: Connection) -> Identity | None:
    """The identity that the index holds; None for one without, and for a database without tables."""
    if not has_facts(tx):
        return None
    named = properties.c.name.in_([STORE, EPOCH])
    held = {row.name: row.value for row in tx.execute(select(properties).where(named))}
    return Identity(held[STORE], int(held[EPOCH])) if len(held) == 2 else None


def _mismatch(
    tx: Connection, held: Identity | None, found: Identity | None, noted: tuple[int, str] | None, where: str, index: str
) -> str | None:
    """What does not fit, and what to do about it; None if index and files belong together.

    Other processes may be at work; they write the files' identity, then the index, then the note. So `noted` must be
    read before `tx` begins, and `found` after `held`: then work that goes on meanwhile is no mismatch.
    """
    if held is None:
        # Without a note, the node crashed after the files got their identity and before the index did.
        return _index_is_empty(index, where) if found is not None and noted is not None else None
    if found is None:
        return _files_are_lost(index, where) if _has_files(tx) else None
    if held.store != found.store:
        return (
            f"the index {index} and the files in {where} belong to different nodes (stores {held.store[:8]} and "
            f"{found.store[:8]}). {CORRECT}; {ADOPT} with --merge records the other node's files in this index"
        )
    if held.epoch > found.epoch:
        return (
            f"the files in {where} are older than the index {index} (epochs {found.epoch} and {held.epoch}). Restore "
            f"the files that belong to it; if they are lost, {ADOPT} goes on with those that are there"
        )
    if held.epoch < found.epoch - 1 or (noted is not None and not audit.holds(tx, noted)):
        return (
            f"the index {index} is older than the files in {where}, or went another way: it lacks what was recorded "
            f"last (epochs {held.epoch} and {found.epoch}). Restore the index that belongs to them; if it is lost, "
            f"{ADOPT} records the files that this one does not know"
        )
    return None


def _index_is_empty(index: str, where: str) -> str:
    return (
        f"the index {index} is missing or empty, but the files in {where} belong to one. {CORRECT}, or restore the "
        f"index; if it is lost, {ADOPT} makes a new one from the files"
    )


def _files_are_lost(index: str, where: str) -> str:
    return (
        f"the files in {where} are missing, but the index {index} names some. {CORRECT}, mount the folder, or restore "
        f"the files; if they are lost, {ADOPT} goes on without them"
    )


def _has_files(tx: Connection) -> bool:
    """True if rows name files that should be there."""
    return any(tx.scalar(select(exists().where(condition))) for condition in (
        instances.c.gone_at.is_(None), conflicts.c.id.is_not(None), result_objects.c.id.is_not(None)
    ))  # fmt: skip


def refuse_lost_index(url: str, files: FileStore) -> None:
    """A missing SQLite index must not be created anew beside files that belong to one. Raises StoreMismatch."""
    if is_missing(url) and (files.mark().read() is not None or not files.is_empty()):
        raise StoreMismatch(_index_is_empty(str(make_url(url).database), files.where))


def is_missing(url: str) -> bool:
    """True for a SQLite index whose file is not there."""
    parsed = make_url(url)
    return parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists()


def _refuse_strangers(database: Database, files: FileStore) -> None:
    """Index and files of a version without identities: nearly every file must be named by a row, and be there."""
    found = survey(database, files, float("inf"))
    with database.read() as tx:
        names_files = _has_files(tx)
    if names_files and not found.named:
        raise StoreMismatch(_files_are_lost(database.where, files.where))
    unknown = len(found.unknown)
    if unknown > freely_swept(found.files) or (unknown and not names_files):
        raise StoreMismatch(
            f"the index {database.where} does not know {unknown} of the {found.files} files in {files.where}: it is "
            f"older than they are, or another's. {CORRECT}, or restore the index; if it is lost, {ADOPT} records them"
        )
