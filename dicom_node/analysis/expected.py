"""How many instances a series will have, as the PACS counts it while it still arrives. It is a guess for `ahead` alone:
whether a series is complete is asked again, when nothing more comes (`dicom_node.completion`)."""

import threading
import time

import structlog

from config.settings import Destination, Settings
from dicom_node.scu.association import NoContext, PeerUnavailable
from dicom_node.scu.patient_id import patient_id_for_pacs
from dicom_node.scu.query import NotKnown, QueryFailed, SeriesKey, querying, quick_caller
from storage import series
from storage.database import Database
from storage.errors import StorageError
from storage.files import FileStore

log = structlog.get_logger()

_AGAIN_AFTER_S = 5.0
"""If more have come than the PACS counted, it still gets the series itself. Each further wait is twice as long."""


class ExpectedCount:
    """The count of one series at a time, by C-FIND, in a thread of its own: nothing waits for the answer.

    A count is believed only if it exceeded what was here at some time: a PACS that still gets the series itself, and
    passes on each slice, has at any time as many as are here.

    Only a PACS that the site lets the node ask is asked (`completion.query_destination`), and after a failure not for
    `completion.silence_s`.
    """

    def __init__(self, settings: Settings, database: Database, files: FileStore) -> None:
        asked = settings.queried_destination
        self._pacs = asked if isinstance(asked, Destination) else None
        self._settings = settings
        self._database = database
        self._files = files
        self._lock = threading.Lock()
        self._series_pk: int | None = None
        self._count = 0
        self._foretold = False
        self._asking = False
        self._silent_until = self._next_at = 0.0
        self._wait_s = _AGAIN_AFTER_S

    def of(self, series_pk: int, here: int) -> int | None:
        """How many a series will have, None if that is not known. May begin with a question.

        here: how many are.
        """
        if self._pacs is None:
            return None
        now = time.monotonic()
        with self._lock:
            if series_pk != self._series_pk:
                self._series_pk, self._count, self._next_at, self._wait_s = series_pk, 0, 0.0, _AGAIN_AFTER_S
            self._foretold = self._count > here or (self._foretold and self._count == here)
            if self._foretold:
                return self._count
            if self._asking or now < max(self._next_at, self._silent_until):
                return None
            self._asking = True
        threading.Thread(target=self._ask, args=(self._pacs, series_pk), name="expected", daemon=True).start()
        return None

    def _ask(self, pacs: Destination, series_pk: int) -> None:
        count, silent_s = 0, self._settings.completion.silence_s
        try:
            key = self._key(series_pk)
            with querying(pacs, quick_caller(self._settings)) as query:
                count, silent_s = query.count(key), 0.0
        except NotKnown:
            silent_s = 0.0  # says nothing of other series
        except (PeerUnavailable, NoContext, QueryFailed, StorageError) as error:
            log.info("the PACS was asked in vain how many slices come", series=series_pk, error=type(error).__name__)
        finally:
            with self._lock:
                now, self._asking = time.monotonic(), False
                self._silent_until = now + silent_s
                if series_pk == self._series_pk:
                    self._count, self._next_at = count, now + self._wait_s
                    self._wait_s *= 2

    def _key(self, series_pk: int) -> SeriesKey:
        """Raises NotFound if the series is gone."""
        with self._database.read() as tx:
            found = series.get_series(tx, series_pk)
            held = [item.path for item in series.series_instances(tx, series_pk) if item.gone is None]
        patient_id = found.patient_id
        if held:
            patient_id = patient_id_for_pacs(self._settings, self._files, patient_id, held[0])
        return SeriesKey(patient_id, found.study_instance_uid, found.series_instance_uid)
