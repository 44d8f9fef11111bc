"""All objects of one result."""

from collections.abc import Collection, Sequence

from pydicom.dataset import Dataset

from dicom_node.report.context import ReportContext
from dicom_node.report.display import build_display_report
from dicom_node.report.key_images import build_key_images, most_affected
from dicom_node.report.segmentation import build_segmentation, segments_of
from dicom_node.report.structured_report import build_report
from dicom_node.report.summary import build_summary
from inference.finding import Finding
from inference.volume.ct_volume import CTVolume

REPORT = "report"
SEGMENTATION = "segmentation"
SUMMARY = "summary"
DISPLAY_REPORT = "display-report"
KEY_IMAGES = "key-images"
DEFAULT_KINDS = (REPORT, SEGMENTATION, SUMMARY)
KINDS = (*DEFAULT_KINDS, DISPLAY_REPORT, KEY_IMAGES)
"""In the order in which they should be sent."""


def build_all(
    finding: Finding,
    volume: CTVolume,
    sources: Sequence[Dataset],
    context: ReportContext,
    kinds: Collection[str] = DEFAULT_KINDS,
) -> list[tuple[str, Dataset]]:
    """The objects of the kinds asked for, the report first.

    With "segmentation" among them the report refers to the segments. A finding without any segment gives no
    segmentation, and one without localisation no key images.
    Raises ValueError when a kind is unknown or the finding cannot be reported.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"kinds: {sorted(unknown)} unknown; there are {', '.join(KINDS)}")
    segmentation = None
    if SEGMENTATION in kinds and segments_of(finding):
        segmentation = build_segmentation(finding, volume, sources, context)
    built: list[tuple[str, Dataset]] = []
    if REPORT in kinds:
        built.append((REPORT, build_report(finding, volume, sources, context, segmentation)))
    if segmentation is not None:
        built.append((SEGMENTATION, segmentation))
    if SUMMARY in kinds:
        built.append((SUMMARY, build_summary(finding, volume, sources, context)))
    if DISPLAY_REPORT in kinds:
        built.append((DISPLAY_REPORT, build_display_report(finding, volume, sources, context)))
    if KEY_IMAGES in kinds and most_affected(finding, volume):
        built.append((KEY_IMAGES, build_key_images(finding, volume, sources, context)))
    return built
