"""All objects of one result."""

from collections.abc import Collection, Sequence

from pydicom.dataset import Dataset

from dicom_node.report.context import ReportContext
from dicom_node.report.display import build_display_report
from dicom_node.report.heat import build_heat
from dicom_node.report.key_images import build_key_images, most_affected
from dicom_node.report.segmentation import build_segmentation, segments_of
from dicom_node.report.structured_report import build_report
from dicom_node.report.summary import build_summary
from inference.plug import Finding
from inference.volume.ct_volume import CTVolume
from storage.object_kinds import ObjectKind

DEFAULT_KINDS = (ObjectKind.REPORT, ObjectKind.SEGMENTATION, ObjectKind.SUMMARY)
KINDS = (*DEFAULT_KINDS, ObjectKind.DISPLAY_REPORT, ObjectKind.KEY_IMAGES)
"""What is built of a finding, in the order in which it should be sent."""


def build_all(
    finding: Finding,
    volume: CTVolume,
    sources: Sequence[Dataset],
    context: ReportContext,
    kinds: Collection[ObjectKind] = DEFAULT_KINDS,
) -> list[tuple[ObjectKind, Dataset]]:
    """The objects of the kinds asked for, the report first.

    With "segmentation" among them the report refers to the segments. A finding without any segment gives no
    segmentation and no display report, and one without localisation no key images.
    Raises ValueError when a kind is unknown or the finding cannot be reported.
    """
    unknown = set(kinds) - {*KINDS, ObjectKind.HEAT}
    if unknown:
        raise ValueError(f"kinds: {sorted(unknown)} unknown; there are {', '.join(KINDS)}")
    segmentation = None
    if ObjectKind.SEGMENTATION in kinds and segments_of(finding.output):
        segmentation = build_segmentation(finding, volume, sources, context)
    built: list[tuple[ObjectKind, Dataset]] = []
    if ObjectKind.REPORT in kinds:
        built.append((ObjectKind.REPORT, build_report(finding, volume, sources, context, segmentation)))
    if segmentation is not None:
        built.append((ObjectKind.SEGMENTATION, segmentation))
    if ObjectKind.SUMMARY in kinds:
        built.append((ObjectKind.SUMMARY, build_summary(finding, volume, sources, context)))
    if ObjectKind.DISPLAY_REPORT in kinds:
        display = build_display_report(finding, volume, sources, context)
        if display is not None:
            built.append((ObjectKind.DISPLAY_REPORT, display))
    if ObjectKind.KEY_IMAGES in kinds and most_affected(finding, volume):
        built.append((ObjectKind.KEY_IMAGES, build_key_images(finding, volume, sources, context)))
    heat = build_heat(finding, volume, sources, context) if ObjectKind.HEAT in kinds else None
    if heat is not None:
        built.append((ObjectKind.HEAT, heat))
    return built
