"""The report in the classes that a destination may take instead of Comprehensive 3D SR, made with the result.

They are stored beside the report and sent only when it is refused. Like every object, each is on disk before its first
send, so that every resend is the same instance. The content is the same in each class: it has no coordinates, which
set the classes apart.
"""

import copy
import io

from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from dicom_node.report.uids import result_uid
from storage.object_kinds import ObjectKind

CLASSES = {
    ObjectKind.REPORT: Comprehensive3DSRStorage,
    ObjectKind.COMPREHENSIVE_REPORT: ComprehensiveSRStorage,
    ObjectKind.ENHANCED_REPORT: EnhancedSRStorage,
}
"""The class of each kind of report, highest first. "Not analysed" is an Enhanced SR from the start."""
# Reports on other series of the study, and on earlier scans of the patient.
_EVIDENCE = ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")


def in_lower_classes(report: bytes) -> list[tuple[ObjectKind, Dataset]]:
    """The report in each class below its own, with its kind.

    report: a Part 10 file. Anything but a report of one of the classes gives nothing.
    """
    dataset = dcmread(io.BytesIO(report))
    lower = _below(dataset.SOPClassUID)
    return [(kind, in_class(dataset, kind)) for kind, sop_class_uid in CLASSES.items() if sop_class_uid in lower]


def in_class(report: Dataset, kind: ObjectKind) -> Dataset:
    """A copy of the report in the class of `kind`, a lower one than its own.

    Its UID depends only on the report's and on the class. An earlier report that it replaces or takes in is named as
    this function would have made it: a destination that refuses a class gets all reports in a lower one.
    """
    sop_class_uid = CLASSES[kind]
    other = copy.deepcopy(report)
    other.SOPClassUID = sop_class_uid
    other.SOPInstanceUID = _uid_in_class(report.SOPInstanceUID, sop_class_uid)
    other.file_meta.MediaStorageSOPClassUID = other.SOPClassUID
    other.file_meta.MediaStorageSOPInstanceUID = other.SOPInstanceUID
    names = (name for name in ("PredecessorDocumentsSequence", *_EVIDENCE) if _may_name_a_report(other, name))
    for study in (item for name in names for item in other[name].value):
        for series in study.ReferencedSeriesSequence:
            for earlier in series.ReferencedSOPSequence:
                if sop_class_uid in _below(earlier.ReferencedSOPClassUID):
                    earlier.ReferencedSOPInstanceUID = _uid_in_class(earlier.ReferencedSOPInstanceUID, sop_class_uid)
                    earlier.ReferencedSOPClassUID = sop_class_uid
    return other


def _may_name_a_report(report: Dataset, keyword: str) -> bool:
    """False if the encoded sequence has no class of a report in it: hundreds of images need not be taken apart."""
    if keyword not in report:
        return False
    value = report.get_item(keyword).value
    return not isinstance(value, bytes) or any(name.encode() in value for name in CLASSES.values())


def _below(sop_class_uid: str) -> list[str]:
    """The classes below one of a report; none for any other class."""
    ordered: list[str] = list(CLASSES.values())
    return ordered[ordered.index(sop_class_uid) + 1 :] if sop_class_uid in ordered else []


def _uid_in_class(sop_instance_uid: str, sop_class_uid: str) -> str:
    return result_uid("report in another class", str(sop_instance_uid), "", "", str(sop_class_uid))
