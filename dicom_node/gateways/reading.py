"""A result as gateways tell it, read from the stored report, whose digest is checked, and from the index."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from config.headers import UNREADABLE, quiet
from dicom_node.gateways.interface import CannotCompose
from dicom_node.gateways.reported import (
    FindingSaid,
    Former,
    ModelSaid,
    Name,
    ObjectSaid,
    PatientSaid,
    ReportedResult,
    StudySaid,
)
from dicom_node.gateways.sr_content import Group, groups_of, sentences_of
from storage.coded import Content, content_of
from storage.database import Database
from storage.errors import CorruptFile
from storage.files import FileStore
from storage.object_kinds import ObjectKind
from storage.results import StoredObject, get_result, input_of, object_by_uid, objects_of

NO_REPORT = "the series was not analysed, and report_not_analysed in [report] was off"
"""Why a result has none."""


def read_reported(database: Database, files: FileStore, result_id: int) -> ReportedResult:
    """Read a result as it is told. Raises NotFound, CannotCompose, CorruptFile or StoreUnavailable."""
    with database.read() as tx:
        row, content = get_result(tx, result_id), content_of(tx, result_id)
        objects, source = objects_of(tx, result_id), input_of(tx, result_id)
    stored = next((item for item in objects if item.kind == ObjectKind.REPORT), None)
    if stored is None:
        raise CannotCompose(f"result {result_id} has no report: {NO_REPORT}")
    report = _parsed(files, stored)
    try:
        former = _former(database, files, report, result_id)
        return _reported(row, report, content, objects, source.series_instance_uid, former)
    except UNREADABLE as error:
        # The type and not the text: a library's message may quote patient data.
        raise CannotCompose(f"its report cannot be understood ({type(error).__name__})") from None


def _reported(
    row: Mapping[str, object],
    report: Dataset,
    content: Content,
    objects: Sequence[StoredObject],
    series_uid: str,
    replaces: Former | None,
) -> ReportedResult:
    groups = groups_of(report)
    sent = [item for item in objects if item.kind.is_sent]
    created = _created(report, float(str(row["created_at"])))
    return ReportedResult(
        result_id=int(str(row["id"])),
        series_uid=series_uid,
        analysed=row["outcome"] == "ANALYSED",
        reason_code=str(row["reason_code"] or ""),
        reason_text=str(row["reason_text"] or ""),
        patient=_patient(report),
        study=_study(report),
        report_uid=str(report.SOPInstanceUID),
        findings=_findings(groups, content),
        numbers=tuple(number for group in groups for number in group.numbers),
        sentences=tuple(sentences_of(report)),
        model=ModelSaid(str(row["model_name"]), str(row["model_version"]), str(row["model_digest"])),
        objects=tuple(
            ObjectSaid(one.kind, one.sop_class_uid, one.sop_instance_uid, one.series_instance_uid) for one in sent
        ),
        replaces=replaces,
        created_at=created.timestamp(),
        created=created,
    )


def _parsed(files: FileStore, stored: StoredObject) -> Dataset:
    """A stored report. Raises CorruptFile or StoreUnavailable."""
    try:
        with quiet():
            return dcmread(io.BytesIO(files.read_verified(stored.path, stored.sha256)))
    except (InvalidDicomError, *UNREADABLE):
        raise CorruptFile("a stored report cannot be read as DICOM") from None


def _former(database: Database, files: FileStore, report: Dataset, result_id: int) -> Former | None:
    """What a result's report replaces, and what that one replaced, back to the first."""
    uid = _predecessor(report)
    if not uid:
        return None
    with database.read() as tx:
        former_id, stored = object_by_uid(tx, uid) or (None, None)
        # A result replaces earlier ones alone: whatever two reports say of each other, this ends.
        if former_id is None or stored is None or former_id >= result_id:
            return Former(None, uid)
        row, content = get_result(tx, former_id), content_of(tx, former_id)
    known = Former(former_id, uid, model_name=str(row["model_name"]), reason_code=str(row["reason_code"] or ""))
    try:
        before = _parsed(files, stored)
        groups = groups_of(before)
        findings = _findings(groups, content)
    except (CannotCompose, CorruptFile, *UNREADABLE):
        return known
    uids = [uid for one in groups for uid in (one.observation_uid, *(n.observation_uid for n in one.numbers))]
    return replace(
        known,
        observation_uids=tuple(uids),
        findings=findings,
        numbers=tuple(number for group in groups for number in group.numbers),
        replaces=_former(database, files, before, former_id),
        sentences=tuple(sentences_of(before)),
    )


def _predecessor(report: Dataset) -> str:
    """The UID of the report that a report replaces; empty if it replaces none."""
    for study in report.get("PredecessorDocumentsSequence", []):
        for of_series in study.ReferencedSeriesSequence:
            for instance in of_series.ReferencedSOPSequence:
                return str(instance.ReferencedSOPInstanceUID)
    return ""


def _findings(groups: Sequence[Group], content: Content) -> tuple[FindingSaid, ...]:
    return tuple(_finding(group, content) for group in groups if group.interpretation or group.certainty)


def _finding(group: Group, content: Content) -> FindingSaid:
    """A finding of the report, with the threshold that the index has for it."""
    said = [one for one in content.findings if group.finding is not None and one.concept.is_same(group.finding)]
    exact = [one for one in said if group.title.startswith(one.title)]
    concept = group.finding
    if concept is None:
        raise CannotCompose(f"the group {group.title!r} of its report names no finding")
    return FindingSaid(
        concept=concept,
        label=concept.meaning,
        percent=group.certainty,
        threshold=next((one.threshold for one in (*exact, *said)), None),
        interpretation=group.interpretation,
        category=group.category,
        site=group.site,
        laterality=group.laterality,
        observation_uid=group.observation_uid,
    )


def _patient(report: Dataset) -> PatientSaid:
    return PatientSaid(
        patient_id=_text(report, "PatientID"),
        issuer=_text(report, "IssuerOfPatientID"),
        name=_name(report, "PatientName"),
        birth_date=_text(report, "PatientBirthDate"),
        sex=_text(report, "PatientSex"),
    )


def _study(report: Dataset) -> StudySaid:
    issuers = report.get("IssuerOfAccessionNumberSequence") or [Dataset()]
    requests = report.get("ReferencedRequestSequence") or [Dataset()]
    return StudySaid(
        study_uid=str(report.StudyInstanceUID),
        study_id=_text(report, "StudyID"),
        accession_number=_text(report, "AccessionNumber"),
        accession_issuer=_text(issuers[0], "LocalNamespaceEntityID") or _text(issuers[0], "UniversalEntityID"),
        date=_text(report, "StudyDate"),
        time=_text(report, "StudyTime"),
        description=_text(report, "StudyDescription"),
        referring=_name(report, "ReferringPhysicianName"),
        placer=_text(requests[0], "PlacerOrderNumberImagingServiceRequest"),
        filler=_text(requests[0], "FillerOrderNumberImagingServiceRequest"),
    )


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def _name(dataset: Dataset, keyword: str) -> Name:
    """A person's name; its text is the whole value, the other fields are of its alphabetic group."""
    text = _text(dataset, keyword)
    parts = [part.strip() for part in text.split("=")[0].split("^")]
    family, given, middle, prefix, suffix = (*parts[:5], *[""] * (5 - len(parts[:5])))
    return Name(text, family, given, middle, prefix, suffix)


def _created(report: Dataset, recorded_at: float) -> datetime:
    """When the report was made, with the offset that it states; when it was recorded if it does not say."""
    written = "".join(
        _text(report, keyword) for keyword in ("InstanceCreationDate", "InstanceCreationTime", "TimezoneOffsetFromUTC")
    )
    for form in ("%Y%m%d%H%M%S.%f%z", "%Y%m%d%H%M%S%z"):
        try:
            return datetime.strptime(written, form)
        except ValueError:
            continue
    return datetime.fromtimestamp(recorded_at, UTC)
