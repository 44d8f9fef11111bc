"""A Structured Report as lines of text, for a terminal."""

from pydicom.dataset import Dataset


def as_text(report: Dataset) -> str:
    """The content tree, one item a line, indented by depth, as `name = value`."""
    return "\n".join(_lines(report, 0))


def _lines(item: Dataset, depth: int) -> list[str]:
    name = item.ConceptNameCodeSequence[0].CodeMeaning if item.get("ConceptNameCodeSequence") else item.ValueType
    value = _value(item)
    lines = [f"{'  ' * depth}{name}{' = ' + value if value else ''}"]
    for child in item.get("ContentSequence", []):
        lines.extend(_lines(child, depth + 1))
    return lines


def _value(item: Dataset) -> str:
    match item.get("ValueType"):
        case "TEXT":
            return str(item.TextValue)
        case "CODE":
            return str(item.ConceptCodeSequence[0].CodeMeaning)
        case "UIDREF":
            return str(item.UID)
        case "NUM":
            measured = item.MeasuredValueSequence[0]
            return f"{measured.NumericValue} {measured.MeasurementUnitsCodeSequence[0].CodeValue}"
        case "IMAGE" | "COMPOSITE":
            reference = item.ReferencedSOPSequence[0]
            segment = reference.get("ReferencedSegmentNumber")
            return str(reference.ReferencedSOPInstanceUID) + (f" segment {segment}" if segment else "")
        case _:
            return ""
