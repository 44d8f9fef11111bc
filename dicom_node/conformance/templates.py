"""The content trees of reports as templates, and the coded terms that they use, told from specimens."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pydicom import Dataset

Coded = tuple[str, str, str]
"""Value, scheme, meaning."""


@dataclass
class Item:
    """Content items of the same relationship, type and concept under the same parent.

    values: of codes, or of text and numbers, as they are in the specimens.
    """

    relationship: str
    value_type: str
    concept: str
    values: set[str] = field(default_factory=set)
    children: dict[tuple[str, str, str], "Item"] = field(default_factory=dict)


def template(objects: Sequence[Dataset]) -> list[tuple[str, str, str, str]]:
    """Rows of a table: depth and relationship, value type, concept, value. objects: of the same kind."""
    root = Item("", "CONTAINER", _concept(objects[0]))
    for one in objects:
        _merge(root, one)
    return [("", root.value_type, root.concept, _of_template(objects[0])), *_rows(root, ">")]


def codes_in(objects: Iterable[Dataset]) -> set[Coded]:
    """Every coded term in these objects, at whatever depth."""
    return {
        (str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning))
        for one in objects
        for element in one.iterall()
        if element.VR == "SQ"
        for item in element.value
        if "CodeValue" in item and "CodingSchemeDesignator" in item and "CodeMeaning" in item
    }


def _merge(into: Item, container: Dataset) -> None:
    for item in container.get("ContentSequence", []):
        key = (str(item.RelationshipType), str(item.ValueType), _concept(item))
        merged = into.children.setdefault(key, Item(*key))
        merged.values.add(_value(item))
        _merge(merged, item)


def _rows(parent: Item, depth: str) -> Iterator[tuple[str, str, str, str]]:
    for item in parent.children.values():
        value = next(iter(item.values)) if len(item.values) == 1 else ""
        yield f"{depth} {item.relationship}", item.value_type, item.concept, value
        yield from _rows(item, f"{depth}>")


def _concept(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence") or []
    return _code(names[0]) if names else ""


def _code(item: Dataset) -> str:
    return f"({item.CodeValue}, {item.CodingSchemeDesignator}, {item.CodeMeaning})"


def _value(item: Dataset) -> str:
    """A code, or a number's unit: the rest is what the report is about."""
    if item.ValueType == "CODE":
        return _code(item.ConceptCodeSequence[0])
    if item.ValueType == "NUM":
        return f"in {_code(item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0])}"
    return _of_template(item)


def _of_template(item: Dataset) -> str:
    found = item.get("ContentTemplateSequence") or []
    return f"TID {found[0].TemplateIdentifier}" if found else ""
