"""Why a series was not analysed -> Enhanced SR, TID 2000 "Basic Diagnostic Imaging Report"."""

from collections.abc import Sequence

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    EnhancedSR,
    LanguageOfContentItemAndDescendants,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from config.headers import quiet
from config.reasons import Refusal
from dicom_node.report import codes, wording
from dicom_node.report.context import ReportContext
from dicom_node.report.equipment import observer
from dicom_node.report.frame import Kind, Origin, finish, identity
from dicom_node.report.sources import complete
from dicom_node.report.structured_report import previous_versions
from dicom_node.report.values import printable
from inference.finding import ModelIdentity

_ENGLISH = CodedConcept("en-US", "RFC5646", "English (United States)")
_CONTAINS = RelationshipTypeValues.CONTAINS


def build_not_analysed(
    refusal: Refusal, sources: Sequence[Dataset], context: ReportContext, model: ModelIdentity | None
) -> Dataset:
    """A report that says that there is no result, and why.

    sources: headers of the instances that could be read, see `read_headers`.
    model: the model that would have been used, if one was chosen.
    """
    completed = [complete(sources[0]), *sources[1:]]
    origin = Origin(completed, context, model)
    # Another reason is another report, even on the same instances.
    kind = Kind(f"not analysed: {refusal.code}: {refusal.sentence}", 1, "not analysed")
    with quiet():
        report = EnhancedSR(
            evidence=completed,
            content=_content(refusal, origin),
            is_complete=True,
            is_final=False,
            is_verified=False,
            previous_versions=previous_versions(origin, origin.uid(kind.name)),
            coding_schemes=[CodingSchemeIdentificationItem(codes.PRIVATE_SCHEME, name=codes.PRIVATE_SCHEME_NAME)],
            **identity(kind, origin),
        )
    finish(report, origin)
    return report


def _content(refusal: Refusal, origin: Origin) -> Dataset:
    root = ContainerContentItem(CodedConcept.from_code(codes.DIAGNOSTIC_IMAGING_REPORT), template_id="2000")
    children = ContentSequence()
    children.extend(LanguageOfContentItemAndDescendants(_ENGLISH))
    children.extend(observer(origin.context))
    children.append(_section(codes.FINDINGS, _findings(refusal, origin)))
    children.append(_section(codes.CONCLUSIONS, [_text(codes.CONCLUSION, _conclusion(origin))]))
    root.ContentSequence = children
    return root


def _findings(refusal: Refusal, origin: Origin) -> list[ContentItem]:
    reason = CodedConcept(str(refusal.code), codes.PRIVATE_SCHEME, refusal.code.replace("_", " ").capitalize()[:64])
    series = origin.first
    seen = (
        f"Series {series.get('SeriesNumber') or 'without number'} with {len(origin.sources)} readable instance(s), "
        f"Series Instance UID {series.SeriesInstanceUID}."
    )
    return [
        CodeContentItem(codes.FINDING, reason, _CONTAINS),
        _text(codes.FINDING, refusal.sentence),
        _text(codes.FINDING, seen),
    ]


def _conclusion(origin: Origin) -> str:
    statement = "Not analysed: there is no result for this series, neither positive nor negative."
    model = origin.model
    chosen = [] if model is None else [f"Model: {model.name} {model.version}."]
    return " ".join([statement, *chosen, *wording.warnings_of(model)])


def _section(heading: Code, items: Sequence[ContentItem]) -> ContainerContentItem:
    section = ContainerContentItem(heading, relationship_type=_CONTAINS)
    section.ContentSequence = ContentSequence(items)
    return section


def _text(name: Code, value: str) -> TextContentItem:
    return TextContentItem(name, printable(value), _CONTAINS)
