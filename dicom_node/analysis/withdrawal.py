"""A report that is taken back: its images may be gone, and need not be looked at."""

import io
from collections.abc import Sequence

from pydicom import Dataset, dcmread

from config.headers import quiet
from config.reasons import ReasonCode
from dicom_node.report import copied
from dicom_node.report.sources import Source, complete
from storage.jobs import ClaimedJob
from storage.series import StoredInstance

OF_THE_REPORT = frozenset({"SeriesNumber", "SeriesDescription", "InstanceNumber", *copied.EQUIPMENT})
"""What is copied from images and is the report's own in a report."""


def is_withdrawal(job: ClaimedJob) -> bool:
    """True for a job that only says that images were rejected."""
    return job.refusal is not None and job.refusal.code == ReasonCode.WITHDRAWN


def headers_from_report(part10: bytes, series_instance_uid: str, instances: Sequence[StoredInstance]) -> list[Source]:
    """Headers of the images that a report is about, as far as the report tells them: see `read_headers`.

    part10: the report. Patient and study are those that it was filed under.
    """
    with quiet():
        report = dcmread(io.BytesIO(part10))
        first = Dataset()
        for keyword in ("SpecificCharacterSet", "StudyInstanceUID", *copied.SIMPLE, *copied.ITEMS):
            if keyword in report and keyword not in OF_THE_REPORT:
                first[keyword] = report[keyword]
        headers = [complete(first), *(Source() for _ in instances[1:])]
        for header, instance in zip(headers, instances, strict=True):
            header.StudyInstanceUID, header.SeriesInstanceUID = report.StudyInstanceUID, series_instance_uid
            header.SOPClassUID, header.SOPInstanceUID = instance.sop_class_uid, instance.sop_instance_uid
    return headers
