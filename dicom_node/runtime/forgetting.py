"""Carrying out what a person asked to be forgotten, to the end, however often it was interrupted.

Rows, files, audit rows, archives, copies of the index: each step can be done again, so whoever finds a request that was
not carried out to the end (the next start of the node, the next `forget`) does all of them.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import structlog
from sqlalchemy import Connection

from config.headers import UNREADABLE, quiet
from config.settings import Settings
from dicom_node.gateways.audit_messages.forwarder import ARCHIVES
from dicom_node.report.header_reader import HeaderReader
from inference.errors import CorruptInstance
from storage import forgetting, forgotten_trail, set_aside
from storage.arrival import clean
from storage.database import Database
from storage.errors import CorruptFile
from storage.files import FileStore, StoredFile
from storage.forgetting import About, Forgetting
from storage.private import fsync_folder
from storage.pseudonyms import Pseudonyms

log = structlog.get_logger()

FILES_AT_ONCE = 200
POLL_S = 1.0
REWRITTEN = ("patients", "studies", "series", "instances", "audit", "forgettings")
"""Tables of PostgreSQL that hold what names a patient, or did."""
Step = Callable[[str], None]


class Forgetter:
    """Carries requests out. archives: the folder of the audit archives. step: gets what is done next, in words."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        files: FileStore,
        archives: Path | None = None,
        step: Step = lambda what: None,
    ) -> None:
        self._database, self._files, self._step = database, files, step
        self._archives = archives or settings.data_dir / ARCHIVES
        self._staging = settings.data_dir / "batch"
        self._pseudonyms = Pseudonyms(settings.storage.pseudonym_key.get_secret_value())

    def go_on(self) -> int:
        """Carry out whatever was not carried out to the end. Returns how many requests that were."""
        with self._database.read() as tx:
            waiting = forgetting.unfinished(tx)
        for one in waiting:
            log.warning("a patient is forgotten on request", number=one.id)
            self._carry_out(one)
        return len(waiting)

    def find_out_whose(self) -> None:
        """Note whose the instances are that were set aside before the index recorded that."""
        with self._database.transaction() as tx:
            set_aside.infer(tx)
        after = 0
        while True:
            with self._database.read() as tx:
                some = set_aside.nameless(tx, after, FILES_AT_ONCE)
            if not some:
                return
            found = {one: self.patient_of(one.path) for one in some}
            with self._database.transaction() as tx:
                set_aside.note(tx, {one: name for one, name in found.items() if name is not None})
            after = some[-1].number

    def missing_archives(self) -> list[str]:
        """Archives of the audit trail that cannot be reached."""
        return forgotten_trail.missing_archives(self._database, self._archives)

    def _carry_out(self, one: Forgetting) -> None:
        self._step("rows")
        self.find_out_whose()
        upto = one.upto if one.upto is not None else self._remove_rows(one)
        self._step("files")
        self._delete_files(one.id)
        self._delete_named_files(one)
        self._step("audit trail")
        forgotten_trail.empty(self._database, one, upto, self._archives)
        self._delete_copies_of_index(one.id)
        unreadable = len(self._files.unreadable())
        with self._database.transaction() as tx:
            detail = {"unreadable_files": unreadable, "left": len(self._left_of(tx, one))}
            forgetting.end(tx, one.id, self._database.now(), detail)

    def _left_of(self, tx: Connection, one: Forgetting) -> list[str]:
        left = forgetting.left_of(tx, About.read(one.about), self._database.now())
        if left:
            log.error("the index still has something of a forgotten patient", number=one.id, left=", ".join(left))
        return left

    def _remove_rows(self, one: Forgetting) -> int:
        with self._database.read() as tx:
            left = forgetting.remaining_series(tx, one)
        for series_pk in left:
            while not self._remove_series(one, series_pk):
                self._step("a worker or a sender has a series in hand; waiting")
                time.sleep(POLL_S)
        with self._database.transaction() as tx:
            return forgetting.remove_the_rest(tx, one, self._pseudonyms.of, self._database.now())

    def _remove_series(self, one: Forgetting, series_pk: int) -> bool:
        with self._database.transaction() as tx:
            return forgetting.remove_series(tx, one, series_pk, self._database.now())

    def _delete_files(self, number: int) -> None:
        """The files go first: after a crash they are still noted."""
        while True:
            with self._database.read() as tx:
                paths = forgetting.files_to_delete(tx, number, FILES_AT_ONCE)
            if not paths:
                return
            self._files.remove_all(paths)
            with self._database.transaction() as tx:
                forgetting.files_are_deleted(tx, number, paths)

    def _delete_named_files(self, one: Forgetting) -> None:
        """What no row names: files of the quarantine, and those that a batch is fetching."""
        patient_ids = About.read(one.about).patient_ids
        aside = [path for _, paths in self._files.quarantined() for path in paths]
        mine = [path for path in aside if self.patient_of(path) in patient_ids]
        deleted = self._files.remove_all(mine)
        for path in [found for found in self._staging.rglob("*") if found.is_file()]:
            if self._named(path) in patient_ids:
                path.unlink(missing_ok=True)
                deleted += 1
        with self._database.transaction() as tx:
            forgetting.count_files(tx, one.id, deleted)

    def patient_of(self, path: str) -> str | None:
        """The Patient ID in a stored file, as the index keeps it; None if it cannot be read."""
        return self._as_kept(stored_text(self._files, path, "PatientID"))

    def _named(self, file: Path) -> str | None:
        return self._as_kept(header_text(file, "PatientID"))

    def _as_kept(self, patient_id: str | None) -> str | None:
        return None if patient_id is None else self._pseudonyms.of(clean(patient_id))

    def _delete_copies_of_index(self, number: int) -> None:
        """Those that were made before a change of the schema hold every patient of that time."""
        copies = list(copies_of_index(self._database))
        for path in copies:
            path.unlink(missing_ok=True)
            fsync_folder(path.parent)
        with self._database.transaction() as tx:
            forgetting.count_files(tx, number, len(copies))


def stored_text(files: FileStore, path: str, keyword: str) -> str | None:
    """As `header_text`, for a stored file."""
    with contextlib.suppress(CorruptFile), files.at_hand([StoredFile(path, "", 0)]) as (file,):
        return header_text(file, keyword)
    return None


def header_text(file: Path, keyword: str) -> str | None:
    """The value of a text element of a DICOM file; empty if it has none, None if the file cannot be read."""
    from dicom_node.report.sources import read_attributes  # takes seconds, as it loads what makes reports

    try:
        with quiet():
            values = HeaderReader(read_attributes(file, ("SpecificCharacterSet", keyword))).values(keyword)
    except (CorruptInstance, OSError, *UNREADABLE):
        return None
    return values[0].strip() if values else ""


def copies_of_index(database: Database) -> Iterable[Path]:
    """The copies of a SQLite index that were made before its schema changed."""
    if not database.is_server:
        index = Path(str(database.url.database))
        yield from sorted(index.parent.glob(f"{index.name}.schema-*.backup"))


def compact(database: Database, tables: Collection[str] = REWRITTEN) -> None:
    """Write the index anew, so that no free page holds former rows. SQLite: the node must be stopped."""
    if database.is_server:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in tables:
                connection.exec_driver_sql(f"VACUUM {table}")
        return
    database.close()
    with contextlib.closing(sqlite3.connect(str(database.url.database), isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
