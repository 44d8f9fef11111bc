"""The result once more, for viewers that show measurements only with a region: Comprehensive 3D SR, TID 1410.

OHIF shows no value of a report whose groups refer to segments. Here every group has an outline on one slice, and what
the viewer writes beside it, the names of its numbers, says what the number is, of which lung, and that it is research.
The report stands in a series of its own and adds nothing to the other.
"""

from collections.abc import Sequence

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

from config.coding import BILATERAL, LUNG
from config.headers import quiet
from dicom_node.report import codes, wording
from dicom_node.report.context import ReportContext
from dicom_node.report.equipment import algorithm_identification
from dicom_node.report.frame import Kind, Origin, finish, identity, origin_of
from dicom_node.report.groups import certainty
from dicom_node.report.regions import Region, Side, outline, regions_of
from dicom_node.report.segmentation import is_multi_frame
from dicom_node.report.structured_report import (
    declare_schemes,
    measurement_report,
    previous_versions,
    sentences_of,
)
from inference.plug import Finding, FindingByCode, Segment
from inference.volume.ct_volume import CTVolume

Group = PlanarROIMeasurementsAndQualitativeEvaluations
_LATERALITY = {Side.RIGHT: codes.RIGHT, Side.LEFT: codes.LEFT}
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
    kind = Kind(f"display report of {len(groups)} regions", 3, "display")
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
    declare_schemes(report, [codes.PRIVATE_SCHEME])
    return report


def _groups(finding: Finding, volume: CTVolume, origin: Origin) -> list[Group]:
    """None for a model that gives no certainty, or whose segments are not the lungs."""
    stated = [one for one in finding.output.findings if one.certainty is not None]
    lungs = [segment for segment in finding.output.segments if segment.type.is_same(LUNG)]
    if not stated or not lungs:
        return []
    found = [segment for segment in finding.output.segments if segment.purpose == "finding"]
    parts, sides = regions_of(finding, volume)
    write = _GroupWriter(stated[0], volume, origin)
    with quiet():
        return [
            *(
                write.group(part, f"AI region {n}", _REGION_SHOWN[part.side], found[0])
                for n, part in enumerate(parts, 1)
            ),
            *(write.group(side, "AI", _LUNG_SHOWN[side.side], lungs[0]) for side in sides),
        ]


class _GroupWriter:
    """Builds the groups: each is one region with the output and its volume."""

    def __init__(self, finding: FindingByCode, volume: CTVolume, origin: Origin) -> None:
        self.finding, self.volume, self.origin = finding, volume, origin

    def group(self, region: Region, title: str, shown: Code, segment: Segment) -> Group:
        """One group. shown: what a viewer writes beside the volume.  segment: that the region is a part of."""
        model = self.origin.model
        assert model is not None  # noqa: S101 - origin_of always names it
        millilitres = _rounded(region.voxels * self.volume.voxel_ml, 1)
        named = wording.titled(f"{model.words.subject} {title}, {region.side} lung, RESEARCH", model)
        return PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=TrackingIdentifier(self.origin.uid(f"display tracking {named}"), named),
            referenced_region=self._line(region),
            measurements=[
                *certainty(self.finding, codes.output_shown(model), LUNG, BILATERAL),
                _number(shown, millilitres, codes.MILLILITRE, _LATERALITY[region.side]),
            ],
            qualitative_evaluations=[
                QualitativeEvaluation(codes.concept(self.finding.concept), codes.concept(self.finding.interpretation))
            ],
            finding_category=codes.concept(segment.category),
            finding_type=codes.concept(segment.type),
            algorithm_id=algorithm_identification(model, segment.algorithm, self.origin.context),
        )

    def _line(self, region: Region) -> ImageRegion:
        source = self.volume.slices[region.z]
        frames = [source.frame + 1] if is_multi_frame(source.sop_class_uid) else None
        return ImageRegion(
            graphic_type=GraphicTypeValues.POLYLINE,
            graphic_data=outline(region.mask),
            source_image=SourceImageForRegion(source.sop_class_uid, source.sop_instance_uid, frames),
        )


def _number(name: Code, value: float, unit: Code, side: Code) -> Measurement:
    """A number with its site. OHIF writes the site of a group, but not of a number, beside the line, as a bare code."""
    return Measurement(name, value, unit, finding_sites=[FindingSite(codes.LUNG, laterality=side)])


def _rounded(value: float, digits: int) -> float:
    """Rounded, but a small number never to 0: OHIF leaves that out and shows the unit alone."""
    return round(value, digits) or float(f"{value:.1g}")
