"""Finding -> Comprehensive 3D SR, TID 1500 "Measurement Report".

With a segmentation its groups are TID 1411 and refer to segments; without one they are TID 1501. Both in one report
would fail validation.
"""

from collections.abc import Sequence
from typing import Any

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    ContentSequence,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    UIDRefContentItem,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset

from config.headers import quiet
from dicom_node.report import codes, wording
from dicom_node.report.context import ReportContext, StudyStatement
from dicom_node.report.encoded import element, elements, put_encoded, reference_to, sequence
from dicom_node.report.equipment import observer
from dicom_node.report.frame import Kind, Origin, finish, identity, origin_of
from dicom_node.report.groups import groups_of
from dicom_node.report.naming import acquisition, verdict_slices
from dicom_node.report.segmentation import segments_of
from dicom_node.report.study_words import study_statement
from dicom_node.report.values import printable
from inference.plug import Finding
from inference.volume.ct_volume import CTVolume

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
    """
    origin = origin_of(finding, volume, sources, context)
    kind = _kind(segmentation)
    with quiet():
        report = Comprehensive3DSR(
            # Of the images the first alone, see `_put_images`: highdicom makes an item of each, and pydicom writes it.
            evidence=[origin.first, *([] if segmentation is None else [segmentation]), *_earlier_reports(context)],
            content=measurement_report(_groups(finding, volume, origin, segmentation), context),
            is_complete=True,
            is_final=False,
            is_verified=False,
            previous_versions=previous_versions(origin, origin.uid(kind.name)),
            **identity(kind, origin),
        )
    finish(report, origin)
    own = [] if segmentation is None else [codes.PRIVATE_SCHEME]
    declare_schemes(report, own)
    _put_images(report, origin)
    return report


def _put_images(report: Dataset, origin: Origin) -> None:
    """Name all source images in the evidence, where the first of them stands for their series."""
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    images, *others = study.ReferencedSeriesSequence
    references = dict.fromkeys(reference_to(one.SOPClassUID, one.SOPInstanceUID) for one in origin.sources)
    # In the order of their tags.
    series = sequence("ReferencedSOPSequence", *references) + element(
        "SeriesInstanceUID", "UI", images.SeriesInstanceUID.encode()
    )
    evidence = sequence("ReferencedSeriesSequence", series, *map(elements, others))
    named = element("StudyInstanceUID", "UI", study.StudyInstanceUID.encode())
    put_encoded(report, "CurrentRequestedProcedureEvidenceSequence", [evidence + named])


def declare_schemes(report: Dataset, schemes: Sequence[str]) -> None:
    """Name the private coding schemes: these, and all that the report uses."""
    used = (str(element.value) for element in report.iterall() if element.keyword == "CodingSchemeDesignator")
    private = dict.fromkeys([*schemes, *(scheme for scheme in used if scheme.startswith("99"))])
    if private:
        report.CodingSchemeIdentificationSequence = [
            NODE_CODES if scheme == codes.PRIVATE_SCHEME else CodingSchemeIdentificationItem(scheme, name=scheme)
            for scheme in private
        ]


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
    """The reports on other series of the study, and on an earlier scan, that this one's statements take in."""
    reports = [] if context.study is None else [one.report for one in context.study.earlier]
    if context.change is not None:
        reports.append(context.change.report)
    return [report for report in reports if report is not None]


def _kind(segmentation: Dataset | None) -> Kind:
    """Other references make another instance, under a UID of its own."""
    name = "report" if segmentation is None else f"report on {segmentation.SOPInstanceUID}"
    return Kind(name, 1, "report")


def _groups(finding: Finding, volume: CTVolume, origin: Origin, segmentation: Dataset | None) -> list[Group]:
    """Without a segment of its own a group refers to the first: TID 1501 and 1411 do not mix."""
    titles = [] if segmentation is None else [segment.title for segment in segments_of(finding.output)]
    numbers = {title: number for number, title in enumerate(titles, 1)}
    builder = _GroupBuilder(origin, segmentation)
    groups = groups_of(finding.output, origin, sentences_of(finding, volume, origin), titles)
    built = [
        builder.build(group.title, numbers.get(group.segment or "", 1), group.sentences, group.content)
        for group in groups
    ]
    if origin.context.study is not None:
        built[0][0].ContentSequence.extend(_earlier_series(origin.context.study))
    return built


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

    def build(self, title: str, segment: int, sentences: Sequence[str], content: dict[str, Any]) -> Group:
        """One group. segment: number of the segment that it is about."""
        tracking = TrackingIdentifier(self.origin.tracking_uid(title), wording.titled(title, self.origin.model))
        series_uid = str(self.origin.first.SeriesInstanceUID)
        group: Group
        if self.segmentation is None:
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


def sentences_of(finding: Finding, volume: CTVolume, origin: Origin) -> list[str]:
    """The texts of the group on the verdict, the warnings first."""
    model, context = finding.model, origin.context
    sentences = [
        *wording.warnings_of(model),
        *finding.output.statements,
        *(() if context.change is None else context.change.said),
        *filter(None, [study_statement(finding, origin), *map(wording.unstable, finding.output.findings)]),
        *wording.operating_points(context.operating_points, model.threshold, context.prevalence),
        *filter(
            None,
            [
                *finding.output.remarks,
                acquisition(volume, origin),
                verdict_slices(finding, volume, origin),
                wording.part_analysed(volume.part),
                wording.checks_passed(finding.output.checks),
            ],
        ),
    ]
    # A check may quote the header.
    return [printable(sentence) for sentence in sentences]
