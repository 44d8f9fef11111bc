"""What the content tree of one of the node's own reports says: its groups with their numbers, and its sentences."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import Dataset

from config.coding import Code
from dicom_node.report.uids import device_uid

# As `report/codes.py` and highdicom write them: to import those takes a second, for which every command would wait.
CERTAINTY, INTERPRETATION, MEASUREMENT_GROUP = "111012", "363713009", "125007"
COMMENT, FINDING, CONCLUSION = "121106", "121071", "121077"
TRACKING_IDENTIFIER, TRACKING_UID = "112039", "112040"
CATEGORY, FINDING_SITE, LATERALITY, TOPOGRAPHY = "276214006", "363698007", "272741003", "106233006"
DERIVATION, METHOD = "121401", "370129005"
SENTENCES = (COMMENT, FINDING, CONCLUSION)


@dataclass(frozen=True)
class Number:
    """One measured value. value: as the report writes it.  unit: UCUM.

    group, finding: title of the group that it stands in, and what that is about.
    qualifiers: what it depends on: (concept, value, unit).
    observation_uid: its own; derived from its group's and its place there.
    """

    concept: Code
    value: str
    unit: Code
    site: Code | None
    laterality: Code | None
    topography: Code | None
    derivation: Code | None
    method: Code | None
    qualifiers: tuple[tuple[Code, str, Code], ...]
    group: str
    observation_uid: str
    finding: Code | None = None


@dataclass(frozen=True)
class Group:
    """One measurement group. certainty: in %, as the report writes it; empty if it states none.

    numbers: without the certainty of a finding and its lowest and highest.
    """

    title: str
    observation_uid: str
    category: Code | None
    finding: Code | None
    site: Code | None
    laterality: Code | None
    interpretation: Code | None
    certainty: str
    numbers: tuple[Number, ...]


def groups_of(report: Dataset) -> list[Group]:
    """The measurement groups of a report, in its order; none in one that says why there is no result."""
    return [_group(item) for item in _tree(report) if item.ValueType == "CONTAINER" and _is(item, MEASUREMENT_GROUP)]


def sentences_of(report: Dataset) -> list[str]:
    """The texts that a person reads, in the report's order."""
    texts = [item for item in _tree(report) if item.ValueType == "TEXT" and _name(item).value in SENTENCES]
    return [str(item.TextValue) for item in texts]


def code_of(item: Dataset) -> Code:
    """A code as a sequence item writes it."""
    return Code(str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning))


def _tree(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", []):
        yield child
        yield from _tree(child)


def _name(item: Dataset) -> Code:
    return code_of(item.ConceptNameCodeSequence[0])


def _is(item: Dataset, value: str) -> bool:
    return bool(item.get("ConceptNameCodeSequence")) and _name(item).value == value


def _coded(parent: Dataset | None, name: str) -> Code | None:
    """The first code of this name among an item's children."""
    found = _child(parent, name, "CODE")
    return None if found is None else code_of(found.ConceptCodeSequence[0])


def _child(parent: Dataset | None, name: str, value_type: str) -> Dataset | None:
    children = [] if parent is None else parent.get("ContentSequence", [])
    return next((child for child in children if child.ValueType == value_type and _is(child, name)), None)


def _group(item: Dataset) -> Group:
    title, uid = _child(item, TRACKING_IDENTIFIER, "TEXT"), _child(item, TRACKING_UID, "UIDREF")
    named = "" if title is None else str(title.TextValue)
    observation_uid = "" if uid is None else str(uid.UID)
    measured = [child for child in item.ContentSequence if child.ValueType == "NUM"]
    certain = [child for child in measured if _is(child, CERTAINTY)]
    numbers = [child for child in measured if child not in certain]
    site = _child(item, FINDING_SITE, "CODE")
    return Group(
        title=named,
        observation_uid=observation_uid,
        category=_coded(item, CATEGORY),
        finding=_coded(item, FINDING),
        site=_coded(item, FINDING_SITE),
        laterality=_coded(site, LATERALITY),
        interpretation=_coded(item, INTERPRETATION),
        certainty=next((_value(child) for child in certain if _child(child, DERIVATION, "CODE") is None), ""),
        numbers=tuple(_number(child, item, named, observation_uid, place) for place, child in enumerate(numbers)),
    )


def _number(item: Dataset, group: Dataset, title: str, group_uid: str, place: int) -> Number:
    """One number; what it does not say of its site, its group says."""
    site = _child(item, FINDING_SITE, "CODE") or _child(group, FINDING_SITE, "CODE")
    depends_on = [child for child in item.get("ContentSequence", []) if child.ValueType == "NUM"]
    return Number(
        concept=_name(item),
        value=_value(item),
        unit=_unit(item),
        site=None if site is None else code_of(site.ConceptCodeSequence[0]),
        laterality=_coded(site, LATERALITY),
        topography=_coded(site, TOPOGRAPHY),
        derivation=_coded(item, DERIVATION),
        method=_coded(item, METHOD),
        qualifiers=tuple((_name(child), _value(child), _unit(child)) for child in depends_on),
        group=title,
        observation_uid=device_uid("number", group_uid, str(place)),
        finding=_coded(group, FINDING),
    )


def _value(item: Dataset) -> str:
    """The number as the report writes it, its trailing zeros too."""
    value = item.MeasuredValueSequence[0].NumericValue
    return str(getattr(value, "original_string", value)).strip()


def _unit(item: Dataset) -> Code:
    return code_of(item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0])
