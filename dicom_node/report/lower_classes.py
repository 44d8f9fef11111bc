"""The report in the classes that a destination may accept instead of Comprehensive 3D SR, made with the result.

They are stored beside the report and sent only where it is refused: like every object, each is on disk before its
first send, so that every resend is the same instance.
"""

import io

from pydicom import Dataset, dcmread

from dicom_node.report.fallback import REPORT_CLASSES, as_accepted
from storage.object_kinds import REPORT_KINDS, ObjectKind


def fallback_reports(report: bytes) -> list[tuple[ObjectKind, Dataset]]:
    """The report in each lower class, with its kind.

    report: a Part 10 file; one that is in a lower class already gives only those below it.
    """
    dataset = dcmread(io.BytesIO(report))
    if dataset.SOPClassUID not in REPORT_CLASSES:
        return []
    built = []
    for number in range(REPORT_CLASSES.index(dataset.SOPClassUID) + 1, len(REPORT_CLASSES)):
        # Who refuses a class accepts, as far as this copy is concerned, the classes from its own one down.
        copy = as_accepted(dataset, REPORT_CLASSES[number:])
        if copy is not None:
            built.append((REPORT_KINDS[number], copy))
    return built
