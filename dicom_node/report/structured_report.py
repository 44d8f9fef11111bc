"""Finding -> Comprehensive 3D SR, TID 1500 "Measurement Report".

With a segmentation its groups are TID 1411 and refer to segments; without one they are TID 1501. Both in one report
would fail validation.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    ContentSequence,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    UIDRefContentItem,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from config.headers import quiet
from dicom_node.report import codes, wording
from dicom_node.report.context import ReportContext, StudyStatement
from dicom_node.report.equipment import classifier, lung_segmenter, observer
from dicom_node.report.frame import Kind, Origin, finish, identity, origin_of
from dicom_node.report.naming import acquisition, verdict_slices
from dicom_node.report.segmentation import LUNGS, REGION, segments_of
from dicom_node.report.study_words import study_statement
from dicom_node.report.values import printable
from inference.finding import Finding
from inference.volume.ct_volume import CTVolume

CLASSIFICATION = "COVID-19 classification"
NODE_CODES = CodingSchemeIdentificationItem(codes.PRIVATE_SCHEME, name=codes.PRIVATE_SCHEME_NAME)

Group = (
    MeasurementsAndQualitativeEvaluations
    | PlanarROIMeasurementsAndQualitativeEvaluations
    | VolumetricROIMeasurementsAndQualitativeEvaluations
)


def build_report(
    finding: Finding,
    volume: CTVolume,
    sources: Sequence[Dataset],
    context: ReportContext,
    segmentation: Dataset | None = None,
) -> Dataset:
    """The result of one analysed series as a Structured Report.

    sources: headers of the volume's instances, see `read_sources`.
    segmentation: of the same finding, see `build_segmentation`; its segments carry the groups of the report.
    Raises ValueError when the probability is not a number from 0 to 1.
    """
    if not (math.isfinite(finding.probability) and 0 <= finding.probability <= 1):
        raise ValueError("probability: expected a number from 0 to 1")
    origin = origin_of(finding, volume, sources, context)
    kind = _kind(segmentation)
    with quiet():
        report = Comprehensive3DSR(
            evidence=[*origin.sources, *([] if segmentation is None else [segmentation]), *_earlier_reports(context)],
            content=measurement_report(_groups(finding, volume, origin, segmentation), context),
            is_complete=True,
            is_final=False,
            is_verified=False,
            previous_versions=previous_versions(origin, origin.uid(kind.name)),
            **identity(kind, origin),
        )
    finish(report, origin)
    if segmentation is not None:
        report.CodingSchemeIdentificationSequence = [NODE_CODES]
    return report


def measurement_report(groups: Sequence[Group], context: ReportContext) -> Dataset:
    """The content tree on a CT of the chest, TID 1500."""
    with quiet():
        (root,) = MeasurementReport(
            observation_context=observer(context),
            procedure_reported=codes.CT_REPORTED,
            imaging_measurements=groups,
            title=codes.IMAGING_MEASUREMENT_REPORT,
        )
    name = CodedConcept.from_code(codes.PROCEDURE_REPORTED)
    (procedure,) = (item for item in root.ContentSequence if item.name == name)
    site = CodeContentItem(codes.PROCEDURE_SITE, codes.CHEST, RelationshipTypeValues.HAS_CONCEPT_MOD)
    procedure.ContentSequence = ContentSequence([site])
    return root


def previous_versions(origin: Origin, sop_instance_uid: str) -> list[Dataset] | None:
    """The report that this one replaces; none if it is this very report, built again."""
    earlier = origin.context.predecessor
    if earlier is None or earlier.SOPInstanceUID == sop_instance_uid:
        return None
    return [earlier]


def _earlier_reports(context: ReportContext) -> list[Dataset]:
    """The reports on other series of the study that this one's statement takes in."""
    return [] if context.study is None else [one.report for one in context.study.earlier if one.report is not None]


def _kind(segmentation: Dataset | None) -> Kind:
    """Other references make another instance, under a UID of its own."""
    name = "report" if segmentation is None else f"report on {segmentation.SOPInstanceUID}"
    return Kind(name, 9001, "report")


def _groups(finding: Finding, volume: CTVolume, origin: Origin, segmentation: Dataset | None) -> list[Group]:
    numbers = {} if segmentation is None else {s.title: n for n, s in enumerate(segments_of(finding), 1)}
    builder = _GroupBuilder(origin, segmentation)
    lungs = numbers.get(LUNGS)
    sentences = sentences_of(finding, volume, origin)
    groups = [
        builder.build(CLASSIFICATION, lungs, sentences, classification_content(finding, origin)),
        builder.build(LUNGS, lungs, [], lung_content(finding, origin)),
    ]
    if origin.context.study is not None:
        groups[0][0].ContentSequence.extend(_earlier_series(origin.context.study))
    if REGION in numbers:
        content = region_content(finding, volume, origin)
        groups.append(builder.build(REGION, numbers[REGION], [wording.LOCALISATION], content))
    return groups


def _earlier_series(study: StudyStatement) -> list[UIDRefContentItem]:
    """The other series that the study was reported on, for machines."""
    return [
        UIDRefContentItem(codes.SERIES_UID, one.series_instance_uid, RelationshipTypeValues.CONTAINS)
        for one in study.earlier
    ]


class _GroupBuilder:
    """Builds the groups of one report: TID 1411 on the segments of `segmentation`, TID 1501 without one."""

    def __init__(self, origin: Origin, segmentation: Dataset | None) -> None:
        self.origin = origin
        self.segmentation = segmentation

    def build(self, title: str, segment: int | None, sentences: Sequence[str], content: dict[str, Any]) -> Group:
        """One group. segment: number of the segment that it is about."""
        tracking = TrackingIdentifier(self.origin.tracking_uid(title), wording.titled(title, self.origin.model))
        series_uid = str(self.origin.first.SeriesInstanceUID)
        group: Group
        if self.segmentation is None or segment is None:
            group = MeasurementsAndQualitativeEvaluations(tracking_identifier=tracking, **content)
            # TID 1501 has no row for the series; it is extensible.
            group[0].ContentSequence.append(
                UIDRefContentItem(codes.SOURCE_SERIES, series_uid, RelationshipTypeValues.CONTAINS)
            )
        else:
            reference = ReferencedSegment(
                sop_class_uid=self.segmentation.SOPClassUID,
                sop_instance_uid=self.segmentation.SOPInstanceUID,
                segment_number=segment,
                source_series=SourceSeriesForSegmentation(series_uid),
            )
            group = VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=tracking, referenced_segment=reference, **content
            )
        for sentence in sentences:
            group[0].ContentSequence.append(TextContentItem(codes.COMMENT, sentence, RelationshipTypeValues.CONTAINS))
        return group


def classification_content(finding: Finding, origin: Origin) -> dict[str, Any]:
    """What the group on the verdict holds: the certainty in percent and its interpretation."""
    interpretation = codes.POSITIVE if finding.positive else codes.NEGATIVE
    return {
        "finding_category": codes.DISEASE,
        "finding_type": codes.COVID_19,
        "finding_sites": [FindingSite(codes.LUNG, laterality=codes.BILATERAL)],
        "algorithm_id": classifier(finding.model, origin.context),
        "measurements": certainty(finding, [codes.CERTAINTY] * 3),
        "qualitative_evaluations": [QualitativeEvaluation(codes.INTERPRETATION, interpretation)],
    }


def certainty(finding: Finding, names: Sequence[Code], laterality: Code | None = None) -> list[Measurement]:
    """The output in percent; if harmless changes decide its sign, also the lowest and highest that they give.

    names: of the output, of the lowest and of the highest.
    laterality: of the lungs as the measurement's own site; None if the group has one.
    """
    spread = finding.unstable
    values: list[tuple[float, Code | None]] = [(finding.probability, None)]
    if spread is not None:
        values += [(spread.low, codes.MINIMUM), (spread.high, codes.MAXIMUM)]
    site = None if laterality is None else [FindingSite(codes.LUNG, laterality=laterality)]
    return [
        _percent(name, value, finding.model.threshold, derivation, site)
        for name, (value, derivation) in zip(names, values, strict=False)
    ]


def _percent(
    name: Code, probability: float, threshold: float, derivation: Code | None, site: list[FindingSite] | None
) -> Measurement:
    shown = wording.coded_percent(probability, threshold)
    measurement = Measurement(name, float(shown), codes.PERCENT, derivation=derivation, finding_sites=site)
    # No more digits than are shown: highdicom would write 91.0. A DS holds 16 characters.
    measurement[0].MeasuredValueSequence[0].NumericValue = shown[:16]
    return measurement


def lung_content(finding: Finding, origin: Origin) -> dict[str, Any]:
    """What the group on the lungs holds: the total volume, then each side if the two could be told apart."""
    volumes = [_volume(finding.lung_volume_ml, None)]
    if finding.left_lung_ml > 0 or finding.right_lung_ml > 0:
        volumes += [_volume(finding.left_lung_ml, codes.LEFT), _volume(finding.right_lung_ml, codes.RIGHT)]
    return {
        "finding_category": codes.ANATOMICAL_STRUCTURE,
        "finding_type": codes.LUNG,
        "finding_sites": [FindingSite(codes.LUNG, laterality=codes.BILATERAL)],
        "algorithm_id": lung_segmenter(finding.model, origin.context),
        "measurements": volumes,
    }


def region_content(finding: Finding, volume: CTVolume, origin: Origin) -> dict[str, Any]:
    """What the group on the localisation holds: its volume, and the share of the lungs that it covers."""
    assert finding.localisation is not None  # noqa: S101 - only called if its segment exists
    lung_voxels = np.count_nonzero(finding.lung_mask)
    measurements = [_volume(np.count_nonzero(finding.localisation) * volume.voxel_ml, None)]
    if lung_voxels:
        share = 100 * np.count_nonzero(finding.localisation & finding.lung_mask) / lung_voxels
        measurements.append(Measurement(codes.SHARE_OF_LUNG, round(share, 2), codes.PERCENT))
    return {
        "finding_category": codes.SPATIAL_CONCEPT,
        "finding_type": codes.VISUAL_EXPLANATION,
        "finding_sites": [FindingSite(codes.LUNG)],
        "algorithm_id": classifier(finding.model, origin.context),
        "measurements": measurements,
    }


def _volume(millilitres: float, laterality: Code | None) -> Measurement:
    site = None if laterality is None else [FindingSite(codes.LUNG, laterality=laterality)]
    return Measurement(codes.VOLUME, round(float(millilitres), 1), codes.MILLILITRE, finding_sites=site)


def sentences_of(finding: Finding, volume: CTVolume, origin: Origin) -> list[str]:
    """The texts of the group on the verdict, the warnings first."""
    model, context = finding.model, origin.context
    sentences = [
        *wording.warnings_of(model),
        wording.verdict(finding),
        *filter(None, [study_statement(finding, origin), wording.unstable(finding)]),
        *wording.operating_points(context.operating_points, model.threshold, context.prevalence),
        *filter(
            None,
            [
                wording.nothing_localised(finding),
                acquisition(volume, origin),
                verdict_slices(finding, volume, origin),
                wording.part_analysed(volume.part),
                wording.checks_passed(finding.checks),
            ],
        ),
    ]
    # A check may quote the header.
    return [printable(sentence) for sentence in sentences]
