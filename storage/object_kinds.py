"""The kinds of DICOM objects that a result has."""

from enum import StrEnum


class ObjectKind(StrEnum):
    """A kind of object, as the index names it. The order is that in which a destination gets them.

    The report is stored in three classes, highest first; the first one that a destination takes is sent.
    """

    REPORT = "report"
    COMPREHENSIVE_REPORT = "report-comprehensive"
    ENHANCED_REPORT = "report-enhanced"
    SEGMENTATION = "segmentation"
    SUMMARY = "summary"
    DISPLAY_REPORT = "display-report"
    KEY_IMAGES = "key-images"
    HEAT = "heat"

    @property
    def is_report(self) -> bool:
        """The report itself, in whatever class."""
        return self in REPORT_KINDS

    @property
    def is_sent(self) -> bool:
        """False for what is kept for the node's own pages."""
        return self is not ObjectKind.HEAT

    @property
    def tells_result(self) -> bool:
        """True if this object alone tells a person the result."""
        return self.is_report or self is ObjectKind.SUMMARY


REPORT_KINDS = (ObjectKind.REPORT, ObjectKind.COMPREHENSIVE_REPORT, ObjectKind.ENHANCED_REPORT)
