"""A Structured Report in a class that a destination accepts."""

import copy
from collections.abc import Collection

from pydicom.dataset import Dataset
from pydicom.uid import UID, Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from dicom_node.report.uids import result_uid

REPORT_CLASSES = (Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage)
"""From the preferred one down. The content is the same in each: it has no coordinates, which set them apart."""


def as_accepted(report: Dataset, accepted: Collection[str]) -> Dataset | None:
    """The report as it is or, where its class is not accepted, in the next class down that is.

    accepted: SOP Class UIDs that the destination takes.
    Returns None when it takes no class of Structured Report that can hold the content: send the summary image then.
    The copy in another class has a UID of its own, which is a function of the report's and of the class. An earlier
    report that it replaces is named as this function would have sent it.
    """
    if report.SOPClassUID in accepted:
        return report
    if report.SOPClassUID not in REPORT_CLASSES:
        return None
    lower = REPORT_CLASSES[REPORT_CLASSES.index(report.SOPClassUID) + 1 :]
    for sop_class_uid in lower:
        if sop_class_uid in accepted:
            return _in_class(report, sop_class_uid, accepted)
    return None


def _in_class(report: Dataset, sop_class_uid: UID, accepted: Collection[str]) -> Dataset:
    other = copy.deepcopy(report)
    other.SOPClassUID = sop_class_uid
    other.SOPInstanceUID = _uid_in_class(report.SOPInstanceUID, sop_class_uid)
    other.file_meta.MediaStorageSOPClassUID = other.SOPClassUID
    other.file_meta.MediaStorageSOPInstanceUID = other.SOPInstanceUID
    for study in other.get("PredecessorDocumentsSequence", []):
        for series in study.ReferencedSeriesSequence:
            for instance in series.ReferencedSOPSequence:
                if instance.ReferencedSOPClassUID not in accepted:
                    instance.ReferencedSOPInstanceUID = _uid_in_class(instance.ReferencedSOPInstanceUID, sop_class_uid)
                    instance.ReferencedSOPClassUID = sop_class_uid
    return other


def _uid_in_class(sop_instance_uid: str, sop_class_uid: str) -> str:
    return result_uid("report in another class", str(sop_instance_uid), "", "", str(sop_class_uid))
