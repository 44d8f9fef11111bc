"""Asks the PACS about results that were reported: are their images still there, and still this patient's?

An answer must come twice, in two rounds, before a result is taken back: an archive that moves images may not list them
for a while. What was heard once is kept in memory only; a restart asks twice again.
"""

import time

import structlog

from config.settings import Destination, Settings
from dicom_node.errors import NodeError
from dicom_node.scu.patient_id import patient_id_for_pacs
from dicom_node.scu.query import Query, SeriesKey, querying
from storage.database import Database
from storage.files import FileStore
from storage.recording import lock_recording
from storage.rejections import WHOLE, Rejected, Reported, reject, reported_since

log = structlog.get_logger()

EVERY_S = 60.0
AT_A_TIME = 20
"""Results asked about in one step: a long list must not keep a PACS busy."""
GONE = "the PACS no longer lists all of them"
ANOTHER_PATIENT = "the PACS lists them under another patient"
HOUR_S, DAY_S = 3600.0, 86400.0


class StillThere:
    """Goes through the recent results, a few at each step."""

    def __init__(self, settings: Settings, pacs: Destination, database: Database, files: FileStore) -> None:
        self._settings = settings
        self._pacs = pacs
        self._database = database
        self._files = files
        self._after: tuple[float, int] | None = None
        self._next_round = 0.0
        self._heard: dict[int, str] = {}
        self._heard_now: dict[int, str] = {}

    def step(self) -> None:
        """Ask about the next few results, if it is time."""
        self.step_at(time.time())

    def step_at(self, now: float) -> None:
        """`step` at a time of the caller's choice. A PACS that does not answer is asked again at the next step."""
        if self._after is None:
            if now < self._next_round <= now + self._settings.iocm.poll_hours * HOUR_S:
                return
            self._next_round = now + self._settings.iocm.poll_hours * HOUR_S
            self._after = (now - self._settings.iocm.days * DAY_S, 0)
            self._heard, self._heard_now = self._heard_now, {}
        with self._database.read() as tx:
            few = reported_since(tx, *self._after, limit=AT_A_TIME)
        if not few:
            self._after = None
            return
        try:
            with querying(self._pacs, self._settings.sender) as query:
                for one in few:
                    self._judge(one, self._said(query, one), now)
                    self._after = (one.created_at, one.result_id)
        except NodeError as error:
            log.warning("the PACS was not asked about results", reason=str(error))

    def _said(self, query: Query, one: Reported) -> str | None:
        """What the PACS says against a result; None if nothing."""
        studies = query.studies({"StudyInstanceUID": one.study_instance_uid})
        found = [study for study in studies if study["StudyInstanceUID"] == one.study_instance_uid]
        path = next(iter(one.instances.values()), "")
        patient_id = patient_id_for_pacs(self._settings, self._files, one.patient_id, path)
        known = {study["PatientID"] for study in found} - {""}
        if known and patient_id and patient_id not in known:
            return ANOTHER_PATIENT
        listed = query.instances(SeriesKey(patient_id, one.study_instance_uid, one.series_instance_uid))
        return GONE if one.instances.keys() - listed else None

    def _judge(self, one: Reported, said: str | None, now: float) -> None:
        """Take a result back if this was said in the round before too."""
        if said is None:
            return
        self._heard_now[one.series_pk] = said
        if self._heard.get(one.series_pk) != said:
            return
        rejected = Rejected(one.study_instance_uid, one.series_instance_uid, WHOLE, said)
        with self._database.transaction() as tx:
            lock_recording(tx)
            # A person's decision stands as long as the PACS says the same.
            withdrawn = reject(tx, [rejected], said, now)
        log.info("asked the PACS about a result", series=one.series_pk, said=said, withdrawn=bool(withdrawn))
