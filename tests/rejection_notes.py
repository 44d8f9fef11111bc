"""Rejection notes as a PACS makes them, for tests."""

from collections.abc import Sequence

from pydicom import Dataset
from pydicom.uid import generate_uid

from tests.outbox import instance

KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"


def code(value: str, meaning: str, scheme: str = "DCM") -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def rejection_note(rejected: Sequence[Dataset], title: str = "113001", **attributes: object) -> Dataset:
    """A Key Object Selection that rejects these instances, of one study."""
    study = Dataset()
    study.StudyInstanceUID = rejected[0].StudyInstanceUID
    study.ReferencedSeriesSequence = []
    for uid in dict.fromkeys(one.SeriesInstanceUID for one in rejected):
        series = Dataset()
        series.SeriesInstanceUID = uid
        series.ReferencedSOPSequence = [_reference(one) for one in rejected if one.SeriesInstanceUID == uid]
        study.ReferencedSeriesSequence.append(series)
    given = {
        "StudyInstanceUID": study.StudyInstanceUID,
        "SeriesInstanceUID": generate_uid(),
        "Modality": "KO",
        "PatientID": rejected[0].PatientID,
        "PatientName": rejected[0].get("PatientName", ""),
        "ConceptNameCodeSequence": [code(title, "whatever the sender calls it")],
        "CurrentRequestedProcedureEvidenceSequence": [study],
    }
    return instance(KEY_OBJECTS, **{**given, **attributes})


def _reference(one: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
    return item
