"""Headers of the source images, completed and in UTF-8, so that they can be reported on.

Scanners and archives leave type 2 attributes out, write dates that are none, and use character sets whose
text cannot be copied into another object as bytes. What is repaired here is repaired in a copy.
"""

import re
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pydicom.valuerep import DA, TM

from inference.errors import CorruptInstance
from inference.volume.ct_volume import CTVolume

UTF_8 = "ISO_IR 192"

# Type 1 and 2 attributes of the Patient and General Study modules, and what the objects below need.
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_TEXT_VRS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_MULTIVALUED_TEXT_VRS = frozenset({"LO", "PN", "SH", "UC"})
# ISO 2022 escape sequences, which decoders of the double-byte sets leave in the text.
_ESCAPE = re.compile("\x1b[\x20-\x2f]*[\x30-\x7e]")
# What pydicom raises on elements that are not what their representation says.
_UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    OverflowError,
    NotImplementedError,
    struct.error,
    BytesLengthException,
)
_PARSERS: dict[str, Callable[[Any], object]] = {"DA": DA, "TM": TM}
_MAX_CHARACTERS = {"SH": 16, "LO": 64}
_EQUIPMENT = (
    "Manufacturer",
    "ManufacturerModelName",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "StationName",
    "DeviceSerialNumber",
)


def read_sources(volume: CTVolume) -> list[Dataset]:
    """Completed headers of the volume's instances without pixel data, in the volume's z order.

    A multi-frame instance comes once, at its first slice.
    Raises CorruptInstance when a file can no longer be read.
    """
    paths = dict.fromkeys(slice_.path for slice_ in volume.slices)
    return [complete(_read(path)) for path in paths]


def read_headers(paths: Sequence[Path]) -> list[Dataset]:
    """Completed headers of the files that can be read, for a report on a series that could not be analysed.

    Raises CorruptInstance when none can be read.
    """
    headers = []
    for path in paths:
        try:
            headers.append(complete(_read(path)))
        except CorruptInstance:
            continue
    if not headers:
        raise CorruptInstance("none of the series' instances has a readable header")
    return headers


def complete(source: Dataset) -> Dataset:
    """A copy with text in UTF-8, every type 2 attribute present, and no date, time or sex that is none.

    Private attributes, pixel data and group lengths are left out. Completing twice changes nothing.
    """
    with warnings.catch_warnings():
        # pydicom's warnings quote values, and those are the patient's.
        warnings.simplefilter("ignore")
        copy = _in_utf_8(source, None)
        copy.SpecificCharacterSet = UTF_8
        for keyword in _TYPE_2:
            if copy.get(keyword) is None:
                setattr(copy, keyword, "")
        _drop_invalid(copy)
        _fit_equipment(copy)
    return copy


def _read(path: Path) -> Dataset:
    """One header. Raises CorruptInstance naming the file, whose name the node made up."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            missing = [keyword for keyword in _UIDS if not _is_uid(header.get(keyword))]
    except (OSError, InvalidDicomError, *_UNREADABLE) as error:
        raise CorruptInstance(f"{path.name}: the header cannot be read ({type(error).__name__})") from None
    if missing:
        raise CorruptInstance(f"{path.name}: the header has no valid {', '.join(missing)}")
    if UID(header.SOPClassUID).type != "SOP Class":
        raise CorruptInstance(f"{path.name}: the SOP Class is unknown")
    return header


def _is_uid(value: object) -> bool:
    return isinstance(value, UID) and value.is_valid


def _in_utf_8(source: Dataset, inherited: object) -> Dataset:
    """A copy of the public elements with decoded text; sequences recursively, each in its own character set."""
    character_set = _character_set(source) or inherited
    encodings = _encodings(character_set)
    copy = Dataset()
    for tag in source.keys():  # noqa: SIM118 - iterating a Dataset would decode every element
        if tag.is_private or tag.element == 0 or tag.group >= 0x7FE0 or tag == 0x00080005:
            continue
        element = _element(source, tag, encodings)
        if element is None:
            continue
        if element.VR == "SQ":
            items = [_in_utf_8(item, character_set) for item in element.value]
            element = DataElement(tag, "SQ", items)
        copy.add(element)
    return copy


def _element(source: Dataset, tag: BaseTag, encodings: list[str]) -> DataElement | None:
    """The element with its text decoded, or None where it cannot be made sense of."""
    try:
        raw = source.get_item(tag)
        if isinstance(raw, RawDataElement):
            vr = raw.VR or dictionary_VR(tag)
            if vr in _TEXT_VRS and isinstance(raw.value, bytes):
                return DataElement(tag, vr, _decoded(raw.value, vr, encodings))
        element = source[tag]
        if element.VR in _TEXT_VRS:
            return DataElement(tag, element.VR, _cleaned(element.value))
        # An element of its own: what is repaired in the copy must not show in the source.
        return DataElement(tag, element.VR, element.value)
    except _UNREADABLE:
        return None


def _decoded(value: bytes, vr: str, encodings: list[str]) -> str | list[str]:
    """Text of an undecoded element.

    Decoded before it is split at backslashes: the second byte of a GBK or GB18030 character may be one.
    """
    if not encodings:
        encodings = ["utf-8"] if _is_utf_8(value) else ["iso8859-1"]
    # Each of these ends the reach of an ISO 2022 escape sequence (PS3.5, 6.1.2.5.3).
    delimiters = "^=\\" if vr == "PN" else "\\\n\r\f\t"
    text = decode_bytes(value, encodings, {ord(character) for character in delimiters})
    text = _ESCAPE.sub("", text).rstrip(" \0")
    if vr in _MULTIVALUED_TEXT_VRS and "\\" in text:
        return [part.strip(" ") for part in text.split("\\")]
    return text


def _cleaned(value: object) -> str | list[str]:
    if isinstance(value, MultiValue | list | tuple):
        return [_ESCAPE.sub("", str(part)) for part in value]
    return _ESCAPE.sub("", str(value)) if value is not None else ""


def _character_set(source: Dataset) -> object:
    """Specific Character Set as stored; None where the element cannot be read."""
    try:
        return source.get("SpecificCharacterSet")
    except _UNREADABLE:
        return None


def _encodings(character_set: object) -> list[str]:
    """Python codecs of a Specific Character Set; empty where none is declared."""
    if not character_set:
        return []
    terms = list(character_set) if isinstance(character_set, MultiValue | list | tuple) else str(character_set)
    return convert_encodings(terms)


def _is_utf_8(value: bytes) -> bool:
    """True when undeclared text is UTF-8: bytes of another set hardly ever are, by chance."""
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _drop_invalid(header: Dataset) -> None:
    """Empty what the value representation forbids, as an unknown value is better than a false one."""
    for element in list(header):
        # The dictionary's word counts: a damaged element may claim another representation.
        vr = dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else element.VR
        if vr in _PARSERS and not (vr == element.VR and _parses(_PARSERS[vr], element.value)):
            header[element.tag] = DataElement(element.tag, vr, "")
    if header.PatientSex not in ("M", "F", "O", ""):
        header.PatientSex = ""


def _parses(parser: Callable[[Any], object], value: object) -> bool:
    try:
        for part in value if isinstance(value, MultiValue) else [value]:
            parser(part)
    except (ValueError, TypeError):
        return False
    return True


def _fit_equipment(header: Dataset) -> None:
    """Cut equipment texts to what their value representation allows."""
    for keyword in _EQUIPMENT:
        if keyword not in header:
            continue
        element = header[keyword]
        value = element.value[0] if isinstance(element.value, MultiValue) and element.value else element.value
        element.value = str(value or "")[: _MAX_CHARACTERS.get(element.VR, 64)]
