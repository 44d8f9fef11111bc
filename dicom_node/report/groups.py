"""The measurement groups of a report: one for each finding, then one for each segment with measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from highdicom.sr import (
    ContentSequence,
    FindingSite,
    Measurement,
    NumContentItem,
    QualitativeEvaluation,
    RelationshipTypeValues,
)
from pydicom.sr.coding import Code as SRCode

from config.coding import Code
from dicom_node.report import codes, wording
from dicom_node.report.equipment import algorithm_identification
from dicom_node.report.frame import Origin
from inference import plug
from inference.finding import ModelIdentity
from inference.plug import FindingByCode, Output, Segment


@dataclass(frozen=True)
class Group:
    """One group. segment: title of the segment that it is about, or None.  content: arguments for highdicom."""

    title: str
    segment: str | None
    sentences: tuple[str, ...]
    content: dict[str, Any]


def groups_of(output: Output, origin: Origin, sentences: Sequence[str], segments: Sequence[str]) -> list[Group]:
    """The groups of an output.

    sentences: what is said of the whole result, in the first group.  segments: titles of those that are in the
    segmentation; without its outline, a finding's segment has no group, unless the report would then have none.
    """
    groups = [Group(one.title, one.segment, (), _finding_content(one, origin)) for one in output.findings]
    of_segments = [one for one in output.segments if one.purpose == "anatomy" or one.title in segments]
    groups += _segment_groups(of_segments, output, origin)
    loose = [one for one in output.measurements if one.segment is None]
    if loose:
        groups.append(Group(f"{_model(origin).words.subject} measurements", None, (), _loose_content(loose, origin)))
    # A model that only looks for something, and found none of it: its report states those zeros.
    first, *others = groups or _segment_groups(output.segments, output, origin)
    return [Group(first.title, first.segment, (*sentences, *first.sentences), first.content), *others]


def _segment_groups(segments: Sequence[Segment], output: Output, origin: Origin) -> list[Group]:
    """A group for each segment on which something was measured."""
    groups = []
    for segment in segments:
        measured = [one for one in output.measurements if one.segment == segment.title]
        if measured:
            content = _segment_content(segment, measured, origin)
            groups.append(Group(segment.title, segment.title, segment.comments, content))
    return groups


def site_of(site: Code | None, laterality: Code | None = None, topography: Code | None = None) -> list[FindingSite]:
    """A finding site, or nothing."""
    if site is None:
        return []
    return [
        FindingSite(
            codes.concept(site),
            laterality=codes.concept_or_none(laterality),
            topographical_modifier=codes.concept_or_none(topography),
        )
    ]


def _model(origin: Origin) -> ModelIdentity:
    assert origin.model is not None  # noqa: S101 - a finding always names it
    return origin.model


def _finding_content(finding: FindingByCode, origin: Origin) -> dict[str, Any]:
    """The certainty in percent, and the interpretation."""
    measured = certainty(finding, [codes.CERTAINTY] * 3)
    interpretation = QualitativeEvaluation(codes.INTERPRETATION, codes.concept(finding.interpretation))
    return {
        "finding_category": codes.concept_or_none(finding.category),
        "finding_type": codes.concept(finding.concept),
        "finding_sites": site_of(finding.site, finding.laterality) or None,
        "algorithm_id": algorithm_identification(_model(origin), finding.algorithm, origin.context),
        "measurements": measured or None,
        "qualitative_evaluations": [interpretation],
    }


def certainty(
    finding: FindingByCode, names: Sequence[SRCode], site: Code | None = None, laterality: Code | None = None
) -> list[Measurement]:
    """The output in percent; if harmless changes decide its sign, also the lowest and highest that they give.

    names: of the output, of the lowest and of the highest.
    site, laterality: the measurement's own; None if the group has one.
    """
    if finding.certainty is None:
        return []
    values: list[tuple[float, SRCode | None]] = [(finding.certainty, None)]
    spread = finding.unstable
    if spread is not None:
        values += [(spread.low, codes.MINIMUM), (spread.high, codes.MAXIMUM)]
    sites = site_of(site, laterality) or None
    return [
        _percent(name, value, finding.threshold, derivation, sites)
        for name, (value, derivation) in zip(names, values, strict=False)
    ]


def _percent(
    name: SRCode,
    value: float,
    threshold: float | None,
    derivation: SRCode | None,
    sites: list[FindingSite] | None,
) -> Measurement:
    shown = wording.coded_percent(value, threshold)
    measurement = Measurement(name, float(shown), codes.PERCENT, derivation=derivation, finding_sites=sites)
    # No more digits than are shown: highdicom would write 91.0. A DS holds 16 characters.
    measurement[0].MeasuredValueSequence[0].NumericValue = shown[:16]
    return measurement


def _segment_content(segment: Segment, measured: Sequence[plug.Measurement], origin: Origin) -> dict[str, Any]:
    place = (segment.site, segment.laterality)
    return {
        "finding_category": codes.concept(segment.category),
        "finding_type": codes.concept(segment.type),
        "finding_sites": site_of(*place) or None,
        "algorithm_id": algorithm_identification(_model(origin), segment.algorithm, origin.context),
        "measurements": [_measurement(one, place) for one in measured],
    }


def _loose_content(measured: Sequence[plug.Measurement], origin: Origin) -> dict[str, Any]:
    return {
        "algorithm_id": algorithm_identification(_model(origin), "", origin.context),
        "measurements": [_measurement(one, (None, None)) for one in measured],
    }


def _measurement(measured: plug.Measurement, place: tuple[Code | None, Code | None]) -> Measurement:
    """One number. place: site and laterality of its group, which are not said again."""
    elsewhere = (measured.site, measured.laterality) != place or measured.topography is not None
    sites = site_of(measured.site, measured.laterality, measured.topography) if elsewhere else []
    built = Measurement(
        codes.concept(measured.concept),
        round(float(measured.value), measured.decimals),
        codes.concept(measured.unit),
        method=codes.concept_or_none(measured.method),
        derivation=codes.concept_or_none(measured.derivation),
        finding_sites=sites or None,
    )
    for one in measured.qualifiers:
        number = NumContentItem(
            codes.concept(one.concept),
            one.value,
            codes.concept(one.unit),
            relationship_type=RelationshipTypeValues.INFERRED_FROM,
        )
        if "ContentSequence" not in built[0]:  # nothing else is said of the number
            built[0].ContentSequence = ContentSequence()
        built[0].ContentSequence.append(number)
    return built
