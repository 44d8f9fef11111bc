"""What objects hold, told from specimens of each: what is always there, and where each value comes from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_description, keyword_for_tag, tag_for_keyword

from dicom_node.conformance.specimen import Specimen
from dicom_node.report import copied
from dicom_node.report.context import ReportContext

Path = tuple[int, ...]
"""Tags of the sequences that an element is in, and its own last."""
_LONGEST = 64
_ACRONYMS = ("sop", "sr", "sc", "ct", "voi", "lut", "iod")
_BULK = ("OB", "OW", "OV", "OD", "OF", "OL")
_GROUP_LENGTH = 0x00020000
_CONTENT = 0x0040A730
"""Content Sequence, which has a table of its own."""


@dataclass(frozen=True)
class Attribute:
    """One attribute of a kind of object.

    presence: ALWAYS, VNAP (its value is not always there) or ANAP (it is not always there).
    source: FIXED, CONFIG (a setting), IMAGES (as it was received) or AUTO (the node makes it).
    value: the fixed one.  module: whose attribute it is in the IOD; empty below the top level.
    """

    path: Path
    vr: str
    module: str
    type: str
    presence: str
    source: str
    value: str

    @property
    def tag(self) -> str:
        """As (gggg,eeee)."""
        return tag_text(self.path[-1])

    @property
    def name(self) -> str:
        """With a > for each sequence that it is in."""
        return _name(self.path)


Held = Mapping[Path, list[DataElement]]


def attributes(objects: Sequence[Dataset], specimens: Sequence[Specimen]) -> list[Attribute]:
    """The attributes of one kind of object. objects: one of each specimen, in their order."""
    held = [_held(one) for one in objects]
    places = sorted(set().union(*held))
    names = _modules(str(objects[0].SOPClassUID))
    return [_attribute(path, held, specimens, names) for path in places]


def names_in(dataset: Dataset) -> set[str]:
    """The names of all attributes of an object, as `Attribute.name` has them."""
    return set(map(_name, _held(dataset)))


def private_attributes(objects: Iterable[Dataset]) -> set[int]:
    """Tags of private attributes, at whatever depth."""
    return {int(element.tag) for one in objects for element in one.iterall() if element.tag.is_private}


def _name(path: Path) -> str:
    return f"{'>' * (len(path) - 1)}{dictionary_description(path[-1])}"


def _held(dataset: Dataset) -> dict[Path, list[DataElement]]:
    found: dict[Path, list[DataElement]] = {}
    for path, element in (*_walk(dataset.file_meta, ()), *_walk(dataset, ())):
        found.setdefault(path, []).append(element)
    return found


def _walk(dataset: Dataset, before: Path) -> Iterator[tuple[Path, DataElement]]:
    for element in dataset:
        path = (*before, int(element.tag))
        if element.tag != _GROUP_LENGTH:
            yield path, element
        if element.VR == "SQ" and element.tag != _CONTENT:
            for item in element.value:
                yield from _walk(item, path)


def _attribute(
    path: Path, held: Sequence[Held], specimens: Sequence[Specimen], names: Mapping[Path, tuple[str, str]]
) -> Attribute:
    full, bare = held[:2], held[2:]
    element = next(one[path][0] for one in held if path in one)
    module, type_ = names.get(path, ("File meta information", "") if path[0] >> 16 == 2 else ("", ""))
    source, value = _source(path, full, specimens) if element.VR not in ("SQ", *_BULK) else ("", "")
    return Attribute(path, str(element.VR), module, type_, _presence(path, full, bare), source, value)


def _presence(path: Path, full: Sequence[Held], bare: Sequence[Held]) -> str:
    if any(path not in one for one in (*full, *bare)):
        return "ANAP"
    return "ALWAYS" if all(_text(element) for one in bare for element in one[path]) else "VNAP"


def _source(path: Path, full: Sequence[Held], specimens: Sequence[Specimen]) -> tuple[str, str]:
    """Where a value is from, and the value if it is always the same."""
    values = [{_text(element) for element in one.get(path, [])} for one in full]
    fixed = values[0] if values[0] == values[1] and len(values[0]) == 1 else set()
    if fixed and (keyword_for_tag(path[-1]) in copied.SIMPLE or fixed == {str(specimens[0].source.SOPClassUID)}):
        return "IMAGES", ""
    if fixed:
        (value,) = fixed
        return ("FIXED", value if len(value) <= _LONGEST else f"{value[: _LONGEST - 3]}...") if value else ("", "")
    if all(found and found == {_copied(path, one.source)} for found, one in zip(values, specimens, strict=False)):
        return "IMAGES", ""
    if all(found & _settings(one.context) for found, one in zip(values, specimens, strict=False)):
        return "CONFIG", ""
    return "AUTO", ""


def _copied(path: Path, source: Dataset) -> str | None:
    """What the images' header has at the same place; None if nothing."""
    *sequences, tag = path
    for sequence in sequences:
        items = source[sequence].value if sequence in source else []
        if len(items) != 1:
            return None
        source = items[0]
    return _text(source[tag]) if tag in source else None


def _settings(context: ReportContext) -> set[str]:
    return {context.manufacturer, context.device_name, context.device_serial, context.institution}


def _text(element: DataElement) -> str:
    value = element.value
    if element.VR in ("SQ", *_BULK):
        return "there" if len(value or "") else ""
    return "\\".join(map(str, value)) if element.VM > 1 else str("" if value is None else value)


def _modules(sop_class_uid: str) -> dict[Path, tuple[str, str]]:
    """By path: the name of its module in the IOD, and its type there."""
    known = get_module_attribute_map()
    found: dict[Path, tuple[str, str]] = {}
    for module in get_iod_module_map()[get_sop_class_iod_map()[sop_class_uid]]:
        for one in known.get(module["key"], []):
            path = tuple(tag_for_keyword(keyword) or 0 for keyword in (*one["path"], one["keyword"]))
            found.setdefault(path, (_module_name(module["key"]), one["type"]))
    return found


def _module_name(key: str) -> str:
    words = [word.upper() if word in _ACRONYMS else word for word in key.split("-")]
    return " ".join((words[0][:1].upper() + words[0][1:], *words[1:]))


def tag_of(keyword: str) -> int:
    """The tag of an attribute. Raises ValueError if the dictionary has none."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword}: no attribute of the standard")
    return tag


def tag_text(tag: int) -> str:
    """As (gggg,eeee)."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
