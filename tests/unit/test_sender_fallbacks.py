"""Copies of a report in lower classes."""

import io

from pydicom import dcmread

from dicom_node.report.lower_classes import in_lower_classes
from storage.object_kinds import REPORT_KINDS
from tests.outbox import COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, SEGMENTATION, instance, part10

ENHANCED_SR = "1.2.840.10008.5.1.4.1.1.88.22"


def test_a_report_gets_a_copy_in_each_lower_class_with_a_uid_that_does_not_change() -> None:
    report = part10(instance(COMPREHENSIVE_3D_SR))
    copies = in_lower_classes(report)
    assert [(kind, copy.SOPClassUID) for kind, copy in copies] == list(
        zip(REPORT_KINDS[1:], (COMPREHENSIVE_SR, ENHANCED_SR), strict=True)
    )
    original = dcmread(io.BytesIO(report))
    assert len({original.SOPInstanceUID, *(copy.SOPInstanceUID for _, copy in copies)}) == 3
    assert all(copy.TextValue == original.TextValue for _, copy in copies)
    again = in_lower_classes(report)
    assert [copy.SOPInstanceUID for _, copy in again] == [copy.SOPInstanceUID for _, copy in copies]


def test_what_is_in_the_lowest_class_already_has_no_copies() -> None:
    assert in_lower_classes(part10(instance(ENHANCED_SR))) == []
    assert in_lower_classes(part10(instance(SEGMENTATION))) == []
