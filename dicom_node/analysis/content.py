"""From a model's output to what the index keeps of it, and back."""

from config.coding import Code
from inference.plug import FindingByCode, Measurement, Output, Qualifier
from storage.coded import CodedFinding, CodedMeasurement, Content


def content_of(output: Output) -> Content:
    """The findings and measurements of an output."""
    return Content(tuple(map(_finding, output.findings)), tuple(map(_measurement, output.measurements)))


def _finding(finding: FindingByCode) -> CodedFinding:
    return CodedFinding(
        finding.title,
        finding.concept,
        finding.interpretation,
        finding.certainty,
        finding.threshold,
        finding.category,
        finding.site,
        finding.laterality,
        finding.segment,
    )


def _measurement(measured: Measurement) -> CodedMeasurement:
    return CodedMeasurement(
        measured.concept,
        measured.value,
        measured.unit,
        measured.site,
        measured.laterality,
        measured.topography,
        measured.derivation,
        measured.method,
        measured.segment,
        tuple((one.concept, one.value, one.unit.value) for one in measured.qualifiers),
    )


def measurements_of(content: Content) -> tuple[Measurement, ...]:
    """The measurements that the index holds, as a model gave them but for the decimals that it states."""
    return tuple(map(_as_given, content.measurements))


def _as_given(held: CodedMeasurement) -> Measurement:
    return Measurement(
        held.concept,
        held.value,
        held.unit,
        held.site,
        held.laterality,
        held.topography,
        held.segment,
        held.derivation,
        held.method,
        tuple(Qualifier(concept, number, Code(unit, "UCUM", unit)) for concept, number, unit in held.qualifiers),
    )
