"""Finding -> DICOM objects: Structured Report, "not analysed" report, segmentation, summary image."""

from dicom_node.report.context import ReportContext
from dicom_node.report.fallback import as_accepted
from dicom_node.report.frame import to_part10
from dicom_node.report.not_analysed import build_not_analysed
from dicom_node.report.objects import DEFAULT_KINDS, KINDS, build_all
from dicom_node.report.segmentation import build_segmentation
from dicom_node.report.sources import read_headers, read_sources
from dicom_node.report.structured_report import build_report
from dicom_node.report.summary import build_summary
from dicom_node.report.uids import TEMPLATE_VERSION, instances_digest, result_uid

__all__ = [
    "DEFAULT_KINDS",
    "KINDS",
    "TEMPLATE_VERSION",
    "ReportContext",
    "as_accepted",
    "build_all",
    "build_not_analysed",
    "build_report",
    "build_segmentation",
    "build_summary",
    "instances_digest",
    "read_headers",
    "read_sources",
    "result_uid",
    "to_part10",
]
