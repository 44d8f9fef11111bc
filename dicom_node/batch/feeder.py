"""Feeds batches to the workers: a few series at a time become jobs, and what became of those is noted.

All that it knows is in the index, and each of its steps is one transaction that may happen again. So it may be killed
at any moment, and several hosts may run it.
"""

import json
import shutil
import threading
import time
from pathlib import Path

import structlog
from sqlalchemy import Connection

from config.reasons import ReasonCode, Refusal
from config.settings import Settings
from dicom_node import heartbeat
from dicom_node.batch.importing import CannotImport, Changed, Importer
from dicom_node.batch.pacs import fetch_series
from dicom_node.scu.association import NoContext, PeerUnavailable
from dicom_node.scu.query import QueryFailed
from storage import batch_cases, batches, imported
from storage.audit import NOBODY, Peer
from storage.batch_cases import Case
from storage.batches import Batch, BatchState
from storage.database import Database
from storage.errors import StorageFull, StoreUnavailable
from storage.files import FileStore
from storage.jobs import ModelRef
from storage.pseudonyms import Pseudonyms
from storage.reopening import OVERRULED
from storage.series import refusal_of_series

log = structlog.get_logger()

STORED_AT_ONCE = 20
"""Series of the store in one transaction: the receiver waits for no more than that."""
AT_A_TIME_S = 5.0
"""Imports of one batch, until the others have their turn."""
FIRST_WAIT_S, LONGEST_WAIT_S, MOST_TRIES = 10.0, 1800.0, 8
MIB = 1 << 20
NO_LONGER_STORED = Refusal(ReasonCode.NO_LONGER_STORED, "Images of the series are no longer stored.")
AWAY = (PeerUnavailable, NoContext, QueryFailed, Changed, OSError, StorageFull, StoreUnavailable)
"""What may pass: the PACS, the disk, a share that is not mounted, or an object store that is away."""


class Feeder:
    """See the module. stop: set when the node ends; nothing new is begun then."""

    def __init__(self, settings: Settings, database: Database, files: FileStore, stop: threading.Event) -> None:
        self._settings, self._database, self._files, self._stop = settings, database, files, stop
        key = settings.storage.pseudonym_key.get_secret_value()
        self._importer = Importer(database, files, Pseudonyms(key), settings.receiver.max_instance_bytes)
        self._staging = settings.data_dir / "batch"
        self._next_fetch_at = 0.0

    def step(self) -> None:
        """Look after every batch once."""
        with self._database.read() as tx:
            found = batches.to_feed(tx)
        for batch in found:
            if self._stop.is_set():
                return
            self._settle(batch.id)
            if batch.state == BatchState.RUNNING:
                self._feed(batch.id)

    def _settle(self, batch_id: int) -> None:
        """Note what has become of the jobs; let go of images that were imported and are analysed."""
        keep = self._settings.batch.keep_images
        with self._database.transaction() as tx:
            paths = batch_cases.settle(tx, batch_id, self._database.now(), _why_failed, keep_images=keep)
            batch_cases.end_if_done(tx, batch_id, self._database.now())
        for path in paths:
            self._files.remove(path)

    def _feed(self, batch_id: int) -> None:
        with self._database.read() as tx:
            batch = batches.get(tx, batch_id)
        room = min(self._settings.batch.ahead - batch.queued, batch.waiting)
        if room < 1 or not self._settings.batch.may_begin(self._database.now()):
            return
        if batch.source == "store":
            self._queue_stored(batch, min(room, STORED_AT_ONCE))
            return
        until = time.monotonic() + AT_A_TIME_S
        while room > 0 and time.monotonic() < until and not self._stop.is_set() and self._may_import(batch):
            case = self._take(batch_id)
            if case is None:
                return
            self._import(batch, case)
            room -= 1

    def _may_import(self, batch: Batch) -> bool:
        if self._files.free_bytes() < 2 * self._settings.storage.low_disk_mb * MIB:
            return False
        return batch.source == "folder" or time.monotonic() >= self._next_fetch_at

    # Of the store

    def _queue_stored(self, batch: Batch, limit: int) -> None:
        now = self._database.now()
        with self._database.transaction() as tx:
            for case in batch_cases.waiting(tx, batch.id, now, limit):
                assert case.series_pk is not None  # noqa: S101 - of the store
                ready, gone = batch_cases.input_of(tx, case.series_pk)
                if gone:
                    batch_cases.leave_out(tx, case, NO_LONGER_STORED, now)
                elif not ready:
                    batch_cases.postpone(tx, case.id, now + FIRST_WAIT_S)
                else:
                    refusal = refusal_of_series(tx, case.series_pk)
                    overruled = refusal is not None and refusal.code in OVERRULED
                    batch_cases.queue(tx, case, case.series_pk, batch.model, now, None if overruled else refusal)

    # Imported

    def _take(self, batch_id: int) -> Case | None:
        """The next case, taken in hand: nobody else takes it up meanwhile."""
        now = self._database.now()
        with self._database.transaction() as tx:
            found = batch_cases.waiting(tx, batch_id, now, 1)
            for case in found:
                batch_cases.postpone(tx, case.id, now + self._settings.worker.lease_s)
        return found[0] if found else None

    def _import(self, batch: Batch, case: Case) -> None:
        place = json.loads(case.place)
        source = self._from_folder if batch.source == "folder" else self._from_pacs

        def renew(tx: Connection, now: float) -> bool:
            return batch_cases.postpone(tx, case.id, now + self._settings.worker.lease_s)

        try:
            with heartbeat.kept(self._database, renew, self._settings.worker.lease_s, case=case.id):
                source(case, place, batch.model)
        except CannotImport as error:
            self._give_up(case, error.refusal)
        except AWAY as error:
            self._try_later(case, error)

    def _from_folder(self, case: Case, place: dict[str, object], model: ModelRef) -> None:
        root, folders = Path(str(place["root"])), place["folders"]
        assert isinstance(folders, list)  # noqa: S101 - as create wrote it
        paths = [path for name in folders for path in sorted((root / name).iterdir()) if path.name[0] != "."]
        self._run(case, paths, model, "folder", NOBODY, None)

    def _from_pacs(self, case: Case, place: dict[str, object], model: ModelRef) -> None:
        pacs = self._settings.dicom_destination(str(place["pacs"]))
        if pacs is None:
            raise PeerUnavailable("its [[destinations]] entry is gone")
        staging = self._staging / str(case.id)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True, mode=0o700)
        try:
            listed = fetch_series(pacs, self._settings.sender, str(place["study"]), case.series_uid, staging)
            if not listed:
                raise CannotImport(ReasonCode.NO_LONGER_STORED, "The PACS does not hold the series.")
            peer = Peer(ae_title=pacs.ae_title, address=pacs.host)
            came = sorted(staging.iterdir())
            if len(came) < len(listed) and case.tries + 1 < MOST_TRIES:
                raise PeerUnavailable(f"{len(came)} of {len(listed)} instances came")
            self._run(case, came, model, "pacs", peer, listed)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            self._next_fetch_at = time.monotonic() + self._settings.batch.pacs_pause_s

    def _run(
        self, case: Case, paths: list[Path], model: ModelRef, source: str, peer: Peer, expected: frozenset[str] | None
    ) -> None:
        series_pk, spare = self._importer.run(
            case.series_uid, paths, self._database.now(), source=source, peer=peer, expected=expected
        )
        with self._database.transaction() as tx:
            goes_on = batches.get(tx, case.batch_id).state in (BatchState.RUNNING, BatchState.PAUSED)
            if not goes_on or not batch_cases.queue(tx, case, series_pk, model, self._database.now()):
                spare += imported.release(tx, series_pk, self._database.now())
        for path in spare:
            self._files.remove(path)

    def _give_up(self, case: Case, refusal: Refusal) -> None:
        with self._database.transaction() as tx:
            batch_cases.leave_out(tx, case, refusal, self._database.now())

    def _try_later(self, case: Case, error: Exception) -> None:
        """The case waits, longer each time; a disk or a PACS that is away for hours costs no case."""
        wait_s = min(FIRST_WAIT_S * 2.0 ** min(case.tries, 20), LONGEST_WAIT_S)
        self._next_fetch_at = time.monotonic() + FIRST_WAIT_S
        # The type and not the text: an error of the system names a file, and that may name a patient.
        log.warning("series not imported", case=case.id, error=type(error).__name__, again_in_s=wait_s)
        with self._database.transaction() as tx:
            batch_cases.postpone(tx, case.id, self._database.now() + wait_s, in_vain=True)


def _why_failed(reason: str | None) -> Refusal:
    return Refusal(ReasonCode.ANALYSIS_FAILED, f"The analysis failed: {reason or 'unknown'}.")
