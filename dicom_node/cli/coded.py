"""Findings and measurements as JSON and as lines."""

from config.coding import Code
from storage.coded import CodedFinding, CodedMeasurement


def code_record(code: Code | None) -> list[str] | None:
    """Value, scheme and meaning."""
    return None if code is None else [code.value, code.scheme, code.meaning]


def finding_record(finding: CodedFinding) -> dict[str, object]:
    """A finding, its codes as lists of value, scheme and meaning."""
    return {
        "title": finding.title,
        "concept": code_record(finding.concept),
        "interpretation": code_record(finding.interpretation),
        "certainty": finding.certainty,
        "threshold": finding.threshold,
        "positive": finding.positive,
        "site": code_record(finding.site),
        "laterality": code_record(finding.laterality),
        "segment": finding.segment,
    }


def measurement_record(measured: CodedMeasurement) -> dict[str, object]:
    """A measurement, its codes as lists of value, scheme and meaning. name: what is measured, in words."""
    codes = ("concept", "site", "laterality", "topography", "derivation", "method")
    return {
        "name": measured.name,
        "value": measured.value,
        "unit": measured.unit.value,
        **{name: code_record(getattr(measured, name)) for name in codes},
        "segment": measured.segment,
        "qualifiers": [[code_record(code), number, unit] for code, number, unit in measured.qualifiers],
    }
