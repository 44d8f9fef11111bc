"""A step's data sets: what a requester wrote, and what the performer adds (PS3.4 CC.2.5, PS3.3 C.30)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

from pydicom import Dataset

from config.reasons import ReasonCode
from config.uids import is_uid
from storage.step_outcomes import Output
from storage.workitems import InputSeries

SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED = "SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"
MOST_SERIES, MOST_INSTANCES = 64, 50_000
"""A step that names more is not one that this node can be meant for."""
DISCONTINUED: dict[str, tuple[str, str]] = {
    ReasonCode.CORRUPT_INSTANCE: ("110521", "Objects incorrectly formatted"),
    ReasonCode.NOT_CT: ("110522", "Object Types not supported"),
    ReasonCode.NOT_IMAGES: ("110522", "Object Types not supported"),
    ReasonCode.MISSING_SLICES: ("110523", "Object Set incomplete"),
    ReasonCode.REFUSED_INSTANCES: ("110523", "Object Set incomplete"),
}
"""Of CID 9302, where one says the same as the node's reason code."""
UNSPECIFIED = ("110513", "Discontinued for unspecified reason")


@dataclass(frozen=True)
class Workitem:
    """A step as the worklist has it. problem: why its input cannot be used; empty if it can."""

    uid: str
    state: str
    patient_id: str
    inputs: tuple[InputSeries, ...]
    problem: str = ""


@dataclass(frozen=True)
class Coded:
    """A coded concept: value, coding scheme, meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Performer:
    """What a step's end says of who performed it."""

    station: Coded
    workitem: Coded


def read_workitem(uid: str, dataset: Dataset) -> Workitem:
    """A step of its data set, which anybody may have written: what is not usable is named in `problem`."""
    state = str(dataset.get("ProcedureStepState") or "").strip()
    patient_id = str(dataset.get("PatientID") or "").strip()
    try:
        return Workitem(uid, state, patient_id, tuple(_inputs(dataset.get("InputInformationSequence") or ())))
    except ValueError as error:
        return Workitem(uid, state, patient_id, (), str(error))


def _inputs(items: Iterable[Dataset]) -> list[InputSeries]:
    found: dict[tuple[str, str], tuple[set[str], str]] = {}
    for item in items:
        study, series = (str(item.get(name) or "") for name in ("StudyInstanceUID", "SeriesInstanceUID"))
        uids = [str(one.get("ReferencedSOPInstanceUID") or "") for one in item.get("ReferencedSOPSequence") or ()]
        if not uids:
            raise ValueError("The step's input names no instances.")
        if not all(map(is_uid, (study, series, *uids))):
            raise ValueError("The step's input names a UID that is not one.")
        instances, _ = found.setdefault((study, series), (set(), _source(item)))
        instances.update(uids)
    if not found:
        raise ValueError("The step has no input.")
    if len(found) > MOST_SERIES or sum(len(uids) for uids, _ in found.values()) > MOST_INSTANCES:
        raise ValueError(f"The step names more than {MOST_SERIES} series, or {MOST_INSTANCES} instances.")
    if len({series for _, series in found}) < len(found):
        raise ValueError("The step names one series in two studies.")
    return [InputSeries(study, series, frozenset(uids), source) for (study, series), (uids, source) in found.items()]


def _source(item: Dataset) -> str:
    """The AE title that has the images, as the step says."""
    ways = item.get("DICOMRetrievalSequence") or ()
    return next((str(way.get("RetrieveAETitle") or "").strip() for way in ways), "")[:16]


def matching(label: str, stations: Sequence[Coded], codes: Sequence[Coded]) -> list[Dataset]:
    """Identifiers of the queries that together find the steps meant for this node: C-FIND takes one code a query."""
    asked = []
    for station in stations or (None,):
        for code in codes or (None,):
            identifier = Dataset()
            identifier.SOPInstanceUID = ""
            identifier.ProcedureStepState = SCHEDULED
            identifier.InputReadinessState = "READY"
            identifier.ScheduledProcedureStepPriority = ""
            identifier.ScheduledProcedureStepStartDateTime = ""
            identifier.WorklistLabel = label
            identifier.ScheduledStationNameCodeSequence = [_key(station)]
            identifier.ScheduledWorkitemCodeSequence = [_key(code)]
            asked.append(identifier)
    return asked


def _key(code: Coded | None) -> Dataset:
    item = Dataset()
    item.CodeValue = code.value if code else ""
    item.CodingSchemeDesignator = code.scheme if code else ""
    return item


def in_order(answers: Iterable[Dataset]) -> list[str]:
    """SOP Instance UIDs of the steps in a query's answers: those of a high priority first, then by their start."""
    ranks = {"HIGH": 0, "STAT": 0, "MEDIUM": 1, "LOW": 2}
    ready = [
        (
            ranks.get(str(answer.get("ScheduledProcedureStepPriority") or "MEDIUM").strip(), 1),
            str(answer.get("ScheduledProcedureStepStartDateTime") or ""),
            str(answer.get("SOPInstanceUID") or ""),
        )
        for answer in answers
        # A worklist that ignores a key answers with more.
        if str(answer.get("ProcedureStepState") or SCHEDULED).strip() == SCHEDULED
        and str(answer.get("InputReadinessState") or "READY").strip() == "READY"
    ]
    return list(dict.fromkeys(uid for _, _, uid in sorted(ready, key=lambda one: one[:2]) if is_uid(uid)))


def progress(percent: int, text: str) -> Dataset:
    """How far the performer is."""
    inner = Dataset()
    inner.ProcedureStepProgress = str(percent)
    inner.ProcedureStepProgressDescription = text
    changes = Dataset()
    changes.ProcedureStepProgressInformationSequence = [inner]
    return changes


def completed(performer: Performer, began: float, ended: float, outputs: Sequence[Dataset]) -> Dataset:
    """What a step must have to be COMPLETED. began, ended: Unix seconds."""
    changes = progress(100, "Done.")
    changes.UnifiedProcedureStepPerformedProcedureSequence = [_performed(performer, began, ended, outputs)]
    return changes


def canceled(
    performer: Performer, began: float, ended: float, outputs: Sequence[Dataset], reason: str, code: str
) -> Dataset:
    """What a step must have to be CANCELED, with the reason. code: a `ReasonCode`, or empty."""
    changes = progress(100, "Not analysed." if code else "Not done.")
    inner = changes.ProcedureStepProgressInformationSequence[0]
    inner.ProcedureStepCancellationDateTime = _moment(ended)
    inner.ReasonForCancellation = f"{code}: {reason}" if code else reason
    inner.ProcedureStepDiscontinuationReasonCodeSequence = [_code(Coded(*_discontinued(code)))]
    changes.UnifiedProcedureStepPerformedProcedureSequence = [_performed(performer, began, ended, outputs)]
    return changes


def _discontinued(code: str) -> tuple[str, str, str]:
    value, meaning = DISCONTINUED.get(code, UNSPECIFIED)
    return value, "DCM", meaning


def _performed(performer: Performer, began: float, ended: float, outputs: Sequence[Dataset]) -> Dataset:
    item = Dataset()
    item.PerformedStationNameCodeSequence = [_code(performer.station)]
    item.PerformedProcedureStepStartDateTime = _moment(began)
    item.PerformedWorkitemCodeSequence = [_code(performer.workitem)]
    item.PerformedProcedureStepEndDateTime = _moment(ended)
    item.OutputInformationSequence = list(outputs)
    return item


def output_items(outputs: Sequence[Output], retrieval: dict[str, tuple[str, str]]) -> list[Dataset]:
    """Items of the Output Information Sequence: one for each series of each destination that can be asked for it.

    retrieval: by destination: "ae" and its AE title, or "rs" and the base of its addresses.
    """
    known = sorted((one for one in outputs if one.destination in retrieval), key=_place)
    return [_output(list(of_one), retrieval[place[0]]) for place, of_one in groupby(known, key=_place)]


def _place(one: Output) -> tuple[str, str, str]:
    return one.destination, one.study_uid, one.series_uid


def _output(objects: Sequence[Output], way: tuple[str, str]) -> Dataset:
    item = Dataset()
    item.TypeOfInstances = "DICOM"
    item.StudyInstanceUID, item.SeriesInstanceUID = objects[0].study_uid, objects[0].series_uid
    item.ReferencedSOPSequence = [_reference(one) for one in objects]
    how = Dataset()
    if way[0] == "ae":
        how.RetrieveAETitle = way[1]
        item.DICOMRetrievalSequence = [how]
    else:
        how.RetrieveURL = f"{way[1]}/studies/{objects[0].study_uid}/series/{objects[0].series_uid}"
        item.WADORSRetrievalSequence = [how]
    return item


def _reference(one: Output) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = one.sop_class_uid
    item.ReferencedSOPInstanceUID = one.sop_instance_uid
    return item


def _code(code: Coded) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y%m%d%H%M%S.%f+0000")
