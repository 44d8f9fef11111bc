"""The result once more, for viewers that show measurements only with a region: Comprehensive 3D SR, TID 1410.

OHIF shows no value of a report whose groups refer to segments. Here every group has an outline on one slice, and what
the viewer writes beside it, the names of its numbers, says what the number is, of which lung, and that it is research.
The report stands in a series of its own and adds nothing to the other.
"""

from collections.abc import Sequence
from typing import Any

from highdicom.sr import (
    Comprehensive3DSR,
    FindingSite,
    GraphicTypeValues,
    ImageRegion,
    Measurement,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from config.headers import quiet
from dicom_node.report import codes, wording
from dicom_node.report.context import ReportContext
from dicom_node.report.equipment import classifier, lung_segmenter
from dicom_node.report.frame import Kind, Origin, finish, identity, origin_of
from dicom_node.report.regions import Region, Side, outline, regions_of
from dicom_node.report.segmentation import is_multi_frame
from dicom_node.report.structured_report import (
    NODE_CODES,
    certainty,
    measurement_report,
    previous_versions,
    sentences_of,
)
from inference.finding import Finding
from inference.volume.ct_volume import CTVolume

Group = PlanarROIMeasurementsAndQualitativeEvaluations
_LATERALITY = {Side.RIGHT: codes.RIGHT, Side.LEFT: codes.LEFT}
# A viewer does not say that a number is a minimum: its name does.
_OUTPUT_SHOWN = (codes.OUTPUT_SHOWN, codes.LOWEST_SHOWN, codes.HIGHEST_SHOWN)
_LUNG_SHOWN = {Side.RIGHT: codes.RIGHT_LUNG_SHOWN, Side.LEFT: codes.LEFT_LUNG_SHOWN}
_REGION_SHOWN = {Side.RIGHT: codes.RIGHT_REGION_SHOWN, Side.LEFT: codes.LEFT_REGION_SHOWN}


def build_display_report(
    finding: Finding, volume: CTVolume, sources: Sequence[Dataset], context: ReportContext
) -> Dataset | None:
    """Output and volume of each lung, and of each part that drove the model; None if there is nothing to outline."""
    origin = origin_of(finding, volume, sources, context)
    groups = _groups(finding, volume, origin)
    if not groups:
        return None
    for sentence in sentences_of(finding, volume, origin):
        groups[0][0].ContentSequence.append(TextContentItem(codes.COMMENT, sentence, RelationshipTypeValues.CONTAINS))
    kind = Kind(f"display report of {len(groups)} regions", 9003, "display")
    with quiet():
        report = Comprehensive3DSR(
            evidence=origin.sources,
            content=measurement_report(groups, context),
            is_complete=True,
            is_final=False,
            is_verified=False,
            previous_versions=previous_versions(origin, origin.uid(kind.name)),
            **identity(kind, origin),
        )
    finish(report, origin)
    report.CodingSchemeIdentificationSequence = [NODE_CODES]
    return report


def _groups(finding: Finding, volume: CTVolume, origin: Origin) -> list[Group]:
    parts, lungs = regions_of(finding, volume)
    with quiet():
        return [
            *(_part(part, f"AI region {number}", finding, volume, origin) for number, part in enumerate(parts, 1)),
            *(_lung(lung, finding, volume, origin) for lung in lungs),
        ]


def _part(region: Region, title: str, finding: Finding, volume: CTVolume, origin: Origin) -> Group:
    """A connected part of what drove the model."""
    return _group(
        region,
        title,
        _REGION_SHOWN[region.side],
        finding,
        volume,
        origin,
        finding_category=codes.SPATIAL_CONCEPT,
        finding_type=codes.VISUAL_EXPLANATION,
        algorithm_id=classifier(finding.model, origin.context),
    )


def _lung(region: Region, finding: Finding, volume: CTVolume, origin: Origin) -> Group:
    return _group(
        region,
        "AI",
        _LUNG_SHOWN[region.side],
        finding,
        volume,
        origin,
        finding_category=codes.ANATOMICAL_STRUCTURE,
        finding_type=codes.LUNG,
        algorithm_id=lung_segmenter(finding.model, origin.context),
    )


def _group(
    region: Region, title: str, shown: Code, finding: Finding, volume: CTVolume, origin: Origin, **content: Any
) -> Group:
    """One region with the output and its volume. shown: what a viewer writes beside the volume."""
    source = volume.slices[region.z]
    frames = [source.frame + 1] if is_multi_frame(source.sop_class_uid) else None
    line = ImageRegion(
        graphic_type=GraphicTypeValues.POLYLINE,
        graphic_data=outline(region.mask),
        source_image=SourceImageForRegion(source.sop_class_uid, source.sop_instance_uid, frames),
    )
    named = wording.titled(f"COVID-19 {title}, {region.side} lung, RESEARCH", origin.model)
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(origin.uid(f"display tracking {named}"), named),
        referenced_region=line,
        measurements=[
            *certainty(finding, _OUTPUT_SHOWN, codes.BILATERAL),
            _number(shown, _rounded(region.voxels * volume.voxel_ml, 1), codes.MILLILITRE, _LATERALITY[region.side]),
        ],
        qualitative_evaluations=[
            QualitativeEvaluation(codes.COVID_19, codes.POSITIVE if finding.positive else codes.NEGATIVE)
        ],
        **content,
    )


def _number(name: Code, value: float, unit: Code, side: Code) -> Measurement:
    """A number with its site. OHIF writes the site of a group, but not of a number, beside the line, as a bare code."""
    return Measurement(name, value, unit, finding_sites=[FindingSite(codes.LUNG, laterality=side)])


def _rounded(value: float, digits: int) -> float:
    """Rounded, but a small number never to 0: OHIF leaves that out and shows the unit alone."""
    return round(value, digits) or float(f"{value:.1g}")
