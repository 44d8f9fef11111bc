"""Rejection notes: Key Object Selection documents that say which images are no longer to be used.

Source: IHE Radiology, Imaging Object Change Management (IOCM): RAD TF-3 4.66; titles of DICOM PS3.16 CID 7011.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from sqlalchemy import Connection

from config.headers import UNREADABLE, bounded, quiet
from storage import audit
from storage.errors import CorruptFile
from storage.files import FileStore
from storage.quiet_time import DueSeries
from storage.recording import KEY_OBJECT_SELECTION
from storage.rejections import WHOLE, Rejected, reject
from storage.series import StoredInstance

log = structlog.get_logger()

TITLES = {
    "113001": "Rejected for Quality Reasons",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
    "113039": "Data Retention Policy Expired",
}
"""Document titles by which a Key Object Selection is a rejection note."""
MOST_BYTES = 32 << 20
READS = 400_000
"""For one note, as in `config.headers`: a note on 10,000 images needs about a third."""
_UID = re.compile(r"[0-9.]{1,64}")
_READ = ["SOPInstanceUID", "ConceptNameCodeSequence", "CurrentRequestedProcedureEvidenceSequence"]


@dataclass(frozen=True)
class Note:
    """A rejection note. why: its title, in our own words."""

    sop_instance_uid: str
    why: str
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class Unreadable:
    """A Key Object Selection that cannot be read: it might have been a rejection note. reason: without its content."""

    sop_instance_uid: str
    reason: str


def notes_of(instances: Sequence[StoredInstance], files: FileStore) -> list[Note | Unreadable]:
    """The rejection notes among the instances of a series. Raises StoreUnavailable while the file store is away."""
    held = [one for one in instances if one.sop_class_uid == KEY_OBJECT_SELECTION and one.gone is None]
    found = [_read_stored(one, files) for one in held]
    return [note for note in found if note is not None]


def _read_stored(one: StoredInstance, files: FileStore) -> Note | Unreadable | None:
    if one.size > MOST_BYTES:
        return Unreadable(one.sop_instance_uid, "it is too large")
    try:
        with files.at_hand([one]) as (path,):
            return read_note(path, one.sop_instance_uid)
    except CorruptFile:
        return Unreadable(one.sop_instance_uid, "its file is not what was received")


def heed(tx: Connection, note: Note | Unreadable, one: DueSeries, now: float) -> None:
    """Take back what was reported on the images that a note rejects, and audit it; in the transaction that closes it.

    one: the note's series.
    """
    about = audit.Subject(
        series_uid=one.series_instance_uid,
        study_uid=one.study_instance_uid,
        sop_uid=note.sop_instance_uid,
        patient_id=one.patient_id,
    )
    if isinstance(note, Unreadable):
        audit.append(tx, now, "rejection.unreadable", about, outcome="IGNORED", detail={"reason": note.reason})
        log.warning("rejection note cannot be read", series=one.series_pk, reason=note.reason)
        return
    withdrawn = reject(tx, note.rejected, note.sop_instance_uid, now)
    detail = {"why": note.why, "instances": len(note.rejected), "series_withdrawn": len(withdrawn)}
    audit.append(tx, now, "rejection.noted", about, outcome="NOTED", detail=detail)
    log.info("rejection note", series=one.series_pk, withdrawn=withdrawn)


def read_note(path: Path, sop_instance_uid: str) -> Note | Unreadable | None:
    """What a Key Object Selection rejects; None if it is about something else."""
    try:
        with quiet(), path.open("rb") as file:
            document = dcmread(bounded(file, READS), specific_tags=_READ)
            title = _title(document)
            return None if title is None else Note(sop_instance_uid, title, tuple(_rejected(document, title)))
    except (InvalidDicomError, OSError, *UNREADABLE) as error:  # OSError: pydicom's for items that end too soon
        return Unreadable(sop_instance_uid, f"it cannot be read ({type(error).__name__})")


def _title(document: Dataset) -> str | None:
    """The document's title if it rejects something: in our own words, whatever the note calls it."""
    (concept,) = document.ConceptNameCodeSequence
    code = str(concept.CodeValue)
    return f"{TITLES[code]} ({code}, DCM)" if concept.CodingSchemeDesignator == "DCM" and code in TITLES else None


def _rejected(document: Dataset, why: str) -> Iterator[Rejected]:
    """What the evidence lists. A study without series, or a series without instances, is rejected as a whole."""
    for study in document.get("CurrentRequestedProcedureEvidenceSequence") or []:
        study_uid = _uid(study.StudyInstanceUID)
        series_items = study.get("ReferencedSeriesSequence") or []
        if not series_items:
            yield Rejected(study_uid, WHOLE, WHOLE, why)
        for series in series_items:
            series_uid, instances = _uid(series.SeriesInstanceUID), series.get("ReferencedSOPSequence") or []
            for uid in [_uid(one.ReferencedSOPInstanceUID) for one in instances] or [WHOLE]:
                yield Rejected(study_uid, series_uid, uid, why)


def _uid(value: object) -> str:
    if not _UID.fullmatch(str(value)):
        raise ValueError("it names something by what is not a UID")
    return str(value)
